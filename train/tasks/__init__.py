"""Tasks: what a model learns, and from which losses. One table from settings to task."""

from __future__ import annotations

from typing import Any

from edge_imputer.specs import KeywordModelSpec, ModelSpec

from .base import Task
from .ctc import CtcTask
from .imputer import ImputerTask
from .keywords import KeywordTask
from .settings import CtcTaskSpec, ImputerTaskSpec, KeywordTaskSpec, RivalSpec, TaskSpec

__all__ = [
    "TASKS",
    "CtcTask",
    "CtcTaskSpec",
    "ImputerTask",
    "ImputerTaskSpec",
    "KeywordTask",
    "KeywordTaskSpec",
    "RivalSpec",
    "Task",
    "TaskSpec",
    "build_task",
]

TASKS: dict[type, Any] = {
    ImputerTaskSpec: ImputerTask,
    CtcTaskSpec: CtcTask,
    KeywordTaskSpec: KeywordTask,
}


def build_task(spec: ModelSpec | KeywordModelSpec, settings: TaskSpec) -> Task:
    """The task with a model of untrained weights.

    Parameters
    ----------
    spec : ModelSpec or KeywordModelSpec
        As ``settings.make_spec`` gives it.
    settings : TaskSpec

    Raises
    ------
    SpecError
        If either contradicts itself, or they do not belong together.
    """
    settings.check()
    spec.check()
    task: Task = TASKS[type(settings)](spec, settings)
    return task
