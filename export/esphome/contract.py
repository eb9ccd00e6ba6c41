"""What ESPHome's micro_wake_word asks of a model, from its sources (2024.7 and later).

``streaming_model.cpp`` registers twenty operators, makes room for twenty variables, fills the int8
input frame by frame, calls the model when it is full, and reads one uint8. The state lives in
variables, which an initial subgraph sets once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_imputer.errors import ExportError, require
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import (
    ConformerSpec,
    CrnnSpec,
    KeywordModelSpec,
    MicroSpec,
    TcnSpec,
    WindowedCnnSpec,
    WindowedCrnnSpec,
)

OPERATORS = frozenset(
    "CALL_ONCE VAR_HANDLE RESHAPE READ_VARIABLE STRIDED_SLICE CONCATENATION ASSIGN_VARIABLE "
    "CONV_2D MUL ADD MEAN FULLY_CONNECTED LOGISTIC QUANTIZE DEPTHWISE_CONV_2D AVERAGE_POOL_2D "
    "MAX_POOL_2D PAD PACK SPLIT_V".split()
)
"""The operators that the firmware's interpreter has."""

MAX_VARIABLES = 20
INPUT_QUANT = QuantParams(scale=float(np.float32(26 / 255)), zero_point=-128)
"""How a model declares its input; for the integers that it gets see `microfrontend.quantized`."""

OUTPUT_SCALE = 1 / 256  # of the uint8 output, whose zero point is 0
MINIMUM_VERSION = "2024.7.0"  # of ESPHome: the first with manifests of version 2

ONE_SCORE_A_WINDOW = "it scores whole windows, and the firmware gives a model every frame just once"
REFUSED = {
    CrnnSpec: "its GRU needs TANH and SUB, which the firmware does not have",
    ConformerSpec: "its attention needs BATCH_MATMUL and SOFTMAX, which the firmware does not have",
    WindowedCrnnSpec: ONE_SCORE_A_WINDOW,
    WindowedCnnSpec: ONE_SCORE_A_WINDOW,
}
TRAIN = "train one with: edge-imputer train wake-word-esphome --data FOLDER"


def check_spec(spec: KeywordModelSpec) -> None:
    """Raise `ExportError` on a model that the firmware cannot run, with the reason."""
    if not isinstance(spec.encoder, TcnSpec):
        raise ExportError(
            "expected a model of temporal convolutions alone (encoder kind tcn) for ESPHome, got "
            f"{type(spec.encoder).__name__}: {REFUSED[type(spec.encoder)]}; {TRAIN}"
        )
    if not isinstance(spec.features, MicroSpec):
        raise ExportError(
            "expected a model trained on ESPHome's own features (features kind micro), got "
            f"{type(spec.features).__name__}; {TRAIN}"
        )
    if len(spec.keywords) != 1:
        raise ExportError(
            f"expected a model of one keyword, got {len(spec.keywords)} "
            f"({', '.join(spec.keywords)}): an ESPHome model has one output; train one model a "
            f"keyword, such as with --set 'task.keywords=[\"{spec.keywords[0]}\"]', and list them "
            "all in the device's configuration"
        )
    if spec.silence:
        raise ExportError(
            "expected a model without a class for silence, which would need SOFTMAX instead of "
            "one LOGISTIC, got one with it; train with --set task.silence=false"
        )
    n_states = 1 + len(spec.encoder.dilations)
    if n_states > MAX_VARIABLES:
        raise ExportError(
            f"expected at most {MAX_VARIABLES - 1} blocks in the encoder's stacks, as ESPHome "
            f"makes room for {MAX_VARIABLES} states, got {n_states - 1}"
        )


def check_file(data: bytes) -> None:
    """Raise `ExportError` unless a .tflite file is what the firmware can load.

    Its operators, the types and shapes of what goes in and comes out, and that every variable is
    set once at first and assigned anew in every call.
    """
    schema = require("ai_edge_litert.schema_py_generated", extra="esphome")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    unknown = {names[code.builtinCode] for code in model.operatorCodes} - OPERATORS
    if unknown:
        raise ExportError(
            f"expected only operators that ESPHome has, {', '.join(sorted(OPERATORS))}; got "
            f"{', '.join(sorted(unknown))} besides"
        )
    if len(model.subgraphs) != 2:
        raise ExportError(
            f"expected a subgraph and one that sets its variables, got {len(model.subgraphs)}"
        )
    main = model.subgraphs[0]
    (feature,), (probability,) = (
        [main.tensors[k] for k in numbers] for numbers in (main.inputs, main.outputs)
    )
    _check_tensor(feature, schema.TensorType.INT8, (1, None, MicroSpec.n_mels), INPUT_QUANT)
    output = QuantParams(scale=OUTPUT_SCALE, zero_point=0)
    _check_tensor(probability, schema.TensorType.UINT8, (1, 1), output)
    made, assigned = (_variables(model, names, graph) for graph in reversed(model.subgraphs))
    if made != assigned or len(made) > MAX_VARIABLES:
        raise ExportError(
            f"expected at most {MAX_VARIABLES} variables, each set at first and assigned in every "
            f"call, got {len(made)} that are set, {len(assigned)} that are assigned"
        )


def _check_tensor(
    tensor: Any, dtype: int, shape: tuple[int | None, ...], quant: QuantParams
) -> None:
    q = tensor.quantization
    found = QuantParams(scale=float(np.float32(q.scale[0])), zero_point=int(q.zeroPoint[0]))
    sizes = tuple(int(n) for n in tensor.shape)
    alike = len(sizes) == len(shape) and all(
        want in (None, size) for want, size in zip(shape, sizes, strict=True)
    )
    if tensor.type != dtype or not alike or found != quant:
        raise ExportError(
            f"{tensor.name.decode()}: expected type {dtype}, shape {shape} and {quant}, got "
            f"{tensor.type}, {sizes} and {found}"
        )


def _variables(model: Any, names: dict[int, str], subgraph: Any) -> set[bytes]:
    """Names of the variables that a subgraph assigns."""
    handles: dict[int, bytes] = {}
    assigned = set()
    for operator in subgraph.operators:
        kind = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind == "VAR_HANDLE":
            handles[int(operator.outputs[0])] = operator.builtinOptions.sharedName
        elif kind == "ASSIGN_VARIABLE":
            assigned.add(handles[int(operator.inputs[0])])
    return assigned
