"""Evaluation: alignments, events, sweeps, noise and journals against slow definitions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import DataError, SpecError
from edge_imputer.metrics import edits
from edge_imputer.peaks import EVENT_FLOOR, Peak, PeakPicker, events_at_all
from edge_imputer.train.evaluation import (
    Entry,
    Journal,
    NoiseMixer,
    ScoredEvent,
    Scores,
    character_errors,
    choose_threshold,
    mix_at_snr,
    pick_events,
    word_errors,
)
from edge_imputer.train.evaluation.events import (
    MISSED,
    occurrence_scores,
    said_in,
)
from edge_imputer.train.evaluation.journal import entry_key
from edge_imputer.train.evaluation.rows import open_data_set, speaker_blocks

RATE = 16_000

# ------------------------------------------------------------------------------ error rates

WORDS = st.lists(st.sampled_from(["one", "two", "three"]), max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
@settings(deadline=None)
def test_alignments_are_least_edits(pairs: list[tuple[str, str]]) -> None:
    """jiwer's alignments cost what our own Levenshtein distance says."""
    references, hypotheses = zip(*pairs, strict=True)
    found = word_errors(references, hypotheses)
    for one, wanted, heard in zip(found.alignments, references, hypotheses, strict=True):
        assert one.edits.errors == edits(wanted.split(), heard.split()).errors
        assert [w for w, _ in one.pairs if w is not None] == wanted.split()
        assert [h for _, h in one.pairs if h is not None] == heard.split()
    assert found.counts.sum() == found.total.errors
    characters = character_errors(references, hypotheses)
    least = [edits(w, h).errors for w, h in pairs]
    assert characters.counts.tolist() == least


def test_word_errors_of_a_known_case() -> None:
    found = word_errors(["one two three", "four"], ["one too three x", ""])
    assert (found.total.substitutions, found.total.deletions, found.total.insertions) == (1, 1, 1)
    assert found.interval().value == 3 / 4
    assert found.interval().n == 4
    assert found.frequent() == [
        ("deletion", "four", "", 1),
        ("insertion", "", "x", 1),
        ("substitution", "two", "too", 1),
    ]
    assert found.alignments[0].lines() == ("one two three *", "one TOO three X")
    with pytest.raises(DataError, match="2 references and 1 hypotheses"):
        word_errors(["a", "b"], ["a"])


def test_no_error_is_not_certainty() -> None:
    found = word_errors(["one two"] * 30, ["one two"] * 30).interval()
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 60))


@pytest.mark.parametrize(
    ("wanted", "found", "speakers"),
    [
        (["one"] * 5, ["two"] * 5, None),  # all wrong
        (["a b c d"], ["a b c"], None),  # one clip
        (["a b"] * 4, ["a"] * 4, None),  # one rate in every clip
        (["a"] * 5, ["a b c"] * 5, None),  # more errors than words
        (["a b", "a b", "a", "a b c"], ["a", "a b", "a", "a b"], ["x", "x", "y", "y"]),
    ],
)
def test_one_rate_everywhere_is_not_certainty(
    wanted: list[str], found: list[str], speakers: list[str] | None
) -> None:
    errors = word_errors(wanted, found)
    interval = errors.interval(blocks=speakers)
    assert interval.value == errors.counts.sum() / errors.sizes.sum()
    assert interval.low < interval.value
    assert interval.high - interval.low > 0.25  # of a dozen words at most


def test_systems_are_compared_on_the_same_words() -> None:
    wanted = ["a b c d"] * 30
    bad = word_errors(wanted, ["a b c"] * 15 + wanted[15:])
    good = word_errors(wanted, wanted)
    found = bad.compare(good)
    assert found.interval.value == pytest.approx(15 / 120)
    assert found.interval.low > 0
    with pytest.raises(DataError, match="same utterances"):
        bad.compare(word_errors(["a"], ["a"]))


# ------------------------------------------------------------------------------ events

