"""The small model of `graphs` as a bundle, and what its manifest says of where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_imputer.bundle import Bundle, Provenance
from edge_imputer.export.bundle import export_bundle
from edge_imputer.firmware_bridge.emit import write_native

from .graphs import model_spec, modules, waveforms

PROVENANCE = Provenance(
    data="noise that swells",
    n_clips=3,
    seed=7,
    updates=11,
    checkpoint_sha256="ab" * 32,
    created_by="edge-imputer 0.1.0",
)


def export_small(out: Path, **changes: Any) -> Bundle:
    """Export it, with all artefacts; `small_bundle` of conftest.py is one that tests share."""
    spec = model_spec()
    encoder, head = modules(spec)
    fields: dict[str, Any] = {
        "encoder": encoder,
        "head": head,
        "spec": spec,
        "provenance": PROVENANCE,
        "calibration": waveforms(),
        "name": "small",
        "licence": "Apache-2.0",
        "emitters": [write_native],
    }
    return export_bundle(out, **(fields | changes))
