"""``edge-imputer export``: from a checkpoint to a bundle, and what quantisation cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import require

if TYPE_CHECKING:
    from edge_imputer.export.quantize_report import GraphReport

REPORT = "quantisation"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint written by `train`.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")] = Path("build/bundle"),
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus whose training split calibrates; the shipped digits if unset."),
    ] = None,
    licence: Annotated[str, typer.Option(help="The model's licence, for its card.")] = "unstated",
    calibration: Annotated[
        Literal["min-max", "percentile", "mse"], typer.Option(help="How int8 ranges are found.")
    ] = "min-max",
    precision: Annotated[
        Literal["int8", "mixed"],
        typer.Option(help="mixed: int16 in as few sums as --snr-db takes, none if int8 meets it."),
    ] = "int8",
    snr_db: Annotated[
        float, typer.Option(help="Signal to quantisation noise that mixed wants at the outputs.")
    ] = 30.0,
    report: Annotated[
        Path | None, typer.Option(help="Folder for what quantisation cost, node by node.")
    ] = None,
) -> None:
    """Quantise a checkpoint and write every artefact: ONNX float and int8, TFLite int8, C99.

    Examples:

    `edge-imputer export build/train/last.ckpt --out build/bundle`

    `edge-imputer export build/train/last.ckpt --precision mixed --report build/quantisation`
    """
    from .steps import export_checkpoint, load_corpus

    require("torch", extra="train")
    from edge_imputer.export.sensitivity import Quantisation

    bundle = export_checkpoint(
        checkpoint,
        load_corpus(data),
        out,
        licence=licence,
        quantisation=Quantisation(calibration, precision, snr_db),
        report=report,
    )
    print(bundle.path)


def write_reports(reports: Sequence[GraphReport], folder: Path) -> None:
    """Write what quantisation cost: figures, a page, and a picture where matplotlib is."""
    from edge_imputer.export.quantize_report import table

    from .plots import write_plot

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"bench": REPORT, "graphs": [report.figures() for report in reports]}
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    (folder / f"{REPORT}.json").write_text(text, encoding="utf-8")
    (folder / f"{REPORT}.md").write_text(table(reports), encoding="utf-8")
    write_plot(figures, folder)
