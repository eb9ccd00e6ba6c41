"""Bundles through another converter: in torch's own arithmetic, and in litert-torch where it is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_imputer.bundle import Bundle, file_records, write_manifest
from edge_imputer.errors import BackendError
from edge_imputer.export import oracle_backend
from edge_imputer.export.bundle import export_bundle, export_keyword_bundle
from edge_imputer.export.decoders import KINDS
from edge_imputer.export.graph import Array
from edge_imputer.export.oracle import (
    ENVIRONMENT,
    ORACLE,
    TorchStep,
    as_arrays,
    convert,
    quantise,
)
from edge_imputer.export.oracle_backend import load_oracle
from edge_imputer.export.verify import FLOAT, INTEGERS, verify
from edge_imputer.specs import FeatureSpec
from edge_imputer.train.checkpoint import Origin, checkpoint_from, pack
from edge_imputer.train.encoders import build_encoder
from edge_imputer.train.encoders.windowed import WindowedEncoder
from edge_imputer.train.imputer import ImputerHead
from edge_imputer.train.recipe import Recipe
from edge_imputer.train.tasks import KeywordTask, build_task
from edge_imputer.train.tasks.settings import CtcTaskSpec, ImputerTaskSpec, KeywordTaskSpec
from edge_imputer.train.trainer import write_training

from .conftest import ROOT
from .graphs import model_spec, waveforms
from .test_export_bundle import PROVENANCE
from .test_lowering import SMALL

SPEECH = model_spec()
MODELS = {
    "crnn": ImputerTaskSpec(head=SPEECH.head),
    "conformer": CtcTaskSpec(),
    "tcn": KeywordTaskSpec(keywords=("yes", "no")),
    "cnn-windowed": KeywordTaskSpec(keywords=("yes", "no")),
}


def bundle_of(name: str, folder: Path, *, trainable: bool = True) -> Bundle:
    """A bundle of a small model of random weights, as `export` writes it."""
    torch.manual_seed(0)
    features, settings, encoder = FeatureSpec(), MODELS[name], SMALL[name]
    tokens = () if isinstance(settings, KeywordTaskSpec) else (SPEECH.tokens,)
    spec = settings.make_spec(features, encoder, *tokens)
    recipe = Recipe(features=features, encoder=encoder, task=settings)
    weights = build_task(spec, settings).state_dict()
    origin = Origin(data="none", n_clips=0)
    checkpoint = checkpoint_from(pack(weights, spec, recipe, origin, 0), folder)

    def with_training(*graphs_and_folder: object) -> None:
        write_training(checkpoint, Path(str(graphs_and_folder[-1])))

    common = {
        "provenance": PROVENANCE,
        "calibration": waveforms(),
        "name": name,
        "licence": "Apache-2.0",
        "emitters": [with_training] if trainable else [],
    }
    if isinstance(checkpoint.task, KeywordTask):
        return export_keyword_bundle(folder, model=checkpoint.task.model, **common)
    modules = {"encoder": checkpoint.encoder, "head": checkpoint.head}
    return export_bundle(folder, spec=spec, **modules, **common)


def scores(bundle: Bundle, backend: object) -> list[Array]:
    decode = KINDS[type(bundle.spec)].decoder(bundle, backend)
    return [decode(waveform).scores for waveform in waveforms(2)]


# ------------------------------------------------------------------------------ in torch itself


class _TorchFile:
    """What a flawless converter would make of a step."""

    def __init__(self, step: TorchStep, path: Path) -> None:
        self._step = step

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        traced = zip(arrays, self._step.arguments, strict=True)
        return self._step.results([torch.from_numpy(a).to(t.dtype) for a, t in traced])


@pytest.fixture
def flawless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_backend, "convert", _TorchFile)
    monkeypatch.setenv(ENVIRONMENT.variable, sys.executable)


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_s_torch_modules_score_as_its_float_file(
    flawless: None, name: str, tmp_path: Path
) -> None:
    bundle = bundle_of(name, tmp_path / "bundle")
    theirs = scores(bundle, load_oracle(bundle))
    ours = scores(bundle, KINDS[type(bundle.spec)].load(bundle, "onnx-float"))
    for one, other in zip(theirs, ours, strict=True):
        assert one.size
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_verify_holds_it_to_the_float_model(flawless: None, tmp_path: Path) -> None:
    bundle = bundle_of("crnn", tmp_path / "bundle")
    found = verify(bundle, waveforms(), runtimes=[FLOAT, ORACLE], min_float_agreement=0.5)
    bounds = {(pair.first, pair.second): pair.bound for pair in found.pairs}
    assert bounds == {(INTEGERS, FLOAT): 0.5, (INTEGERS, ORACLE): 0.5, (FLOAT, ORACLE): 0.99}
    assert found.identical == {}
    assert not any(ORACLE in line and FLOAT in line for line in found.exceeded)


def test_other_weights_are_told(flawless: None, tmp_path: Path) -> None:
    bundle = bundle_of("crnn", tmp_path / "bundle")
    path = bundle.path / "weights.npz"
    with np.load(path) as found:
        arrays = dict(found)
    arrays["head.output.bias"] = np.array([-50.0, *[50.0] * 5], np.float32)  # never silent
    np.savez(path, **arrays)
    write_manifest(
        bundle.path, msgspec.structs.replace(bundle.manifest, files=file_records(bundle.path))
    )
    found = verify(
        Bundle.load(bundle.path), waveforms(), runtimes=[FLOAT, ORACLE], min_float_agreement=0
    )
    assert found.exceeded == [
        f"{FLOAT} and {ORACLE}: the same text for 0 of 3 clips, expected 99.0%"
    ]


def test_without_weights_or_an_environment_it_is_absent(
    flawless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of("crnn", tmp_path / "bundle", trainable=False)
    found = verify(bundle, waveforms(1), runtimes=[ORACLE])
    assert "the bundle has no weights.npz" in found.absent[ORACLE]
    monkeypatch.setenv(ENVIRONMENT.variable, str(tmp_path / "python"))
    found = verify(bundle, waveforms(1), runtimes=[ORACLE])
    assert "found no file" in found.absent[ORACLE]


def step_of(name: str) -> TorchStep:
    torch.manual_seed(0)
    if name == "head":
        return TorchStep.of_head(ImputerHead(10, SPEECH.head, SPEECH.tokens).eval(), 10)
    encoder = build_encoder(SMALL[name], FeatureSpec()).eval()
    if isinstance(encoder, WindowedEncoder):
        return TorchStep.of_window(encoder)
    return TorchStep.of_stream(encoder, encoder.step_features, encoder.n_mels)


def test_the_program_that_goes_there_computes_the_same(tmp_path: Path) -> None:
    """Of each state by itself: a GRU's layers begin with one tensor of zeros between them."""
    step = step_of("crnn")
    step.write_program(tmp_path / "x.pt2")
    program = torch.export.load(tmp_path / "x.pt2").module()
    for arguments in step.calls(3):
        with torch.no_grad():
            results = program(*arguments)
        for result, expected in zip(results, step.results(arguments), strict=True):
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


