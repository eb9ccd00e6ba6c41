"""What `edge_imputer` offers, and what it costs to import."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import edge_imputer
from edge_imputer import errors
from edge_imputer.backends.base import Backend
from edge_imputer.spotter import KeywordSpotter

from .fakes import FakeBackend, small_spec

SURFACE = [
    "Bundle",
    "EdgeImputerError",
    "Event",
    "Final",
    "Keyword",
    "KeywordSpotter",
    "Partial",
    "Recognizer",
    "Transcript",
    "Word",
    "__version__",
    "load_backend",
]


def test_surface_is_frozen() -> None:
    assert sorted(edge_imputer.__all__) == SURFACE
    assert set(SURFACE) <= set(dir(edge_imputer))


@pytest.mark.parametrize("name", SURFACE)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(edge_imputer, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert inspect.getdoc(value)
        assert getattr(importlib.import_module(value.__module__), name) is value


OBJECTIVE = [
    "Alignment",
    "ImputerLoss",
    "MASK",
    "TokenSpan",
    "best_alignment",
    "ctc_loss",
    "imitation_loss",
    "imputer_loss",
    "mask_alignment",
    "sample_alignment",
]


def test_the_objectives_surface_is_frozen() -> None:
    objective = importlib.import_module("edge_imputer.train.objective")
    assert sorted(objective.__all__) == OBJECTIVE
    for name in set(OBJECTIVE) - {"MASK"}:
        assert inspect.getdoc(getattr(objective, name)), name


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        _ = edge_imputer.Recogniser
    with pytest.raises(ImportError):
        from edge_imputer import nothing  # type: ignore[attr-defined]  # noqa: F401


def public_methods(face: type) -> dict[str, str]:
    return {
        name: str(inspect.signature(value))
        for name, value in vars(face).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("face", "methods"),
    [
        (edge_imputer.Recognizer, {"push", "flush", "reset", "transcribe"}),
        (KeywordSpotter, {"push", "flush", "reset", "spot"}),
    ],
)
def test_the_faces_have_the_same_shape(face: type, methods: set[str]) -> None:
    signatures = public_methods(face)
    assert set(signatures) == methods
    assert "sample_rate: 'int'" in signatures["push"]
    whole = signatures["transcribe" if "transcribe" in methods else "spot"]
    assert "sample_rate: 'int | None' = None, resample: 'bool' = False" in whole


def test_every_error_is_one_of_ours() -> None:
    tree = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, Exception)]
    assert len(tree) > 10
    assert all(issubclass(e, edge_imputer.EdgeImputerError) for e in tree)


def test_the_fake_backend_is_a_backend() -> None:
    backend: Backend = FakeBackend(small_spec())
    assert backend.name == "fake"


IMPORT = """
import sys, time
start = time.perf_counter()
import edge_imputer
took = time.perf_counter() - start
print(took)
heavy = {"numpy", "onnxruntime", "ai_edge_litert", "torch", "typer", "soundfile", "soxr"}
print(sorted(heavy & set(sys.modules)))
edge_imputer.Recognizer, edge_imputer.KeywordSpotter, edge_imputer.load_backend
print(sorted(heavy & set(sys.modules)))
"""


def test_import_costs_nothing_and_the_faces_load_no_runtime() -> None:
    root = str(edge_imputer.__path__[0]).removesuffix("edge_imputer")
    outputs = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}){IMPORT}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert min(float(lines[0]) for lines in outputs) < 0.1
    assert outputs[0][1] == "[]"
    assert outputs[0][2] == "['numpy']"
