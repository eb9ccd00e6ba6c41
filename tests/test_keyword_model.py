"""The keyword model: sizes, streaming, and the detector made of it."""

from __future__ import annotations

from math import prod

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_imputer.errors import SpecError
from edge_imputer.frontend import LogMel
from edge_imputer.frontends import frontend_of
from edge_imputer.keyword_stream import smoothed
from edge_imputer.microfrontend import Microfrontend
from edge_imputer.pcen import Pcen
from edge_imputer.specs import (
    SILENCE,
    UNKNOWN,
    AnyEncoderSpec,
    AnyFeatureSpec,
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    KeywordModelSpec,
    MicroSpec,
    PcenSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
    WindowedSpec,
    for_classes,
)
from edge_imputer.train.keyword_model import KeywordModel, TorchKeywordSystem

from .fakes import noise

MEL = FeatureSpec(n_mels=20)
PCEN = PcenSpec(n_mels=20, centred=True)
MICRO = MicroSpec()
FEATURES = {"log-mel": MEL, "pcen": PCEN, "micro": MICRO}
WORDS = ("yes", "no")
ENCODERS: dict[str, AnyEncoderSpec] = {
    "crnn": CrnnSpec(conv=(ConvSpec(channels=2), ConvSpec(channels=3)), hidden=5),
    "tcn": TcnSpec(channels=4, subsampling=3, stacks=((1,), (2,))),
    "conformer": ConformerSpec(
        d_model=8,
        n_layers=2,
        subsampling_channels=2,
        kernel=3,
        attention=AttentionSpec(heads=2, block=4, left_context=4, memory_blocks=2),
    ),
    "crnn-windowed": WindowedCrnnSpec(
        channels=2, hidden=2, dense=4, window_frames=31, hop_frames=7, n_classes=3
    ),
    "cnn-windowed": WindowedCnnSpec(
        channels=(2, 2),
        kernel_time=(6, 2),
        linear=3,
        dense=4,
        stride_time=3,
        window_frames=31,
        hop_frames=10,
        n_classes=3,
    ),
}


def spec(name: str, features: AnyFeatureSpec = MEL, **changes: object) -> KeywordModelSpec:
    made = KeywordModelSpec(features=features, encoder=ENCODERS[name], keywords=WORDS)
    return msgspec.structs.replace(made, **changes)


def model(name: str, features: AnyFeatureSpec = MEL, **changes: object) -> KeywordModel:
    torch.manual_seed(0)
    return KeywordModel(spec(name, features, **changes)).eval()


# ---------------------------------------------------------------------------- the spec


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_spec_survives_json(name: str, features: AnyFeatureSpec) -> None:
    before = spec(name, features)
    assert msgspec.json.decode(msgspec.json.encode(before), type=KeywordModelSpec) == before


def test_classes_and_their_numbers() -> None:
    plain = spec("tcn")
    assert plain.classes == (UNKNOWN, "yes", "no")
    labels = ("no", "yes", "maybe", "_near_miss_", SILENCE, UNKNOWN, None)
    assert [plain.class_of(label) for label in labels] == [2, 1, 0, 0, 0, 0, -1]
    silent = spec("tcn", silence=True)
    assert silent.classes == (UNKNOWN, "yes", "no", SILENCE)
    assert [silent.class_of(label) for label in labels] == [2, 1, 0, 0, 3, 0, -1]


