"""Scores of whole models: against brute force, alone and in batches, and what cannot be scored."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge_imputer.errors import SpecError
from edge_imputer.train.active import STRATEGIES, ScoredBatch, open_scorer, scores, speech
from edge_imputer.train.active.gradients import label_gradients
from edge_imputer.train.active.heard import Readout
from edge_imputer.train.active.keywords import TRAINED
from edge_imputer.train.active.speech import HeardSpeech
from edge_imputer.train.data import Batch
from edge_imputer.train.objective import imputer_loss
from edge_imputer.train.tasks import CtcTask, ImputerTask, KeywordTask, KeywordTaskSpec, Task
from edge_imputer.train.tasks.keywords import classify

from .active_cases import enumerated, squared_length, torch_loss
from .test_tasks import CASES, WORDS, batch, part, task

NAMES = [
    "imputer, dp",
    "imputer, bernoulli",
    "imputer, attention",
    "ctc",
    "ctc, self-conditioned",
    "keywords",
    "keywords, mean-pool",
    "keywords, windows",
]
FRAME_S = 0.01


def model(name: str) -> Task:
    return task(*CASES[name]).eval()


def values(scored: ScoredBatch) -> list[float]:
    assert not scored.problems
    return [clip.score for clip in scored.scores if clip is not None]


def score(strategy: str, of: Task, given: Batch, **options: Any) -> list[float]:
    return values(open_scorer(strategy, of, **options).score(given))


def taken(whole: Batch, rows: list[int]) -> Batch:
    tensors = {name: value[rows] for name, value in vars(whole).items() if torch.is_tensor(value)}
    return replace(whole, **tensors)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_a_clips_own(name: str, strategy: str) -> None:
    """In any order, alone, however long others pad it; and again the same."""
    scorer = open_scorer(strategy, model(name), seed=3)
    b = batch((32, 16, 48))
    together = scorer.score(b)
    assert together.scores == scorer.score(b).scores
    turned = scorer.score(taken(b, [2, 0, 1]))
    for row, place in ((2, 0), (0, 1), (1, 2)):
        for other, index in ((turned, place), (scorer.score(part(b, slice(row, row + 1))), 0)):
            one, same = together.scores[row], other.scores[index]
            assert one is not None
            assert same is not None
            assert same.text == one.text
            assert same.score == pytest.approx(one.score, rel=1e-9, abs=1e-12)
            assert same.confidence == pytest.approx(one.confidence, rel=1e-9)
            assert 0 < one.confidence <= 1
            assert one.per_second == pytest.approx(one.score / (int(b.lengths[row]) * FRAME_S))
            if together.embeddings is not None:
                assert other.embeddings is not None
                np.testing.assert_allclose(
                    other.embeddings[index], together.embeddings[row], rtol=1e-5, atol=1e-6
                )
    assert (together.embeddings is not None) == scorer.needs_embedding


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "random"])
@pytest.mark.parametrize("name", NAMES)
def test_who_is_certain_learns_nothing(name: str, strategy: str) -> None:
    of = model(name)
    layers: list[Any] = [getattr(of, "ctc", None)]
    if isinstance(of, KeywordTask):
        windowed = of.spec.windowed
        layers += [of.model.encoder.network.classifier if windowed else of.model.classifier]
    else:
        layers += [of.head.output]
    for layer in layers:
        if layer is not None:
            torch.nn.init.zeros_(layer.weight)
            layer.bias.data = torch.eye(len(layer.bias), dtype=torch.float64)[1] * 2000
    found = open_scorer(strategy, of).score(batch())
    assert values(found) == pytest.approx([0, 0, 0], abs=1e-12)
    for clip in found.scores:
        assert clip is not None
        assert clip.confidence == 1
    if found.embeddings is not None:
        assert not found.embeddings.any()


def test_egl_of_ctc_is_that_of_all_labelings() -> None:
    """By autograd through the output layer of the model itself, of clips of 4 frames."""
    of = model("ctc")
    assert isinstance(of, CtcTask)
    b = batch((16, 16))
    encoder_out, _ = of.encoder(b.features, b.lengths)
    logits = of.head(encoder_out, of.head.fully_masked(encoder_out))
    output = tuple(of.head.output.parameters())
    expected, roots, confident, entropies = [], [], [], []
    for row in logits.log_softmax(-1):
        labels = enumerated(row)
        squares = {y: squared_length(torch_loss(row, y), output) for y in labels}
        expected.append(sum(p * squares[y] for y, p in labels.items()))
        roots.append(sum(p * math.sqrt(squares[y]) for y, p in labels.items()))
        greedy = tuple(t for t, _ in itertools.groupby(row.argmax(-1).tolist()) if t)
        confident.append(labels[greedy] ** 0.25)
        entropies.append(-sum(p * math.log(p) for p in labels.values()))
    assert score("egl", of, b, n_best=300) == pytest.approx(expected, rel=1e-10)
    assert score("egl", of, b, n_best=300, squared=False) == pytest.approx(roots, rel=1e-10)
    assert score("egl-sampled", of, b, n_samples=4000) == pytest.approx(expected, rel=0.05)
    bound = score("egl-bound", of, b)
    assert all(above >= below for above, below in zip(bound, expected, strict=True))
    few, raw = (score("egl", of, b, n_best=3, renormalise=r) for r in (True, False))
    assert all(0 < less < more for less, more in zip(raw, few, strict=True))
    assert score("least-confidence", of, b) == pytest.approx([4 * (1 - c) for c in confident])
    assert [clip.confidence for clip in open_scorer("random", of).score(b).scores if clip] == (
        pytest.approx(confident)
    )
    sequence = score("entropy", of, b, entropy="sequence", n_samples=4000)
    assert sequence == pytest.approx(entropies, rel=0.05)
    frame = score("entropy", of, b)
    p = logits.softmax(-1)
    assert frame == pytest.approx((-(p * p.log()).sum((1, 2))).tolist())
    assert all(path > labeling for path, labeling in zip(frame, entropies, strict=True))


def hears(logits: torch.Tensor, inputs: torch.Tensor) -> Any:
    """In the place of `HeardSpeech._read`: what its output layer gives, and reads."""
    return lambda heard, _seen: Readout.of(logits, inputs, heard._n_frames)


def unclear(n_frames: int, sure: float, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in which one token of a frame has probability `sure`, the others share the rest."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randint(0, n_tokens, (n_frames,), generator=generator)
    p = torch.full((1, n_frames, n_tokens), (1 - sure) / (n_tokens - 1), dtype=torch.float64)
    p[0, torch.arange(n_frames), path] = sure
    return p.log(), torch.randn(1, n_frames, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_frames", [100, 400])
def test_egl_of_long_unclear_clips_does_not_underflow(
    n_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 the probability of any label of 400 frames is 0."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        of = model("ctc").to(dtype)
        b = batch((4 * n_frames,))
        b = replace(b, features=b.features.to(dtype))
        logits, inputs = (x.to(dtype) for x in unclear(n_frames, 0.4, len("_ ab")))
        monkeypatch.setattr(HeardSpeech, "_read", hears(logits, inputs))
        found[dtype] = score("egl", of, b)
    assert found[torch.float32] == pytest.approx(found[torch.float64], rel=0.02)
    assert found[torch.float32][0] > n_frames / 4


def test_a_clip_without_a_possible_label_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not 0, which is the score of a clip that the model is sure of."""

    def impossible(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses, delta = label_gradients(*given)
        losses[:, 1] = torch.inf
        return losses, delta

    monkeypatch.setattr(speech, "label_gradients", impossible)
    found = open_scorer("egl", model("ctc")).score(batch((32, 16)))
    assert found.scores[0] is not None
    assert found.scores[1] is None
    assert found.problems == {1: "expected a finite score, got nan"}


@pytest.mark.parametrize("name", ["imputer, dp", "imputer, bernoulli", "imputer, attention"])
def test_egl_of_an_imputer_is_that_of_all_labelings(name: str) -> None:
    """Given the roll-ins that its seeds give, by autograd of the Imputer's own loss."""
    of = model(name)
    assert isinstance(of, ImputerTask)
    b = batch((16, 16), seed=1)
    scorer = open_scorer("egl", of, n_best=300, n_masks=3)
    rolls: list[tuple[torch.Tensor, torch.Tensor]] = []
    read = HeardSpeech._read

    def listening(heard: HeardSpeech, seen: torch.Tensor, *filled: torch.Tensor) -> Any:
        if filled:
            rolls.append((seen, filled[0]))
        return read(heard, seen, *filled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeardSpeech, "_read", listening)
        found = values(scorer.score(b))
    assert len(rolls) == 3
    encoder_out, frames = of.encoder(b.features, b.lengths)
    path = of.ctc(encoder_out).argmax(-1)
    output = tuple(of.head.output.parameters())
    expected = [0.0, 0.0]
    for seen, partial in rolls:
        assert ((partial == -1) | (partial == path)).all()
        logits = of.head(encoder_out, seen)
        for i in range(2):
            open_frames = partial[i] == -1
            log_probs = logits[i].detach().log_softmax(-1)
            shown = torch.full_like(log_probs, -torch.inf)
            shown.scatter_(1, partial[i, :, None].clamp(min=0), 0.0)
            labels = enumerated(log_probs.where(open_frames[:, None], shown))
            for y, p in labels.items():
                if p == 0:
                    continue
                loss = imputer_loss(
                    logits[i : i + 1],
                    torch.tensor([y or (1,)]),
                    partial[i : i + 1],
                    frames[i : i + 1],
                    torch.tensor([len(y)]),
                    reduction="sum",
                )
                expected[i] += p * squared_length(loss, output) / 3
    assert found == pytest.approx(expected, rel=1e-10)
    assert len({str(partial.tolist()) for _, partial in rolls}) > 1


def test_the_encoders_ctc_of_an_imputer_is_scored_on_request() -> None:
    of = model("imputer, dp")
    assert isinstance(of, ImputerTask)
    b = batch((16,))
    encoder_out, _ = of.encoder(b.features, b.lengths)
    row = of.ctc(encoder_out)[0].log_softmax(-1)
    labels = enumerated(row)
    layer = tuple(of.ctc.parameters())
    expected = sum(p * squared_length(torch_loss(row, y), layer) for y, p in labels.items())
    assert score("egl", of, b, loss="ctc", n_best=300) == pytest.approx([expected], rel=1e-10)
    assert score("egl", of, b, n_best=300) != pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize("name", ["ctc", "imputer, dp"])
def test_deeper_layers_by_autograd(name: str) -> None:
    """The output layer by its names is the closed form; others are as autograd has them."""
    of = model(name)
    b = batch((16, 32))
    output = ("head.output.weight", "head.output.bias")
    closed = score("egl", of, b)
    assert score("egl", of, b, parameters=output) == pytest.approx(closed, rel=1e-9)
    deep = score("egl", of, b, parameters=(*output, "encoder.gru.0.weight_hh_l0"))
    assert all(more > less for more, less in zip(deep, closed, strict=True))
    roots = score("egl-sampled", of, b, parameters=output, squared=False)
    assert roots == pytest.approx(score("egl-sampled", of, b, squared=False), rel=1e-9)


def test_cudnn_which_has_no_gradients_of_recurrent_layers_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model in evaluation mode; what needs no deeper gradient goes on with it."""
    seen = []
    hear = scores._hear

    def listening(*given: Any) -> Any:
        seen.append(torch.backends.cudnn.enabled)
        return hear(*given)

    monkeypatch.setattr(scores, "_hear", listening)
    for parameters in (("encoder.gru.0.weight_hh_l0",), ()):
        score("egl-sampled", model("ctc"), batch((16,)), parameters=parameters)
    assert seen == [False, True]
    assert torch.backends.cudnn.enabled


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_deeper_layers_have_gradients_on_a_gpu() -> None:
    names = ("encoder.gru.0.weight_hh_l0",)
    of, b = model("ctc"), batch((16, 32))
    here = score("egl", of, b, parameters=names)
    there = score("egl", of.to("cuda"), b.to(torch.device("cuda")), parameters=names)
    assert there == pytest.approx(here, rel=1e-6)


def test_a_middle_layers_gradient_is_autograds() -> None:
    of = model("ctc")
    assert isinstance(of, CtcTask)
    name = "encoder.gru.0.weight_ih_l0"
    weight = (dict(of.named_parameters())[name],)
    b = batch((16,))
    encoder_out, _ = of.encoder(b.features, b.lengths)
    row = of.head(encoder_out, of.head.fully_masked(encoder_out))[0].log_softmax(-1)
    expected = sum(
        p * squared_length(torch_loss(row, y), weight) for y, p in enumerated(row).items()
    )
    assert score("egl", of, b, n_best=300, parameters=(name,)) == pytest.approx(
        [expected], rel=1e-9
    )


@pytest.mark.parametrize("name", [name for name in CASES if "keywords" in name])
def test_egl_of_keywords_is_exact(name: str) -> None:
    of = model(name)
    assert isinstance(of, KeywordTask)
    b = batch((32, 16, 48))
    logits, n_scores = of.model(b.features, b.lengths)
    windowed = of.spec.windowed
    layer = of.model.encoder.network.classifier if windowed else of.model.classifier
    assert isinstance(layer, torch.nn.Linear)
    mean = torch.stack([row[:n].mean(0) for row, n in zip(logits, n_scores, strict=True)])
    decided = classify(logits, n_scores, len(of.spec.keywords))
    expected, chosen = [], []
    for i, n in enumerate(n_scores.tolist()):
        own = logits[i, :n].log_softmax(-1)
        place = own[:, 1 : 1 + len(of.spec.keywords)].amax(-1).argmax()
        p = (mean[i].log_softmax(-1) if of.settings.loss == "mean-pool" else own[place]).exp()
        losses = [
            of.label_losses(logits[i : i + 1], n_scores[i : i + 1], torch.tensor([c]), TRAINED)
            for c in range(len(p))
        ]
        squares = [squared_length(loss.sum(), tuple(layer.parameters())) for loss in losses]
        expected.append(sum(float(q) * s for q, s in zip(p.detach(), squares, strict=True)))
        chosen.append(of.spec.classes[int(p.argmax())])
    for strategy in ("egl", "egl-sampled", "egl-bound", "egl-diversity"):
        assert score(strategy, of, b) == pytest.approx(expected, rel=1e-10)
    scored = open_scorer("least-confidence", of).score(b).scores
    assert [clip.text for clip in scored if clip] == chosen
    if of.settings.loss == "max-pool":
        assert chosen == [of.spec.classes[c] for c in decided.tolist()]


def test_keywords_of_mean_scores_have_a_formula() -> None:
    """(1 - sum p^2) (||mean h||^2 + 1)."""
    of = model("keywords, mean-pool")
    assert isinstance(of, KeywordTask)
    b = batch((32, 16, 48))
    out, n_scores = of.model.encode(b.features, b.lengths)
    h = torch.stack([row[:n].mean(0) for row, n in zip(out, n_scores, strict=True)])
    p = of.model.classifier(h).softmax(-1)
    expected = (1 - p.square().sum(-1)) * (h.square().sum(-1) + 1)
    assert score("egl", of, b) == pytest.approx(expected.tolist(), rel=1e-10)
    weighted = task(KeywordTaskSpec(keywords=WORDS, loss="mean-pool", class_weights={"no": 2.0}))
    assert all(
        more > less for more, less in zip(score("egl", weighted, b), expected.tolist(), strict=True)
    )


def test_embeddings_are_gradients() -> None:
    """Small layers are not projected: the distance from the origin is the score by the second."""
    of, b = model("ctc"), batch((32, 16, 48))
    badge = open_scorer("badge", of).score(b)
    assert badge.embeddings is not None
    assert badge.embeddings.dtype == np.float32
    lengths = np.square(badge.embeddings).sum(1)
    assert lengths == pytest.approx([clip.per_second for clip in badge.scores if clip], rel=1e-5)
    diverse = open_scorer("egl-diversity", of).score(b)
    assert diverse.embeddings is not None
    units = badge.embeddings / np.sqrt(lengths)[:, None]
    np.testing.assert_allclose(diverse.embeddings, units, rtol=1e-4, atol=1e-6)
    assert values(diverse) == score("egl-sampled", of, b)
    small = open_scorer("badge", of, dimensions=5).score(b)
    assert small.embeddings is not None
    assert small.embeddings.shape == (3, 5)
    assert open_scorer("egl-diversity", of).weighted
    assert not open_scorer("badge", of).weighted


def test_seeds_decide_what_is_drawn() -> None:
    of, b = model("imputer, dp"), batch((32, 16, 48))
    for strategy in ("random", "egl-sampled"):
        first, again = (score(strategy, of, b, seed=1) for _ in range(2))
        assert first == again
        assert first != score(strategy, of, b, seed=2)
    same = replace(b, seeds=b.seeds[:1].expand(3))
    double = replace(
        same, features=b.features[:1].expand(3, -1, -1), lengths=b.lengths[:1].expand(3)
    )
    for strategy in STRATEGIES:
        assert len({round(value, 9) for value in score(strategy, of, double)}) == 1
    uniform = (
        np.array(score("random", of, replace(b, seeds=b.seeds + 5))) / (b.lengths * 0.01).numpy()
    )
    assert (uniform < 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_random_is_uniform_by_the_second(name: str) -> None:
    of = model(name)
    n = 200
    many = batch((16, 32) * (n // 2))
    found = [
        clip.per_second for clip in open_scorer("random", of, seed=7).score(many).scores if clip
    ]
    assert sum(found) / n == pytest.approx(0.5, abs=0.08)
    assert np.std(found) == pytest.approx(12**-0.5, abs=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_scored_is_reported(name: str, strategy: str) -> None:
    b = batch((32, 16, 48, 16))
    b.features[0, 3, 2] = torch.nan
    b.features[3, 5, 1] = torch.inf
    b.lengths[1] = 0
    scorer = open_scorer(strategy, model(name))
    found = scorer.score(b)
    assert sorted(found.problems) == [0, 1, 3]
    assert "expected finite scores" in found.problems[0]
    assert found.problems[1].startswith("too short")
    assert "expected finite scores" in found.problems[3]
    assert [clip is None for clip in found.scores] == [True, True, False, True]
    alone, kept = scorer.score(part(b, slice(2, 3))).scores[0], found.scores[2]
    assert alone is not None
    assert kept is not None
    assert kept.score == pytest.approx(alone.score, rel=1e-9)
    if found.embeddings is not None:
        assert np.isfinite(found.embeddings).all()
        assert not found.embeddings[[0, 1, 3]].any()


@pytest.mark.parametrize(
    ("strategy", "options", "reason"),
    [
        ("EGL", {}, "strategy: expected one of random, .*, got 'EGL'"),
        ("egl", {"n_samples": 3}, "the strategy egl takes .*n_best.*; got n_samples"),
        ("random", {"loss": "ctc"}, "the strategy random takes no options; got loss"),
        ("egl", {"n_best": 0}, "n_best: expected 1 or more, got 0"),
        ("egl-sampled", {"n_samples": -1}, "n_samples: expected 1 or more"),
        ("badge", {"dimensions": 0}, "dimensions: expected 1 or more"),
        ("egl", {"loss": "mse"}, "loss: expected one of auto, ctc, imputer, got 'mse'"),
        ("entropy", {"entropy": "word"}, "entropy: expected one of frame, sequence"),
        ("egl", {"parameters": ("head.x",)}, "parameters: expected names .* got head.x"),
        ("random", {"seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    strategy: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SpecError, match=reason):
        open_scorer(strategy, model("ctc"), **options)


def test_a_head_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="expected ctc or auto of a model without an Imputer head"):
        open_scorer("egl", model("ctc"), loss="imputer").score(batch())
