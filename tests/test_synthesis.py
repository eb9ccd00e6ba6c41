"""Speech synthesisers, the clips made of what they say, and the corpora of these clips."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.audio import read_audio
from edge_imputer.cli.main import main
from edge_imputer.errors import SynthesisError
from edge_imputer.train.data import ClipRecord, read_manifest
from edge_imputer.train.synthesis import (
    DIGITS,
    SPEECH_COMMANDS,
    Dress,
    Engine,
    Job,
    Made,
    Phrase,
    Settings,
    Speech,
    SplitRule,
    Voice,
    choose_voices,
    make_plan,
    read_texts,
    sentences,
    split_voices,
    synthesize,
)
from edge_imputer.train.synthesis import corpus as corpus_module
from edge_imputer.train.synthesis.corpus import ClipRow, read_rows
from edge_imputer.train.synthesis.grammar import parse_grammar
from edge_imputer.train.synthesis.shaping import (
    CEILING,
    SAMPLE_RATE,
    cut_speech,
    dress,
    ends_in_stop,
    longest_flat_top,
)
from edge_imputer.train.synthesis.voices import speakers_of, without_speakers

from .speech_engines import ToneEngine, burst, real_engine, run_command

# ---------------------------------------------------------------- clips


def tone(seconds: float, rate: int = SAMPLE_RATE, hz: float = 200.0) -> Speech:
    return Speech(burst(int(seconds * rate), rate, hz), rate)


def test_speech_is_cut_out_of_silence_at_16_khz() -> None:
    speech = tone(0.5, 22_050)
    padded = np.pad(speech.waveform, (22_050, 11_025))
    cut = cut_speech(Speech(padded, 22_050), "seven", 5, 1.0)
    assert cut.problem is None
    assert len(cut.waveform) / SAMPLE_RATE == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("speech", "problem"),
    [
        (Speech(np.zeros(8_000, np.float32), 16_000), "silent"),
        (Speech(np.full(100, 0.5, np.float32), 16_000), "silent"),
        (Speech(np.full(8_000, np.nan, np.float32), 16_000), "not finite"),
        (Speech(np.clip(3 * tone(0.5).waveform, -1, 1), 16_000), "clipped"),
        (tone(0.05), "0.0. s of speech for 5 phones, expected 0.15 to 1.80"),
        (tone(3.0), "of speech for 5 phones"),
        (
            Speech(
                np.concatenate([tone(0.3)[0], np.zeros(8_000, np.float32), tone(0.3)[0]]), 16_000
            ),
            "a gap of 0.5",
        ),
    ],
)
def test_bad_speech_is_told_apart(speech: Speech, problem: str) -> None:
    found = cut_speech(speech, "seven", 5, 1.0).problem
    assert found is not None
    assert re.search(problem, found)


def test_a_click_after_the_word_is_cut_off_unless_it_is_the_word_s_stop() -> None:
    click = 0.3 * np.ones(160, np.float32) * np.resize([1, -1], 160)
    waveform = np.concatenate([tone(0.4)[0], np.zeros(2_400, np.float32), click.astype(np.float32)])
    speech = Speech(waveform, SAMPLE_RATE)
    assert len(cut_speech(speech, "seven", 5, 1.0).waveform) < 0.46 * SAMPLE_RATE
    assert len(cut_speech(speech, "eight", 2, 1.0).waveform) > 0.5 * SAMPLE_RATE
    assert [ends_in_stop(w) for w in ("up", "house", "cat.", "snake", "no", "off")] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]


@given(seed=st.integers(0, 2**31), level=st.floats(1e-3, 1.0), n=st.integers(800, 8_000))
def test_a_dressed_clip_is_padded_never_clipped_never_digital_silence(
    seed: int, level: float, n: int
) -> None:
    how = Dress()
    speech = np.float32(level) * burst(n, SAMPLE_RATE, 200.0)
    clip = dress(speech, how, np.random.default_rng(seed))
    assert clip.dtype == np.float32
    assert n + 2 * 0.05 * SAMPLE_RATE - 2 <= len(clip) <= n + 2 * 0.25 * SAMPLE_RATE
    peak_dbfs = 20 * np.log10(np.abs(clip).max())
    assert how.peak_dbfs[0] - 1 <= peak_dbfs <= 20 * np.log10(CEILING) + 1e-3
    assert np.count_nonzero(clip == 0) <= 2
    head_dbfs = 10 * np.log10(np.mean(clip[:800] ** 2))
    assert -80 < head_dbfs < -58


def test_flat_tops_are_counted_in_a_row() -> None:
    assert longest_flat_top(np.array([0, 1, 0, 1, 0, 1], np.float32)) == 1
    assert longest_flat_top(np.array([0, 1, 1, 1, -1, 0.5], np.float32)) == 4


# ---------------------------------------------------------------- voices and splits


def people(*specs: tuple[str, str, str | None]) -> list[Voice]:
    return [Voice(engine, name, person=person) for engine, name, person in specs]


def test_voices_are_chosen_over_accents_variants_and_genders() -> None:
    engine = real_engine("espeak")
    voices = choose_voices(engine, 18, seed=3)
    assert voices == choose_voices(engine, 18, seed=3)
    assert voices != choose_voices(engine, 18, seed=4)
    accents = [voice.name.partition("+")[0] for voice in voices]
    assert max(map(accents.count, accents)) <= 3  # of eight accents
    genders = [voice.gender for voice in voices]
    assert 6 <= genders.count("female") <= 12
    assert not any(voice.quality == "effect" for voice in voices)
    assert {v.name for v in choose_voices(engine, None, seed=0, only=["espeak:en-us+f?"])} == {
        f"en-us+f{i}" for i in range(1, 6)
    }
    left = choose_voices(engine, None, seed=0, only=["espeak:en-us+f?"], skip=["*+f1", "*+f2"])
    assert len(left) == 3


@given(
    n=st.integers(3, 40),
    shares=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
    seed=st.integers(0, 99),
)
def test_every_voice_has_one_split_and_the_shares_are_kept(
    n: int, shares: tuple[float, float], seed: int
) -> None:
    voices = people(*[("a", f"v{i}", None) for i in range(n)])
    rule = SplitRule(valid_share=shares[0], test_share=shares[1])
    splits = split_voices(voices, rule, seed=seed)
    assert set(splits) == {voice.speaker for voice in voices}
    n_valid, n_test = (max(1, round(share * n)) if share else 0 for share in shares)
    n_test = min(n_test, n - 1)
    n_valid = min(n_valid, n - 1 - n_test)
    found = list(splits.values())
    assert [found.count(s) for s in ("train", "valid", "test")] == [
        n - n_valid - n_test,
        n_valid,
        n_test,
    ]


def test_a_held_out_engine_takes_its_people_with_it() -> None:
    voices = people(
        ("flite", "slt", "slt"),
        ("flite", "kal", "kal"),
        ("festival", "kal_diphone", "kal"),
        ("festival", "ked", "ked"),
        ("espeak", "en", None),
        ("espeak", "en+f1", None),
        ("espeak", "en+f2", None),
    )
    splits = split_voices(voices, SplitRule("engine", test=("flite",)), seed=1)
    assert splits["flite:slt"] == splits["flite:kal"] == "test"
    assert "festival:kal_diphone" not in splits  # the same person: left out
    assert "test" not in {splits[s] for s in splits if not s.startswith("flite")}
    both = split_voices(voices, SplitRule(test=("espeak:en+f2",), valid=("festival",)), seed=1)
    assert (both["espeak:en+f2"], both["festival:ked"]) == ("test", "valid")
    assert "flite:kal" not in both


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (SplitRule(test=("flite",)), "got 'flite'; its engines are a"),
        (SplitRule("engine"), "needs one to test on"),
        (SplitRule("engine", test=("a:v1",)), "needs one to test on"),
        (SplitRule(valid_share=0.6, test_share=0.5), "together below 1"),
        (SplitRule(test_share=-0.1), "0 or more"),
        (SplitRule(test=("a",)), "some to train on"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(rule: SplitRule, said: str) -> None:
    with pytest.raises(SynthesisError, match=said):
        split_voices(people(("a", "v1", None), ("a", "v2", None)), rule, seed=0)


def test_a_corpus_may_be_only_to_test_with_where_that_is_said() -> None:
    voices = people(("a", "v1", None), ("a", "v2", None))
    rule = SplitRule(test=("*",))
    assert split_voices(voices, rule, seed=0) == {"a:v1": "test", "a:v2": "test"}
    phrases = [Phrase(text, clips=1, apart=True) for text in sentences(30, seed=1)]
    assert [job.split for job in make_plan(phrases, voices, rule, seed=0)] == ["test"] * 30


def test_the_voices_and_people_of_another_corpus_can_be_kept_out(tmp_path: Path) -> None:
    lines = [{"audio": "x", "speaker": s} for s in ("espeak:en-gb+f2", "flite:slt")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    voices = people(
        ("espeak", "en", None),
        ("espeak", "en+f2", None),
        ("festival", "cmu_us_slt", "slt"),
        ("festival", "ked", "ked"),
    )
    known = [*voices, *people(("flite", "slt", "slt"))]
    left = without_speakers(voices, speakers_of(tmp_path), known)
    assert [voice.speaker for voice in left] == ["espeak:en+f2", "festival:ked"]
    with pytest.raises(SynthesisError, match="expected a corpus folder"):
        speakers_of(tmp_path / "nowhere")


# ---------------------------------------------------------------- texts


def test_word_lists() -> None:
    assert len(DIGITS) == len(set(DIGITS)) == 10
    assert len(SPEECH_COMMANDS) == len(set(SPEECH_COMMANDS)) == 35
    assert set(DIGITS) < set(SPEECH_COMMANDS)


def test_sentences_differ_repeat_and_keep_keywords_out() -> None:
    many = sentences(300, seed=5)
    assert len(set(many)) == 300
    assert many[:20] == sentences(20, seed=5)
    assert many != sentences(300, seed=6)
    assert all(set(s) <= set("abcdefghijklmnopqrstuvwxyz ") for s in many)
    assert any(" on " in f" {s} " for s in many)
    assert not any(" on " in f" {s} " for s in sentences(200, seed=5, without=["On"]))
    assert not set(many) & set(sentences(300, seed=5, not_in=many))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sentence is what", "line 1: expected NAME = A"),
        ("sentence = a <b>", "names the rule 'b', which is missing"),
        ("sentence = a <b>\nb = c | <sentence>", "calls itself"),
        ("other = a", "expected a rule 'sentence'"),
        ("sentence = a <b>s\nb = c", "line 1: expected <rule> with spaces around it.*'<b>s'"),
        ("b = c\nsentence = a | <b><b>", "line 2: expected <rule> with spaces.*'<b><b>'"),
        ("sentence = <B>", "name of small letters, got '<B>'; write such words out"),
    ],
)
def test_bad_grammars_are_refused(text: str, said: str) -> None:
    with pytest.raises(SynthesisError, match=said):
        parse_grammar(text)
    with pytest.raises(SynthesisError, match="expected 3 different sentences, the grammar gave 1"):
        sentences(3, seed=0, grammar=parse_grammar("sentence = a"))


def test_text_files_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("# words\nyes\n\n  turn   it off \n")
    assert read_texts(path) == ["yes", "turn it off"]
    path.write_text("yes\n...\n")
    with pytest.raises(SynthesisError, match=r"texts.txt, line 2: expected a text of 1 to 400"):
        read_texts(path)
    path.write_text("# nothing\n")
    with pytest.raises(SynthesisError, match="found none"):
        read_texts(path)
    with pytest.raises(SynthesisError, match="expected a text file"):
        read_texts(tmp_path / "nowhere.txt")


# ---------------------------------------------------------------- plans and corpora

SETTINGS = Settings(seed=1, dress=Dress())


def plan(
    engine: Engine, texts: list[str], *, variants: int = 1, rule: SplitRule | None = None
) -> list[Job]:
    phrases = [Phrase(text, text) for text in texts]
    return make_plan(phrases, engine.voices(), rule or SplitRule(), seed=1, variants=variants)


def test_a_plan_has_every_text_in_every_voice_and_take() -> None:
    engine = ToneEngine()
    jobs = plan(engine, ["yes", "hey computer"], variants=3)
    assert len(jobs) == len({job.audio for job in jobs}) == len({job.seed for job in jobs}) == 36
    assert jobs == plan(engine, ["hey computer", "yes", "yes"], variants=3)  # order, repeats
    with pytest.raises(SynthesisError, match="at least one text and one voice"):
        plan(engine, [])


def test_sentences_are_kept_apart_between_splits() -> None:
    phrases = [Phrase(text, clips=2, apart=True) for text in sentences(120, seed=1)]
    jobs = make_plan(phrases, ToneEngine(n_voices=30).voices(), SplitRule(), seed=1)
    assert len(jobs) == 240
    splits: dict[str, set[str]] = {}
    for job in jobs:
        splits.setdefault(job.phrase.text, set()).add(job.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == {"train", "valid", "test"}


def test_splitting_by_clip_mixes_voices() -> None:
    jobs = plan(ToneEngine(n_voices=4), [f"word{i}" for i in range(60)], rule=SplitRule("none"))
    shares = [[job.split for job in jobs].count(s) / len(jobs) for s in ("train", "valid", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.06)
    assert len({job.split for job in jobs if job.voice.name == "v0"}) == 3


def make(engine: ToneEngine, texts: list[str], out: Path, **options: Any) -> Made:
    return synthesize(plan(engine, texts), [engine], out, settings=SETTINGS, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_corpus_is_the_same_whoever_makes_it_and_reads_as_a_corpus(tmp_path: Path) -> None:
    texts = ["yes", "hey computer", "seven"]
    made = make(ToneEngine(), texts, tmp_path / "one")
    make(ToneEngine(), texts, tmp_path / "three", workers=3)
    assert (made.n_made, made.n_present, made.dropped) == (18, 0, [])
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    records = read_manifest(tmp_path / "one")
    assert len(records) == 18
    assert [r.audio for r in records] == sorted(r.audio for r in records)
    for record in records:
        waveform, rate = read_audio(tmp_path / "one" / record.audio)
        assert rate == record.sample_rate == SAMPLE_RATE
        assert len(waveform) / rate == pytest.approx(record.duration_s, abs=1e-3)
        assert record.label == record.text
        assert (record.engine, record.speaker.partition(":")[0]) == ("tone", "tone")
    speakers = {(r.speaker, r.split) for r in records}
    assert len(speakers) == 6
    assert {split for _, split in speakers} == {"train", "valid", "test"}
    fields = {f.name for f in msgspec.structs.fields(ClipRow)}
    needed = {f.name for f in msgspec.structs.fields(ClipRecord) if f.required}
    assert needed <= fields


@pytest.mark.parametrize("suffix", ["ogg", "flac", "wav"])
def test_every_format_is_read_back(suffix: Any, tmp_path: Path) -> None:
    engine = ToneEngine(n_voices=3)
    jobs = make_plan([Phrase("yes", "yes")], engine.voices(), SplitRule(), seed=1, suffix=suffix)
    assert synthesize(jobs, [engine], tmp_path, settings=SETTINGS).n_made == 3
    for path in (tmp_path / "audio").rglob("*.*"):
        assert path.suffix == f".{suffix}"
        assert soundfile.info(path).samplerate == SAMPLE_RATE


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    texts = ["yes", "no", "seven", "hey computer"]
    make(ToneEngine(), texts, tmp_path / "whole")

    def stop(made: Made) -> None:
        if made.n_made == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(ToneEngine(), texts, tmp_path / "parts", on_clip=stop)
    engine = ToneEngine()
    made = make(engine, texts, tmp_path / "parts")
    assert made.n_present >= 7
    assert len(engine.spoken) == made.n_made == 24 - made.n_present
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    engine = ToneEngine()
    assert make(engine, texts, tmp_path / "parts").n_present == 24
    assert engine.spoken == []


def test_a_killed_run_leaves_a_journal_that_is_read(tmp_path: Path) -> None:
    make(ToneEngine(), ["yes"], tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    journal = tmp_path / "manifest.part.jsonl"
    journal.write_bytes(manifest.read_bytes() + b'{"audio": "half a li')
    manifest.unlink()
    assert len(read_rows(tmp_path)) == 6
    whole = manifest_rows(tmp_path)
    kill_at_the_first_clip(tmp_path, ["yes", "no"])  # and killed once more
    assert [row for row in read_rows(tmp_path) if row.text == "yes"] == whole
    assert make(ToneEngine(), ["yes"], tmp_path).n_present == 6
    assert not journal.exists()
    lost = next((tmp_path / "audio").rglob("*.flac"))
    lost.unlink()
    assert make(ToneEngine(), ["yes"], tmp_path).n_made == 1
    manifest.write_text('{"audio": 1}\n')
    with pytest.raises(SynthesisError, match=r"line 1: expected a synthetic clip"):
        make(ToneEngine(), ["yes"], tmp_path)


def manifest_rows(out: Path) -> list[ClipRow]:
    return [row for row in read_rows(out) if row.text == "yes"]


def kill_at_the_first_clip(out: Path, texts: list[str]) -> None:
    """As by SIGKILL: nothing is written after it, in the middle of a line at that."""
    kept: dict[Path, bytes] = {}

    def stop(made: Made) -> None:
        kept.update({p: p.read_bytes() for p in out.glob("manifest.part.jsonl")})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(ToneEngine(), texts, out, on_clip=stop)
    (out / "manifest.jsonl").unlink()
    for path, data in kept.items():
        path.write_bytes(data + b'{"audio": "half')


def test_more_texts_can_be_added_but_not_other_settings_or_splits(tmp_path: Path) -> None:
    make(ToneEngine(), ["yes"], tmp_path)
    assert make(ToneEngine(), ["yes", "no"], tmp_path).n_made == 6
    assert len(read_manifest(tmp_path)) == 12
    engine = ToneEngine()
    other = plan(engine, ["stop"], rule=SplitRule(test=("tone:v0", "tone:v1", "tone:v2")))
    with pytest.raises(SynthesisError, match=r"is in the split .* and would be in"):
        synthesize(other, [engine], tmp_path, settings=SETTINGS)
    with pytest.raises(SynthesisError, match="use the same seed and ranges, or another folder"):
        synthesize(
            plan(engine, ["yes"]),
            [engine],
            tmp_path,
            settings=Settings(seed=1, dress=Dress(rate=(1.0, 1.1))),
        )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(SynthesisError, match="holds another corpus"):
        make(ToneEngine(), ["yes"], foreign)


def test_bad_clips_are_made_again_left_out_and_reported(tmp_path: Path) -> None:
    engine = ToneEngine()
    engine.broken = {
        "silence": np.zeros(9_000, np.float32),
        "shout": np.clip(4 * burst(9_000, 22_050, 150.0), -1, 1),
        "refusal": SynthesisError("tone ended with code 3"),
        "drawl": burst(22_050 * 20, 22_050, 150.0),
    }
    made = make(engine, ["yes", *engine.broken], tmp_path)
    assert made.n_made == 6
    assert {r.text for r in read_manifest(tmp_path)} == {"yes"}
    reasons = {d.text: d.problems for d in made.dropped}
    assert len(made.dropped) == 24
    assert reasons["silence"] == ["silent"] * 4
    assert reasons["shout"] == ["clipped"] * 4
    assert reasons["refusal"] == ["tone ended with code 3"] * 4
    assert "s of speech for" in reasons["drawl"][0]
    lines = (tmp_path / "dropped.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert len(list((tmp_path / "audio").rglob("*.flac"))) == 6
    with pytest.raises(SynthesisError, match="none of 6 clips could be made"):
        make(engine, ["silence"], tmp_path / "other")


def test_one_bad_attempt_costs_another_and_is_counted(tmp_path: Path) -> None:
    class Stumbling(ToneEngine):
        def speak(self, text: str, voice: str, *, rate: float = 1.0, pitch: float = 0.0) -> Speech:
            first = (voice, text) not in seen
            seen.add((voice, text))
            said = super().speak(text, voice, rate=rate, pitch=pitch)
            return Speech(np.zeros_like(said.waveform), said.sample_rate) if first else said

    seen: set[tuple[str, str]] = set()
    made = make(Stumbling(), ["yes"], tmp_path)
    assert (made.n_made, made.dropped, dict(made.retried)) == (6, [], {"silent": 6})


def test_a_full_disk_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = corpus_module.write_clip, []

    def full(path: Path, *rest: Any) -> None:
        if len(written) == 4:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(corpus_module, "write_clip", full)
    with pytest.raises(OSError, match="No space left"):
        make(ToneEngine(), ["yes", "no"], tmp_path)
    monkeypatch.undo()
    assert len(read_manifest(tmp_path)) == 4
    assert make(ToneEngine(), ["yes", "no"], tmp_path).n_present == 4


def test_an_estimate_comes_first_and_can_end_the_run(tmp_path: Path) -> None:
    engine = ToneEngine()
    estimates = []

    def no_more(estimate: Any) -> bool:
        estimates.append(estimate)
        return False

    made = make(engine, ["yes", "no"], tmp_path, on_estimate=no_more)
    assert made.n_made == len(engine.spoken) == 1
    (estimate,) = estimates
    assert (estimate.n_clips, estimate.n_present) == (12, 0)
    assert estimate.seconds == pytest.approx(11 * estimate.clip_s["tone"])
    assert make(engine, ["yes", "no"], tmp_path).n_present == 1


def test_takes_share_out_the_range_of_rates(tmp_path: Path) -> None:
    engine = ToneEngine(n_voices=3)
    jobs = plan(engine, ["yes"], variants=4)
    synthesize(jobs, [engine], tmp_path, settings=SETTINGS)
    rates: dict[int, list[float]] = {}
    for row in read_rows(tmp_path):
        rates.setdefault(row.take, []).append(row.rate)
        assert -2 <= row.pitch <= 2
    edges = 0.8 * (1.25 / 0.8) ** (np.arange(5) / 4)
    for take, found in rates.items():
        assert len(found) == 3
        assert edges[take] - 1e-3 <= min(found) <= max(found) <= edges[take + 1] + 1e-3


# ---------------------------------------------------------------- the command


def test_the_command_makes_a_corpus_with_the_real_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real_engine("espeak"), real_engine("flite")
    out = tmp_path / "wake"
    options = ["--engine", "espeak", "--engine", "flite", "--voices", "espeak=4", "--split-by"]
    options += ["engine", "--test", "flite", "--seed", "3", "--workers", "2", "--format", "ogg"]
    run_command("speech", str(out), "hey computer", "--commands", "4", *options)
    assert "clips made" in capsys.readouterr().out
    records = read_manifest(out)
    assert {r.split for r in records if r.engine == "flite"} == {"test"}
    assert {r.split for r in records if r.engine == "espeak"} == {"train", "valid"}
    labels = [r.label for r in records]
    assert labels.count("hey computer") == 4 + 5
    assert 4 <= labels.count("_unknown_") <= 4 * 2  # a split may have one voice
    assert not any("hey computer" in (r.text or "") for r in records if r.label != "hey computer")
    for record in records:
        waveform, _ = read_audio(out / record.audio)
        assert np.abs(waveform).max() < 1.0
        quiet = np.flatnonzero(waveform)
        assert np.diff(quiet).max() < SAMPLE_RATE // 100  # no digital silence
    run_command("speech", str(out), "hey computer", "--commands", "4", *options)
    assert "0 clips made" in capsys.readouterr().out


def test_the_command_keeps_out_the_voices_of_a_test_corpus(tmp_path: Path) -> None:
    real_engine("espeak")
    test = tmp_path / "test"
    run_command("speech", str(test), "yes", "--voice", "espeak:en-us+f?", "--voices", "3",
        "--engine", "espeak", "--split-by", "none")  # fmt: skip
    out = tmp_path / "train"
    run_command("speech", str(out), "yes", "--voice", "espeak:en-us+f?", "--engine", "espeak",
        "--not-in", str(test), "--valid-share", "0", "--test-share", "0")  # fmt: skip
    speakers = [{r.speaker for r in read_manifest(folder)} for folder in (test, out)]
    assert [len(found) for found in speakers] == [3, 2]
    assert not speakers[0] & speakers[1]


def test_the_command_lists_engines(capsys: pytest.CaptureFixture[str]) -> None:
    run_command("voices", "--json")
    listed = {one["engine"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(listed) == ["espeak", "flite", "festival", "piper", "kokoro"]
    assert all(one["ok"] or one["install"] for one in listed.values())
    assert all(bool(one["voices"]) == one["ok"] for one in listed.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["speech", "OUT"], "at least one text and one voice"),
        (["speech", "OUT", "..."], "expected a text of 1 to 400 printable characters"),
        (["speech", "OUT", "yes", "--voices", "say=3"], "expected --voices N or ENGINE=N"),
        (["speech", "OUT", "yes", "--voices", "0"], "expected --voices N or ENGINE=N"),
        (["speech", "OUT", "yes", "--engine", "say"], "expected one of the engines"),
        (["speech", "OUT", "yes", "--test", "say"], "to hold out, got 'say'"),
        (["speech", "OUT", "yes", "--rate", "0", "0"], "rates above 0, the lower first, got"),
        (["speech", "OUT", "yes", "--rate", "1.2", "0.8"], "rates above 0, the lower first, got"),
        (["speech", "OUT", "yes", "--rate", "1", "inf"], "rates above 0, the lower first, got"),
        (["speech", "OUT", "yes", "--pitch", "nan", "1"], "pitches, the lower first, got"),
        (
            ["speech", "OUT", "--digits", "--near-misses", "3"],
            "expected a TEXT to find near misses",
        ),
        (["voices", "--engine", "say"], "expected one of the engines"),
        (["texts", "3", "--grammar", "OUT"], "expected a grammar in UTF-8 at"),
        (["texts", "3", "--without", "OUT"], "expected a text file in UTF-8 at"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real_engine("espeak")
    with pytest.raises(SystemExit) as ended:
        main(["synthesize", *(str(tmp_path / "out") if a == "OUT" else a for a in arguments)])
    assert ended.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert said in errors[-1]
    assert not (tmp_path / "out").exists()


def test_sentences_are_printed_and_said_by_so_many_voices_of_one_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real_engine("espeak")
    grammar = tmp_path / "grammar.txt"
    grammar.write_text("sentence = say <word> | <word> now\nword = yes | no | purple\n")
    banned = tmp_path / "banned.txt"
    banned.write_text("purple\n")
    first = tmp_path / "first.txt"
    run_command("texts", "3", "--grammar", str(grammar), "--without", str(banned))
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 3
    assert not any("purple" in line for line in lines)
    first.write_text("\n".join(lines) + "\n")
    run_command("texts", "3", "--grammar", str(grammar), "--not-in", str(first))
    others = capsys.readouterr().out.splitlines()
    assert len({*lines, *others}) == 6
    voices = ["--engine", "espeak", "--voices", "4", "--test", "*"]
    run_command("speech", str(tmp_path / "out"), "--sentences", str(first), *voices)
    manifest = [
        json.loads(row) for row in (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    ]
    assert sorted(row["text"] for row in manifest) == sorted(lines * 2)  # two voices by default
    assert {row["split"] for row in manifest} == {"test"}
    grammar.write_text("sentence = <nothing>\n")
    with pytest.raises(SystemExit):
        main(["synthesize", "texts", "3", "--grammar", str(grammar)])
    assert f"{grammar}: grammar: 'sentence' names the rule" in capsys.readouterr().err
