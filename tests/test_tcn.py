"""The encoder of temporal convolutions, its layers and its batch norm."""

from __future__ import annotations

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import FeatureSpec, TcnSpec
from edge_imputer.train.encoders import TcnEncoder, build_encoder
from edge_imputer.train.encoders.tcn import Stem
from edge_imputer.train.layers.depthwise import CausalDepthwiseConv1d, Pointwise
from edge_imputer.train.layers.norm import MaskedBatchNorm1d

FEATURES = FeatureSpec(n_mels=6)
SMALL = TcnSpec(channels=5, kernel=3, stacks=((1, 2), (1, 3)))
PARTS = st.lists(st.integers(1, 5), min_size=1, max_size=6)
SEEDS = st.integers(0, 99)


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with norms as after training: statistics and scales that are not 0 and 1."""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return module.double().eval()


def encoder(spec: TcnSpec = SMALL, seed: int = 0) -> TcnEncoder:
    torch.manual_seed(seed)
    return trained(TcnEncoder(spec, FEATURES), seed)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# ------------------------------------------------------------------------------ batch norm


def rows_of(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)])


@given(kernel=st.integers(1, 4), dilation=st.integers(1, 3), seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_depthwise_convolutions_have_the_right_derivatives(
    kernel: int, dilation: int, seed: int
) -> None:
    layer = trained(CausalDepthwiseConv1d(3, kernel, dilation), seed)
    x = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    inputs = (x, layer.weight)  # the latter is changed in place
    assert torch.autograd.gradcheck(lambda x, _: layer(x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, _: layer(x), inputs)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.sampled_from([0.1, None]), SEEDS)
def test_masked_norm_is_the_norm_of_the_valid_frames(sizes, momentum, seed):
    torch.manual_seed(seed)
    lengths = torch.tensor([2, *sizes])
    ours = MaskedBatchNorm1d(3, momentum=momentum).double()
    torch_s = nn.BatchNorm1d(3, momentum=momentum).double()
    for _ in range(2):
        x = noise(len(lengths), 7, 3).requires_grad_()
        weight = noise(len(lengths), 7, 3)
        out, expected = ours(x, lengths), torch_s(rows_of(x, lengths))
        close(rows_of(out, lengths), expected)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        (want,) = torch.autograd.grad((expected * rows_of(weight, lengths)).sum(), x)
        close(grad, want)
    for name, value in torch_s.state_dict().items():
        close(ours.state_dict()[name], value)


def test_masked_norm_without_padding_is_torchs_and_loads_its_weights():
    x, full = noise(3, 5, 4), torch.tensor([5, 5, 5])
    torch_s = nn.BatchNorm1d(4).double()
    ours = [MaskedBatchNorm1d(4).double() for _ in range(2)]
    for norm, lengths in zip(ours, (full, None), strict=True):
        norm.load_state_dict(torch_s.state_dict())
        close(norm(x, lengths), nn.BatchNorm1d(4).double()(x.transpose(1, 2)).transpose(1, 2))
    torch_s(x.transpose(1, 2))
    for norm in ours:
        close(norm.running_mean, torch_s.running_mean)
        close(norm.running_var, torch_s.running_var)
        close(norm.eval()(x, full), torch_s.eval()(x.transpose(1, 2)).transpose(1, 2))


def test_masked_norm_ignores_whatever_stands_in_the_padding():
    x, lengths = noise(2, 6, 3), torch.tensor([4, 6])
    outs = []
    for filling in (0.0, 1e9, torch.nan):
        norm = MaskedBatchNorm1d(3).double()
        x[0, 4:] = filling
        outs.append((norm(x, lengths), norm.running_mean, norm.running_var))
    for out in outs[1:]:
        for got, expected in zip(out, outs[0], strict=True):
            assert torch.equal(got, expected)
    assert torch.all(outs[0][0][0, 4:] == 0)


def test_masked_norm_serves_convolutions_over_time_and_frequency():
    x = noise(2, 3, 5, 4)  # (B, C, T, F)
    ours, torch_s = MaskedBatchNorm1d(3).double(), nn.BatchNorm2d(3).double()
    ours.load_state_dict(torch_s.state_dict())
    padded = F.pad(x, (0, 0, 0, 2))
    out = ours(padded.movedim(1, -1), torch.tensor([5, 5])).movedim(-1, 1)
    close(out[:, :, :5], torch_s(x))
    close(ours.running_var, torch_s.running_var)


# ------------------------------------------------------------------------------ layers


@settings(max_examples=25, deadline=None)
@given(PARTS, st.integers(1, 5), st.integers(1, 4), SEEDS)
def test_depthwise_streaming_equals_batch(parts, kernel, dilation, seed):
    torch.manual_seed(seed)
    layer = trained(CausalDepthwiseConv1d(3, kernel, dilation), seed)
    x = noise(2, sum(parts), 3)
    state, outs = layer.initial_state(2), []
    shapes = [tensor.shape for tensor in state]
    for chunk in x.split(parts, dim=1):
        out, state = layer.step(chunk, state)
        assert [tensor.shape for tensor in state] == shapes
        outs.append(out)
    close(torch.cat(outs, 1), layer(x))


@torch.no_grad()
def test_depthwise_padded_equals_alone():
    layer = trained(CausalDepthwiseConv1d(3, 3, 2))
    x, lengths = noise(3, 12, 3), torch.tensor([5, 12, 1])
    out = layer(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        close(out[row, :n], layer(x[row : row + 1, :n], lengths[row : row + 1])[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), SEEDS)
@torch.no_grad()
def test_depthwise_fused_is_a_plain_convolution(kernel, dilation, seed):
    layer = trained(CausalDepthwiseConv1d(3, kernel, dilation), seed)
    weight, bias = layer.fused()
    assert (weight.shape, bias.shape) == ((3, 1, kernel), (3,))
    x = noise(2, 9, 3)
    padded = F.pad(x.transpose(1, 2), (layer.left, 0))
    close(F.conv1d(padded, weight, bias, dilation=dilation, groups=3).transpose(1, 2), layer(x))


@pytest.mark.parametrize("relu", [False, True])
@torch.no_grad()
def test_pointwise_fused_is_a_plain_product(relu):
    layer = trained(Pointwise(4, 3, relu=relu))
    x = noise(2, 5, 4)
    out = F.linear(x, *layer.fused())
    close(F.relu(out) if relu else out, layer(x))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (5, 1), (3, 2), (5, 4), (4, 4)])
@torch.no_grad()
def test_stem_fused_is_a_plain_strided_convolution(kernel, stride):
    layer = trained(Stem(6, 3, kernel, stride))
    x = noise(2, 4 * stride, 6)
    padded = F.pad(x.transpose(1, 2), (kernel - stride, 0))
    out = F.relu(F.conv1d(padded, *layer.fused(), stride=stride))
    close(out.transpose(1, 2), layer(x, torch.tensor([4, 4])))


# ------------------------------------------------------------------------------ the encoder

SPECS = st.builds(
    lambda subsampling, extra, **kwargs: TcnSpec(
        channels=4, subsampling=subsampling, stem_kernel=subsampling + extra, **kwargs
    ),
    subsampling=st.integers(1, 4),
    extra=st.integers(0, 3),
    kernel=st.integers(2, 4),
    stacks=st.lists(
        st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3
    ).map(tuple),
    sum_stacks=st.booleans(),
)


def stream(model: TcnEncoder, x: Tensor, parts: list[int]) -> Tensor:
    """The encoder's output by steps of `parts` encoder frames; the state keeps its shapes."""
    state, outs = model.initial_state(len(x)), []
    shapes = [tensor.shape for tensor in state]
    for chunk in x.split([model.subsampling * p for p in parts], dim=1):
        out, state = model.step(chunk, state)
        assert [tensor.shape for tensor in state] == shapes
        outs.append(out)
    return torch.cat(outs, 1)