def test_times() -> None:
    tcn, windows = spec("tcn", smoothing_ms=200), spec("cnn-windowed", smoothing_ms=200)
    assert (tcn.frame_s, tcn.smoothing_frames) == (pytest.approx(0.03), 7)
    assert (windows.frame_s, windows.smoothing_frames) == (pytest.approx(0.1), 2)
    assert spec("tcn", smoothing_ms=0).smoothing_frames == 1


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("tcn", {"keywords": ()}, "distinct keywords, at least one"),
        ("tcn", {"keywords": ("a", "a")}, "distinct keywords"),
        ("tcn", {"keywords": ("a", " ")}, "none empty"),
        ("tcn", {"keywords": (UNKNOWN,)}, "none called _unknown_"),
        ("tcn", {"smoothing_ms": -1}, "smoothing_ms >= 0"),
        ("tcn", {"encoder": TcnSpec(channels=0)}, "channels >= 1"),
        ("tcn", {"features": FeatureSpec(n_mels=0)}, "n_mels"),
        ("crnn-windowed", {"silence": True}, "n_classes 4, .* got 3; make one with for_classes"),
        (
            "conformer",
            {"encoder": ConformerSpec(intermediate_ctc=(1,), n_tokens=3)},
            "without intermediate CTC branches",
        ),
    ],
)
def test_contradictions_are_refused(name: str, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        spec(name, **changes).check()


def test_encoders_get_their_classes() -> None:
    for encoder in ENCODERS.values():
        made = for_classes(encoder, 36)
        assert made == encoder or getattr(made, "n_classes", None) == 36
        assert (made == encoder) == (not isinstance(encoder, WindowedSpec))
    paper = for_classes(WindowedCrnnSpec(), 2)
    assert paper == WindowedCrnnSpec()
    torch.manual_seed(0)
    whole = KeywordModel(
        KeywordModelSpec(features=PcenSpec(centred=True), encoder=paper, keywords=("talktype",))
    )
    assert sum(p.numel() for p in whole.parameters()) == 229_090


# ---------------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", ENCODERS)
def test_a_clip_alone_equals_the_clip_in_a_padded_batch(name: str) -> None:
    keywords = model(name)
    lengths = torch.tensor([40, 61, 23])
    x = torch.randn(3, 70, 20)
    padded, n_scores = keywords(x, lengths)
    assert padded.shape[::2] == (3, 3)
    for i, length in enumerate(lengths):
        alone, n = keywords(x[i : i + 1, :length], lengths[i : i + 1])
        assert n_scores[i] == n[0] > 0
        ours = padded[i, : n_scores[i]]
        torch.testing.assert_close(ours, alone[0, : n[0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 5), max_size=5))
@example(cuts=[5, 5, 5])  # after which nothing is left, for units of four frames,
@example(cuts=[5, 5, 5, 5])  # and of three
def test_streaming_equals_batch(name: str, cuts: list[int]) -> None:
    keywords = model(name)
    unit = keywords.encoder.step_features if name in ("crnn", "tcn") else 1
    n_frames = 60
    x = torch.randn(2, n_frames, 20, generator=torch.Generator().manual_seed(1))
    state, at, outs = keywords.initial_state(2), 0, []
    for n in [*(unit * cut for cut in cuts), n_frames]:
        out, state = keywords.step(x[:, at : at + n], state)
        outs.append(out)
        at = min(n_frames, at + n)
    outs.append(keywords.finish(state))
    whole, n_scores = keywords(x, torch.tensor([n_frames, n_frames]))
    assert n_scores.tolist() == [whole.shape[1]] * 2
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- the detector


def test_the_front_end_of_a_spec() -> None:
    waveform = noise(16_000)
    for features, kind in ((MEL, LogMel), (PCEN, Pcen), (MICRO, Microfrontend)):
        made = frontend_of(features)
        assert type(made) is kind
        assert np.array_equal(made(waveform), kind(features)(waveform))


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_are_smoothed_posteriors(name: str) -> None:
    system = TorchKeywordSystem(model(name, PCEN, smoothing_ms=250))
    assert (system.keywords, system.frame_s) == (WORDS, spec(name, PCEN).frame_s)
    waveform = noise(27_200)
    posteriors, scores = system.posteriors(waveform), system.score(waveform)
    assert scores.dtype == np.float32
    assert scores.shape == (len(posteriors), 2)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(posteriors.sum(1), 1, rtol=1e-5)
    n = system.spec.smoothing_frames
    assert n > 1
    for t in (0, 1, n, len(scores) - 1):
        mean = posteriors[max(0, t + 1 - n) : t + 1, 1:].mean(0)
        np.testing.assert_allclose(scores[t], mean, rtol=1e-5)
    # A score for every frame_s of audio, to the last frame that is not whole.
    assert len(scores) == pytest.approx(1.7 / system.frame_s, abs=1.1)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_a_score_does_not_know_the_future(name: str, features: AnyFeatureSpec) -> None:
    """Scores up to t are the same whatever follows: as a stream would have given them."""
    system = TorchKeywordSystem(model(name, features, smoothing_ms=100))
    waveform = noise(32_000)
    other = waveform.copy()
    cut = 17_000
    other[cut:] = noise(32_000, seed=5)[cut:]
    ours, theirs = system.score(waveform), system.score(other)
    # A feature frame's end, and the rest of a conformer's chunk, reach beyond the score.
    ahead = (0.02 if features is MICRO else 0.015) + (0.16 if name == "conformer" else 0)
    same = int((cut / 16_000 - ahead) / system.frame_s)
    np.testing.assert_allclose(ours[:same], theirs[:same], atol=1e-5)
    assert np.abs(ours[same:] - theirs[same:]).max() > 1e-5


def test_windows_end_where_their_scores_are() -> None:
    """Score t is that of the window of features that ends with hop t, zeros before the start."""
    keywords = model("crnn-windowed", PCEN)
    system = TorchKeywordSystem(keywords)
    waveform = noise(16_000)
    features = torch.from_numpy(Pcen(PCEN)(waveform))
    padded = torch.cat([torch.zeros(31 - 7, 20), features])
    posteriors = system.posteriors(waveform)
    assert len(posteriors) == len(features) // 7
    for t in (0, 2, len(posteriors) - 1):
        window = padded[7 * t : 7 * t + 31]
        logits, _ = keywords(window[None], torch.tensor([31]))
        expected = logits[0, 0].softmax(-1).detach().numpy()
        np.testing.assert_allclose(posteriors[t], expected, atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_audio_too_short_for_a_score_has_none(name: str) -> None:
    system = TorchKeywordSystem(model(name))
    for n in (0, 1, 399, 401):
        waveform = noise(16_000)[:n]
        assert system.score(waveform).shape[1] == 2
    assert system.score(noise(16_000)[:0]).shape == (0, 2)


@given(st.integers(0, 12), st.integers(1, 6), st.integers(1, 3))
def test_smoothing_is_a_running_mean(n_frames: int, n: int, n_keywords: int) -> None:
    rng = np.random.default_rng(prod((n_frames + 1, n, n_keywords)))
    scores = rng.random((n_frames, n_keywords), np.float32)
    found = smoothed(scores, n)
    assert found.shape == scores.shape
    for t in range(n_frames):
        np.testing.assert_allclose(found[t], scores[max(0, t + 1 - n) : t + 1].mean(0), rtol=1e-5)


def test_smoothing_stays_within_0_and_1_for_hours() -> None:
    scores = np.ones((500_000, 1), np.float32)
    scores[::3] = 0.3
    found = smoothed(scores, 5)
    assert found.max() <= 1
    np.testing.assert_allclose(
        found[-6:, 0], [np.mean(scores[k - 4 : k + 1]) for k in range(499_994, 500_000)], rtol=1e-5
    )
