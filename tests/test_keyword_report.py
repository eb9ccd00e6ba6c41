"""Keyword reports of a detector whose scores are written into the audio: every count is known."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.bundle import Bundle
from edge_imputer.errors import DataError
from edge_imputer.spotter import KeywordSpotter
from edge_imputer.train.evaluation import (
    KeywordReport,
    TextKeywordSystem,
    pick_events,
    write_html,
    write_json,
)
from edge_imputer.train.evaluation.journal import Journal
from edge_imputer.train.evaluation.keyword_report import (
    Aim,
    KeywordScoring,
    Material,
    evaluate_keywords,
)
from edge_imputer.train.evaluation.noise import NoiseMixer
from edge_imputer.train.evaluation.results import RunInfo
from edge_imputer.train.evaluation.rows import DataSet, open_data_set
from edge_imputer.train.evaluation.run import Runner

from .fakes import Described, ScriptedBackend, logits_of, noise, small_spec, write_bundle

RATE = 16_000
SECOND = RATE
KEYWORDS = ("one", "two")


class Written:
    """Reads its scores off the samples: 0.1 s each, level x.yz is score 0.y for "one", else "two".

    A level of +0.5 scores "one" by 0.5, one of -0.5 scores "two" by 0.5.
    """

    keywords = KEYWORDS
    frame_s = 0.1
    latency_s = 0.2

    def __init__(self) -> None:
        self.calls = 0

    def score(self, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.calls += 1
        level = waveform[: len(waveform) // 1600 * 1600].reshape(-1, 1600).mean(axis=1)
        both = np.stack([level, -level], axis=1)
        return np.clip(both, 0, 1).round(4).astype(np.float32)


def levels(*scores: float) -> npt.NDArray[np.float32]:
    """Two seconds for each score: a pause, then 0.1 s of it."""
    wave = np.zeros((len(scores), 2 * SECOND), np.float32)
    wave[:, SECOND : SECOND + 1600] = np.array(scores, np.float32)[:, None]
    return wave.reshape(-1)


def corpus(folder: Path, rows: Sequence[tuple[dict[str, Any], Sequence[float]]]) -> Path:
    """Clips with their scores in them."""
    folder.mkdir(parents=True)
    lines = []
    for number, (row, scores) in enumerate(rows):
        wave = levels(*scores)
        soundfile.write(folder / f"{number}.wav", wave, RATE, subtype="FLOAT")
        base = {"audio": f"{number}.wav", "text": None, "speaker": "unknown", "split": "test"}
        lines.append(
            json.dumps({**base, "duration_s": len(wave) / RATE, "sample_rate": RATE, **row})
        )
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


INFO = RunInfo(
    model="written",
    model_identity="0",
    command="edge-imputer evaluate <x>",
    created_by="test",
    seed=0,
    settings={},
    data=(),
    skipped=(),
    notes=(),
)


def runner(folder: Path, system: Written | None = None, noise: NoiseMixer | None = None) -> Runner:
    system = system or Written()
    return Runner(
        identity="written",
        compute=KeywordScoring(system, 1.0),
        sample_rate=RATE,
        journal=Journal(folder / "journal.jsonl"),
        noise=noise,
        pad_s=system.latency_s,
        progress=False,
    )


VALID = {"split": "valid"}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    rows: list[tuple[dict[str, Any], Sequence[float]]] = [
        ({"text": "one", "speaker": "ann"}, [0.9]),
        ({"text": "one", "speaker": "ann"}, [0.6]),
        ({"text": "one", "speaker": "bob"}, [0.3]),
        ({"text": "two", "speaker": "bob"}, [-0.8]),
        ({"text": "two one two", "speaker": "bob"}, [-0.7, 0.9]),  # one "two" leaves no event
        ({"text": "one", "speaker": "ann"}, [-0.95]),  # takes it for "two"
        ({"text": None, "label": "two"}, [-0.99]),
        ({"text": "three"}, [0.99]),  # no keyword: neither positive nor negative here
        ({"text": "one", **VALID}, [0.8]),
        ({"text": "one", **VALID}, [0.5]),
    ]
    return corpus(tmp_path / "words", rows)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    rows: list[tuple[dict[str, Any], Sequence[float]]] = [
        ({"text": "stone"}, [0.65, 0.2, -0.4]),
        ({"text": None, "label": "_near_miss_"}, [-0.75]),
        ({"text": "the one"}, [1.0]),  # says a keyword: no negative
        ({"text": "hello", **VALID}, [0.6, 0.1]),
        ({"text": "hello", **VALID}, [-0.2]),
    ]
    return corpus(tmp_path / "talk", rows)


def open_both(words: Path, talk: Path, split: Any) -> Material:
    return Material([open_data_set(words, split)], [open_data_set(talk, split)])


def evaluated(tmp_path: Path, words: Path, talk: Path, **changes: Any) -> KeywordReport:
    options: dict[str, Any] = {"refractory_s": 1.0, "by": changes.pop("by", ["speaker"])}
    aim = changes.pop("aim", Aim(0.5, None, open_both(words, talk, "valid")))
    made = changes.pop("runner", None) or runner(tmp_path)
    snrs = changes.pop("snrs_db", [None])
    assert not changes
    with made.journal:
        test = open_both(words, talk, "test")
        return evaluate_keywords(made, KEYWORDS, test, aim, snrs, INFO, **options)


def test_every_count_is_the_one_written_into_the_audio(
    tmp_path: Path, words: Path, talk: Path
) -> None:
    report = evaluated(tmp_path, words, talk)
    point = report.operating_point
    # On valid 0.6 must not fire and 0.8 should; the other positive there is below.
    assert point.thresholds == {"one": 0.7, "two": 0.7}
    assert point.target_met
    assert point.chosen_on is not None
    assert point.chosen_on.frr is not None
    assert (point.chosen_on.frr.value, point.chosen_on.frr.n) == (0.5, 2)
    overall = report.misses[0]
    # Said: one 0.9, 0.6, 0.3, two 0.8, two 0.7 and none, one 0.9, one none, two 0.99.
    assert (overall.frr.n, overall.frr.value) == (9, 4 / 9)
    alarms = overall.false_alarms
    assert alarms is not None
    assert alarms.count == 1  # 0.75 of the near miss; the rest is below
    assert alarms.hours == pytest.approx((6 + 2) / 3600)  # without what is put behind clips
    groups = {r.condition.group: r.frr for r in report.misses[1:]}
    assert {k: (v.n, round(v.value * v.n)) for k, v in groups.items()} == {
        "ann": (3, 2),
        "bob": (5, 2),
        "unknown": (1, 0),
    }
    one, two = report.by_keyword
    assert one.frr is not None
    assert two.frr is not None
    assert (one.frr.n, round(one.frr.value * one.frr.n)) == (5, 3)
    assert (two.frr.n, round(two.frr.value * two.frr.n)) == (4, 1)
    assert (one.false_alarms.count, two.false_alarms.count) == (0, 1)
    assert report.confusions[0].counts == ((1, 1, 2), (0, 2, 0))


def test_lists_and_notes(tmp_path: Path, words: Path, talk: Path) -> None:
    report = evaluated(tmp_path, words, talk)
    near = [(m.keyword, m.score, m.time_s, m.fires, m.text, m.label) for m in report.near_misses]
    assert near == [
        ("two", pytest.approx(0.75), 1.0, True, None, "_near_miss_"),
        ("one", pytest.approx(0.65), 1.0, False, "stone", None),
        ("two", pytest.approx(0.4), 5.0, False, "stone", None),
        ("one", pytest.approx(0.2), 3.0, False, "stone", None),
    ]
    assert [m.score for m in report.missed] == [None, None, pytest.approx(0.3), pytest.approx(0.6)]
    notes = " ".join(report.run.notes)
    assert "words test: 1 of 8 clips say none of the keywords" in notes
    assert "talk test: 1 of 3 clips say a keyword and are not counted as negatives" in notes
    (histogram,) = report.histograms
    assert sum(histogram.positives) == 9
    assert sum(histogram.negatives) == 4
    (curve,) = report.curves
    assert curve.points[0].frr.value == 2 / 9
    assert curve.points[0].false_alarms.count == 4
    assert curve.points[-1].frr.value == 1.0


def test_a_few_seconds_support_no_claim(tmp_path: Path, words: Path, talk: Path) -> None:
    aim = Aim(0.5, {"one": 0.8, "two": 0.8}, None)
    first, second = evaluated(tmp_path, words, talk, aim=aim).claims
    assert (first.verdict, second.verdict) == ("unsupported", "supported")
    assert "no false alarm in 0.00 h" in first.why


def test_real_and_synthetic_speech_are_never_pooled(tmp_path: Path, talk: Path) -> None:
    rows: list[tuple[dict[str, Any], Sequence[float]]] = [
        ({"text": "one", "engine": "espeak"}, [0.1]),
        ({"text": "one", "engine": "espeak"}, [0.1]),
        ({"text": "one"}, [0.9]),
        ({"text": "one", **VALID}, [0.8]),
    ]
    mixed = corpus(tmp_path / "mixed", rows)
    report = evaluated(tmp_path, mixed, talk, by=[])
    rates = {m.condition.kind: (m.frr.n, m.frr.value) for m in report.misses}
    assert rates == {"synthetic": (2, 1.0), "real": (1, 0.0)}
    assert {(h.kind, sum(h.positives)) for h in report.histograms} == {
        ("synthetic", 2),
        ("real", 1),
    }
    reported = report.operating_point.reported_on
    assert reported is not None
    assert reported.frr is not None
    assert reported.frr.n == 1  # recordings go before generated speech
    assert {row.kind for row in report.by_keyword} == {"real", "synthetic"}


def test_a_second_run_scores_nothing_anew(tmp_path: Path, words: Path, talk: Path) -> None:
    first, second = Written(), Written()
    made = evaluated(tmp_path, words, talk, runner=runner(tmp_path, first))
    again = evaluated(tmp_path, words, talk, runner=runner(tmp_path, second))
    assert first.calls == 7 + 2 + 2 + 2
    assert second.calls == 0
    assert made == again


def test_an_interrupted_run_goes_on(tmp_path: Path, words: Path, talk: Path) -> None:
    class Dies(Written):
        def score(self, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            if self.calls == 5:
                raise KeyboardInterrupt
            return super().score(waveform)

    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, words, talk, runner=runner(tmp_path, Dies()))
    rest = Written()
    report = evaluated(tmp_path, words, talk, runner=runner(tmp_path, rest))
    assert rest.calls == 13 - 5
    (tmp_path / "fresh").mkdir()
    assert report == evaluated(tmp_path, words, talk, runner=runner(tmp_path / "fresh"))


def test_noise_is_a_condition_of_its_own(tmp_path: Path, words: Path, talk: Path) -> None:
    folder = corpus(tmp_path / "noise", [({}, [0.5, -0.5])])
    bank = NoiseMixer(folder, "test", sample_rate=RATE, seed=0)
    made = runner(tmp_path, noise=bank)
    report = evaluated(tmp_path, words, talk, runner=made, snrs_db=[None, 60.0], by=[])
    assert [str(m.condition) for m in report.misses] == [
        "words test, real, clean",
        "words test, real, 60 dB",
    ]
    clean, quiet = report.misses
    assert quiet.frr == clean.frr  # noise a thousand times weaker changes no event's side
    assert {f.condition.noise for f in report.false_alarms} == {"clean", "60 dB"}
    with pytest.raises(DataError, match="--noise"):
        evaluated(tmp_path, words, talk, snrs_db=[None, 5.0])


def test_unusable_clips_cost_a_line(tmp_path: Path, words: Path, talk: Path) -> None:
    (words / "0.wav").write_bytes(b"no audio")
    report = evaluated(tmp_path, words, talk)
    assert report.misses[0].frr.n == 8
    (line,) = report.run.skipped
    assert line.startswith("words/0.wav: ")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no positives", "clips that say a keyword, found none in talk test"),
        ("no negatives", "found 0 hours in talk valid; give --negatives"),
        ("no tuning", "to choose a threshold on, found none in quiet valid"),
        ("no tuned word", "a keyword to choose a threshold on, found none in talk valid"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, words: Path, talk: Path, case: str, message: str
) -> None:
    quiet = corpus(tmp_path / "quiet", [({"text": "hm"}, [0.1])])
    test, valid = open_both(words, talk, "test"), open_both(words, talk, "valid")
    empty = DataSet("talk", talk, "valid", ())
    if case == "no positives":
        test = Material([_without_keywords(test.negatives[0])], test.negatives)
    elif case == "no negatives":
        test = Material(test.positives, [empty])
    elif case == "no tuned word":
        valid = Material([empty], valid.negatives)
    else:
        valid = Material(valid.positives, [open_data_set(quiet, "valid")])
    made = runner(tmp_path)
    aim = Aim(0.5, None, valid)
    with made.journal, pytest.raises(DataError, match=message):
        evaluate_keywords(made, KEYWORDS, test, aim, [None], INFO, refractory_s=1.0)


def _without_keywords(data: DataSet) -> DataSet:
    return DataSet(data.name, data.folder, data.split, data.rows[:2])


def test_the_page_stands_alone_and_marks_what_is_unsupported(
    tmp_path: Path, words: Path, talk: Path
) -> None:
    report = evaluated(tmp_path, words, talk, aim=Aim(0.5, {"one": 0.8, "two": 0.8}, None))
    page = write_html(tmp_path / "report.html", report).read_text("utf8")
    assert page.count("<img ") == page.count('src="data:image/') == 4
    assert "http" not in page  # nothing from elsewhere
    assert "<link" not in page
    assert "<script" not in page
    assert '<p class="claim unsupported">UNSUPPORTED: ' in page
    assert "edge-imputer evaluate &lt;x&gt;" in page
    for part in ("Near misses", "_near_miss_", "words test, real, clean, speaker ann", "stone"):
        assert part in page, part
    figures = json.loads(write_json(tmp_path / "x" / "evaluation.json", report).read_text())
    assert figures["task"] == "keywords"
    assert figures["claims"][0]["verdict"] == "unsupported"
    assert figures["misses"][0]["frr"]["n"] == 9


# ------------------------------------------------------------------------------ text keywords

TALK = small_spec(characters=tuple(" abc"))


def text_system(folder: Path, alignment: str, *, margin: float = 8.0) -> TextKeywordSystem:
    """Keywords of a bundle that hears `alignment`, then silence."""
    write_bundle(folder, spec=TALK)
    logits = logits_of(TALK, alignment + "." * 40, margin=margin)
    return TextKeywordSystem.of_bundle(
        Bundle.load(folder), ScriptedBackend(TALK, logits), ["ab", "c"]
    )


def test_a_word_counts_once_however_many_boundaries_follow(tmp_path: Path) -> None:
    alignment = "..ab........ ........ ..c.."  # silence, and two spaces, each end the first word
    system = text_system(tmp_path, alignment)
    scores = system.score(noise(len(alignment) * 640))
    events = pick_events(scores, system.frame_s, 0.2)
    assert [(e.keyword, e.time_s) for e in events if e.score > 0.9] == [(0, 0.12), (1, 0.96)]


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet=". abc", min_size=1, max_size=40), st.sampled_from([1, 2, 5, 12]))
def test_evaluation_counts_what_the_spotter_fires(alignment: str, gap: int) -> None:
    """Exactly the occurrences that a device reports."""
    with tempfile.TemporaryDirectory() as folder:
        system = text_system(Path(folder), alignment)
    waveform = noise(len(alignment) * 640)
    events = pick_events(system.score(waveform), system.frame_s, gap * system.frame_s)
    logits = logits_of(TALK, alignment + "." * 40)
    spotter = KeywordSpotter(
        Described(TALK),
        dict.fromkeys(system.keywords, 0.9),
        backend=ScriptedBackend(TALK, logits),
        refractory_s=gap * system.frame_s,
    )
    fired = [
        (e.text, round(e.end_s - system.frame_s, 3))
        for e in spotter.spot(waveform, sample_rate=RATE)
    ]
    counted = [(system.keywords[e.keyword], e.time_s) for e in events if e.score >= 0.9]
    assert sorted(counted) == sorted(fired)
