"""``edge-imputer transcribe`` and ``spot``: what a bundle hears in audio files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import AudioError, SpecError


class BackendName(str, Enum):
    """Runtimes a bundle can run on."""

    onnx = "onnx"
    onnx_float = "onnx-float"
    litert = "litert"
    native = "native"


BundlePath = Annotated[Path, typer.Argument(help="Bundle folder, written by `export`.")]
AudioPaths = Annotated[list[Path], typer.Argument(help="Audio files: wav, flac or ogg, mono.")]
BackendOption = Annotated[BackendName, typer.Option("--backend", "-b", help="Runtime.")]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", "-k", min=1, help="Passes of the head a chunk; the bundle's if unset."),
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(help="Frames committed a block, pass by pass, such as 5,1,1,1 (not with -k)."),
]
RevisionsOption = Annotated[
    int | None,
    typer.Option(
        "--revisions",
        min=0,
        help="Passes after these that look at every frame again; the bundle's if unset.",
    ),
]
LanguageOption = Annotated[
    Path | None,
    typer.Option(
        help="What may be said: a grammar (.jsgf), words (.txt, one a line, with a tab and a count "
        "if you like) or a token n-gram (.arpa)."
    ),
]
ResampleOption = Annotated[
    bool, typer.Option("--resample", help="Resample files whose rate is not the model's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def transcribe(
    bundle: BundlePath,
    audio: AudioPaths,
    backend: BackendOption = BackendName.onnx,
    steps: StepsOption = None,
    schedule: ScheduleOption = None,
    revisions: RevisionsOption = None,
    language: LanguageOption = None,
    resample: ResampleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write down what is said in audio files.

    Examples:

    `edge-imputer transcribe build/demo/bundle clip.wav`

    `edge-imputer transcribe bundle *.flac --backend native --steps 4 --json`

    `edge-imputer transcribe bundle clip.wav --steps 1 --revisions 1`

    `edge-imputer transcribe bundle order.wav --language coffee.jsgf --json`
    """
    from ..decoding import read_language
    from ..recognizer import Recognizer

    recognizer = Recognizer(
        bundle,
        backend=backend.value,
        n_steps=steps,
        schedule=parse_schedule(schedule, steps),
        revisions=revisions,
        language=None if language is None else read_language(language),
    )

    def lines(path: Path) -> list[str]:
        transcript = recognizer.transcribe(path, resample=resample)
        if as_json:
            return [json_line({"audio": str(path), **transcript.to_dict()})]
        return [f"{path}: {transcript.text}" if len(audio) > 1 else transcript.text]

    _print_each(audio, lines)


def spot(
    bundle: BundlePath,
    audio: AudioPaths,
    keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--keyword", "-w", help="Word or phrase to listen for; repeatable. The bundle's own."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Least confidence; the bundle's own if unset."),
    ] = None,
    backend: BackendOption = BackendName.onnx,
    steps: StepsOption = None,
    revisions: RevisionsOption = None,
    resample: ResampleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Listen for keywords in audio files.

    A model that writes down speech takes any word its letters can spell, a keyword model those it
    was trained for. Unset, they are those of the bundle's operating point, or all of a keyword
    model's.

    Examples:

    `edge-imputer spot build/demo/bundle clip.wav --keyword seven --keyword two`

    `edge-imputer spot keyword_bundle clip.wav --threshold 0.7`
    """
    from ..bundle import Bundle
    from ..spotter import KeywordSpotter, own_keywords

    loaded = Bundle.load(bundle)
    keywords: list[str] | dict[str, float] | None = keyword
    if threshold is not None:
        keywords = dict.fromkeys(keyword or own_keywords(loaded), threshold)
    spotter = KeywordSpotter(
        loaded, keywords, backend=backend.value, n_steps=steps, revisions=revisions
    )

    def lines(path: Path) -> list[str]:
        events = spotter.spot(path, resample=resample)
        if as_json:
            return [json_line({"audio": str(path), **event.to_dict()}) for event in events]
        return [
            f"{path}: {event.start_s:7.2f} to {event.end_s:.2f} s  {event.text}  "
            f"confidence {event.confidence:.2f}"
            for event in events
        ]

    _print_each(audio, lines)


def parse_schedule(text: str | None, steps: int | None) -> tuple[int, ...] | None:
    """Parse ``5,1,1,1``."""
    if text is None:
        return None
    if steps is not None:
        raise SpecError("expected --steps or --schedule, got both; leave one out")
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"expected --schedule such as 5,1,1,1, got {text!r}") from None


def _print_each(paths: Iterable[Path], lines: Callable[[Path], list[str]]) -> None:
    """Print what `lines` finds in each file; a bad file stops only itself, and exit code 2."""
    failed = False
    for path in paths:
        try:
            found = lines(path)
        except (AudioError, OSError) as error:
            failed = True
            print_error(error)
        else:
            for line in found:
                print(line)
    if failed:
        raise typer.Exit(2)


def json_line(value: dict[str, Any]) -> str:
    """A value for a program to read."""
    return json.dumps(value, ensure_ascii=False)


def print_error(error: Exception) -> None:
    """One line on stderr."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    print("error:", " ".join(text.splitlines()), file=sys.stderr)