@settings(max_examples=30, deadline=None)
@given(SPECS, PARTS, SEEDS)
@torch.no_grad()
def test_encoder_streaming_equals_batch(spec, parts, seed):
    model = encoder(spec, seed)
    x = noise(2, spec.subsampling * sum(parts), FEATURES.n_mels)
    whole, lengths = model(x, torch.tensor([x.shape[1]] * 2))
    assert lengths.tolist() == [sum(parts)] * 2
    assert whole.shape == (2, sum(parts), model.d_model)
    close(stream(model, x, parts), whole)
    single = model.float()
    size = max(1, whole.abs().max().item())
    close(stream(single, x.float(), parts), whole.float(), 1e-5 * size)


@torch.no_grad()
def test_clip_alone_equals_clip_in_padded_batch():
    model = encoder()
    x, lengths = noise(3, 48, FEATURES.n_mels), torch.tensor([16, 48, 32])
    out, frames = model(x, lengths)
    for row, (n, t) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone, _ = model(x[row : row + 1, :n], lengths[row : row + 1])
        close(out[row, :t], alone[0])


def test_padding_does_not_change_training():
    x, lengths = noise(2, 24, FEATURES.n_mels), torch.tensor([16, 24])
    results = []
    for extra in (0, 32):
        model = encoder().train()
        padded = F.pad(x, (0, 0, 0, extra), value=7.0).requires_grad_()
        out, frames = model(padded, lengths)
        loss = sum(row[:n].square().sum() for row, n in zip(out, frames.tolist(), strict=True))
        loss.backward()
        assert torch.all(padded.grad[0, 16:] == 0)
        weights = [parameter.grad for parameter in model.parameters()]
        results.append([out[:, :6], padded.grad[:, :24], *weights, *model.buffers()])
    for a, b in zip(*results, strict=True):
        close(a, b)


