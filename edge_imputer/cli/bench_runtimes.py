"""``edge-imputer bench runtimes``: every preset in every runtime, and what the largest one costs
to export."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.progress import track

from ..backends.native_library import find_compiler
from ..errors import BackendError, EdgeImputerError, require
from ..specs import preset
from ..specs.windowed import WindowedSpec
from .show import say, table

if TYPE_CHECKING:
    from edge_imputer.export.benchmark import Row
    from edge_imputer.export.graph import Graph
    from edge_imputer.firmware_bridge.compiled import CompiledGraph

LARGEST = "conformer-l"


def bench_runtimes(presets: Sequence[str] = ()) -> dict[str, Any]:
    """CPU time of presets in onnxruntime, LiteRT, TFLite Micro and as native C, one thread.

    Parameters
    ----------
    presets : names; the benchmark's own choice if empty
    """
    require("torch", extra="train")
    require("ai_edge_litert.schema_py_generated", extra="export")
    from edge_imputer.export import benchmark
    from edge_imputer.export.oracle import ENVIRONMENT
    from edge_imputer.train.benchmark import processor

    for name in presets:
        preset(name)  # a wrong one is said before minutes of measuring
    chosen = list(presets or benchmark.DEFAULT_PRESETS)
    compile_graph = _compiled if _has_compiler() else None
    rows: list[Row] = []
    for name in track(chosen, "measuring"):
        with tempfile.TemporaryDirectory() as folder:
            rows += benchmark.measure(name, Path(folder), compile_graph)
    print(f"{processor()}; one thread, called from Python")
    _show(rows)
    cost = export_apart(LARGEST)
    absence = ENVIRONMENT.absence()
    if absence is not None:
        say(f"no row of litert-torch: {absence}")
    beside = benchmark.beside_oracle(rows)
    for row in beside:
        ratios = ", ".join(
            f"{dtype} {row[key]:.2f}"
            for dtype in (benchmark.FLOAT, benchmark.INT8)
            if (key := f"{dtype}_ratio") in row
        )
        say(f"{row['preset']}: our files take of the time of litert-torch's: {ratios}.")
    say(
        f"Export of {LARGEST}: {cost['export_s']:.1f} s of one core, "
        f"{cost['export_peak_mb']:,.0f} MB of memory at most."
    )
    return {
        **cost,
        "export_preset": LARGEST,
        "beside_litert_torch": beside,
        "measured_on": processor(),
        "rows": msgspec.to_builtins(rows),
    }


def export_cost(name: str) -> dict[str, float]:
    """Export a preset with random weights: CPU seconds, and this process' most memory so far."""
    from .benches import untrained_bundle

    encoder = preset(name)
    if isinstance(encoder, WindowedSpec):
        raise EdgeImputerError(f"expected an encoder that streams, got {name}")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        untrained_bundle(Path(folder) / "bundle", encoder)
    seconds = time.process_time() - start
    return {"export_s": round(seconds, 2), "export_peak_mb": round(_peak_mb(), 1)}


def _peak_mb() -> float:
    """The most memory that was resident in this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # what Linux counts for `getrusage` has what the parent held in it
        found = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return int(found["VmHWM"].split()[0]) * 1024 / 1e6
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else kB
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def export_apart(name: str) -> dict[str, float]:
    """`export_cost` in a process of its own, which nothing else has filled before."""
    code = f"import json, {__name__} as m; print(json.dumps(m.export_cost({name!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeImputerError(f"could not export {name}: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _has_compiler() -> bool:
    try:
        find_compiler()
    except BackendError as error:
        say(f"no row of native C: {error}")
        return False
    return True


def _compiled(graph: Graph) -> CompiledGraph:
    from edge_imputer.firmware_bridge.compiled import CompiledGraph

    return CompiledGraph(graph)


def _show(rows: Sequence[Row]) -> None:
    for name in dict.fromkeys(row.preset for row in rows):
        mine = [row for row in rows if row.preset == name]
        table(
            f"{name}: median CPU time",
            ["runtime", "us a step", "ms a second of audio", "bytes", "as the reference"],
            [
                (
                    f"{row.runtime} {row.dtype}",
                    "refused" if row.us_per_step is None else f"{row.us_per_step:,.1f}",
                    "" if row.ms_per_s_audio is None else f"{row.ms_per_s_audio:.2f}",
                    f"{row.bytes:,}",
                    {True: "yes", False: "no", None: ""}[row.agrees_with_reference],
                )
                for row in mine
            ],
        )
        for row in mine:
            if row.refusal is not None:
                say(f"{row.runtime} refuses {name}: {row.refusal}")
