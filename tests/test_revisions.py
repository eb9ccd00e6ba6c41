"""Passes of revision, through everything that decodes: as many as asked for, or the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_imputer.bundle import Bundle
from edge_imputer.cli import benches
from edge_imputer.latency import Latency
from edge_imputer.recognizer import Recognizer
from edge_imputer.specs import ModelSpec
from edge_imputer.spotter import KeywordSpotter
from edge_imputer.train.checkpoint import load_checkpoint
from edge_imputer.train.data import Clip, ClipRecord
from edge_imputer.train.evaluation import decode_clips
from edge_imputer.train.evaluation.systems import TextKeywordSystem, open_keyword_model, passes_name
from edge_imputer.train.evaluation.torch_transcriber import TorchTranscriber
from edge_imputer.train.trainer import read_corpus, train

from .fakes import Described, FakeBackend, noise, small_spec, write_bundle
from .training_cases import tiny_recipe, write_corpus

RATE = 16_000
ASKED = [(None, 2), (0, 0), (1, 1)]  # of a model whose own are two


def spec_of(revisions: int) -> ModelSpec:
    """A model that commits in three passes."""
    spec = small_spec(depth=2, schedule=(2, 1, 1), characters=tuple(" abc"))
    head = msgspec.structs.replace(spec.head, revisions=revisions)
    return msgspec.structs.replace(spec, head=head)


def whole_recognizer(backend: FakeBackend, revisions: int | None) -> None:
    recognizer = Recognizer(Described(backend.spec), backend=backend, revisions=revisions)
    recognizer.transcribe(noise(RATE), sample_rate=RATE)


def streaming_recognizer(backend: FakeBackend, revisions: int | None) -> None:
    recognizer = Recognizer(Described(backend.spec), backend=backend, revisions=revisions)
    recognizer.push(noise(RATE), sample_rate=RATE)
    recognizer.flush()


def whole_spotter(backend: FakeBackend, revisions: int | None) -> None:
    keywords = {"ab": 0.5}
    spotter = KeywordSpotter(
        Described(backend.spec), keywords, backend=backend, revisions=revisions
    )
    spotter.spot(noise(RATE), sample_rate=RATE)


def streaming_spotter(backend: FakeBackend, revisions: int | None) -> None:
    spotter = KeywordSpotter(
        Described(backend.spec), {"ab": 0.5}, backend=backend, revisions=revisions
    )
    spotter.push(noise(RATE), sample_rate=RATE)
    spotter.flush()


@pytest.mark.parametrize(("asked", "made"), ASKED)
@pytest.mark.parametrize(
    "listen", [whole_recognizer, streaming_recognizer, whole_spotter, streaming_spotter]
)
def test_a_chunk_costs_the_schedule_and_the_revisions(
    listen: Callable[[FakeBackend, int | None], None], asked: int | None, made: int
) -> None:
    spec = spec_of(2)
    backend = FakeBackend(spec)
    listen(backend, asked)
    assert backend.n_head_calls == (3 + made) * spec.n_chunks(RATE)


@pytest.mark.parametrize(("asked", "made"), ASKED)
def test_evaluation_makes_as_many(tmp_path: Path, asked: int | None, made: int) -> None:
    spec = spec_of(2)
    write_bundle(tmp_path, spec=spec)
    backend, bundle = FakeBackend(spec), Bundle.load(tmp_path)
    system = TextKeywordSystem.of_bundle(bundle, backend, ["ab"], revisions=asked)
    system.score(noise(RATE))
    assert backend.n_head_calls == (3 + made) * spec.n_chunks(RATE)
    record = ClipRecord(
        audio="noise.wav", text="", speaker="", split="test", duration_s=1.0, sample_rate=RATE
    )
    decode_clips(bundle, backend, [Clip(record, noise(RATE))], revisions=asked)
    assert backend.n_head_calls == 2 * (3 + made) * spec.n_chunks(RATE)


def test_passes_have_names() -> None:
    names = [
        passes_name(*one)
        for one in [(None, None, None), (4, None, 1), (None, (5, 1, 1, 1), 2), (None, None, 0)]
    ]
    assert names == ["own", "4 + 1 of revision", "5,1,1,1 + 2 of revision", "own + 0 of revision"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learns to revise, and says that it does so once."""
    folder = tmp_path_factory.mktemp("revised")
    corpus = write_corpus(folder / "tones")
    settings = ("task.refined=0.5", "task.head.revisions=1", "run.updates=2", "run.valid_every=1")
    recipe = tiny_recipe("digits", *settings)
    data = read_corpus(corpus, recipe.data, RATE)
    return train(*data, recipe, folder / "run", data_name="tones", progress=False)


def test_a_checkpoint_revises_as_its_recipe_says(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert isinstance(loaded.spec, ModelSpec)
    assert loaded.spec.head.revisions == 1
    calls: list[int] = []
    loaded.head.register_forward_hook(lambda *_: calls.append(1))
    for asked, made in ((None, 1), (0, 0), (3, 3)):
        calls.clear()
        model = TorchTranscriber(loaded, schedule=(4, 4), revisions=asked)
        model.text(noise(RATE))
        assert len(calls) == 2 + made
    columns = (checkpoint.parent / "valid.csv").read_text().splitlines()[0].split(",")
    assert {"wer_k1", "wer_k8", "wer_k1r1"} <= set(columns)


def test_what_keywords_scored_is_told_apart_by_its_revisions(checkpoint: Path) -> None:
    opened = [open_keyword_model(checkpoint, ["ab"], revisions=n) for n in (None, 0, 2)]
    assert len({one.identity for one in opened}) == 3
    own, none, twice = (one.system.score(noise(RATE)) for one in opened)
    assert own.shape == none.shape == twice.shape
    assert not np.array_equal(none, twice)


def test_latency_counts_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(backends: dict[str, object], spec: ModelSpec, *, n_steps: int) -> dict[str, Latency]:
        return {name: Latency(1.0, 2.0, n_steps) for name in backends}

    monkeypatch.setattr(benches, "load_backend", lambda bundle, name: name)
    monkeypatch.setattr(benches, "measure", timed)
    for revisions in (0, 2):
        write_bundle(tmp_path, spec=spec_of(revisions))
        figures = benches.bench_latency(tmp_path)
        assert figures["onnx"]["n_steps"] == 8 + revisions
        assert figures["onnx"]["step_us"] == 1 + 2 * (8 + revisions)
