"""Quantisation-aware runs: what they train is what is exported, and they go on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edge_imputer.backends.stepper import Stepper
from edge_imputer.bundle import Bundle, file_records, write_manifest
from edge_imputer.cli import steps
from edge_imputer.cli.main import main
from edge_imputer.errors import CheckpointError, ExportError, SpecError
from edge_imputer.export.build import build_keyword_graph
from edge_imputer.export.graph import Array
from edge_imputer.export.qat import ExportQuantiser
from edge_imputer.export.qat.models import QuantisedSpeech
from edge_imputer.export.ranges import quantise_by
from edge_imputer.export.reference import Interpreter, zero_feeds
from edge_imputer.export.sensitivity import Quantisation
from edge_imputer.export.simulate import reference_backend
from edge_imputer.export.tflite_reader import read_tflite
from edge_imputer.imputation import schedule
from edge_imputer.quantization import dequantize, quantize
from edge_imputer.train.checkpoint import KEY, Checkpoint, load_checkpoint, read_raw
from edge_imputer.train.decode import decode
from edge_imputer.train.tasks import KeywordTask, Task
from edge_imputer.train.tasks.speech import SpeechTask
from edge_imputer.train.trainer import Material, checkpoint_of, read_corpus, read_initial, train
from edge_imputer.train.trainer.quantising import learning_rate

from .bundles import export_small
from .test_trainer import EVERYTHING, Crash, assert_same_runs
from .training_cases import SIZES, TINY, tiny_recipe, write_corpus

Data = tuple[Material, Material | None]
QUANTISED = ("quantisation.updates=2", "quantisation.calibration_clips=4")
MIXED = Quantisation(precision="mixed")
SHORT = ("run.updates=10", "run.checkpoint_every=3", "run.valid_every=5", "run.patience=0")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def data(corpus: Path) -> Data:
    return read_corpus(corpus, tiny_recipe().data, 16_000)


def run(data: Data, out: Path, *settings: str, name: str = "digits", **options: object) -> Path:
    options = {"quantiser": ExportQuantiser(), **options}
    recipe = tiny_recipe(name, *settings)
    return train(*data, recipe, out, data_name="tones", progress=False, **options)


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(data, tmp_path_factory.mktemp("run"), "run.updates=4", *QUANTISED)


def quantised(checkpoint: Checkpoint) -> Task:
    assert checkpoint.ranges is not None
    return ExportQuantiser().quantised(checkpoint.task, checkpoint.ranges)


def random_features(task: Task, n_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n_frames, task.spec.features.n_mels, generator=generator)


# ------------------------------------------------------------------------------ what is exported


def test_a_bundle_decodes_what_training_computed(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    """Down to the logits, with the integers that are read back from the files of the bundle."""
    loaded = load_checkpoint(trained)
    bundle = steps.export_checkpoint(trained, steps.load_corpus(corpus), tmp_path / "bundle")
    graphs = [
        read_tflite(bundle.path / "tflite" / f"{g.name}.tflite", name=g.name, n_states=g.n_states)
        for g in bundle.manifest.graphs
    ]
    backend = reference_backend(graphs[0], graphs[1], loaded.spec)
    task = quantised(loaded)
    assert isinstance(task, SpeechTask)
    chunk = loaded.spec.head.chunk_size * loaded.spec.encoder.subsampling
    features = random_features(task, 3 * chunk)
    with torch.no_grad():
        frames, _ = task.encoder(features, torch.tensor([3 * chunk]))
        for n_steps in (1, loaded.spec.head.block_size):
            alignment = decode(task.head, frames, schedule(n_steps, loaded.spec.head.block_size))
            logits = task.head(frames, alignment)[0].numpy()
            wanted = stepwise(backend, features[0].numpy(), alignment[0].numpy(), loaded)
            np.testing.assert_array_equal(logits, wanted)


def test_a_bundle_carries_what_training_froze(trained: Path, corpus: Path, tmp_path: Path) -> None:
    """Exported again from what is in it, the model has the same integers in every file."""
    loaded, material = load_checkpoint(trained), steps.load_corpus(corpus)
    bundle = steps.export_checkpoint(trained, material, tmp_path / "bundle")
    torch.save(checkpoint_of(bundle), tmp_path / "again.ckpt")
    assert load_checkpoint(tmp_path / "again.ckpt").ranges == loaded.ranges
    assert read_initial(bundle.path).ranges == read_initial(trained).ranges == loaded.ranges
    again = steps.export_checkpoint(tmp_path / "again.ckpt", material, tmp_path / "again")
    assert "ranges.json" in again.manifest.files
    files = bundle.manifest.files
    changed = {name for name in files if again.manifest.files[name] != files[name]}
    assert changed <= {"MODEL_CARD.md", "weights.npz"}  # the checkpoint's name; times in the zip
    assert again.manifest.graphs == bundle.manifest.graphs


def test_a_bundle_without_ranges_is_one_of_a_model_that_was_not_quantised(
    trained: Path, corpus: Path, tmp_path: Path
) -> None:
    """As all are that were exported before they were in it."""
    bundle = steps.export_checkpoint(trained, steps.load_corpus(corpus), tmp_path / "bundle")
    manifest = bundle.manifest
    files = {name: file for name, file in manifest.files.items() if name != "ranges.json"}
    write_manifest(bundle.path, msgspec.structs.replace(manifest, files=files))
    old = Bundle.load(bundle.path)
    assert read_initial(old.path).ranges is None
    torch.save(checkpoint_of(old), tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt").ranges is None
    (old.path / "ranges.json").write_bytes(b'{"encoder": 3}')
    write_manifest(old.path, msgspec.structs.replace(manifest, files=file_records(old.path)))
    with pytest.raises(CheckpointError, match=r"ranges.json: its ranges cannot be read"):
        read_initial(old.path)


def test_a_quantised_model_is_tuned_in_its_own_integers(
    data: Data, trained: Path, tmp_path: Path
) -> None:
    """Where no float update comes before that would make them others, nor another network."""
    ranges = load_checkpoint(trained).ranges
    only = ("run.updates=1", "quantisation.updates=1", QUANTISED[1])
    same = load_checkpoint(run(data, tmp_path / "on", *only, init_from=trained))
    assert same.ranges == ranges
    for name, settings in {
        "float": ("run.updates=2", *only[1:]),
        "wider": (*only, "task.head.width=6"),
    }.items():
        other = load_checkpoint(run(data, tmp_path / name, *settings, init_from=trained))
        assert other.ranges is not None
        assert other.ranges != ranges


@pytest.mark.parametrize("options", [("--precision", "mixed"), ("--report", "report")])
def test_a_model_that_was_trained_in_int8_is_exported_in_it(
    options: tuple[str, str], trained: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(SystemExit) as stop:
        main(["export", str(trained), "--data", str(corpus), "--out", str(out), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "was trained in its integers, whose ranges are its own: leave out" in error
    assert not out.exists()
    loaded = load_checkpoint(trained)
    with pytest.raises(ExportError, match=r"in the int8 that it was trained in; leave them out"):
        export_small(
            out,
            encoder=loaded.encoder,
            head=loaded.head,
            spec=loaded.spec,
            ranges=loaded.ranges,
            **{"quantisation": MIXED} if "--precision" in options else {"report": print},
        )
    assert not out.exists()


def stepwise(backend: Stepper, features: Array, alignment: Array, loaded: Checkpoint) -> Array:
    """Logits of a whole utterance by a backend's steps, given its alignment."""
    spec, state, context = loaded.spec.head, backend.initial_state(), backend.initial_context()
    step = loaded.spec.step_features
    frames = []
    for at in range(0, len(features), step):
        out, state = backend.encoder_step(features[at : at + step], state)
        frames.append(out)
    window = np.concatenate([context, *frames])
    tokens = np.concatenate([np.zeros(spec.left_context, int), alignment]).astype(np.int32)
    return np.concatenate(
        [
            backend.imputer_step(window[at : at + spec.window], tokens[at : at + spec.window])
            for at in range(0, len(alignment), spec.chunk_size)
        ]
    )


