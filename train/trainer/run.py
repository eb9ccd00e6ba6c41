"""A run, from a recipe and clips to a checkpoint: spec, data, first weights, loop, result."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from lightning.fabric import Fabric

from edge_imputer.errors import CheckpointError, SpecError

from ..checkpoint import KEY, Origin, unpack
from ..data import Batch, Clip, fixed_batches
from ..quantisation import Quantiser
from ..recipe import Recipe
from ..tasks import build_task
from .display import Display, said_seconds
from .feeding import Feed, make_feed
from .initial import Initial, read_initial, take_over
from .logbook import Logbook
from .loop import Loop, monitored
from .processes import make_fabric
from .quantising import QuantisedEnd, make_end
from .resuming import check_same
from .sources import Material, of_clips
from .store import LAST, State, Store, remove_run

log = logging.getLogger(__name__)


def train(
    train_data: Material | Sequence[Clip],
    valid_data: Material | Sequence[Clip] | None,
    recipe: Recipe,
    out: Path,
    *,
    data_name: str,
    resume: bool = False,
    init_from: Path | None = None,
    devices: int | None = None,
    progress: bool = True,
    quantiser: Quantiser | None = None,
) -> Path:
    """Train a model and return the path of the checkpoint that the recipe wants.

    Every process of a run calls it alike; see `processes.make_fabric` for which there are.

    Parameters
    ----------
    train_data, valid_data : clips at the front end's sample rate, or `Material`
    recipe : Recipe
    out : folder for checkpoints and tables; see `store` and `logbook` for its files
    data_name : what the checkpoint says it was trained on
    resume : go on from ``out/last.ckpt`` where there is one
    init_from : a checkpoint or bundle whose weights are the first ones
    devices : processes on this machine; None: one, or what the environment says
    progress : show a progress bar, or lines where there is no terminal
    quantiser : for recipes with ``quantisation.updates``: `edge_imputer.export.qat.ExportQuantiser`

    Raises
    ------
    SpecError
        A recipe with such updates, and no quantiser.
    DataError
        No clip that can be trained on.
    CheckpointError
        The checkpoint to go on from has another recipe or other data, or cannot be read.
    TrainingError
        A run that had to end: its message says why, and that a checkpoint is whole.
    TrainingStopped
        It was asked to, by SIGTERM or Ctrl-C; a checkpoint was written first.
    """
    recipe.check()
    fabric = make_fabric(devices=devices, precision=recipe.run.precision)
    fabric.launch()
    store = Store(out, recipe.run)
    rate = recipe.features.sample_rate
    material = train_data if isinstance(train_data, Material) else of_clips(train_data, rate)
    valid = valid_data
    if valid is not None and not isinstance(valid, Material):
        valid = of_clips(valid, rate) if valid else None
    state = store.newest() if resume else None
    initial = read_initial(init_from) if init_from is not None else None
    origin = Origin(
        data=data_name, n_clips=len(material), init_from=initial.sha256 if initial else None
    )
    if state is not None:
        initial, origin = _check_resumable(state, out, recipe, origin)
    feed = make_feed(material, valid, recipe, fabric, initial, out)
    end = make_end(recipe, quantiser, feed.train, feed.spec)
    loop = _make_loop(fabric, recipe, origin, store, feed, end, progress=progress)
    if state is not None:
        loop.load(state, int(state[KEY]["updates"]))
        del state
    else:
        if initial is not None:
            take_over(loop.task, initial)
            loop.begin_average()
            if end is not None and end.includes(0) and initial.spec == feed.spec:
                end.ranges = initial.ranges  # it goes on in the integers that it has
        if fabric.is_global_zero:
            remove_run(out)
    return _carry_out(loop, feed)


def _check_resumable(
    state: State, out: Path, recipe: Recipe, origin: Origin
) -> tuple[Initial, Origin]:
    """The model of a state to go on from, if it was a run of this recipe on this data."""
    path = out / LAST
    spec, old_recipe, old_origin = unpack(state, path)
    if "training" not in state:
        raise CheckpointError(
            f"{path}: it holds weights but not the state of a run; begin a new one from it with "
            "--init-from"
        )
    if origin.init_from is None:  # need not be given again
        origin = msgspec.structs.replace(origin, init_from=old_origin.init_from)
    check_same(path, recipe, origin, old_recipe, old_origin)
    return Initial(path, spec, state["state_dict"], ""), origin


def _make_loop(
    fabric: Fabric,
    recipe: Recipe,
    origin: Origin,
    store: Store,
    feed: Feed,
    end: QuantisedEnd | None,
    *,
    progress: bool,
) -> Loop:
    torch.manual_seed(recipe.run.seed % 2**63)
    task = build_task(feed.spec, recipe.task)
    logbook = Logbook(store.folder, writes=fabric.is_global_zero)
    display = Display(
        recipe.run.updates,
        every=recipe.run.valid_every,
        monitor=monitored(task, recipe.run)[0],
        shown=progress and fabric.is_global_zero,
    )
    return Loop(fabric, task, recipe, origin, store, logbook, display, end)


def _carry_out(loop: Loop, feed: Feed) -> Path:
    """Run what is left of a run; the path of its result."""
    recipe = loop.recipe
    if loop.update < recipe.run.updates and not loop.stopped_early:
        valid = fixed_batches(feed.valid, feed.featurizer, feed.valid_batch_size)
        if not valid and (recipe.run.patience or recipe.run.result in ("best", "average-best")):
            raise SpecError(
                "run.patience and run.result best need a valid split, and the corpus has none "
                "that can be used; leave them out of the recipe"
            )
        loop.logbook.resume(loop.update)
        batches = iter(feed.batches(start=loop.update))
        with _closed(loop, batches):
            loop.run(batches, valid)
    path = _result(loop)
    if loop.display.shown:
        _summary(loop, path)
    return path


def _result(loop: Loop) -> Path:
    """The result's path; it is computed by one process."""
    path: list[Path] = []
    loop.write(lambda: path.append(loop.store.result()))
    return Path(loop.fabric.broadcast(str(path[0]) if path else ""))


@contextlib.contextmanager
def _closed(loop: Loop, batches: Iterator[Batch]) -> Iterator[None]:
    """Leave no bar on the terminal, no row unwritten and no worker behind, whatever happens."""
    loop.display.open(loop.update)
    try:
        yield
    except BaseException:
        loop.display.close()
        with contextlib.suppress(OSError):  # the disk may be why the run ends, which has been said
            loop.logbook.close()
        raise
    else:
        loop.display.close()
        loop.logbook.close()
    finally:
        del batches


def _summary(loop: Loop, path: Path) -> None:
    """What was done, in a few lines."""
    kept, run = loop.store.kept, loop.recipe.run
    early = " (stopped early)" if loop.stopped_early else ""
    print(f"{loop.update} of {run.updates} updates in {said_seconds(loop.seconds)}{early}")
    if kept.best is not None:
        name, _ = monitored(loop.task, run)
        print(f"best {name} {abs(kept.best):.4f}, after update {kept.best_update}")
    print(f"result: {path}", flush=True)
