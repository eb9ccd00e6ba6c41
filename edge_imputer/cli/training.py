"""``edge-imputer train`` and ``recipe``: from a recipe to a checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CheckpointError, MissingExtraError, SpecError, TrainingStopped, require
from .show import say, table
from .steps import SHIPPED, corpus_folder, quantiser_of, refuse_to_overwrite

if TYPE_CHECKING:
    from edge_imputer.train.recipe import Recipe

recipe_app = typer.Typer(
    help="""The recipes that come with the package: see them, copy them.

    Examples:

    `edge-imputer recipe list`

    `edge-imputer recipe show wake-word > mine.toml`
    """,
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


def run_train(
    name: str,
    *,
    data: Path | None,
    out: Path,
    settings: Iterable[str],
    init_from: Path | None,
    devices: int | None,
    resume: bool,
) -> None:
    """Train by a recipe and print the result's path. Every process of a run comes here."""
    require("lightning", extra="train")
    from edge_imputer.train.recipe import read_recipe
    from edge_imputer.train.trainer import read_corpus, train

    recipe = read_recipe(name, settings)
    if resume and not out.exists():
        raise CheckpointError(f"--resume: expected the folder of a run at {out}, found none")
    if not resume and first_process():
        refuse_to_overwrite(out)
    folder = _folder(recipe, data)
    train_data, valid_data = read_corpus(folder, recipe.data, recipe.features.sample_rate)
    try:
        path = train(
            train_data,
            valid_data,
            recipe,
            out,
            data_name=_data_name(recipe, folder),
            resume=resume,
            init_from=init_from,
            devices=devices,
            quantiser=quantiser_of(recipe),
        )
    except TrainingStopped as stopped:
        if first_process():
            typer.echo(f"stopped: {stopped}", err=True)
        raise typer.Exit(stopped.exit_code) from None
    if first_process():
        draw_curves(out)
        print(path)


def first_process() -> bool:
    """Whether this is the one process of a run that speaks; Lightning and torchrun number them."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _folder(recipe: Recipe, data: Path | None) -> Path:
    """The corpus that is trained on."""
    if data is not None:
        return corpus_folder(data)
    if recipe.data.folder == "digits":
        return corpus_folder(None)
    if not recipe.data.folder:
        raise SpecError(
            "data.folder: the recipe names no corpus; give one with --data FOLDER "
            "(`edge-imputer data prepare` makes one of the usual corpora)"
        )
    return corpus_folder(Path(recipe.data.folder))


def _data_name(recipe: Recipe, folder: Path) -> str:
    """What the checkpoint says it was trained on."""
    name = SHIPPED if folder == corpus_folder(None) else folder.resolve().name
    held_out = recipe.data.hold_out
    return name if held_out is None else f"{name}, {held_out} held out"


@recipe_app.command("list")
def list_recipes() -> None:
    """What recipes there are."""
    require("lightning", extra="train")
    from edge_imputer.train.recipe import read_recipe
    from edge_imputer.train.recipe_reader import shipped_recipes

    rows = [(name, read_recipe(name).description) for name in shipped_recipes()]
    table("Recipes, for `edge-imputer train NAME`", ["name", "what it trains"], rows)


@recipe_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name, or its file.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, as for `train`.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every key with its value, not only what is written.")
    ] = False,
) -> None:
    """Print a recipe's file, to copy it, or everything it sets.

    Examples:

    `edge-imputer recipe show digits > mine.toml`

    `edge-imputer recipe show ctc --full --set encoder=conformer-s`
    """
    require("lightning", extra="train")
    from edge_imputer.train.recipe import read_recipe
    from edge_imputer.train.recipe_reader import recipe_path
    from edge_imputer.train.trainer.resuming import flat

    recipe = read_recipe(name, settings or ())
    if not full and not settings:
        print(recipe_path(name).read_text("utf-8"), end="")
        return
    import msgspec

    for key, value in flat(msgspec.to_builtins(recipe)).items():
        print(f"{key} = {msgspec.json.encode(value).decode()}")


def draw_curves(out: Path) -> Path | None:
    """Draw ``learning_curves.png`` from a run's tables; nothing where matplotlib is missing."""
    tables = {name: _columns(out / f"{name}.csv") for name in ("train", "valid")}
    if not any(tables.values()):
        return None
    try:
        require("matplotlib", extra="report")
    except MissingExtraError as error:
        say(f"no picture of the learning curves: {error}")
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left_out = {"update", "seconds", "learning_rate", "gradient_norm"}
    for axes, (name, columns) in zip(figure.subplots(1, 2), tables.items(), strict=True):
        for column, values in columns.items():
            if column not in left_out and not column.startswith("recall/"):
                axes.plot(columns["update"], values, label=column, linewidth=1.2)
        axes.set(xlabel="update", title={"train": "Losses", "valid": "Validation"}[name])
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    path = out / "learning_curves.png"
    figure.savefig(path, dpi=110)
    return path


def _columns(path: Path) -> dict[str, list[float]]:
    """Columns of a CSV table; what is empty is not a number."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    return {name: [float(row[name] or "nan") for row in rows] for name in names}
