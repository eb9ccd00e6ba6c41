"""The checkout, the wheel and the pins: what a user installs is what the tests ran with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edge_imputer

from .conftest import IN_CI, ROOT

MAPPED = ("train", "export", "firmware_bridge")
LIBRARY_ENDING = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
PROJECT = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout's import path."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=inherited | env,
        check=False,
    )


# ------------------------------------------------------------------------------ the checkout


@pytest.mark.parametrize("folder", MAPPED)
def test_import_under_the_folder_name_names_the_right_one(folder: str, tmp_path: Path) -> None:
    result = run(sys.executable, "-c", f"import {folder}", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: this package is edge_imputer.{folder}")


BARE_CHECKOUT = """
import sys
import runpy
from importlib.util import find_spec
sys.path += {site!r}  # without .pth files, so that no editable install takes part
assert find_spec("edge_imputer") is None
runpy.run_path({conftest!r})
import edge_imputer, edge_imputer.train, edge_imputer.export, edge_imputer.firmware_bridge
import edge_imputer.export.graph
print(*(m.__file__ for m in (edge_imputer, edge_imputer.train, edge_imputer.export.graph)))
"""


def test_conftest_makes_a_bare_checkout_importable(tmp_path: Path) -> None:
    site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    code = BARE_CHECKOUT.format(site=site, conftest=str(ROOT / "tests" / "conftest.py"))
    result = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files = ("edge_imputer/__init__.py", "train/__init__.py", "export/graph.py")
    assert result.stdout.split() == [str(ROOT / file) for file in files]


# ------------------------------------------------------------------------------ the pins


def installed_closure(requirements: Iterable[str]) -> set[str]:
    """Canonical names of the distributions that `requirements` bring, this project's extras too."""
    extras: dict[str, set[str]] = {}
    queue = [(line, "") for line in requirements]
    while queue:
        line, extra = queue.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        new = {"", *wanted.extras} - extras.setdefault(name, set())
        extras[name] |= new
        for extra in new:
            if name == "edge-imputer":
                lines = PROJECT["optional-dependencies"][extra] if extra else []
            else:
                lines = importlib.metadata.requires(name) or []
            queue += [(line, extra) for line in lines]
    return set(extras) - {"edge-imputer"}