@pytest.mark.parametrize("name", ["keywords-35", "wake-word"])
def test_keyword_models_are_trained_in_their_exported_integers(
    name: str, data: Data, tmp_path: Path
) -> None:
    """A streaming one and one over windows: every utterance as the reference computes it."""
    loaded = load_checkpoint(run(data, tmp_path, *QUANTISED, name=name))
    task = quantised(loaded)
    assert isinstance(task, KeywordTask)
    assert isinstance(loaded.task, KeywordTask)
    assert loaded.ranges is not None
    (graph,) = quantise_by([build_keyword_graph(loaded.task.model)], loaded.ranges)
    source, output = graph.inputs[0], graph.outputs[0]
    n_frames = graph.tensors[source].shape[1] * (1 if task.spec.windowed else 6)
    features = torch.cat([random_features(task, n_frames, seed) for seed in range(2)])
    with torch.no_grad():
        logits, counts = task.model(features, torch.tensor([n_frames, n_frames]))
    interpreter, quants = Interpreter(graph), [graph.tensors[n].quant for n in (source, output)]
    for row, utterance in enumerate(features.numpy()):
        feeds, wanted = zero_feeds(graph), []
        for chunk in utterance.reshape(-1, *graph.tensors[source].shape):
            values = interpreter.run({**feeds, source: quantize(chunk, quants[0])})  # type: ignore[arg-type]
            feeds.update({before: values[after] for before, after in graph.state_pairs})
            wanted.append(dequantize(values[output], quants[1]))  # type: ignore[arg-type]
        np.testing.assert_array_equal(logits[row, : counts[row]], np.concatenate(wanted))


