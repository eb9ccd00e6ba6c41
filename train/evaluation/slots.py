"""What a command says, as intent and slots: read from rows, compared with what was heard."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.errors import DataError
from edge_imputer.events import Meaning
from edge_imputer.measured import Interval

from .error_rates import ratio_interval
from .journal import Entry
from .results import SlotScores
from .rows import Row

Outcome = Literal["right", "wrong", "missing", "spurious"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "missing", "spurious")


class _CommandKeys(msgspec.Struct, frozen=True):
    slots: dict[str, str] | None = None
    intent: str | None = None


@dataclass(frozen=True)
class Command:
    """An intent and its slots, values as `normalised`. No intent: none is known."""

    intent: str | None
    slots: Mapping[str, str]

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in sorted(self.slots.items()))
        return f"{self.intent or ''}({values})"


@dataclass(frozen=True)
class Understood:
    """A command that was said beside what was heard."""

    said: Command
    heard: Command

    @property
    def intent_right(self) -> bool:
        """Whether the intent is the one said, in whatever case, or none was told."""
        said, heard = self.said.intent, self.heard.intent
        return said is None or (heard is not None and normalised(said) == normalised(heard))

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Slot -> what became of it, for every slot that was said or heard."""
        said, heard = self.said.slots, self.heard.slots
        found: dict[str, Outcome] = {}
        for name in dict.fromkeys([*said, *heard]):
            if name not in heard:
                found[name] = "missing"
            elif name not in said:
                found[name] = "spurious"
            else:
                found[name] = "right" if said[name] == heard[name] else "wrong"
        return found

    @property
    def right(self) -> bool:
        """Whether the intent and every slot are right, and no slot is spurious."""
        return self.intent_right and all(one == "right" for one in self.outcomes.values())


def normalised(value: str) -> str:
    """A value as values are compared: without case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", value.casefold()).split())


def command_of(row: Row) -> Command | None:
    """What a row says, or None where it has no slots.

    Raises
    ------
    DataError
        Its ``slots`` are not texts by name, or its ``intent`` is no text.
    """
    try:
        keys = msgspec.convert(dict(row.keys), _CommandKeys)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{row.record.audio}: expected slots as texts by name and an intent as text, such as "
            f'{{"intent": "order", "slots": {{"drink": "latte"}}}}: {error}'
        ) from None
    if keys.slots is None:
        return None
    return Command(keys.intent, {k: normalised(v) for k, v in keys.slots.items() if v.strip()})


def heard_command(entry: Entry, slots: Collection[str]) -> Command:
    """What a grammar made of a clip. Rules with other names than `slots` are no slots."""
    meaning = Meaning(entry.rules or ())
    heard = {k: normalised(v) for k, v in meaning.slots.items() if k in slots and v.strip()}
    return Command(meaning.intent, heard)


def score_slots(
    found: Sequence[Understood], *, slot: str | None = None, seed: int = 0
) -> SlotScores:
    """Precision, recall and F1 of one slot, or of all; whole clips are resampled."""
    outcomes = [
        [what for name, what in one.outcomes.items() if slot in (None, name)] for one in found
    ]
    right, wrong, missing, spurious = (
        np.array([clip.count(kind) for clip in outcomes], np.float64) for kind in OUTCOMES
    )

    def rate(sizes: npt.NDArray[np.float64]) -> Interval | None:
        return ratio_interval(right, sizes, seed=seed) if sizes.sum() else None

    return SlotScores(
        precision=rate(right + wrong + spurious),
        recall=rate(right + wrong + missing),
        f1=rate(right + wrong + (missing + spurious) / 2),
        right=int(right.sum()),
        wrong=int(wrong.sum()),
        missing=int(missing.sum()),
        spurious=int(spurious.sum()),
    )


def choose_refusal(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """The least confidence to take a command at: fewest wrong ones taken plus right ones refused.

    It lies halfway between two confidences (or one and 0 or 1). Of equally good ones it is the
    lowest, which refuses least.

    Raises
    ------
    DataError
        No clip.
    """
    if not confidences:
        raise DataError("expected clips to choose a confidence on, got none")
    order = np.argsort(confidences, kind="stable")
    sure = np.asarray(confidences, np.float64)[order]
    is_right = np.asarray(right, bool)[order]
    # With the k least sure clips refused: k = 0 ... N.
    right_refused = np.concatenate([[0], np.cumsum(is_right)])
    wrong_taken = (~is_right).sum() - np.concatenate([[0], np.cumsum(~is_right)])
    edges = np.concatenate([[0.0], sure, [1.0]])
    # Equal confidences cannot be told apart, so that no threshold lies between them.
    apart = np.concatenate([[True], sure[1:] > sure[:-1], [sure[-1] < 1]])
    errors = np.where(apart, right_refused + wrong_taken, len(sure) + 1)
    k = int(errors.argmin())
    return float((edges[k] + edges[k + 1]) / 2)
