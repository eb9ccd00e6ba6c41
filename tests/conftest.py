"""Makes a bare checkout importable under the installed names, and says how CI is told apart."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edge_imputer.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {f"edge_imputer.{name}": ROOT / name for name in ("train", "export", "firmware_bridge")}


class _CheckoutFinder:
    """Finds ``edge_imputer.train`` in ``train/`` and so on, as the installed mapping does."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = MAPPED.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if importlib.util.find_spec("edge_imputer") is None:
    sys.path.insert(0, str(ROOT))
sys.meta_path.append(_CheckoutFinder)  # type: ignore[arg-type]

IN_CI = os.environ.get("EDGE_IMPUTER_CI") == "1"


def import_or_skip(module: str) -> ModuleType:
    """An optional package; without it the test is skipped, but in CI it fails."""
    if IN_CI:
        return importlib.import_module(module)
    found: ModuleType = pytest.importorskip(module, reason=f"{module} is not installed")
    return found


@pytest.fixture(scope="session", autouse=True)
def _environments() -> None:
    """Let the tests find what `make tflite-runtime` and `make litert-oracle` made here."""
    for name in ("TFLITE", "LITERT"):
        python = ROOT / f".venv-{name.lower()}" / "bin" / "python"
        if python.is_file():
            os.environ.setdefault(f"EDGE_IMPUTER_{name}_PYTHON", str(python))


def _runtime_or_skip(name: str) -> str:
    """The name of a runtime that need not be here; without it a test is skipped, in CI it fails."""
    from edge_imputer.export.runtimes import ALL_RUNTIMES

    absence = ALL_RUNTIMES[name].absence()
    if absence is not None and not IN_CI:
        pytest.skip(absence)
    assert absence is None, absence
    return name


@pytest.fixture(scope="session")
def micro() -> str:
    """The runtime tflite-micro; it has wheels for Linux on x86-64 only."""
    return _runtime_or_skip("tflite-micro")


@pytest.fixture(scope="session")
def old_tflite(_environments: None) -> str:
    """The runtime tflite-runtime, which `make tflite-runtime` installs."""
    return _runtime_or_skip("tflite-runtime")


@pytest.fixture(scope="session")
def litert_torch(_environments: None) -> None:
    """The other converter, too big for CI, for slow checks: `make test-slow` installs it."""
    from edge_imputer.export.oracle import ENVIRONMENT

    absence = ENVIRONMENT.absence()
    if absence is not None:
        pytest.fail(absence)


@pytest.fixture(scope="session")
def untrained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the default size with random weights, all artefacts in it."""
    from edge_imputer.cli.benches import untrained_bundle

    return untrained_bundle(tmp_path_factory.mktemp("bundle") / "bundle").path


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small model of `graphs`, all artefacts in it; not to be modified."""
    from .bundles import export_small

    return export_small(tmp_path_factory.mktemp("small") / "bundle")
