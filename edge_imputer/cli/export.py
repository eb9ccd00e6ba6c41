"""The command `export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import SpecError, require

if TYPE_CHECKING:
    from edge_imputer.export.quantize_report import GraphReport

REPORT = "quantisation"


class Target(str, Enum):
    """What a checkpoint can become."""

    bundle = "bundle"
    esphome = "esphome"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint written by `train`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; build/bundle, or build/esphome, if unset."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus whose training split calibrates; the shipped digits if unset."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Also the whole model, samples to tokens, as one file.")
    ] = False,
    ort: Annotated[
        bool, typer.Option("--ort", help="Write onnx/NAME.int8.ort too, for onnxruntime's builds.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="The model's licence, for a bundle's card.")
    ] = None,
    calibration: Annotated[
        Literal["min-max", "percentile", "mse"] | None,
        typer.Option(help="How int8 ranges are found; min-max if unset."),
    ] = None,
    precision: Annotated[
        Literal["int8", "mixed"] | None,
        typer.Option(
            help="mixed: int16 in as few sums as --snr-db takes, none if int8 meets it; int8 if "
            "unset."
        ),
    ] = None,
    snr_db: Annotated[
        float | None,
        typer.Option(help="Signal to noise in dB that mixed wants at the outputs; 30 if unset."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for what quantisation cost, node by node.")
    ] = None,
    target: Annotated[
        Target, typer.Option(help="A bundle, or a wake word for ESPHome's devices.")
    ] = Target.bundle,
    wake_word: Annotated[
        str | None, typer.Option(help="ESPHome: its name on the screen; the keyword if unset.")
    ] = None,
    cutoff: Annotated[
        float | None, typer.Option(help="ESPHome: mean probability to detect at; 0.9 if unset.")
    ] = None,
    sliding_window: Annotated[
        int | None,
        typer.Option(help="ESPHome: probabilities to average; the model's smoothing if unset."),
    ] = None,
    author: Annotated[str | None, typer.Option(help="ESPHome: whose model it is.")] = None,
    website: Annotated[str | None, typer.Option(help="ESPHome: where to find it.")] = None,
    languages: Annotated[
        str | None, typer.Option(help="ESPHome: trained languages, such as en,nl.")
    ] = None,
) -> None:
    """Quantise a checkpoint and write what runs on a device; the last line printed is its path.

    A bundle has every artefact: ONNX float and int8, TFLite int8, C99. For ESPHome's
    micro_wake_word it is a streaming .tflite and its manifest, of a model that the recipe
    `wake-word-esphome` trains.

    Examples:

    `edge-imputer export build/train/last.ckpt --out build/bundle`

    `edge-imputer export build/train/last.ckpt --precision mixed --report build/quantisation`

    `edge-imputer export build/wake/best.ckpt --target esphome --data corpora/lamp --author Ann`
    """
    esphome = {
        "wake_word": wake_word,
        "probability_cutoff": cutoff,
        "sliding_window_size": sliding_window,
        "author": author,
        "website": website,
        "trained_languages": languages and tuple(part.strip() for part in languages.split(",")),
    }
    given = {name: value for name, value in esphome.items() if value is not None}
    if target is Target.esphome:
        if licence is not None:
            raise SpecError(
                "expected no --licence with --target esphome, whose manifest has no place for it, "
                f"got {licence!r}; state it where the files are published"
            )
        if fused or ort or calibration or precision or snr_db is not None or report:
            raise SpecError(
                "expected none of --fused, --ort, --calibration, --precision, --snr-db and "
                "--report with --target esphome: they are for bundles"
            )
        from .esphome import export_esphome
        from .steps import load_corpus

        corpus = load_corpus(data)
        print(export_esphome(checkpoint, corpus, out or Path("build/esphome"), **given))
        return
    if given:
        raise SpecError(
            f"expected options of a bundle, got {', '.join(sorted(given))}, which are for ESPHome; "
            "add --target esphome, or leave them out"
        )
    from .steps import export_checkpoint, load_corpus

    require("torch", extra="train")
    from edge_imputer.export.sensitivity import Quantisation

    if snr_db is not None and precision != "mixed":
        raise SpecError("--snr-db belongs to --precision mixed; add that, or leave it out")
    if fused and precision == "mixed":
        raise SpecError("expected int8 alone in a fused form; leave out --fused or --precision")
    if report is not None and report.exists() and not report.is_dir():
        raise SpecError(f"expected a folder for --report, got the file {report}; name another one")
    options = {"calibration": calibration, "precision": precision, "snr_db": snr_db}
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    bundle = export_checkpoint(
        checkpoint,
        load_corpus(data),
        out or Path("build/bundle"),
        licence=licence or "unstated",
        fused=fused,
        ort=ort,
        quantisation=Quantisation(**chosen) if chosen else None,
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
    write_plot(REPORT, figures, folder)
