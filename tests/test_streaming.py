"""The whole way from samples to events: however a stream is cut, it says the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.audio import ClippingWarning
from edge_imputer.bundle import Bundle
from edge_imputer.errors import (
    AudioFormatError,
    AudioNotFoundError,
    BackendError,
    BundleNotFoundError,
    SampleRateError,
    SpecError,
    TokenError,
)
from edge_imputer.events import Final, Keyword, Partial, Word
from edge_imputer.imputation import ImputedChunk
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.recognizer import Recognizer
from edge_imputer.specs import ModelSpec
from edge_imputer.spotter import KeywordSpotter

from .clipping import check_clipping_warnings
from .fakes import (
    Described,
    FakeBackend,
    Float32,
    ScriptedBackend,
    logits_of,
    noise,
    small_spec,
    write_bundle,
)

RATE = 16_000
FRAME = 640  # samples in an encoder frame
SPEC = small_spec(depth=2, chunk_blocks=2, schedule=(2, 1, 1))
CHUNK = 8 * FRAME


def decoder_of(spec: ModelSpec = SPEC, **options: Any) -> StreamingDecoder:
    return StreamingDecoder(Described(spec), backend=FakeBackend(spec), **options)


def joined(chunks: list[ImputedChunk], name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def assert_same(chunks: list[ImputedChunk], others: list[ImputedChunk]) -> None:
    """The same chunks, to the bit."""
    assert [c.first_frame for c in chunks] == [c.first_frame for c in others]
    for name in ("alignment", "log_probs", "committed_at"):
        np.testing.assert_array_equal(joined(chunks, name), joined(others, name), err_msg=name)


def push_parts(push: Callable[..., list[Any]], waveform: np.ndarray, sizes: list[int]) -> list[Any]:
    """Push a waveform in parts of the given sizes, then what is left of it."""
    out = []
    for part in np.split(waveform, np.minimum(np.cumsum(sizes, dtype=int), waveform.size)):
        out += push(part, sample_rate=RATE)
    return out


CUTS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 700), st.integers(0, 9_000)))

# ------------------------------------------------------------------------------ the decoder


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3 * CHUNK), CUTS, st.integers(0, 3))
def test_streaming_equals_batch_bit_for_bit(n_samples: int, sizes: list[int], seed: int) -> None:
    waveform = noise(n_samples, seed=seed)
    decoder = decoder_of()
    streamed = [*push_parts(decoder.push, waveform, sizes), *decoder.flush()]
    assert_same(streamed, decoder_of().decode(waveform))
    assert len(streamed) == SPEC.n_chunks(n_samples)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3 * CHUNK), st.integers(0, 3))
def test_flush_equals_pushing_the_silence(n_samples: int, seed: int) -> None:
    waveform = noise(n_samples, seed=seed)
    padded = np.pad(waveform, (0, SPEC.padded_samples(n_samples) - n_samples))
    flushed, pushed = decoder_of(), decoder_of()
    by_hand = pushed.push(padded, sample_rate=RATE)
    assert_same([*flushed.push(waveform, sample_rate=RATE), *flushed.flush()], by_hand)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3 * CHUNK), st.integers(1, 5), st.integers(0, 2))
def test_the_work_a_chunk_costs_is_constant(n_samples: int, n_steps: int, revisions: int) -> None:
    decoder = decoder_of(n_steps=n_steps, revisions=revisions)
    backend = decoder.backend
    assert isinstance(backend, FakeBackend)
    chunks = [*decoder.push(noise(n_samples), sample_rate=RATE), *decoder.flush()]
    assert backend.n_head_calls == (n_steps + revisions) * len(chunks)
    assert backend.n_encoder_calls == SPEC.head.chunk_size * len(chunks)


def test_a_chunk_is_there_with_its_last_sample() -> None:
    decoder = decoder_of()
    due = SPEC.features.n_samples(SPEC.chunk_features)
    assert decoder.push(noise(due - 1), sample_rate=RATE) == []
    assert len(decoder.push(noise(1), sample_rate=RATE)) == 1
    assert decoder.push(noise(CHUNK - 1), sample_rate=RATE) == []
    assert len(decoder.push(noise(1), sample_rate=RATE)) == 1


def test_no_samples_flush_to_nothing() -> None:
    decoder = decoder_of()
    assert decoder.flush() == []
    assert decoder.push(np.zeros(0, np.int16), sample_rate=RATE) == []
    assert decoder.flush() == []
    assert isinstance(decoder.backend, FakeBackend)
    assert decoder.backend.n_encoder_calls == 0


def test_flush_and_reset_start_a_new_utterance() -> None:
    decoder = decoder_of()
    waveform = noise(5_000)
    first = [*decoder.push(waveform, sample_rate=RATE), *decoder.flush()]
    again = [*decoder.push(waveform, sample_rate=RATE), *decoder.flush()]
    decoder.push(noise(7_777, seed=9), sample_rate=RATE)
    decoder.reset()
    after_reset = [*decoder.push(waveform, sample_rate=RATE), *decoder.flush()]
    assert_same(again, first)
    assert_same(after_reset, first)


def test_int16_equals_the_float32_it_stands_for() -> None:
    pcm = (noise(9_000) * 32_768).astype(np.int16)
    waveform = pcm.astype(np.float32) / 32_768
    a, b = decoder_of(), decoder_of()
    assert_same(
        [*a.push(pcm, sample_rate=RATE), *a.flush()],
        [*b.push(waveform, sample_rate=RATE), *b.flush()],
    )


def test_streams_share_a_backend_and_nothing_else() -> None:
    backend = FakeBackend(SPEC)
    waveforms = [noise(12_000, seed=1), noise(12_000, seed=2)]
    decoders = [StreamingDecoder(Described(SPEC), backend=backend) for _ in waveforms]
    chunks: list[list[ImputedChunk]] = [[], []]
    for start in range(0, 12_000, 1_000):
        for decoder, waveform, out in zip(decoders, waveforms, chunks, strict=True):
            out += decoder.push(waveform[start : start + 1_000], sample_rate=RATE)
    for decoder, waveform, out in zip(decoders, waveforms, chunks, strict=True):
        assert_same([*out, *decoder.flush()], decoder_of().decode(waveform))


@pytest.mark.parametrize(
    ("pcm", "rate", "error"),
    [
        (noise(100), 8_000, SampleRateError),
        (np.full(100, np.nan, np.float32), RATE, AudioFormatError),
        (np.zeros(100), RATE, AudioFormatError),
        (np.zeros((100, 2), np.int16), RATE, AudioFormatError),
    ],
)
def test_refused_samples_leave_the_stream_as_it_was(
    pcm: np.ndarray, rate: int, error: type[Exception]
) -> None:
    waveform = noise(9_000)
    decoder = decoder_of()
    chunks = decoder.push(waveform[:4_000], sample_rate=RATE)
    with pytest.raises(error):
        decoder.push(pcm, sample_rate=rate)
    chunks += decoder.push(waveform[4_000:], sample_rate=RATE)
    assert_same([*chunks, *decoder.flush()], decoder_of().decode(waveform))


def test_clipping_warns_once_an_utterance_and_goes_on() -> None:
    decoder = decoder_of()
    check_clipping_warnings(decoder)
    with pytest.warns(ClippingWarning):
        decoder.push(np.ones(500, np.float32), sample_rate=RATE)
    assert decoder.n_samples == 500


def test_trace_is_kept_on_request() -> None:
    chunks = decoder_of(keep_trace=True).decode(noise(6_000))
    for chunk in chunks:
        assert chunk.trace is not None
        assert chunk.trace.shape == (3, 8)


def test_a_name_needs_a_bundle_and_a_path_needs_one_there(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="loaded backend for a Described"):
        StreamingDecoder(Described(SPEC), backend="onnx")
    with pytest.raises(BundleNotFoundError, match="manifest"):
        StreamingDecoder(tmp_path / "none")
    write_bundle(tmp_path)
    with pytest.raises(BackendError, match="among onnx"):
        StreamingDecoder(tmp_path, backend="abacus")
    with pytest.raises(SpecError, match="got both"):
        decoder_of(n_steps=2, schedule=(4,))


# ------------------------------------------------------------------------------ the recogniser

TALK = small_spec(characters=tuple(" abc"))
TALK_CHUNK = 4 * FRAME


def scripted(alignment: str, spec: ModelSpec = TALK, *, margin: float = 8.0) -> ScriptedBackend:
    """A backend that hears `alignment`, then silence."""
    return ScriptedBackend(spec, logits_of(spec, alignment + "." * 40, margin=margin))


def recognizer_of(alignment: str, *, margin: float = 8.0) -> Recognizer:
    return Recognizer(Described(TALK), backend=scripted(alignment, margin=margin))


def talk(alignment: str) -> Float32:
    """Noise as long as an alignment."""
    return noise(len(alignment) * FRAME)


SAID = "..ab.b c.cca..ab"  # "abb cca ab", one letter a repeat across a chunk's border


def test_final_has_text_words_and_times() -> None:
    recognizer = recognizer_of(SAID)
    recognizer.push(talk(SAID), sample_rate=RATE)
    (final,) = recognizer.flush()
    assert isinstance(final, Final)
    assert final.text == "abb ccaab"
    assert [(w.text, w.start_s, w.end_s) for w in final.words] == [
        ("abb", pytest.approx(2 * 0.04), pytest.approx(6 * 0.04)),
        ("ccaab", pytest.approx(7 * 0.04), pytest.approx(16 * 0.04)),
    ]
    assert (final.start_s, final.end_s) == (final.words[0].start_s, final.words[1].end_s)
    p = 1 / (1 + 4 * math.exp(-8))
    assert final.confidence == pytest.approx(p, rel=1e-5)
    assert [w.confidence for w in final.words] == pytest.approx([p, p], rel=1e-5)


def test_confidence_is_the_geometric_mean_over_what_was_said() -> None:
    backend = scripted(".ab.")
    backend.logits[1], backend.logits[2] = [0, 0, 2, 0, 0], [0, 0, 0, 1, 0]
    recognizer = Recognizer(Described(TALK), backend=backend)
    recognizer.push(talk(".ab."), sample_rate=RATE)
    (final,) = recognizer.flush()
    a, b = math.e**2 / (math.e**2 + 4), math.e / (math.e + 4)
    assert final.confidence == pytest.approx(math.sqrt(a * b), rel=1e-5)


def test_partials_come_when_the_text_changes_and_only_then() -> None:
    recognizer = recognizer_of("a.b....... .c.......")
    events = []
    for part in np.split(talk("a.b....... .c......."), 20):
        events += recognizer.push(part, sample_rate=RATE)
    events += recognizer.flush()
    assert [(type(e), e.text) for e in events] == [
        (Partial, "ab"),
        (Partial, "ab c"),
        (Final, "ab c"),
    ]
    assert events[0].end_s == pytest.approx(3 * 0.04)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3 * CHUNK), CUTS, st.integers(0, 3))
def test_recogniser_says_the_same_however_the_stream_is_cut(
    n_samples: int, sizes: list[int], seed: int
) -> None:
    waveform = noise(n_samples, seed=seed)
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    partials = push_parts(recognizer.push, waveform, sizes)
    (final,) = recognizer.flush()
    transcript = recognizer.transcribe(waveform, sample_rate=RATE)
    for name in ("text", "start_s", "end_s", "confidence", "words"):
        assert getattr(final, name) == getattr(transcript, name)
    assert transcript.duration_s == n_samples / RATE
    assert all(isinstance(partial, Partial) for partial in partials)
    said = [partial.text for partial in partials]
    assert all(a != b for a, b in pairwise(said))
    assert all(final.text.startswith(text) for text in said)  # what is said stays said
    assert 0 < final.confidence <= 1
    assert final.text == " ".join(word.text for word in final.words)
    assert all(w.start_s < w.end_s for w in final.words)


def test_text_collapses_as_the_whole_alignment_does() -> None:
    decoder = decoder_of()
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    for seed in range(5):
        waveform = noise(3 * CHUNK, seed=seed)
        alignment = joined(decoder.decode(waveform), "alignment").tolist()
        previous, text = 0, ""
        for token in alignment:
            if token not in (0, previous):
                text += SPEC.tokens.characters[token - 1]
            previous = token
        transcript = recognizer.transcribe(waveform, sample_rate=RATE)
        assert transcript.text == " ".join(text.split())


def test_nothing_said_is_an_empty_final_and_no_samples_are_nothing() -> None:
    recognizer = recognizer_of("....")
    assert recognizer.flush() == []
    assert recognizer.push(talk("...."), sample_rate=RATE) == []
    (final,) = recognizer.flush()
    assert isinstance(final, Final)
    assert (final.text, final.words, final.start_s, final.end_s) == ("", (), 0.0, 0.0)
    assert final.confidence == pytest.approx(1 / (1 + 4 * math.exp(-8)), rel=1e-5)


def test_transcribing_a_file_does_not_disturb_the_stream(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", noise(3_000, seed=5), RATE)
    waveform = noise(3 * CHUNK)
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    recognizer.push(waveform[:9_000], sample_rate=RATE)
    recognizer.transcribe(tmp_path / "clip.wav")
    recognizer.push(waveform[9_000:], sample_rate=RATE)
    (final,) = recognizer.flush()
    assert final.text == recognizer.transcribe(waveform, sample_rate=RATE).text


def test_reset_forgets_what_was_said() -> None:
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    recognizer.push(noise(3 * CHUNK, seed=4), sample_rate=RATE)
    recognizer.reset()
    waveform = noise(9_000)
    recognizer.push(waveform, sample_rate=RATE)
    (final,) = recognizer.flush()
    assert final.text == recognizer.transcribe(waveform, sample_rate=RATE).text


def test_files_and_arrays_of_another_rate(tmp_path: Path) -> None:
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    waveform = noise(8_000)
    path = tmp_path / "clip.flac"
    soundfile.write(path, waveform, 8_000)
    for audio, rate in ((path, None), (waveform, 8_000)):
        with pytest.raises(SampleRateError, match="8000"):
            recognizer.transcribe(audio, sample_rate=rate)
        transcript = recognizer.transcribe(audio, sample_rate=rate, resample=True)
        assert transcript.duration_s == 1.0
    with pytest.raises(SampleRateError, match="expected the sample rate of the array"):
        recognizer.transcribe(waveform)
    with pytest.raises(SampleRateError, match="expected no sample_rate for a file"):
        recognizer.transcribe(path, sample_rate=8_000)
    with pytest.raises(AudioFormatError, match="no samples"):
        recognizer.transcribe(np.zeros(0, np.float32), sample_rate=RATE)
    with pytest.raises(AudioNotFoundError):
        recognizer.transcribe(tmp_path / "none.wav")


def test_a_clipped_array_warns_once() -> None:
    recognizer = Recognizer(Described(SPEC), backend=FakeBackend(SPEC))
    with pytest.warns(ClippingWarning) as caught:
        recognizer.transcribe(np.ones(2_000, np.float32), sample_rate=RATE)
    assert len(caught) == 1


# ------------------------------------------------------------------------------ the spotter


def spotter_of(
    alignment: str, keywords: Any = None, *, margin: float = 8.0, **options: Any
) -> KeywordSpotter:
    return KeywordSpotter(
        Described(TALK),
        {"ab": 0.5} if keywords is None else keywords,
        backend=scripted(alignment, margin=margin),
        **options,
    )


def test_keyword_event_has_times_and_confidence() -> None:
    spotter = spotter_of(".c aab.. c")
    events = spotter.push(talk(".c aab.. c"), sample_rate=RATE) + spotter.flush()
    assert events == [Keyword("ab", pytest.approx(3 * 0.04), pytest.approx(6 * 0.04), 1.0)]


def test_clipping_warns_once_a_stream_of_text_keywords() -> None:
    check_clipping_warnings(spotter_of("ab ab ab"))


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        ("ab ab ab", 3),
        ("ab......ab......", 2),
        ("cab", 0),
        ("abc", 0),
        ("ab", 1),
        ("", 0),
    ],
)
def test_one_event_an_occurrence(alignment: str, expected: int) -> None:
    waveform = talk(alignment + ".")
    spotter = spotter_of(alignment, refractory_s=0.1)
    events = []
    for part in np.array_split(waveform, 7):
        events += spotter.push(part, sample_rate=RATE)
    events += spotter.flush()
    assert len(events) == expected
    assert events == spotter.spot(waveform, sample_rate=RATE)


def test_refractory_time() -> None:
    waveform = talk("ab ab ab")
    assert len(spotter_of("ab ab ab", refractory_s=0.12).spot(waveform, sample_rate=RATE)) == 3
    assert len(spotter_of("ab ab ab", refractory_s=0.2).spot(waveform, sample_rate=RATE)) == 2


def test_parts_of_words_on_request() -> None:
    spotter = spotter_of("cabc", word_boundaries=False)
    assert [e.start_s for e in spotter.spot(talk("cabc"), sample_rate=RATE)] == [0.04]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3 * CHUNK), CUTS, st.integers(0, 3))
def test_spotter_hears_the_same_however_the_stream_is_cut(
    n_samples: int, sizes: list[int], seed: int
) -> None:
    waveform = noise(n_samples, seed=seed)
    keywords = {"a": 0.1, "bc": 0.1, "c": 0.3}
    spotter = KeywordSpotter(
        Described(SPEC), keywords, backend=FakeBackend(SPEC), word_boundaries=False
    )
    events = push_parts(spotter.push, waveform, sizes) + spotter.flush()
    assert events == spotter.spot(waveform, sample_rate=RATE)
    for event in events:
        assert keywords[event.text] <= event.confidence <= 1
        assert 0 <= event.start_s < event.end_s


def test_random_weights_do_fire() -> None:
    # Otherwise the test above would compare nothing with nothing.
    spotter = KeywordSpotter(
        Described(SPEC), {"a": 0.1, "c": 0.3}, backend=FakeBackend(SPEC), word_boundaries=False
    )
    assert len(spotter.spot(noise(3 * CHUNK), sample_rate=RATE)) > 1


def test_reset_of_a_spotter() -> None:
    spotter = spotter_of("ab...")
    spotter.push(talk("ab..."), sample_rate=RATE)
    spotter.reset()
    assert spotter.flush() == []


def test_threshold_is_the_bundle_s_unless_given(tmp_path: Path) -> None:
    spec = small_spec()
    write_bundle(tmp_path, keyword_threshold=0.37)
    bundle = Bundle.load(tmp_path)
    spotter = KeywordSpotter(bundle, ["ab", "c"], backend=FakeBackend(spec))
    assert spotter.thresholds == {"ab": 0.37, "c": 0.37}
    assert KeywordSpotter(tmp_path, {"c": 1}, backend=FakeBackend(spec)).thresholds == {"c": 1.0}


def test_no_threshold_anywhere_is_an_error(tmp_path: Path) -> None:
    write_bundle(tmp_path, keyword_threshold=None)
    for model in (tmp_path, Described(TALK)):
        with pytest.raises(SpecError, match=r"keywords=\{'ab': 0.5\}"):
            KeywordSpotter(model, ["ab"], backend=FakeBackend(TALK))


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({}, SpecError),
        ([], SpecError),
        ("ab", SpecError),
        ({"": 0.5}, SpecError),
        (["ab", "ab"], SpecError),
        ({"ab": 1.5}, SpecError),
        ({"xy": 0.5}, TokenError),
    ],
)
def test_keywords_that_cannot_be_listened_for(keywords: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        spotter_of("", keywords)


def test_bad_samples_reach_neither_face() -> None:
    for face in (recognizer_of("ab"), spotter_of("ab")):
        with pytest.raises(SampleRateError):
            face.push(noise(10), sample_rate=8_000)
        assert face.flush() == []


# ------------------------------------------------------------------------------ events


def test_events_are_frozen_and_become_plain_values() -> None:
    word = Word("ab", 0.1, 0.2, 0.9)
    final = Final("ab", 0.1, 0.2, 0.9, (word,))
    plain = {"text": "ab", "start_s": 0.1, "end_s": 0.2, "confidence": 0.9}
    assert final.to_dict() == {"event": "final", **plain, "words": (plain,), "meaning": None}
    assert Partial("ab", 0.1, 0.2, 0.9).to_dict() == {"event": "partial", **plain}
    assert Keyword("ab", 0.1, 0.2, 0.9).to_dict() == {"event": "keyword", **plain}
    with pytest.raises(AttributeError):
        final.text = "c"  # type: ignore[misc]


def test_transcript_becomes_plain_values() -> None:
    transcript = recognizer_of("ab").transcribe(talk("ab"), sample_rate=RATE)
    plain = transcript.to_dict()
    assert plain["duration_s"] == 0.08
    assert plain["words"][0]["text"] == "ab"
