"""Tasks: losses per utterance that depend on the utterance alone, and what each task learns."""

from __future__ import annotations

import dataclasses
from typing import cast

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_imputer.backends import Backend
from edge_imputer.errors import SpecError
from edge_imputer.pipeline import StreamingDecoder
from edge_imputer.specs import (
    AttentionSpec,
    ConformerSpec,
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    KeywordModelSpec,
    ModelSpec,
    PcenSpec,
    TcnSpec,
    TokenSpec,
    WindowedCrnnSpec,
)
from edge_imputer.train.data import Batch
from edge_imputer.train.decode import decode
from edge_imputer.train.objective import MASK, ctc_loss, imputer_loss
from edge_imputer.train.tasks import (
    TASKS,
    CtcTask,
    CtcTaskSpec,
    ImputerTask,
    ImputerTaskSpec,
    KeywordTaskSpec,
    RivalSpec,
    Task,
    TaskSpec,
    build_task,
)
from edge_imputer.train.tasks.imputer import _disagreement, _Given, _Look, _mask, _shown
from edge_imputer.train.tasks.keywords import classify, max_pool_loss

from .fakes import Described

FEATURES = FeatureSpec(n_mels=8)
TOKENS = TokenSpec(characters=(" ", "a", "b"))
CRNN = CrnnSpec(conv=(ConvSpec(channels=2), ConvSpec(channels=3)), hidden=6)
HEAD = ImputerSpec(width=6, depth=1, kernel=3, block_size=4, schedule=(1, 1, 1, 1))
CONFORMER = ConformerSpec(
    d_model=8,
    n_layers=3,
    subsampling_channels=2,
    kernel=3,
    dropout=0.0,
    attention=AttentionSpec(heads=2, block=4, left_context=4, memory_blocks=2),
)
BRANCHED = msgspec.structs.replace(CONFORMER, intermediate_ctc=(1, 2), self_conditioned=True)
WINDOWS = WindowedCrnnSpec(
    channels=2, kernel_time=4, stride_time=3, hidden=2, dense=4, window_frames=12, hop_frames=5
)


