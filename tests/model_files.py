"""What model files say of themselves, as any program would read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
from ai_edge_litert import schema_py_generated as schema


def file_texts(path: Path) -> dict[str, Any]:
    """The metadata of an .onnx, .ort or .tflite file, decoded; all of it is JSON."""
    texts: dict[str, str | bytes]
    if path.suffix == ".tflite":
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        texts = {m.name.decode(): bytes(model.buffers[m.buffer].data) for m in model.metadata}
        del texts["min_runtime_version"]  # for TFLite's own tools
    else:
        texts = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    return {key: json.loads(text) for key, text in texts.items()}