def pins() -> dict[str, str]:
    """Version of every package in constraints.txt, for this Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^*+,]+", str(pin.specifier)), f"not an exact pin: {line}"
            if pin.marker is None or pin.marker.evaluate():
                found[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return found


def test_everything_that_setup_installs_is_pinned() -> None:
    dev = [f"edge-imputer[{extra}]" for extra in PROJECT["optional-dependencies"]]
    needed = installed_closure([*PROJECT["dependencies"], *dev])
    assert "torch" in needed
    # A torch built for CUDA brings these, at versions that its own metadata pins.
    cuda = {n for n in needed if n.startswith(("nvidia-", "cuda-"))}
    assert needed - cuda == set(pins())


@pytest.mark.skipif(not IN_CI, reason="only CI promises the pinned versions")
def test_installed_versions_are_the_pinned_ones() -> None:
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in pins()}
    assert installed == pins()


def test_changelog_names_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == edge_imputer.__version__


# ------------------------------------------------------------------------------ the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing built before in the checkout gets in."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "_objective.*")
    for folder in ("edge_imputer", *MAPPED):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    result = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", source, cwd=source)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_wheel_ships_every_file_under_its_installed_name(wheel: Path) -> None:
    expected = {f"edge_imputer/train/objective/_objective.{LIBRARY_ENDING}"}
    for folder in ("edge_imputer", *MAPPED):
        prefix = "" if folder == "edge_imputer" else "edge_imputer/"
        for path in (ROOT / folder).rglob("*"):
            built = "__pycache__" in path.parts or path.stem == "_objective"
            if path.is_file() and not built:
                expected.add(prefix + path.relative_to(ROOT).as_posix())
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == expected


def test_wheel_has_types_corpus_and_c_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for package in ("edge_imputer", *(f"edge_imputer/{folder}" for folder in MAPPED)):
        assert f"{package}/py.typed" in names
    assert "edge_imputer/train/digits/manifest.jsonl" in names
    assert any(re.fullmatch(r"edge_imputer/train/digits/audio/.*\.ogg", name) for name in names)
    for folder in ("firmware_bridge", "train/objective/csrc"):
        for suffix in ("c", "h"):
            pattern = rf"edge_imputer/{folder}/.*\.{suffix}"
            assert any(re.fullmatch(pattern, name) for name in names), (folder, suffix)


def test_wheel_is_of_one_platform_and_every_python(wheel: Path) -> None:
    """The one compiled part is a library that does not depend on Python."""
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform == sysconfig.get_platform().replace("-", "_").replace(".", "_")


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
        licences = [n for n in archive.namelist() if ".dist-info/licenses/" in n]
    assert metadata["Version"] == edge_imputer.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {name.rsplit("/", 1)[-1] for name in licences} == {"LICENSE", "NOTICE"}


@pytest.fixture(scope="module")
def runtime(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of a fresh venv: the wheel, and what it declares without extras.

    The dependencies are links to this environment's copies, so nothing is downloaded; a library
    that the wheel does not declare, torch above all, is not there.
    """
    home = tmp_path_factory.mktemp("runtime")
    venv.create(home / "venv", symlinks=True)
    scripts = home / "venv" / "bin"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(scripts / "python", "-c", where, cwd=home).stdout.strip())
    for name in installed_closure(PROJECT["dependencies"]):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            link = site / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    result = run(
        *(sys.executable, "-m", "pip", "--python", scripts / "python"),
        *("install", "--no-index", "--no-deps", wheel),
        cwd=home,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return scripts


def test_installed_wheel_imports_without_torch(runtime: Path, tmp_path: Path) -> None:
    code = """
import importlib, importlib.util, pkgutil
import edge_imputer, edge_imputer.backends, edge_imputer.cli
assert importlib.util.find_spec("torch") is None
assert importlib.util.find_spec("onnx") is None
for package in (edge_imputer, edge_imputer.backends, edge_imputer.cli):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name not in ("edge_imputer.backends.litert", "edge_imputer.__main__"):
            importlib.import_module(module.name)
print(edge_imputer.__file__)
"""
    result = run(runtime / "python", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(runtime.parent)


EVERY_HELP = """
from typer.main import get_command
from typer.testing import CliRunner
from edge_imputer.cli.main import app
names = sorted(get_command(app).commands)
for command in ([], *([name] for name in names)):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output
print(*names)
"""


def test_every_command_has_help_without_torch(runtime: Path, tmp_path: Path) -> None:
    result = run(runtime / "python", "-c", EVERY_HELP, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {"info", "train", "demo"} <= set(result.stdout.split())


@pytest.mark.parametrize("command", ["--help", "info --help"])
def test_installed_command_answers(runtime: Path, tmp_path: Path, command: str) -> None:
    result = run(runtime / "edge-imputer", *command.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Usage: edge-imputer" in result.stdout


def test_installed_command_transcribes_without_torch(
    runtime: Path, tmp_path: Path, untrained_bundle: Path
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).uniform(-0.3, 0.3, 8_000), 16_000)
    absent = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('lightning'))"
    assert run(runtime / "python", "-c", absent, cwd=tmp_path).stdout.split() == ["None", "None"]
    command = (runtime / "edge-imputer", "transcribe", untrained_bundle, "clip.wav", "--json")
    result = run(*command, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert (answer["audio"], answer["duration_s"]) == ("clip.wav", 0.5)


@pytest.mark.parametrize("command", ["train", "demo"])
def test_missing_extra_is_one_line(runtime: Path, tmp_path: Path, command: str) -> None:
    result = run(runtime / "edge-imputer", command, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    named = re.search(r"pip install 'edge-imputer\[(\w+)\]'$", result.stderr.strip())
    assert named is not None, result.stderr
    assert named[1] in PROJECT["optional-dependencies"]
