"""The trainer: runs that are killed go on exactly, what they keep, and where they begin."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

from edge_imputer.audio import read_audio
from edge_imputer.cli.main import main
from edge_imputer.errors import CheckpointError, DataError, SpecError
from edge_imputer.microfrontend import Microfrontend
from edge_imputer.specs import MicroSpec, preset
from edge_imputer.train.checkpoint import KEY, load_checkpoint, read_raw
from edge_imputer.train.data import Featurizer, Manifest, write_manifest
from edge_imputer.train.keyword_model import TorchKeywordSystem
from edge_imputer.train.recipe import Recipe, read_recipe
from edge_imputer.train.tasks import build_task
from edge_imputer.train.trainer import Material, read_corpus, read_initial, train
from edge_imputer.train.trainer import store as store_module
from edge_imputer.train.trainer.display import Display
from edge_imputer.train.trainer.feeding import make_plan
from edge_imputer.train.trainer.logbook import Table
from edge_imputer.train.trainer.loop import Loop
from edge_imputer.train.trainer.optimization import MovingAverage, mean_weights
from edge_imputer.train.trainer.sources import labelled
from edge_imputer.train.trainer.surroundings import make_augmenter

from .conftest import import_or_skip
from .processes import ROOT
from .training_cases import RATE, TINY, tiny_recipe, write_corpus

# Every part of a run's state is in use: moving average, running means over several updates,
# patience, weights to average, dropout, masks, two micro-batches an update.
EVERYTHING = (
    "run.updates=24",
    "run.checkpoint_every=4",
    "run.valid_every=6",
    "run.log_every=3",
    "run.ema=0.9",
    "run.accumulate=2",
    "run.patience=50",
    "run.result=average-last",
    "run.average=2",
    "task.flat_start=0.1",
)
Data = tuple[Material, Material | None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def data(corpus: Path) -> Data:
    return read_corpus(corpus, tiny_recipe().data, 16_000)


def run(data: Data, out: Path, *settings: str, **options: object) -> Path:
    recipe = tiny_recipe("digits", *settings)
    return train(*data, recipe, out, data_name="tones", progress=False, **options)


@pytest.fixture(scope="module")
def unbroken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    run(data, out, *EVERYTHING)
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_runs(first: Path, second: Path) -> None:
    """Weights, averaged weights, optimiser and tables, bit for bit."""
    for name in ("last.ckpt", "averaged.ckpt"):
        one, two = read_raw(first / name), read_raw(second / name)
        for part in ("state_dict", "training"):
            _assert_equal(one.get(part, {}), two.get(part, {}), f"{name} {part}")
    for name in ("train.csv", "valid.csv"):
        assert table(first / name) == table(second / name), name


def _assert_equal(one: object, two: object, where: str) -> None:
    if isinstance(one, dict):
        assert isinstance(two, dict)
        assert one.keys() == two.keys(), where
        for key, value in one.items():
            if key != "seconds":
                _assert_equal(value, two[key], f"{where} {key}")
    elif torch.is_tensor(one):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


KILLED = """
import os, signal, sys
import tests.conftest, torch
from edge_imputer.audio import read_audio
from edge_imputer.cli.main import main
step, calls = torch.optim.AdamW.step, []
def killed(self, *args, **kwargs):
    calls.append(0)
    if len(calls) == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
