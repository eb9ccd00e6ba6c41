"""The objective's C code as compilers, sanitizers, other processors and installers see it."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_imputer.train.objective import lattice, native
from edge_imputer.train.objective.arguments import MASK, Problem
from edge_imputer.train.objective.native import NativeLibrary

from .c_tools import compile_c, missing, run, tool
from .conftest import ROOT
from .objective_cases import Truth, problems, random_problem, truth, truth_of

CSRC = ROOT / "train" / "objective" / "csrc"
SOURCES = sorted(CSRC.glob("*.c"))
DRIVER = ROOT / "tests" / "c" / "objective_driver.c"
LIBRARIES = ("-lm", "-lpthread")
POSIX = "-D_POSIX_C_SOURCE=200112L"  # the driver's posix_memalign

SCALAR, AVX2, AVX512, NEON = range(4)
FUNCTIONS = LOSS, LOSS_AND_GRADIENT, BEST, SAMPLE = range(4)


# ------------------------------------------------------------------------------ the driver


@dataclass(frozen=True)
class Job:
    """One call of the kernels by `tests/c/objective_driver.c`.

    The logits' type decides the form's precision. `fill` is the byte that the workspace is full
    of beforehand; -1 leaves it as it comes.
    """

    problem: Problem
    function: int
    isa: int
    n_threads: int = 1
    fill: int = -1
    time_first: bool = False
    weight: Tensor | None = None
    n_samples: int = 2

    def uniforms(self) -> Tensor:
        shape = (self.n_samples, *self.problem.logits.shape[:2])
        generator = torch.Generator().manual_seed(self.problem.logits.numel())
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def encode(self) -> bytes:
        p = self.problem
        is_double = p.logits.dtype == torch.float64
        batch, n_frames, n_tokens = p.logits.shape
        header = (
            *(self.function, self.isa, is_double, p.states, self.time_first, batch, n_frames),
            *(n_tokens, p.targets.shape[1], p.blank_id, self.n_threads, self.n_samples),
            *(self.weight is not None, self.fill),
        )
        logits = p.logits.transpose(0, 1) if self.time_first else p.logits
        arrays = [logits, p.targets, p.partial, p.input_lengths, p.target_lengths]
        if self.weight is not None:
            arrays.append(self.weight.double())
        if self.function == SAMPLE:
            arrays.append(self.uniforms())
        data = [array.contiguous().numpy().tobytes() for array in arrays]
        return struct.pack(f"{len(header)}q", *header) + b"".join(data)

    def decode(self, data: memoryview) -> tuple[list[Tensor], memoryview]:
        """The answer at the beginning of the driver's output, and the rest of it."""
        batch, n_frames, n_tokens = self.problem.logits.shape

        def take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            nonlocal data
            size = int(np.prod(shape)) * dtype.itemsize
            assert len(data) >= size
            taken = torch.frombuffer(bytearray(data[:size]), dtype=dtype).view(shape)
            data = data[size:]
            return taken

        size = int(take((1,), torch.int64))
        assert size >= 0, "refused"
        if self.function in (BEST, SAMPLE):
            leading = () if self.function == BEST else (self.n_samples,)
            return [take((*leading, batch, n_frames), torch.int64)], data
        answer = [take((batch,), torch.float64)]
        if self.function == LOSS_AND_GRADIENT:
            shape = (n_frames, batch, n_tokens) if self.time_first else (batch, n_frames, n_tokens)
            gradient = take(shape, self.problem.logits.dtype)
            answer.append(gradient.transpose(0, 1) if self.time_first else gradient)
        return answer, data


def compile_driver(folder: Path, *flags: str, compiler: str = "gcc") -> Path:
    """The driver and the kernels as a program."""
    return compile_c(
        [DRIVER, *SOURCES],
        folder / "driver",
        (POSIX, *flags),
        compiler=compiler,
        libraries=LIBRARIES,
    )


def run_jobs(jobs: list[Job], *command: str | Path) -> list[list[Tensor]]:
    """Answers of the driver to all jobs."""
    output = memoryview(run(*command, stdin=b"".join(job.encode() for job in jobs)))
    answers = []
    for job in jobs:
        answer, output = job.decode(output)
        answers.append(answer)
    assert not len(output)
    return answers


