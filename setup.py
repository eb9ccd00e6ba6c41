"""Builds the one compiled part: the C kernels of the training objective.

They are a plain shared library, loaded by ctypes: no Python headers are needed, and one binary
serves every Python. Without a C compiler the installation goes on without them, and the objective
runs on torch alone. Everything else about the package is in pyproject.toml.

EDGE_IMPUTER_TARGET names a platform of `TARGETS` to build for with zig's C compiler (the package
ziglang) instead of this machine.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = "train/objective/csrc"
FLAGS = ["-std=c99", "-O3", "-funroll-loops", "-g0", "-fvisibility=hidden"]

# zig's target, the wheel's platform tag, the library's ending, libraries
TARGETS = {
    "linux-x86_64": ("x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64", ".so", ["-lm", "-lpthread"]),
    "linux-aarch64": (
        "aarch64-linux-gnu.2.28",
        "manylinux_2_28_aarch64",
        ".so",
        ["-lm", "-lpthread"],
    ),
    "macos-arm64": ("aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib", []),
    "macos-x86_64": ("x86_64-macos.11.0", "macosx_11_0_x86_64", ".dylib", []),
    "windows-x86_64": ("x86_64-windows-gnu", "win_amd64", ".dll", []),
}
TARGET = os.environ.get("EDGE_IMPUTER_TARGET")
if TARGET is not None and TARGET not in TARGETS:
    sys.exit(f"EDGE_IMPUTER_TARGET: expected one of {', '.join(TARGETS)}, got {TARGET!r}")


class BuildLibrary(build_ext):
    """Builds an extension that is a library without a Python module in it."""

    def get_ext_filename(self, fullname: str) -> str:
        """No interpreter's suffix: the library does not depend on one."""
        suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
        return os.path.join(*fullname.split(".")) + (TARGETS[TARGET][2] if TARGET else suffix)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """What the header marks, and no PyInit function."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """By this machine's compiler, or for another platform by zig."""
        if TARGET is None:
            return super().build_extension(ext)
        target, _, _, libraries = TARGETS[TARGET]
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-s", "-shared"]
        command = [*zig, "-fPIC", *FLAGS, *ext.sources, *libraries, "-o", str(out)]
        subprocess.run(command, check=True)
        for leftover in (*out.parent.glob("*.lib"), *out.parent.glob("*.pdb")):
            leftover.unlink()
        return None


class PlatformWheel(bdist_wheel):
    """A wheel of one platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """The library is the only thing in the wheel that depends on a platform."""
        platform = TARGETS[TARGET][1] if TARGET else super().get_tag()[2]
        return "py3", "none", platform


setup(
    ext_modules=[
        Extension(
            "edge_imputer.train.objective._objective",
            sources=sorted(str(path) for path in Path(CSRC).glob("*.c")),
            depends=sorted(str(path) for path in Path(CSRC).glob("*.h")),
            extra_compile_args=FLAGS,
            libraries=[] if sys.platform == "win32" else ["m", "pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