torch.optim.AdamW.step = killed
main(sys.argv[1:])
"""


def test_a_run_killed_in_an_epoch_goes_on_to_the_same_weights(unbroken, corpus, tmp_path):
    """kill -9 in update 16, the last checkpoint being of update 12; with a process that loads."""
    from .training_cases import SIZES, TINY

    settings = [*TINY, *SIZES["digits"], *EVERYTHING, "data.workers=1"]
    out = tmp_path / "killed"
    command = ["train", "digits", "--data", str(corpus), "--out", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", KILLED, *command]
    died = subprocess.run(code, cwd=ROOT, env=env, capture_output=True, timeout=180, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert load_checkpoint(out / "last.ckpt").updates == 12
    assert table(out / "train.csv") == table(unbroken / "train.csv")[:5]  # a row of update 15 too
    with pytest.raises(SystemExit) as stop:
        main([*command, "--resume"])
    assert stop.value.code == 0
    assert_same_runs(out, unbroken)


class Crash(BaseException):
    """Stands for a process that dies: nothing catches it."""


@pytest.mark.parametrize("crash_at", ["write", "first rename", "second rename"])
def test_a_run_that_dies_while_it_writes_a_checkpoint_goes_on(
    unbroken, data, tmp_path, monkeypatch, crash_at
):
    out = tmp_path / "died"
    fsync, replace, renames = os.fsync, os.replace, []

    def dying_fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if crash_at == "write" and ".last.ckpt." in name and saved() >= 8:
            raise Crash
        fsync(descriptor)

    def dying_replace(source: str, target: Path) -> None:
        mine = Path(target).name in ("last.ckpt", "previous.ckpt") and saved() >= 8
        renames.extend([target] * mine)
        if mine and len(renames) == {"first rename": 1, "second rename": 2}.get(crash_at, 0):
            raise Crash
        replace(source, target)

    def saved() -> int:
        path = out / "last.ckpt"
        return int(read_raw(path)[KEY]["updates"]) if path.is_file() else 8 * bool(renames)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying_fsync)
        patch.setattr(os, "replace", dying_replace)
        with pytest.raises(Crash):
            run(data, out, *EVERYTHING)
    run(data, out, *EVERYTHING, resume=True)
    assert_same_runs(out, unbroken)


def test_a_broken_last_checkpoint_falls_back_to_the_one_before(unbroken, data, tmp_path, caplog):
    out = tmp_path / "broken"
    run(data, out, *EVERYTHING)
    last = out / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    run(data, out, *EVERYTHING, resume=True)
    assert "last.ckpt: not a checkpoint" in caplog.text
    assert "looking for the checkpoint before it" in caplog.text
    assert_same_runs(out, unbroken)
    for name in ("last.ckpt", "previous.ckpt"):
        (out / name).write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read"):
        run(data, out, *EVERYTHING, resume=True)


def test_a_finished_run_is_resumed_to_nothing(unbroken, data):
    before = {path.name: path.read_bytes() for path in unbroken.glob("*.ckpt")}
    assert run(data, unbroken, *EVERYTHING, resume=True) == unbroken / "averaged.ckpt"
    after = {path.name: path.read_bytes() for path in unbroken.glob("*.ckpt")}
    assert before.keys() == after.keys()
    assert before["last.ckpt"] == after["last.ckpt"]


def test_accumulation_makes_the_same_updates(data, tmp_path):
    """Of a model without batch norm, whose statistics are a micro-batch's."""
    settings = ["run.updates=6", "run.log_every=1", "batches.shares={ab = 0.5}"]
    for parts in (1, 2, 4):
        recipe = tiny_recipe("wake-word", *settings, f"run.accumulate={parts}")
        train(*data, recipe, tmp_path / str(parts), data_name="tones", progress=False)
    whole = load_checkpoint(tmp_path / "1" / "last.ckpt").task.state_dict()
    for parts in (2, 4):
        split = load_checkpoint(tmp_path / str(parts) / "last.ckpt").task.state_dict()
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=0, atol=1e-5)
        rows = zip(
            table(tmp_path / "1" / "train.csv"),
            table(tmp_path / str(parts) / "train.csv"),
            strict=True,
        )
        for one, other in rows:
            assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=1e-5)


def test_a_wake_word_is_trained_on_the_microfrontends_features(corpus, data, tmp_path):
    """With an encoder that ESPHome devices run; it comes back, scores, and is gone on from."""
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "keywords-35"\nencoder = "tcn-10k"\n[features]\nkind = "micro"\n'
        '[task]\nkind = "keywords"\nkeywords = ["abba"]\n'
    )
    settings = [*TINY, "batches.size=6", "batches.shares={abba=0.5}", "run.updates=3"]
    recipe = read_recipe(file, settings)
    path = train(*data, recipe, tmp_path / "first", data_name="tones", progress=False)
    loaded = load_checkpoint(path)
    assert loaded.spec.features == recipe.features == MicroSpec()
    assert loaded.spec.encoder == preset("tcn-10k")
    system = TorchKeywordSystem(loaded.task.model)
    waveform, _ = read_audio(corpus / "cyd-abba-0.wav")
    frames = torch.from_numpy(Microfrontend(MicroSpec())(waveform))
    logits, n = loaded.task.model(frames[None], torch.tensor([len(frames)]))
    np.testing.assert_allclose(
        system.posteriors(waveform), logits[0, : int(n)].softmax(-1).detach(), atol=1e-6
    )
    assert system.score(waveform).shape == (int(n), 1)
    rows = table(tmp_path / "first" / "train.csv") + table(tmp_path / "first" / "valid.csv")
    assert all(np.isfinite(float(row["loss"])) for row in rows if "loss" in row)
    again = train(
        *data,
        read_recipe(file, [*settings, "run.updates=1"]),
        tmp_path / "second",
        data_name="tones",
        progress=False,
        init_from=path,
    )
    assert load_checkpoint(again).spec == loaded.spec