def task(settings: TaskSpec, encoder: object = CRNN, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    if isinstance(settings, KeywordTaskSpec):
        return build_task(settings.make_spec(FEATURES, encoder), settings).double()
    return build_task(settings.make_spec(FEATURES, encoder, TOKENS), settings).double()


def batch(sizes: tuple[int, ...] = (32, 16, 48), seed: int = 0, n_classes: int = 4) -> Batch:
    """Utterances of `sizes` feature frames, each content and seed its own."""
    longest = max(sizes)
    features = torch.zeros(len(sizes), longest, 8, dtype=torch.float64)
    targets = torch.zeros(len(sizes), 3, dtype=torch.long)
    flat = torch.zeros(len(sizes), longest // 4, dtype=torch.long)
    for i, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        features[i, :size] = torch.randn(size, 8, generator=generator, dtype=torch.float64)
        targets[i] = torch.randint(1, 4, (3,), generator=generator)
        flat[i, : size // 4] = torch.randint(0, 4, (size // 4,), generator=generator)
    return Batch(
        features=features,
        lengths=torch.tensor(sizes),
        targets=targets,
        target_lengths=torch.tensor([3, 1, 2] * len(sizes))[: len(sizes)],
        flat_start=flat,
        labels=torch.arange(len(sizes)) % n_classes,
        seeds=torch.arange(len(sizes)) * 7919 + seed,
        n_global=len(sizes),
    )


def part(whole: Batch, rows: slice) -> Batch:
    """Some of a batch's utterances, without the padding that they no longer need."""
    n = int(whole.lengths[rows].max())
    return Batch(
        features=whole.features[rows, :n],
        lengths=whole.lengths[rows],
        targets=whole.targets[rows],
        target_lengths=whole.target_lengths[rows],
        flat_start=whole.flat_start[rows, : n // 4],
        labels=whole.labels[rows],
        seeds=whole.seeds[rows],
        n_global=whole.n_global,
    )


IMPUTERS = {
    "dp": ImputerTaskSpec(head=HEAD),
    "imitation": ImputerTaskSpec(head=HEAD, loss="imitation"),
    "sampled": ImputerTaskSpec(head=HEAD, roll_in="sampled"),
    "confidence": ImputerTaskSpec(head=HEAD, mask_policy="confidence"),
    "bernoulli": ImputerTaskSpec(head=HEAD, mask_policy="bernoulli", loss="imitation"),
    "corrupted": ImputerTaskSpec(head=HEAD, corrupted=0.5),
    "refined": ImputerTaskSpec(head=HEAD, refined=0.5),
    "consistent": ImputerTaskSpec(head=HEAD, refined=0.3, consistency=0.2),
    "masks only": ImputerTaskSpec(head=HEAD, all_masked=1.0),
    "rivals": ImputerTaskSpec(
        head=HEAD,
        rivals={
            "wide": RivalSpec(head=msgspec.structs.replace(HEAD, width=7)),
            "imitation": RivalSpec(loss="imitation", corrupted=0.2, refined=0.3),
        },
    ),
    "joint": ImputerTaskSpec(head=HEAD, stop_gradient=False, ctc_weight=0.9),
    "attention": ImputerTaskSpec(
        head=ImputerSpec(
            mixer="attention",
            width=8,
            heads=2,
            depth=1,
            context=2,
            block_size=4,
            schedule=(2, 2),
        )
    ),
}
WORDS = ("yes", "no", "stop")
CASES: dict[str, tuple[TaskSpec, object]] = {
    **{f"imputer, {name}": (settings, CRNN) for name, settings in IMPUTERS.items()},
    "imputer, conformer with branches": (IMPUTERS["dp"], BRANCHED),
    "imputer, hard negatives": (ImputerTaskSpec(head=HEAD, keywords=("ab", "b")), CRNN),
    "ctc": (CtcTaskSpec(chunk=4), CRNN),
    "ctc, hard negatives": (CtcTaskSpec(chunk=4, keywords=("ab",)), CRNN),
    "ctc, tcn": (CtcTaskSpec(chunk=4), TcnSpec(channels=5, stacks=((1,), (2,)))),
    "ctc, self-conditioned": (CtcTaskSpec(chunk=4), BRANCHED),
    "keywords": (KeywordTaskSpec(keywords=WORDS), CRNN),
    "keywords, silence": (KeywordTaskSpec(keywords=WORDS[:2], silence=True), CRNN),
    "keywords, max-pool at once": (KeywordTaskSpec(keywords=WORDS, mean_pooled=0.0), CRNN),
    "keywords, mean-pool": (KeywordTaskSpec(keywords=WORDS, loss="mean-pool"), CRNN),
    "keywords, windows": (KeywordTaskSpec(keywords=WORDS), WINDOWS),
}
STAGES = {"flat start": (0, 0.0), "all masked": (15, 0.15), "roll-in": (50, 0.5)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", CASES)
def test_losses_are_an_utterances_own(name: str, stage: str) -> None:
    """Alone, in a padded batch, or in another process: with dropout, masks and samples.

    In evaluation mode the norms use running statistics; what is drawn is drawn all the same,
    because the dropout is turned on by hand.
    """
    settings, encoder = CASES[name]
    model = task(settings, encoder).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    whole = batch((32, 16, 48, 16))
    together = model.losses(whole, *STAGES[stage])
    assert together["loss"].shape == (4,)
    assert together["loss"].isfinite().all()
    assert together["loss"].dtype == torch.float64 or isinstance(settings, KeywordTaskSpec)
    for rows in (slice(0, 1), slice(1, 2), slice(1, 4), slice(3, 4)):
        alone = model.losses(part(whole, rows), *STAGES[stage])
        for key, values in together.items():
            torch.testing.assert_close(values[rows], alone[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_only_the_loss_has_a_gradient_and_reaches_every_weight(name: str) -> None:
    settings, encoder = CASES[name]
    model = task(settings, encoder).train()
    losses = model.losses(batch((32, 16, 48, 16)), 50, 0.5)
    assert [key for key, value in losses.items() if value.requires_grad] == ["loss"]
    losses["loss"].mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if isinstance(settings, CtcTaskSpec) and encoder is BRANCHED:
        assert "head.output.weight" not in without
    # A ReLU that never opens may leave a weight of a tiny network without; most must have one.
    assert len(without) <= 2, without


LEARN = ("imputer, dp", "imputer, imitation", "imputer, joint", "ctc", "ctc, self-conditioned")


@pytest.mark.parametrize("name", LEARN)
def test_a_task_overfits_a_batch(name: str) -> None:
    settings, encoder = CASES[name]
    model = task(settings, encoder).float()
    few = batch((32, 16))
    few.features = few.features.float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    first = last = torch.tensor(0.0)
    for step in range(80):
        last = model.losses(few, step, step / 80)["loss"].mean()
        first = last.detach() if step == 16 else first  # after the flat start and all masked
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
    assert last < 0.6 * first


def test_the_losses_are_what_they_say() -> None:
    """The parts of an Imputer's loss, by hand, without what is drawn."""
    settings = msgspec.structs.replace(IMPUTERS["dp"], dropout=0.0, logit_penalty=0.25)
    model = task(settings).eval()
    assert isinstance(model, ImputerTask)
    b = batch()
    losses = model.losses(b, 0, 0.15)  # all masked: plain CTC of the head
    out, frames = model.encoder(b.features, b.lengths)
    common = b.targets, frames, b.target_lengths
    ctc = ctc_loss(model.ctc(out), *common, reduction="none") / b.target_lengths
    logits = model.head(out, model.head.fully_masked(out))
    head = ctc_loss(logits, *common, reduction="none") / b.target_lengths
    penalty = torch.stack([row[:n].square().mean() for row, n in zip(logits, frames, strict=True)])
    torch.testing.assert_close(losses["ctc"], ctc)
    torch.testing.assert_close(losses["imputer"], head + 0.25 * penalty)
    torch.testing.assert_close(losses["loss"], losses["ctc"] + losses["imputer"])
    guided = model.losses(b, 0, 0.05)["ctc"]
    cross = F.cross_entropy(model.ctc(out).transpose(1, 2), b.flat_start, reduction="none")
    mean = torch.stack([row[:n].mean() for row, n in zip(cross, frames, strict=True)])
    torch.testing.assert_close(guided, 0.3 * ctc + mean)


def test_stop_gradient_keeps_the_heads_loss_from_the_encoder() -> None:
    def encoder_gradient(settings: TaskSpec) -> Tensor:
        model = task(settings).train()
        model.losses(batch(), 50, 0.5)["loss"].sum().backward()
        assert isinstance(model, ImputerTask)
        return model.encoder.gru[0].weight_hh_l0.grad

    plain = msgspec.structs.replace(IMPUTERS["dp"], dropout=0.0)
    other_head = msgspec.structs.replace(plain, logit_penalty=50.0)
    assert torch.equal(encoder_gradient(plain), encoder_gradient(other_head))
    joint = msgspec.structs.replace(plain, stop_gradient=False)
    joint_other = msgspec.structs.replace(other_head, stop_gradient=False)
    assert not torch.allclose(encoder_gradient(joint), encoder_gradient(joint_other))


def test_the_dp_loss_is_at_most_the_imitation_loss() -> None:
    """Of the same alignments and masks: the one sums over what the other is a term of."""
    dp = task(IMPUTERS["dp"]).eval()
    imitation = task(IMPUTERS["imitation"]).eval()
    b = batch()
    ours, theirs = (model.losses(b, 50, 0.5) for model in (dp, imitation))
    torch.testing.assert_close(ours["ctc"], theirs["ctc"])
    assert (ours["imputer"] <= theirs["imputer"] + 1e-9).all()
    assert (ours["imputer"] < theirs["imputer"] - 1e-6).any()


def test_rivals_learn_as_if_they_were_alone() -> None:
    """Losses and gradients of a rival are those of a task that has its settings."""
    settings = IMPUTERS["rivals"]
    plain = msgspec.structs.replace(settings, rivals={})
    together, without = task(settings).eval(), task(plain).eval()
    losses = together.losses(batch(), 50, 0.5)
    torch.testing.assert_close(losses["ctc"], without.losses(batch(), 50, 0.5)["ctc"])
    torch.testing.assert_close(losses["imputer"], without.losses(batch(), 50, 0.5)["imputer"])
    losses["loss"].sum().backward()
    for name in settings.rivals:
        alone = task(settings.rival(name)).eval()
        alone.load_state_dict(
            {
                **{k: v for k, v in together.state_dict().items() if not k.startswith("rivals")},
                **{
                    f"head.{k}": v
                    for k, v in cast(ImputerTask, together).rivals[name].state_dict().items()
                },
            }
        )
        own = alone.losses(batch(), 50, 0.5)
        torch.testing.assert_close(losses[f"{name}/loss"], own["imputer"])
        own["loss"].sum().backward()
        for key, parameter in cast(ImputerTask, together).rivals[name].named_parameters():
            theirs = cast(ImputerTask, alone).head.get_parameter(key).grad
            torch.testing.assert_close(parameter.grad, theirs)
    groups = together.clipped_groups()
    assert len(groups) == 3
    assert sum(map(len, groups)) == len(list(together.parameters()))
    of_rivals = {"wide/wer_k4", "imitation/wer_k4", "imitation/wer_k1r1"}
    assert set(together.validate(batch())) == {"wer_k1", "wer_k4"} | of_rivals


def test_a_head_that_sees_only_masks_is_read_once() -> None:
    settings = ImputerTaskSpec(head=HEAD, all_masked=1.0, rivals={"other": RivalSpec()})
    model = task(settings)
    assert isinstance(model.spec, ModelSpec)
    assert model.spec.head.schedule == (4,)
    assert model.monitor == ("wer_k1", "min")
    assert cast(ImputerTask, model).rivals["other"].spec.schedule == (4,)
    with pytest.raises(SpecError, match="'train' is a name that torch needs"):
        task(ImputerTaskSpec(head=HEAD, rivals={"train": RivalSpec()}))


def test_corrupted_and_refined_frames_are_the_encoders() -> None:
    """What the head is shown, and what the loss takes as filled in."""
    b = batch((64, 32))
    frames = torch.tensor([16, 8])
    logits = torch.randn(2, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = _Given(torch.zeros(2, 16, 6), logits, frames, b, b.seeds)
    partial = torch.full((2, 16), MASK)
    partial[:, ::2] = 1
    partial[1, 8:] = MASK
    half = msgspec.structs.replace(IMPUTERS["dp"], corrupted=0.5)
    kept, shown = _shown(partial, given, half, all_masked=False)
    assert torch.equal(kept, partial)  # the loss takes no error as filled in
    assert torch.equal(shown == MASK, partial == MASK)
    assert 2 <= int((shown != partial).sum()) <= 10
    sure = F.one_hot(torch.full((2, 16), 3), 4) * 50.0
    certain = dataclasses.replace(given, ctc_logits=sure)
    replaced = _shown(partial, certain, half, all_masked=False)[1]
    assert set(replaced[replaced != partial].tolist()) == {3}
    for share, as_it_was in ((1.0, False), (0.0, True)):
        refined = msgspec.structs.replace(IMPUTERS["dp"], refined=share)
        kept, shown = _shown(partial, given, refined, all_masked=False)
        whole = logits.argmax(-1)
        whole[1, 8:] = MASK
        assert torch.equal(shown, partial if as_it_was else whole)
        assert (kept == MASK).all() or as_it_was
        assert torch.equal(_shown(partial, given, refined, all_masked=True)[1], partial)


def test_disagreement_counts_frames_that_both_looks_had_to_find() -> None:
    """Both divergences by their definition, and no gradient towards the other's answer."""
    generator = torch.Generator().manual_seed(3)
    frames = torch.tensor([3, 2])
    logits = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator)
    partials = torch.full((2, 2, 3), MASK)
    partials[0, 0, 1] = partials[1, 0, 2] = 1  # of the first utterance, frame 0 is open in both
    none = torch.zeros(2)
    one, other = (
        _Look(none, none, each.clone().requires_grad_(), partial)
        for each, partial in zip(logits, partials, strict=True)
    )
    apart = _disagreement(one, other, frames)
    p, q = logits.float().softmax(-1)
    both = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)) / 2
    torch.testing.assert_close(apart, torch.stack([both[0, 0], both[1, :2].sum()]))
    assert not _disagreement(one, one, frames).any()
    apart.sum().backward()
    gradient = one.logits.grad
    assert gradient is not None
    torch.testing.assert_close(gradient[1, :2], ((p - q) / 2)[1, :2].double())
    assert not gradient[0, 1:].any()
    assert not gradient[1, 2].any()


def test_a_second_look_has_other_masks_and_errors() -> None:
    """The same utterances by the same alignments, whatever batch they are in."""
    b = batch((64, 32))
    logits = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    given = _Given(torch.zeros(2, 16, 6), logits, torch.tensor([16, 8]), b, b.seeds)
    best = given.alignment("viterbi")
    again = given.with_other_masks()
    assert again.alignment("viterbi") is best
    settings = IMPUTERS["corrupted"]
    first, second = (
        _shown(_mask(best, one, settings), one, settings, all_masked=False)[1]
        for one in (given, again)
    )
    assert not torch.equal(first, second)
    assert torch.equal(again.seeds, given.with_other_masks().seeds)
    alone = dataclasses.replace(given, seeds=b.seeds[1:]).with_other_masks()
    assert torch.equal(again.seeds[1:], alone.seeds)


def test_masks_and_dropout_change_with_the_seeds() -> None:
    model = task(IMPUTERS["dp"]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    b = batch()
    first = model.losses(b, 50, 0.5)["loss"]
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(model.losses(b, 50, 0.5)["loss"], first)
    b.seeds = b.seeds + 1
    assert (model.losses(b, 50, 0.5)["loss"] != first).all()
    model.eval()  # no dropout, but masks
    assert torch.equal(model.losses(b, 50, 0.5)["ctc"], model.losses(batch(), 50, 0.5)["ctc"])


# ---------------------------------------------------------------------------- CTC


def test_a_linear_head_does_not_look_at_the_alignment() -> None:
    model = task(CtcTaskSpec(chunk=4)).eval()
    assert isinstance(model, CtcTask)
    head = model.head
    assert {n for n, _ in head.named_parameters()} == {"output.weight", "output.bias"}
    assert (head.spec.left_context, head.spec.window, head.spec.schedule) == (0, 4, (4,))
    out = torch.randn(2, 8, 6, dtype=torch.float64)
    logits = head(out, head.fully_masked(out))
    assert torch.equal(logits, head(out, torch.zeros(2, 8, dtype=torch.long)))
    torch.testing.assert_close(logits, head.output(out))
    assert torch.equal(decode(head, out, (4,)), logits.argmax(-1))
    assert list(model.validate(batch())) == ["wer_k1"]


def test_the_branches_share_the_head_and_get_their_weight() -> None:
    def losses(weight: float) -> Tensor:
        settings = CtcTaskSpec(
            chunk=4, intermediate_weight=weight, dropout=0.0, logit_penalty=0.0, flat_start=0.0
        )
        model = task(settings, BRANCHED).eval()
        assert isinstance(model, CtcTask)
        assert model.encoder.ctc is model.head.output
        b = batch()
        out, frames, branches = model.encode(b)
        assert len(branches) == 2
        common = b.targets, frames, b.target_lengths
        each = [
            ctc_loss(x, *common, reduction="none") / b.target_lengths
            for x in (model.head.output(out), *branches)
        ]
        expected = (1 - weight) * each[0] + weight * (each[1] + each[2]) / 2
        torch.testing.assert_close(model.losses(b, 0, 0.5)["loss"], expected)
        return expected

    assert not torch.allclose(losses(0.0), losses(0.5))


def test_the_tokens_decide_the_branches_size() -> None:
    spec = CtcTaskSpec(chunk=4).make_spec(FEATURES, BRANCHED, TOKENS)
    assert isinstance(spec.encoder, ConformerSpec)
    assert spec.encoder.n_tokens == TOKENS.vocabulary_size == 4


# ---------------------------------------------------------------------------- validation


def test_word_errors_are_counted() -> None:
    """A model made to write "ab": its errors, by hand."""
    model = task(msgspec.structs.replace(IMPUTERS["dp"], head=HEAD)).eval()
    b = batch((16, 16))
    b.targets = torch.tensor([[2, 3, 1, 2], [2, 3, 0, 0]])  # "ab a", "ab"
    b.target_lengths = torch.tensor([4, 2])
    written = torch.tensor([[2, 3, 0, 0], [2, 3, 0, 0]])
    model.head.forward = lambda out, alignment: F.one_hot(written, 4).double() * 9
    assert model.validate(b) == {"wer_k1": (1.0, 3.0), "wer_k4": (1.0, 3.0)}
    assert model.monitor == ("wer_k4", "min")
    assert_revisions_are_counted(b)
    sums = {"wer_k1": (1.0, 3.0), "nothing": (0.0, 0.0)}
    assert model.summarise(sums) == {"wer_k1": 1 / 3}


def assert_revisions_are_counted(b: Batch) -> None:
    """A head that writes "ab" at first, and "b" when it sees that: three words of three wrong."""
    model = task(IMPUTERS["refined"]).eval()
    first, second = torch.tensor([2, 3, 0, 0]), torch.tensor([3, 0, 0, 0])

    def head(out: Tensor, alignment: Tensor) -> Tensor:
        seen_whole = (alignment == first).all(1, keepdim=True)
        return F.one_hot(torch.where(seen_whole, second, first), 4).double() * 9

    model.head.forward = head
    found = model.validate(b)
    assert found == {"wer_k1": (1.0, 3.0), "wer_k4": (1.0, 3.0), "wer_k1r1": (3.0, 3.0)}
    never = msgspec.structs.replace(IMPUTERS["refined"], all_masked=1.0)
    assert set(task(never).eval().validate(b)) == {"wer_k1", "wer_k4"}


# ---------------------------------------------------------------------------- keywords


def keyword_spec(silence: bool = False) -> KeywordModelSpec:
    return KeywordTaskSpec(keywords=("a", "b"), silence=silence).make_spec(FEATURES, CRNN)


def test_the_max_pool_loss_by_hand() -> None:
    spec = keyword_spec()
    p = torch.tensor(  # frames of unknown, a, b
        [[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]]
    ).double()
    valid = torch.tensor([[True, True, True, False]])  # the last frame is padding
    logits = p.clamp(min=1e-300).log()

    def loss(label: int) -> float:
        return float(max_pool_loss(logits, torch.tensor([label]), valid, spec).exp())

    assert loss(1) == pytest.approx(1 / 0.5 / (1 - 0.7))  # a where it is likeliest; b at 0.7
    assert loss(2) == pytest.approx(1 / 0.7 / (1 - 0.5))
    assert loss(0) == pytest.approx(1 / 0.1)  # the worst frame: 0.2 + 0.7 for keywords


def test_silence_is_meant_everywhere() -> None:
    spec = keyword_spec(silence=True)
    p = torch.tensor([[[0.1, 0.1, 0.1, 0.7], [0.2, 0.2, 0.1, 0.5]]]).double()
    valid = torch.ones(1, 2, dtype=torch.bool)
    loss = max_pool_loss(p.log(), torch.tensor([3]), valid, spec)
    assert float(loss.exp()) == pytest.approx((0.7 * 0.5) ** -0.5 / 0.7)


def test_classes_are_read_where_a_keyword_is_likeliest() -> None:
    p = torch.tensor(
        [
            [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]],
            [[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0]],
            [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],
        ]
    )
    found = classify(p.clamp(min=1e-30).log(), torch.tensor([2, 2, 0]), 2)
    assert found.tolist() == [1, 0, 0]  # by its own two frames; none has no class but the first


def test_class_weights_and_unlabelled_utterances() -> None:
    plain = KeywordTaskSpec(keywords=WORDS)
    weighted = msgspec.structs.replace(plain, class_weights={"no": 3.0, "_unknown_": 0.5})
    b = batch((32, 16, 48, 16))
    first, second = (task(s).eval().losses(b, 0, 0.9)["loss"] for s in (plain, weighted))
    torch.testing.assert_close(second, first * torch.tensor([0.5, 1.0, 3.0, 1.0]))
    b.labels = torch.tensor([-1, 1, -1, 3])
    losses = task(plain).eval().losses(b, 0, 0.0)["loss"]
    assert losses[[0, 2]].tolist() == [0, 0]
    assert (losses[[1, 3]] > 0).all()


@pytest.mark.parametrize("name", [name for name in CASES if "keywords" in name])
def test_keywords_are_learnt_from_utterances_labels(name: str) -> None:
    """A bump in a band of its own, anywhere in noise: label, no place."""
    settings, encoder = CASES[name]
    model = task(settings, encoder).float()
    generator = torch.Generator().manual_seed(0)

    def examples(n: int) -> Batch:
        b = batch((32,) * n)
        b.features = 0.3 * torch.randn(n, 32, 8, generator=generator)
        starts = torch.randint(0, 20, (n,), generator=generator).tolist()
        for i, (label, start) in enumerate(zip(b.labels.tolist(), starts, strict=True)):
            if label and not (settings.silence and label == 3):
                b.features[i, start : start + 8, 2 * label] += 2
            elif settings.silence and label == 3:
                b.features[i] = 0
        return b

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        loss = model.losses(examples(16), step, step / 150)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    measures = model.eval().summarise(model.validate(examples(64)))
    assert measures["balanced_accuracy"] > 0.9, measures
    assert measures["balanced_accuracy"] == pytest.approx(measures["accuracy"])  # equal classes
    assert model.monitor == ("balanced_accuracy", "max")


def test_balanced_accuracy_weighs_classes_alike() -> None:
    model = task(KeywordTaskSpec(keywords=WORDS))
    sums = {"accuracy": (90.0, 100.0), "recall/yes": (88.0, 90.0), "recall/no": (2.0, 10.0)}
    sums["recall/stop"] = (0.0, 0.0)  # none in the validation clips
    assert model.summarise(sums)["balanced_accuracy"] == pytest.approx((88 / 90 + 0.2) / 2)


# ---------------------------------------------------------------------------- settings


def test_every_kind_of_settings_has_its_task() -> None:
    assert set(TASKS) == {ImputerTaskSpec, CtcTaskSpec, KeywordTaskSpec}


@pytest.mark.parametrize(
    "settings", [IMPUTERS["bernoulli"], CtcTaskSpec(chunk=5), KeywordTaskSpec(keywords=WORDS)]
)
def test_settings_survive_json(settings: TaskSpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(settings), type=TaskSpec) == settings


def test_settings_are_read_from_toml() -> None:
    text = 'kind = "keywords"\nkeywords = ["yes", "no"]\n[class_weights]\nyes = 2.0\n'
    expected = KeywordTaskSpec(keywords=("yes", "no"), class_weights={"yes": 2.0})
    assert msgspec.toml.decode(text, type=TaskSpec) == expected
    for kind in ("imputer", "ctc", "keywords"):
        with pytest.raises(msgspec.ValidationError, match="unknown field `typo`"):
            msgspec.toml.decode(f'kind = "{kind}"\ntypo = 1\n', type=TaskSpec)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ImputerTaskSpec(dropout=1.5), "shares .* got {'dropout': 1.5}"),
        (ImputerTaskSpec(all_masked=1.5), "all_masked from 0 to 1, got 1.5"),
        (ImputerTaskSpec(refined=-1.0), "refined from 0 to 1, got -1.0"),
        (ImputerTaskSpec(consistency=-0.1), "expected consistency >= 0, and finite, got -0.1"),
        (ImputerTaskSpec(corrupted=1.0), "shares .* got {'corrupted': 1.0}"),
        (
            ImputerTaskSpec(rivals={"a": RivalSpec()}, stop_gradient=False),
            "expected stop_gradient with rivals",
        ),
        (
            ImputerTaskSpec(rivals={"a": RivalSpec(head=HEAD)}),
            "rivals: .* chunks of 8 frames, got 'a' with 4",
        ),
        (ImputerTaskSpec(rivals={"a b": RivalSpec()}), "rivals: expected names .* got 'a b'"),
        (ImputerTaskSpec(rivals={"a": RivalSpec(loss="x")}), "loss: expected one of"),
        (ImputerTaskSpec(stop_gradient=False, ctc_weight=0.4), "ctc_weight between 0.8 and 1"),
        (ImputerTaskSpec(head=ImputerSpec(kernel=4)), "odd kernel"),
        (ImputerTaskSpec(head=CtcTaskSpec().head), "reads alignments"),
        (ImputerTaskSpec(logit_penalty=-1.0), "logit_penalty >= 0"),
        (ImputerTaskSpec(loss="cer"), "loss: expected one of dp, imitation, got 'cer'"),
        (ImputerTaskSpec(roll_in="all"), "roll_in: expected one of viterbi, sampled"),
        (ImputerTaskSpec(mask_policy="x"), "mask_policy: expected one of block"),
        (CtcTaskSpec(chunk=0), "chunk >= 1"),
        (CtcTaskSpec(flat_start=-0.1), "shares"),
        (KeywordTaskSpec(mean_pooled=1.0), "shares"),
        (KeywordTaskSpec(loss="min"), "loss: expected one of"),
        (KeywordTaskSpec(class_weights={"a": 0.0}), "class_weights above 0"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: TaskSpec, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        settings.check()


def test_models_that_do_not_belong_to_their_settings_are_refused() -> None:
    imputer, ctc = IMPUTERS["dp"], CtcTaskSpec(chunk=4)
    words = KeywordTaskSpec(keywords=WORDS)
    model = imputer.make_spec(FEATURES, CRNN, TOKENS)
    with pytest.raises(SpecError, match="linear head"):
        build_task(model, ctc)
    with pytest.raises(SpecError, match="expected a keyword model, got ModelSpec"):
        build_task(model, words)
    with pytest.raises(SpecError, match="the head of the task's settings"):
        build_task(words.make_spec(FEATURES, CRNN), imputer)
    with pytest.raises(SpecError, match="which scores windows"):
        ctc.make_spec(FEATURES, WINDOWS, TOKENS)
    with pytest.raises(SpecError, match="expected log-mel features"):
        ctc.make_spec(PcenSpec(), CRNN, TOKENS)
    with pytest.raises(SpecError, match="the tokens that the model writes"):
        ctc.make_spec(FEATURES, CRNN)
    with pytest.raises(SpecError, match=r"class_weights of the classes .* got \['maybe'\]"):
        KeywordTaskSpec(keywords=WORDS, class_weights={"maybe": 2.0}).make_spec(FEATURES, CRNN)


def test_a_linear_head_is_read_once() -> None:
    with pytest.raises(SpecError, match=r"the schedule \(8,\) and no revisions with mixer none"):
        ImputerSpec(mixer="none").check()
    CtcTaskSpec().head.check()


def test_an_imputers_head_loss_is_the_objectives() -> None:
    """In the roll-in: the loss of the partial alignments that the seeds give."""
    settings = msgspec.structs.replace(IMPUTERS["dp"], dropout=0.0, logit_penalty=0.0)
    model = task(settings).eval()
    assert isinstance(model, ImputerTask)
    assert isinstance(model.spec, ModelSpec)
    b = batch()
    out, frames = model.encoder(b.features, b.lengths)
    given = _Given(out, model.ctc(out), frames, b, b.seeds)
    alignment = given.alignment("viterbi")
    partial = _mask(alignment, given, settings)
    assert ((partial == -1) | (partial == alignment.tokens)).all()
    seen = partial.masked_fill(partial == -1, model.spec.tokens.mask_id)
    losses = imputer_loss(
        model.head(out, seen), b.targets, partial, frames, b.target_lengths, reduction="none"
    )
    found = model.losses(b, 50, 0.5)["imputer"]
    torch.testing.assert_close(found, losses / b.target_lengths)


@pytest.mark.parametrize("pattern", ["dense", "local", "local+fixed"])
def test_what_cannot_stream_can_be_trained_and_is_refused_where_it_would_stream(pattern) -> None:
    attention = AttentionSpec(
        pattern=pattern,
        heads=2,
        block=4,
        left_context=0 if pattern == "dense" else 4,
        direction="bidirectional",
    )
    model = task(CtcTaskSpec(chunk=4), msgspec.structs.replace(CONFORMER, attention=attention))
    assert model.losses(batch(), 50, 0.5)["loss"].isfinite().all()
    assert isinstance(model.spec, ModelSpec)
    with pytest.raises(SpecError, match="to encode a stream, got bidirectional"):
        model.spec.check_streaming()
    with pytest.raises(SpecError, match="to encode a stream, got bidirectional"):
        StreamingDecoder(Described(model.spec), backend=cast("Backend", None))
