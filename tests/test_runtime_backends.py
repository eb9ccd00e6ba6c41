"""onnxruntime and LiteRT as backends: one interface, honest errors, nothing modified."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_imputer.backends import Backend, load_backend
from edge_imputer.backends.base import Array
from edge_imputer.backends.litert import LiteRtModel, _no_greeting
from edge_imputer.backends.onnx import OnnxModel
from edge_imputer.bundle import Bundle
from edge_imputer.errors import BackendError, BundleIntegrityError, MissingExtraError
from edge_imputer.export.simulate import reference_backend
from edge_imputer.pipeline import StreamingDecoder

from .graphs import small_model, waveforms

NAMES = ("onnx", "onnx-float", "litert")


@pytest.fixture
def bundle(small_bundle: Bundle) -> Bundle:
    return small_bundle


@pytest.fixture(params=NAMES)
def backend(bundle: Bundle, request: pytest.FixtureRequest) -> Backend:
    return load_backend(bundle, request.param)


def features(bundle: Bundle, seed: int = 0) -> Array:
    spec = bundle.spec
    shape = (spec.encoder.subsampling, spec.features.n_mels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_shapes_and_dtypes(bundle: Bundle, backend: Backend) -> None:
    spec, dtype = bundle.spec, np.float32 if backend.name == "onnx-float" else np.int8
    state = backend.initial_state()
    out, new_state = backend.encoder_step(features(bundle), state)
    assert out.shape == (spec.step_frames, spec.encoder.d_model)
    assert out.dtype == dtype
    assert [(s.shape, s.dtype) for s in state] == [(s.shape, s.dtype) for s in new_state]
    context = backend.initial_context()
    assert context.shape == (spec.head.left_context, spec.encoder.d_model)
    assert context.dtype == dtype
    window = np.concatenate([context, np.tile(out, (spec.head.chunk_size, 1))])
    logits = backend.imputer_step(window, np.zeros(spec.head.window, np.int32))
    assert logits.shape == (spec.head.chunk_size, spec.tokens.vocabulary_size)
    assert logits.dtype == np.float32


def test_name_is_the_one_it_is_loaded_by(bundle: Bundle) -> None:
    assert [load_backend(bundle, name).name for name in NAMES] == list(NAMES)
    with pytest.raises(BackendError, match="expected a backend among"):
        load_backend(bundle, "tensorrt")


def test_initial_state_is_real_zero(bundle: Bundle, backend: Backend) -> None:
    record = bundle.manifest.graph("encoder")
    for tensor, state in zip(record.inputs[1:], backend.initial_state(), strict=True):
        assert tensor.quant is not None
        assert (state == (0 if state.dtype == np.float32 else tensor.quant.zero_point)).all()


def test_nothing_that_is_passed_in_is_modified(bundle: Bundle, backend: Backend) -> None:
    state, x = backend.initial_state(), features(bundle)
    for k in range(3):
        before = [s.copy() for s in state], x.copy()
        out, new_state = backend.encoder_step(x, state)
        kept = out.copy(), [s.copy() for s in new_state]
        again, _ = backend.encoder_step(x, state)
        backend.encoder_step(features(bundle, seed=k + 1), state)  # must not reach into `out`
        np.testing.assert_array_equal(again, out)
        np.testing.assert_array_equal(x, before[1])
        for a, b in zip([*state, out, *new_state], [*before[0], kept[0], *kept[1]], strict=True):
            np.testing.assert_array_equal(a, b)
        state = new_state


def test_initial_values_are_fresh_copies(backend: Backend) -> None:
    backend.initial_state()[0][...] = 7
    backend.initial_context()[...] = 7
    assert not (backend.initial_state()[0] == 7).any()
    assert not (backend.initial_context() == 7).any()


def test_one_backend_serves_several_streams_and_threads(bundle: Bundle, backend: Backend) -> None:
    audio = waveforms(4, seconds=0.5, seed=3)
    alone = [StreamingDecoder(bundle, backend=backend).decode(w) for w in audio]
    together: dict[int, object] = {}

    def work(k: int) -> None:
        together[k] = StreamingDecoder(bundle, backend=backend).decode(audio[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(audio))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, chunks in enumerate(alone):
        result = together[k]
        assert isinstance(result, list)
        for a, b in zip(chunks, result, strict=True):
            np.testing.assert_array_equal(a.alignment, b.alignment)
            np.testing.assert_array_equal(a.log_probs, b.log_probs)


def test_decoding_is_close_to_the_exact_integers(bundle: Bundle) -> None:
    spec = bundle.spec
    model = small_model()
    integers = reference_backend(model.encoder, model.imputer, spec)
    references = {
        "onnx": integers,
        "litert": integers,
        "onnx-float": reference_backend(model.float_encoder, model.float_imputer, spec),
    }
    for name, reference in references.items():
        state, exact = load_backend(bundle, name).initial_state(), reference.initial_state()
        for k in range(20):
            out, state = load_backend(bundle, name).encoder_step(features(bundle, k), state)
            wanted, exact = reference.encoder_step(features(bundle, k), exact)
            limit = 1e-5 if name == "onnx-float" else 4
            assert np.abs(out.astype(np.float64) - wanted).max() <= limit


def test_wrong_inputs_are_backend_errors(bundle: Bundle, backend: Backend) -> None:
    state, x = backend.initial_state(), features(bundle)
    with pytest.raises(BackendError, match="expected features of shape"):
        backend.encoder_step(x[:-1], state)
    with pytest.raises(BackendError, match="could not run"):
        backend.encoder_step(x, state[:-1])
    with pytest.raises(BackendError, match="could not run"):
        backend.encoder_step(x, (*state[:-1], state[-1][:, :-1]))
    with pytest.raises(BackendError, match="could not run"):
        backend.encoder_step(x, (*state[:-1], state[-1].astype(np.float64)))
    window = np.concatenate([backend.initial_context()] * 5)[: bundle.spec.head.window]
    ids = np.zeros(bundle.spec.head.window, np.int32)
    with pytest.raises(BackendError, match="could not run"):
        backend.imputer_step(window, ids.astype(np.int64))
    out, _ = backend.encoder_step(x, state)  # it still works
    assert out.shape == (bundle.spec.step_frames, bundle.spec.encoder.d_model)


@pytest.mark.parametrize("model", [OnnxModel, LiteRtModel])
def test_damaged_file_is_a_backend_error(tmp_path: Path, model: type) -> None:
    path = tmp_path / "model"
    for content in (b"", b"\0" * 64, b"not a model at all"):
        path.write_bytes(content)
        with pytest.raises(BackendError, match=f"could not load {path}"):
            model(path)


def test_missing_model_file_is_named(bundle: Bundle, tmp_path: Path) -> None:
    files = {k: v for k, v in bundle.manifest.files.items() if not k.startswith("tflite")}
    smaller = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files))
    with pytest.raises(BundleIntegrityError, match=r"the bundle has no tflite/encoder\.tflite"):
        load_backend(smaller, "litert")


def test_missing_litert_is_said_in_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-imputer\[litert\]'"):
        load_backend(bundle, "litert")


def test_runtimes_are_quiet(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("onnx", "onnx-float"):
        load_backend(bundle, name)
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    with pytest.raises(BackendError):
        OnnxModel(tmp_path / "bad.onnx")
    assert capfd.readouterr() == ("", "")


def test_integer_kernels_can_be_asked_for(bundle: Bundle) -> None:
    path = bundle.file("onnx/encoder.int8.onnx")
    graph = small_model().encoder
    inputs = [
        np.random.default_rng(0).integers(-128, 128, graph.tensors[n].shape).astype(np.int8)
        for n in graph.inputs
    ]
    results = [OnnxModel(path, integer_kernels=value).run(inputs) for value in (True, False, None)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 3


# ------------------------------------------------------------------------------ LiteRT's stderr


def test_litert_loads_without_a_word(bundle: Bundle) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edge_imputer.backends.litert import LiteRtModel\n"
        "LiteRtModel(Path(sys.argv[1]))\n"
        "print('own words', file=sys.stderr)\n"
    )
    done = subprocess.run(  # a process of its own: LiteRT prints its line once a process
        [sys.executable, "-c", program, str(bundle.file("tflite/encoder.tflite").resolve())],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "own words\n")


def test_other_words_on_stderr_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with _no_greeting():
            os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: a\n")
            raise RuntimeError("b")

    with pytest.raises(RuntimeError, match="b"):
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ERROR: a\nafter\n"


def test_no_stderr_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(fd: int) -> int:
        raise OSError(f"bad file descriptor {fd}")

    monkeypatch.setattr(os, "dup", closed)
    with _no_greeting():
        reached = True
    assert reached
