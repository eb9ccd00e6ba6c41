"""Keyword models in a stream: what torch computes, however the audio is cut, and its events."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.backends.base import Float32, State
from edge_imputer.errors import (
    AudioFormatError,
    BackendError,
    SampleRateError,
    SpecError,
)
from edge_imputer.events import Keyword
from edge_imputer.export.build import build_keyword_graph
from edge_imputer.export.simulate import keyword_reference
from edge_imputer.keyword_stream import KeywordStream, Smoother, smoothed
from edge_imputer.peaks import PeakPicker, gap_frames
from edge_imputer.specs import AnyFeatureSpec, AttentionSpec, ConformerSpec, KeywordModelSpec
from edge_imputer.spotter import KeywordSpotter
from edge_imputer.train.evaluation import pick_events
from edge_imputer.train.keyword_model import TorchKeywordSystem

from .clipping import check_clipping_warnings
from .fakes import Described, FakeBackend, noise, small_spec
from .keyword_cases import ENCODERS, FEATURES, MICRO, PCEN, model, spec

RATE = 16_000
CUTS = st.lists(st.integers(0, 5000), max_size=8)


@cache
def pair(name: str, kind: str) -> tuple[TorchKeywordSystem, KeywordStream]:
    """A model in torch, and its graph in numpy along a stream."""
    network = model(name, FEATURES[kind], smoothing_ms=250)
    backend = keyword_reference(build_keyword_graph(network), network.spec)
    return TorchKeywordSystem(network), KeywordStream(network.spec, backend)


def in_pieces(stream: KeywordStream, waveform: Float32, cuts: list[int]) -> Float32:
    found, at = [], 0
    for n in [*cuts, len(waveform)]:
        found.append(stream.push(waveform[at : at + n]))
        at = min(len(waveform), at + n)
    return np.concatenate([*found, stream.finish()])


# ------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kind", FEATURES)
@settings(max_examples=6, deadline=None)
@given(n=st.integers(0, 24_000), cuts=CUTS)
def test_a_stream_scores_as_torch_does(name: str, kind: str, n: int, cuts: list[int]) -> None:
    system, stream = pair(name, kind)
    waveform = noise(n, seed=n)
    wanted = system.score(waveform)
    found = in_pieces(stream, waveform, cuts)
    assert found.shape == wanted.shape == (system.spec.n_scores(n), 2)
    assert found.dtype == np.float32
    # A conformer's norms have an epsilon in torch, which tells where a frame is nearly constant.
    np.testing.assert_allclose(found, wanted, atol=2e-3 if name == "conformer" else 1e-5)
    # Exactly the same in other pieces, and once more: nothing is left of the stream before.
    np.testing.assert_array_equal(stream.score(waveform), found)


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_come_as_soon_as_they_are_due(name: str) -> None:
    system, stream = pair(name, "log-mel")
    features, due = system.spec.features, 0
    for at in range(0, RATE, 400):
        due += len(stream.push(noise(400, seed=at)))
        steps = features.n_frames(at + 400) // system.spec.step_features
        assert due == steps * system.spec.step_scores
    stream.reset()


@given(n=st.integers(0, 40_000))
def test_silence_makes_the_last_step_whole_and_no_longer(n: int) -> None:
    for name, features in (("conformer", MICRO), ("conformer", PCEN), ("tcn", MICRO)):
        one = spec(name, features)
        padded = one.features.n_frames(n + one.closing_samples(n))
        assert padded // one.step_features * one.step_scores >= one.n_scores(n)
        assert one.closing_samples(n) % one.features.hop_length == 0
        shorter = one.closing_samples(n) - one.features.hop_length
        if shorter >= 0:
            steps = one.features.n_frames(n + shorter) // one.step_features
            assert steps * one.step_scores < one.n_scores(n)
        if name == "tcn":
            assert one.closing_samples(n) == 0


@given(
    scores=st.lists(st.floats(0, 1, width=32), max_size=30),
    n=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 6), max_size=6),
)
def test_smoothing_does_not_know_how_a_stream_is_cut(
    scores: list[float], n: int, cuts: list[int]
) -> None:
    column = np.array(scores, np.float32)[:, None]
    smoother, found, at = Smoother(1, n), [], 0
    for size in [*cuts, len(column)]:
        found.append(smoother.push(column[at : at + size]))
        at = min(len(column), at + size)
    np.testing.assert_array_equal(np.concatenate(found), smoothed(column, n))


def test_a_model_that_cannot_stream_is_refused() -> None:
    attention = AttentionSpec(pattern="dense", direction="bidirectional", heads=2)
    encoder = ConformerSpec(d_model=8, attention=attention)
    one = KeywordModelSpec(features=MICRO, encoder=encoder, keywords=("yes",))
    assert one.closing_samples(12_345) == 0  # it takes a recording as it is
    with pytest.raises(SpecError, match="stream"):
        KeywordStream(one, Scripted(one, []))


# ------------------------------------------------------------------------------ events


class Scripted:
    """A keyword backend that says what it is told: a row of scores each step, whatever it hears."""

    name = "scripted"

    def __init__(self, spec: KeywordModelSpec, scores: list[tuple[float, ...]]) -> None:
        self._n_classes = len(spec.classes)
        self._scores = scores

    def initial_state(self) -> State:
        return (np.zeros(1, np.int64),)

    def keywords_step(self, features: Float32, state: State) -> tuple[Float32, State]:
        at = int(state[0][0])
        row = self._scores[at] if at < len(self._scores) else (0.0,) * (self._n_classes - 1)
        probabilities = np.array([[1 - sum(row), *row]])
        return np.log(np.maximum(probabilities, 1e-12)).astype(np.float32), (state[0] + 1,)


def scripted(
    scores: dict[int, tuple[float, float]], keywords: object, **options: object
) -> tuple[KeywordSpotter, Float32]:
    """A spotter with a score every 100 ms, at those places, and the audio for 60 of them."""
    one = spec("cnn-windowed", MICRO, smoothing_ms=0)
    rows = [scores.get(t, (0.0, 0.0)) for t in range(60)]
    spotter = KeywordSpotter(
        Described(one),  # type: ignore[arg-type]
        keywords,  # type: ignore[arg-type]
        backend=Scripted(one, rows),
        **options,  # type: ignore[arg-type]
    )
    return spotter, noise(one.features.n_samples(600))


def test_an_event_is_a_peak_and_its_times_are_those_of_its_score() -> None:
    scores = {10: (0.6, 0.0), 11: (0.9, 0.1), 12: (0.7, 0.3), 30: (0.2, 0.79), 50: (0.49, 0.0)}
    spotter, waveform = scripted(scores, {"yes": 0.5, "no": 0.3})
    found = spotter.spot(waveform, sample_rate=RATE)
    assert [(e.text, round(e.start_s, 3), round(e.end_s, 3)) for e in found] == [
        ("yes", 1.1, 1.2),
        ("no", 1.2, 1.3),
        ("no", 3.0, 3.1),
    ]
    assert [e.confidence for e in found] == pytest.approx([0.9, 0.3, 0.79], abs=1e-6)
    assert spotter.thresholds == {"yes": 0.5, "no": 0.3}


def test_keywords_may_be_some_of_the_models_in_any_order() -> None:
    spotter, waveform = scripted({20: (0.9, 0.0), 40: (0.0, 0.8)}, {"no": 0.5})
    assert [e.text for e in spotter.spot(waveform, sample_rate=RATE)] == ["no"]
    spotter, waveform = scripted({20: (0.9, 0.0), 40: (0.0, 0.8)}, {"no": 0.5, "yes": 0.5})
    assert [e.text for e in spotter.spot(waveform, sample_rate=RATE)] == ["yes", "no"]


def test_an_event_is_said_with_the_score_after_its_peak() -> None:
    """However long its refractory time is, which only keeps later ones back, be they better."""
    peaks = {10: (0.8, 0.0), 13: (0.9, 0.0), 30: (0.7, 0.0)}
    spotter, waveform = scripted(peaks, {"yes": 0.5}, refractory_s=0.5)
    said = []
    for at in range(0, len(waveform), 160):
        piece = waveform[at : at + 160]
        said += [(at / RATE, e) for e in spotter.push(piece, sample_rate=RATE)]
    assert [(round(e.start_s, 3), round(e.confidence, 3)) for _, e in said] == [
        (1.0, 0.8),
        (3.0, 0.7),
    ]
    frame_s = 0.1
    for heard, event in said:  # the samples that its score takes, and those of the next
        assert heard - event.end_s <= frame_s + 0.03
    assert spotter.flush() == []
    other, _ = scripted(peaks, {"yes": 0.5}, refractory_s=0.3)
    found = other.spot(waveform, sample_rate=RATE)
    assert [round(event.start_s, 3) for event in found] == [1.0, 1.3, 3.0]


def test_the_end_of_a_stream_completes_its_events() -> None:
    spotter, waveform = scripted({59: (0.8, 0.0)}, {"yes": 0.5})
    for _ in range(2):  # and begins afresh
        assert spotter.push(waveform, sample_rate=RATE) == []
        assert [round(e.start_s, 3) for e in spotter.flush()] == [5.9]
    spotter.push(waveform, sample_rate=RATE)
    spotter.reset()
    assert spotter.flush() == []


@pytest.mark.parametrize("name", ["tcn", "conformer", "crnn-windowed"])
@settings(max_examples=8, deadline=None)
@given(cuts=CUTS, whole_between=st.booleans())
def test_events_of_a_stream_are_those_of_evaluation(
    name: str, cuts: list[int], whole_between: bool
) -> None:
    """The spotter says the events in the torch model's scores, as many as evaluation counts."""
    system, stream = pair(name, "log-mel")
    waveform = noise(30_000, seed=4)
    scores = system.score(waveform)
    events = pick_events(scores, system.frame_s, 0.3)
    heights = {k: sorted(e.score for e in events if e.keyword == k) for k in (0, 1)}
    # Between two peaks, so that the last digits of the scores do not matter.
    thresholds = {
        word: float(np.mean(heights[k][len(heights[k]) // 2 - 1 :][:2]))
        for k, word in enumerate(system.keywords)
    }
    picker = PeakPicker([*thresholds.values()], gap_frames(0.3, system.frame_s))
    wanted = sorted(
        (round(peak.frame * system.frame_s, 3), system.keywords[peak.keyword])
        for peak in [*picker.push(scores), *picker.finish()]
    )
    counted = [e for e in events if e.score >= thresholds[system.keywords[e.keyword]]]
    assert len(counted) == len(wanted)
    spotter = KeywordSpotter(
        Described(system.spec),  # type: ignore[arg-type]
        thresholds,
        backend=stream.backend,
        refractory_s=0.3,
    )
    found: list[Keyword] = []
    at = 0
    for n in [*cuts, len(waveform)]:
        found += spotter.push(waveform[at : at + n], sample_rate=RATE)
        at = min(len(waveform), at + n)
        if whole_between:  # another recording does not disturb the stream
            spotter.spot(waveform[:9_000], sample_rate=RATE)
    found += spotter.flush()
    assert sorted((round(e.start_s, 3), e.text) for e in found) == wanted
    assert wanted
    assert spotter.spot(waveform, sample_rate=RATE) == sorted(found, key=lambda e: e.start_s)


def test_clipping_warns_once_a_stream() -> None:
    check_clipping_warnings(scripted({}, {"yes": 0.5})[0])


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"maybe": 0.5}, "trained for, yes, no, got maybe; .*train a model"),
        (["yes", "maybe"], "got maybe"),
        (["yes"], "expected a threshold for every keyword"),
        (["yes", "yes"], "distinct keywords"),
        ([], "expected a list of keywords"),
        (None, "expected a threshold for every keyword.*'yes': 0.5}, --threshold"),
        ({"yes": 1.5}, "thresholds from 0 to 1"),
    ],
)
def test_keywords_that_cannot_be(keywords: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        scripted({}, keywords)


@pytest.mark.parametrize("option", ["n_steps", "schedule", "word_boundaries"])
def test_options_of_models_that_write_are_refused(option: str) -> None:
    value = {"n_steps": 1, "schedule": (1,), "word_boundaries": False}[option]
    with pytest.raises(SpecError, match=f"{option} belongs to models that write down speech"):
        scripted({}, {"yes": 0.5}, **{option: value})


def test_a_backend_of_the_other_kind_is_refused() -> None:
    one, writer = spec("tcn"), small_spec()
    with pytest.raises(BackendError, match=r"KeywordBackend .*, got FakeBackend; .*keyword_back"):
        KeywordSpotter(Described(one), {"yes": 0.5}, backend=FakeBackend(writer))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=r"a Backend for .*, got Scripted, which is of"):
        KeywordSpotter(Described(writer), {"abc": 0.5}, backend=Scripted(one, []))
    with pytest.raises(BackendError, match="expected a loaded backend for a Described"):
        KeywordSpotter(Described(one), {"yes": 0.5})  # type: ignore[arg-type]


def test_audio_of_another_rate_or_form_is_refused() -> None:
    spotter, waveform = scripted({}, {"yes": 0.5})
    with pytest.raises(SampleRateError, match="8000"):
        spotter.push(waveform, sample_rate=8_000)
    with pytest.raises(AudioFormatError):
        spotter.push(waveform[:, None], sample_rate=RATE)


@pytest.mark.parametrize("kind", FEATURES)
def test_features_of_every_kind_have_a_stream(kind: str) -> None:
    features: AnyFeatureSpec = FEATURES[kind]
    _, stream = pair("tcn", kind)
    assert stream.spec.features == features
    assert stream.frame_s == pytest.approx(0.03)
    assert stream.latency_s == pytest.approx(0.25 + 0.015)
