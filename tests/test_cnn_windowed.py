"""The windowed CNN: sizes, shapes, its definition, and that it slides as the windowed CRNN does."""

from __future__ import annotations

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_imputer.cli.main import main
from edge_imputer.errors import SpecError
from edge_imputer.specs import FeatureSpec, PcenSpec, WindowedCnnSpec, WindowedCrnnSpec, preset
from edge_imputer.train.encoders import WindowedCnnEncoder, build_encoder
from edge_imputer.train.encoders.cnn_windowed import CnnNetwork

CONTROL = WindowedCnnSpec()
FEATURES = PcenSpec(centred=True)
SMALL = WindowedCnnSpec(
    channels=(2, 3),
    kernel_time=(4, 2),
    kernel_freq=(3, 2),
    stride_time=2,
    pool_freq=2,
    linear=3,
    dense=4,
    n_classes=3,
    window_frames=12,
    hop_frames=5,
)
SMALL_MEL = FeatureSpec(n_mels=8)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def small() -> WindowedCnnEncoder:
    torch.manual_seed(0)
    return WindowedCnnEncoder(SMALL, SMALL_MEL).double().eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_control_has_229_704_parameters() -> None:
    model = WindowedCnnEncoder(CONTROL, FEATURES)
    assert trainable(model) == CONTROL.n_parameters(40) == 229_704
    assert not list(model.buffers())
    network = model.network
    assert isinstance(network, CnnNetwork)
    layers = [
        network.first,
        network.second,
        network.linear,
        network.dense,
        network.classifier,
    ]
    assert [trainable(layer) for layer in layers] == [7_406, 103_096, 114_720, 4_224, 258]
    assert CONTROL.n_macs(40) == 4_128_960 + 6_594_560 + 114_688 + 4_352
    # Within 0.3 % of the windowed CRNN's, and larger: it is not outdone for want of parameters.
    crnn = WindowedCrnnSpec().n_parameters(40)
    assert crnn < CONTROL.n_parameters(40) < 1.003 * crnn
    assert CONTROL.n_parameters(40) <= 250_000


def test_the_controls_shapes() -> None:
    network = CnnNetwork(CONTROL, 40)
    first, second = network.convolve(torch.randn(2, 151, 40))
    assert first.shape == (2, 46, 17, 11)
    assert second.shape == (2, 56, 8, 8)
    assert CONTROL.conv_shapes(40) == ((17, 11), (8, 8))
    assert network(torch.randn(2, 151, 40)).shape == (2, 2)
    assert (CONTROL.d_model, CONTROL.subsampling) == (2, 10)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        WindowedCnnSpec,
        channels=PAIRS,
        kernel_time=PAIRS,
        kernel_freq=PAIRS,
        stride_time=st.just(1),
        pool_freq=st.integers(1, 2),
        linear=st.integers(1, 3),
        dense=st.integers(1, 3),
        n_classes=st.integers(2, 4),
        window_frames=st.integers(6, 11),
        hop_frames=st.integers(1, 5),
    ),
    st.integers(8, 11),
)
def test_the_spec_knows_sizes_and_shapes(spec: WindowedCnnSpec, n_mels: int) -> None:
    network = CnnNetwork(spec, n_mels)
    window = torch.randn(2, spec.window_frames, n_mels)
    assert trainable(network) == spec.n_parameters(n_mels)
    found = tuple((*x.shape[2:],) for x in network.convolve(window))
    assert found == spec.conv_shapes(n_mels)
    assert network(window).shape == (2, spec.n_classes)


def test_macs_are_counted_right() -> None:
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        counts.append(out[0].numel() * layer.weight[0].numel())

    network = CnnNetwork(SMALL, 8)
    for layer in network.children():
        layer.register_forward_hook(count)
    network(torch.randn(1, 12, 8))
    assert len(counts) == 5
    assert sum(counts) == SMALL.n_macs(8)


