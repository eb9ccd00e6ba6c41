"""``edge-imputer select``: which clips of a pool to have labelled."""

from __future__ import annotations

import os
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SpecError, require
from .show import ClipProgress, say, table
from .steps import corpus_path

if TYPE_CHECKING:
    from edge_imputer.train.active import SelectionReport
    from edge_imputer.train.active.score_log import Shard

MOST_WORKERS = 8


class RankBy(str, Enum):
    """What clips are ranked by."""

    per_second = "per-second"
    score = "score"


class ExportTo(str, Enum):
    """Labelling tools that tasks are written for."""

    label_studio = "label-studio"
    tsv = "tsv"


class KeepJunk(str, Enum):
    """Reasons to leave a clip out that may be overruled."""

    silent = "silent"
    noise = "noise"
    clipped = "clipped"


def select(
    model: Annotated[
        Path, typer.Argument(help="A checkpoint (.ckpt), the folder of a run, or a bundle.")
    ],
    pool: Annotated[
        Path, typer.Option(help="What could be labelled: a manifest, or a folder of recordings.")
    ],
    budget_hours: Annotated[float, typer.Option(help="Hours of audio to choose; never exceeded.")],
    strategy: Annotated[
        str,
        typer.Option(
            help="random, least-confidence, entropy, egl, egl-sampled, egl-bound, badge or "
            "egl-diversity."
        ),
    ] = "egl-diversity",
    out: Annotated[
        Path, typer.Option(help="Manifest to write; all else goes to a folder of its name.")
    ] = Path("to_label.jsonl"),
    trained_on: Annotated[
        list[Path] | None,
        typer.Option(help="Manifest of what the model was trained on, to leave out; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of the strategy; repeatable."),
    ] = None,
    rank_by: Annotated[
        RankBy, typer.Option(help="The score by the second of audio, or the clip's as a whole.")
    ] = RankBy.per_second,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    shard: Annotated[
        str | None,
        typer.Option(help="Score this part of the pool only, such as 2/8; see --merge."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Choose from shards that are scored.")
    ] = False,
    keep: Annotated[
        list[KeepJunk] | None,
        typer.Option(help="Score such clips instead of leaving them out; repeatable."),
    ] = None,
    shortest: Annotated[float, typer.Option(help="Leave out shorter clips, seconds.")] = 0.2,
    longest: Annotated[float, typer.Option(help="Leave out longer clips, seconds.")] = 35.0,
    candidates: Annotated[
        int, typer.Option(min=1, help="Clips that differences are looked for among, at least.")
    ] = 20_000,
    batch_seconds: Annotated[
        float, typer.Option(help="Most seconds of a batch, padding included.")
    ] = 60.0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read clips; by the cores if unset.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one.")] = None,
    export: Annotated[
        ExportTo | None, typer.Option(help="Also write tasks for a labelling tool.")
    ] = None,
    embed: Annotated[
        bool, typer.Option("--embed", help="Put the audio into the page: it can then be sent on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Choose the clips of a pool that teach a model most, for people to label.

    Writes OUT, rows of the pool with rank, score and what the model hears; and beside it a folder
    of its name: scores of all clips, what was left out and why (silence, noise, clipping, what
    cannot be read, repeats, what was trained on), a plot, and index.html to listen to. A run that
    was interrupted goes on where it was: give the same command again. `docs/active_learning.md`
    says more.

    Examples:

    `edge-imputer select build/train/best.ckpt --pool field --budget-hours 2`

    `edge-imputer select bundle --pool pool.jsonl --budget-hours 10 --strategy egl-diversity
    --trained-on corpora/lamp --export label-studio`

    `edge-imputer select best.ckpt --pool pool.jsonl --budget-hours 10 --shard 1/2`, the same with
    `--shard 2/2` elsewhere, then with `--merge`

    `torchrun --nproc-per-node 8 -m edge_imputer.cli.main select best.ckpt --pool pool.jsonl
    --budget-hours 10`
    """
    require("lightning", extra="train")
    require("jiwer", extra="train")
    from edge_imputer.train.active import JunkRules, Selection, SelectionOptions

    if shard is not None and merge:
        raise SpecError("--shard scores a part and --merge joins all of them; give one of the two")
    part, is_process = _shard(shard)
    options = SelectionOptions(
        model=model,
        pool=corpus_path(pool),
        out=out,
        budget_s=3600 * budget_hours,
        strategy=strategy,
        settings=_settings(settings or ()),
        seed=seed,
        rules=JunkRules(
            min_s=shortest, max_s=longest, keep=tuple(reason.value for reason in keep or ())
        ),
        trained_on=[corpus_path(path) for path in trained_on or ()],
        rank_by="score" if rank_by is RankBy.score else "per_second",
        candidates=candidates,
        batch_s=batch_seconds,
        workers=default_workers(workers),
        device=chosen_device(device),
        export=None if export is None else export.value,
        embed=embed,
        command=shlex.join(["edge-imputer", *sys.argv[1:]]),
    )
    with _Bars() as progress:
        selection = Selection(options, progress)
        if not merge:
            selection.score(part)
        if is_process and part.index == 1 and not merge:
            selection.wait(part.of)
    if shard is not None:
        say(f"{part.file(options.folder)}: scored; choose with --merge when all shards are")
        return
    if part.index > 1:
        return
    report = selection.select()
    if as_json:
        import msgspec

        print(msgspec.json.encode(report).decode())
        return
    print_selection(report)
    say(f"Listen: {options.folder / 'index.html'}")
    print(out)


def _shard(given: str | None) -> tuple[Shard, bool]:
    """What is scored here, and whether other processes of the same command score the rest."""
    from edge_imputer.train.active.score_log import Shard

    world = os.environ.get("WORLD_SIZE", "1")
    if given is not None:
        return Shard.parse(given), False
    if world == "1":
        return Shard(), False
    rank = os.environ.get("RANK", "")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise SpecError(f"expected RANK below WORLD_SIZE, got RANK {rank!r}, WORLD_SIZE {world!r}")
    return Shard(int(rank) + 1, int(world)), True


def _settings(given: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Parse ``n_samples=32``, with the types of `ScoreOptions`."""
    import msgspec

    from edge_imputer.train.active import ScoreOptions

    types = {field.name: field.type for field in msgspec.structs.fields(ScoreOptions)}
    found: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or key not in types:
            raise SpecError(
                f"--set: expected KEY=VALUE with a key of {', '.join(types)}, got {item!r}"
            )
        value: Any = text.split(",") if key == "parameters" else text
        try:
            found[key] = msgspec.convert(value, types[key], strict=False)
        except msgspec.ValidationError as error:
            raise SpecError(f"--set {item}: {error}") from error
    return found


def default_workers(given: int | None) -> int:
    """So many processes as there are cores beside the one that scores."""
    if given is not None:
        return given
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_WORKERS, cores // here - 1) if cores > here else 0


def chosen_device(given: str | None) -> str:
    """What torch calls the device that is asked for; None: a GPU if there is one."""
    import torch

    if given not in (None, "cpu", "cuda"):
        raise SpecError(f"--device: expected cpu or cuda, got {given!r}")
    if given == "cpu" or (given is None and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise SpecError("--device cuda: there is no GPU that torch can use; leave it out")
    rank = os.environ.get("LOCAL_RANK", "0")  # a process may be shown its own GPU only
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


class _Bars:
    """One bar after another, by what is done. A context."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: ClipProgress | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what or self._bar is None:
            self.__exit__()
            self._what, self._bar = what, ClipProgress(what)
            self._bar.__enter__()
        self._bar(done, total)


def print_selection(report: SelectionReport) -> None:
    """Tables for people."""
    for line in report.warnings:
        say(f"note: {line}")
    counted = {"pool": report.all, "scored": report.scored, "chosen": report.chosen}
    table(
        f"By {report.strategy}: {report.meaning}",
        ["", "clips", "hours"],
        [
            *((name, one.clips, f"{one.hours:.2f}") for name, one in counted.items()),
            *(
                (f"left out: {reason}", tally.clips, f"{tally.hours:.2f}")
                for reason, tally in report.left_out.items()
            ),
        ],
    )
    for reason, tally in report.left_out.items():
        say(f"  {reason}: {tally.examples[0]}")
