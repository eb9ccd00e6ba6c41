"""The objective's CPU path: the C kernels of `csrc/`, called on torch's memory.

The library is plain C and is loaded by ctypes, which releases the GIL: one binary serves every
Python, and it can be built without Python's headers.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch
from torch import Tensor

from .arguments import Problem, check_ranges

LOG = logging.getLogger(__name__)

LIBRARY_STEM = "_objective"
_POINTERS = ctypes.c_void_p
_INT64 = ctypes.c_int64


class _Job(ctypes.Structure):
    """`EdimObjective` of `csrc/objective.h`, field by field."""

    _fields_ = [
        ("logits", _POINTERS),
        ("logits_stride_b", _INT64),
        ("logits_stride_t", _INT64),
        ("targets", _POINTERS),
        ("targets_stride_b", _INT64),
        ("partial", _POINTERS),
        ("partial_stride_b", _INT64),
        ("partial_stride_t", _INT64),
        ("input_lengths", _POINTERS),
        ("target_lengths", _POINTERS),
        ("batch", _INT64),
        ("n_frames", _INT64),
        ("n_tokens", _INT64),
        ("longest", _INT64),
        ("blank", _INT64),
        ("is_double", ctypes.c_int32),
        ("is_state", ctypes.c_int32),
        ("loss", _POINTERS),
        ("gradient", _POINTERS),
        ("gradient_stride_b", _INT64),
        ("gradient_stride_t", _INT64),
        ("weight", _POINTERS),
        ("uniforms", _POINTERS),
        ("n_samples", _INT64),
        ("states", _POINTERS),
        ("workspace", _POINTERS),
        ("workspace_size", _INT64),
        ("n_threads", ctypes.c_int32),
        ("isa", ctypes.c_int32),
    ]


class NativeLibrary:
    """The loaded kernels.

    Attributes
    ----------
    path : Path
    isas : dict of str to int
        Forms that this processor runs, the best one last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = library = ctypes.CDLL(str(path))
        library.edim_objective_struct_size.restype = _INT64
        if library.edim_objective_struct_size() != ctypes.sizeof(_Job):
            raise OSError(f"{path} was built from other sources; reinstall edge-imputer")
        library.edim_objective_workspace.restype = _INT64
        library.edim_objective_isa_name.restype = ctypes.c_char_p
        runs = [isa for isa in range(4) if library.edim_objective_has_isa(isa)]
        self.isas: dict[str, int] = {
            library.edim_objective_isa_name(isa).decode(): isa for isa in runs
        }
        self.isa = int(library.edim_objective_best_isa())
        for name in ("workspace", "loss", "best", "sample"):
            getattr(library, f"edim_objective_{name}").argtypes = [ctypes.POINTER(_Job)]

    @property
    def isa_name(self) -> str:
        """The form in use."""
        return {isa: name for name, isa in self.isas.items()}[self.isa]

    def run(self, function: str, job: _Job, problem: Problem) -> None:
        """Check ranges, give the job its workspace, run it.

        Raises
        ------
        ObjectiveError
            A length, target or partial alignment is out of range.
        """
        job.isa = self.isa
        size = self._library.edim_objective_workspace(job)
        if size < 0:
            check_ranges(problem)
            raise AssertionError("the kernel refused what check_ranges lets pass")
        job.n_threads = min(torch.get_num_threads(), job.batch)
        job.workspace_size = size
        memory = torch.empty(job.n_threads * size + 64, dtype=torch.uint8, device="cpu")
        job.workspace = (memory.data_ptr() + 63) // 64 * 64
        getattr(self._library, f"edim_objective_{function}")(job)


def _load() -> NativeLibrary | None:
    """The kernels, or None where they were not built; that is logged."""
    paths = sorted(Path(__file__).parent.glob(f"{LIBRARY_STEM}.*"))
    reason = "they were not built: no C compiler was found when edge-imputer was installed"
    for path in paths:
        try:
            return NativeLibrary(path)
        except (OSError, AttributeError) as error:  # no library, or not ours
            reason = str(error)
    LOG.warning(
        "the Imputer objective runs without its C kernels (%s); it is then several times "
        "slower, and float32 gradients are torch's: off by 1e-2 on long audio",
        reason,
    )
    return None


NATIVE = _load()
"""The kernels, or None; loaded, and missed, once a process."""


def _rows_in_place(logits: Tensor) -> Tensor:
    """Logits whose rows are contiguous: as they are if they can be, else a copy."""
    return logits if logits.stride(2) == 1 else logits.contiguous()


def _make_job(problem: Problem, logits: Tensor) -> tuple[_Job, list[Tensor]]:
    """The job's questions, and tensors that have to outlive it."""
    targets, input_lengths, target_lengths = (
        tensor.contiguous()
        for tensor in (problem.targets, problem.input_lengths, problem.target_lengths)
    )
    partial = problem.partial
    job = _Job(
        logits=logits.data_ptr(),
        logits_stride_b=logits.stride(0),
        logits_stride_t=logits.stride(1),
        targets=targets.data_ptr(),
        targets_stride_b=targets.stride(0),
        partial=partial.data_ptr(),
        partial_stride_b=partial.stride(0),
        partial_stride_t=partial.stride(1),
        input_lengths=input_lengths.data_ptr(),
        target_lengths=target_lengths.data_ptr(),
        batch=logits.shape[0],
        n_frames=logits.shape[1],
        n_tokens=logits.shape[2],
        longest=targets.shape[1],
        blank=problem.blank_id,
        is_double=logits.dtype == torch.float64,
        is_state=problem.states,
    )
    return job, [logits, targets, input_lengths, target_lengths, partial]


def loss_and_gradient(
    native: NativeLibrary, problem: Problem, weight: Tensor | None, *, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses (B,) in the logits' type, and `weight` (B,) times their gradients, (B, T, V).

    The gradient has the logits' layout. It is empty, (0,), if not asked for.
    """
    logits = _rows_in_place(problem.logits.detach())
    job, alive = _make_job(problem, logits)
    losses = torch.empty(logits.shape[0], dtype=torch.float64, device="cpu")
    job.loss = losses.data_ptr()
    gradients = torch.empty_like(logits) if gradient else logits.new_empty(0)
    if gradient:
        job.gradient = gradients.data_ptr()
        job.gradient_stride_b, job.gradient_stride_t = gradients.stride()[:2]
    if weight is not None:
        weight = weight.to(torch.float64).contiguous()
        job.weight = weight.data_ptr()
    native.run("loss", job, problem)
    del alive
    return losses.to(logits.dtype), gradients


def best_states(native: NativeLibrary, problem: Problem) -> Tensor:
    """Most probable CTC states, int64 (B, T); -1 where no path agrees."""
    job, alive = _make_job(problem, _rows_in_place(problem.logits.detach()))
    states = torch.empty(problem.logits.shape[:2], dtype=torch.int64, device="cpu")
    job.states = states.data_ptr()
    native.run("best", job, problem)
    del alive
    return states


def sample_states(native: NativeLibrary, problem: Problem, uniforms: Tensor) -> Tensor:
    """CTC states drawn from the posterior, int64 (N, B, T), one a row of `uniforms`, (N, B, T)."""
    job, alive = _make_job(problem, _rows_in_place(problem.logits.detach()))
    uniforms = uniforms.to(torch.float64).contiguous()
    states = torch.empty(uniforms.shape, dtype=torch.int64, device="cpu")
    job.uniforms, job.n_samples, job.states = uniforms.data_ptr(), len(uniforms), states.data_ptr()
    native.run("sample", job, problem)
    del alive
    return states
