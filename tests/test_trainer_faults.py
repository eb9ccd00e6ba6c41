"""What goes wrong in a run: each fault ends it or not in the stated way, and nothing is lost."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edge_imputer.cli.main import main
from edge_imputer.errors import DataError, TrainingError, TrainingStopped
from edge_imputer.train.checkpoint import load_checkpoint, read_raw
from edge_imputer.train.tasks import ImputerTask
from edge_imputer.train.trainer import Material, read_corpus, sources, train
from edge_imputer.train.trainer.logbook import Table
from edge_imputer.train.trainer.signals import StopSignals

from .processes import python_group
from .training_cases import SIZES, TINY, tiny_recipe, write_corpus

SETTINGS = ("run.updates=8", "run.valid_every=4", "run.checkpoint_every=2", "run.log_every=1")
Data = tuple[Material, Material | None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def data(corpus: Path) -> Data:
    return read_corpus(corpus, tiny_recipe().data, 16_000)


@pytest.fixture(scope="module")
def unbroken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(data, tmp_path_factory.mktemp("unbroken"))


def run(data: Data, out: Path, *settings: str, **options: object) -> Path:
    recipe = tiny_recipe("digits", *SETTINGS, *settings)
    return train(*data, recipe, out, data_name="tones", progress=False, **options)


def assert_same_weights(one: Path, two: Path) -> None:
    weights = load_checkpoint(two).task.state_dict()
    for name, value in load_checkpoint(one).task.state_dict().items():
        assert torch.equal(value, weights[name]), name


def updates_of(path: Path) -> list[int]:
    return [int(row["update"]) for row in csv.DictReader(path.read_text().splitlines())]


@contextmanager
def at_update(
    monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]
) -> Iterator[None]:
    """Do something while the losses of an update, counted from 0, are computed."""
    losses = ImputerTask.losses

    def watched(self: ImputerTask, batch: object, update: int, progress: float) -> object:
        if update == number:
            action()
        return losses(self, batch, update, progress)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ImputerTask, "losses", watched)
        yield


def refused(data: Data, out: Path, *settings: str) -> str:
    """What a run says that has to end."""
    with pytest.raises(TrainingError) as error:
        run(data, out, *settings)
    return str(error.value)


@contextmanager
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """What fills the disk: after it is called, writing past so many bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(
    unbroken, data, tmp_path, monkeypatch
):
    last = tmp_path / "last.ckpt"
    with file_size_limit() as fill:
        full = at_update(monkeypatch, 4, lambda: fill(last.stat().st_size // 2))
        with full:
            said = refused(data, tmp_path)
    assert said.startswith(f"{last}: could not write ")
    assert "File too large" in said
    assert f"{last} is whole. Make room, then go on with --resume" in said
    assert load_checkpoint(last).updates == 4
    assert not list(tmp_path.glob(".*"))  # nothing half written is left
    assert_same_weights(run(data, tmp_path, resume=True), unbroken)


def test_a_disk_full_from_the_start_says_that_there_is_no_checkpoint(data, tmp_path):
    with file_size_limit() as fill:
        fill(1_000)
        assert "there is no earlier checkpoint" in refused(data, tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_full_disk_is_said_once_where_both_tables_wait(data, tmp_path, monkeypatch):
    """What is flushed while the run ends must not hide why it ends."""
    with file_size_limit() as fill:
        full = at_update(monkeypatch, 5, lambda: fill(16))
        with full:
            said = refused(data, tmp_path, "run.valid_every=1")
    for thread in threading.enumerate():  # its error is not to be another test's
        if type(thread).__name__ == "_AsyncWriterThread":
            thread.join(timeout=5)
    assert said.startswith(str(tmp_path))
    assert "File too large" in said
    assert "last.ckpt is whole: go on with --resume" in said


def test_rows_wait_where_the_disk_is_full(tmp_path):
    """A row that was cut short is written again, once; the error is the checkpoint's to say."""
    table = Table(tmp_path / "t.csv")
    table.resume(0)
    table.add(1, {"loss": 1.0})
    with file_size_limit() as fill:
        fill(table.path.stat().st_size + 9)  # one row and a half
        table.add(2, {"loss": 0.5})
        table.add(3, {"loss": 0.25})
        table.add(4, {"loss": 0.125, "ctc": 7.0})
        with pytest.raises(OSError, match="too large"):
            table.flush()
    table.add(5, {"loss": 0.1, "ctc": 6.0})
    table.flush()
    assert updates_of(table.path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped(data, tmp_path, monkeypatch, caplog, kind):
    """The weights, the optimiser and batch norm's statistics are as if it had not been."""
    losses = ImputerTask.losses
    seen: dict[int, dict[str, Tensor]] = {}

    def poisoned(self: ImputerTask, batch: object, update: int, progress: float) -> object:
        seen[update] = {name: value.clone() for name, value in self.state_dict().items()}
        found = losses(self, batch, update, progress)  # type: ignore[arg-type]
        if update == 3 and kind == "loss":
            found["loss"] = found["loss"] * float("nan")
        if update == 3 and kind == "gradient":  # the derivative of a root at 0
            found["loss"] = found["loss"] + (0 * found["loss"]).sqrt()
        return found

    monkeypatch.setattr(ImputerTask, "losses", poisoned)
    run(data, tmp_path)
    assert caplog.text.count("update 4 skipped, not finite") == 1
    for name, value in seen[3].items():
        if "num_batches" not in name:
            assert torch.equal(seen[4][name], value), name
    assert any(not torch.equal(seen[5][name], value) for name, value in seen[4].items())
    rows = list(csv.DictReader((tmp_path / "train.csv").read_text().splitlines()))
    assert [row["loss"] == "" for row in rows] == [number == 4 for number in range(1, 9)]
    assert all("nan" not in value for row in rows for value in row.values())


def test_too_many_updates_that_are_not_finite_end_the_run(
    unbroken, data, tmp_path, monkeypatch, caplog
):
    losses = ImputerTask.losses

    def poisoned(self: ImputerTask, batch: object, update: int, progress: float) -> object:
        found = losses(self, batch, update, progress)  # type: ignore[arg-type]
        return {**found, "loss": found["loss"] * (float("inf") if update >= 4 else 1.0)}

    with monkeypatch.context() as patch:
        patch.setattr(ImputerTask, "losses", poisoned)
        said = refused(data, tmp_path, "run.max_bad_updates=3", "run.checkpoint_every=4")
    assert said.startswith("update 7: the loss or its gradient was not finite 3 times in a row")
    assert f"{tmp_path / 'last.ckpt'} is whole: go on with --resume" in said
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 4
    assert caplog.text.count("skipped, not finite") == 3
    resumed = run(data, tmp_path, "run.checkpoint_every=4", resume=True)
    assert_same_weights(resumed, unbroken)
    assert updates_of(tmp_path / "train.csv") == list(range(1, 9))


def test_out_of_memory_says_what_to_lower(unbroken, data, tmp_path, monkeypatch):
    def exhausted() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with at_update(monkeypatch, 5, exhausted):
        said = refused(data, tmp_path)
    assert said.startswith("update 6: out of memory on a micro-batch of 4 x ")
    for part in ("Tried to allocate 2.00 GiB", "run.accumulate", "batches.size", "--resume"):
        assert part in said
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 4
    assert_same_weights(run(data, tmp_path, resume=True), unbroken)
    more = run(data, tmp_path, "run.accumulate=2", "run.updates=10", resume=True)
    assert load_checkpoint(more).updates == 10


@pytest.mark.parametrize(
    ("owner", "method", "when", "what"),
    [
        (ImputerTask, "validate", "validation after update 4", "a batch of 4 x "),
        (torch.optim.AdamW, "step", "update 1", "the optimiser's step ("),
    ],
)
def test_out_of_memory_is_said_wherever_it_is(
    data, tmp_path, monkeypatch, owner, method, when, what
):
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(owner, method, exhausted)
    said = refused(data, tmp_path)
    assert said.startswith(f"{when}: out of memory on {what}")
    assert "Tried to allocate 2.00 GiB" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_update(
    unbroken, corpus, data, tmp_path, monkeypatch, capsys, number, code
):
    settings = [part for s in (*TINY, *SIZES["digits"], *SETTINGS) for part in ("--set", s)]
    command = ["train", "--data", str(corpus), "--out", str(tmp_path), *settings]
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with (
        at_update(monkeypatch, 4, lambda: os.kill(os.getpid(), number)),
        pytest.raises(SystemExit) as stop,
    ):
        main(command)
    assert stop.value.code == code
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after update 5" in said
    assert "go on with --resume" in said
    assert load_checkpoint(tmp_path / "last.ckpt").updates == 5
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    with pytest.raises(SystemExit) as stop:
        main([*command, "--resume"])
    assert stop.value.code == 0
    assert_same_weights(tmp_path / "last.ckpt", unbroken)
    assert updates_of(tmp_path / "train.csv") == list(range(1, 9))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_loses_no_checkpoint(corpus, tmp_path, number, code):
    """Ctrl-C and service managers signal the loader's processes too."""
    sizes = (*TINY, *SIZES["digits"], *SETTINGS, "data.workers=2", "run.updates=100000")
    settings = [part for s in sizes for part in ("--set", s)]
    arguments = ["train", "--data", str(corpus), "--out", str(tmp_path), *settings]
    with python_group("import sys, tests.conftest; " + CALL_MAIN, *arguments) as process:
        until(lambda: (tmp_path / "last.ckpt").is_file() or process.poll() is not None)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert f"stopped by {number.name}" in said
    assert "Traceback" not in said
    last = max(updates_of(tmp_path / "train.csv"))
    assert load_checkpoint(tmp_path / "last.ckpt").updates == last > 2


CALL_MAIN = "from edge_imputer.cli.main import main; main(sys.argv[1:])"


def until(happened: Callable[[], bool], limit_s: float = 120.0) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def interruptible():
    """SIGINT raises, as in a terminal; where tests run in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_not_held_back():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_in_the_last_update_changes_nothing(data, tmp_path, monkeypatch):
    with at_update(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert load_checkpoint(run(data, tmp_path)).updates == 8


def test_a_stopped_run_is_an_error_with_an_exit_code(data, tmp_path, monkeypatch):
    with (
        at_update(monkeypatch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(TrainingStopped) as stopped,
    ):
        run(data, tmp_path)
    assert stopped.value.exit_code == 143


def test_a_loading_process_that_dies_ends_the_run(unbroken, data, tmp_path, monkeypatch):
    def kill_loaders() -> None:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()

    many = ("data.workers=1", "run.updates=40", "run.checkpoint_every=2")
    with at_update(monkeypatch, 5, kill_loaders):
        said = refused(data, tmp_path, *many)
    assert "a process that loads data died" in said
    assert "go on with --resume" in said
    assert load_checkpoint(tmp_path / "last.ckpt").updates >= 4
    assert read_raw(tmp_path / "last.ckpt")["training"]["bad"] == 0


def damaged(corpus: Path, folder: Path, names: set[str]) -> Path:
    """The corpus with some files cut short."""
    folder.mkdir()
    for path in corpus.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(data[:1000] if path.name in names else data)
    return folder


def test_a_corrupt_clip_costs_one_warning(corpus, tmp_path, monkeypatch, caplog):
    """Of a corpus that is read as it is drawn; each time it is drawn, another takes its place."""
    monkeypatch.setattr(sources, "IN_MEMORY_S", 0.0)
    folder = damaged(corpus, tmp_path / "damaged", {"ann-ab-0.wav"})
    lazy = read_corpus(folder, tiny_recipe().data, 16_000)
    path = run((lazy[0], None), tmp_path / "out", "run.updates=20")
    assert load_checkpoint(path).updates == 20
    warnings = [r for r in caplog.records if "ann-ab-0.wav" in r.getMessage()]
    assert len(warnings) == 1


def test_corrupt_clips_of_a_small_corpus_are_named_before_it_trains(corpus, tmp_path, caplog):
    folder = damaged(corpus, tmp_path / "some", {"ann-ab-0.wav", "cyd-ba-1.wav"})
    material, valid = read_corpus(folder, tiny_recipe().data, 16_000)
    assert (len(material), len(valid)) == (24, 5)
    assert "left out" in caplog.text
    assert "ann-ab-0.wav" in caplog.text
    every = {path.name for path in corpus.glob("*.wav")}
    nothing = damaged(corpus, tmp_path / "nothing", every)
    with pytest.raises(DataError, match="none of the 25 clips of the split 'train' could be"):
        read_corpus(nothing, tiny_recipe().data, 16_000)


def test_unreadable_corpora_are_refused_before_anything_is_written(corpus, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.jsonl").write_text('{"audio": 3}\n')
    for folder, message in ((tmp_path / "none", "manifest.jsonl"), (broken, "line 1")):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--data", str(folder), "--out", str(tmp_path / "out")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
