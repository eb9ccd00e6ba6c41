"""Serves litert-torch to another Python over stdin and stdout; see `oracle`.

litert-torch's pins contradict those of this project, so it lives in an environment of its own. This
file is run there as a script and imports nothing of this project.

A request is a line of JSON: ``{"convert": FILE.pt2, "to": FILE}`` writes what its converter makes
of an exported program; ``{"quantise": FILE, "to": FILE, "calibration": FILE.npz}`` what its
quantiser makes of such a file, every operation that it can in int8. The arrays are the inputs of
calls, by their names in the signature, stacked. Answers are a line each; ``"error"`` says what
failed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe

Request = dict[str, Any]
SIGNATURE = "serving_default"


def convert(request: Request) -> None:
    """Write a float32 .tflite file of an exported program."""
    program = torch.export.load(request["convert"])
    arguments, _ = program.example_inputs
    with torch.no_grad():
        litert_torch.convert(program.module(), arguments).export(request["to"])


def quantise(request: Request) -> None:
    """Write an int8 .tflite file of a float32 one."""
    with np.load(request["calibration"]) as stacked:
        arrays = dict(stacked)
    n_calls = min(map(len, arrays.values()))
    calls = [{name: array[k] for name, array in arrays.items()} for k in range(n_calls)]
    maker = quantizer.Quantizer(request["quantise"])
    maker.load_quantization_recipe(recipe.static_wi8_ai8())
    result = maker.quantize(maker.calibrate({SIGNATURE: calls}, num_threads=1))
    result.export_model(request["to"], overwrite=True)


def main() -> None:
    """Answer until stdin ends."""
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # both libraries report their progress on stdout, where answers go
    for line in iter(stdin.readline, b""):
        request = json.loads(line)
        try:
            (convert if "convert" in request else quantise)(request)
            answer: Request = {}
        except Exception as error:  # whatever a converter raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        stdout.write(json.dumps({**answer, "bytes": 0}).encode() + b"\n")
        stdout.flush()


if __name__ == "__main__":
    main()
