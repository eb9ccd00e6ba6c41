"""Speech synthesisers behind one interface: the real ones where installed, and their calls."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_imputer.errors import SynthesisError
from edge_imputer.train.synthesis import Speech, open_engines
from edge_imputer.train.synthesis.engines import Kokoro, Piper, espeak, make_engines
from edge_imputer.train.synthesis.shaping import SAMPLE_RATE, cut_speech

from .conftest import import_or_skip
from .speech_engines import real_engine

PROGRAMS = ["espeak", "flite", "festival"]
VOICE = {"espeak": "en-us", "flite": "kal16", "festival": "kal_diphone"}


def fundamental_hz(speech: Speech) -> float:
    """Median pitch of the voiced frames, by autocorrelation."""
    x, rate = speech
    n = int(0.04 * rate)
    found = []
    for start in range(0, len(x) - n, n // 2):
        frame = x[start : start + n] - x[start : start + n].mean()
        correlation = np.correlate(frame, frame, "full")[n - 1 :]
        low, high = rate // 300, rate // 60
        lag = low + int(correlation[low:high].argmax())
        if correlation[lag] > 0.6 * correlation[0] > 1e-3:
            found.append(rate / lag)
    return float(np.median(found))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_real_engine_speaks(name: str) -> None:
    engine = real_engine(name)
    voices = engine.voices()
    assert len({voice.speaker for voice in voices}) == len(voices) > 0
    assert all(voice.engine == name and voice.language for voice in voices)
    assert VOICE[name] in {voice.name for voice in voices}
    speech = engine.speak("one nine alarm", VOICE[name])
    again = engine.speak("one nine alarm", VOICE[name])
    assert speech.waveform.dtype == np.float32
    assert speech.waveform.ndim == 1
    assert 0.5 < len(speech.waveform) / speech.sample_rate < 3.0
    assert 0.05 < np.abs(speech.waveform).max() <= 1.0
    np.testing.assert_array_equal(speech.waveform, again.waveform)


@pytest.mark.parametrize("name", PROGRAMS)
def test_rate_and_pitch_of_a_real_engine_are_what_was_asked_for(name: str) -> None:
    engine = real_engine(name)
    text = "one nine seven alarm"
    plain = engine.speak(text, VOICE[name])
    fast = engine.speak(text, VOICE[name], rate=1.4)
    high = engine.speak(text, VOICE[name], pitch=4.0)

    def speech_s(speech: Speech) -> float:
        return len(cut_speech(speech, text, 14, 1.0).waveform) / SAMPLE_RATE

    assert speech_s(plain) / speech_s(fast) == pytest.approx(1.4, rel=0.15)
    assert speech_s(high) / speech_s(plain) == pytest.approx(1.0, abs=0.12)
    if name == "espeak":  # moves the fundamental alone
        semitones = 12 * np.log2(fundamental_hz(high) / fundamental_hz(plain))
        assert semitones == pytest.approx(4.0, abs=1.5)
    else:  # said slower and played faster: everything moves
        slow = engine.speak(text, VOICE[name], rate=2 ** (-4 / 12))
        np.testing.assert_array_equal(high.waveform, slow.waveform)
        assert high.sample_rate == round(slow.sample_rate * 2 ** (4 / 12))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_voice_that_does_not_exist_is_an_error_and_not_another_voice(name: str) -> None:
    engine = real_engine(name)
    with pytest.raises(SynthesisError):
        engine.speak("one", "nobody")


def test_festival_takes_no_scheme_from_a_text_or_a_voice() -> None:
    engine = real_engine("festival")
    said = engine.speak('one") (quit) ("\\', "kal_diphone")
    assert len(said.waveform) > said.sample_rate // 4
    with pytest.raises(SynthesisError, match="expected a voice such as"):
        engine.speak("one", "kal_diphone) (quit")


def test_espeak_lists_accents_with_variants_and_marks_effects() -> None:
    voices = {voice.name: voice for voice in real_engine("espeak").voices()}
    assert voices["en-us+f3"].gender == "female"
    assert voices["en-us+m3"].gender == "male"
    assert voices["en-us+whisper"].quality == "effect"
    assert "en-gb" not in voices  # a variant after it is ignored; "en" is the same voice
    assert not any("mb-" in name for name in voices)
    assert espeak.same_voice("en-gb+f2") == "en"
    assert espeak.same_voice("en-us+f2") == "en-us+f2"


def test_voices_of_espeak_that_sound_the_same_are_one_person() -> None:
    engine = real_engine("espeak")
    heard: dict[bytes, set[str]] = {}
    for voice in engine.voices():
        if voice.language == "en-us" and voice.quality != "effect":
            said = engine.speak("seven", voice.name).waveform.tobytes()
            heard.setdefault(said, set()).add(voice.identity)
    assert len(heard) > 60
    assert [people for people in heard.values() if len(people) > 1] == []


def test_engines_that_are_missing_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PIPER_VOICES", raising=False)
    monkeypatch.delenv("KOKORO_VOICES", raising=False)
    for name, engine in make_engines().items():
        found = engine.available()
        assert not found.ok, name
        assert found.reason
        assert found.install
        assert engine.voices() == []
    with pytest.raises(SynthesisError, match=r"espeak is not available: .*apt-get install"):
        open_engines(["espeak"])
    with pytest.raises(SynthesisError, match=r"expected one of the engines espeak, .*'say'"):
        open_engines(["say"])
    with pytest.raises(SynthesisError, match="found none"):
        open_engines()


# Writes a tone whose length and pitch follow its arguments, as Piper's program is called.
FAKE_PIPER = f"""#!{sys.executable}
import json, math, struct, sys, wave
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
text = sys.stdin.read()
if "explode" in text:
    sys.exit("no such phoneme")
