"""CPU time of writing down whole recordings, checkpoints side by side: what attention costs.

::

    python docs/tools/time_transcripts.py dense.ckpt local.ckpt --seconds 10 60 160 --out times.json

Time depends on a recording's length and not on what is said, so the recordings are noise. The
checkpoints take turns, and of each the median of several turns counts: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from edge_imputer.train.evaluation.torch_transcriber import open_transcriber


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0, 110.0, 160.0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {path: open_transcriber(path)[0] for path in options.checkpoints}
    rng = np.random.default_rng(0)
    rows = []
    for seconds in options.seconds:
        taken: dict[Path, list[float]] = {path: [] for path in models}
        for _ in range(options.turns):
            for path, model in models.items():
                n = round(seconds * model.sample_rate)
                noise = rng.normal(0, 0.05, n).astype(np.float32)
                start = time.process_time()
                model.text(noise)
                taken[path].append(time.process_time() - start)
        for path, times in taken.items():
            name = path.parent.name or path.stem
            rows.append({"model": name, "seconds": seconds, "cpu_s": median(times)})
            print(f"{name:20} {seconds:6.0f} s  {1000 * median(times):8.1f} ms")
    options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
