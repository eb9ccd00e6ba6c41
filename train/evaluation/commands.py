"""Commands scored by their intent and slots, where a grammar says what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from edge_imputer.claims import share_text
from edge_imputer.decoding import GraphLanguage, Language, WordGraph, word_graph
from edge_imputer.errors import DataError
from edge_imputer.measured import Interval
from edge_imputer.metrics import clopper_pearson, paired_difference

from .error_rates import N_RESAMPLES
from .results import (
    CommandExample,
    CommandReport,
    CommandRow,
    Comparison,
    Condition,
    Refusal,
    RunInfo,
    SlotError,
    SlotRow,
)
from .rows import DataSet, Row
from .run import Heard, Runner, by_key, by_kind
from .slots import (
    Understood,
    choose_refusal,
    command_of,
    heard_command,
    normalised,
    score_slots,
)

N_EXAMPLES = 12
N_FREQUENT = 15


def tells_commands_only(data: Sequence[DataSet]) -> bool:
    """Whether there are rows with slots, and none with a transcript."""
    rows = [row for one in data for row in one.rows]
    said = any((row.record.text or "").strip() for row in rows)
    return not said and any(isinstance(row.keys.get("slots"), dict) for row in rows)


class SlotGrammar:
    """A grammar whose rules are named as the slots of the data.

    Parameters
    ----------
    language : what the model was told may be said
    data : whose rows have the slots

    Raises
    ------
    DataError
        The language has no meaning (words, an n-gram), no row has slots, or no rule is named as
        one of them.
    """

    def __init__(self, language: Language | None, data: Sequence[DataSet]) -> None:
        if not isinstance(language, GraphLanguage) or language.grammar is None:
            what = "none" if language is None else "words or an n-gram, which mean nothing"
            raise DataError(
                "expected a grammar to tell what commands mean, with a rule for each slot, got "
                f"{what}; give --language FILE.jsgf"
            )
        said = [c for one in data for row in one.rows if (c := command_of(row)) is not None]
        self.slots = tuple(sorted({slot for command in said for slot in command.slots}))
        if not self.slots:
            names = ", ".join(f"{d.name} {d.split}" for d in data)
            raise DataError(
                f"expected rows with slots to score commands by, found none in {names}; give a "
                'manifest whose rows have "slots", another --split, or --task transcripts'
            )
        rules = [name for name in language.graph.rules if name in self.slots]
        if not rules:
            raise DataError(
                f"expected a grammar with rules named as the slots of the data, "
                f"{', '.join(self.slots)}, got the rules {', '.join(language.graph.rules)}"
            )
        self.missing = tuple(slot for slot in self.slots if slot not in rules)
        self._values: dict[str, WordGraph] = {
            rule: _folded(word_graph(replace(language.grammar, public=(rule,)))) for rule in rules
        }

    def says(self, slot: str, value: str) -> bool:
        """Whether the slot's rule can say a value, both as `normalised`."""
        return slot in self._values and self._values[slot].says(normalised(value))


def _folded(graph: WordGraph) -> WordGraph:
    return replace(graph, arcs=tuple(replace(a, word=normalised(a.word)) for a in graph.arcs))


def share_or_none(share: Interval | None) -> str:
    """A share for people; "none" where nothing was there to count."""
    return "none" if share is None else share_text(share)


def refusal_line(refusal: Refusal) -> str:
    """How commands are refused, in a sentence."""
    head = f"Commands of a confidence below {refusal.threshold:.4f} are refused"
    if refusal.chosen_on is None:
        return f"{head}: a threshold that was given."
    return (
        f"{head}: chosen on {refusal.chosen_on} ({refusal.n_clips} clips), where it takes "
        f"{refusal.n_wrong_taken} that are wrong and refuses {refusal.n_right_refused} that are "
        "right."
    )


@dataclass(frozen=True)
class _Scored:
    """Clips of one condition, and what was understood of each."""

    condition: Condition
    heard: list[Heard]
    found: list[Understood]

    @property
    def confidences(self) -> list[float]:
        return [one.entry.confidence or 0.0 for one in self.heard]

    @property
    def right(self) -> list[bool]:
        return [one.right for one in self.found]


