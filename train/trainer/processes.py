"""Which processes train together: devices, nodes, numbers. Lightning's Fabric does the work."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from edge_imputer.errors import SpecError

from ..recipe import Precision

T = TypeVar("T")
PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(*, devices: int | None = None, precision: Precision = "auto") -> Fabric:
    """The processes of a run, not launched yet.

    Under ``torchrun``, or where a cluster sets the same variables (``MASTER_ADDR``,
    ``MASTER_PORT``, ``WORLD_SIZE``, ``RANK``, ``LOCAL_RANK``; ``LOCAL_WORLD_SIZE`` where a node has
    several processes), this process is one of them. Else there are `devices` of them on this
    machine, one a GPU, or one a core without GPUs; one if it is None.

    Raises
    ------
    SpecError
        More devices than there are, variables that contradict them, or fp16 without a GPU.
    """
    gpus = torch.cuda.device_count()
    _quiet_lightning()
    if precision == "auto":
        precision = "bf16" if gpus else "32"
    if precision == "fp16" and not gpus:
        raise SpecError("run.precision: fp16 needs a GPU, and there is none; use bf16 or 32")
    here, nodes = devices or 1, 1
    plugins: list[Any] = []
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        here, nodes = _cluster(devices)
        plugins = [TorchElasticEnvironment()]
    if here < 1 or (gpus and here > gpus):
        raise SpecError(f"--devices: expected 1 to {max(1, gpus)}, got {here}")
    several = here * nodes > 1
    return Fabric(
        accelerator="cuda" if gpus else "cpu",
        devices=here,
        num_nodes=nodes,
        precision=PRECISIONS[precision],
        strategy=DDPStrategy() if several else "auto",
        plugins=plugins,
    )


def _cluster(devices: int | None) -> tuple[int, int]:
    """Processes on this node, and nodes, as the environment says."""
    world = _number("WORLD_SIZE", 1)
    here = _number("LOCAL_WORLD_SIZE", devices or world)
    if devices not in (None, here):
        raise SpecError(
            f"--devices {devices}: the environment says {here} processes a node "
            "(LOCAL_WORLD_SIZE); leave --devices out"
        )
    if world % here:
        raise SpecError(f"expected WORLD_SIZE to be a multiple of {here}, got {world}")
    return here, world // here


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"{name}: expected a number, got {text!r}")
    return int(text)


def gathered(fabric: Fabric, value: T) -> list[T]:
    """What every process has, in their order."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(values, value)
    return values


def _quiet_lightning() -> None:
    """Lightning's advice on launching and seeding is not for the users of a recipe."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")
