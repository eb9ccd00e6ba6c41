"""The Triton kernels without a GPU: interpreted on the CPU, or compiled for one that is not there.

``python -m tests.triton_tools 80:20 90:200:4,2,1`` compiles them for compute capability 8.0 and
targets of 20 tokens, and for 9.0 and 200 tokens in 4 warps, 2 registers and 1 unrolled step; it
prints a line of JSON for each kernel.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.backends.nvidia
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter
from triton.runtime.jit import JITFunction

from .conftest import ROOT

PACKAGE = "edge_imputer.train.objective"
MODULES = (f"{PACKAGE}.triton_device", f"{PACKAGE}.triton_kernels")


def _imported_anew(*, interpret: bool) -> ModuleType:
    """`triton_kernels` with kernels of its own; the one in `sys.modules`, if any, stays there."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    package = importlib.import_module(PACKAGE)
    attributes = dict(vars(package))
    try:
        with triton.knobs.runtime.scope():
            triton.knobs.runtime.interpret = interpret
            return importlib.import_module(MODULES[-1])
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
            vars(package).pop(name.rpartition(".")[2], None)
        sys.modules.update(before)
        vars(package).update(attributes)


def _patched_once(patch: Any) -> Any:
    """Triton's patch of its language, once a launch instead of at every call of a helper."""
    everything = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    inside = False

    class Scope:
        def __init__(self) -> None:
            self.real = patch(everything)

        def restore(self) -> None:
            nonlocal inside
            inside = False
            self.real.restore()

    def patched(_: object) -> Scope | None:
        nonlocal inside
        if inside:
            return None
        inside = True
        return Scope()

    return patched


def _remembered(real: Any) -> Any:
    """Triton's table of numpy's types, which it builds anew at every operation."""
    known: dict[str, Any] = {}

    def numpy_type(dtype: tl.dtype) -> Any:
        scalar = dtype.scalar
        name = scalar.name
        if name not in known:
            known[name] = real(scalar)
        return known[name]

    return numpy_type


@contextmanager
def interpreted(*, check_overflow: bool = False) -> Iterator[ModuleType]:
    """`triton_kernels`, run by Triton's interpreter, whoever imported Triton before.

    Kernels choose between compiler and interpreter when they are decorated. Ours are imported
    anew, and so are the two functions of Triton's own library that they call; nothing is left
    behind for other tests of the process.

    Parameters
    ----------
    check_overflow : bool
        Fail when an int32 operation overflows; twice as slow.
    """
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=check_overflow)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        for name in ("max", "sum"):
            function = getattr(tl, name)
            if isinstance(function, JITFunction):
                patch.setattr(tl, name, interpreter.InterpretedFunction(function.fn))
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter, "_patch_lang", _patched_once(interpreter._patch_lang))
        patch.setattr(interpreter, "_get_np_dtype", _remembered(interpreter._get_np_dtype))
        yield _imported_anew(interpret=True)


class _NoDevice:
    """What Triton asks of a GPU's driver, for one that is not there: kernels are not launched."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 99 * 1024}

    def load_binary(self, *_: object) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, 1024

    def launcher_cls(self, *_: object) -> Any:
        return lambda *_: None


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def compiled(capability: int, longest: int, shape: tuple[int, int, int] | None) -> Iterator[Any]:
    """Compile what `forward` and `backward` launch for targets of `longest` tokens, and one less.

    Yields a dictionary for each form of each kernel. `shape` replaces (warps, registers, unrolled).
    """
    from edge_imputer.train.objective.arguments import MASK, Problem  # after conftest

    driver.set_active(_NoDevice(capability))
    kernels = _imported_anew(interpret=False)
    if shape is not None:
        layout = kernels._Shape(*shape)
        kernels._Shape.of = lambda _: layout
    for batch, n_frames, size in ((2, 4, longest), (3, 7, longest - 1)):
        targets = torch.ones(batch, size, dtype=torch.int64)
        lengths = torch.full((batch,), n_frames), torch.full((batch,), 2)
        logits, partial = torch.zeros(batch, n_frames, 64), torch.full((batch, n_frames), MASK)
        problem = Problem(logits, targets, partial, *lengths)
        loss, workspace = kernels.forward(problem)
        kernels.backward(problem, torch.ones(batch), loss, workspace)
    for name, function in vars(kernels).items():
        if name.endswith("_kernel"):
            for binary in function.device_caches[0][0].values():
                yield {
                    "kernel": name,
                    "capability": capability,
                    "warps": binary.metadata.num_warps,
                    **_resources(binary.asm["cubin"]),
                    "shared": binary.metadata.shared,
                    "atomics": len(re.findall(r"\b(atom|red)\.", binary.asm["ptx"])),
                    "shuffles": binary.asm["ptx"].count("shfl.sync"),
                    "barriers": binary.asm["ptx"].count("bar.sync"),
                }


def compiled_elsewhere(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    """`compiled` in a process of its own, as a process has one driver; arguments as above."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.triton_tools", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        capability, longest, *shape = map(int, re.split(r"[:,]", argument))
        for kernel in compiled(capability, longest, tuple(shape) or None):  # type: ignore[arg-type]
            print(json.dumps(kernel))