with wave.open(options["--output-file"], "wb") as out:
    out.setnchannels(1), out.setsampwidth(2), out.setframerate(22050)
    n = int(22050 * 0.1 * len(text) * float(options["--length-scale"]))
    speaker = int(options.get("--speaker", 0))
    tone = [8000 * math.sin(0.05 * (1 + speaker) * i) for i in range(n)]
    out.writeframes(struct.pack(f"<{{n}}h", *map(int, tone)))
"""


@pytest.fixture
def piper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Piper:
    program = tmp_path / "bin" / "piper"
    program.parent.mkdir()
    program.write_text(FAKE_PIPER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    voices = tmp_path / "voices"
    voices.mkdir()
    for name, code, speakers in (("amy", "en_US", 1), ("many", "en_GB", 2), ("eva", "de_DE", 1)):
        (voices / f"{name}.onnx").write_bytes(b"")
        config = {"language": {"code": code}, "num_speakers": speakers}
        (voices / f"{name}.onnx.json").write_text(json.dumps(config))
    return Piper(voices)


def test_piper_is_called_with_voice_speaker_and_length(piper: Piper) -> None:
    assert [(v.name, v.language) for v in piper.voices()] == [
        ("amy", "en-us"),
        ("many#0", "en-gb"),
        ("many#1", "en-gb"),
    ]
    plain, fast = piper.speak("hello", "amy"), piper.speak("hello", "amy", rate=2.0)
    assert len(plain.waveform) == pytest.approx(2 * len(fast.waveform), abs=2)
    high = piper.speak("hello", "amy", pitch=12.0)
    assert high.sample_rate == 2 * plain.sample_rate
    assert len(high.waveform) == pytest.approx(2 * len(plain.waveform), abs=2)  # as long in time
    assert not np.array_equal(
        piper.speak("hello", "many#0").waveform, piper.speak("hello", "many#1").waveform
    )
    with pytest.raises(SynthesisError, match="piper ended with code 1: no such phoneme"):
        piper.speak("explode", "amy")


def test_piper_without_voices_says_where_it_looks(
    piper: Piper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIPER_VOICES", raising=False)
    assert "no folder with voices" in Piper().available().reason
    assert "no NAME.onnx" in Piper(tmp_path).available().reason
    monkeypatch.setenv("PIPER_VOICES", str(tmp_path / "voices"))
    assert len(Piper().voices()) == 3
    (tmp_path / "voices" / "amy.onnx.json").write_text("[]")
    with pytest.raises(SynthesisError, match=r"amy.onnx.json: expected Piper's settings"):
        piper.voices()


@pytest.fixture(scope="module")
def tiny_kokoro(tmp_path_factory: pytest.TempPathFactory) -> Kokoro:
    """A network with Kokoro's inputs: a tone of 50 ms a token over the speed."""
    onnx = import_or_skip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Size", ["tokens"], ["n"]),
        helper.make_node("Cast", ["n"], ["n_float"], to=types.FLOAT),
        helper.make_node("Mul", ["n_float", "per_token"], ["n_samples"]),
        helper.make_node("Div", ["n_samples", "speed"], ["slowed"]),
        helper.make_node("Squeeze", ["slowed"], ["limit"]),
        helper.make_node("Range", ["zero", "limit", "one"], ["time"]),
        helper.make_node("Mul", ["time", "step"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("ReduceMean", ["style"], ["level"], keepdims=0),
        helper.make_node("Mul", ["wave", "level"], ["audio"]),
    ]
    numbers = {"per_token": 1200.0, "zero": 0.0, "one": 1.0, "step": 0.05}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("tokens", types.INT64, [1, None]),
            helper.make_tensor_value_info("style", types.FLOAT, [1, 256]),
            helper.make_tensor_value_info("speed", types.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("audio", types.FLOAT, [None])],
        [helper.make_tensor(name, types.FLOAT, [], [x]) for name, x in numbers.items()],
    )
    folder = tmp_path_factory.mktemp("kokoro")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "tiny.onnx"))
    for name, level in (("af_one", 0.25), ("bm_two", 0.5)):
        np.full((4, 256), level, np.float32).tofile(folder / f"{name}.bin")
    vocab = {chr(ord("a") + i): i + 1 for i in range(26)} | {"B": 30}
    phonemize: Callable[[str, bool], str] = lambda text, british: text + "B" * british  # noqa: E731
    return Kokoro(folder, model=folder / "tiny.onnx", vocab=vocab, phonemize=phonemize)