def test_what_is_averaged_is_the_mean_of_the_last_weights(unbroken):
    names = read_raw(unbroken / "averaged.ckpt")[KEY]["averaged"]
    assert names == ["weights-000018.ckpt", "weights-000024.ckpt"]
    states = [load_checkpoint(unbroken / name).task.state_dict() for name in names]
    averaged = load_checkpoint(unbroken / "averaged.ckpt").task.state_dict()
    for name, value in averaged.items():
        mean = (states[0][name].double() + states[1][name].double()) / 2
        counter = not value.is_floating_point()
        assert torch.equal(value, states[1][name] if counter else mean.to(value.dtype)), name


def test_the_moving_average_is_validated_and_kept(data, tmp_path):
    settings = ["run.updates=8", "run.valid_every=8", "task.dropout=0"]
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    run(data, plain, *settings)
    run(data, averaged, *settings, "run.ema=0.5")
    raw = read_raw(averaged / "last.ckpt")
    trained = load_checkpoint(plain / "last.ckpt").task.state_dict()
    for name, value in trained.items():  # training itself is as without the average
        assert torch.equal(raw["training"]["model"][name], value), name
    assert any(not torch.equal(raw["state_dict"][n], v) for n, v in trained.items())


def test_a_moving_average_by_hand():
    module = nn.BatchNorm1d(2)
    average = MovingAverage(module, 0.9)
    expected = module.weight.detach().clone()
    for update in range(1, 8):
        with torch.no_grad():
            module.weight.add_(update)
        module.num_batches_tracked += 1
        average.update(module)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected)
    assert average.weights["num_batches_tracked"] == 7
    own = module.weight.detach().clone()
    with average.swapped_into(module):
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, own)


def test_a_mean_of_half_precision_weights_keeps_its_type():
    states = [{"w": torch.full((3,), x, dtype=torch.bfloat16)} for x in (1.0, 2.0)]
    mean = mean_weights(states)["w"]
    assert mean.dtype == torch.bfloat16
    assert mean.tolist() == [1.5] * 3


def test_a_run_stops_early_and_keeps_its_best(data, tmp_path, monkeypatch):
    """Measures 3, 1, 2, 2: the second is the best, and two worse ones end the run."""
    # The first look, before the first update, is whether there is such a measure.
    measures = iter([9.0, 3.0, 1.0, 2.0, 2.0, 0.5, 0.4])
    monkeypatch.setattr(Loop, "measure", lambda self, valid: {"wer": next(measures)})
    settings = [
        "run.updates=20",
        "run.valid_every=2",
        "run.monitor=-wer",
        "run.patience=2",
        "run.result=best",
    ]
    path = run(data, tmp_path, *settings)
    assert path == tmp_path / "best.ckpt"
    assert load_checkpoint(path).updates == 4
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 8
    assert [row["wer"] for row in table(tmp_path / "valid.csv")] == ["3", "1", "2", "2"]
    assert run(data, tmp_path, *settings, resume=True) == path  # an ended run stays ended
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 8
    patient = [*settings[:-2], "run.patience=0", settings[-1]]
    run(data, tmp_path, *patient, "run.valid_every=10", resume=True)  # unless told otherwise
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 20
    assert load_checkpoint(path).updates == 20


