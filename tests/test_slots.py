"""Commands scored by intent and slots: counting, thresholds, grammars that fit or do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.decoding import of_grammar, of_words
from edge_imputer.errors import DataError
from edge_imputer.events import Meaning
from edge_imputer.metrics import clopper_pearson
from edge_imputer.specs import TokenSpec
from edge_imputer.train.checkpoint import Origin, load_checkpoint, pack
from edge_imputer.train.data import ClipRecord
from edge_imputer.train.evaluation import CommandReport, Entry, Journal, write_html
from edge_imputer.train.evaluation.commands import (
    SlotGrammar,
    evaluate_commands,
    refusal_line,
    tells_commands_only,
)
from edge_imputer.train.evaluation.error_rates import ratio_interval
from edge_imputer.train.evaluation.results import RunInfo
from edge_imputer.train.evaluation.rows import DataSet, Row
from edge_imputer.train.evaluation.run import Runner
from edge_imputer.train.evaluation.slots import (
    Command,
    Understood,
    choose_refusal,
    command_of,
    heard_command,
    normalised,
    score_slots,
)
from edge_imputer.train.evaluation.torch_transcriber import TorchTranscriber
from edge_imputer.train.tasks import build_task

from .test_evaluate_cli import RATE, corpus, refusal, run
from .training_cases import tiny_recipe

GRAMMAR = """#JSGF V1.0;
grammar kitchen;
public <light> = turn <state> the [<room>] light;
public <brew> = make a <drink>;
<state> = on | off;
<room> = living room | hall;
<drink> = tea | "iced tea";
"""


def row(number: int, split: str = "test", **keys: Any) -> Row:
    base = {"audio": f"{number}.wav", "text": None, "speaker": "unknown", "split": split}
    keys = {**base, "duration_s": 1.0, "sample_rate": RATE, **keys}
    return Row(msgspec.convert(keys, ClipRecord), "real", keys)


def understood(said: Mapping[str, str], heard: Mapping[str, str]) -> Understood:
    return Understood(Command("light", said), Command("light", heard))


# ------------------------------------------------------------------------------ one command


def test_missing_spurious_and_wrong_slots_are_told_apart() -> None:
    one = understood(
        {"state": "on", "room": "hall", "lamp": "red"},
        {"state": "off", "room": "hall", "drink": "tea"},
    )
    assert one.outcomes == {
        "state": "wrong",
        "room": "right",
        "lamp": "missing",
        "drink": "spurious",
    }
    assert not one.right
    assert understood({"state": "on"}, {"state": "on"}).right
    assert not understood({"state": "on"}, {"state": "on", "room": "hall"}).right


def test_the_intent_counts_where_it_is_known() -> None:
    heard = Command("brew", {"state": "on"})
    assert not Understood(Command("light", {"state": "on"}), heard).right
    assert Understood(Command(None, {"state": "on"}), heard).right
    assert Understood(Command("Brew", {"state": "on"}), heard).right
    assert not Understood(Command("brew", {}), Command(None, {})).right


def test_values_are_compared_without_case_and_spacing() -> None:
    assert normalised("  Iced   TEA ") == "iced tea"
    assert normalised("cafe\u0301") == "café"
    said = command_of(row(0, intent="brew", slots={"drink": "Iced  Tea", "size": " "}))
    assert said == Command("brew", {"drink": "iced tea"})


def test_what_was_heard_has_the_rules_that_are_slots() -> None:
    rules = (("light", "turn on the hall light"), ("state", "on"), ("room", "hall"))
    entry = Entry(key="", text="turn on the hall light", rules=rules)
    assert heard_command(entry, ["state", "drink"]) == Command("light", {"state": "on"})
    assert heard_command(Entry(key="", text="", rules=()), ["state"]) == Command(None, {})
    assert Meaning(rules).intent == "light"


@pytest.mark.parametrize("keys", [{"slots": ["tea"]}, {"slots": {"n": 2}}, {"intent": 3}])
def test_slots_of_another_form_are_named(keys: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"7\.wav: expected slots as texts by name"):
        command_of(row(7, **keys))
    assert command_of(row(7)) is None


# ------------------------------------------------------------------------------ rates

SLOTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y"]))


@given(st.lists(st.tuples(SLOTS, SLOTS), min_size=1, max_size=8), st.sampled_from(["a", None]))
@settings(deadline=None, max_examples=40)
def test_rates_are_those_of_the_definitions(
    pairs: list[tuple[dict[str, str], dict[str, str]]], slot: str | None
) -> None:
    scores = score_slots([understood(*pair) for pair in pairs], slot=slot)
    names = [slot] if slot else ["a", "b", "c"]
    said = {(i, n, p[0][n]) for i, p in enumerate(pairs) for n in names if n in p[0]}
    heard = {(i, n, p[1][n]) for i, p in enumerate(pairs) for n in names if n in p[1]}
    right = len(said & heard)
    assert scores.right == right
    assert scores.right + scores.wrong + scores.missing == len(said)
    assert scores.right + scores.wrong + scores.spurious == len(heard)
    for rate, size in ((scores.precision, len(heard)), (scores.recall, len(said))):
        assert (rate is None) == (size == 0)
        if rate is not None:
            assert rate.value == pytest.approx(right / size)
            assert rate.low <= rate.value <= rate.high
    if scores.f1 is not None:
        assert scores.f1.value == pytest.approx(2 * right / (len(said) + len(heard)))


def test_a_rate_of_halves_has_its_own_value_and_an_exact_interval() -> None:
    found = ratio_interval(np.array([1.0]), np.array([1.5]))
    assert (found.value, found.n) == (pytest.approx(2 / 3), 2)
    assert (found.low, found.high) == (clopper_pearson(1, 2).low, clopper_pearson(1, 2).high)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1))
@settings(deadline=None)
def test_the_threshold_makes_the_fewest_errors(clips: list[tuple[float, bool]]) -> None:
    def errors(threshold: float) -> int:
        return sum(right != (confidence >= threshold) for confidence, right in clips)

    best = choose_refusal(*map(list, zip(*clips, strict=True)))
    assert errors(best) == min(map(errors, [0.0, 0.1, 0.35, 0.7, 0.95, 1.0]))
    refused = [sum(c < t for c, _ in clips) for t in (0.0, 0.1, 0.35, 0.7, 0.95, best)]
    for threshold, n in zip((0.0, 0.1, 0.35, 0.7, 0.95), refused[:-1], strict=True):
        assert errors(threshold) > errors(best) or n >= refused[-1]


def test_a_threshold_lies_between_two_confidences() -> None:
    assert choose_refusal([0.2, 0.6, 0.9], [False, True, True]) == pytest.approx(0.4)
    assert choose_refusal([0.6, 0.9], [True, True]) == pytest.approx(0.3)
    assert choose_refusal([0.6, 0.8], [False, False]) == pytest.approx(0.9)
    with pytest.raises(DataError, match="got none"):
        choose_refusal([], [])


# ------------------------------------------------------------------------------ grammars


def data_set(*rows: Row, split: Any = "test", folder: Path = Path()) -> DataSet:
    return DataSet("kitchen", folder, split, rows)


def test_a_grammar_says_which_values_it_knows() -> None:
    language = of_grammar(GRAMMAR)
    data = data_set(row(0, slots={"drink": "tea", "room": "hall"}), row(1, slots={"size": "big"}))
    grammar = SlotGrammar(language, [data])
    assert grammar.slots == ("drink", "room", "size")
    assert grammar.missing == ("size",)
    assert grammar.says("drink", "iced tea")
    assert not grammar.says("drink", "iced")
    assert not grammar.says("size", "big")
    assert language.graph.rules == ("light", "brew", "state", "drink", "room")
    assert language.graph.says("turn off the light")
    assert not language.graph.says("turn off the")


def test_a_grammar_says_values_in_any_case() -> None:
    """As they are compared: a value that is right is one that can be said."""
    language = of_grammar("#JSGF V1.0; grammar g; public <go> = zur <to>; <to> = Straße | \u01f0a;")
    grammar = SlotGrammar(language, [data_set(row(0, slots={"to": "STRASSE"}))])
    for value in ("Straße", "strasse", "STRASSE", "\u01f0a", "J\u030cA"):
        assert grammar.says("to", value)
        said = command_of(row(0, intent="Go", slots={"to": value}))
        assert said is not None
        assert grammar.says("to", said.slots["to"])
        word = "\u01f0a" if value.endswith(("a", "A")) else "Straße"
        entry = Entry(key="", text=f"zur {word}", rules=(("go", f"zur {word}"), ("to", word)))
        assert Understood(said, heard_command(entry, grammar.slots)).right
    assert not grammar.says("to", "Strase")


@pytest.mark.parametrize(
    ("language", "slots", "message"),
    [
        (None, {"drink": "tea"}, "got none; give --language FILE.jsgf"),
        (of_words(["tea"]), {"drink": "tea"}, "words or an n-gram"),
        (of_grammar(GRAMMAR), None, "found none in kitchen test"),
        (of_grammar(GRAMMAR), {"size": "big"}, "named as the slots of the data, size, got the rul"),
    ],
)
def test_a_grammar_that_does_not_fit_is_refused(language: Any, slots: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SlotGrammar(language, [data_set(row(0, slots=slots))])


def test_data_that_have_slots_alone_are_known() -> None:
    with_slots, spoken = row(0, slots={"drink": "tea"}), row(1, text="make a tea")
    assert tells_commands_only([data_set(with_slots, row(2))])
    assert not tells_commands_only([data_set(with_slots, spoken)])
    assert not tells_commands_only([data_set(row(2))])


# ------------------------------------------------------------------------------ reports

HEARD: list[tuple[float, tuple[tuple[str, str], ...]]] = [
    (0.9, (("light", "turn on the light"), ("state", "on"))),
    (0.8, (("light", "turn on the hall light"), ("state", "on"), ("room", "hall"))),
    (0.3, (("brew", "make a iced tea"), ("drink", "iced tea"))),
    (0.1, ()),
]
SAID = [
    {"intent": "light", "slots": {"state": "On"}},
    {"intent": "light", "slots": {"state": "on", "room": "living room"}},
    {"intent": "brew", "slots": {"drink": "iced tea"}},
    {"intent": "brew", "slots": {"drink": "tea"}},
]


def answers(of: Callable[[int], int]) -> Callable[[str, npt.NDArray[np.float32]], Entry]:
    """A model that is told what clip n says by its length, RATE + n, and answers as clip of(n)."""

    def compute(key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        confidence, rules = HEARD[of(len(waveform) - RATE)]
        text = rules[0][1] if rules else ""
        return Entry(key=key, text=text, confidence=confidence, rules=rules)

    return compute


@pytest.fixture
def kitchen(tmp_path: Path) -> list[DataSet]:
    import soundfile

    rows = []
    for split in ("test", "valid"):
        for number, keys in enumerate(SAID):
            rows.append(row(number, split, **keys, room_of="a" if number < 2 else "b"))
            wave = np.random.default_rng(number).uniform(-0.3, 0.3, RATE + number)
            soundfile.write(tmp_path / f"{number}.wav", wave, RATE)
    rows.append(row(0, "test"))  # no slots
    of = {s: [r for r in rows if r.record.split == s] for s in ("test", "valid")}
    return [data_set(*of[s], split=s, folder=tmp_path) for s in ("test", "valid")]


def command_report(kitchen: list[DataSet], journal: Journal, **options: Any) -> CommandReport:
    def runner(name: str, of: Callable[[int], int]) -> Runner:
        return Runner(name, answers(of), RATE, journal, progress=False)

    test, valid = kitchen
    info = RunInfo(
        model="m",
        model_identity="",
        command="edge-imputer evaluate",
        created_by="test",
        seed=0,
        settings={},
        data=(),
        skipped=(),
        notes=(),
    )
    grammar = SlotGrammar(of_grammar(GRAMMAR), kitchen)
    return evaluate_commands(
        runner("ours", lambda n: n),
        [test],
        [valid],
        [None],
        info,
        grammar,
        by=["room_of"],
        other=runner("theirs", lambda n: 3),
        other_name="worse",
        **options,
    )


def test_a_report_of_known_answers(kitchen: list[DataSet], tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        report = command_report(kitchen, journal)
        given = command_report(kitchen, journal, threshold=0.85)
    whole, first, second = report.rows
    assert (whole.n_clips, whole.right.value) == (4, 2 / 4)  # the room, and a clip without words
    assert whole.right == clopper_pearson(2, 4)
    assert whole.intent is not None
    assert whole.intent.value == 3 / 4
    slots = whole.slots
    assert (slots.right, slots.wrong, slots.missing, slots.spurious) == (3, 1, 1, 0)
    # Refusing the least sure clip makes one error, as does refusing three: fewer are refused.
    assert report.refusal.threshold == pytest.approx(0.2)
    assert (report.refusal.n_wrong_taken, report.refusal.n_right_refused) == (1, 0)
    assert whole.refused.value == 1 / 4
    assert whole.accepted_right is not None
    assert whole.accepted_right.value == pytest.approx(2 / 3)
    assert [(r.condition.group, r.right.value) for r in (first, second)] == [("a", 0.5), ("b", 0.5)]
    rooms = next(r for r in report.by_slot if r.slot == "room")
    assert (rooms.scores.wrong, rooms.sayable) == (1, clopper_pearson(1, 1))
    assert {(e.kind, e.slot, e.said, e.heard) for e in report.errors} == {
        ("wrong", "room", "living room", "hall"),
        ("missing", "drink", "tea", ""),
    }
    assert [e.confidence for e in report.examples] == [0.8, 0.1]
    (compared,) = report.comparisons
    assert compared.difference.value == pytest.approx(2 / 4)
    assert report.run.notes == ("kitchen test: 1 of 5 clips have no slots and are left out.",)
    assert given.refusal.chosen_on is None
    assert given.rows[0].refused.value == 3 / 4
    assert "that was given" in refusal_line(given.refusal)
    page = write_html(tmp_path / "report.html", report).read_text("utf8")
    assert "light(room living room, state on)" in page
    assert "takes 1 that are wrong and refuses 0 that are right" in page


def test_a_threshold_needs_clips_to_be_chosen_on(kitchen: list[DataSet], tmp_path: Path) -> None:
    empty = data_set(split="valid")
    with Journal(tmp_path / "journal.jsonl") as journal:
        with pytest.raises(DataError, match="found none in kitchen valid; give --tune-split"):
            command_report([kitchen[0], empty], journal)
        with pytest.raises(DataError, match="none that can be used in kitchen test"):
            command_report([data_set(), kitchen[1]], journal)


# ------------------------------------------------------------------------------ the command

COUNTING = "#JSGF V1.0; grammar count; public <say> = <first> [<then>]; <first> = one | two;\n"
COUNTING += "<then> = three | seven;\n"


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"split": split, "intent": "say", "slots": slots}
        for split in ("test", "valid")
        for slots in ({"first": "one"}, {"first": "two", "then": "seven"}, {})
    ]
    (tmp_path / "count.jsgf").write_text(COUNTING)
    (tmp_path / "count.txt").write_text("one\ntwo\n")
    return corpus(tmp_path / "orders", rows)


def test_slots_from_the_command_line(
    capsys: pytest.CaptureFixture[str], untrained_bundle: Path, spoken: Path, tmp_path: Path
) -> None:
    out, language = tmp_path / "out", ("--language", tmp_path / "count.jsgf")
    arguments = (untrained_bundle, "--data", spoken, *language, "--out", out)
    report = json.loads(run(capsys, *arguments, "--json", "--compare", untrained_bundle))
    assert report["task"] == "slots"  # found by itself: no row has a text
    assert report["rows"][0]["n_clips"] == 3
    assert report["refusal"]["chosen_on"] == "orders valid, real, clean"
    assert report["comparisons"][0]["difference"]["value"] == 0.0
    assert {r["slot"]: r["sayable"]["value"] for r in report["by_slot"]} == {"first": 1, "then": 1}
    printed = run(capsys, *arguments, "--threshold", "0.5", "--html", "--schedule", "8")
    assert "below 0.5000 are refused: a threshold that was given" in printed
    assert "By slot" in printed
    assert "Commands of" in (out / "report.html").read_text("utf8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --language FILE.jsgf"),
        (("--language", "count.txt"), "words or an n-gram"),
        (("--language", "count.jsgf", "--task", "slots", "-w", "one"), "--keyword belongs to keyw"),
        (("--language", "count.jsgf", "--tune-split", "test"), "expected another split"),
        (("--language", "count.jsgf", "--split", "train"), "can be used in orders train"),
        (("--language", "count.jsgf", "--schedule", "8", "-k", "2"), "got both"),
        (("--language", "count.jsgf", "--schedule", "1"), "sum to at least block_size"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    untrained_bundle: Path,
    spoken: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    arguments = [tmp_path / o if o.startswith("count.") else o for o in options]
    data = ("--data", spoken, "--task", "slots", "--out", tmp_path / "o")
    assert message in refusal(capsys, untrained_bundle, *data, *arguments)


def test_a_checkpoint_tells_meanings_as_well(tmp_path: Path) -> None:
    recipe = tiny_recipe("digits", "run.updates=1")
    tokens = TokenSpec(characters=tuple(" efhinorstvwu"))
    torch.manual_seed(0)
    spec = recipe.task.make_spec(recipe.features, recipe.encoder, tokens)
    task = build_task(spec, recipe.task)
    path = tmp_path / "m.ckpt"
    torch.save(pack(task.state_dict(), spec, recipe, Origin(data="none", n_clips=0), 0), path)
    language = of_grammar(COUNTING)
    wave = np.random.default_rng(0).uniform(-0.3, 0.3, RATE).astype(np.float32)
    model = TorchTranscriber(load_checkpoint(path), language=language, schedule=(8,))
    entry = model("key", wave)
    assert entry.rules is not None
    assert entry.rules[0] == ("say", entry.text)
    assert entry.confidence is not None
    assert 0 < entry.confidence <= 1
    plain = TorchTranscriber(load_checkpoint(path))("key", wave)
    assert (plain.rules, plain.confidence) == (None, None)