def evaluate_commands(
    runner: Runner,
    data: Sequence[DataSet],
    tuning: Sequence[DataSet],
    snrs_db: Sequence[float | None],
    info: RunInfo,
    grammar: SlotGrammar,
    *,
    threshold: float | None = None,
    by: Sequence[str] = (),
    other: Runner | None = None,
    other_name: str = "",
) -> CommandReport:
    """Share of commands understood, rates of their slots, and how many are refused as unsure.

    Parameters
    ----------
    runner : Runner
        Whose `compute` transcribes with the grammar.
    data, tuning : what is reported on, and what the threshold is chosen on; rows without slots are
        left out
    snrs_db : None for clean, or decibels
    info : RunInfo
    grammar : SlotGrammar
    threshold : float, optional
        Take this one instead of choosing.
    by : keys of the manifests to break rates down by
    other, other_name : another model, to compare on the same clips

    Raises
    ------
    DataError
        No clip to choose the threshold on, or none to report on.
    """
    refusal = (
        _choose(runner, tuning, grammar)
        if threshold is None
        else Refusal(
            threshold=threshold,
            chosen_on=None,
            n_clips=None,
            n_wrong_taken=None,
            n_right_refused=None,
        )
    )
    rows: list[CommandRow] = []
    by_slot: list[SlotRow] = []
    errors: list[SlotError] = []
    examples: list[CommandExample] = []
    comparisons: list[Comparison] = []
    for one in data:
        for snr_db in snrs_db:
            for scored in _score(runner, one, snr_db, grammar):
                rows.append(_row(scored, refusal.threshold, info.seed))
                rows += [_row(s, refusal.threshold, info.seed) for s in _groups(scored, by)]
                by_slot += _by_slot(scored, grammar, info.seed)
                errors += _errors(scored)
                examples += _examples(scored)
                if other is not None:
                    theirs = _of_rows(other, one, scored, grammar)
                    comparisons.append(_compare(scored, theirs, other_name, info.seed))
    if not rows:
        raise DataError(
            "expected clips with slots to report on, found none that can be used in "
            f"{', '.join(f'{d.name} {d.split}' for d in data)}; give another --split"
        )
    skipped = tuple(f"{name}: {why}" for name, why in runner.skipped.items())
    notes = (*info.notes, *_notes(data, grammar))
    return CommandReport(
        run=msgspec.structs.replace(info, notes=notes, skipped=skipped),
        refusal=refusal,
        rows=tuple(rows),
        by_slot=tuple(by_slot),
        errors=tuple(errors),
        examples=tuple(examples),
        comparisons=tuple(comparisons),
    )


def _usable(data: DataSet) -> list[Row]:
    return [row for row in data.rows if command_of(row) is not None]


def _score(
    runner: Runner, data: DataSet, snr_db: float | None, grammar: SlotGrammar
) -> list[_Scored]:
    heard = runner.run(data, snr_db, rows=_usable(data))
    return [_understand(c, group, grammar) for c, group in by_kind(data, heard, snr_db)]


def _understand(condition: Condition, heard: list[Heard], grammar: SlotGrammar) -> _Scored:
    pairs = [(command_of(h.row), heard_command(h.entry, grammar.slots)) for h in heard]
    return _Scored(condition, heard, [Understood(said, got) for said, got in pairs if said])


def _groups(scored: _Scored, by: Sequence[str]) -> Iterator[_Scored]:
    place = {id(heard): found for heard, found in zip(scored.heard, scored.found, strict=True)}
    for key in by:
        for condition, heard in by_key(scored.condition, scored.heard, key):
            yield _Scored(condition, heard, [place[id(one)] for one in heard])


def _of_rows(other: Runner, data: DataSet, scored: _Scored, grammar: SlotGrammar) -> _Scored:
    rows = [one.row for one in scored.heard]
    heard = other.run(data, scored.condition.snr_db, rows=rows)
    return _understand(scored.condition, heard, grammar)