SCORES = st.lists(
    st.sampled_from([0.0, 0.0005, 0.1, 0.2, 0.5, 0.9, 1.0]), min_size=0, max_size=30
).map(lambda x: np.array(x, np.float32))
THRESHOLDS = st.sampled_from([0.0, 0.1, 0.15, 0.5, 0.9, 1.0])


def peaks_slowly(scores: npt.NDArray[np.float32], min_gap: int, threshold: float) -> list[int]:
    """By definition: better than the score before, no worse than that after, and not too soon."""
    events: list[int] = []
    padded = [-1.0, *scores.tolist(), -1.0]
    for t in range(len(scores)):
        before, score, after = padded[t : t + 3]
        is_peak = before < score >= after and score >= max(EVENT_FLOOR, np.float32(threshold))
        if is_peak and all(t - e >= min_gap for e in events):
            events.append(t)
    return events


def peaks_of(scores: npt.NDArray[np.float32], min_gap: int, threshold: float = 0.0) -> list[Peak]:
    picker = PeakPicker([threshold], min_gap)
    return [*picker.push(scores[:, None]), *picker.finish()]


@given(SCORES, st.integers(1, 8), THRESHOLDS)
def test_peaks_are_those_of_the_definition(
    scores: npt.NDArray[np.float32], gap: int, threshold: float
) -> None:
    found = peaks_of(scores, gap, threshold)
    frames = [peak.frame for peak in found]
    assert frames == peaks_slowly(scores, gap, threshold)
    np.testing.assert_allclose([peak.score for peak in found], scores[frames], atol=1e-7)


@given(SCORES, st.integers(1, 8), st.lists(st.integers(0, 9), max_size=8))
def test_peaks_of_a_stream_are_those_of_the_whole(
    scores: npt.NDArray[np.float32], gap: int, cuts: list[int]
) -> None:
    picker = PeakPicker([0.0], gap)
    found, at = [], 0
    for n in [*cuts, len(scores)]:
        found += picker.push(scores[at : at + n, None])
        at = min(len(scores), at + n)
    assert [*found, *picker.finish()] == peaks_of(scores, gap)


def test_a_peak_is_said_with_the_next_score() -> None:
    """Also where the score stays as high, or never falls below the threshold again."""
    picker = PeakPicker([0.1], 5)
    scores = np.tile(np.array([0.9, 0.5], np.float32), 20)
    scores[30:] = 0.7
    said = {at: picker.push(scores[at : at + 1, None]) for at in range(40)}
    heard = [(at, peak.frame) for at, peaks in said.items() for peak in peaks]
    assert heard == [(1, 0), (7, 6), (13, 12), (19, 18), (25, 24), (31, 30)]
    assert picker.finish() == []
    assert picker.push(np.array([[0.2]])) == []
    assert picker.finish() == [Peak(0, 0, 0.2)]


@given(SCORES, st.integers(1, 8))
def test_events_at_all_thresholds_are_as_many_as_at_each(
    scores: npt.NDArray[np.float32], gap: int
) -> None:
    """And the first is the best score: what is said once is detected or not, whatever the gap."""
    found = events_at_all(scores[:, None], gap)
    levels = {0.0, *np.round(scores.astype(float), 7).tolist()}
    for threshold in sorted(level for level in levels if level <= 1):
        wanted = len(peaks_of(scores, gap, threshold))
        assert sum(peak.score >= threshold for peak in found) == wanted
    best = max((peak.score for peak in found), default=0.0)
    assert best == pytest.approx(max([0.0, *scores[scores >= EVENT_FLOOR].tolist()]))
    assert [peak.frame for peak in found] == sorted({peak.frame for peak in found})


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 8), st.randoms())
def test_events_are_the_most_peaks_that_stand_apart(
    frames: list[int], gap: int, random: Random
) -> None:
    """Of scores of their own, so that every order in which peaks come up is met."""
    scores = np.zeros((124, 1), np.float32)
    for frame in frames:
        scores[2 * frame] = random.randint(1, 1000) / 1000
    found = sorted(events_at_all(scores, 2 * gap), key=lambda peak: -peak.score)
    for index, peak in enumerate(found):
        reach = np.flatnonzero(scores[:, 0] >= np.float32(peak.score))
        assert most_apart(reach.tolist(), 2 * gap) == index + 1 + sum(
            other.score == peak.score for other in found[index + 1 :]
        )


