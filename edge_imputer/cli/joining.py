"""``edge-imputer data concatenate`` and ``join``: recordings made of several clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError, require
from .show import say

ManifestPath = Annotated[Path, typer.Argument(help="Corpus folder with transcribed clips.")]
RateOption = Annotated[int, typer.Option(min=1000, help="Hz.")]


def concatenate(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Argument(help="Corpus folder of long recordings to write.")],
    seconds: Annotated[
        tuple[float, float], typer.Option(help="Shortest and longest recording.")
    ] = (60.0, 160.0),
    rate: RateOption = 16_000,
    seed: Annotated[int, typer.Option(help="Of the order, the lengths and the gaps.")] = 0,
) -> None:
    """Make long recordings of short clips, each clip once, to test on long audio.

    Example: `edge-imputer data concatenate corpora/sentences corpora/long --seconds 60 160`
    """
    require("torch", extra="train")
    from edge_imputer.train.data import Manifest
    from edge_imputer.train.data.combine import concatenate

    records = concatenate(
        Manifest.open(manifest), out, seconds=seconds, sample_rate=rate, seed=seed
    )
    say(f"{len(records)} recordings, {sum(r.duration_s for r in records) / 3600:.2f} h")


def join(
    manifest: ManifestPath,
    out: Annotated[Path, typer.Argument(help="Corpus folder of utterances to write.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Utterances of each split.")] = 300,
    clips: Annotated[
        tuple[int, int], typer.Option(help="Fewest and most clips of an utterance.")
    ] = (3, 7),
    split: Annotated[
        list[str] | None, typer.Option(help="Split to join clips of; repeatable. test if unset.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option(help="A speaker whose clips, all of them, are the test split.")
    ] = None,
    rate: RateOption = 16_000,
    seed: Annotated[int, typer.Option(help="Of the clips and the gaps.")] = 0,
) -> None:
    """Join clips of one speaker each to utterances: strings of digits out of single digits.

    Speakers take turns. Clips are drawn with replacement, with 0.05 to 0.3 s of silence between.

    Examples:

    `edge-imputer data join real/fsdd build/strings -n 300 --clips 3 7`

    `edge-imputer data join real/fsdd build/strings-jackson --hold-out jackson`
    """
    require("torch", extra="train")
    from edge_imputer.train.data.combine import SPLITS, join

    from .steps import load_corpus

    splits = [name for name in SPLITS if name in (split or ["test"])]
    if unknown := set(split or []) - set(SPLITS):
        raise SpecError(f"expected splits of {', '.join(SPLITS)}, got {', '.join(sorted(unknown))}")
    corpus = load_corpus(manifest, hold_out=hold_out)
    records = join(
        corpus.folder,
        corpus.records,
        out,
        n,
        length=clips,
        splits=splits,
        sample_rate=rate,
        seed=seed,
    )
    speakers = len({record.speaker for record in records})
    hours = sum(record.duration_s for record in records) / 3600
    say(f"{len(records)} utterances of {speakers} speakers, {hours:.2f} h")
