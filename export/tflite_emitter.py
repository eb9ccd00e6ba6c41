"""Writes a graph as a .tflite file, float32 or quantised, with flatbuffers alone.

No converter is involved, so the file carries exactly the numbers of the graph, and its bytes depend
on the graph only. Files of small networks would be half bookkeeping, so whatever is equal stands
in them once: shapes, scales, zero points, options, constants (see `flatbuffer`). Inputs, outputs
and weights have names; an activation has the number of the operation that computes it instead,
which is its line in `dump`. That is the operator's number too, but for slices that are all of a
tensor, which are one SPLIT (see `parts`).

A *bare* file leaves out what the runtimes do not read: names of constants, options at their
defaults, and the scales of biases, which are those of the weight times the input's. XNNPACK wants
one a channel there, whatever it is: so a bias shares its weight's, and the metadata
`BIAS_SCALES_KEY` say so. A single one is as it should be: kernels check it where a fully connected
layer has one output. Files are bare that would otherwise be larger than `SIZE_LIMIT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from edge_imputer.errors import ExportError

from .flatbuffer import TfliteBuilder
from .fused.operations import FUSED
from .graph import WEIGHT_AXIS, Array, Graph, Op, Tensor
from .op_params import bias_scales
from .parts import in_parts
from .tflite_calls import CALLS, SPLIT, Call


class Builtin(NamedTuple):
    """A builtin operator of TFLite, and for every type of its output its version and who reads
    that first."""

    name: str
    int8: tuple[int, str]
    float32: tuple[int, str] | None
    int16: tuple[int, str] | None = None


# Versions are those the TFLite converter writes, but for FULLY_CONNECTED in int8: it would write 4,
# which runtimes up to 2.9 accept too, though they read only the first weight scale, and compute
# nonsense. Version 10 keeps them out: 2.13 is the first that has it.
OPERATORS = {
    "conv2d": Builtin("CONV_2D", (3, "1.14.0"), (1, "1.5.0")),
    "depthwise_conv2d": Builtin("DEPTHWISE_CONV_2D", (3, "1.14.0"), (2, "1.12.0")),
    "fully_connected": Builtin("FULLY_CONNECTED", (10, "2.13.0"), (1, "1.5.0")),
    "batch_matmul": Builtin("BATCH_MATMUL", (2, "2.3.0"), (1, "2.3.0")),
    "add": Builtin("ADD", (2, "1.14.0"), (1, "1.5.0"), (3, "2.4.0")),
    "sub": Builtin("SUB", (2, "1.14.0"), (1, "1.6.0"), (5, "2.4.0")),
    "mul": Builtin("MUL", (2, "1.14.0"), (1, "1.5.0")),
    "minimum": Builtin("MINIMUM", (2, "1.14.0"), (1, "1.14.0")),
    "sigmoid": Builtin("LOGISTIC", (2, "1.14.0"), (1, "1.14.0")),
    "tanh": Builtin("TANH", (2, "1.14.0"), (1, "1.14.0")),
    "relu": Builtin("RELU", (2, "2.1.0"), (1, "1.5.0")),
    "softmax": Builtin("SOFTMAX", (2, "1.14.0"), (1, "1.5.0")),
    "l2_norm": Builtin("L2_NORMALIZATION", (2, "1.14.0"), (1, "1.5.0")),
    "mean": Builtin("MEAN", (2, "1.14.0"), (1, "1.6.0")),
    "max_pool": Builtin("MAX_POOL_2D", (2, "1.14.0"), (1, "1.5.0")),
    "embedding": Builtin("GATHER", (2, "1.14.0"), (1, "1.6.0")),
    "concat": Builtin("CONCATENATION", (2, "1.14.0"), (1, "1.5.0")),
    "slice": Builtin("SLICE", (2, "1.14.0"), (1, "1.14.0")),
    SPLIT: Builtin("SPLIT", (2, "1.14.0"), (1, "1.5.0")),
    "pad": Builtin("PAD", (2, "1.14.0"), (1, "1.5.0")),
    "reshape": Builtin("RESHAPE", (1, "1.5.0"), (1, "1.5.0")),
    "transpose": Builtin("TRANSPOSE", (2, "1.14.0"), (1, "1.6.0")),
    "requantise": Builtin("QUANTIZE", (2, "2.15.0"), None, (2, "2.15.0")),  # 2.14 refuses int16
}
WEIGHTED = frozenset({*WEIGHT_AXIS, "embedding"})
REVERSED = frozenset({"embedding", SPLIT})  # TFLite takes the table, or the axis, first
SCHEMA_VERSION = 3
PLACEHOLDER = 127  # old readers' code of an operator that has a greater one
RUNTIME_KEY = "min_runtime_version"  # metadata that TFLite's own tools read
BIAS_SCALES_KEY = "bias_scales"  # metadata of a bare file
BIAS_SCALES = "in units of the input's scale, but for a single one"
SIZE_LIMIT = 1.15, 30_000  # bytes a weight, and bytes besides, of an int8 file


def write_tflite(graph: Graph, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph as a .tflite file, float32 or int8 as the graph is.

    Inputs and outputs keep their names and order; a signature ``serving_default`` names them too.
    An int8 file that would be larger than `SIZE_LIMIT` is bare.

    Parameters
    ----------
    graph : Graph
    path : path
    metadata : mapping from key to text, optional
        Kept in the file under these keys, in UTF-8.

    Raises
    ------
    ExportError
        If the graph holds an unknown operation, or the metadata a key that is the file's own,
        ``min_runtime_version`` or ``bias_scales``.
    MissingExtraError
        If flatbuffers or ai-edge-litert is not installed.
    """
    Path(path).write_bytes(tflite_bytes(graph, metadata))