def most_apart(frames: list[int], gap: int) -> int:
    """The most of them that stand `gap` apart, by dynamic programming."""
    most: list[int] = []
    for index, frame in enumerate(frames):
        before = [most[i] for i in range(index) if frames[i] + gap <= frame]
        most.append(1 + max(before, default=0))
    return max(most, default=0)


def test_events_not_frames() -> None:
    scores = np.zeros((200, 2), np.float32)
    scores[50:80, 0] = 0.9  # a word held for 30 frames is one event, and the better one is its
    scores[60, 0] = 0.95
    scores[100, 1] = scores[190, 1] = 0.5
    found = pick_events(scores, 0.04, 1.0)
    expected = [ScoredEvent(0, 2.4, 0.95), ScoredEvent(1, 4.0, 0.5), ScoredEvent(1, 7.6, 0.5)]
    assert found == expected
    assert len(pick_events(scores, 0.04, 3.7)) == 2  # the two of the second keyword are one
    assert pick_events(np.zeros((0, 2), np.float32), 0.04, 1.0) == []


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_scores_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(SpecError, match="in \\[0, 1\\]"):
        pick_events(np.array([[bad]], np.float32), 0.04, 1.0)


def test_what_is_said() -> None:
    keywords = ["seven", "turn on", "one"]
    assert said_in("Seven turn on the seven", None, keywords) == {0: 2, 1: 1}
    assert said_in("phone turn it on", None, keywords) == {}  # whole words, together
    assert said_in("stone", None, keywords) == {}
    assert said_in(None, "one", keywords) == {2: 1}
    assert said_in("seven", "one", keywords) == {0: 1}  # the label only if the transcript has none
    assert said_in("1", "one", keywords) == {2: 1}
    assert said_in(None, None, keywords) == said_in(None, "_near_miss_", keywords) == {}


@pytest.mark.parametrize(
    ("text", "label", "keyword", "said"),
    [
        ("hey computer", "hey_computer", "hey_computer", {0: 1}),  # a folder's name and its text
        (None, "hey_computer", "Hey computer", {0: 1}),
        ("Seven, please.", None, "seven", {0: 1}),
        (None, "Seven", "seven", {0: 1}),
        ("", "seven", "seven", {0: 1}),
        ("Don\u2019t stop!", None, "don't", {0: 1}),
        (None, "_silence_", "silence", {}),  # a class, not a word
        (None, "seven eight", "seven", {}),  # a label names its class whole
        ("anything", None, "?!", {}),
    ],
)
def test_words_are_compared_without_case_and_punctuation(
    text: str | None, label: str | None, keyword: str, said: dict[int, int]
) -> None:
    assert said_in(text, label, [keyword]) == said


def test_each_occurrence_takes_the_next_best_event() -> None:
    events = [ScoredEvent(0, 1.0, 0.4), ScoredEvent(0, 2.0, 0.9), ScoredEvent(1, 3.0, 1.0)]
    assert occurrence_scores(events, 0, 1) == [0.9]
    assert occurrence_scores(events, 0, 3) == [0.9, 0.4, MISSED]


# ------------------------------------------------------------------------------ sweeps

SHARES = st.lists(st.floats(0.001, 1.0).map(lambda x: round(x, 3)), max_size=30)


