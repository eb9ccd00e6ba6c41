"""``edge-imputer data add-labels``: what people wrote becomes a manifest to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError, require
from .data import Punctuation
from .evaluate import SplitName
from .show import say


def add_labels(
    manifest: Annotated[
        Path, typer.Argument(help="Manifest of the clips, such as to_label.jsonl of `select`.")
    ],
    labels: Annotated[
        Path, typer.Argument(help="Label Studio's JSON or JSON-MIN export, or a table (.tsv).")
    ],
    out: Annotated[Path, typer.Option(help="Manifest (.jsonl) or corpus folder to write.")],
    characters: Annotated[
        str | None, typer.Option(help="The only ones texts may have, beside the space.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint or bundle whose characters or keywords count.")
    ] = None,
    punctuation: Annotated[
        Punctuation, typer.Option(help="Keep it in texts, or remove it.")
    ] = Punctuation.keep,
    field: Annotated[
        str | None, typer.Option(help="Where the labels are, if not under a usual name.")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Of the labelled rows.")] = SplitName.train,
    append: Annotated[
        bool, typer.Option("--append", help="Add to OUT where it is there already.")
    ] = False,
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave labels out that are not right, and say which.")
    ] = False,
) -> None:
    """Join labels to the clips they are of, by the clip's id or the path of its audio.

    Writes the rows that have a label. The text `<nothing>` says that nobody speaks; an empty one
    is not labelled yet. Unknown characters, classes and clips, and second labels of a clip that
    differ, are errors; with `--skip` they are left out.

    Examples:

    `edge-imputer data add-labels to_label.jsonl project-1.json --out corpora/field`

    `edge-imputer data add-labels to_label.jsonl labels.tsv --out field.jsonl --model best.ckpt
    --punctuation remove --skip`

    `edge-imputer data add-labels second.jsonl project-2.json --out corpora/field --append`
    """
    require("torch", extra="train")
    from edge_imputer.train.data.label_files import read_labels
    from edge_imputer.train.data.labels import LabelRules
    from edge_imputer.train.data.labels import add_labels as join

    if characters is not None and model is not None:
        raise SpecError("--characters and --model both say what texts may have; give one of them")
    keywords = None
    if model is not None:
        characters, keywords = _known(model)
    report = join(
        manifest,
        read_labels(labels, field),
        out,
        rules=LabelRules(characters, keywords, punctuation is Punctuation.remove),
        split=split.value,
        append=append,
        skip=skip,
    )
    for line in report.lines():
        say(f"left out: {line}")
    if report.empty:
        say(f"{report.empty} labels are empty: not labelled yet")
    if report.skipped:
        say(f"{report.skipped} labels were passed over by the labeller")
    if report.kept:
        say(f"added to {report.kept} clips, which have {report.again} of the labels already")
    say(
        f"{report.written} clips with labels, {report.hours:.2f} h; {report.unlabelled} without "
        "are left out"
    )
    print(out)


def _known(model: Path) -> tuple[str | None, tuple[str, ...] | None]:
    """The characters that a model can write; or its keywords."""
    require("lightning", extra="train")
    from edge_imputer.train.trainer import read_initial

    from ..specs import KeywordModelSpec

    spec = read_initial(model).spec
    if isinstance(spec, KeywordModelSpec):
        return None, spec.keywords
    return "".join(spec.tokens.characters), None
