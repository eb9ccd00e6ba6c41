"""Every streaming layer: steps equal forward, a clip alone equals the clip in a padded batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.imputation import schedule
from edge_imputer.specs import ConvSpec, CrnnSpec, FeatureSpec, ImputerSpec, TokenSpec
from edge_imputer.train.decode import decode
from edge_imputer.train.encoders import CrnnEncoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.layers.conv import CausalConv2d

FEATURES = FeatureSpec(n_mels=10)
ENCODER = CrnnSpec(conv=(ConvSpec(channels=3), ConvSpec(channels=4)), gru_layers=2, hidden=6)
HEAD = ImputerSpec(depth=2, width=5, kernel=5)
TOKENS = TokenSpec(characters=("a", "b", "c"))


def encoder(seed: int = 0) -> CrnnEncoder:
    torch.manual_seed(seed)
    return CrnnEncoder(ENCODER, FEATURES).double().eval()


def head(seed: int = 0, **changes: int | str) -> ImputerHead:
    torch.manual_seed(seed)
    spec = ImputerSpec(**{"depth": 2, "width": 5, "kernel": 5, **changes})
    return ImputerHead(ENCODER.d_model, spec, TOKENS).double().eval()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_causal_conv_streaming_equals_batch(parts, stride, extra, seed):
    torch.manual_seed(seed)
    spec = ConvSpec(channels=3, kernel_time=stride + extra, stride_time=stride)
    layer = CausalConv2d(2, spec).double().eval()
    x = torch.randn(2, 2, stride * sum(parts), 7, dtype=torch.float64)
    state, outs = layer.initial_state(2, 7), []
    for chunk in x.split([stride * p for p in parts], dim=2):
        out, state = layer.step(chunk, state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), layer(x), rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
@torch.no_grad()
def test_encoder_streaming_equals_batch(parts, seed):
    model = encoder(seed)
    x = torch.randn(2, 4 * sum(parts), FEATURES.n_mels, dtype=torch.float64)
    state, outs = model.initial_state(2), []
    for chunk in x.split([4 * p for p in parts], dim=1):
        out, state = model.step(chunk, state)
        outs.append(out)
    whole, lengths = model(x, torch.tensor([x.shape[1]] * 2))
    assert lengths.tolist() == [sum(parts)] * 2
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_clip_alone_equals_clip_in_padded_batch():
    model, imputer = encoder(), head()
    x = torch.randn(3, 96, FEATURES.n_mels, dtype=torch.float64)
    lengths = torch.tensor([32, 96, 64])
    out, frames = model(x, lengths)
    alignment = decode(imputer, out, schedule(4, 8))
    for row, (n, t) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone, _ = model(x[row : row + 1, :n], lengths[row : row + 1])
        torch.testing.assert_close(out[row, :t], alone[0], rtol=0, atol=1e-12)
        assert torch.equal(alignment[row, :t], decode(imputer, alone, schedule(4, 8))[0])


def test_encoder_refuses_partial_frames():
    with pytest.raises(ValueError, match="multiple of 4"):
        encoder().step(torch.zeros(1, 3, FEATURES.n_mels, dtype=torch.float64), ())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 3, 5]), st.integers(0, 99))
@torch.no_grad()
def test_head_on_chunks_equals_head_on_utterance(depth, chunk_blocks, kernel, seed):
    model = head(seed, depth=depth, kernel=kernel, chunk_blocks=chunk_blocks)
    chunk, left = model.spec.chunk_size, model.spec.left_context
    frames = torch.randn(1, 3 * chunk, ENCODER.d_model, dtype=torch.float64)
    tokens = torch.randint(0, TOKENS.mask_id + 1, (1, 3 * chunk))
    whole = model(frames, tokens)
    padded_frames = torch.nn.functional.pad(frames, (0, 0, left, 0))
    padded_tokens = torch.nn.functional.pad(tokens, (left, 0), value=0)
    for k in range(3):
        window = slice(k * chunk, k * chunk + left + chunk)
        out = model.step(padded_frames[:, window], padded_tokens[:, window])
        torch.testing.assert_close(out, whole[:, k * chunk : (k + 1) * chunk], rtol=0, atol=1e-12)


@torch.no_grad()
def test_head_sees_nothing_after_its_chunk():
    model = head()
    frames = torch.randn(1, 24, ENCODER.d_model, dtype=torch.float64)
    before = model(frames, model.fully_masked(frames))
    frames[:, 16:] = 7.0
    after = model(frames, model.fully_masked(frames))
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.equal(before[:, 16:], after[:, 16:])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10), st.integers(1, 4), st.integers(0, 99))
@torch.no_grad()
def test_decode_takes_exactly_k_passes_and_keeps_what_is_committed(n_steps, n_blocks, seed):
    model = head(seed)
    frames = torch.randn(2, 8 * n_blocks, ENCODER.d_model, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    plan = schedule(n_steps, 8)
    final = decode(model, frames, plan)
    hook.remove()
    assert len(seen) == n_steps
    assert not torch.any(final == TOKENS.mask_id)
    open_frames = 8
    for before, after, n_commit in zip(seen, [*seen[1:], final], plan, strict=True):
        committed = before != TOKENS.mask_id
        assert torch.equal(before[committed], after[committed])
        open_frames = max(0, open_frames - n_commit)
        still_open = (after == TOKENS.mask_id).view(2, n_blocks, 8).sum(-1)
        assert torch.all(still_open == open_frames)


@torch.no_grad()
def test_one_pass_is_ctc_greedy():
    model = head()
    frames = torch.randn(2, 24, ENCODER.d_model, dtype=torch.float64)
    greedy = model(frames, model.fully_masked(frames)).argmax(-1)
    assert torch.equal(decode(model, frames, (8,)), greedy)


@torch.no_grad()
@pytest.mark.parametrize("order", ["confidence", "left-to-right", "non-blank-first"])
def test_decode_commits_in_the_order_of_the_specification(order):
    model = head(order=order)
    frames = torch.randn(3, 16, ENCODER.d_model, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _, args, out: seen.append((args[1].clone(), out)))
    final = decode(model, frames, (3, 3, 2))
    hook.remove()
    for k, ((before, logits), n) in enumerate(zip(seen, (3, 3, 2), strict=True)):
        after = seen[k + 1][0] if k < 2 else final
        confidence, token = logits.log_softmax(-1).max(-1)
        for row in range(3):
            for start in (0, 8):
                block = range(start, start + 8)
                is_open = [t for t in block if before[row, t] == model.mask_id]
                key = {
                    "confidence": lambda t: -confidence[row, t],  # noqa: B023
                    "left-to-right": lambda t: t,
                    "non-blank-first": lambda t: (token[row, t] == 0, -confidence[row, t]),  # noqa: B023
                }[order]
                expected = sorted(is_open, key=key)[:n]
                committed = [t for t in is_open if after[row, t] != model.mask_id]
                assert sorted(expected) == committed
                assert torch.equal(after[row, committed], token[row, committed])