@given(SHARES.filter(bool), SHARES, st.floats(0.0, 1.0))
@settings(deadline=None)
def test_sweep_counts_what_one_threshold_does(
    positives: list[float], negatives: list[float], threshold: float
) -> None:
    scores = Scores(np.array([MISSED, *positives]), np.array(negatives), 2.0)
    point = scores.at(threshold)
    n_missed = sum(score < threshold for score in [MISSED, *positives])
    assert point.frr.value == n_missed / (len(positives) + 1)
    assert point.false_alarms.count == sum(score >= threshold for score in negatives)


@given(SHARES.filter(bool), SHARES)
@settings(deadline=None, max_examples=50)
def test_misses_never_fall_and_false_alarms_never_rise(
    positives: list[float], negatives: list[float]
) -> None:
    scores = Scores(np.array(positives), np.array(negatives), 0.5)
    curve = scores.curve()
    assert [p.threshold for p in curve] == sorted({0.0, 1.0, *positives, *negatives})
    frr = [p.frr.value for p in curve]
    counts = [p.false_alarms.count for p in curve]
    assert frr == sorted(frr)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(negatives)
    assert len(scores.curve(max_points=5)) <= 5


def test_a_long_curve_keeps_its_rare_false_alarms():
    """Ten thousand events, of which people care about the ten highest."""
    rng = np.random.default_rng(0)
    scores = Scores(rng.uniform(0.3, 1.0, 100), rng.beta(0.2, 6.0, 10_000), hours=2.0)
    curve = scores.curve()
    assert 100 < len(curve) <= 200
    counts = {p.false_alarms.count for p in curve}
    assert set(range(10)) <= counts
    assert (curve[0].threshold, curve[-1].threshold) == (0.0, 1.0)
    gaps = np.diff([p.frr.value for p in curve])
    assert gaps.max() < 0.05


@given(SHARES.filter(bool), SHARES, st.floats(0.1, 20.0), st.floats(0.2, 5.0))
@example([0.25], [0.297], 1.0, 0.5)  # 0.297 / 0.0001 is less than 2970
@settings(deadline=None)
def test_choice_keeps_to_the_target_and_misses_fewest(
    positives: list[float], negatives: list[float], target: float, hours: float
) -> None:
    scores = Scores(np.array(positives), np.array(negatives), hours)
    choice = choose_threshold(scores, target)
    grid = np.arange(1, 10_001) / 10_000
    allowed = scores.false_alarms(grid) <= target * hours + 1e-9
    assert choice.target_met == bool(allowed.any())
    assert 0 < choice.threshold <= 1
    if choice.target_met:
        assert scores.false_alarms(choice.threshold) / hours <= target + 1e-9
        assert scores.misses(choice.threshold) == scores.misses(grid[allowed]).min()
    else:
        assert choice.threshold == 1.0


def test_choice_stands_in_the_middle_of_what_costs_nothing() -> None:
    scores = Scores(np.array([0.8, 0.9, 0.2]), np.array([0.4, 0.6, 0.1]), 1.0)
    assert choose_threshold(scores, 0.5).threshold == 0.7  # none may fire: 0.6 to 0.8
    assert choose_threshold(scores, 1.0).threshold == 0.6  # one may: 0.4 to 0.8
    inf, nan = float("inf"), float("nan")
    for target, hours, message in (
        (0.0, 1.0, "target"),
        (inf, 1.0, "target"),
        (nan, 1.0, "target"),
        (0.5, 0.0, "0 hours"),
        (0.5, inf, "hours"),
    ):
        with pytest.raises(DataError, match=message):
            choose_threshold(Scores(np.ones(1), np.ones(1), hours), target)
    with pytest.raises(DataError, match="keywords that were said"):
        choose_threshold(Scores(np.zeros(0), np.zeros(0), 0.2), 0.5)


# ------------------------------------------------------------------------------ noise