def library_answer(library: NativeLibrary, job: Job) -> list[Tensor]:
    """What the installed library says."""
    library.isa = job.isa
    if job.function == BEST:
        return [native.best_states(library, job.problem)]
    if job.function == SAMPLE:
        return [native.sample_states(library, job.problem, job.uniforms())]
    wanted = job.function == LOSS_AND_GRADIENT
    losses, gradient = native.loss_and_gradient(library, job.problem, job.weight, gradient=wanted)
    return [losses.double(), gradient] if wanted else [losses.double()]


def in_form(problem: Problem, isa: int, dtype: torch.dtype) -> list[Job]:
    """Every function over a problem in one form."""
    given = problem.with_logits(problem.logits.to(dtype))
    return [Job(given, function, isa) for function in FUNCTIONS]


@functools.cache
def small_cases() -> list[tuple[Problem, tuple[Tensor, Tensor], list[Truth]]]:
    """Two hundred utterances in batches of eight, and what enumeration says of them."""
    given = [*problems(201, n_utterances=104), *problems(202, n_utterances=104, states=True)]
    exact = [problem.with_logits(problem.logits.float().double()) for problem in given]
    return [(p, truth(p), [truth_of(p, row) for row in range(len(p.logits))]) for p in exact]


def small_jobs(isa: int, dtype: torch.dtype) -> list[Job]:
    return [job for problem, *_ in small_cases() for job in in_form(problem, isa, dtype)]


def check_small(jobs: list[Job], answers: list[list[Tensor]]) -> None:
    """Compare the answers to `small_jobs` with enumeration."""
    every = (case[1:] for case in small_cases() for _ in FUNCTIONS)
    for job, answer, (expected, rows) in zip(jobs, answers, every, strict=True):
        if job.function in (BEST, SAMPLE):
            for row, one in enumerate(rows):
                length, last = len(one.gradient), 2 * int(job.problem.target_lengths[row])
                for states in answer[0].view(-1, *job.problem.logits.shape[:2])[:, row]:
                    check_states(one, states[:length], job.function == BEST)
                    assert torch.all(states[length:] == (last if len(one.paths) else -1))
            continue
        tolerance = 1e-9 if job.problem.logits.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(answer[0], expected[0], rtol=tolerance, atol=tolerance)
        if job.function == LOSS_AND_GRADIENT:
            assert (answer[1] - expected[1]).abs().max() < tolerance / 3


def check_states(one: Truth, states: Tensor, is_best: bool) -> None:
    if not len(one.paths):
        assert torch.all(states == -1)
        return
    index = one.states.tolist().index(states.tolist())
    assert not is_best or one.log_probs[index] == pytest.approx(one.log_probs.max(), abs=1e-4)


def one_utterance(
    logits: Tensor, target: Tensor, partial: Tensor, *, states: bool = False
) -> Problem:
    length, size = torch.tensor([len(logits)]), torch.tensor([len(target)])
    return Problem(logits[None], target[None], partial[None], length, size, states=states)