def test_encoder_is_convolutions_additions_and_their_relus():
    """What a device computes: the folded weights and nothing else give the same."""
    model = encoder(TcnSpec(channels=4, subsampling=3, kernel=3, stacks=((1, 2), (3,))))
    x = noise(1, 30, FEATURES.n_mels)

    def conv(layer: nn.Module, x: Tensor, left: int = 0, **kwargs: int) -> Tensor:
        return F.conv1d(F.pad(x, (left, 0)), *layer.fused(), **kwargs)

    def product(layer: nn.Module, x: Tensor) -> Tensor:
        weight, bias = layer.fused()
        return F.conv1d(x, weight.unsqueeze(2), bias)

    with torch.no_grad():
        out = F.relu(conv(model.stem, x.transpose(1, 2), left=2, stride=3))
        scales = []
        for stack, dilations in zip(model.stacks, model.spec.stacks, strict=True):
            for block, dilation in zip(stack, dilations, strict=True):
                inner = conv(block.depthwise, out, 2 * dilation, dilation=dilation, groups=4)
                inner = F.relu(product(block.pointwise, inner))
                out = F.relu(out + product(block.project, inner))
            scales.append(out)
        close((scales[0] + scales[1]).transpose(1, 2), model(x, torch.tensor([30]))[0])


def test_sum_of_stacks_is_an_option():
    x, lengths = noise(1, 8, FEATURES.n_mels), torch.tensor([8])
    models = [encoder(msgspec.structs.replace(SMALL, sum_stacks=s)) for s in (True, False)]
    first = encoder(msgspec.structs.replace(SMALL, stacks=SMALL.stacks[:1]))
    first.load_state_dict(models[0].state_dict(), strict=False)
    both, last = (model(x, lengths)[0] for model in models)
    close(both, last + first(x, lengths)[0])


@torch.no_grad()
def test_depth_does_not_let_the_output_grow():
    def size(depth: int, scaled: bool) -> float:
        torch.manual_seed(0)
        spec = TcnSpec(channels=16, stacks=((1,) * depth,), sum_stacks=False)
        model = TcnEncoder(spec, FEATURES)
        if not scaled:
            for block in model.stacks[0]:
                block.scale_residual(1)
        out, _ = model(torch.randn(2, 160, FEATURES.n_mels), torch.tensor([160, 160]))
        return float(out.square().mean().sqrt())

    scaled, unscaled = ([size(depth, s) for depth in (8, 16, 32, 64)] for s in (True, False))
    assert max(scaled) < 1.5 * min(scaled)
    assert unscaled[-1] > 2 * unscaled[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"subsampling": 5}, "1, 2, 3 or 4"),
        ({"subsampling": 0}, "1, 2, 3 or 4"),
        ({"stem_kernel": 3}, "skipped"),
        ({"kernel": 1}, "2 taps"),
        ({"stacks": ()}, "at least one block"),
        ({"stacks": ((1,), ())}, "at least one block"),
        ({"stacks": ((1, -2),)}, "dilation >= 1"),
    ],
)
def test_bad_specs_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        build_encoder(TcnSpec(**changes), FEATURES)


def test_encoder_refuses_partial_frames_and_other_features():
    model = encoder()
    for shape in ((1, 3, FEATURES.n_mels), (1, 4, 7)):
        with pytest.raises(ValueError, match="multiple of 4"):
            model.step(noise(*shape), model.initial_state())
        with pytest.raises(ValueError, match="multiple of 4"):
            model(noise(*shape), torch.tensor([4]))
