"""``edge-imputer verify``: whether a bundle computes the same in every runtime at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..bundle import Bundle
from ..errors import require
from .show import say, table

if TYPE_CHECKING:
    from edge_imputer.export.verify import KindParity, Verification

NAME = "verify"


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, written by `export`.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Corpus whose test clips are decoded; the shipped digits if unset."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", "-r", help="One to compare; repeatable. All there are if unset."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Most clips to decode.")] = 200,
    calls: Annotated[
        int, typer.Option(min=1, help="Calls of each graph to compare layers on.")
    ] = 6,
    min_agreement: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Least share of clips with one text, for each pair."),
    ] = 0.99,
    min_float_agreement: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="The same beside the float model: what int8 changes."),
    ] = 0.99,
    out: Annotated[Path, typer.Option(help="Folder for verify.json and verify.png.")] = Path(
        "build/verify"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a program to read.")
    ] = False,
) -> None:
    """Hold a bundle's files to the exact integers, in every runtime that is installed.

    Layer by layer, and by what each runtime makes of the same clips. What is not installed is said.
    Exit code 1 where a tolerance is exceeded: `docs/runtimes.md` states them.

    Examples:

    `edge-imputer verify build/demo/bundle`

    `edge-imputer verify bundle --data my_corpus --runtime litert --runtime tflite-micro`
    """
    require("torch", extra="train")
    require("ai_edge_litert.schema_py_generated", extra="export")
    from edge_imputer.export import verify as verification

    from .plots import write_plot
    from .steps import load_corpus

    loaded = Bundle.load(bundle)
    waveforms = [clip.waveform for clip in load_corpus(data).clips("test")[:clips]]
    found = verification.verify(
        loaded,
        waveforms,
        runtimes=tuple(runtime or verification.NAMES),
        n_calls=calls,
        min_agreement=min_agreement,
        min_float_agreement=min_float_agreement,
        progress=_nothing if as_json else _progress,
    )
    figures = _figures(found)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    write_plot(NAME, figures, out)
    if as_json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        _show(found)
    if found.exceeded:
        raise typer.Exit(1)


def _nothing(items: Sequence[Any], label: str) -> Iterable[Any]:
    return items


def _progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    from rich.progress import track

    return track(items, description=label)


def _figures(found: Verification) -> dict[str, Any]:
    """Plain numbers for a program."""
    import msgspec

    figures: dict[str, Any] = msgspec.to_builtins(found)
    figures["kinds"] = msgspec.to_builtins(found.by_kind())
    for pair, plain in zip(found.pairs, figures["pairs"], strict=True):
        plain["share"] = pair.share
    return figures


def _show(found: Verification) -> None:
    kinds = found.by_kind()
    runtimes = list(dict.fromkeys(row.runtime for row in kinds))
    by_kind = {(row.kind, row.runtime): row for row in kinds}
    table(
        f"{found.bundle}: steps of int8 that layers are off the exact integers, at most "
        "(% of elements that differ)",
        ["layers", *runtimes],
        [
            (kind, *(_cell(by_kind[kind, runtime]) for runtime in runtimes))
            for kind in sorted({row.kind for row in kinds})
        ],
    )
    shares = {(pair.first, pair.second): f"{pair.share:.1%}" for pair in found.pairs}
    names = list(dict.fromkeys(name for pair in shares for name in pair))
    n_clips = found.pairs[0].n if found.pairs else 0
    table(
        f"Clips with the same text, of {n_clips}, pair by pair",
        ["", *map(str, range(2, len(names) + 1))],
        [
            (f"{k} {first}", *(shares.get((first, name), "") for name in names[1:]))
            for k, first in enumerate(names, 1)
        ],
    )
    same = ", ".join(f"{name} {share:.1%}" for name, share in found.identical.items())
    say(f"Clips with the exact integers' scores, to the byte: {same or 'nothing decoded'}.")
    for name, why in found.absent.items():
        say(f"Not tried: {name}: {why}")
    for line in found.exceeded:
        say(f"EXCEEDED {line}")
    if not found.exceeded:
        say("Every tolerance is kept.")


def _cell(row: KindParity) -> str:
    if row.n_refused:
        return "refused"
    return f"{row.max_lsb} ({100 * row.share:.3f})" if row.max_lsb else "0"
