"""The bundle: a folder with ``manifest.json`` and the model files. The only thing passed on.

Reading fills in nothing: an unknown or missing key, a newer schema, a missing file or another
sha256 is an error that says so. An older schema is migrated by an explicit function in
`MIGRATIONS`.

::

    bundle/
      manifest.json        every field below
      MODEL_CARD.md        generated from the manifest
      onnx/encoder.onnx, onnx/imputer.onnx               float32
      onnx/encoder.int8.onnx, onnx/imputer.int8.onnx     int8, QDQ
      onnx/encoder.int8.ort, onnx/imputer.int8.ort       int8, if asked for (export --ort)
      tflite/encoder.tflite, tflite/imputer.tflite       int8
      native/edim_model.c, native/edim_model.h           the same integers as C99 tables
      native/edim_kernels.c, native/edim_kernels.h       the kernels they call
      native/edge_imputer.c, native/edge_imputer.h       the interface of the C code
      weights.npz                                        float32, to train on from (--init-from)
      recipe.json                                        what they were trained by
      ranges.json                                        by which they were quantised in training

Of a keyword model there is one graph, ``keywords``, in place of ``encoder`` and ``imputer``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from . import __version__
from .errors import BundleIntegrityError, BundleNotFoundError, BundleSchemaError
from .files import write_atomically
from .measured import Interval, Metrics, OperatingPoint, Record
from .quantization import QuantParams
from .specs import AnyModelSpec, KeywordModelSpec

__all__ = [
    "MANIFEST_NAME",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "Bundle",
    "FileRecord",
    "GraphName",
    "GraphRecord",
    "Interval",
    "Manifest",
    "Metrics",
    "OperatingPoint",
    "Provenance",
    "TensorRecord",
    "file_records",
    "parse_manifest",
    "write_manifest",
]

SCHEMA_VERSION = 5
MANIFEST_NAME = "manifest.json"


GraphName = Literal["encoder", "imputer", "keywords"]


class TensorRecord(Record, frozen=True, kw_only=True):
    """One input or output of a model, in the order the model takes them."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["int8", "int32"]
    quant: QuantParams | None  # None for token ids


class GraphRecord(Record, frozen=True, kw_only=True):
    """One of the models: an encoder and its head, or a keyword model, which is one.

    Outputs `states` feed back into the inputs of the same position.
    """

    name: GraphName
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    n_states: int  # the last n inputs and the last n outputs are the streaming state
    macs: int  # multiply-accumulates in one call
    arena_bytes: int  # scratch memory the native code needs for one call
    weight_bytes: int


class Provenance(Record, frozen=True, kw_only=True):
    """Where the model comes from."""

    data: str
    n_clips: int
    seed: int
    updates: int
    checkpoint_sha256: str
    created_by: str


class FileRecord(Record, frozen=True, kw_only=True):
    """Integrity of one file of the bundle."""

    sha256: str
    bytes: int


class Manifest(Record, frozen=True, kw_only=True):
    """``manifest.json``, schema version 5."""

    schema_version: int
    minimum_runtime_version: str
    name: str
    spec: AnyModelSpec
    graphs: tuple[GraphRecord, ...]  # encoder and imputer, or keywords, by the kind of spec
    keyword_threshold: float | None  # of any word, chosen on the validation split, or None
    operating_point: OperatingPoint | None  # of certain keywords, for a rate of false alarms
    metrics: Metrics
    licence: str
    provenance: Provenance
    files: dict[str, FileRecord]

    def graph(self, name: str) -> GraphRecord:
        """The record of the ``encoder``, ``imputer`` or ``keywords`` model."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise BundleSchemaError(f"expected a graph named {name!r} in the manifest, found none")


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 2 says what the head is made of and in which order it commits frames.

    Before, it was convolutions, by confidence.
    """
    spec = raw["spec"]
    new = {"mixer": "conv", "heads": 4, "context": 8, "order": "confidence"}
    head = {**spec["head"], **new}
    return {**raw, "schema_version": 2, "spec": {**spec, "head": head}}


def _from_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 3 has an operating point, and names the kind of its features.

    Before, nobody measured one, and there were no features but log-mel.
    """
    spec = raw["spec"]
    features = {"kind": "log-mel", **spec["features"]}
    new = {"schema_version": 3, "spec": {**spec, "features": features}, "operating_point": None}
    return {**raw, **new}


def _from_3(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 4 has keyword models too, and names the kind of a model.

    Before, all wrote down speech.
    """
    return {**raw, "schema_version": 4, "spec": {"kind": "speech", **raw["spec"]}}


