"""The streaming conformer: its layers, its branches, its gradients, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import AttentionSpec, ConformerSpec, FeatureSpec, preset
from edge_imputer.specs.presets import EncoderFile, read_encoder
from edge_imputer.train.encoders import ConformerEncoder, build_encoder
from edge_imputer.train.encoders.conformer import intermediate_ctc_loss
from edge_imputer.train.layers.conformer import make_norm
from edge_imputer.train.layers.inspect import describe
from edge_imputer.train.layers.subsampling import Subsampling, SubsamplingConv2d
from edge_imputer.train.objective import ctc_loss

FEATURES = FeatureSpec(n_mels=6)
SMALL = ConformerSpec(
    d_model=8,
    n_layers=2,
    subsampling=2,
    subsampling_channels=3,
    kernel=3,
    attention=AttentionSpec(heads=2, block=3, summaries=1, left_context=2, memory_blocks=2),
    dropout=0.0,
)
BRANCHED = msgspec.structs.replace(SMALL, n_layers=3, intermediate_ctc=(1, 2), n_tokens=5)
CONDITIONED = msgspec.structs.replace(BRANCHED, self_conditioned=True)


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def trained(module: nn.Module) -> nn.Module:
    """The module, in float64, as after training: no statistics, scales and biases of 0 and 1."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        if isinstance(norm, (nn.BatchNorm1d, nn.RMSNorm, nn.LayerNorm)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def encoder(
    spec: ConformerSpec = SMALL, seed: int = 0, features: FeatureSpec = FEATURES
) -> ConformerEncoder:
    torch.manual_seed(seed)
    return trained(ConformerEncoder(spec, features))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def whole(model: ConformerEncoder, x: Tensor) -> Tensor:
    """Frames of utterances without padding."""
    out, lengths = model(x, torch.full((len(x),), x.shape[1]))
    assert lengths.tolist() == [x.shape[1] // model.subsampling] * len(x)
    assert out.shape == (len(x), x.shape[1] // model.subsampling, model.d_model)
    return out


def stream(model: ConformerEncoder, x: Tensor, parts: list[int]) -> Tensor:
    """The same by steps of `parts` feature frames, and what is left at the end."""
    state, outs = model.initial_state(len(x)), []
    shapes = [(tensor.shape, tensor.dtype) for tensor in state[1:]]
    n_fed = 0
    for chunk in x.split(parts, 1):
        out, state = model.step(chunk, state)
        n_fed += chunk.shape[1]
        assert [(tensor.shape, tensor.dtype) for tensor in state[1:]] == shapes
        assert state[0].shape[1] == n_fed % model.step_features
        outs.append(out)
    return torch.cat([*outs, model.finish(state)], 1)


# ------------------------------------------------------------------------------ streams

ATTENTIONS = st.one_of(
    st.builds(AttentionSpec, pattern=st.just("local"), left_context=st.integers(0, 5)),
    st.builds(
        AttentionSpec,
        pattern=st.sampled_from(["fixed", "strided", "local+fixed"]),
        memory_blocks=st.integers(1, 3),
        head_mode=st.sampled_from(["merged", "split"]),
    ),
    st.just(SMALL.attention),
)
SPECS = st.builds(
    lambda attention, block, direction, subsampling, norm, fed_back: msgspec.structs.replace(
        CONDITIONED if fed_back else SMALL,
        attention=msgspec.structs.replace(
            attention, heads=2, block=block, summaries=1, direction=direction
        ),
        subsampling=subsampling,
        norm=norm,
    ),
    ATTENTIONS,
    block=st.integers(1, 4),
    direction=st.sampled_from(["chunk", "causal"]),
    subsampling=st.sampled_from([2, 4, 8]),
    norm=st.sampled_from(["rms", "layer"]),
    fed_back=st.booleans(),
)
PARTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(SPECS, PARTS, st.integers(0, 99))
@example(SMALL, [1], 0)  # not one encoder frame
@example(CONDITIONED, [6, 6, 12], 0)  # whole chunks: nothing is left over
@torch.no_grad()
def test_streaming_equals_batch(spec, parts, seed):
    model = encoder(spec, seed)
    x = noise(2, sum(parts), FEATURES.n_mels)
    expected = whole(model, x)
    close(stream(model, x, parts), expected)
    size = max(1, expected.abs().max().item()) if expected.numel() else 1
    close(stream(model.float(), x.float(), parts), expected.float(), 1e-5 * size)


@pytest.mark.parametrize("name", ["conformer-xs", "conformer-s", "conformer-m", "conformer-l"])
@torch.no_grad()
def test_presets_stream_in_float32(name):
    features = FeatureSpec()
    model = encoder(preset(name), features=features).float()
    x = torch.randn(1, 32 * 12 + 21, features.n_mels)  # more than the memory of 8 chunks
    close(stream(model, x, [33, 7, 360, 5]), whole(model, x), 1e-5)


@torch.no_grad()
def test_state_is_constant_once_whole_chunks_are_fed():
    model = encoder()
    x = noise(1, 6 * 40, FEATURES.n_mels)
    state = model.initial_state()
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state)
    for chunk in x.split(6, 1):
        out, state = model.step(chunk, state)
        assert out.shape == (1, 3, 8)
        assert sum(tensor.numel() * tensor.element_size() for tensor in state) == n_bytes


@torch.no_grad()
def test_a_step_of_a_whole_chunk_can_be_exported():
    """Static shapes, nothing that depends on data: torch.export takes it."""
    model = encoder(CONDITIONED)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, chunk: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            out, state = self.encoder.step(chunk, state)
            return out, *state

    x = noise(1, 6 * 5, FEATURES.n_mels)
    state = model.initial_state()
    exported = torch.export.export(Step(), (x[:, :6], *state)).module()
    outs = []
    for chunk in x.split(6, 1):
        out, *state = exported(chunk, *state)
        outs.append(out)
    close(torch.cat(outs, 1), whole(model, x))


@torch.no_grad()
def test_no_later_chunk_is_seen_however_deep():
    spec = msgspec.structs.replace(SMALL, n_layers=6)
    model = encoder(spec)
    x = noise(1, 30, FEATURES.n_mels)
    other = x.clone()
    other[:, 12:] += 1
    same = (whole(model, x) == whole(model, other))[0].all(1)
    assert same.tolist() == [True] * 6 + [False] * 9


@torch.no_grad()
def test_same_weights_serve_other_chunks():
    model = encoder()
    x = noise(2, 50, FEATURES.n_mels)
    outs = []
    for n_frames in (2, 6, 20):
        spec = SMALL.with_chunk(n_frames)
        assert spec.step_features == n_frames
        twin = encoder(spec, seed=1)
        twin.load_state_dict(model.state_dict())
        assert twin.step_features == n_frames
        outs.append(whole(twin, x))
        close(stream(twin, x, [13, 37]), outs[-1])
    close(outs[1], whole(model, x))
    assert not torch.allclose(outs[0], outs[2])


def test_whole_utterances_may_be_seen_both_ways():
    attention = AttentionSpec(heads=2, block=4, left_context=1, direction="bidirectional")
    model = encoder(msgspec.structs.replace(SMALL, attention=attention))
    assert model.receptive_field is None
    x = noise(1, 17, FEATURES.n_mels)
    other = x.clone()
    other[:, 14:] += 1
    assert (whole(model, x) != whole(model, other)).any(2).all()
    with pytest.raises(SpecError, match="to encode a stream, got bidirectional"):
        model.initial_state()


# ------------------------------------------------------------------------------ padding


@torch.no_grad()
def test_padded_equals_alone():
    model = encoder(CONDITIONED)
    x, lengths = noise(4, 33, FEATURES.n_mels), torch.tensor([9, 33, 20, 1])
    for row, n in enumerate(lengths.tolist()):
        x[row, n:] = math.nan
    out, frames, branches = model.forward_with_branches(x, lengths)
    assert frames.tolist() == [4, 16, 10, 0]
    for row, (n, t) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone, _, branches_alone = model.forward_with_branches(
            x[row : row + 1, :n], lengths[row : row + 1]
        )
        close(out[row, :t], alone[0])
        for got, expected in zip(branches, branches_alone, strict=True):
            close(got[row, :t], expected[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_padding_does_not_change_training(recompute):
    spec = msgspec.structs.replace(CONDITIONED, recompute=recompute)
    x, lengths = noise(2, 24, FEATURES.n_mels), torch.tensor([15, 24])
    results = []
    for extra, filling in ((0, 0.0), (32, 7.0), (8, math.nan)):
        model = encoder(spec).train()
        padded = F.pad(x, (0, 0, 0, extra), value=filling)
        padded[0, 15:] = filling
        padded.requires_grad_()
        out, frames, branches = model.forward_with_branches(padded, lengths)
        loss = sum(
            row[:n].square().sum()
            for rows in (out, *branches)
            for row, n in zip(rows, frames.tolist(), strict=True)
        )
        loss.backward()
        assert torch.all(padded.grad[0, 15:] == 0)
        weights = [p.grad for p in model.parameters() if p.grad is not None]
        valid = [row[:n] for row, n in zip(out, frames.tolist(), strict=True)]
        results.append([*valid, padded.grad[:, :24], *weights, *model.buffers()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            close(a, b)


# ------------------------------------------------------------------------------ reach


@pytest.mark.parametrize(
    "attention",
    [
        AttentionSpec(heads=2, block=3, pattern="local", left_context=2),
        AttentionSpec(heads=2, block=3, pattern="fixed", summaries=1, memory_blocks=2),
        AttentionSpec(heads=2, block=3, summaries=2, left_context=4, memory_blocks=1, lookahead=1),
        AttentionSpec(heads=2, block=4, pattern="strided", memory_blocks=1, direction="causal"),
    ],
)
@pytest.mark.parametrize("subsampling", [2, 4])
@torch.no_grad()
def test_receptive_field_is_what_perturbations_reach(attention, subsampling):
    spec = msgspec.structs.replace(SMALL, attention=attention, subsampling=subsampling, kernel=2)
    model = encoder(spec)
    before = -(-model.receptive_field // spec.step_features) * spec.step_features
    n_frames = before + spec.step_features
    x = noise(1, n_frames, FEATURES.n_mels)
    perturbed = x.repeat(n_frames, 1, 1)
    perturbed[range(n_frames), range(n_frames)] += noise(FEATURES.n_mels)
    changed = (whole(model, perturbed) - whole(model, x)).abs().amax(2) > 1e-13  # (frames, T')
    widest = 0
    for place in range(before // subsampling, n_frames // subsampling):
        reached = changed[:, place].nonzero()
        widest = max(widest, int(reached.max() - reached.min()) + 1)
    assert widest == model.receptive_field


# ------------------------------------------------------------------------------ depth


@torch.no_grad()
def test_depth_does_not_let_the_output_grow():
    """What the last norm is given: 8 to 64 blocks, with the scaled start and without."""

    def size(n_layers: int, scaled: bool) -> float:
        torch.manual_seed(0)
        spec = msgspec.structs.replace(
            SMALL, d_model=32, n_layers=n_layers, scaled_init=scaled, kernel=5
        )
        model = ConformerEncoder(spec, FEATURES).train()  # norms of the batch, as training begins
        sizes: list[float] = []
        model.norm.register_forward_pre_hook(lambda _, args: sizes.append(args[0].std().item()))
        model(torch.randn(2, 64, FEATURES.n_mels), torch.tensor([64, 64]))
        return sizes[0]

    scaled, unscaled = ([size(depth, s) for depth in (8, 16, 32, 64)] for s in (True, False))
    assert max(scaled) < 1.2 * min(scaled)
    assert all(b > 1.2 * a for a, b in pairwise(unscaled))
    assert unscaled[-1] > 2 * unscaled[0]


# ------------------------------------------------------------------------------ gradients


def gradients(spec: ConformerSpec) -> tuple[list[Tensor], ConformerEncoder]:
    """Output and gradients of a training step, and the encoder after it."""
    model = encoder(spec).train()
    x, lengths = noise(2, 24, FEATURES.n_mels), torch.tensor([24, 17])
    x.requires_grad_()
    torch.manual_seed(1)
    out, _, branches = model.forward_with_branches(x, lengths)
    loss = sum(part.square().sum() for part in (out[0], out[1, :8], *branches))
    return [out.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])], model


@pytest.mark.parametrize("spec", [CONDITIONED, msgspec.structs.replace(CONDITIONED, dropout=0.4)])
def test_gradients_with_recomputation_are_those_without(spec):
    again = msgspec.structs.replace(spec, recompute=True)
    (kept, plain), (anew, recomputing) = gradients(spec), gradients(again)
    for a, b in zip(kept, anew, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(a, b)  # statistics too: the batch counts once
    norm = recomputing.blocks[0].convolution.depthwise.norm
    assert norm.num_batches_tracked == 1
    assert norm.momentum == 0.1


@contextmanager
def kept_for_backward(total: list[int]) -> Iterator[None]:
    """Counts the bytes of the tensors that autograd keeps."""
    seen = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def test_recomputation_keeps_less():
    x, lengths = torch.randn(4, 96, FEATURES.n_mels), torch.tensor([96] * 4)
    kept = []
    for recompute in (False, True):
        spec = msgspec.structs.replace(SMALL, n_layers=6, recompute=recompute)
        model = ConformerEncoder(spec, FEATURES)
        total = [0]
        with kept_for_backward(total):
            out, _ = model(x, lengths)
        block_inputs = 6 * out.numel() * out.element_size()  # kept by checkpointing itself
        kept.append(total[0] + block_inputs * recompute)
    assert kept[1] < 0.25 * kept[0]


def test_dropout_is_for_training_only():
    model = encoder(msgspec.structs.replace(SMALL, dropout=0.5))
    x = noise(1, 24, FEATURES.n_mels)
    assert torch.equal(whole(model, x), whole(model, x))
    assert not torch.equal(whole(model.train(), x), whole(model, x))


# ------------------------------------------------------------------------------ branches


def test_branches_are_read_by_the_shared_head():
    """After the layers that the spec names, by the encoder's own norm and head."""
    model = encoder(BRANCHED)
    read: list[Tensor] = []
    for layer in (1, 2):
        model.blocks[layer - 1].register_forward_hook(lambda *args: read.append(args[-1]))
    x, lengths = noise(2, 20, FEATURES.n_mels), torch.tensor([20, 14])
    out, frames, branches = model.forward_with_branches(x, lengths)
    assert [branch.shape for branch in branches] == [(2, 10, 5)] * 2
    for inside, branch in zip(read, branches, strict=True):
        close(branch, model.ctc(model.norm(inside)))
    plain, plain_frames = model(x, lengths)
    assert torch.equal(plain, out)
    assert torch.equal(plain_frames, frames)


@torch.no_grad()
def test_conditioning_adds_what_the_branches_say():
    model = encoder(CONDITIONED)
    without = encoder(BRANCHED, seed=1)
    without.load_state_dict(model.state_dict(), strict=False)
    x = noise(1, 20, FEATURES.n_mels)
    assert not torch.allclose(whole(model, x), whole(without, x), atol=1e-3)
    given: list[Tensor] = []
    model.blocks[1].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    without.blocks[0].register_forward_hook(lambda *args: given.append(args[-1]))
    _, _, (first, *_) = model.forward_with_branches(x, torch.tensor([20]))
    whole(without, x)
    close(given[0], given[1] + model.feedback(first.softmax(-1)))
    for parameter in model.feedback.parameters():
        nn.init.zeros_(parameter)
    close(whole(model, x), whole(without, x))


def test_intermediate_loss_is_the_weighted_mean_and_trains_every_weight():
    model = encoder(CONDITIONED).train()
    x, lengths = noise(2, 40, FEATURES.n_mels), torch.tensor([40, 30])
    targets, sizes = torch.tensor([[1, 2, 3], [4, 1, 0]]), torch.tensor([3, 2])
    out, frames, branches = model.forward_with_branches(x, lengths)
    logits = model.ctc(out)
    loss = intermediate_ctc_loss(logits, branches, targets, frames, sizes, weight=0.3)
    losses = [ctc_loss(s, targets, frames, sizes) for s in (logits, *branches)]
    close(loss, 0.7 * losses[0] + 0.15 * (losses[1] + losses[2]))
    close(intermediate_ctc_loss(logits, (), targets, frames, sizes), losses[0])
    with pytest.raises(ValueError, match=r"0\.\.1, got 1\.5"):
        intermediate_ctc_loss(logits, branches, targets, frames, sizes, weight=1.5)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


def test_it_learns():
    """Tokens are bursts in bands of their own: a few steps halve the loss of all branches."""
    torch.manual_seed(0)
    model = ConformerEncoder(CONDITIONED, FEATURES)
    targets = torch.randint(1, 5, (8, 4))
    x = 0.1 * torch.randn(8, 48, FEATURES.n_mels)
    for row, tokens in enumerate(targets.tolist()):
        for k, token in enumerate(tokens):
            x[row, 12 * k + 2 : 12 * k + 8, token] += 2
    lengths, sizes = torch.full((8,), 48), torch.full((8,), 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        out, frames, branches = model.forward_with_branches(x, lengths)
        loss = intermediate_ctc_loss(model.ctc(out), branches, targets, frames, sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------ layers


@torch.no_grad()
def test_subsampling_convolution_fused_is_a_plain_one():
    spec = SMALL.conv[0]
    layer = trained(SubsamplingConv2d(2, spec))
    x = noise(2, 2, 10, 7)
    out = F.relu(F.conv2d(F.pad(x, (1, 1, layer.left, 0)), *layer.fused(), stride=2))
    close(out, layer(x, torch.tensor([5, 5])))


@pytest.mark.parametrize("subsampling", [2, 4, 8])
@torch.no_grad()
def test_subsampling_streams_and_sees_no_later_frame(subsampling):
    spec = msgspec.structs.replace(SMALL, subsampling=subsampling)
    layer = trained(Subsampling(7, spec.conv, 5))
    x = noise(2, 6 * subsampling, 7)
    out, lengths = layer(x, torch.tensor([6 * subsampling, 4 * subsampling - 1]))
    assert lengths.tolist() == [6, 3]
    state, outs = layer.initial_state(2), []
    for chunk in x.split([subsampling, 3 * subsampling, 2 * subsampling], 1):
        step, state = layer.step(chunk, state)
        outs.append(step)
    close(torch.cat(outs, 1), out)
    x[:, 2 * subsampling :] += 1
    changed = (layer(x, lengths)[0] != out).any(2)
    assert changed.tolist() == [[False] * 2 + [True] * 4] * 2


@pytest.mark.parametrize("norm", ["rms", "layer"])
@torch.no_grad()
def test_norms_are_of_single_frames(norm):
    layer = make_norm(msgspec.structs.replace(SMALL, norm=norm)).double()
    x, scale = 10 * noise(2, 3, 8), noise(8)
    assert list(layer.state_dict()) == ["weight"]
    layer.weight.copy_(scale)
    centred = x - x.mean(2, keepdim=True) if norm == "layer" else x
    close(layer(x), scale * centred / centred.square().mean(2, keepdim=True).sqrt(), 1e-5)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@torch.no_grad()
def test_scales_of_norms_fold_into_what_follows(norm):
    model = encoder(msgspec.structs.replace(SMALL, norm=norm))
    x = noise(1, 20, FEATURES.n_mels)
    expected = whole(model, x)
    for block in model.blocks:
        block.fold_norms()
        norms = [m for m in block.modules() if isinstance(m, (nn.RMSNorm, nn.LayerNorm))]
        assert len(norms) == 4
        assert all(torch.all(m.weight == 1) for m in norms)
    close(whole(model, x), expected)


def test_figures_are_those_counted_by_hand():
    spec = msgspec.structs.replace(CONDITIONED, d_model=4, n_layers=2, intermediate_ctc=(1,))
    info = describe(spec, FEATURES)
    rows = {row.name: row for row in info.layers}
    d, frames = 4, 50  # encoder frames a second
    keys = 1 * 2 + 2 + 3  # summaries, left context, chunk
    macs = {
        "stem.conv.0": frames * 3 * 3 * 9,  # 3 channels, 3 bands, 9 taps
        "stem.linear": frames * 9 * d,
        "blocks.1.attention.attention": frames * (4 * d * d + 2 * keys * d),
        "blocks.1.convolution.gated": frames * 2 * d * d,
        "blocks.1.convolution.depthwise": frames * 3 * d,
        "blocks.1.convolution.out": frames * d * d,
        "ctc": frames * 5 * d,
        "feedback": frames * 5 * d,
    }
    for half in ("first", "second"):
        for linear in ("up", "down"):
            macs[f"blocks.1.{half}.{linear}"] = frames * 2 * d * d
    for name, expected in macs.items():
        # The steps that were measured are whole chunks, of 60 ms: 17 in a second and a bit.
        assert rows[name].macs_per_s == pytest.approx(expected, rel=1e-3), name
    attention = 4 * ((2 + 2) * 2 * d + 1)  # keys and values of the past, and a count
    assert rows["blocks.0.attention.attention"].state_bytes == attention
    assert rows["blocks.0.convolution.depthwise"].state_bytes == 4 * 2 * d
    assert info.latency_ms == (6 - 1) * 10 + 25
    assert info.step_ms == 60
    assert info.frame_ms == 20


# ------------------------------------------------------------------------------ specs


def attention(**changes: object) -> dict[str, AttentionSpec]:
    return {"attention": msgspec.structs.replace(SMALL.attention, **changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model.*>= 1, got 0"),
        ({"n_layers": -1}, "n_layers.*>= 1, got 8, -1"),
        ({"feed_forward": 0}, "feed_forward.*>= 1"),
        ({"subsampling_channels": -3}, "subsampling_channels >= 1.*-3"),
        ({"subsampling": 3}, "subsampling 2, 4 or 8, got 3"),
        ({"kernel": 1}, "at least 2 taps, got 1"),
        ({"norm": "batch"}, "rms or layer, got 'batch'"),
        ({"dropout": 1.0}, "dropout < 1, got 1.0"),
        ({"d_model": 10}, "heads that divide d_model.*d_model 10 and 2 heads"),
        (attention(block=-1), "block.*>= 1, got 2, -1"),
        (attention(left_context=-1), "left_context >= 0.*got -1"),
        (attention(lookahead=3), "lookahead within the chunk.*0 to 2 frames, got 3"),
        ({"intermediate_ctc": (0,), "n_tokens": 5}, "after layers 1 to 1 of 2, got"),
        ({"intermediate_ctc": (2,), "n_tokens": 5}, "after the last one is the encoder's own"),
        ({"n_layers": 4, "intermediate_ctc": (2, 1), "n_tokens": 5}, "rising order"),
        ({"n_layers": 4, "intermediate_ctc": (2, 2), "n_tokens": 5}, "each once"),
        ({"intermediate_ctc": (1,)}, "needs n_tokens.*got None"),
        ({"intermediate_ctc": (1,), "n_tokens": 1}, "at least one token, got 1"),
        ({"self_conditioned": True}, "to name the layers, got none"),
        ({"n_tokens": 5}, "None without intermediate_ctc, got 5"),
    ],
)
def test_bad_specs_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        build_encoder(msgspec.structs.replace(SMALL, **changes), FEATURES)


@pytest.mark.parametrize(
    ("n_frames", "message"),
    [
        (7, "multiple of the subsampling 4, got 7 feature frames"),
        (0, "multiple of the subsampling 4, got 0"),
        (-4, "multiple of the subsampling 4, got -4"),
        (4, r"as many summaries as a block has frames \(1\), got 2"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(n_frames, message):
    with pytest.raises(SpecError, match=message):
        ConformerSpec().with_chunk(n_frames)


def test_wrong_features_are_refused():
    model = encoder()
    for shape in ((1, 6, 7), (6, FEATURES.n_mels)):
        with pytest.raises(ValueError, match=r"expected features \(B, T, 6\), got"):
            model.step(noise(*shape), model.initial_state())
        with pytest.raises(ValueError, match=r"expected features \(B, T, 6\), got"):
            model(noise(*shape), torch.tensor([6]))


def test_specs_are_read_from_files(tmp_path):
    path = tmp_path / "encoder.json"
    path.write_bytes(msgspec.json.encode(EncoderFile(encoder=CONDITIONED, features=FEATURES)))
    assert read_encoder(path).encoder == CONDITIONED
    path = tmp_path / "encoder.toml"
    path.write_text('[encoder]\nkind = "conformer"\nd_model = 8\nattention.heads = 3\n')
    with pytest.raises(SpecError, match="heads that divide d_model"):
        read_encoder(path)