def test_kokoro_feeds_tokens_style_and_speed(tiny_kokoro: Kokoro) -> None:
    assert tiny_kokoro.available().ok
    assert [(v.name, v.language, v.gender) for v in tiny_kokoro.voices()] == [
        ("af_one", "en-us", "female"),
        ("bm_two", "en-gb", "male"),
    ]
    plain = tiny_kokoro.speak("abc", "af_one")
    assert plain.sample_rate == 24_000
    assert len(plain.waveform) == 1200 * 5  # three tokens between two paddings
    assert np.abs(plain.waveform).max() == pytest.approx(0.25, abs=1e-3)
    british = tiny_kokoro.speak("abc", "bm_two")
    assert len(british.waveform) == 1200 * 6
    assert np.abs(british.waveform).max() == pytest.approx(0.5, abs=1e-3)
    assert len(tiny_kokoro.speak("abc", "af_one", rate=1.5).waveform) == 1200 * 5 / 1.5
    high = tiny_kokoro.speak("abc", "af_one", pitch=12)
    assert (high.sample_rate, len(high.waveform)) == (48_000, 2 * 1200 * 5)


def test_kokoro_refuses_what_it_cannot_say(tiny_kokoro: Kokoro, tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match="expected 1 to 510 phonemes, got 0"):
        tiny_kokoro.speak("123", "af_one")
    with pytest.raises(SynthesisError, match=r"nobody.bin: expected a style pack"):
        tiny_kokoro.speak("abc", "nobody")
    assert "no NAME.bin" in Kokoro(tmp_path, vocab={}, phonemize=str.join).available().reason or (
        "is not installed" in Kokoro(tmp_path).available().reason
    )


def test_the_real_kokoro_speaks_where_it_is_installed() -> None:
    engine = make_engines()["kokoro"]
    if not engine.available().ok:  # its network is not in CI: 80 MB
        pytest.skip(f"kokoro: {engine.available().reason}")
    speech = engine.speak("seven", engine.voices()[0].name)
    cut = cut_speech(speech, "seven", 5, 1.0)
    assert cut.problem is None
