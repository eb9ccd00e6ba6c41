"""The bundle: what was written is read, what was touched is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_imputer import bundle as bundle_module
from edge_imputer.bundle import Bundle, FileRecord, Interval, file_records, parse_manifest
from edge_imputer.errors import (
    BundleError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundleSchemaError,
    SpecError,
)

from .fakes import small_spec, write_bundle


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest behind the back of the code that writes it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    interval = Interval(value=0.5, low=0.4, high=0.6, n=10)
    written = write_bundle(tmp_path, keyword_threshold=0.25)
    metrics = msgspec.structs.replace(written.metrics, digit_accuracy=interval)
    written = write_bundle(tmp_path, keyword_threshold=0.25, metrics=metrics)
    loaded = Bundle.load(str(tmp_path))
    assert loaded.manifest == written
    assert loaded.spec == small_spec()
    assert loaded.file("onnx/encoder.onnx").read_bytes() == b"onnx/encoder.onnx"
    assert loaded.manifest.graph("imputer").inputs[1].quant is None


def test_records_of_a_folder_are_those_of_its_manifest(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    assert file_records(tmp_path) == manifest.files


def test_writing_leaves_no_other_file(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "onnx"]


def test_no_bundle_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleNotFoundError, match="edge-imputer export") as caught:
            Bundle.load(path)
        assert isinstance(caught.value, (FileNotFoundError, BundleError))


@pytest.mark.parametrize("content", [b"onnx/encoder.onny", b"", b"onnx/encoder.onnx "])
def test_altered_file(tmp_path: Path, content: bytes) -> None:
    write_bundle(tmp_path)
    (tmp_path / "onnx/encoder.onnx").write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=r"expected sha256 .*, got"):
        Bundle.load(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "onnx/imputer.onnx").unlink()
    with pytest.raises(BundleIntegrityError, match=r"onnx/imputer\.onnx is listed"):
        Bundle.load(tmp_path)


def test_file_that_is_not_listed(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with pytest.raises(BundleIntegrityError, match=r"no tflite/encoder.tflite; it holds"):
        Bundle.load(tmp_path).file("tflite/encoder.tflite")


@pytest.mark.parametrize("name", ["../outside.bin", "onnx/../../outside.bin", "{absolute}"])
def test_paths_that_leave_the_bundle(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"x")
    folder = tmp_path / "bundle"
    folder.mkdir()
    (record,) = (r for n, r in file_records(tmp_path).items() if n == "outside.bin")
    name = name.replace("{absolute}", str(outside))
    write_bundle(folder, files={name: record})
    with pytest.raises(BundleIntegrityError, match="points outside the bundle"):
        Bundle.load(folder)


def test_link_that_leaves_the_bundle(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"x")
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "inside.bin").symlink_to(outside)
    record = FileRecord(sha256=file_records(tmp_path)["outside.bin"].sha256, bytes=1)
    write_bundle(folder, files={"inside.bin": record})
    with pytest.raises(BundleIntegrityError, match="points outside the bundle"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=6), r"schema_version 6 is newer than 5.*pip install -U"),
        (lambda m: m.update(schema_version=0), "schema_version 0 is not known"),
        (lambda m: m.update(schema_version="1"), "expected an integer schema_version, got '1'"),
        (lambda m: m.pop("schema_version"), "got None"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m["spec"]["features"].update(colour="red"), "colour"),
        (lambda m: m["graphs"][0]["inputs"][0].update(colour="red"), "colour"),
        (lambda m: m.pop("licence"), "licence"),
        (lambda m: m.pop("keyword_threshold"), "keyword_threshold"),
        (lambda m: m.pop("operating_point"), "operating_point"),
        (lambda m: m["spec"].pop("kind"), "kind"),
        (lambda m: m["spec"].update(kind="vision"), "vision"),
        (lambda m: m["spec"].pop("flush_ms"), r"missing spec\.flush_ms; .*no default"),
        (lambda m: m["spec"]["head"].pop("revisions"), r"missing spec\.head\.revisions"),
        (lambda m: m["spec"]["features"].pop("log_floor"), r"missing spec\.features\.log_floor"),
        (
            lambda m: m["spec"]["encoder"]["conv"][1].pop("stride_time"),
            r"missing spec\.encoder\.conv\.1\.stride_time",
        ),
        (lambda m: m["spec"]["encoder"].pop("kind"), "kind"),
        (lambda m: m["spec"]["encoder"].update(kind="transformer"), "transformer"),
        (lambda m: m["graphs"][1]["inputs"][0].pop("quant"), "quant"),
        (lambda m: m["metrics"].pop("wer"), "wer"),
        (lambda m: m["graphs"][0].update(macs="many"), "macs"),
        (lambda m: m["graphs"][0].update(name="decoder"), "decoder"),
        (lambda m: m.update(minimum_runtime_version="99.0"), r"needs edge-imputer >= 99\.0"),
        (lambda m: m.update(minimum_runtime_version="new"), "a version such as"),
    ],
)
def test_manifests_that_are_not_ours(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_bundle(tmp_path)
    Bundle.load(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(BundleSchemaError, match=message):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_manifest_that_is_no_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleSchemaError, match=r"manifest\.json"):
        Bundle.load(tmp_path)


def test_specs_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    edit(tmp_path, lambda m: m["spec"]["head"].update(schedule=[1]))
    with pytest.raises(SpecError, match="schedule"):
        Bundle.load(tmp_path)


def test_an_older_schema_is_migrated_by_its_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_bundle(tmp_path)

    def from_0(raw: dict[str, Any]) -> dict[str, Any]:
        return {**raw, "schema_version": 1, "licence": raw["license"]} | {"license": None}

    def without_old_keys(raw: dict[str, Any]) -> dict[str, Any]:
        new = from_0(raw)
        del new["license"]
        return new

    def age(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 0
        manifest["license"] = manifest.pop("licence")
        del manifest["operating_point"]  # which versions 1 and 2 do not have
        del manifest["spec"]["features"]["kind"], manifest["spec"]["kind"]
        # Version 1 has none of these either.
        for key in ("mixer", "heads", "context", "order", "revisions"):
            del manifest["spec"]["head"][key]

    edit(tmp_path, age)
    monkeypatch.setitem(bundle_module.MIGRATIONS, 0, without_old_keys)
    assert Bundle.load(tmp_path).manifest == written
    monkeypatch.setitem(bundle_module.MIGRATIONS, 0, from_0)
    with pytest.raises(BundleSchemaError, match="license"):  # what it forgets is not let through
        Bundle.load(tmp_path)


def test_version_1_had_convolutions_and_committed_by_confidence(tmp_path: Path) -> None:
    written = write_bundle(tmp_path)

    def age(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 1
        del manifest["operating_point"], manifest["spec"]["features"]["kind"]
        del manifest["spec"]["kind"]
        for key in ("mixer", "heads", "context", "order", "revisions"):
            del manifest["spec"]["head"][key]

    edit(tmp_path, age)
    assert Bundle.load(tmp_path).manifest == written
    assert (written.spec.head.mixer, written.spec.head.order) == ("conv", "confidence")


def test_version_2_had_no_operating_point_and_log_mel_only(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, keyword_threshold=0.25)

    def age(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 2
        del manifest["operating_point"], manifest["spec"]["features"]["kind"]
        del manifest["spec"]["kind"], manifest["spec"]["head"]["revisions"]

    edit(tmp_path, age)
    assert Bundle.load(tmp_path).manifest == written
    assert written.operating_point is None


def test_version_3_had_no_keyword_models(tmp_path: Path) -> None:
    written = write_bundle(tmp_path)

    def age(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 3
        del manifest["spec"]["kind"], manifest["spec"]["head"]["revisions"]

    edit(tmp_path, age)
    assert Bundle.load(tmp_path).manifest == written
    assert written.spec == small_spec()


def test_version_4_had_no_revisions(tmp_path: Path) -> None:
    written = write_bundle(tmp_path)

    def age(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 4
        del manifest["spec"]["head"]["revisions"]

    edit(tmp_path, age)
    assert Bundle.load(tmp_path).manifest == written
    assert written.spec.head.revisions == 0


def test_a_broken_manifest_of_version_1_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    edit(tmp_path, lambda m: (m.update(schema_version=1), m.pop("spec")))
    with pytest.raises(BundleSchemaError, match="schema_version 1 without 'spec'"):
        Bundle.load(tmp_path)


def test_graphs_are_those_of_the_kind_of_model(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    with pytest.raises(BundleSchemaError, match="named 'keywords'"):
        manifest.graph("keywords")
    only_encoder = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1])
    with pytest.raises(BundleSchemaError, match=r"graphs encoder and imputer .*, got encoder;"):
        parse_manifest(msgspec.json.encode(only_encoder), source="here")
