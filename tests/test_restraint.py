"""What keeps a keyword out of speech that nobody transcribed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.errors import SpecError, TokenError
from edge_imputer.keywords import KeywordScorer
from edge_imputer.specs import CrnnSpec, FeatureSpec, ModelSpec, TokenSpec
from edge_imputer.train.data import DrawnPlan
from edge_imputer.train.data.augment import AugmentSpec
from edge_imputer.train.data.plan import UNKNOWN_CLASS
from edge_imputer.train.tasks import CtcTask, CtcTaskSpec, ImputerTask, ImputerTaskSpec, build_task
from edge_imputer.train.tasks.restraint import Restraint

from .test_tasks import HEAD, batch, task

TOKENS = TokenSpec(characters=(" ", "a", "b"))  # blank 0, space 1, a 2, b 3
SPEC = ModelSpec(
    features=FeatureSpec(n_mels=8),
    encoder=CrnnSpec(),
    head=CtcTaskSpec(chunk=4).head,
    tokens=TOKENS,
)
KEYWORDS = ("ab", "bb")


def probability(log_probs: np.ndarray, ids: list[int]) -> float:
    """P(ids) by CTC over all frames, by enumerating every alignment."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [k for k, _ in itertools.groupby(path) if k] == ids:
            total += math.exp(sum(log_probs[t, k] for t, k in enumerate(path)))
    return total


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_the_loss_is_that_of_the_likeliest_keyword_where_it_is_heard(seed, n_frames):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, n_frames + 2, 4, generator=generator, dtype=torch.float64)
    (loss,) = Restraint(SPEC, KEYWORDS).losses(logits, torch.tensor([n_frames]))
    log_probs = logits[0, :n_frames].log_softmax(-1).numpy()
    scorer = KeywordScorer(KEYWORDS, TOKENS)
    parts = [scorer.push(log_probs.astype(np.float32)), scorer.finish()]
    best = max(
        (float(p.confidence[t, k]), k, int(p.start[t, k]), int(p.end[t, k]))
        for p in parts
        for t in range(len(p.confidence))
        for k in range(2)
    )
    if best[0] == 0:
        assert loss == 0
        return
    _, keyword, start, end = best
    ids = [[2, 3], [3, 3]][keyword]
    p = probability(log_probs[start : end + 1], ids) ** 0.5
    # Of 1 - p only digits are left where p is nearly 1: the scorer reads float32.
    assert float(loss) == pytest.approx(-math.log(1 - p), rel=1e-3, abs=1e-6)


def test_each_utterance_has_its_own_and_padding_none():
    restraint = Restraint(SPEC, KEYWORDS)
    logits = torch.randn(5, 12, 4, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([12, 5, 0, 1, 8])
    together = restraint.losses(logits, frames)
    assert together.shape == (5,)
    assert together[2] == together[3] == 0  # no frame, and too few for two letters
    for i, n in enumerate(frames.tolist()):
        alone = restraint.losses(logits[i : i + 1, :n], frames[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize("sure", [1.0, 5.0, 12.0])
def test_however_sure_a_model_is_the_keyword_goes(sure):
    """Of a network that is certain, every frame's gradient vanishes but for the logarithm."""
    spelled = torch.tensor([0, 2, 2, 3, 0, 0, 0, 0])
    logits = (sure * torch.nn.functional.one_hot(spelled, 4).float())[None].requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    restraint = Restraint(SPEC, ("ab",))
    scorer = KeywordScorer(("ab",), TOKENS)

    def confidence() -> float:
        log_probs = logits[0].detach().log_softmax(-1).numpy()
        return float(max(p.confidence.max() for p in (scorer.push(log_probs), scorer.finish())))

    assert confidence() > 0.99
    for _ in range(60):
        optimizer.zero_grad()
        loss = restraint.losses(logits, torch.tensor([8])).sum()
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    assert confidence() < 0.4


def test_keywords_are_checked():
    with pytest.raises(TokenError):
        Restraint(SPEC, ("xyz",))
    with pytest.raises(SpecError, match="distinct keywords"):
        CtcTaskSpec(keywords=("ab", "ab")).check()
    with pytest.raises(SpecError, match="restraint >= 0"):
        CtcTaskSpec(restraint=-1.0).check()


@pytest.mark.parametrize("kind", ["ctc", "imputer"])
def test_a_hard_negative_trains_on_nothing_else(kind):
    """Its targets, its first alignment and its seed mean nothing; others are as ever."""
    given_settings = (
        CtcTaskSpec(chunk=4, keywords=("ab",), logit_penalty=0.0)
        if kind == "ctc"
        else ImputerTaskSpec(head=HEAD, keywords=("ab",), logit_penalty=0.0)
    )
    model = task(given_settings).eval()
    assert isinstance(model, (CtcTask, ImputerTask))
    one = batch((32, 32))
    one.labels[:] = torch.tensor([UNKNOWN_CLASS, -1])
    first = model.losses(one, 50, 0.5)["loss"]
    assert (first > 0).all()
    one.targets[0] = torch.tensor([1, 1, 1])
    one.target_lengths[0] = 0
    one.flat_start[0] = 3
    torch.testing.assert_close(model.losses(one, 50, 0.5)["loss"], first)
    logits = model.head.output(model.encoder(one.features, one.lengths)[0])
    if kind == "ctc":
        wanted = Restraint(model.spec, ("ab",)).losses(logits[:1], torch.tensor([8]))
        torch.testing.assert_close(first[:1], wanted)
    plain = build_task(
        model.spec,
        type(given_settings)(
            **{"chunk": 4} if kind == "ctc" else {"head": HEAD}, logit_penalty=0.0
        ),
    )
    plain.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval().losses(one, 50, 0.5)["loss"][1], first[1])


def test_the_plan_keeps_hard_negatives_apart():
    hard = np.zeros(40, bool)
    hard[30:] = True
    plan = DrawnPlan(
        np.ones(40),
        np.zeros(40, int),
        AugmentSpec(clips_joined=(2, 3), isolated=0.0, same_speaker=1.0),
        batch_size=10,
        seed=3,
        hard=hard,
        hard_share=0.25,
    )
    counts = []
    for index in range(60):
        draws = plan.update(index)
        assert draws == plan.update(index)
        for draw in draws:
            if hard[list(draw.rows)].any():
                assert len(draw.rows) == 1
                assert draw.label == UNKNOWN_CLASS
                again = plan.again(draw, 1)
                assert hard[again.rows[0]]
                assert again.label == UNKNOWN_CLASS
            else:
                assert draw.label == -1
                assert len(draw.rows) in (2, 3)
                assert not hard[list(plan.again(draw, 1).rows)].any()
        counts.append(sum(draw.label == UNKNOWN_CLASS for draw in draws))
    assert set(counts) == {2, 3}
    assert 2.2 < np.mean(counts) < 2.8


def test_without_hard_negatives_the_plan_is_as_before():
    spec = AugmentSpec(clips_joined=(1, 3))
    plans = [
        DrawnPlan(np.ones(9), np.arange(9) % 2, spec, batch_size=4, seed=5, **keys)
        for keys in ({}, {"hard": np.zeros(9, bool), "hard_share": 0.5})
    ]
    assert [plans[0].update(i) for i in range(5)] == [plans[1].update(i) for i in range(5)]
