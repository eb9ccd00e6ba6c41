"""How far apart the elements of tensors lie, for kernels that walk two of them in step.

A dimension is ``(size, stride in the first tensor, stride in the second)``, in elements, which are
bytes; dimensions are listed from the outermost to the innermost.
"""

from __future__ import annotations

from math import prod

from edge_imputer.errors import ExportError

Dimension = tuple[int, int, int]
MOST_DIMENSIONS = 4  # of edim_box and edim_broadcast


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of every dimension of a tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def offset(shape: tuple[int, ...], begin: tuple[int, ...]) -> int:
    """Where an element lies in a tensor."""
    return sum(b * s for b, s in zip(begin, strides(shape), strict=True))


def boxes(
    size: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]
) -> list[Dimension]:
    """Dimensions of a box of `size` within tensors of two shapes, as few as possible."""
    return _merge(list(zip(size, strides(source), strides(target), strict=True)))


def transposed(shape: tuple[int, ...], perm: tuple[int, ...]) -> list[Dimension]:
    """Dimensions of a tensor of `shape`, and of the tensor with its axes in another order."""
    apart = strides(shape)
    size = tuple(shape[axis] for axis in perm)
    return _merge(
        _long(list(zip(size, (apart[axis] for axis in perm), strides(size), strict=True)))
    )


def broadcast(shape: tuple[int, ...], x: tuple[int, ...], y: tuple[int, ...]) -> list[Dimension]:
    """Dimensions of tensors of shapes `x` and `y` that are repeated to `shape`."""
    return _merge(_long(list(zip(shape, _repeated(x, shape), _repeated(y, shape), strict=True))))


def filled(name: str, dimensions: list[Dimension]) -> tuple[tuple[int, ...], ...]:
    """Sizes and both strides, four of each.

    Raises
    ------
    ExportError
        If there are more than four dimensions.
    """
    if len(dimensions) > MOST_DIMENSIONS:
        sizes = tuple(size for size, _, _ in dimensions)
        raise ExportError(f"{name}: expected at most {MOST_DIMENSIONS} dimensions, got {sizes}")
    fill = [(1, 0, 0)] * (MOST_DIMENSIONS - len(dimensions))
    return tuple(zip(*fill, *dimensions, strict=True))


def _repeated(shape: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor seen as one of shape `to`: 0 along what is repeated."""
    whole = (1,) * (len(to) - len(shape)) + shape
    return tuple(0 if n == 1 else step for n, step in zip(whole, strides(whole), strict=True))


def _long(dimensions: list[Dimension]) -> list[Dimension]:
    """Without those of one element."""
    return [dimension for dimension in dimensions if dimension[0] > 1] or [(1, 1, 1)]


def _merge(dimensions: list[Dimension]) -> list[Dimension]:
    """Fold dimensions that are one after the other in both tensors; the innermost one stays."""
    merged: list[Dimension] = []
    for size, first, second in reversed(dimensions):
        if merged:
            inner, inner_first, inner_second = merged[0]
            if size == 1:
                continue
            if (first, second) == (inner * inner_first, inner * inner_second):
                merged[0] = (size * inner, inner_first, inner_second)
                continue
        merged.insert(0, (size, first, second))
    return merged
