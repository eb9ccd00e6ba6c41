"""``edge-imputer``: train, export, transcribe, spot, bench, info, demo."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import EdgeImputerError
from . import synthesize
from .active_study import active_study
from .bench import bench
from .data import app as data_app
from .evaluate import evaluate
from .export import export
from .improve import improve, mine
from .labels import add_labels
from .listening import JsonOption, json_line, print_error, spot, transcribe
from .select import select
from .training import recipe_app
from .verify import verify

app = typer.Typer(
    name="edge-imputer",
    help="Keyword spotting and small speech recognition for small devices.",
    epilog="""Examples:

    `edge-imputer demo --out build/demo`

    `edge-imputer transcribe build/demo/bundle clip.wav`

    `edge-imputer spot build/demo/bundle clip.wav --keyword seven`
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(synthesize.app, name="synthesize")
app.add_typer(data_app)
app.add_typer(recipe_app, name="recipe")
data_app.command("add-labels")(add_labels)
app.command()(transcribe)
app.command()(spot)
app.command()(evaluate)
app.command()(mine)
app.command()(improve)
app.command()(select)
app.command("active-study")(active_study)
app.command()(verify)
app.command()(bench)
app.command()(export)


def _version(show: bool) -> None:
    if show:
        print(f"edge-imputer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s"
    )


@app.command()
def info(
    what: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|ENCODER",
            help="Bundle folder; name of a preset encoder; or an encoder's file, .toml or .json.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds, or what an encoder is made of and costs.

    Of a bundle: spec, sizes, operations, memory, what was measured. Of an encoder: layers, shapes,
    parameters, multiply-accumulates, state, latency, receptive field.

    Examples:

    `edge-imputer info build/demo/bundle`

    `edge-imputer info tcn-30k`
    """
    from ..bundle import Bundle
    from .show import bundle_summary, encoder_summary
    from .steps import describe_encoder

    shown = describe_encoder(what) or Bundle.load(what)
    if as_json:
        import msgspec

        print(msgspec.json.encode(shown.manifest if isinstance(shown, Bundle) else shown).decode())
    elif isinstance(shown, Bundle):
        bundle_summary(shown)
    else:
        encoder_summary(what, shown)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped recipe's name.")
    ] = "digits",
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder with manifest.jsonl; the recipe's own if unset."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and tables.")] = Path(
        "build/train"
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; repeatable."),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this bundle or checkpoint.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes here, one a GPU or core; 1 if unset.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT/last.ckpt.")] = False,
    updates: Annotated[int | None, typer.Option(min=1, help="Sets run.updates.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Sets run.seed.")] = None,
    hold_out: Annotated[
        str | None, typer.Option(help="A speaker to leave out of training: data.hold_out.")
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="Say which recipes there are, and stop.")
    ] = False,
) -> None:
    """Train a model by a recipe; the last line printed is its checkpoint.

    SIGTERM and Ctrl-C end a run after the update at hand, with a checkpoint (exit codes 143 and
    130); `--resume` goes on as if nothing had been.

    Examples:

    `edge-imputer train --out build/train`

    `edge-imputer train wake-word --data my_corpus --set optimizer.learning_rate=5e-4`

    `edge-imputer train my.toml --resume --devices 4`

    `torchrun --nproc-per-node 8 -m edge_imputer.cli.main train librispeech-960 --data libri`
    """
    from . import training

    if list_recipes:
        training.list_recipes()
        return
    given = {"run.updates": updates, "run.seed": seed}
    shortcuts = [f"{key}={value}" for key, value in given.items() if value is not None]
    if hold_out is not None:
        shortcuts.append(f"data.hold_out={json.dumps(hold_out)}")
    training.run_train(
        recipe,
        data=data,
        out=out,
        settings=[*(settings or ()), *shortcuts],
        init_from=init_from,
        devices=devices,
        resume=resume,
    )


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus folder with manifest.jsonl; the shipped digits if unset."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything made.")] = Path("build/demo"),
    hold_out: Annotated[
        str | None, typer.Option(help="A speaker to leave out of training and to test on.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Recipe: a TOML file, or a shipped one's name.")
    ] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Overrides the recipe.")] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe.")] = None,
) -> None:
    """The whole way: train, quantise, export, run on three runtimes, report.

    The last line printed is one JSON object of figures.

    Examples:

    `edge-imputer demo`

    `edge-imputer demo --data my_corpus --hold-out alice --out build/alice`
    """
    from .demo import run_demo

    figures = run_demo(data, out, hold_out=hold_out, config=config, updates=updates, seed=seed)
    print(json_line(figures))


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(args: Iterable[str] | None = None) -> None:
    """Entry point. An error of ours or of the file system is one line on stderr, exit code 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            app(args=None if args is None else list(args))
        except (EdgeImputerError, OSError) as error:
            print_error(error)
            sys.exit(2)


if __name__ == "__main__":
    main()