def tone_in_silence(seconds: float = 1.0) -> npt.NDArray[np.float32]:
    n = round(seconds * RATE)
    wave = np.zeros(2 * n, np.float32)
    wave[n // 2 : n // 2 + n] = 0.3 * np.sin(2 * np.pi * 300 * np.arange(n) / RATE)
    return wave


@given(st.floats(-10, 30), st.integers(0, 2**16), st.floats(0.001, 1.0))
@settings(deadline=None, max_examples=30)
def test_mixed_snr_is_the_stated_one(snr_db: float, seed: int, level: float) -> None:
    speech = tone_in_silence()
    noise = (level * np.random.default_rng(seed).standard_normal(len(speech))).astype(np.float32)
    mixed = mix_at_snr(speech, noise, snr_db, sample_rate=RATE).astype(np.float64)
    assert np.abs(mixed).max() <= 1.0
    # What is left where there is no speech is the noise; the gain of both is known from there.
    quiet = speech == 0
    gain = (mixed[quiet] @ noise[quiet]) / (noise[quiet] @ noise[quiet].astype(np.float64))
    spoken = mixed - gain * noise
    during = spoken[speech != 0]
    measured = 10 * np.log10(np.mean(during**2) / np.mean((gain * noise.astype(float)) ** 2))
    assert measured == pytest.approx(snr_db, abs=0.2)


def test_pauses_are_not_part_of_the_level() -> None:
    tone = tone_in_silence()
    noise = np.random.default_rng(0).standard_normal(len(tone) + 5 * RATE).astype(np.float32)
    short = mix_at_snr(tone, noise[: len(tone)], 5.0, sample_rate=RATE)
    padded = mix_at_snr(np.pad(tone, (0, 5 * RATE)), noise, 5.0, sample_rate=RATE)
    added = short[tone == 0], padded[len(tone) :]
    assert added[0].std() == pytest.approx(added[1].std(), rel=0.1)


def write_corpus(folder: Path, rows: list[dict[str, Any]], **audio: npt.NDArray[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave in audio.items():
        soundfile.write(folder / f"{name}.wav", wave, RATE)
    common = {"split": "test", "duration_s": 1.0, "sample_rate": RATE}
    lines = [json.dumps({**common, "text": None, "speaker": None, **row}) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_noise_is_of_the_split_and_of_the_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    waves = {name: 0.1 * rng.standard_normal(RATE) for name in ("a", "b")}
    rows = [{"audio": "a.wav"}, {"audio": "b.wav", "split": "train"}]
    folder = write_corpus(tmp_path / "noise", rows, **waves)
    bank = NoiseMixer(folder, "test", sample_rate=RATE, seed=0)
    assert [file.name for file in bank.files] == ["a.wav"]
    clip = tone_in_silence(1.5)  # longer than the noise
    noisy = bank.mix(clip, 5.0)
    assert noisy.tobytes() == bank.mix(clip, 5.0).tobytes()
    assert noisy.tobytes() != bank.mix(clip, 10.0).tobytes()
    other = NoiseMixer(folder, "test", sample_rate=RATE, seed=1)
    assert noisy.tobytes() != other.mix(clip, 5.0).tobytes()
    silence = np.zeros(100, np.float32)
    assert bank.mix(silence, 5.0) is silence
    with pytest.raises(DataError, match="'valid'"):
        NoiseMixer(folder, "valid", sample_rate=RATE, seed=0)
    with pytest.raises(DataError, match="digital silence"):
        mix_at_snr(clip, np.zeros_like(clip), 5.0, sample_rate=RATE)


def test_silent_noise_is_drawn_anew(tmp_path: Path) -> None:
    burst = np.zeros(4 * RATE)
    burst[:100] = 0.1 * np.random.default_rng(0).standard_normal(100)
    rows = [{"audio": "a.wav"}, {"audio": "b.wav"}]
    folder = write_corpus(tmp_path / "noise", rows, a=np.zeros(RATE), b=burst)
    clip = tone_in_silence(0.5)
    for seed in range(8):
        bank = NoiseMixer(folder, "test", sample_rate=RATE, seed=seed)
        noisy = bank.mix(clip, 5.0)
        assert np.isfinite(noisy).all()
        assert (noisy != clip).any()
        assert noisy.tobytes() == bank.mix(clip, 5.0).tobytes()
    bank.files = bank.files[:1]
    with pytest.raises(DataError, match="digital silence"):
        bank.mix(clip, 5.0)


# ------------------------------------------------------------------------------ journals


def test_a_journal_gives_back_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    entries = [Entry(key="a", text="one"), Entry(key="b", events=((0, 1.5, 0.25),))]
    with Journal(path) as journal:
        for entry in entries:
            journal.put(entry)
    with Journal(path) as journal:
        assert [journal.get(e.key) for e in entries] == entries
        assert journal.get("c") is None
        journal.put(Entry(key="c", text=""))
    with Journal(path) as journal:
        assert len(journal) == 3


def test_a_torn_last_line_is_dropped_and_a_foreign_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.put(Entry(key="a", text="one"))
        journal.put(Entry(key="b", text="two"))
    whole = path.read_bytes()
    for cut in range(len(whole)):  # killed at any byte
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert len(journal) == whole[:cut].count(b"\n")
            journal.put(Entry(key="c", text="three"))
        with Journal(path) as journal:
            assert journal.get("c") == Entry(key="c", text="three")
    path.write_bytes(b"a line of something else\n" + whole)
    with pytest.raises(DataError, match="line 1"):
        Journal(path)


def test_keys_are_of_model_and_samples() -> None:
    wave = np.arange(5, dtype=np.float32)
    assert entry_key("m", wave) == entry_key("m", wave.copy())
    assert len({entry_key("m", wave), entry_key("n", wave), entry_key("m", wave[:4])}) == 3


# ------------------------------------------------------------------------------ data sets


def test_real_and_synthetic_rows_are_told_apart(tmp_path: Path) -> None:
    rows = [{"audio": "a.wav", "engine": "espeak"}, {"audio": "b.wav", "speaker": "ann"}]
    mixed = open_data_set(write_corpus(tmp_path / "mixed", rows), "test")
    assert [row.kind for row in mixed.rows] == ["synthetic", "real"]
    assert mixed.kinds == ["real", "synthetic"]
    assert mixed.rows[0].record.speaker == "unknown"
    assert open_data_set(tmp_path / "mixed", "test", synthetic=True).kinds == ["synthetic"]
    by_folder = write_corpus(tmp_path / "synthetic" / "words", rows[1:])
    assert open_data_set(by_folder, "test").kinds == ["synthetic"]
    assert open_data_set(by_folder, "train").rows == ()
    assert mixed.rows[0].group("engine") == "espeak"
    assert mixed.rows[1].group("engine") == "(none)"


def test_speakers_are_blocks_where_all_are_known(tmp_path: Path) -> None:
    rows = [{"audio": f"{i}.wav", "speaker": s} for i, s in enumerate(["ann", "bob", "ann"])]
    known = open_data_set(write_corpus(tmp_path / "a", rows), "test").rows
    assert speaker_blocks(known) == ["ann", "bob", "ann"]
    assert speaker_blocks(known[::2]) is None  # one speaker
    rows.append({"audio": "3.wav", "speaker": None})
    assert speaker_blocks(open_data_set(write_corpus(tmp_path / "b", rows), "test").rows) is None


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"audio": "x.wav"}'])
def test_bad_manifests_are_named(tmp_path: Path, line: str) -> None:
    """As `Manifest` names them: by the line."""
    write_corpus(tmp_path, [{"audio": "a.wav"}])
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    said = re.escape(f"{tmp_path / 'manifest.jsonl'}, line 3: ")
    with pytest.raises(DataError, match=said):
        open_data_set(tmp_path, "test")
    with pytest.raises(DataError, match=said):
        NoiseMixer(tmp_path, "test", sample_rate=RATE, seed=0)
    with pytest.raises(DataError, match="found none at"):
        open_data_set(tmp_path / "none", "test")
