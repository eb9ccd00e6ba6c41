"""Serves tflite-runtime to another Python over stdin and stdout; see `tflite_runtime`.

tflite-runtime's last release needs numpy below 2 and Python below 3.12, so it lives in an
environment of its own. This file is run there as a script and imports nothing of this project.

A request is a line of JSON, then so many bytes as it says: ``{"open": path}`` loads a file,
``{"run": k, "bytes": n}`` calls the k-th one loaded with its inputs, one after the other.
``"close"`` lists models that are not called again. An answer has the same form; ``"error"`` says
what failed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter

Request = dict[str, Any]


def describe(details: list[Request]) -> list[tuple[list[int], str]]:
    """Shape and type of each."""
    return [([int(n) for n in d["shape"]], np.dtype(d["dtype"]).name) for d in details]


class Server:
    """The models that were loaded, by number."""

    def __init__(self) -> None:
        self.models: list[Interpreter | None] = []

    def answer(self, request: Request, content: bytes) -> tuple[Request, bytes]:
        """Do what is asked for."""
        for number in request.get("close", ()):
            self.models[number] = None
        if "open" in request:
            interpreter = Interpreter(model_path=request["open"], num_threads=1)
            interpreter.allocate_tensors()
            self.models.append(interpreter)
            return {
                "model": len(self.models) - 1,
                "inputs": describe(interpreter.get_input_details()),
                "outputs": describe(interpreter.get_output_details()),
            }, b""
        interpreter = self.models[request["run"]]
        assert interpreter is not None  # the other side calls no model that it has closed
        at = 0
        for detail in interpreter.get_input_details():
            size = int(np.prod(detail["shape"]))
            array = np.frombuffer(content, detail["dtype"], size, at).reshape(detail["shape"])
            interpreter.set_tensor(detail["index"], array)
            at += array.nbytes
        interpreter.invoke()
        outputs = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
        return {}, b"".join(array.tobytes() for array in outputs)


def main() -> None:
    """Answer until stdin ends."""
    server, stdin, stdout = Server(), sys.stdin.buffer, sys.stdout.buffer
    for line in iter(stdin.readline, b""):
        request = json.loads(line)
        content = stdin.read(request.get("bytes", 0))
        try:
            answer, result = server.answer(request, content)
        except (ValueError, RuntimeError, OSError) as error:  # the file, or the inputs
            answer, result = {"error": str(error)}, b""
        stdout.write(json.dumps({**answer, "bytes": len(result)}).encode() + b"\n" + result)
        stdout.flush()


if __name__ == "__main__":
    main()