def test_the_best_weights_are_averaged(data, tmp_path, monkeypatch):
    measures = iter([0.0, 0.3, 0.1, float("nan"), 0.2])
    monkeypatch.setattr(Loop, "measure", lambda self, valid: {"recall": next(measures)})
    settings = ["run.updates=8", "run.valid_every=2", "run.monitor=recall", "run.average=2"]
    run(data, tmp_path, *settings, "run.result=average-best")
    assert read_raw(tmp_path / "averaged.ckpt")[KEY]["averaged"] == [
        "weights-000008.ckpt",
        "weights-000002.ckpt",
    ]


def test_a_measure_that_there_is_not_is_refused(data, tmp_path):
    with pytest.raises(SpecError, match=r"run.monitor: expected one of .*wer_k1.*, got 'wre'"):
        run(data, tmp_path, "run.monitor=wre")
    assert not (tmp_path / "train.csv").exists()  # it is seen before the first update
    with pytest.raises(SpecError, match="need a valid split"):
        run((data[0], None), tmp_path, "run.result=best")


def test_a_table_drops_what_a_crash_left(tmp_path):
    path = tmp_path / "t.csv"
    first = Table(path)
    first.resume(0)
    for update in (1, 2):
        first.add(update, {"loss": 1 / update})
    first.flush()
    first.add(3, {"loss": 0.1, "other": 7})  # a column that comes later
    first.flush()
    with path.open("a") as file:
        file.write("4,0.0")  # cut short
    again = Table(path)
    again.resume(2)
    again.add(3, {"loss": 0.25})
    again.flush()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["update"], row["loss"], row["other"]) for row in rows] == [
        ("1", "1", ""),
        ("2", "0.5", ""),
        ("3", "0.25", ""),
    ]
    Table(path).resume(0)
    assert not path.exists()


def test_rows_are_seen_at_once_and_cut_after_the_checkpoint(tmp_path):
    path = tmp_path / "t.csv"
    first, whole = Table(path), Table(tmp_path / "whole.csv")
    for one in (first, whole):
        one.resume(0)
    for update in (1, 2, 3):
        first.add(update, {"loss": 1 / update})
        whole.add(update, {"loss": 1 / update})
        assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert len(path.read_text().splitlines()) == 1 + update
        if update == 2:
            first.flush()  # with the checkpoint
    for left in (b"", b"4,0.0", b"4,0.2\n\0\0\0\0\n", b"\0" * 100):  # by kill -9, by a power cut
        rest = path.read_bytes()
        path.write_bytes(rest + left)
        again = Table(path)
        again.resume(2)
        assert path.read_text() == "update,loss\n1,1\n2,0.5\n"
        again.add(3, {"loss": 1 / 3})
        assert path.read_bytes() == rest == (tmp_path / "whole.csv").read_bytes()


