"""Training by several processes: the same updates as one process, the same decisions everywhere."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_imputer.errors import SpecError, TrainingStopped
from edge_imputer.train.checkpoint import load_checkpoint, read_raw
from edge_imputer.train.tasks import build_task
from edge_imputer.train.trainer import read_corpus, train
from edge_imputer.train.trainer.processes import make_fabric

from .processes import ROOT, run_ranks
from .training_cases import SIZES, TINY, tiny_recipe, write_corpus

# Sums in another order differ in their last bits, and training amplifies that: what is small is
# compared with Adam's epsilon, the rate is low, and nothing is masked by the best alignment, which
# can jump. At ten times the rate the same runs are 1e-3 apart after 50 updates.
EXACT = (
    "run.updates=50",
    "run.valid_every=25",
    "run.log_every=1",
    "task.dropout=0",
    "optimizer.epsilon=1e-3",
    "optimizer.learning_rate=1e-4",
)
RUNS = {
    "digits": (*EXACT, "task.all_masked=0.98", "batches.size=8", "run.ema=0.9"),  # with batch norm
    "wake-word": (
        *(setting for setting in EXACT if "dropout" not in setting),
        "optimizer.schedule=cosine",
        "optimizer.steps=[]",
        "features={kind='log-mel'}",  # PCEN takes three times as long
        "batches.shares={ab = 0.5}",
        "batches.size=8",
        "run.accumulate=2",
    ),
    "librispeech-100": (
        *EXACT,
        "optimizer.schedule=cosine",
        "encoder.dropout=0",
        "encoder.n_layers=2",
        "encoder.intermediate_ctc=[1]",
        "features.n_mels=20",
        "batches.frames=800",
        "batches.least=2",
        "run.result=last",
    ),
}
UPDATES_BEFORE_SIGTERM = 3


def train_as(rank: int, port: int, corpus: str, out: str) -> None:
    """One of two processes, as a cluster would start it."""
    _join(rank, port)
    for name in RUNS:
        _train(name, Path(corpus), Path(out))


def stop_as(rank: int, port: int, corpus: str, out: str) -> None:
    """Only the second process is sent a signal; both stop after the same update."""
    _join(rank, port)
    step, calls = torch.optim.AdamW.step, []

    def signalled(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        calls.append(0)
        if rank == 1 and len(calls) == UPDATES_BEFORE_SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = signalled  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="SIGTERM after update") as stopped:
        _train("digits", Path(corpus), Path(out))
    assert stopped.value.exit_code == 143
    Path(out, f"stopped-{rank}").write_text(str(len(calls)))


def _join(rank: int, port: int) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)


def _train(name: str, corpus: Path, out: Path) -> Path:
    recipe = tiny_recipe(name, *RUNS[name])
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    return train(*data, recipe, out / name, data_name="tones", progress=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def both(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of runs by one process and by two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    run_ranks(2, "tests.test_trainer_distributed", "train_as", str(corpus), str(two))
    for name in RUNS:
        _train(name, corpus, one)
    return one, two


def losses(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_follow_one(name, both):
    """Fifty updates of the same utterances, dealt to two processes (and two micro-batches)."""
    one, two = (folder / name for folder in both)
    found, expected = losses(two / "train.csv"), losses(one / "train.csv")
    assert len(expected) == 50
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    trained = load_checkpoint(one / "last.ckpt")
    weights = load_checkpoint(two / "last.ckpt").task.state_dict()
    for key, value in trained.task.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-5)
    torch.manual_seed(trained.recipe.run.seed)
    first = build_task(trained.spec, trained.recipe.task).state_dict()
    moved = max(
        float((first[k] - v).abs().max()) for k, v in weights.items() if v.is_floating_point()
    )
    assert moved > 0.001  # there was something to follow
    assert (two / "valid.csv").read_text().count("\n") == 3


def test_two_processes_validate_every_clip_once(both):
    """The measures are ratios of sums over all processes."""
    one, two = (folder / "wake-word" / "valid.csv" for folder in both)
    assert one.read_text() == two.read_text()


def test_a_signal_to_one_process_stops_all_of_them_alike(corpus, tmp_path):
    run_ranks(2, "tests.test_trainer_distributed", "stop_as", str(corpus), str(tmp_path))
    made = [int((tmp_path / f"stopped-{rank}").read_text()) for rank in range(2)]
    assert made[0] == made[1] <= UPDATES_BEFORE_SIGTERM + 1
    assert load_checkpoint(tmp_path / "digits" / "last.ckpt").updates == made[0]
    raw = read_raw(tmp_path / "digits" / "last.ckpt")
    assert raw["training"]["shares"] == 2


def command(corpus: Path, out: Path) -> list[str]:
    settings = (*TINY, *SIZES["digits"], "run.updates=3")
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["train", "digits", "--data", str(corpus), "--out", str(out), *sets]


def start(arguments: list[str]) -> tuple[str, int, str]:
    """Output, exit code and errors of a program that may start others, which end with it."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=180)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return out, process.returncode, errors


MAIN = """
import sys
import tests.conftest
from edge_imputer.cli.main import main
main()
"""


def test_devices_starts_the_processes(corpus, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(MAIN)
    out = tmp_path / "out"
    printed, code, errors = start([str(script), *command(corpus, out), "--devices", "2"])
    assert code == 0, errors
    assert printed.splitlines()[-1] == str(out / "last.ckpt")
    assert printed.count("update 3 of 3") == 1  # one process speaks
    assert read_raw(out / "last.ckpt")["training"]["shares"] == 2
    assert [line.split(",")[0] for line in (out / "train.csv").read_text().split()] == [
        "update",
        "3",
    ]


@pytest.mark.slow
def test_torchrun_starts_the_processes(corpus, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(MAIN)
    out = tmp_path / "out"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed, code, errors = start([*launcher, str(script), *command(corpus, out)])
    assert code == 0, errors
    assert printed.splitlines()[-1] == str(out / "last.ckpt")
    assert read_raw(out / "last.ckpt")["training"]["shares"] == 2


def test_bucketed_batches_need_an_utterance_for_every_process(corpus, tmp_path):
    recipe = tiny_recipe("librispeech-100", "run.accumulate=3")
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    with pytest.raises(SpecError, match=r"batches.least: expected at least 3, .* got 2"):
        train(*data, recipe, tmp_path, data_name="tones", progress=False)


def test_environments_that_contradict_themselves_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="--devices 3: the environment says 2"):
        make_fabric(devices=3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(SpecError, match="WORLD_SIZE to be a multiple of 3, got 4"):
        make_fabric()
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(SpecError, match="WORLD_SIZE: expected a number, got 'four'"):
        make_fabric()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_needs_a_gpu():
    with pytest.raises(SpecError, match="fp16 needs a GPU"):
        make_fabric(precision="fp16")
