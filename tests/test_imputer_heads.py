"""The forms of the Imputer: a light head of attention, and the paper's whole stack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import SpecError
from edge_imputer.imputation import schedule
from edge_imputer.specs import (
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    ModelSpec,
    TokenSpec,
)
from edge_imputer.train.decode import decode
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.imputer_stack import ImputerStack
from edge_imputer.train.objective import MASK, imputer_loss

TOKENS = TokenSpec(characters=("a", "b", "c"))
FEATURES = FeatureSpec(n_mels=10)
D_MODEL = 6


def attention_head(seed: int = 0, **changes: int) -> ImputerHead:
    torch.manual_seed(seed)
    fields = {"depth": 2, "width": 8, "heads": 2, "context": 3, "block_size": 4, **changes}
    spec = ImputerSpec(mixer="attention", schedule=(1,) * fields["block_size"], **fields)
    spec.check()
    return ImputerHead(D_MODEL, spec, TOKENS).double().eval()


def conformer(**changes) -> ConformerSpec:
    fields = {
        "d_model": 16,
        "n_layers": 3,
        "kernel": 3,
        "subsampling": 2,
        "subsampling_channels": 2,
        "attention": AttentionSpec(heads=2, block=4, left_context=2, memory_blocks=2),
        **changes,
    }
    return ConformerSpec(**fields)


STACK_HEAD = ImputerSpec(mixer="encoder", block_size=4, schedule=(1, 1, 1, 1))


def stack(seed: int = 0, head: ImputerSpec = STACK_HEAD) -> ImputerStack:
    torch.manual_seed(seed)
    return ImputerStack(conformer(), head, FEATURES, TOKENS).double().eval()


# ------------------------------------------------------------------------------ attention head


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(0, 5), st.integers(0, 99))
@torch.no_grad()
def test_attention_head_on_chunks_equals_head_on_utterance(depth, chunk_blocks, context, seed):
    model = attention_head(seed, depth=depth, chunk_blocks=chunk_blocks, context=context)
    chunk, left = model.spec.chunk_size, model.spec.left_context
    assert left == context
    frames = torch.randn(2, 3 * chunk, D_MODEL, dtype=torch.float64)
    tokens = torch.randint(0, TOKENS.mask_id + 1, (2, 3 * chunk))
    whole = model(frames, tokens)
    padded = torch.nn.functional.pad(frames, (0, 0, left, 0))
    seen = torch.nn.functional.pad(tokens, (left, 0), value=0)
    for k in range(3):
        window = slice(k * chunk, k * chunk + left + chunk)
        out = model.step(padded[:, window], seen[:, window])
        torch.testing.assert_close(out, whole[:, k * chunk : (k + 1) * chunk], rtol=0, atol=1e-12)


@torch.no_grad()
def test_attention_head_sees_its_context_and_chunk_and_no_more():
    model = attention_head()
    frames = torch.randn(1, 12, D_MODEL, dtype=torch.float64)
    before = model(frames, model.fully_masked(frames))
    for changed in range(12):
        other = frames.clone()
        other[:, changed] += 1.0
        differs = (model(other, model.fully_masked(other)) != before).any(-1)[0]
        start = changed // 4 * 4  # the first frame of its own chunk
        reach = range(start, start + 4 + (4 if changed >= start + 1 else 0))
        assert differs.nonzero().flatten().tolist() == [t for t in reach if t < 12]


def test_attention_head_learns_from_the_loss():
    torch.manual_seed(3)
    model = attention_head().float().train()
    frames = torch.randn(4, 16, D_MODEL)
    targets, lengths = torch.randint(1, 4, (4, 3)), torch.full((4,), 16)
    sizes = torch.full((4,), 3)
    partial = torch.full((4, 16), MASK)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        seen = partial.masked_fill(partial == MASK, model.mask_id)
        loss = imputer_loss(model(frames, seen), targets, partial, lengths, sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixer": "attention", "width": 6, "heads": 4}, "heads that divide the width 6"),
        ({"mixer": "attention", "heads": 0}, "heads that divide"),
        ({"context": -1}, "context of 0 frames or more"),
        ({"order": "zzz"}, "expected an order of .* got 'zzz'"),
    ],
)
def test_bad_heads_are_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        ImputerSpec(**fields).check()


def test_the_light_head_refuses_the_whole_encoder():
    with pytest.raises(SpecError, match="ImputerStack"):
        ImputerHead(D_MODEL, STACK_HEAD, TOKENS)


# ------------------------------------------------------------------------------ whole stack


def stream(
    model: ImputerStack, features: torch.Tensor, commits: tuple[int, ...], revisions: int
) -> torch.Tensor:
    """Decode chunk by chunk: the stem once, the blocks once a pass with that pass's own state."""
    batch, chunk = len(features), model.spec.chunk_size
    stem = model.encoder.stem.initial_state(batch)
    states = [model.initial_state(batch) for _ in range(len(commits) + revisions)]
    decided = []
    for part in features.split(chunk * model.encoder.subsampling, dim=1):
        frames, stem = model.encoder.stem.step(part, stem)
        alignment = model.fully_masked(frames)
        for k, n_commit in enumerate(commits):
            logits, states[k] = model.step(frames, alignment, states[k])
            confidence, token = logits.log_softmax(-1).max(-1)
            is_open = alignment == model.mask_id
            blocks = confidence.masked_fill(~is_open, -torch.inf).view(batch, -1, 4)
            order = blocks.argsort(dim=-1, descending=True, stable=True).argsort(-1)
            commit = (order < n_commit).view(batch, -1) & is_open
            alignment = torch.where(commit, token, alignment)
        for k in range(len(commits), len(states)):
            logits, states[k] = model.step(frames, alignment, states[k])
            alignment = logits.argmax(-1)
        decided.append(alignment)
    return torch.cat(decided, 1)