def test_a_table_that_somebody_removed_is_begun_anew(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.resume(0)
    table.add(1, {"loss": 1.0})
    table.path.unlink()
    table.flush()
    table.add(2, {"loss": 0.5})
    assert table.path.read_text() == "update,loss\n2,0.5\n"


def test_progress_leaves_out_what_is_counted_by_class(capsys):
    display = Display(4, every=2, monitor="recall/no", shown=True)
    display.open(0)
    display.losses(2, {"loss": 0.25, "ctc": 1.0})
    display.measures(
        2, {"accuracy": 0.5, "recall/yes": 0.25, "recall/no": 0.75, "balanced_accuracy": 0.6}
    )
    display.advance(2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "update 2 of 4: loss 0.250, ctc 1.000, accuracy 0.500, recall/no 0.750, "
        "balanced_accuracy 0.600, "
    )


def test_training_begins_with_the_weights_of_a_checkpoint(unbroken, data, tmp_path):
    """No update changes them: the learning rate is next to nothing."""
    start = load_checkpoint(unbroken / "averaged.ckpt")
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0"]
    path = run(data, tmp_path / "on", *still, init_from=unbroken / "averaged.ckpt")
    begun = load_checkpoint(path)
    assert begun.spec == start.spec  # features and tokens too
    assert begun.origin.init_from == start.sha256
    weights = dict(begun.task.named_parameters())
    for name, value in start.task.named_parameters():
        assert torch.equal(weights[name], value), name
    run(data, tmp_path / "on", *still, "run.updates=4", resume=True)
    assert load_checkpoint(path).origin == begun.origin


def test_what_does_not_fit_begins_from_scratch_and_is_said(unbroken, data, tmp_path, caplog):
    run(data, tmp_path / "wider", "task.head.width=6", init_from=unbroken / "last.ckpt")
    assert "weights begin from scratch" in caplog.text
    assert "head.conv.0.weight" in caplog.text
    raw = read_raw(unbroken / "last.ckpt")
    raw["state_dict"] = {f"x.{name}": value for name, value in raw["state_dict"].items()}
    torch.save(raw, tmp_path / "strange.ckpt")
    with pytest.raises(CheckpointError, match="none of its weights fits"):
        run(data, tmp_path / "other", init_from=tmp_path / "strange.ckpt")


def test_a_model_to_begin_from_decides_the_characters(unbroken, corpus, tmp_path, caplog):
    """Utterances that it cannot write are named, counted and left out."""
    material, _ = read_corpus(corpus, tiny_recipe().data, 16_000)
    clips = [c for c in material.clips() if c.record.text is not None]
    odd = [
        msgspec.structs.replace(clip.record, text="aq") if i < 3 else clip.record
        for i, clip in enumerate(clips)
    ]
    changed = [type(c)(record, c.waveform) for c, record in zip(clips, odd, strict=True)]
    path = run((changed, None), tmp_path / "on", init_from=unbroken / "last.ckpt")
    assert "".join(load_checkpoint(path).spec.tokens.characters) == " ab"
    assert caplog.text.count("'q' (U+0071)") == 3
    assert f"left out 3 of {len(clips)} clips (unknown characters: 3)" in caplog.text
    every = [type(c)(odd[0], c.waveform) for c in clips]
    with pytest.raises(DataError, match=rf"none of {len(clips)} .*unknown characters"):
        run((every, None), tmp_path / "none", init_from=unbroken / "last.ckpt")


def test_speakers_in_both_splits_are_warned_of(corpus, tmp_path, caplog):
    manifest = corpus / "manifest.jsonl"
    other = tmp_path / "shared"
    other.mkdir()
    for path in corpus.iterdir():
        (other / path.name).symlink_to(path)
    (other / "manifest.jsonl").unlink()
    (other / "manifest.jsonl").write_text(manifest.read_text().replace("cyd", "ann"))
    for path in corpus.glob("cyd-*"):
        (other / path.name.replace("cyd", "ann")).unlink(missing_ok=True)
        (other / path.name.replace("cyd", "ann")).symlink_to(path)
    read_corpus(other, tiny_recipe().data, 16_000)
    assert "1 speakers are in the train and in the valid split (ann)" in caplog.text


def test_a_speaker_is_held_out(corpus):
    section = tiny_recipe("digits", "data.hold_out=bob").data
    material, _ = read_corpus(corpus, section, 16_000)
    assert set(material.column("speaker")[0]) == {"ann", "unknown"}
    with pytest.raises(DataError, match=r"hold_out: expected one of ann, bob.*, got 'eve'"):
        read_corpus(corpus, tiny_recipe("digits", "data.hold_out=eve").data, 16_000)


def test_a_corpus_read_clip_by_clip_trains_to_the_same_weights(corpus, data, tmp_path, monkeypatch):
    """What is too long for memory goes through the manifest."""
    from edge_imputer.train.data import ManifestSource
    from edge_imputer.train.trainer import sources

    monkeypatch.setattr(sources, "IN_MEMORY_S", 0.0)
    lazy = read_corpus(corpus, tiny_recipe().data, 16_000)
    assert isinstance(lazy[0].source, ManifestSource)
    one, two = run(lazy, tmp_path / "lazy"), run(data, tmp_path / "memory")
    weights = load_checkpoint(two).task.state_dict()
    for name, value in load_checkpoint(one).task.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_babble_and_noises_do_without_a_corrupt_clip(corpus, tmp_path, monkeypatch, caplog):
    from edge_imputer.train.trainer import sources

    folder = shutil.copytree(corpus, tmp_path / "data")
    for name in ("ann-ab-0.wav", "hum.wav"):
        samples = np.full(2 * RATE, 0.1, np.float32)
        samples[7] = np.nan
        sf.write(folder / name, samples, RATE, subtype="FLOAT")
    sf.write(folder / "rain.wav", np.random.default_rng(0).uniform(-0.1, 0.1, RATE), RATE)
    records = list(Manifest.open(folder))
    noise = next(record for record in records if record.label == "_noise_")
    rain = msgspec.structs.replace(noise, audio="rain.wav", duration_s=1.0)
    write_manifest(folder, [*records, rain])
    monkeypatch.setattr(sources, "IN_MEMORY_S", 0.0)
    lazy = read_corpus(folder, tiny_recipe().data, RATE)
    wanted = ("augment.babble=0.5", "augment.noise_files=0.5")
    augmenter = make_augmenter(lazy[0], tiny_recipe("digits", *wanted), tmp_path)
    assert augmenter.noises.has("babble")
    assert augmenter.noises.has("recorded")
    said = [r.getMessage() for r in caplog.records]
    assert [sum(name in text for text in said) for name in ("ann-ab-0.wav", "hum.wav")] == [1, 1]


def test_windows_fill_the_budget_whatever_the_clips_lengths_are(corpus):
    recipe = tiny_recipe(
        "wake-word",
        "batches={kind='bucketed', frames=1000, least=2}",
        "augment.speeds=[1.0]",
    )
    material, _ = read_corpus(corpus, recipe.data, RATE)
    material = labelled(material)
    spec = recipe.task.make_spec(recipe.features, recipe.encoder, ("ab", "ba", "abba"))
    plan = make_plan(material, recipe, spec, Featurizer(spec), 1)
    window = spec.encoder.window_frames
    sizes = {len(plan.update(i)) for i in range(plan.updates_per_epoch)}
    assert sizes == {1000 // window}  # which divides the 24 clips
    (frames,) = {
        len(Featurizer(spec).features(np.zeros(round(d.window_s * RATE), np.float32)))
        for d in plan.update(0)
    }
    assert frames == window


def test_the_command_trains_draws_and_names_its_checkpoint(corpus, tmp_path, capsys):
    from .training_cases import SIZES, TINY

    settings = [part for s in (*TINY, *SIZES["digits"]) for part in ("--set", s)]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", str(corpus), "--out", str(out), *settings])
    printed = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert printed[-1] == str(out / "last.ckpt")
    assert any(line.startswith("update 2 of 2: ctc ") for line in printed)
    assert any(line.startswith("2 of 2 updates in ") for line in printed)
    assert (out / "learning_curves.png").stat().st_size > 5_000
    with pytest.raises(SystemExit):
        main(["train", "--data", str(corpus), "--out", str(out), *settings])
    assert "go on from it with --resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "wake-word", "--out", str(tmp_path / "other")])
    assert "data.folder: the recipe names no corpus" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--resume", "--out", str(tmp_path / "none")])
    assert "--resume: expected the folder of a run" in capsys.readouterr().err


def test_recipes_are_listed_and_shown(capsys):
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert stop.value.code == 0
        return capsys.readouterr().out

    assert "wake-word" in shown("train", "--list")
    assert "librispeech-960" in shown("recipe", "list")
    assert msgspec.toml.decode(shown("recipe", "show", "digits"))["run"]["updates"] == 3600
    full = shown("recipe", "show", "ctc", "--full", "--set", "run.seed=9")
    assert "run.seed = 9" in full.splitlines()
    assert "encoder.n_layers = 4" in full.splitlines()


def test_tensorboard_gets_the_same_numbers(data, tmp_path):
    import_or_skip("tensorboard")
    run(data, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_new_run_leaves_nothing_of_an_old_one(data, tmp_path):
    run(data, tmp_path, *EVERYTHING)
    (tmp_path / "last.ckpt").unlink()
    run(data, tmp_path)
    assert not (tmp_path / "averaged.ckpt").exists()
    assert not list(tmp_path.glob("weights-*"))
    assert [row["update"] for row in table(tmp_path / "train.csv")] == ["2"]


def test_files_of_other_people_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    store_module.remove_run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_new_run_does_not_go_on_with_an_old_one(data, tmp_path, monkeypatch):
    """Neither where it dies before its first checkpoint, nor by the checkpoint before."""
    run(data, tmp_path)

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(Loop, "run", crash)
    with pytest.raises(Crash):
        run(data, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_seed_may_be_any_number(data, tmp_path):
    path = run(data, tmp_path, "run.seed=99999999999999")
    assert load_checkpoint(path).recipe.run.seed == 99_999_999_999_999


def test_fresh_weights_come_from_the_seed(data, tmp_path):
    def first(seed: int) -> Recipe:
        return tiny_recipe("digits", f"run.seed={seed}")

    spec = load_checkpoint(run(data, tmp_path)).spec
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build_task(spec, first(seed).task).head.input.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_initial_weights_need_a_model(tmp_path, corpus):
    with pytest.raises(CheckpointError, match="found no file"):
        read_initial(tmp_path / "none.ckpt")
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_initial(tmp_path / "x.npz")
    assert logging.getLogger("edge_imputer").level == logging.NOTSET


def test_training_goes_on_from_a_bundle(data, corpus, tmp_path):
    """A bundle carries its float weights; one of before they were put in says so."""
    from edge_imputer.cli import steps

    path = run(data, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "N_CALIBRATION", 2)
        folder = tmp_path / "bundle"
        bundle = steps.export_checkpoint(path, steps.load_corpus(corpus), folder, ort=True)
    assert {"weights.npz", "onnx/imputer.int8.ort"} <= set(bundle.manifest.files)
    initial = read_initial(bundle.path)
    trained = load_checkpoint(path)
    assert initial.spec == trained.spec
    for name, value in trained.task.state_dict().items():
        assert torch.equal(initial.weights[name], value), name
    still = ["optimizer.learning_rate=1e-30", "optimizer.weight_decay=0"]
    begun = load_checkpoint(run(data, tmp_path / "on", *still, init_from=bundle.path))
    weights = dict(begun.task.named_parameters())
    for name, value in trained.task.named_parameters():
        assert torch.equal(weights[name], value), name
    manifest = msgspec.json.decode((bundle.path / "manifest.json").read_bytes())
    del manifest["files"]["weights.npz"]
    (bundle.path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(CheckpointError, match=r"no weights.npz, the weights to train on from"):
        read_initial(bundle.path)


def test_rivals_leave_the_others_as_they_are(data, tmp_path):
    """Encoder and head are those of a run without rivals; a rival is a run with its settings."""
    settings = ("run.updates=8", "run.valid_every=8", "task.all_masked=0.2")
    plain = load_checkpoint(run(data, tmp_path / "plain", *settings))
    rivals = (
        'task.rivals={twin={}, imitation={loss="imitation", head={width=6}}, ctc={all_masked=1}}'
    )
    both = load_checkpoint(run(data, tmp_path / "both", *settings, rivals))
    for name, weight in plain.task.state_dict().items():
        assert torch.equal(both.task.state_dict()[name], weight), name
    imitation = both.with_rival("imitation")
    assert imitation.recipe.task.loss == "imitation"
    assert imitation.recipe.task.rivals == {}
    assert imitation.spec.head.width == imitation.head.spec.width == 6
    theirs = both.task.rivals["imitation"].state_dict()
    assert all(torch.equal(w, theirs[name]) for name, w in imitation.head.state_dict().items())
    assert torch.equal(imitation.task.ctc.weight, plain.task.ctc.weight)
    assert both.with_rival("ctc").spec.head.schedule == (8,)
    with pytest.raises(SpecError, match="a rival among twin, imitation, ctc, got 'other'"):
        both.with_rival("other")
    with pytest.raises(SpecError, match="a rival among"):
        plain.with_rival("twin")


def test_bf16_trains_and_goes_on_exactly(data, tmp_path):
    settings = ["run.updates=6", "run.checkpoint_every=2", "run.precision=bf16"]
    whole = load_checkpoint(run(data, tmp_path / "whole", *settings)).task.state_dict()
    step, calls = torch.optim.AdamW.step, []

    def dying(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        calls.append(0)
        if len(calls) == 4:
            raise Crash
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", dying)
        with pytest.raises(Crash):
            run(data, tmp_path / "died", *settings)
    on = load_checkpoint(run(data, tmp_path / "died", *settings, resume=True)).task.state_dict()
    full = load_checkpoint(run(data, tmp_path / "full", "run.updates=6")).task.state_dict()
    assert all(value.dtype != torch.bfloat16 for value in whole.values())  # weights stay float32
    for name, value in whole.items():
        assert torch.equal(on[name], value), name
    assert any(not torch.equal(full[name], value) for name, value in whole.items())