def larger_problems() -> Iterator[Problem]:
    """What enumeration cannot do, and what is odd; float64."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def tokens(size: int, n_tokens: int) -> Tensor:
        return torch.randint(1, n_tokens, (size,), generator=generator)

    for n_frames, n_tokens, size in [
        *((1, 1, 0), (1, 17, 1), (9, 2, 4), (50, 33, 0), (64, 16, 64), (65, 5, 65)),
        *((300, 47, 31), (3000, 33, 50), (130, 8, 100), (130, 64, 129)),
    ]:
        open_ = torch.full((n_frames,), MASK)
        target = torch.arange(size) % max(n_tokens - 1, 1) + 1
        problem = one_utterance(normal(n_frames, n_tokens), target, open_)
        yield problem
        best = lattice.viterbi_states(problem)[0]
        half = torch.rand(n_frames, generator=generator) < 0.5
        if best[0] >= 0:
            yield one_utterance(problem.logits[0], target, best.where(half, MASK), states=True)
            spelled = lattice.state_tokens(problem)[0, best]
            yield one_utterance(problem.logits[0], target, spelled.where(half, MASK))
        yield one_utterance(problem.logits[0], target, tokens(n_frames, n_tokens + 1) - 1)
    yield one_utterance(normal(90, 5), torch.ones(40, dtype=torch.int64), torch.full((90,), MASK))
    yield Problem(  # nothing at all in it
        *(normal(3, 4, 6), torch.zeros(3, 0, dtype=torch.int64), torch.full((3, 4), MASK)),
        *(torch.tensor([0, 4, 2]), torch.zeros(3, dtype=torch.int64), 5),
    )
    for value in (torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 5e6, -5e6, 5e8, 3e9):
        for n_places in (1, 40, 4000):
            logits = normal(5, 40, 21)
            places = torch.randint(logits.numel(), (n_places,), generator=generator)
            logits.view(-1)[places] = value
            targets = torch.stack([tokens(7, 21) for _ in range(5)])
            yield Problem(
                *(logits, targets, torch.full((5, 40), MASK)),
                *(torch.tensor([40, 39, 7, 0, 20]), torch.tensor([7, 6, 7, 2, 0])),
            )


def larger_jobs(isa: int, dtype: torch.dtype) -> list[Job]:
    jobs = [job for problem in larger_problems() for job in in_form(problem, isa, dtype)]
    several = [job for job in jobs if len(job.problem.logits) > 1]
    threaded = [replace(job, n_threads=3, time_first=True) for job in several]
    many = random_problem(np.random.default_rng(203), batch=80)
    threaded += [replace(job, n_threads=70) for job in in_form(many, isa, dtype)]  # 64 are enough
    weight = torch.tensor([2.0, 0.5, 1.0, 3.0, 1.0])
    weighted = [
        replace(job, weight=weight[: len(job.problem.logits)])
        for job in several
        if job.function == LOSS_AND_GRADIENT
    ]
    return jobs + threaded + weighted


def forms() -> list[tuple[int, torch.dtype]]:
    """What this processor runs."""
    assert native.NATIVE is not None
    return [*((isa, torch.float32) for isa in native.NATIVE.isas.values()), (SCALAR, torch.float64)]


# ------------------------------------------------------------------------------ compilers


SANITIZED = ("-O1", "-g", "-fno-sanitize-recover=all")
BAD_ACCESS = "-fsanitize=address,undefined,float-cast-overflow"
UNINITIALISED = "-fsanitize=memory"


def sanitized_driver(compiler: str, sanitizers: str, tmp_path: Path) -> Path:
    """The driver with sanitizers; skipped where clang has not brought their libraries."""
    if compiler == "clang":
        empty = tmp_path / "empty.c"
        empty.write_text("int main(void) { return 0; }\n")
        command = [tool("clang"), sanitizers, str(empty), "-o", str(tmp_path / "empty")]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            missing("clang's sanitizer libraries (Debian: libclang-rt-14-dev)")
    return compile_driver(tmp_path, *SANITIZED, sanitizers, compiler=tool(compiler))


@pytest.mark.parametrize(
    ("compiler", "sanitizers"),
    [("gcc", BAD_ACCESS), ("clang", BAD_ACCESS), ("clang", UNINITIALISED)],
    ids=["gcc", "clang", "clang-memory"],
)
def test_sanitizers_find_nothing(compiler: str, sanitizers: str, tmp_path: Path) -> None:
    """And the answers are those of enumeration, or of the installed library."""
    program = sanitized_driver(compiler, sanitizers, tmp_path)
    assert native.NATIVE is not None
    library = NativeLibrary(native.NATIVE.path)
    for isa, dtype in forms():
        small, larger = small_jobs(isa, dtype), larger_jobs(isa, dtype)
        answers = run_jobs(small + larger, program)
        check_small(small, answers[: len(small)])
        for job, answer in zip(larger, answers[len(small) :], strict=True):
            expected = library_answer(library, job)
            torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_warnings_and_no_trust_in_the_workspace(compiler: str, tmp_path: Path) -> None:
    """Vectors read what nobody has written; nothing that comes out may depend on it."""
    program = compile_driver(tmp_path, "-O3", "-funroll-loops", compiler=tool(compiler))
    for isa, dtype in forms():
        jobs, expected = larger_jobs(isa, dtype), None
        for fill in (0x00, 0x7F, 0xFF):
            given = b"".join(replace(job, fill=fill).encode() for job in jobs)
            output = run(program, stdin=given)
            assert expected in (None, output)
            expected = output


# ------------------------------------------------------------------------------ installation


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `setup.py build_ext` needs, without a library in it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    (folder / "edge_imputer").mkdir()
    shutil.copy(ROOT / "edge_imputer" / "__init__.py", folder / "edge_imputer")
    ignore = shutil.ignore_patterns("__pycache__", "_objective.*")
    shutil.copytree(ROOT / "train" / "objective", folder / "train" / "objective", ignore=ignore)
    return folder


def build(source: Path, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`setup.py build_ext` into a folder of its own."""
    command = [sys.executable, "setup.py", "build_ext", "-f", "-b", out, "-t", out / "objects"]
    inherited = {k: v for k, v in os.environ.items() if k not in ("CC", "EDGE_IMPUTER_TARGET")}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=source,
        env=inherited | env,
        check=False,
    )