def test_what_follows_an_utterance_has_no_effect(trained: Path) -> None:
    """In a padded batch: not on its frames, and not on its gradient."""
    loaded = load_checkpoint(trained)
    task = quantised(loaded)
    assert isinstance(task, SpeechTask)
    short, long = random_features(task, 64, 1), random_features(task, 128, 2)
    garbage = torch.cat([short, 1e3 * torch.ones_like(short)], 1)
    weights = list(loaded.encoder.parameters())
    alone, _ = task.encoder(short, torch.tensor([64]))
    padded, lengths = task.encoder(torch.cat([garbage, long]), torch.tensor([64, 128]))
    padded = padded[0, : lengths[0]]
    assert torch.equal(padded, alone[0])
    pair = [torch.autograd.grad(y.square().sum(), weights) for y in (alone, padded)]
    for one, other in zip(*pair, strict=True):
        torch.testing.assert_close(one, other)


# ------------------------------------------------------------------------------ runs


def test_a_run_goes_on_exactly_before_and_within_its_end(data: Data, tmp_path: Path) -> None:
    """Killed in update 4, in float, then in update 8, quantised since 5."""
    settings = (*EVERYTHING, *SHORT, "quantisation.updates=5", QUANTISED[1])
    run(data, tmp_path / "whole", *settings)
    for update, saved in ((4, 3), (8, 6)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", dying(update - saved_before(tmp_path)))
            with pytest.raises(Crash):
                run(data, tmp_path / "died", *settings, resume=True)
        kept = read_raw(tmp_path / "died" / "last.ckpt")[KEY]
        assert kept["updates"] == saved
        assert ("ranges" in kept) == (saved > 5)
    run(data, tmp_path / "died", *settings, resume=True)
    assert_same_runs(tmp_path / "died", tmp_path / "whole")
    one, two = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("died", "whole"))
    assert one.ranges == two.ranges


def saved_before(folder: Path) -> int:
    """Updates that a run in ``died`` goes on after."""
    path = folder / "died" / "last.ckpt"
    return int(read_raw(path)[KEY]["updates"]) if path.is_file() else 0


