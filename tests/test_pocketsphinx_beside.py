"""The comparison with PocketSphinx, without it: graphs that it takes, and what it writes down."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_imputer.bundle import Bundle
from edge_imputer.decoding import of_grammar, of_words
from edge_imputer.errors import SpecError
from edge_imputer.train.evaluation.rows import open_data_set

from .test_evaluate_cli import corpus

TOOL = Path(__file__).resolve().parent.parent / "docs" / "tools" / "pocketsphinx_beside.py"
GRAMMAR = of_grammar(
    "#JSGF V1.0; grammar g; public <say> = <first> (<then> | zzyzx)*;"
    "<first> = /3/ one | /1/ two; <then> = seven;"
)


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pocketsphinx_beside", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


def test_a_lexicon_is_a_loop_with_a_way_out() -> None:
    end, found = tool.transitions(of_words(["one", "two", "zzyzx"]).graph, {"one", "two"})
    third = pytest.approx(1 / 3)
    assert end == 1
    assert found == [(0, 0, third, "one"), (0, 0, third, "two"), (0, 1, third)]


def test_a_grammar_keeps_its_weights_and_its_ends() -> None:
    graph = GRAMMAR.graph
    end, found = tool.transitions(graph, {"one", "two", "seven"})
    first = {step[3]: step[2] for step in found if len(step) == 4 and step[0] == 0}
    assert first == {"one": pytest.approx(0.75), "two": pytest.approx(0.25)}
    assert {step[0] for step in found if len(step) == 3} == set(graph.finals)
    assert all(step[1] == end for step in found if len(step) == 3)
    assert "zzyzx" not in {step[3] for step in found if len(step) == 4}
    assert end not in {arc.source for arc in graph.arcs} | {arc.target for arc in graph.arcs}
    assert any(step[0] in graph.finals for step in found if len(step) == 4)  # or it goes on
    for state in {step[0] for step in found}:
        assert sum(step[2] for step in found if step[0] == state) == pytest.approx(1)
    with pytest.raises(SpecError, match="got none at all"):
        tool.transitions(graph, ())


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        ("<s> Two(2) <sil> one [NOISE] ++UM++ </s>", "two one"),
        ("you're on your own", "you're on your own"),
        ("", ""),
    ],
)
def test_what_it_writes_down_is_words(hypothesis: str, words: str) -> None:
    assert tool.said(hypothesis) == words


class FakeDecoder:
    """Says "one seven" to every clip, and knows no word with a z."""

    def __init__(self, loglevel: str) -> None:
        self.fsg: Any = None
        self.heard = b""

    def lookup_word(self, word: str) -> str | None:
        return None if "z" in word else "W AH"

    def create_fsg(self, name: str, start: int, end: int, steps: list[tuple[Any, ...]]) -> Any:
        return steps

    def add_fsg(self, name: str, fsg: Any) -> None:
        self.fsg = fsg

    def activate_search(self, name: str) -> None:
        assert self.fsg

    def start_utt(self) -> None:
        self.heard = b""

    def process_raw(self, samples: bytes, *, full_utt: bool) -> None:
        assert full_utt
        self.heard = samples

    def end_utt(self) -> None:
        assert self.heard

    def hyp(self) -> Any:
        return SimpleNamespace(hypstr="<s> one seven </s>")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", SimpleNamespace(Decoder=FakeDecoder))


def test_rows_of_texts_and_of_slots(tmp_path: Path) -> None:
    texts = open_data_set(corpus(tmp_path / "a", [{"text": "one zero"}, {"text": "one"}]), "test")
    row = tool.measure(texts, tool.PocketSphinx(None), None, None, None)
    assert (row["wer"], row["n_words"]) == (pytest.approx(2 / 3), 3)
    assert row["words_without_pronunciation"] == ["zero"]
    assert row["real_time_factor"] > 0
    slots = [{"slots": {"first": "one", "then": "seven"}}, {"slots": {"first": "two"}}]
    data = open_data_set(corpus(tmp_path / "b", slots), "test")
    row = tool.measure(data, tool.PocketSphinx(GRAMMAR), GRAMMAR, None, None)
    assert (row["right"], row["slot_f1"]) == (0.5, pytest.approx(4 / 7))
    assert row["left_out_of_language"] == ["zzyzx"]


def test_clips_that_are_not_scored_are_not_counted(tmp_path: Path) -> None:
    texts = [{"text": "one"}, {"text": " "}, {"text": None}]
    slots = [{"slots": {"first": "one"}}, {}]
    for name, rows, language in (("a", texts, None), ("b", slots, GRAMMAR)):
        data = open_data_set(corpus(tmp_path / name, rows), "test")
        assert len(data.rows) == len(rows)
        assert tool.measure(data, tool.PocketSphinx(language), language, None, None)["n_clips"] == 1


def test_few_clips_are_spread_over_the_corpus(tmp_path: Path) -> None:
    data = open_data_set(corpus(tmp_path / "a", [{"text": str(n)} for n in range(7)]), "test")
    assert [row.record.text for row in tool.spread(data, 3).rows] == ["0", "2", "4"]
    assert tool.spread(data, 7) is tool.spread(data, None) is data


def test_samples_are_clipped_to_16_bits() -> None:
    model = tool.PocketSphinx(None)
    entry = model("key", np.array([0.0, 2.0, -2.0], np.float32))
    assert (entry.text, entry.rules) == ("one seven", None)
    heard = np.frombuffer(model._decoder.heard, "<i2")
    assert heard.tolist() == [0, 32767, -32767]


def test_a_model_of_ours_hears_the_same_clips(
    tmp_path: Path,
    untrained_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tool, "version", lambda name: "5.0")
    data = corpus(tmp_path / "a", [{"text": "one zero"}, {"text": "one"}])
    words = tmp_path / "words.txt"
    words.write_text("one\nseven\n")
    out = tmp_path / "out.json"
    tool.main(
        [str(data), "--bundle", str(untrained_bundle), "--language", str(words), "--out", str(out)]
    )
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    name = Bundle.load(untrained_bundle).manifest.name
    who = [(row["recogniser"], row["search"]) for row in found["rows"]]
    theirs, ours = "pocketsphinx 5.0", name
    assert who == [
        (theirs, tool.OWN),
        (ours, tool.NONE),
        (theirs, "words.txt"),
        (ours, "words.txt"),
    ]
    assert {row["n_clips"] for row in found["rows"]} == {2}
    assert all(row["real_time_factor"] > 0 for row in found["rows"])
    assert "left_out_of_language" not in found["rows"][1]