def built_files(out: Path) -> list[str]:
    folder = out / "edge_imputer" / "train" / "objective"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_installation_goes_on_without_a_compiler(source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path, CC="/bin/false")
    assert result.returncode == 0, result.stderr
    name = "edge_imputer.train.objective._objective"
    said = result.stdout + result.stderr
    assert f'building extension "{name}" failed' in said
    assert "/bin/false" in said
    assert built_files(tmp_path) == []


def test_the_library_depends_on_no_python(source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path)
    assert result.returncode == 0, result.stderr
    assert built_files(tmp_path) == ["_objective.so"]  # no cpython-311-x86_64-linux-gnu in it
    path = tmp_path / "edge_imputer" / "train" / "objective" / "_objective.so"
    library = NativeLibrary(path)
    symbols = run(tool("nm"), "-D", "--undefined-only", path).decode()
    assert not re.search(r"\bPy|\bmalloc|\bcalloc", symbols)
    jobs = small_jobs(library.isa, torch.float32)
    check_small(jobs, [library_answer(library, job) for job in jobs])


def test_unknown_target_is_named(source: Path, tmp_path: Path) -> None:
    result = build(source, tmp_path, EDGE_IMPUTER_TARGET="amiga-m68k")
    assert result.returncode != 0
    assert "EDGE_IMPUTER_TARGET: expected one of linux-x86_64, " in result.stderr
    assert "got 'amiga-m68k'" in result.stderr


# ------------------------------------------------------------------------------ other platforms

EXPORTED = {
    f"edim_objective_{name}"
    for name in "best best_isa has_isa isa_name loss sample struct_size workspace".split()
}


def cross_build(target: str, source: Path, out: Path) -> Path:
    """The library of a platform of setup.py's TARGETS."""
    result = build(source, out, EDGE_IMPUTER_TARGET=target)
    assert result.returncode == 0, result.stderr
    (name,) = built_files(out)
    return out / "edge_imputer" / "train" / "objective" / name


def elf_machine(data: bytes) -> int:
    assert data[:7] == b"\x7fELF\2\1\1"  # 64 bits, little-endian
    file_type, machine = struct.unpack_from("<HH", data, 16)
    assert file_type == 3  # a shared object
    return int(machine)


def mach_o(data: bytes) -> tuple[int, set[int], int]:
    """Processor, kinds of load commands, and the oldest macOS, of a dynamic library."""
    magic, processor, _, file_type, n_commands = struct.unpack_from("<5I", data)
    assert (magic, file_type) == (0xFEEDFACF, 6)
    place, commands, oldest = 32, set(), 0
    for _ in range(n_commands):
        command, size = struct.unpack_from("<2I", data, place)
        commands.add(command & 0x7FFFFFFF)
        if command == 0x32:  # LC_BUILD_VERSION
            oldest = struct.unpack_from("<I", data, place + 12)[0]
        place += size
    return processor, commands, oldest


def check_linux(path: Path, machine: int) -> None:
    data = path.read_bytes()
    assert path.suffix == ".so"
    assert elf_machine(data) == machine
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([0-9.]+)", data)}
    assert versions
    assert max(versions) <= (2, 28)  # what the wheel's tag promises


def check_macos(path: Path, processor: int) -> None:
    found, commands, oldest = mach_o(path.read_bytes())
    assert path.suffix == ".dylib"
    assert found == processor
    assert oldest == 11 << 16
    signature = 0x1D
    assert signature in commands or processor != 0x0100000C  # Apple's Arm runs nothing unsigned


