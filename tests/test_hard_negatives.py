"""Mining: what a model takes for its keyword is found, cut out, and can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.cli.main import main
from edge_imputer.errors import DataError, SpecError
from edge_imputer.train.data import Manifest, read_clip, write_manifest
from edge_imputer.train.data.combine import merge
from edge_imputer.train.evaluation import Journal, ScoredEvent
from edge_imputer.train.improving import MiningReport, Rules, Spotter, mine, open_spotter
from edge_imputer.train.improving.mining import (
    LEAD_S,
    PIECE_S,
    events_of,
    holds_keyword,
    pieces,
    window,
)
from edge_imputer.train.recipe import read_recipe
from edge_imputer.train.trainer import read_corpus, train

from .improving_cases import (
    CONFUSING,
    KEYWORD,
    RATE,
    recipe,
    row,
    train_mistaken_spotter,
    write_clip,
    write_corpus,
    write_negatives,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mining")
    return train_mistaken_spotter(write_corpus(folder / "tones"), folder / "run")


@pytest.fixture(scope="module")
def negatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_negatives(tmp_path_factory.mktemp("negatives") / "talk")


class CountingSystem:
    """A detector whose score is the loudness of each 0.1 s, and which counts what it is asked."""

    keywords = ("up", "down")
    frame_s = 0.1
    latency_s = 0.0

    def __init__(self) -> None:
        self.calls = 0

    def score(self, waveform: np.ndarray) -> np.ndarray:
        self.calls += 1
        n = len(waveform) // 1600
        loud = np.abs(waveform[: n * 1600]).reshape(n, 1600).max(1)
        return np.stack([loud, 0.5 * loud], 1).astype(np.float32).clip(0, 1)


def loudness_spotter() -> tuple[Spotter, CountingSystem]:
    system = CountingSystem()
    return Spotter(Path("loud"), system, "loud", {"up": 0.5, "down": 0.5}), system


def run_mine(
    spotter: Spotter,
    negatives: Path,
    out: Path,
    rules: Rules = Rules(),  # noqa: B008
) -> MiningReport:
    parts = [Manifest.open(negatives, split="train")]
    with Journal(out / "journal.jsonl") as journal:
        return mine(spotter, parts, out, rules, journal=journal, progress=False)


def test_planted_sounds_are_found_before_all_others(checkpoint, negatives, tmp_path):
    report = run_mine(open_spotter(checkpoint), negatives, tmp_path / "mined")
    rows = list(Manifest.open(tmp_path / "mined"))
    assert len(rows) == len(report.mined) >= 5
    assert {Path(r.audio).name for r in rows[:5]} == {f"{CONFUSING}-{i}.wav" for i in range(5)}
    assert all(m.score > 0.9 and m.keyword == KEYWORD for m in report.mined[:5])
    assert (report.keyword_said, report.n_clips, report.without_text) == (2, 6, 0)
    assert [Path(p).name for p in report.unreadable] == ["gone.wav"]
    assert report.hours == pytest.approx(sum(_heard(negatives)) / 3600, rel=1e-4)
    for one, full in zip(rows, report.mined, strict=True):
        assert (one.label, one.split, one.text) == ("_hard_", "train", None)
        assert one.duration_s == 2.0
        heard = read_clip(tmp_path / "mined", one, RATE)  # the window lies in the original audio
        assert len(heard) == 2 * RATE
        assert full.audio == one.audio
    # The sound itself, of 0.3 s after 1 s of others, is in the window.
    confusing = rows[0]
    assert confusing.offset_s < 0.9
    assert confusing.speaker == "ann"


def _heard(folder: Path) -> list[float]:
    return [
        r.duration_s
        for r in Manifest.open(folder, split="train")
        if r.audio == "talk.wav" or r.audio.startswith(CONFUSING)
    ]


def test_limits_take_the_highest(negatives, tmp_path):
    spotter, _ = loudness_spotter()
    every = run_mine(spotter, negatives, tmp_path / "all", Rules(threshold=0.05))
    scores = [m.score for m in every.mined]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == every.n_events > 8
    few = run_mine(spotter, negatives, tmp_path / "few", Rules(threshold=0.05, most=3))
    assert few.mined == every.mined[:3]
    assert few.n_events == every.n_events
    rate = 4 / every.hours
    some = run_mine(spotter, negatives, tmp_path / "some", Rules(threshold=0.05, per_hour=rate))
    assert some.mined == every.mined[:4]
    bound = scores[5] + 1e-6
    high = run_mine(spotter, negatives, tmp_path / "high", Rules(threshold=bound))
    assert [m.score for m in high.mined] == [s for s in scores if s >= bound]


def test_an_interrupted_run_scores_nothing_twice(negatives, tmp_path):
    spotter, system = loudness_spotter()
    whole = run_mine(spotter, negatives, tmp_path / "whole")
    n_scored = system.calls
    score, system.calls = system.score, 0

    def dying(waveform: np.ndarray) -> np.ndarray:
        if system.calls == 3:
            raise KeyboardInterrupt
        return score(waveform)

    system.score = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_mine(spotter, negatives, tmp_path / "again")
    assert not (tmp_path / "again" / "manifest.jsonl").exists()
    system.score = score  # type: ignore[method-assign]
    assert run_mine(spotter, negatives, tmp_path / "again").mined == whole.mined
    assert system.calls == n_scored == 6
    lines = [(tmp_path / n / "manifest.jsonl").read_text() for n in ("whole", "again")]
    assert lines[0] == lines[1]


def test_a_long_recording_is_scored_in_pieces_and_its_places_are_right(tmp_path):
    n_s = 200
    waveform = np.full(n_s * RATE, 1e-3, np.float32)
    places = [0.5, 58.0, 66.0, 67.5, 133.0, 199.5]  # also beside the ends of pieces
    for place in places:
        waveform[int(place * RATE) : int(place * RATE) + 800] = 0.3 + place / 1000
    write_clip(tmp_path / "long" / "long.wav", waveform)
    write_manifest(tmp_path / "long", [row("long.wav", n_s, label="_noise_")])
    spotter, system = loudness_spotter()
    report = run_mine(spotter, tmp_path / "long", tmp_path / "out")
    assert system.calls == 3
    with Journal(tmp_path / "out" / "journal.jsonl") as journal:
        events = events_of(spotter, tmp_path / "long", row("long.wav", n_s), journal)
    assert system.calls == 3  # they are known
    found = [event.time_s for event in events if event.keyword == 0 and event.score > 0.2]
    assert found == pytest.approx(places, abs=0.11)  # each once, though some are heard twice
    assert len(report.mined) == len(places)
    for one, place in zip(reversed(report.mined), places, strict=True):
        assert one.offset_s <= place
        assert place + 0.05 <= one.offset_s + one.duration_s
        assert one.score == pytest.approx(0.3 + place / 1000, abs=1e-3)


@given(st.floats(0.05, 5000))
def test_pieces_cover_a_recording_once(duration_s):
    at = 0.0
    for start, lead, length in pieces(duration_s):
        assert start == pytest.approx(at)
        assert 0 <= lead <= min(start, LEAD_S) + 1e-9
        assert length <= 1.5 * PIECE_S
        at = start + length
    assert at == pytest.approx(duration_s)


@given(st.floats(0.05, 100), st.floats(0, 1), st.floats(0.2, 30), st.floats(0, 50))
def test_a_window_lies_in_its_recording_and_holds_the_event(length_s, place, window_s, offset_s):
    record = row("a.wav", length_s, offset_s=offset_s)
    event = ScoredEvent(0, place * length_s, 0.5)
    cut = window(Path("/data"), record, event, Rules(window_s=window_s), "up")
    assert cut.duration_s == pytest.approx(min(window_s, length_s), abs=1e-5)
    assert offset_s - 1e-5 <= cut.offset_s
    assert cut.offset_s + cut.duration_s <= offset_s + length_s + 1e-4
    assert cut.offset_s - 1e-4 <= offset_s + event.time_s <= cut.offset_s + cut.duration_s + 1e-4


@pytest.mark.parametrize(
    ("text", "label", "holds"),
    [
        ("Hey Lamp, on.", None, True),
        ("say hey", "hey lamp", True),
        ("they lamp", None, False),
        ("lamp hey", "_near_miss_", False),
        (None, "_unknown_", False),
        (None, None, False),
    ],
)
def test_what_holds_a_keyword(text, label, holds):
    assert holds_keyword(row("a", 1.0, text=text, label=label), ["hey lamp", "stop"]) is holds


def test_mined_negatives_train_with_a_share_of_their_own(checkpoint, negatives, tmp_path):
    """The two stages of Arik et al. by hand: mine, merge, train on; the sounds fire no more."""
    spotter = open_spotter(checkpoint)
    run_mine(spotter, negatives, tmp_path / "mined", Rules(threshold=0.5))
    parts = [checkpoint.parent.parent / "tones", tmp_path / "mined"]
    counts = merge([Manifest.open(p) for p in parts], tmp_path / "both", splits=("train", "valid"))
    assert counts["train"] == 4 * 16 + 5
    plan = recipe(
        "task.mean_pooled=0.0",
        "batches.shares={_unknown_=0.25, _hard_=0.25}",
        "optimizer.learning_rate=2e-3",
        "run.updates=160",
        "run.valid_every=160",
    )
    data = read_corpus(tmp_path / "both", plan.data, RATE)
    better = train(
        *data, plan, tmp_path / "run", data_name="both", init_from=checkpoint, progress=False
    )
    again = run_mine(open_spotter(better), negatives, tmp_path / "again", Rules(threshold=0.001))
    assert max(m.score for m in again.mined) < 0.5
    said = read_clip(negatives, row("by-text.wav", 0.4), RATE)
    score = open_spotter(better).system.score(np.pad(said, (0, RATE)))
    assert score.max() > 0.5


def test_the_second_stage_is_a_recipe():
    first, second = read_recipe("wake-word"), read_recipe("wake-word-hard")
    assert second.batches.shares["_hard_"] > 0
    assert sum(second.batches.shares.values()) == pytest.approx(sum(first.batches.shares.values()))
    assert second.optimizer.learning_rate < first.optimizer.learning_rate
    assert second.run.updates < first.run.updates
    assert (second.encoder, second.features) == (first.encoder, first.features)


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["mine", *map(str, args)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command(capsys, checkpoint, negatives, tmp_path):
    out = tmp_path / "mined"
    code, printed, err = command(capsys, checkpoint, "-n", negatives, "--out", out, "--most", "4")
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out)
    assert "left out: 2 that say a keyword, 1 cannot be read" in printed
    report = json.loads((out / "mined.json").read_text())
    assert len(report["mined"]) == 4
    assert report["rules"]["most"] == 4
    assert report["mined"][0]["keyword"] == KEYWORD
    assert len(Manifest.open(out)) == 4


def test_a_bundle_mines_for_text(capsys, untrained_bundle, negatives, tmp_path):
    options = ("-n", negatives, "--out", tmp_path, "--threshold", 0.001)
    code, _, err = command(capsys, untrained_bundle, *options)
    assert code == 2
    assert "--keyword WORD" in err
    code, printed, err = command(capsys, untrained_bundle, *options, "-w", "two", "--most", 7)
    assert code == 0, err
    assert 0 < len(Manifest.open(tmp_path)) <= 7
    assert "two" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", "0"), "threshold from 0.001"),
        (("--window-s", "0.01"), "window of 0.2 to 30 s"),
        (("--per-hour", "0"), "at least one event"),
        (("--split", "dev"), "'dev'"),
        (("--split", "valid"), "got none; see --split"),
        (("-w", "seven"), "listens for up"),
    ],
)
def test_bad_options_are_one_line(capsys, checkpoint, negatives, tmp_path, options, message):
    code, _, err = command(capsys, checkpoint, "-n", negatives, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_nothing_to_mine_is_said(negatives, tmp_path):
    spotter, _ = loudness_spotter()
    with pytest.raises(DataError, match="no negative scores 1 or more"):
        run_mine(spotter, negatives, tmp_path / "out", Rules(threshold=1.0))
    write_manifest(tmp_path / "said.jsonl", [row("a.wav", 1.0, label="up")])
    with pytest.raises(DataError, match="1 clips say a keyword"):
        run_mine(spotter, tmp_path / "said.jsonl", tmp_path / "out")
    before = (negatives / "manifest.jsonl").read_bytes()
    with pytest.raises(DataError, match="folder of its own"):
        run_mine(spotter, negatives, negatives)
    assert (negatives / "manifest.jsonl").read_bytes() == before
    with pytest.raises(SpecError, match="threshold from 0 to 1"):
        open_spotter(Path("none"), threshold=2.0)