def _from_4(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 5 says how many passes of a head are revisions.

    Before, there were none. A keyword model has no head.
    """
    spec = raw["spec"]
    if spec["kind"] == "speech":
        spec = {**spec, "head": {**spec["head"], "revisions": 0}}
    return {**raw, "schema_version": 5, "spec": spec}


# By version, to the next one.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
}


class Bundle:
    """A verified bundle on disk.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def spec(self) -> AnyModelSpec:
        """The model's specification."""
        return self.manifest.spec

    def file(self, name: str) -> Path:
        """Path of a model file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleIntegrityError(
                f"{self.path}: the bundle has no {name}; it holds {sorted(self.manifest.files)}. "
                "Export it again with the emitter you need"
            )
        return self.path / name

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and verify a bundle.

        Raises
        ------
        BundleNotFoundError, BundleSchemaError, BundleIntegrityError
        """
        folder = Path(path)
        manifest_path = folder / MANIFEST_NAME
        if not manifest_path.is_file():
            raise BundleNotFoundError(
                f"expected a bundle folder with {MANIFEST_NAME}, found none at {folder}; "
                "make one with: edge-imputer export CHECKPOINT --out FOLDER"
            )
        manifest = parse_manifest(manifest_path.read_bytes(), source=str(manifest_path))
        for name, record in manifest.files.items():
            _verify(folder, name, record)
        return cls(folder, manifest)


def parse_manifest(data: bytes, *, source: str) -> Manifest:
    """Decode a manifest, migrating an older schema and refusing everything else unexpected."""
    try:
        raw = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise BundleSchemaError(f"{source}: not JSON ({error})") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise BundleSchemaError(f"{source}: expected an integer schema_version, got {version!r}")
    if version > SCHEMA_VERSION:
        raise BundleSchemaError(
            f"{source}: schema_version {version} is newer than {SCHEMA_VERSION}, the newest that "
            f"edge-imputer {__version__} reads; upgrade with: pip install -U edge-imputer"
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise BundleSchemaError(f"{source}: schema_version {version} is not known")
        try:
            raw = MIGRATIONS[version](raw)
        except (KeyError, TypeError) as error:
            raise BundleSchemaError(
                f"{source}: a manifest of schema_version {version} without {error}; "
                "export the model again"
            ) from error
        version += 1
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise BundleSchemaError(f"{source}: {error}") from error
    missing = _missing_keys(msgspec.to_builtins(manifest), raw)
    if missing:
        raise BundleSchemaError(
            f"{source}: missing {', '.join(missing)}; a manifest has every field, no default is "
            "filled in. Export the model again"
        )
    if _version(manifest.minimum_runtime_version) > _version(__version__):
        raise BundleSchemaError(
            f"{source}: needs edge-imputer >= {manifest.minimum_runtime_version}, this is "
            f"{__version__}; upgrade with: pip install -U edge-imputer"
        )
    manifest.spec.check()
    manifest.spec.check_streaming()
    _check_graphs(manifest, source)
    return manifest


def _check_graphs(manifest: Manifest, source: str) -> None:
    """Refuse graphs that are not those of the kind of model."""
    wanted: tuple[GraphName, ...] = ("encoder", "imputer")
    if isinstance(manifest.spec, KeywordModelSpec):
        wanted = ("keywords",)
    found = tuple(graph.name for graph in manifest.graphs)
    if found != wanted:
        raise BundleSchemaError(
            f"{source}: expected the graphs {' and '.join(wanted)} for this kind of model, got "
            f"{', '.join(found) or 'none'}; export the model again"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in one step, so that an interrupted run leaves no half file."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_atomically(folder / MANIFEST_NAME, text)


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Records of every file below a bundle folder but the manifest itself."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            sha256=_sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def _verify(folder: Path, name: str, record: FileRecord) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BundleIntegrityError(f"{folder}: {name!r} points outside the bundle; do not use it")
    if not path.is_file():
        raise BundleIntegrityError(
            f"{folder}: {name} is listed in the manifest but missing; copy the whole folder again"
        )
    found = _sha256(path)
    if found != record.sha256:
        raise BundleIntegrityError(
            f"{path}: expected sha256 {record.sha256}, got {found}; the file was altered or cut "
            "short. Copy it again or export the model again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise BundleSchemaError(f"expected a version such as 0.1.0, got {text!r}") from None


def _missing_keys(full: Any, raw: Any, prefix: str = "") -> list[str]:
    """Keys that decoding filled in with a default."""
    if isinstance(full, dict) and isinstance(raw, dict):
        missing = []
        for key, value in full.items():
            where = f"{prefix}{key}"
            missing += _missing_keys(value, raw[key], f"{where}.") if key in raw else [where]
        return missing
    if isinstance(full, list | tuple) and isinstance(raw, list | tuple):
        return [
            name
            for index, (a, b) in enumerate(zip(full, raw, strict=True))
            for name in _missing_keys(a, b, f"{prefix}{index}.")
        ]
    return []