def check_windows(path: Path) -> None:
    data = path.read_bytes()
    assert path.suffix == ".dll"
    assert data[:2] == b"MZ"
    (header,) = struct.unpack_from("<I", data, 60)
    assert data[header : header + 4] == b"PE\0\0"
    machine, *_, characteristics = struct.unpack_from("<2H3I2H", data, header + 4)
    assert machine == 0x8664
    assert characteristics & 0x2000  # a library


CHECKS = {
    "linux-x86_64": lambda path: check_linux(path, 62),
    "linux-aarch64": lambda path: check_linux(path, 183),
    "macos-arm64": lambda path: check_macos(path, 0x0100000C),
    "macos-x86_64": lambda path: check_macos(path, 0x01000007),
    "windows-x86_64": check_windows,
}


def test_every_target_is_checked(source: Path, tmp_path: Path) -> None:
    said = build(source, tmp_path, EDGE_IMPUTER_TARGET="?").stderr
    assert f"expected one of {', '.join(CHECKS)}, got" in said


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name in CHECKS if name != "linux-aarch64"])
def test_cross_compiled_library(target: str, source: Path, tmp_path: Path) -> None:
    """Two minutes for the first time, most of them for Windows's C library; then a second."""
    path = cross_build(target, source, tmp_path)
    CHECKS[target](path)
    names = set(re.findall(rb"edim_objective_\w+", path.read_bytes()))
    assert {name.encode() for name in EXPORTED} <= names
    if target == f"{platform.system().lower()}-{platform.machine()}":
        library = NativeLibrary(path)
        jobs = small_jobs(library.isa, torch.float32)
        check_small(jobs, [library_answer(library, job) for job in jobs])


@pytest.fixture(scope="module")
def arm_library(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_build("linux-aarch64", source, tmp_path_factory.mktemp("aarch64"))


def test_library_for_linux_on_arm(arm_library: Path) -> None:
    CHECKS["linux-aarch64"](arm_library)
    symbols = run(tool("nm"), "-D", "--defined-only", "--extern-only", arm_library).decode()
    assert {line.split()[-1] for line in symbols.splitlines()} == EXPORTED


ARM_SYSTEM = Path("/usr/aarch64-linux-gnu")  # Debian's libc6-arm64-cross


def arm_emulator() -> list[str]:
    """The command that runs a program for Linux on Arm; none is needed where this is one."""
    if platform.machine() == "aarch64":
        return []
    emulator = tool("qemu-aarch64")
    if not (ARM_SYSTEM / "lib" / "ld-linux-aarch64.so.1").exists():
        missing("there is no C library for Arm (Debian: libc6-arm64-cross)")
    return [emulator, "-L", str(ARM_SYSTEM)]


def test_neon(arm_library: Path, tmp_path: Path) -> None:
    """The very library that is shipped, in an emulator; and with traps for what C forbids."""
    emulator = arm_emulator()
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28", "-std=c99"]
    shared, trapping = tmp_path / "shared", tmp_path / "trapping"
    common = ("-O1", POSIX, f"-I{CSRC}", DRIVER)
    run(*zig, *common, arm_library, f"-Wl,-rpath,{arm_library.parent}", *LIBRARIES, "-o", shared)
    traps = ("-fsanitize=undefined", "-fsanitize-trap=undefined")
    run(*zig, *common, *traps, *SOURCES, *LIBRARIES, "-o", trapping)
    for isa, dtype in ((NEON, torch.float32), (SCALAR, torch.float32), (SCALAR, torch.float64)):
        small, larger = small_jobs(isa, dtype), larger_jobs(isa, dtype)
        answers = run_jobs(small + larger, *emulator, shared)
        check_small(small, answers[: len(small)])
        again = run_jobs(small + larger, *emulator, trapping)
        for answer, other in zip(answers, again, strict=True):
            torch.testing.assert_close(answer, other, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert native.NATIVE is not None
        library = NativeLibrary(native.NATIVE.path)
        for job, answer in zip(larger, answers[len(small) :], strict=True):
            if job.function in (LOSS, LOSS_AND_GRADIENT):
                expected = library_answer(library, replace(job, isa=SCALAR))
                torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
