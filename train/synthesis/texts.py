"""What to say: the words of known tasks, and the lines of a file."""

from __future__ import annotations

from pathlib import Path

from edge_imputer.errors import SynthesisError

from .plan import check_text

DIGITS = tuple("zero one two three four five six seven eight nine".split())
# Warden 2018, table 1: the 35 words of Speech Commands v2.
SPEECH_COMMANDS = tuple(
    "yes no up down left right on off stop go zero one two three four five six seven eight nine "
    "bed bird cat dog happy house marvin sheila tree wow backward forward follow learn "
    "visual".split()
)


def read_texts(path: Path) -> list[str]:
    """The lines of a text file; empty ones and those that start with ``#`` are left out.

    Raises
    ------
    SynthesisError
        No such file, not UTF-8, no lines, or a line that cannot be said (it is named).
    """
    try:
        lines = path.read_text("utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SynthesisError(f"expected a text file in UTF-8 at {path}: {error}") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                texts.append(check_text(line))
            except SynthesisError as error:
                raise SynthesisError(f"{path}, line {number}: {error}") from None
    if not texts:
        raise SynthesisError(f"{path}: expected a text a line, found none")
    return texts