@pytest.mark.parametrize("revisions", [0, 1, 2])
@pytest.mark.parametrize("commits", [schedule(1, 4), schedule(2, 4), (2, 1, 1), schedule(4, 4)])
@torch.no_grad()
def test_stack_chunk_by_chunk_equals_whole_utterance(commits, revisions):
    model = stack()
    features = torch.randn(2, 40, FEATURES.n_mels, dtype=torch.float64)
    frames, lengths = model.subsample(features, torch.tensor([40, 40]))
    assert lengths.tolist() == [20, 20]
    whole = decode(model, frames, commits, revisions=revisions)
    assert torch.equal(stream(model, features, commits, revisions), whole)
    assert not torch.any(whole == model.mask_id)
    assert len(whole.unique()) > 1


@torch.no_grad()
def test_stack_with_a_clip_alone_equals_the_clip_in_a_padded_batch():
    model = stack(1)
    features = torch.randn(2, 32, FEATURES.n_mels, dtype=torch.float64)
    frames, lengths = model.subsample(features, torch.tensor([16, 32]))
    together = model(frames, model.fully_masked(frames), lengths)
    alone, length = model.subsample(features[:1, :16], torch.tensor([16]))
    logits = model(alone, model.fully_masked(alone), length)
    torch.testing.assert_close(together[:1, :8], logits, rtol=0, atol=1e-12)


def test_stack_learns_from_a_partial_alignment():
    """What is filled in reaches every layer: all of them get a gradient, the embedding too."""
    model = stack(2).train()
    features = torch.randn(2, 32, FEATURES.n_mels, dtype=torch.float64)
    frames, lengths = model.subsample(features, torch.tensor([32, 32]))
    partial = torch.full((2, 16), MASK)
    partial[:, ::3] = 0
    seen = partial.masked_fill(partial == MASK, model.mask_id)
    targets, sizes = torch.tensor([[1, 2], [3, 1]]), torch.tensor([2, 2])
    imputer_loss(model(frames, seen, lengths), targets, partial, lengths, sizes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert torch.any(model.embedding.weight.grad[0] != 0)


@pytest.mark.parametrize(
    ("encoder", "head", "message"),
    [
        (conformer(), ImputerSpec(block_size=4, schedule=(4,)), "mixer 'encoder'"),
        (conformer(), ImputerSpec(mixer="encoder"), "attention block of 4 frames and a chunk of 8"),
        (conformer(intermediate_ctc=(1,), n_tokens=4), STACK_HEAD, "without intermediate_ctc"),
    ],
)
def test_stacks_that_cannot_be_are_refused(encoder, head, message):
    with pytest.raises(SpecError, match=message):
        ImputerStack(encoder, head, FEATURES, TOKENS)


@torch.no_grad()
def test_decoding_a_padded_batch_with_the_stack_equals_the_clip_alone():
    model = stack(3)
    features = torch.randn(2, 32, FEATURES.n_mels, dtype=torch.float64)
    frames, lengths = model.subsample(features, torch.tensor([18, 32]))
    together = decode(model, frames, (2, 2), lengths, revisions=1)
    alone = torch.nn.functional.pad(features[:1, :18], (0, 0, 0, 6))
    short, length = model.subsample(alone, torch.tensor([18]))
    by_itself = decode(model, short, (2, 2), length, revisions=1)
    assert torch.equal(together[0, :9], by_itself[0, :9])
    with pytest.raises(SpecError, match=r"revisions >= 0, .* got -1"):
        decode(model, frames, (2, 2), lengths, revisions=-1)
    with pytest.raises(ValueError, match="whole blocks of 4 frames, got 15"):
        decode(model, frames[:, :15], (2, 2), lengths)


@pytest.mark.parametrize(
    ("encoder", "head", "message"),
    [
        (conformer(), STACK_HEAD, "got 'encoder'"),
        (conformer(attention=AttentionSpec(block=3, memory_blocks=2)), ImputerSpec(), "block of 3"),
        (conformer(intermediate_ctc=(1,), n_tokens=9), ImputerSpec(), "branches of 4 tokens"),
        (CrnnSpec(conv=(ConvSpec(channels=-4),)), ImputerSpec(), "channels >= 1"),
        (CrnnSpec(conv=(ConvSpec(channels=4, stride_freq=0),)), ImputerSpec(), "stride_freq"),
    ],
)
def test_models_that_cannot_work_are_refused(encoder, head, message):
    spec = ModelSpec(features=FEATURES, encoder=encoder, head=head, tokens=TOKENS)
    with pytest.raises(SpecError, match=message):
        spec.check()
