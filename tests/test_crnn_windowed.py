"""The windowed CRNN: the paper's sizes, its layers' definitions, and sliding it over audio."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.pcen import Pcen
from edge_imputer.specs import FeatureSpec, PcenSpec, WindowedCrnnSpec
from edge_imputer.train.encoders.crnn_windowed import WindowedCrnnEncoder, WindowNetwork
from edge_imputer.train.encoders.windowed import GROUP, same_padding
from edge_imputer.train.layers.recurrent import OneBiasGru

from .fakes import noise

PAPER = WindowedCrnnSpec()
FEATURES = PcenSpec(centred=True)
SMALL = WindowedCrnnSpec(
    channels=3,
    kernel_time=4,
    stride_time=3,
    hidden=2,
    dense=4,
    n_classes=3,
    window_frames=12,
    hop_frames=5,
)
SMALL_MEL = FeatureSpec(n_mels=7)


def small(seed: int = 0, **changes: int) -> WindowedCrnnEncoder:
    torch.manual_seed(seed)
    spec = msgspec.structs.replace(SMALL, **changes)
    return WindowedCrnnEncoder(spec, SMALL_MEL).double().eval()


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------ sizes


def test_the_paper_has_229_090_parameters() -> None:
    model = WindowedCrnnEncoder(PAPER, FEATURES)
    assert trainable(model) == sum(p.numel() for p in model.parameters()) == 229_090
    assert not list(model.buffers())
    network = model.network
    layers = [network.conv, *network.gru, network.dense, network.classifier]
    assert [trainable(layer) for layer in layers] == [3_232, 129_216, 18_624, 77_888, 130]
    assert PAPER.n_parameters(40) == 229_090
    assert PAPER.n_macs(40) == 4_095_616
    # With torch's own GRU, which has two biases a gate, the same network has 229,474.
    torch_gru = [nn.GRU(640, 32, bidirectional=True), nn.GRU(64, 32, bidirectional=True)]
    others = [network.conv, network.dense, network.classifier]
    assert sum(map(trainable, [*others, *torch_gru])) == 229_474


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden": 8, "dense": 32}, 45_410),
        ({"channels": 64}, 355_202),
        ({"channels": 128}, 607_426),
    ],
)
def test_the_papers_family(changes: dict[str, int], expected: int) -> None:
    spec = WindowedCrnnSpec(**changes)
    assert trainable(WindowedCrnnEncoder(spec, FEATURES)) == spec.n_parameters(40) == expected


def test_the_papers_shapes() -> None:
    network = WindowNetwork(PAPER, 40)
    window = torch.randn(2, 151, 40)
    assert network.convolve(window).shape == (2, 19, 20, 32)
    assert PAPER.conv_shape(40) == (19, 20, 32)
    assert network(window).shape == (2, 2)
    assert (PAPER.d_model, PAPER.subsampling) == (2, 10)


SIZES = st.integers(1, 3)


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        WindowedCrnnSpec,
        channels=SIZES,
        kernel_time=st.integers(3, 5),
        kernel_freq=st.integers(2, 4),
        stride_time=SIZES,
        stride_freq=st.integers(1, 2),
        gru_layers=SIZES,
        hidden=SIZES,
        dense=SIZES,
        n_classes=st.integers(2, 4),
        window_frames=st.integers(5, 17),
        hop_frames=st.integers(1, 5),
    ),
    st.integers(1, 11),
)
def test_the_spec_knows_sizes_and_shapes(spec: WindowedCrnnSpec, n_mels: int) -> None:
    network = WindowNetwork(spec, n_mels)
    window = torch.randn(2, spec.window_frames, n_mels)
    assert trainable(network) == spec.n_parameters(n_mels)
    assert network.convolve(window).shape == (2, *spec.conv_shape(n_mels))
    assert network(window).shape == (2, spec.n_classes)


# ------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (151, 20, 8, (6, 7)),
        (40, 5, 2, (1, 2)),
        (5, 3, 1, (1, 1)),
        (5, 2, 1, (0, 1)),
        (6, 2, 2, (0, 0)),
        (6, 2, 5, (0, 1)),
        (9, 1, 4, (0, 0)),
    ],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_the_convolution_pads_as_tensorflow_does() -> None:
    network = WindowNetwork(PAPER, 40).double()
    window = random(1, 151, 40)
    out = network.convolve(window)
    kernel, bias = network.conv.weight[:, 0], network.conv.bias
    assert bias is not None
    for u, f in ((0, 0), (9, 10), (18, 19)):  # a corner, the middle, the other corner
        expected = bias.clone()
        for i in range(20):
            for j in range(5):
                t, m = 8 * u + i - 6, 2 * f + j - 1
                if 0 <= t < 151 and 0 <= m < 40:
                    expected = expected + kernel[:, i, j] * window[0, t, m]
        torch.testing.assert_close(out[0, u, f], expected.relu(), rtol=0, atol=1e-12)


def test_the_gru_is_its_formula() -> None:
    torch.manual_seed(0)
    width, hidden = 5, 3
    layer = OneBiasGru(width, hidden).double()
    for name, parameter in layer.gru.named_parameters():
        if name.startswith("weight_ih"):
            assert not parameter[:, -1].any()  # the biases begin at 0
            nn.init.normal_(parameter.data[:, -1])
        else:
            for gate in parameter.split(hidden):
                eye = torch.eye(hidden, dtype=torch.float64)
                torch.testing.assert_close(gate @ gate.T, eye, rtol=0, atol=1e-6)
    x = random(2, 6, width)
    out = layer(x)

    def run(x: Tensor, suffix: str) -> Tensor:
        w = getattr(layer.gru, f"weight_ih_l0{suffix}")
        (w_r, w_z, w_n), (b_r, b_z, b_n) = w[:, :-1].chunk(3), w[:, -1].chunk(3)
        u_r, u_z, u_n = getattr(layer.gru, f"weight_hh_l0{suffix}").chunk(3)
        h, outs = torch.zeros(2, hidden, dtype=torch.float64), []
        for frame in x.unbind(1):
            r = torch.sigmoid(frame @ w_r.T + b_r + h @ u_r.T)
            z = torch.sigmoid(frame @ w_z.T + b_z + h @ u_z.T)
            n = torch.tanh(frame @ w_n.T + b_n + r * (h @ u_n.T))
            h = (1 - z) * n + z * h
            outs.append(h)
        return torch.stack(outs, 1)

    expected = torch.cat([run(x, ""), run(x.flip(1), "_reverse").flip(1)], 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_the_network_is_its_layers_in_the_papers_order() -> None:
    network = WindowNetwork(PAPER, 40).double()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    windows = random(3, 151, 40)
    x = network.convolve(windows).reshape(3, 19, 20 * 32)
    first, second = network.gru
    x = second(first(x)).reshape(3, 19 * 64)
    x = (x @ network.dense.weight.T + network.dense.bias).relu()
    expected = x @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(windows), expected, rtol=0, atol=1e-12)


def test_every_parameter_and_frame_has_a_gradient() -> None:
    model = small()
    x = random(4, SMALL.window_frames, 7).requires_grad_()
    logits, _ = model(x, torch.full((4,), SMALL.window_frames))
    F.cross_entropy(logits[:, 0], torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert x.grad is not None
    assert x.grad.abs().sum((0, 2)).min() > 0


def test_the_paper_learns_to_tell_two_sounds_apart() -> None:
    torch.manual_seed(0)
    network = WindowNetwork(PAPER, 40)
    labels = torch.arange(16) % 2
    windows = torch.rand(16, 151, 40)
    windows[labels == 1, 60:90, 10:20] += 1.0
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(12):
        loss = F.cross_entropy(network(windows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(network(windows).argmax(1), labels)


def test_no_shape_depends_on_the_data() -> None:
    """Tensors without data go through: what an exporter needs."""
    network = WindowNetwork(PAPER, 40).to("meta")
    assert network(torch.empty(1, 151, 40, device="meta")).shape == (1, 2)


# ------------------------------------------------------------------------------ windows


@pytest.mark.parametrize("seconds", [1.5, 1.51, 1.6, 1.61, 2.0, 10.0, 12.34])
def test_a_score_every_100_ms(seconds: float) -> None:
    n_frames = FEATURES.n_frames(round(seconds * 16_000))
    expected = math.ceil(round((seconds - 1.5) / 0.1, 6)) + 1
    assert PAPER.n_windows(n_frames) == expected


def test_scores_of_audio() -> None:
    torch.manual_seed(0)
    model = WindowedCrnnEncoder(PAPER, FEATURES).eval()
    features = torch.from_numpy(Pcen(FEATURES)(noise(32_500)))[None]
    with torch.no_grad():
        scores = model.scores(features)  # (1, 7, 2)
        assert scores.shape == (1, 7, 2)
        torch.testing.assert_close(scores.sum(-1), torch.ones(1, 7))
        third = model.network(features[:, 20:171]).softmax(-1)
        torch.testing.assert_close(scores[:, 2], third, rtol=0, atol=1e-6)
        last = F.pad(features[:, 60:], (0, 0, 0, 211 - features.shape[1]))
        torch.testing.assert_close(scores[:, 6], model.network(last).softmax(-1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from([0, 1, 5]), st.integers(0, 30)), max_size=8),
    st.integers(1, 12),
    st.integers(0, 99),
)
@torch.no_grad()
def test_streaming_equals_batch(sizes: list[int], hop: int, seed: int) -> None:
    model = small(seed, hop_frames=hop)
    x = random(2, sum(sizes), 7, seed=seed)
    state, outs, taken = model.initial_state(2), [], 0
    for chunk in x.split(sizes, dim=1):
        out, state = model.step(chunk, state)
        outs.append(out)
        taken += chunk.shape[1]
        due = max(0, 1 + (taken - 12) // hop)  # a score comes with its window's last frame
        assert sum(o.shape[1] for o in outs) == due
        assert state[0].shape[1] < 12
    outs.append(model.finish(state))
    whole, n_windows = model(x, torch.full((2,), taken))
    assert n_windows.tolist() == [model.spec.n_windows(taken)] * 2
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_streaming_the_paper_frame_by_frame() -> None:
    torch.manual_seed(0)
    model = WindowedCrnnEncoder(PAPER, FEATURES).eval()
    x = torch.rand(1, 175, 40)
    state, outs = model.initial_state(), []
    for frame in x.split(1, 1):
        out, state = model.step(frame, state)
        outs.append(out)
    assert [k for k, out in enumerate(outs) if out.shape[1]] == [150, 160, 170]
    outs.append(model.finish(state))
    whole, _ = model(x, torch.tensor([175]))
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_clip_alone_equals_the_clip_in_a_padded_batch() -> None:
    model = small()
    lengths = torch.tensor([3, 12, 13, 40, 0])
    x = random(5, 40, 7)  # what stands in the padding is not zero
    logits, n_windows = model(x, lengths)
    assert n_windows.tolist() == [1, 1, 2, 7, 0]
    for row, (length, n) in enumerate(zip(lengths.tolist(), n_windows.tolist(), strict=True)):
        alone, _ = model(x[row : row + 1, :length], lengths[row : row + 1])
        assert alone.shape == (1, n, 3)
        torch.testing.assert_close(logits[row, :n], alone[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_many_windows_are_computed_in_groups() -> None:
    model = small()
    seen: list[int] = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x = random(2, 12 + 5 * GROUP, 7)
    logits, _ = model(x, torch.full((2,), x.shape[1]))
    assert logits.shape[1] == GROUP + 1
    assert max(seen) <= GROUP
    assert sum(seen) == 2 * (GROUP + 1)
    last = model.network(x[:, -12:])
    torch.testing.assert_close(logits[:, -1], last, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": 0}, "channels, gru_layers, hidden and dense >= 1"),
        ({"gru_layers": 0}, "got 32, 0, 32 and 64"),
        ({"dense": -1}, "dense >= 1"),
        ({"n_classes": 1}, "n_classes >= 2"),
        ({"stride_time": 21}, "kernel_time >= stride_time >= 1, got 20 and 21"),
        ({"stride_freq": 0}, "kernel_freq >= stride_freq >= 1"),
        ({"hop_frames": 152}, "a longer hop skips frames"),
        ({"hop_frames": 0}, "1 <= hop_frames"),
    ],
)
def test_contradictory_specs_are_refused(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        WindowedCrnnEncoder(msgspec.structs.replace(PAPER, **changes), FEATURES)


def test_the_spec_is_named_by_its_kind() -> None:
    written = msgspec.json.encode(PAPER)
    assert msgspec.json.decode(written)["kind"] == "crnn-windowed"
    assert msgspec.json.decode(written, type=WindowedCrnnSpec) == PAPER


def test_features_of_another_size_are_refused() -> None:
    model = small()
    for bad in (torch.zeros(1, 5, 6), torch.zeros(5, 7)):
        with pytest.raises(ValueError, match=r"expected features \(B, T, 7\), got"):
            model.step(bad.double(), model.initial_state())
        with pytest.raises(ValueError, match="expected features"):
            model(bad.double(), torch.tensor([5]))