def _choose(runner: Runner, tuning: Sequence[DataSet], grammar: SlotGrammar) -> Refusal:
    """A threshold by clean clips of one kind: recordings of people where there are any."""
    found = [scored for one in tuning for scored in _score(runner, one, None, grammar)]
    kinds = {scored.condition.kind for scored in found}
    found = [s for s in found if s.condition.kind == ("real" if "real" in kinds else "synthetic")]
    if not found:
        raise DataError(
            "expected clips with slots to choose the least confidence on, found none in "
            f"{', '.join(f'{d.name} {d.split}' for d in tuning)}; give --tune-split, or a "
            "--threshold"
        )
    confidences = [c for scored in found for c in scored.confidences]
    right = [r for scored in found for r in scored.right]
    threshold = choose_refusal(confidences, right)
    taken = [c >= threshold for c in confidences]
    return Refusal(
        threshold=threshold,
        chosen_on="; ".join(str(scored.condition) for scored in found),
        n_clips=len(right),
        n_wrong_taken=sum(t and not r for t, r in zip(taken, right, strict=True)),
        n_right_refused=sum(r and not t for t, r in zip(taken, right, strict=True)),
    )


def _row(scored: _Scored, threshold: float, seed: int) -> CommandRow:
    found, n = scored.found, len(scored.found)
    taken = [c >= threshold for c in scored.confidences]
    right_taken = sum(t and r for t, r in zip(taken, scored.right, strict=True))
    told = [one for one in found if one.said.intent is not None]
    intent = sum(one.intent_right for one in told)
    return CommandRow(
        condition=scored.condition,
        n_clips=n,
        right=clopper_pearson(sum(scored.right), n),
        intent=clopper_pearson(intent, len(told)) if told else None,
        slots=score_slots(found, seed=seed),
        refused=clopper_pearson(n - sum(taken), n),
        accepted_right=clopper_pearson(right_taken, sum(taken)) if any(taken) else None,
    )


def _by_slot(scored: _Scored, grammar: SlotGrammar, seed: int) -> list[SlotRow]:
    return [
        SlotRow(
            condition=scored.condition,
            slot=slot,
            scores=score_slots(scored.found, slot=slot, seed=seed),
            sayable=_sayable([one.said.slots for one in scored.found], slot, grammar),
        )
        for slot in grammar.slots
    ]


def _sayable(said: Sequence[Mapping[str, str]], slot: str, grammar: SlotGrammar) -> Interval | None:
    values = [slots[slot] for slots in said if slot in slots]
    n_said = sum(grammar.says(slot, value) for value in values)
    return clopper_pearson(n_said, len(values)) if values else None


def _errors(scored: _Scored) -> list[SlotError]:
    found = Counter(
        (kind, slot, one.said.slots.get(slot, ""), one.heard.slots.get(slot, ""))
        for one in scored.found
        for slot, kind in one.outcomes.items()
        if kind != "right"
    )
    frequent = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:N_FREQUENT]
    return [
        SlotError(
            condition=scored.condition, kind=kind, slot=slot, said=said, heard=heard, count=count
        )
        for (kind, slot, said, heard), count in frequent
    ]


def _examples(scored: _Scored) -> list[CommandExample]:
    """Clips that were not understood, the surest first: those do harm."""
    wrong = [
        (heard, found)
        for heard, found in zip(scored.heard, scored.found, strict=True)
        if not found.right
    ]
    wrong.sort(key=lambda pair: (-(pair[0].entry.confidence or 0), pair[0].row.record.audio))
    return [
        CommandExample(
            condition=scored.condition,
            clip=heard.row.record.audio,
            said=str(found.said),
            heard=str(found.heard),
            text=heard.entry.text or "",
            confidence=heard.entry.confidence or 0.0,
        )
        for heard, found in wrong[:N_EXAMPLES]
    ]


def _compare(ours: _Scored, theirs: _Scored, name: str, seed: int) -> Comparison:
    found = paired_difference(
        np.array(ours.right, np.float64),
        np.array(theirs.right, np.float64),
        np.ones(len(ours.found)),
        n_resamples=N_RESAMPLES,
        seed=seed,
    )
    return Comparison(
        condition=ours.condition, other=name, difference=found.interval, p_value=found.p_value
    )


def _notes(data: Sequence[DataSet], grammar: SlotGrammar) -> Iterator[str]:
    if grammar.missing:
        yield f"The grammar has no rule for {', '.join(grammar.missing)}: always missing."
    for one in data:
        left_out = len(one.rows) - len(_usable(one))
        if left_out:
            yield (
                f"{one.name} {one.split}: {left_out} of {len(one.rows)} clips have no slots and "
                "are left out."
            )