def tflite_bytes(graph: Graph, metadata: Mapping[str, str] | None = None) -> bytes:
    """The .tflite file of a graph, see `write_tflite`."""
    bare = graph.quantised and len(TfliteWriter(graph).finish({})) > size_limit(graph)
    return TfliteWriter(graph, bare=bare).finish(metadata or {})


def size_limit(graph: Graph) -> int:
    """Bytes that an int8 file should not exceed, metadata of others aside: see `SIZE_LIMIT`.

    Weights are the elements of weights, biases and tables, each tensor once.
    """
    constants = {name for op in graph.ops if op.kind in WEIGHTED for name in op.inputs[1:]}
    n_weights = sum(prod(graph.tensors[name].shape) for name in constants)
    a_weight, besides = SIZE_LIMIT
    return int(a_weight * n_weights) + besides


def minimum_runtime(graph: Graph) -> str:
    """The oldest TFLite runtime that has every operator version of the graph."""
    kinds = [(kind_of(ops), type_of(graph, ops[0])) for ops in in_parts(graph)]
    return _newest(_version(*kind, OPERATORS)[1] for kind in kinds)


def kind_of(ops: tuple[Op, ...]) -> str:
    """Key among `OPERATORS` of one operation, or of slices that are one operator."""
    return SPLIT if len(ops) > 1 else ops[0].kind


def builtin_name(kind: str, operators: Mapping[str, Builtin] = OPERATORS) -> str:
    """What TFLite calls an operation."""
    return FUSED[kind].builtin if kind in FUSED else operators[kind].name


def _newest(versions: Iterable[str]) -> str:
    return max(versions, key=lambda text: tuple(int(part) for part in text.split(".")))


def type_of(graph: Graph, op: Op) -> str:
    """What an operation computes: int8, int16 or float32."""
    if not graph.is_integer(op):
        return "float32"
    return "int16" if graph.tensors[op.output].dtype == "int16" else "int8"


def _version(kind: str, dtype: str, operators: Mapping[str, Builtin]) -> tuple[int, str]:
    if kind in FUSED:
        return FUSED[kind].version
    if kind not in operators:
        raise ExportError(f"expected an operation among {sorted(operators)}, got {kind!r}")
    version: tuple[int, str] | None = getattr(operators[kind], dtype)
    if version is None:
        raise ExportError(f"expected an operation that TFLite has in {dtype}, got {kind}")
    return version


