"""Random graphs of several operations, one after the other, to test every emitter with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.calibration import Calibration
from edge_imputer.export.graph import KINDS, Array, Graph
from edge_imputer.export.quantize import quantise

from .graphs import Rng, feeds

N_TOKENS = 5
STEPS = tuple(sorted(KINDS))


class Chain:
    """Operations on rows (N, C), each on the last one's output, some on an earlier one's too."""

    def __init__(self, rng: Rng) -> None:
        self.rng, self.g = rng, GraphBuilder("chain")
        n, width = (int(k) for k in rng.integers(2, 9, 2))
        self.x = self.g.input("rows", (n, width))
        self.n_ops = 0

    @property
    def shape(self) -> tuple[int, int]:
        n, width = self.g.shape(self.x)
        return n, width

    def name(self, part: str = "") -> str:
        self.n_ops += 1
        return f"op{self.n_ops}{part}"

    def array(self, *shape: int) -> Array:
        size = self.rng.uniform(0.2, 1.5)
        return (self.rng.standard_normal(shape) * size).astype(np.float32)

    def step(self, kind: str) -> None:
        """Append one operation of that kind, and reshapes where it needs other axes."""
        self.x = _STEPS[kind](self)

    def image(self) -> str:
        """The rows as (1, N, 1, C)."""
        n, width = self.shape
        return self.g.reshape(self.name(), self.x, (1, n, 1, width))

    def rows(self, x: str) -> str:
        """Whatever it is as rows of its last axis."""
        shape = self.g.shape(x)
        return self.g.reshape(self.name(), x, (int(np.prod(shape[:-1])), shape[-1]))

    def residual(self) -> str:
        """To int16, sums there with an earlier int8 tensor and an int16 one, and back."""
        g, total = self.g, self.widen(self.x)
        for other in (self.widen(str(self.rng.choice(self.alike()))), self.any_wide()):
            kind = str(self.rng.choice(["add", "sub"]))
            total = g.binary(kind, self.name(), total, other)
            g.graph.wide.add(total)
        return g.requantise(self.name(), total)

    def widen(self, x: str) -> str:
        wide = self.g.requantise(self.name(), x)
        self.g.graph.wide.add(wide)
        return wide

    def any_wide(self) -> str:
        shapes = {name: self.g.shape(name) for name in sorted(self.g.graph.wide)}
        return str(self.rng.choice([n for n, shape in shapes.items() if shape == self.shape]))

    def alike(self) -> list[str]:
        """Activations of the rows' shape, themselves among them, that are to be int8."""
        tensors, wide = self.g.graph.tensors.values(), self.g.graph.wide
        return [
            t.name
            for t in tensors
            if t.shape == self.shape and t.data is None and t.name not in wide
        ]

    def other(self) -> str:
        """What the rows may be added to: an earlier activation, a constant, themselves."""
        fitting = self.alike()
        choice = int(self.rng.integers(len(fitting) + 2))
        if choice >= len(fitting):
            n, width = self.shape
            shape = (1, width) if choice == len(fitting) else (n, 1)
            return self.g.constant(self.name(".constant"), self.array(*shape))
        return fitting[choice]


def _conv2d(chain: Chain) -> str:
    n, width = chain.shape
    kernel, c_out = int(chain.rng.integers(1, min(n, 3) + 1)), int(chain.rng.integers(1, 9))
    weight, bias = chain.array(c_out, kernel, 1, width), chain.array(c_out)
    stride, relu = (int(chain.rng.integers(1, 3)), 1), bool(chain.rng.integers(2))
    image = chain.image()
    return chain.rows(chain.g.conv2d(chain.name(), image, weight, bias, stride, relu))


