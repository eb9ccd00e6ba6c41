"""A small wake word, what it hears, and every runtime that reads its file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edge_imputer.export.esphome.pack import wake_word_graph
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.micro_model import micro_module
from edge_imputer.microfrontend import Microfrontend, quantized
from edge_imputer.specs import KeywordModelSpec, MicroSpec, TcnSpec
from edge_imputer.train.keyword_model import KeywordModel
from edge_imputer.train.layers.norm import MaskedBatchNorm1d

from .graphs import waveforms

SPEC = KeywordModelSpec(
    features=MicroSpec(),
    encoder=TcnSpec(channels=12, subsampling=3, kernel=4, stacks=((1, 2), (3,))),
    keywords=("hey lamp",),
)
N_FRAMES = 3  # of a step
Steps = Callable[[Array], int]  # int8 frames of one step -> uint8
RESOLVERS = {
    "litert": OpResolverType.AUTO,
    "litert-builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "litert-reference": OpResolverType.BUILTIN_REF,
}


def changed(**changes: object) -> KeywordModelSpec:
    return msgspec.structs.replace(SPEC, **changes)


def wake_word_model(spec: KeywordModelSpec = SPEC) -> KeywordModel:
    """Untrained; random norms too, and a classifier whose probabilities are neither 0 nor 1."""
    torch.manual_seed(0)
    model = KeywordModel(spec).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.7, 1.5)
                module.bias.uniform_(-0.3, 0.5)
        if not spec.windowed:
            model.classifier.weight.mul_(0.5)
    return model


@cache
def small_graph() -> Graph:
    """The same graph every time; not to be modified."""
    return wake_word_graph(wake_word_model(), waveforms())


def _heard(n_random: int = 60) -> Array:
    """What a device gives the model of some audio, then anything: (steps, N_FRAMES, 40)."""
    real = np.concatenate([quantized(Microfrontend(MicroSpec())(w)) for w in waveforms(seed=3)])
    real = real[: len(real) // N_FRAMES * N_FRAMES].reshape(-1, N_FRAMES, 40)
    random = np.random.default_rng(0).integers(-128, 128, (n_random, N_FRAMES, 40))
    return np.concatenate([real, random.astype(np.int8)])


STEPS = _heard()


def collect(run: Steps, steps: Iterable[Array]) -> Array:
    return np.array([run(frames) for frames in steps])


def litert(data: bytes, which: str) -> Steps:
    """A file in LiteRT, with the kernels of that name."""
    model = Interpreter(
        model_content=data, num_threads=1, experimental_op_resolver_type=RESOLVERS[which]
    )
    model.allocate_tensors()
    (feature,), (probability,) = model.get_input_details(), model.get_output_details()

    def run(frames: Array) -> int:
        model.set_tensor(feature["index"], frames[np.newaxis])
        model.invoke()
        return int(model.get_tensor(probability["index"])[0, 0])

    return run


def tflite_micro(data: bytes, arena_size: int) -> tuple[Steps, Any]:
    """A file in TensorFlow Lite Micro, and the interpreter itself."""
    model = micro_module().Interpreter.from_bytes(data, arena_size=arena_size)

    def run(frames: Array) -> int:
        model.set_input(frames[np.newaxis], 0)
        model.invoke()
        return int(model.get_output(0)[0, 0])

    return run, model


def pymicro(package: ModuleType, manifest: Path) -> Steps:
    """A pack in pymicro-wakeword's library, without its front end and its mean."""
    word = package.MicroWakeWord.from_config(manifest)

    def run(frames: Array) -> int:
        frames = np.ascontiguousarray(frames)
        probability = np.empty(1, np.uint8)
        pointers = (a.ctypes.data_as(ctypes.c_void_p) for a in (frames, probability))
        word.lib.TfLiteTensorCopyFromBuffer(word.input_tensor, next(pointers), frames.nbytes)
        word.lib.TfLiteInterpreterInvoke(word.interpreter)
        word.lib.TfLiteTensorCopyToBuffer(word.output_tensor, next(pointers), 1)
        return int(probability[0])

    return run