def dying(call: int) -> object:
    """An optimiser's step that dies at that call."""
    step, calls = torch.optim.AdamW.step, []

    def die(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        calls.append(0)
        if len(calls) == call:
            raise Crash
        return step(self, *args, **kwargs)

    return die


def test_a_trained_model_is_tuned_in_integers_by_the_command(
    data: Data, corpus: Path, tmp_path: Path
) -> None:
    first = run(data, tmp_path / "float")
    assert load_checkpoint(first).ranges is None
    settings = [*TINY, *SIZES["digits"], "run.updates=2", *QUANTISED]
    command = ["train", "digits", "--data", str(corpus), "--out", str(tmp_path / "tuned")]
    command += ["--init-from", str(first)]
    with pytest.raises(SystemExit) as stop:
        main([*command, *(part for setting in settings for part in ("--set", setting))])
    assert stop.value.code == 0
    tuned = load_checkpoint(tmp_path / "tuned" / "last.ckpt")
    assert set(tuned.ranges or ()) == {"encoder", "imputer"}
    assert tuned.origin.init_from == load_checkpoint(first).sha256


@pytest.mark.parametrize("name", ["ctc", "ctc-selfconditioned", "imputer-dp"])
def test_other_models_train_in_integers(name: str, data: Data, tmp_path: Path) -> None:
    path = run(data, tmp_path, "quantisation.updates=1", QUANTISED[1], name=name)
    assert set(load_checkpoint(path).ranges or ()) == {"encoder", "imputer"}


def test_the_best_of_a_run_is_quantised(data: Data, tmp_path: Path) -> None:
    """However good the float weights were: a measure of theirs is of something else."""
    settings = ("run.updates=4", "run.valid_every=2", "run.result=best", *QUANTISED)
    path = run(data, tmp_path, *settings)
    assert path.name == "best.ckpt"
    best = load_checkpoint(path)
    assert best.updates == 4
    assert best.ranges is not None


def test_rates_begin_anew_for_the_quantised_updates() -> None:
    recipe = tiny_recipe("digits", "run.updates=60", "quantisation.updates=20")
    plain = tiny_recipe("digits", "run.updates=40")
    rates = [learning_rate(recipe, update) for update in range(60)]
    assert rates[:40] == [learning_rate(plain, update) for update in range(40)]
    assert max(rates[40:]) == pytest.approx(0.1 * max(rates[:40]))
    assert rates[59] < 0.02 * rates[40]


# ------------------------------------------------------------------------------ refusals


def test_a_quantised_run_needs_a_quantiser(data: Data, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"quantiser=edge_imputer.export.qat.ExportQuantiser\(\)"):
        run(data, tmp_path, *QUANTISED, quantiser=None)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantisation.updates=3", "expected at most run.updates, 2, got 3"),
        ("quantisation.updates=-1", "quantisation.updates: expected 0 or more, got -1"),
        ("quantisation.calibration_clips=0", "calibration_clips: expected 1 or more, got 0"),
        ("quantisation.learning_rate=0", "above 0 and at most 10, got 0"),
        ("quantisation.calibration=best", "expected one of min-max, percentile, mse, got 'best'"),
        ("quantisation.precision=mixed", "unknown key quantisation.precision"),
        ("quantisation.update=3", "unknown key quantisation.update; did you mean updates"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        tiny_recipe("digits", setting)


def test_a_run_that_may_stop_early_has_no_quantised_end() -> None:
    with pytest.raises(SpecError, match=r"a run that stops early .* --init-from"):
        tiny_recipe("digits", "quantisation.updates=1", "run.patience=3")
    tiny_recipe("digits", "quantisation.updates=2", "run.patience=3")  # all of it is quantised


def test_ranges_of_another_model_are_refused(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    assert checkpoint.ranges is not None
    task = ExportQuantiser().quantised(checkpoint.task, {"keywords": {}})
    assert isinstance(task, SpeechTask)
    with pytest.raises(ExportError, match="ranges of encoder, got those of keywords"):
        task.encoder(random_features(task, 32), torch.tensor([32]))


def test_damaged_ranges_are_refused(trained: Path, tmp_path: Path) -> None:
    raw = read_raw(trained)
    raw[KEY]["ranges"] = '{"encoder": {"features": 3}}'
    torch.save(raw, tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError, match=r"x.ckpt: its ranges cannot be read: Expected `array`"
    ):
        load_checkpoint(tmp_path / "x.ckpt")


def test_a_head_before_its_encoder_is_refused(trained: Path) -> None:
    loaded = load_checkpoint(trained)
    assert loaded.ranges is not None
    model = QuantisedSpeech(loaded.encoder, loaded.head, loaded.spec, loaded.ranges)
    with pytest.raises(ExportError, match="expected the encoder to run before its head"):
        model.head_step(torch.zeros(1), torch.zeros(1))


def test_a_count_of_warm_up_updates_is_of_the_float_ones() -> None:
    settings = ("run.updates=60", "quantisation.updates=20", "optimizer.warmup_updates=30")
    recipe = tiny_recipe("digits", *settings)
    rates = [learning_rate(recipe, update) for update in range(40, 60)]
    assert max(rates) == pytest.approx(0.1 * recipe.optimizer.learning_rate)
    assert rates[-1] < 0.1 * max(rates)


def test_a_moving_average_begins_anew_with_the_quantised_updates(
    data: Data, tmp_path: Path
) -> None:
    """They begin with the average; nothing float is in what they give."""
    path = run(data, tmp_path, "run.updates=6", "run.ema=0.9", "quantisation.updates=2")
    assert load_checkpoint(path).ranges is not None
    assert read_raw(path)["training"]["average_updates"] == 2
