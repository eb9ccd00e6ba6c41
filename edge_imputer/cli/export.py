"""``edge-imputer export``: from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint written by `train`.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")] = Path("build/bundle"),
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus whose training split calibrates; the shipped digits if unset."),
    ] = None,
    licence: Annotated[str, typer.Option(help="The model's licence, for its card.")] = "unstated",
    ort: Annotated[
        bool, typer.Option("--ort", help="Write onnx/NAME.int8.ort too, for onnxruntime's builds.")
    ] = False,
) -> None:
    """Quantise a checkpoint and write every artefact: ONNX float and int8, TFLite int8, C99.

    Example: `edge-imputer export build/train/last.ckpt --out build/bundle`
    """
    from .steps import export_checkpoint, load_corpus

    bundle = export_checkpoint(checkpoint, load_corpus(data), out, licence=licence, ort=ort)
    print(bundle.path)
