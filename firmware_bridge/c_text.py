"""C99 source text: names, tables, struct initialisers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

LINE = 96
KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while".split()
)
C_TYPES = {"int8": "int8_t", "int32": "int32_t"}


class Names:
    """C identifiers for tensor names, each once.

    Parameters
    ----------
    reserved : set of str
        Identifiers that are taken, such as a function's parameters.
    """

    def __init__(self, reserved: set[str]) -> None:
        self._taken = {*reserved, *KEYWORDS}
        self._names: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            base = re.sub(r"\W", "_", name, flags=re.ASCII)
            base = f"_{base}" if base[:1].isdigit() else base
            unique, k = base, 2
            while unique in self._taken:
                unique, k = f"{base}_{k}", k + 1
            self._taken.add(unique)
            self._names[name] = unique
        return self._names[name]


def table(name: str, values: npt.NDArray[Any]) -> str:
    """A constant table of int8 or int32."""
    head = f"static const {C_TYPES[str(values.dtype)]} {name}[{values.size}] = {{"
    head += f" /* {' x '.join(map(str, values.shape))} */\n" if values.ndim > 1 else "\n"
    return head + wrap([str(v) for v in values.ravel().tolist()]) + "};\n"


def wrap(items: list[str], indent: str = "    ") -> str:
    """Comma-separated items in lines of at most 96 characters."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) + 1 > LINE:
            lines.append(line)
            line = indent
        line += f"{item},"
    return "\n".join([*lines, line]) + "\n"


def struct(kind: str, name: str, fields: Mapping[str, object]) -> str:
    """A constant struct with designated initialisers."""
    body = "".join(f"    .{key} = {value},\n" for key, value in fields.items())
    return f"static const {kind} {name} = {{\n{body}}};\n"


def integers(values: tuple[int, ...]) -> str:
    """``{1, 2, 3}``."""
    return "{" + ", ".join(str(v) for v in values) + "}"


def float32(value: float) -> str:
    """A float literal that reads back as the same float32."""
    text = f"{float(np.float32(value)):.9g}"
    return f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f"
