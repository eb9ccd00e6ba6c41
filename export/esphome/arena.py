"""How much memory a streaming .tflite file needs on a device, in bytes.

Measured here, by TensorFlow Lite Micro itself, and made larger by what only devices need. Their
pointers are half as long as those of the machine that measures, which is on the safe side.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path

from edge_imputer.errors import ExportError, require

from ..graph import Graph, Op

RUNTIME = "tflite_micro.python.tflite_micro.runtime"
STEP = 16  # bytes, the allocator's alignment
SMALLEST, LARGEST = 1 << 12, 1 << 23  # bytes to try; the largest memory of an ESP32
LANES = 16  # channels that Espressif's vector kernels pad to
KERNEL_OVERHEAD = 128  # bytes, of their alignment

# Where memory is short the interpreter does not always say so, but may crash: so every size is
# tried by a process of its own, forked from one that has everything loaded.
PROBE = f"""
import os, sys
import numpy as np
from {RUNTIME} import Interpreter
with open(sys.argv[1], "rb") as file:
    data = file.read()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        interpreter = Interpreter.from_bytes(data, arena_size=int(line))
        shape = interpreter.get_input_details(0)["shape"]
        interpreter.set_input(np.zeros(shape, np.int8), 0)
        interpreter.invoke()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def arena_size(graph: Graph, data: bytes) -> int:
    """Bytes to state in the manifest: measured, and working memory of a device's kernels."""
    return measured_arena(data) + kernel_memory(graph)


def measured_arena(data: bytes) -> int:
    """Fewest bytes, to `STEP`, in which TensorFlow Lite Micro loads a file and calls it.

    Raises
    ------
    ExportError
        If it does not run in any size.
    MissingExtraError
        If tflite-micro is not installed; it has wheels for Linux on x86-64 only.
    """
    with trial(data) as runs_in:
        too_small, enough = 0, SMALLEST
        while not runs_in(enough):
            too_small, enough = enough, 2 * enough
            if enough > LARGEST:
                raise ExportError(
                    f"expected a .tflite file that TensorFlow Lite Micro runs in {LARGEST} bytes, "
                    "got one that it refuses"
                )
        while enough - too_small > STEP:
            middle = (too_small + enough) // (2 * STEP) * STEP
            too_small, enough = (too_small, middle) if runs_in(middle) else (middle, enough)
    return enough


@contextmanager
def trial(data: bytes) -> Iterator[Callable[[int], bool]]:
    """Whether TensorFlow Lite Micro loads a file and calls it once in so many bytes."""
    require(RUNTIME, extra="esphome")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(data)
        with subprocess.Popen(
            [sys.executable, "-c", PROBE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            yield partial(_ask, process)


def _ask(process: subprocess.Popen[str], n_bytes: int) -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{n_bytes}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ExportError(
            "expected TensorFlow Lite Micro to measure the memory of a .tflite file, but its "
            f"process ended with exit code {process.wait()}"
        )
    return int(answer) == 0


def kernel_memory(graph: Graph) -> int:
    """Bytes of working memory that ESP-NN's kernels ask for at most, for any one convolution.

    The TensorFlow Lite Micro of ESP32 devices computes convolutions by Espressif's kernels, some of
    which copy weights and input, padded to whole vectors, or as 16-bit numbers. How much they ask
    for differs by version; this is above what any of those for the ESP32-S3 does.
    """
    return max(_copies(graph, op) for op in graph.ops if op.kind in ("conv2d", "depthwise_conv2d"))


def _copies(graph: Graph, op: Op) -> int:
    """Weights and input twice, the output, and four 32-bit numbers an output channel."""
    x, weight, y = (_padded(graph, name) for name in (op.inputs[0], op.inputs[1], op.output))
    return 2 * (weight + x) + y + 16 * graph.tensors[op.inputs[2]].shape[0] + KERNEL_OVERHEAD


def _padded(graph: Graph, name: str) -> int:
    *rows, channels = graph.tensors[name].shape
    return prod(rows) * (-(-channels // LANES) * LANES)