def _depthwise_conv2d(chain: Chain) -> str:
    n, width = chain.shape
    dilation = 2 if n > 4 and chain.rng.integers(2) else 1
    kernel = int(chain.rng.integers(1, (n - 1) // dilation + 2))
    weight, bias = chain.array(1, kernel, 1, width), chain.array(width)
    image = chain.image()
    relu = bool(chain.rng.integers(2))
    y = chain.g.depthwise_conv2d(
        chain.name(), image, weight, bias, dilation=(dilation, 1), relu=relu
    )
    return chain.rows(y)


def _fully_connected(chain: Chain) -> str:
    width, wider = chain.shape[1], int(chain.rng.integers(1, 12))
    weight, bias = chain.array(wider, width), chain.array(wider)
    return chain.g.fully_connected(
        chain.name(), chain.x, weight, bias, relu=bool(chain.rng.integers(2))
    )


def _batch_matmul(chain: Chain) -> str:
    """Of the rows and their tanh: (N, N), as the scores of attention."""
    shape = (1, *chain.shape)
    x, y = chain.x, chain.g.unary("tanh", chain.name(), chain.x)
    x, y = (chain.g.reshape(chain.name(), z, shape) for z in (x, y))
    return chain.rows(chain.g.batch_matmul(chain.name(), x, y, transposed=True))


def _binary(kind: str) -> Callable[[Chain], str]:
    def step(chain: Chain) -> str:
        other = chain.other()
        return chain.g.binary(kind, chain.name(), chain.x, other)

    return step


def _unary(kind: str) -> Callable[[Chain], str]:
    return lambda chain: chain.g.unary(kind, chain.name(), chain.x)


def _mean(chain: Chain) -> str:
    mean = chain.g.mean(chain.name(), chain.x)
    return chain.g.binary("sub", chain.name(), chain.x, mean)


def _max_pool(chain: Chain) -> str:
    size = (int(chain.rng.integers(1, min(chain.shape[0], 3) + 1)), 1)
    stride = (int(chain.rng.integers(1, 3)), 1)
    image = chain.image()
    return chain.rows(chain.g.max_pool(chain.name(), image, size, stride))


def _embedding(chain: Chain) -> str:
    n, width = chain.shape
    ids = chain.g.input(chain.name(".ids"), (n,), "int32")
    tokens = chain.g.embedding(chain.name(), ids, chain.array(N_TOKENS, width))
    return chain.g.binary("add", chain.name(), chain.x, tokens)


def _concat(chain: Chain) -> str:
    """Behind a state, as a convolution that looks back has it, or beside another tensor."""
    if chain.rng.integers(2):
        state = chain.g.input(chain.name(".state"), (2, chain.shape[1]))
        return chain.g.concat(chain.name(), (state, chain.x), 0)
    other = chain.rng.choice(chain.alike())
    return chain.g.concat(chain.name(), (chain.x, str(other)), 1)


def _slice(chain: Chain) -> str:
    axis = int(chain.rng.integers(2))
    size = chain.shape[axis]
    begin = int(chain.rng.integers(size))
    length = int(chain.rng.integers(1, size - begin + 1))
    return chain.g.slice(chain.name(), chain.x, axis, begin, length)


def _pad(chain: Chain) -> str:
    before, after = int(chain.rng.integers(1, 3)), int(chain.rng.integers(3))
    return chain.g.pad(chain.name(), chain.x, int(chain.rng.integers(2)), before, after)


_STEPS: dict[str, Callable[[Chain], str]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise_conv2d,
    "fully_connected": _fully_connected,
    "batch_matmul": _batch_matmul,
    **{kind: _binary(kind) for kind in ("add", "sub", "mul", "minimum")},
    **{kind: _unary(kind) for kind in ("sigmoid", "tanh", "relu", "softmax", "l2_norm")},
    "mean": _mean,
    "max_pool": _max_pool,
    "embedding": _embedding,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": lambda chain: chain.g.reshape(chain.name(), chain.x, chain.shape[::-1]),
    "requantise": lambda chain: chain.residual(),
    "transpose": lambda chain: chain.g.transpose(chain.name(), chain.x, (1, 0)),
}


def float_chain(kinds: list[str], rng: Rng, *, wide: bool = False) -> Graph:
    """A float graph of these operations, whose output is the last one's; to become integers, or
    to stay float: then with sums in place of what changes the precision."""
    chain = Chain(rng)
    for kind in kinds:
        chain.step(kind if wide or kind != "requantise" else "add")
    chain.g.graph.outputs = [chain.x]
    return chain.g.graph


def int_chain(kinds: list[str], rng: Rng) -> Graph:
    """The same, quantised; `ExportError` where an activation is always zero."""
    graph = float_chain(kinds, rng, wide=True)
    calibration = Calibration(graph)
    for inputs in feeds(graph, rng, 8):
        calibration.run(inputs)
    return quantise(graph, calibration.ranges)
