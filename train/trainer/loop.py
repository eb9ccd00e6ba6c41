"""The training loop: an update at a time, on one process or on many, and what goes wrong in it."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from edge_imputer.errors import EdgeImputerError, SpecError, TrainingError, TrainingStopped

from ..checkpoint import Origin, pack, ranges_of
from ..data import Batch
from ..recipe import Recipe, RunSection
from ..tasks import Task
from .display import Display
from .logbook import Logbook
from .memory import MICRO_BATCHES, VALIDATION, enough_memory, frames_of
from .optimization import MovingAverage, build_optimizer, set_learning_rate
from .processes import gathered
from .quantising import QuantisedEnd, learning_rate
from .signals import StopSignals
from .store import LAST, State, Store

log = logging.getLogger(__name__)


class _Losses(nn.Module):
    """A task whose losses are its ``forward``: what DDP and mixed precision wrap."""

    def __init__(self, task: Task, end: QuantisedEnd | None) -> None:
        super().__init__()
        self.task, self.end = task, end

    def forward(self, batch: Batch, update: int, progress: float) -> dict[str, Tensor]:
        quantised = self.end.task if self.end is not None else None
        if quantised is None:
            return self.task.losses(batch, update, progress)
        losses = quantised.losses(batch, update, 1.0)  # nothing that only helps a beginning
        # What is read in training alone has no part in the graph, and DDP waits for its gradient.
        touched = sum(parameter.sum() for parameter in self.task.parameters())
        return {**losses, "loss": losses["loss"] + 0.0 * touched}


class Loop:
    """One run of a recipe: the weights, everything that moves with them, and its books.

    Every process of a run has one, and all of them take the same decisions: what is decided on is
    summed over the processes first.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task,
        recipe: Recipe,
        origin: Origin,
        store: Store,
        logbook: Logbook,
        display: Display,
        end: QuantisedEnd | None = None,
    ) -> None:
        self.fabric, self.task, self.recipe, self.origin = fabric, task, recipe, origin
        self.store, self.logbook, self.display, self.end = store, logbook, display, end
        optimizer = build_optimizer(task.parameters(), recipe.optimizer)
        self.module, self.optimizer = fabric.setup(_Losses(task, end), optimizer)
        self.average: MovingAverage | None = None
        self.begin_average()
        self.buffers = [b for b in task.buffers() if b.is_floating_point()]
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)  # of fp16
        self.update = 0
        self.bad = 0  # updates in a row that were skipped
        self.seconds = 0.0
        self.window: dict[str, float] = {}  # sums since the last row of train.csv
        self.stopped_early = False

    def begin_average(self) -> None:
        """Begin the moving average at the present weights."""
        if self.recipe.run.ema:
            self.average = MovingAverage(self.task, self.recipe.run.ema)

    # What goes into a checkpoint, and comes back out of it.

    def weights(self) -> dict[str, Tensor]:
        """The weights that are validated and deployed: the moving average where there is one."""
        return self.average.weights if self.average else self.task.state_dict()

    def packed(self) -> State:
        """The model as a checkpoint without the state of its training."""
        ranges = self.end.ranges if self.end is not None else None
        return pack(self.weights(), self.task.spec, self.recipe, self.origin, self.update, ranges)

    def state(self) -> State:
        """Everything that a resumed run needs to do what this one would have done."""
        training: State = {
            "optimizer": self.optimizer.state_dict(),
            "bad": self.bad,
            "seconds": self.seconds,
            "window": dict(self.window),
            "shares": self.fabric.world_size * self.recipe.run.accumulate,
            "kept": msgspec.to_builtins(self.store.kept),
        }
        if self.average:
            training["model"] = self.task.state_dict()
            training["average_updates"] = self.average.updates
        if self.scaler is not None:
            training["scaler"] = self.scaler.state_dict()
        return {**self.packed(), "training": training}

    def load(self, state: State, update: int) -> None:
        """Go on from a checkpoint's state."""
        training = state["training"]
        self.task.load_state_dict(training.get("model", state["state_dict"]))
        if self.average:
            self.average.load_state_dict(
                {"weights": state["state_dict"], "updates": training["average_updates"]}
            )
        self.optimizer.load_state_dict(training["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(training["scaler"])
        self.update, self.bad = update, training["bad"]
        if self.end is not None and self.end.includes(update):
            self.end.ranges = ranges_of(state, self.store.folder / LAST)
        self.seconds, self.window = training["seconds"], dict(training["window"])
        self.store.resume(training["kept"])
        self.stopped_early = self.store.out_of_patience  # by the patience of now

    # The run.

    def run(self, batches: Iterator[Batch], valid: Sequence[Batch]) -> None:
        """Train until the recipe's last update, early stopping, a signal or an error."""
        section = self.recipe.run
        finished = False
        with StopSignals() as signals:
            self._begin_end()
            if section.monitor and self.update == 0 and len(valid):
                self._rank(self.measure(valid))  # is there such a measure? Not hours later
            while not finished:
                start = time.monotonic()
                self._begin_end()
                stop = self._update(batches, signals)
                self.seconds += time.monotonic() - start
                if self.update % section.valid_every == 0 or self.update == section.updates:
                    self._validate(valid)
                finished = self.update == section.updates or self.stopped_early
                if finished or stop or self.update % section.checkpoint_interval == 0:
                    self._checkpoint()
                self.display.advance(self.update)
                if stop and not finished:
                    raise TrainingStopped(
                        f"stopped by {signal.Signals(stop).name} after update {self.update}; "
                        f"{self.store.folder / LAST} holds it: go on with --resume",
                        exit_code=128 + stop,
                    )

    def _begin_end(self) -> None:
        """From here on quantised, if it is time: what was best in float is not comparable.

        A moving average is what the quantised updates begin with, and begins anew itself.
        """
        if self.end is None or not self.end.includes(self.update):
            return
        if self.average is not None and self.end.ranges is None:
            self.task.load_state_dict(self.average.weights)
        if self.end.begin(self.task):
            self.begin_average()
            self.store.begin_anew()

    def _update(self, batches: Iterator[Batch], signals: StopSignals) -> int:
        """Make one update; the number of a signal that some process was sent, or 0."""
        recipe, world = self.recipe, self.fabric.world_size
        when = f"update {self.update + 1}"
        rate = learning_rate(recipe, self.update)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        kept_buffers = [buffer.clone() for buffer in self.buffers]
        sums: dict[str, Tensor] = {}
        for micro in range(recipe.run.accumulate):
            batch = self._next(batches)
            self._seed(micro)
            last = micro == recipe.run.accumulate - 1
            what = f"a micro-batch of {frames_of(batch)}"
            with (
                enough_memory(when, what, MICRO_BATCHES, self._go_on),
                self.fabric.no_backward_sync(self.module, enabled=not last),
            ):
                losses = self.module(batch, self.update, self.update / recipe.run.updates)
                # DDP takes the mean over the processes: this makes it that over utterances.
                self.fabric.backward(losses["loss"].sum() * (world / batch.n_global))
            for name, values in losses.items():
                total = values.detach().float().sum() / batch.n_global
                sums[name] = sums[name] + total if name in sums else total
        norm = self._clip_gradients()
        values, stop = self._agree(sums, norm, signals.received)
        with enough_memory(when, "the optimiser's step", MICRO_BATCHES, self._go_on):
            self._step(values, kept_buffers)
        self.update += 1
        if self.average:
            self.average.update(self.task)
        self._log(values, rate)
        return stop

    def _clip_gradients(self) -> Tensor:
        """Clip every group of weights by its own norm; the norm over all of them."""
        limit = self.recipe.optimizer.gradient_clip or math.inf
        groups = self.task.clipped_groups()
        norm = self.fabric.clip_gradients(  # brings fp16's gradients to their true size, too
            self.module,
            self.optimizer,
            max_norm=limit if len(groups) == 1 else math.inf,
            error_if_nonfinite=False,
        )
        assert norm is not None
        for parameters in groups if len(groups) > 1 else ():
            nn.utils.clip_grad_norm_(parameters, limit)
        return norm

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch, on this process's device."""
        try:
            batch: Batch = self.fabric.to_device(next(batches))
            return batch
        except EdgeImputerError as error:  # from a worker: torch puts a traceback before it
            message = str(error).strip().splitlines()[-1]
            raise TrainingError(f"update {self.update + 1}: {message}; {self._go_on()}") from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"update {self.update + 1}: a process that loads data died ({error}); lower "
                f"data.workers if memory was short. {self._go_on()}"
            ) from error

    def _seed(self, micro: int) -> None:
        """Draw dropout by seed, update and place alone, so that a resumed run is the same."""
        place = micro * self.fabric.world_size + self.fabric.global_rank
        seed = self.recipe.run.seed * 1_000_003 + self.update + place * 7_919_000_019
        torch.manual_seed(seed % 2**63)  # torch takes 64 bits

    def _agree(
        self, sums: dict[str, Tensor], norm: Tensor, received: int
    ) -> tuple[dict[str, float], int]:
        """Losses over all processes, the gradient's norm, and a signal that any was sent."""
        names = sorted(sums)
        mine = torch.stack([*(sums[name] for name in names), norm.float() / self.fabric.world_size])
        mine = torch.cat([mine, mine.new_tensor([float(received == s) for s in _SIGNALS])])
        total = self.fabric.all_reduce(mine, reduce_op="sum")
        assert isinstance(total, Tensor)
        numbers = total.tolist()
        values = dict(zip([*names, "gradient_norm"], numbers, strict=False))
        flags = zip(_SIGNALS, numbers[len(names) + 1 :], strict=True)
        return values, next((s for s, flag in flags if flag), 0)

    def _step(self, values: dict[str, float], kept_buffers: list[Tensor]) -> None:
        """Let the optimiser step, unless the loss or the gradient is not finite.

        A gradient too large for fp16 is no fault: its scaler lowers the scale and skips the step.
        """
        checked = ["loss"] if self.scaler is not None else ["loss", "gradient_norm"]
        if all(math.isfinite(values[name]) for name in checked):
            self.bad = 0
            self.optimizer.step()
            return
        self.bad += 1
        for parameter in self.task.parameters():
            parameter.grad = None
        for buffer, kept in zip(self.buffers, kept_buffers, strict=True):
            buffer.copy_(kept)  # running statistics of batch norm have seen it too
        if self.scaler is not None:
            self.optimizer.step()
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        if self.fabric.is_global_zero:
            log.warning("update %d skipped, not finite: %s", self.update + 1, said)
        if self.bad >= self.recipe.run.max_bad_updates:
            raise TrainingError(
                f"update {self.update + 1}: the loss or its gradient was not finite {self.bad} "
                f"times in a row ({said}); lower optimizer.learning_rate or look at the data. "
                f"{self._go_on()}"
            )

    def _log(self, values: dict[str, float], rate: float) -> None:
        """Add to the running means; write a row where one is due."""
        if self.bad == 0:
            for name, value in {**values, "": 1.0}.items():
                self.window[name] = self.window.get(name, 0.0) + value
        if self.update % self.recipe.run.log_every and self.update != self.recipe.run.updates:
            return
        n = self.window.pop("", 0.0)
        means = {name: value / n for name, value in self.window.items()} if n else {}
        self.window = {}
        row = {"learning_rate": rate, **means, "seconds": round(self.seconds, 1)}
        self.logbook.add("train", self.update, row)
        self.display.losses(self.update, {k: v for k, v in means.items() if k != "gradient_norm"})

    def _validate(self, valid: Sequence[Batch]) -> None:
        """Look at the validation split; keep the weights if they are the best yet."""
        rank = float(self.update)
        if len(valid):
            measures = self.measure(valid)
            self.logbook.add("valid", self.update, measures)
            self.display.measures(self.update, measures)
            rank = self._rank(measures)
            if self.store.improved(rank, self.update) and self.recipe.run.result == "best":
                self.write(lambda: self.store.keep_best(self.packed()))
            self.stopped_early = self.store.out_of_patience
        if self.recipe.run.result.startswith("average"):
            if self.recipe.run.result == "average-last":
                rank = float(self.update)
            self.write(lambda: self.store.keep_for_average(self.packed(), self.update, rank))

    def measure(self, valid: Sequence[Batch]) -> dict[str, float]:
        """The task's measures of the weights that are deployed, over all validation batches."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        when = f"validation after update {self.update}"
        sums: dict[str, tuple[float, float]] = {}
        task = (self.end.task if self.end is not None else None) or self.task
        self.task.eval()
        swapped: AbstractContextManager[None] = nullcontext()
        if self.average:
            swapped = self.average.swapped_into(self.task)
        with torch.no_grad(), swapped, self.fabric.autocast():
            for batch in valid[rank::world]:
                what = f"a batch of {frames_of(batch)}"
                with enough_memory(when, what, VALIDATION, self._go_on):
                    _add(sums, task.validate(self.fabric.to_device(batch)))
        self.task.train()
        total: dict[str, tuple[float, float]] = {}
        for part in gathered(self.fabric, sums):
            _add(total, part)
        return self.task.summarise(total)

    def _rank(self, measures: dict[str, float]) -> float:
        """What chooses the best weights: the larger, the better."""
        name, way = monitored(self.task, self.recipe.run)
        if name not in measures:
            raise SpecError(
                f"run.monitor: expected one of the measures {', '.join(measures)} (with a minus "
                f"where less is better), got {name!r}; {self._go_on()}"
            )
        value = measures[name]
        if math.isnan(value):
            return -math.inf
        return -value if way == "min" else value

    def _checkpoint(self) -> None:
        """See the books on disk, then the state that counts on them."""

        def save() -> None:
            self.logbook.flush()
            self.store.save(self.state())

        self.write(save)

    def write(self, write: Callable[[], None]) -> None:
        """Have the first process write; if it cannot, every process ends with its error."""
        failed: str | None = None
        if self.fabric.is_global_zero:
            try:
                write()
            except TrainingError as error:
                failed = str(error)
            except OSError as error:
                failed = f"{error.filename or self.store.folder}: {error.strerror}; {self._go_on()}"
        failed = self.fabric.broadcast(failed)
        if failed is not None:
            raise TrainingError(failed)

    def _go_on(self) -> str:
        """What is left of the run, for an error's message."""
        last = self.store.folder / LAST
        return f"{last} is whole: go on with --resume" if last.is_file() else "no checkpoint yet"


_SIGNALS = (int(signal.SIGTERM), int(signal.SIGINT))


def monitored(task: Task, section: RunSection) -> tuple[str, str]:
    """The measure that decides what is best, and whether ``min`` or ``max`` is."""
    if not section.monitor:
        return task.monitor
    way = "min" if section.monitor.startswith("-") else "max"
    return section.monitor.removeprefix("-"), way


def _add(sums: dict[str, tuple[float, float]], more: dict[str, tuple[float, float]]) -> None:
    for name, (above, below) in more.items():
        old = sums.get(name, (0.0, 0.0))
        sums[name] = old[0] + above, old[1] + below
