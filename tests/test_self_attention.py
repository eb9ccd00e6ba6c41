"""Self-attention as a streaming layer: steps equal the whole, whatever is kept of the past."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from edge_imputer.errors import SpecError
from edge_imputer.specs import AttentionSpec
from edge_imputer.specs.attention import Direction, Pattern
from edge_imputer.train.layers.self_attention import SelfAttention, first_angles, turn

from .attention_cases import BLOCK, HEADS, specs

D_MODEL = 4 * HEADS


def layer(spec: AttentionSpec, d_model: int = D_MODEL, seed: int = 0) -> SelfAttention:
    """In float64, with biases that are not 0."""
    torch.manual_seed(seed)
    module = SelfAttention(d_model, spec).double()
    for linear in (module.qkv, module.out):
        nn.init.normal_(linear.bias)
    return module


def frames(batch: int, n_frames: int, d_model: int = D_MODEL) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, n_frames, d_model, generator=generator, dtype=torch.float64)


def stream(module: SelfAttention, x: Tensor) -> Tensor:
    """The steps' outputs, joined; the state keeps its shapes and types."""
    state = module.initial_state(len(x))
    kinds = [(s.shape, s.dtype) for s in state]
    outputs = []
    for chunk in x.split(module.spec.block, 1):
        out, state = module.step(chunk, state)
        assert [(s.shape, s.dtype) for s in state] == kinds
        outputs.append(out)
    return torch.cat(outputs, 1)


# ------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("direction", ["chunk", "causal"])
@pytest.mark.parametrize("pattern", ["local", "fixed", "strided", "local+fixed"])
def test_streaming_equals_whole(pattern: Pattern, direction: Direction) -> None:
    """Also where the last chunk is short, and before and after the memory is full."""
    found = [spec for spec in specs(pattern, direction) if spec.streams]
    assert found
    for spec in found:
        module = layer(spec)
        for n_frames in (3, 5 * BLOCK, 8 * BLOCK + 2):
            x = frames(2, n_frames)
            streamed, whole = stream(module, x), module(x)
            torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-12, msg=str(spec))


def test_streaming_equals_whole_in_float32() -> None:
    spec = AttentionSpec(left_context=8, memory_blocks=16)
    module = layer(spec, 64).float()
    x = frames(2, 1000, 64).float()
    torch.testing.assert_close(stream(module, x), module(x), rtol=0, atol=1e-5)


def test_streams_in_a_batch_may_be_of_different_age() -> None:
    """States are per stream: one that begins later can join a batch."""
    module = layer(AttentionSpec(heads=HEADS, block=BLOCK, left_context=3, memory_blocks=2))
    old, new = frames(2, 4 * BLOCK).split(1)
    state = module.initial_state()
    for chunk in old[:, : 2 * BLOCK].split(BLOCK, 1):
        _, state = module.step(chunk, state)
    joined = tuple(torch.cat(pair) for pair in zip(state, module.initial_state(), strict=True))
    chunk = torch.cat([old[:, 2 * BLOCK : 3 * BLOCK], new[:, :BLOCK]])
    out, _ = module.step(chunk, joined)
    expected = torch.cat([module(old)[:, 2 * BLOCK : 3 * BLOCK], module(new)[:, :BLOCK]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_steps_have_the_gradients_of_the_whole() -> None:
    module = layer(AttentionSpec(heads=HEADS, block=BLOCK, left_context=3, memory_blocks=2))
    x = frames(1, 4 * BLOCK).requires_grad_()
    weights = frames(1, 4 * BLOCK)
    gradients = [
        torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])
        for out in (stream(module, x), module(x))
    ]
    for streamed, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-11)


def test_state_is_as_large_as_the_spec_says() -> None:
    spec = AttentionSpec(block=8, summaries=2, left_context=4, memory_blocks=3)
    module = SelfAttention(32, spec)
    shapes = [tuple(s.shape) for s in module.initial_state(2)]
    assert shapes == [(2, 4, 6, 16), (2, 4, 4, 16), (2,)]
    assert spec.stream_keys == 6 + 4 + 8
    local = AttentionSpec(pattern="local")
    assert SelfAttention(32, local).initial_state() == ()
    strided = AttentionSpec(pattern="strided", memory_blocks=3)
    shapes = [tuple(s.shape) for s in SelfAttention(32, strided).initial_state()]
    assert shapes == [(1, 4, 24, 16), (1,)]