# ------------------------------------------------------------------------------ in litert-torch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crnn", "conformer", "head"])
def test_its_files_compute_what_torch_does(litert_torch: None, name: str, tmp_path: Path) -> None:
    step = step_of(name)
    floats = convert(step, tmp_path / "x.tflite")
    ints = quantise(step, floats.path, tmp_path / "x.int8.tflite")
    assert "int8" in {array.dtype.name for array in ints.feeds(as_arrays(step.arguments))}
    for arguments in step.calls(3):
        arrays, wanted = as_arrays(arguments), step.results(arguments)
        for result, expected in zip(floats.run(arrays), wanted, strict=True):
            np.testing.assert_allclose(result, expected, atol=1e-4)
        rough = ints.run(arrays)
        assert [one.shape for one in rough] == [one.shape for one in wanted]
        assert np.corrcoef(rough[0].ravel(), wanted[0].ravel())[0, 1] > 0.8


@pytest.mark.slow
def test_a_module_that_it_cannot_convert_is_an_error(litert_torch: None, tmp_path: Path) -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.linalg.svd(x)[1],)

    with pytest.raises(BackendError, match="litert-torch could not convert it: "):
        convert(TorchStep(Inverse(), (torch.eye(3),)), tmp_path / "x.tflite")


@pytest.mark.slow
def test_verify_with_it(litert_torch: None, tmp_path: Path) -> None:
    bundle = bundle_of("crnn", tmp_path / "bundle")
    found = verify(bundle, waveforms(), runtimes=[FLOAT, ORACLE], min_float_agreement=0)
    assert (found.absent, found.exceeded) == ({}, [])
    assert {(pair.first, pair.second) for pair in found.pairs} > {(FLOAT, ORACLE)}


@pytest.mark.slow
def test_its_environment_has_the_pinned_versions(litert_torch: None) -> None:
    def pins(file: str) -> dict[str, str]:
        text = (ROOT / file).read_text("utf-8")
        return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))

    ours, pinned = pins("constraints.txt"), pins("constraints-litert.txt")
    assert ours["torch"] == pinned["torch"]  # one writes a program that the other reads
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    found = subprocess.run(
        [ENVIRONMENT.find_python(), "-c", code, *pinned],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = [version.split("+")[0] for version in found.stdout.split()]
    assert versions == list(pinned.values())
