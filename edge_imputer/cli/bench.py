"""``edge-imputer bench NAME``, which ``make bench-NAME`` calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="latency, frontend, loss, attention, encoders, data, select or runtimes."
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to time; untrained weights if unset.")
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", "-p", help="Of the benchmark runtimes: one to time; repeatable."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Of the benchmark runtimes: time every preset.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for NAME.json, and NAME.png if it has one.")] = (
        Path("build/bench")
    ),
) -> None:
    """Time what there is side by side; the last line is one JSON object.

    Examples:

    `edge-imputer bench latency --bundle build/demo/bundle`

    `edge-imputer bench runtimes --preset tcn-30k --preset conformer-s`
    """
    from ..specs import PRESETS
    from .benches import run_bench
    from .plots import write_plot

    figures = run_bench(name, bundle, tuple(PRESETS) if every else tuple(preset or ()))
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_plot(name, figures, out)
    print(json.dumps(figures, ensure_ascii=False))