def test_a_step_can_be_exported() -> None:
    """Static shapes, nothing that depends on data: torch.export takes it."""
    module = SelfAttention(32, AttentionSpec(left_context=4, memory_blocks=3)).eval()

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module

        def forward(self, chunk: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            out, state = self.attention.step(chunk, state)
            return out, *state

    x = frames(1, 48, 32).float()
    state = module.initial_state()
    exported = torch.export.export(Step(), (x[:, :8], *state)).module()
    outputs = []
    for chunk in x.split(8, 1):
        out, *state = exported(chunk, *state)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), module(x), rtol=0, atol=1e-5)


def test_wrong_chunks_and_specs_are_refused() -> None:
    module = layer(AttentionSpec(heads=HEADS, block=BLOCK, memory_blocks=2))
    for n_frames in (0, BLOCK + 1):
        with pytest.raises(ValueError, match=f"expected a chunk of 5 frames.*, got {n_frames}"):
            module.step(frames(1, n_frames), module.initial_state())
    whole_only = layer(AttentionSpec(heads=HEADS))
    for call in (whole_only.initial_state, lambda: whole_only.step(frames(1, 8), ())):
        with pytest.raises(SpecError, match="expected memory_blocks"):
            call()
    with pytest.raises(SpecError, match="heads that divide d_model"):
        SelfAttention(30, AttentionSpec(heads=4))


# ------------------------------------------------------------------------------ whole utterances


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_padded_equals_alone(pattern: Pattern, direction: Direction) -> None:
    module = layer(AttentionSpec(pattern=pattern, heads=HEADS, block=BLOCK, direction=direction))
    x, lengths = frames(3, 23), torch.tensor([23, 11, 4])
    out = module(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = module(x[row : row + 1, :n])
        torch.testing.assert_close(out[row, :n], alone[0], rtol=0, atol=1e-12)
        assert not out[row, n:].any()


@pytest.mark.parametrize("lookahead", [0, 2, 7])
def test_the_future_is_not_seen(lookahead: int) -> None:
    module = layer(AttentionSpec(heads=HEADS, lookahead=lookahead))
    x = frames(1, 32)
    for changed in (8, 13, 23):
        other = x.clone()
        other[:, changed:] += 1
        same = (module(x) == module(other))[0].all(1)
        first = max(changed - lookahead, changed // 8 * 8)
        assert same[:first].all()
        assert not same[first]


# ------------------------------------------------------------------------------ positions


def test_scores_depend_on_distances_alone() -> None:
    """Even after 11 hours of 40 ms frames, in float32."""
    n_frames, width, hours = 1_000_000, 16, 900_000
    q, k = frames(2, 64, width).float()
    cos, sin = first_angles(n_frames, width)

    def scores(at: int) -> Tensor:
        angles = cos[at : at + 64], sin[at : at + 64]
        return turn(q, angles) @ turn(k, angles).T

    torch.testing.assert_close(scores(hours), scores(0), rtol=0, atol=1e-5)
    assert not torch.allclose(scores(0), q @ k.T, atol=0.1)


def test_order_matters() -> None:
    module = layer(AttentionSpec(heads=HEADS, direction="bidirectional"))
    x = frames(1, 8)
    assert not torch.allclose(module(x.flip(1)).flip(1), module(x), atol=1e-3)


# ------------------------------------------------------------------------------ a deep stack


def test_scaled_residuals_do_not_grow_with_depth() -> None:
    def growth(n_layers: int, scaled: bool) -> float:
        torch.manual_seed(0)
        x = start = torch.randn(1, 64, 64)
        for _ in range(n_layers):
            # One summary and no context: what is added is then about as large as what is there.
            module = SelfAttention(64, AttentionSpec(block=1, summaries=1, pattern="local"))
            if scaled:
                module.scale_residual(n_layers)
            x = x + module(nn.functional.layer_norm(x, (64,)))
        return (x.std() / start.std()).item()

    with torch.no_grad():
        scaled = [growth(n_layers, True) for n_layers in (8, 32, 64)]
        assert max(scaled) < 1.1 * min(scaled)
        assert growth(64, False) > 2 * growth(8, False)


def test_copies_and_checkpoints_carry_no_tables() -> None:
    module = SelfAttention(32, AttentionSpec(memory_blocks=2))
    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "out.weight", "out.bias"}
    twin = copy.deepcopy(module)
    x = frames(1, 20, 32).float()
    assert torch.equal(twin(x), module(x))


def test_inference_mode_leaves_nothing_behind() -> None:
    module = SelfAttention(32, AttentionSpec(memory_blocks=2))
    x = frames(1, 20, 32).float()
    with torch.inference_mode():
        stream(module, x)
        module(x)
    (module(x).sum() + stream(module, x).sum()).backward()
    assert module.qkv.weight.grad is not None