class TfliteWriter:
    """Numbers tensors, operator codes and buffers while it writes them.

    States are inputs and outputs, as they are in the graph; `edge_imputer.export.esphome` has a
    writer that makes variables of them.

    Attributes
    ----------
    builtins : mapping from kind of operation to operator
    bare : bool
        Whether the file leaves out what the runtimes do not read.
    """

    builtins: ClassVar[Mapping[str, Builtin]] = OPERATORS

    def __init__(self, graph: Graph, *, bare: bool = False) -> None:
        self.graph, self.bare = graph, bare
        self.file = TfliteBuilder()
        self.schema = self.file.schema
        self.buffers = [self.file.table("Buffer")]  # number 0 is "no data"
        self.tensors: list[int] = []
        self.numbers: dict[str, int] = {}  # of tensors, by name
        self.constants: dict[tuple[object, ...], int] = {}
        self.codes: dict[tuple[str, str], int] = {}  # by kind and type
        linear = [op for op in graph.ops if op.kind in WEIGHT_AXIS]
        self.axes = {op.inputs[1]: WEIGHT_AXIS[op.kind] for op in linear}
        self.bias_scales = {
            op.inputs[2]: self._bias_scales(op) for op in linear if graph.is_integer(op)
        }
        named = {name for names in self.interface for name in names}
        for name in dict.fromkeys([*(op.output for op in graph.ops), *graph.inputs]):
            self._activation(graph.tensors[name], name if name in named else "")
        self.operators = self._operators()

    def _bias_scales(self, op: Op) -> Array | None:
        """What the file has for the scales of an operation's bias."""
        of_weight = self.graph.tensors[op.inputs[1]].weight_scales
        shared = self.bare and of_weight is not None and len(of_weight) > 1
        return of_weight if shared else bias_scales(self.graph, op)

    @property
    def interface(self) -> tuple[list[str], list[str]]:
        """Names of the file's inputs and outputs."""
        return self.graph.inputs, self.graph.outputs

    def finish(self, metadata: Mapping[str, str]) -> bytes:
        """Put the model together and serialise it."""
        graph, file = self.graph, self.file
        if taken := sorted({RUNTIME_KEY, BIAS_SCALES_KEY} & metadata.keys()):
            raise ExportError(f"{graph.name}: the key {taken[0]} of the metadata is taken")
        subgraphs = self._subgraphs()
        runtime = _newest(_version(*code, self.builtins)[1] for code in self.codes)
        kept = {RUNTIME_KEY: runtime.encode().ljust(16, b"\0")}
        if self.bare:
            kept[BIAS_SCALES_KEY] = BIAS_SCALES.encode()
        kept |= {key: text.encode() for key, text in metadata.items()}
        model = file.table(
            "Model",
            version=SCHEMA_VERSION,
            operatorCodes=file.tables([self._operator_code(*code) for code in self.codes]),
            subgraphs=file.tables(subgraphs),
            description=file.text(f"Edge Imputer: {graph.name}"),
            metadata=file.tables([self._metadata(*item) for item in sorted(kept.items())]),
            buffers=file.tables(self.buffers),  # after whatever adds one
            signatureDefs=file.tables([self._signature()]),
        )
        return file.finish(model)

    def _subgraphs(self) -> list[int]:
        """Where the subgraphs are, the one that is called first."""
        inputs, outputs = ([self.numbers[name] for name in names] for names in self.interface)
        return [self._subgraph(self.graph.name, self.tensors, inputs, outputs, self.operators)]

    def _subgraph(
        self,
        name: str,
        tensors: list[int],
        inputs: list[int],
        outputs: list[int],
        operators: list[int],
    ) -> int:
        return self.file.table(
            "SubGraph",
            tensors=self.file.tables(tensors),
            inputs=self.file.numbers(inputs),
            outputs=self.file.numbers(outputs),
            operators=self.file.tables(operators),
            name=self.file.text(name),
        )

    def _operators(self) -> list[int]:
        """Where the operators are, in order."""
        return [self._operator(ops) for ops in in_parts(self.graph)]

    def _activation(self, tensor: Tensor, name: str) -> None:
        self.numbers[tensor.name] = len(self.tensors)
        self.tensors.append(self._tensor(tensor, name, 0))

    def _constant(self, tensor: Tensor) -> int:
        """Number of a constant; one that is there already, under whatever name, is taken again."""
        assert tensor.data is not None
        quantization = self._quantization(tensor)
        key = (tensor.shape, tensor.dtype, tensor.data.tobytes(), quantization)
        if key not in self.constants:
            self.constants[key] = len(self.tensors)
            name, buffer = "" if self.bare else tensor.name, self._buffer(tensor.data)
            self.tensors.append(self._tensor(tensor, name, buffer))
        return self.constants[key]

    def _tensor(self, tensor: Tensor, name: str, buffer: int) -> int:
        types = self.schema.TensorType
        return self.file.table(
            "Tensor",
            shape=self.file.numbers(tensor.shape),
            type=getattr(types, tensor.dtype.upper()),
            buffer=buffer,
            name=self.file.text(name) if name else None,
            quantization=self._quantization(tensor),
        )

    def _quantization(self, tensor: Tensor) -> int | None:
        scales, zero_point = self.bias_scales.get(tensor.name, tensor.weight_scales), 0
        if tensor.quant is not None:
            scales, zero_point = np.array([tensor.quant.scale]), tensor.quant.zero_point
        if scales is None:
            return None
        return self.file.table(
            "QuantizationParameters",
            scale=self.file.numbers(scales, "float32"),
            zeroPoint=self.file.numbers([zero_point] * len(scales), "int64"),
            quantizedDimension=self.axes.get(tensor.name, 0),
        )

    def _buffer(self, data: Array | bytes) -> int:
        buffer = self.file.table("Buffer", data=self.file.content(data))
        if buffer not in self.buffers:
            self.buffers.append(buffer)
        return self.buffers.index(buffer)

    def _operator(self, ops: tuple[Op, ...]) -> int:
        kind, dtype = kind_of(ops), type_of(self.graph, ops[0])
        _version(kind, dtype, self.builtins)  # refuses what is unknown
        call = self.call_of(kind, ops[0])
        inputs = [self._operand(name) for name in ops[0].inputs]
        for values in call.constants:  # such as a shape
            data = np.array(values, np.int32)
            inputs.append(self._constant(Tensor("", data.shape, "int32", data=data)))
        if kind in REVERSED:
            inputs.reverse()
        outputs = [self.numbers[op.output] for op in ops]
        return self._emit(kind, call, inputs, outputs, dtype=dtype)

    def call_of(self, kind: str, first: Op) -> Call:
        """What an operator is given besides its tensors, by its first operation."""
        return CALLS[kind](self, first)

    def _emit(
        self,
        kind: str,
        call: Call,
        inputs: Sequence[int] = (),
        outputs: Sequence[int] = (),
        *,
        dtype: str = "int8",
    ) -> int:
        """An operator of the tensors of these numbers."""
        options: dict[str, int] = {}
        if call.table and (call.fields or not self.bare):
            options["builtinOptionsType"] = getattr(self.schema.BuiltinOptions, call.table)
            options["builtinOptions"] = self.file.table(call.table, **call.fields)
        return self.file.table(
            "Operator",
            opcodeIndex=self.codes.setdefault((kind, dtype), len(self.codes)),
            inputs=self.file.numbers(inputs),
            outputs=self.file.numbers(outputs),
            **options,
        )

    def _operand(self, name: str) -> int:
        tensor = self.graph.tensors[name]
        return self.numbers[name] if tensor.data is None else self._constant(tensor)

    def _operator_code(self, kind: str, dtype: str) -> int:
        code = getattr(self.schema.BuiltinOperator, builtin_name(kind, self.builtins))
        return self.file.table(
            "OperatorCode",
            deprecatedBuiltinCode=min(code, PLACEHOLDER),
            builtinCode=code,
            version=_version(kind, dtype, self.builtins)[0],
        )

    def _signature(self) -> int:
        inputs, outputs = (
            self.file.tables([self._tensor_map(name) for name in names]) for names in self.interface
        )
        key = self.file.text("serving_default")
        return self.file.table("SignatureDef", inputs=inputs, outputs=outputs, signatureKey=key)

    def _tensor_map(self, name: str) -> int:
        number = self.numbers[name]
        return self.file.table("TensorMap", name=self.file.text(name), tensorIndex=number)

    def _metadata(self, key: str, content: bytes) -> int:
        name, buffer = self.file.text(key), self._buffer(content)
        return self.file.table("Metadata", name=name, buffer=buffer)