def test_its_definition() -> None:
    """Convolution, ReLU, maximum over bands, convolution, ReLU; linear, dense, classifier."""
    network = small().network
    assert isinstance(network, CnnNetwork)
    window = random(1, 12, 8)
    taps = window[0].unfold(0, 4, 2).unfold(1, 3, 1)  # (5, 6, 4, 3)
    first = torch.einsum("tfxy,cxy->ctf", taps, network.first.weight[:, 0])
    first = (first + network.first.bias[:, None, None]).clamp(min=0)
    pooled = first.unflatten(2, (3, 2)).amax(-1)  # (2, 5, 3)
    taps = pooled.unfold(1, 2, 1).unfold(2, 2, 1)  # (2, 4, 2, 2, 2)
    second = torch.einsum("ctfxy,dcxy->dtf", taps, network.second.weight)
    second = (second + network.second.bias[:, None, None]).clamp(min=0)
    flat = second.permute(1, 2, 0).flatten()
    hidden = network.dense(network.linear(flat)).clamp(min=0)
    torch.testing.assert_close(network(window)[0], network.classifier(hidden))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 45), st.lists(st.integers(1, 20), max_size=6))
def test_streaming_equals_batch(n_frames: int, cuts: list[int]) -> None:
    model = small()
    x = random(2, n_frames, 8, seed=n_frames)
    state, at, outs = model.initial_state(2), 0, []
    for n in [*cuts, n_frames]:
        out, state = model.step(x[:, at : at + n], state)
        outs.append(out)
        at += n
    outs.append(model.finish(state))
    whole, n_windows = model(x, torch.tensor([n_frames, n_frames]))
    assert n_windows.tolist() == [SMALL.n_windows(n_frames)] * 2
    torch.testing.assert_close(torch.cat(outs, 1), whole)


def test_a_clip_alone_equals_the_clip_in_a_padded_batch() -> None:
    model = small()
    lengths = torch.tensor([3, 12, 33])
    x = random(3, 40, 8)
    padded, n_windows = model(x, lengths)
    for i, length in enumerate(lengths):
        alone, _ = model(x[i : i + 1, :length], lengths[i : i + 1])
        assert n_windows[i] == alone.shape[1]
        torch.testing.assert_close(padded[i, : n_windows[i]], alone[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_classes": 1}, "n_classes >= 2"),
        ({"channels": (4, 0)}, "channels, kernels, stride, pool and widths >= 1"),
        ({"stride_time": 21}, "at most the first kernel's 20 frames, got 21"),
        ({"kernel_time": (20, 18)}, "kernels that fit a window of 151 frames and any bands"),
        ({"hop_frames": 152}, "a longer hop skips frames"),
    ],
)
def test_contradictory_specs_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        msgspec.structs.replace(CONTROL, **changes).check()


def test_too_few_bands_are_refused() -> None:
    with pytest.raises(SpecError, match="a window of 151 frames and 18 bands"):
        build_encoder(CONTROL, FeatureSpec(n_mels=18))
    build_encoder(CONTROL, FeatureSpec(n_mels=19))


def test_classes_are_the_specs() -> None:
    many = msgspec.structs.replace(CONTROL, n_classes=36)
    assert many.n_parameters(40) == 229_704 + 34 * 129
    assert build_encoder(many, FEATURES)(torch.zeros(1, 151, 40), torch.tensor([151]))[0].shape == (
        1,
        1,
        36,
    )


def test_it_learns_and_every_weight_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = WindowedCnnEncoder(SMALL, SMALL_MEL)
    x, labels = torch.randn(6, 12, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        logits, _ = model(x, torch.full((6,), 12))
        loss = F.cross_entropy(logits[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < 1 < losses[0]


def test_info_shows_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert preset("cnn-windowed-229k") == CONTROL
    with pytest.raises(SystemExit, match="0"):
        main(["info", "cnn-windowed-229k"])
    shown = capsys.readouterr().out
    assert "229,704" in shown
    assert "network.second" in shown
