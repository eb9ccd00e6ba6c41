"""A .tflite file in the making, in which whatever is equal is written once.

A flatbuffer is a tree of tables, vectors and strings that refer to each other by their distance in
the file, so that one of them may be referred to from many places. Readers do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from types import ModuleType

import numpy as np

from edge_imputer.errors import require

from .graph import Array

FILE_IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of constants, as the schema asks and runtimes that map the file need


class TfliteBuilder:
    """Writes tables of TFLite's schema. Everything returns where it is, for whatever holds it.

    Attributes
    ----------
    schema : module
        Its enumerations and tables.

    Raises
    ------
    MissingExtraError
        If flatbuffers or ai-edge-litert is not installed.
    """

    def __init__(self) -> None:
        self.schema: ModuleType = require("ai_edge_litert.schema_py_generated", extra="export")
        self._builder = require("flatbuffers", extra="export").Builder(1 << 16)
        self._written: dict[Hashable, int] = {}

    def table(self, kind: str, **fields: float | None) -> int:
        """A table of that kind; fields that are not given, or None, stay at their defaults."""

        def write() -> int:
            getattr(self.schema, f"{kind}Start")(self._builder)
            for field, value in fields.items():
                if value is not None:
                    add = getattr(self.schema, f"{kind}Add{field[0].upper()}{field[1:]}")
                    add(self._builder, value)
            return int(getattr(self.schema, f"{kind}End")(self._builder))

        return self._once((kind, *fields.items()), write)

    def numbers(self, values: Array | Sequence[int], dtype: str = "int32") -> int:
        """A vector of numbers."""
        array = np.array(values, dtype)
        return self._once(
            (dtype, array.tobytes()), lambda: int(self._builder.CreateNumpyVector(array))
        )

    def text(self, text: str) -> int:
        """A string."""
        return self._once(text, lambda: int(self._builder.CreateString(text)))

    def tables(self, positions: list[int]) -> int:
        """A vector of tables; the same one may stand in it more than once."""
        builder = self._builder
        builder.StartVector(4, len(positions), 4)
        for position in reversed(positions):
            builder.PrependUOffsetTRelative(position)
        return int(builder.EndVector())

    def content(self, data: Array | bytes) -> int:
        """A vector of bytes that begins at a multiple of `ALIGNMENT`.

        The schema asks for that alignment, but the generated Python code does not give it.
        """
        raw = data if isinstance(data, bytes) else data.tobytes()

        def write() -> int:
            builder = self._builder
            builder.StartVector(1, len(raw), ALIGNMENT)
            builder.head -= len(raw)
            builder.Bytes[builder.head : builder.head + len(raw)] = raw
            return int(builder.EndVector())

        return self._once(raw, write)

    def finish(self, root: int) -> bytes:
        """The file, whose outermost table is `root`."""
        self._builder.Finish(root, FILE_IDENTIFIER)
        return bytes(self._builder.Output())

    def _once(self, key: Hashable, write: Callable[[], int]) -> int:
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]
