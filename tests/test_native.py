"""The C code of whole models: the reference's bytes, the graph's tables, nothing but memcpy."""

from __future__ import annotations

import ctypes
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge_imputer.backends import load_backend, native_library
from edge_imputer.backends.base import State
from edge_imputer.backends.native import ModelInfo, NativeBackend
from edge_imputer.backends.stepper import Stepper
from edge_imputer.bundle import Bundle, file_records
from edge_imputer.errors import BackendError, BundleIntegrityError, ExportError
from edge_imputer.export.build import build_graphs
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.graph import KINDS, Graph
from edge_imputer.export.op_params import op_params
from edge_imputer.export.quantize import quantise
from edge_imputer.export.reference import Interpreter
from edge_imputer.export.simulate import calibrate_and_quantise, graph_record, reference_backend
from edge_imputer.firmware_bridge.c_text import Names, float32
from edge_imputer.firmware_bridge.emit import write_native
from edge_imputer.firmware_bridge.placement import Place, Placement, scratch_bytes
from edge_imputer.firmware_bridge.step import Step
from edge_imputer.quantization import QuantParams, quantize
from edge_imputer.specs import ConvSpec, ModelSpec

from .c_layers import compile_graphs, run_graphs, separate
from .c_tools import compile_c, run, tool
from .fakes import write_bundle
from .graphs import (
    LAYERS,
    OTHER_MODELS,
    block_of_everything,
    int_layer,
    model_spec,
    modules,
    raw_int_layer,
    small_model,
    waveforms,
)
from .graphs import feeds as random_feeds

Int8 = npt.NDArray[np.int8]
SPECS = {
    "small": model_spec(),
    "two_gru_layers": model_spec(gru_layers=2, hidden=33, width=19, kernel=5),
    "no_conv_state": model_spec(
        (ConvSpec(channels=3, kernel_time=2), ConvSpec(channels=17, kernel_time=4, stride_freq=1))
    ),
    "two_blocks": model_spec(depth=1, kernel=1, chunk_blocks=2, hidden=64),
    **OTHER_MODELS,
    "wide": model_spec(
        (ConvSpec(channels=16), ConvSpec(channels=24)), n_mels=40, hidden=128, width=64, kernel=5
    ),
}


@dataclass
class Model:
    """A model in every form the tests need."""

    spec: ModelSpec
    encoder: Graph
    imputer: Graph
    bundle: Bundle
    backend: NativeBackend

    @property
    def native(self) -> Path:
        """Folder of the C code."""
        return self.bundle.path / "native"

    @property
    def c_files(self) -> list[Path]:
        """The C files of the model."""
        return sorted(self.native.glob("*.c"))

    def reference(self) -> Stepper:
        """The numpy reference."""
        return reference_backend(self.encoder, self.imputer, self.spec)


def native_bundle(folder: Path, spec: ModelSpec, encoder: Graph, imputer: Graph) -> Bundle:
    """A bundle with C code; its other models only look like some."""
    folder.mkdir(parents=True, exist_ok=True)
    arenas = write_native(encoder, imputer, folder)
    write_bundle(folder)
    records = tuple(graph_record(graph, arenas[graph.name]) for graph in (encoder, imputer))
    write_bundle(folder, spec=spec, graphs=records, files=file_records(folder))
    return Bundle.load(folder)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled models for this run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("gcc")
    monkeypatch.setenv("EDGE_IMPUTER_CACHE", str(cache))
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture(scope="module", params=SPECS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Model:
    """A quantised model with random weights."""
    tool("gcc")
    spec = SPECS[request.param]
    floats = build_graphs(*modules(spec), spec)
    graphs = calibrate_and_quantise(*floats, spec, waveforms())
    bundle = native_bundle(tmp_path_factory.mktemp(request.param), spec, *graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_IMPUTER_CACHE", str(cache))
        patch.delenv("CC", raising=False)
        backend = load_backend(bundle, "native")
    assert isinstance(backend, NativeBackend)
    return Model(spec, *graphs, bundle, backend)


def random_features(model: Model, n: int, seed: int) -> npt.NDArray[np.float32]:
    """Chunks of features that fill the int8 range, and saturate now and then."""
    quant = model.encoder.tensors[model.encoder.inputs[0]].quant
    assert quant is not None
    shape = (n, model.spec.step_features, model.spec.features.n_mels)
    q = np.random.default_rng(seed).normal(0, 80, shape)
    return ((q - quant.zero_point) * quant.scale).astype(np.float32)


def flat(state: State) -> Int8:
    """A state as one array, as the C code keeps it."""
    return np.concatenate([part.ravel() for part in state])


# ------------------------------------------------------------------------- the same integers


def test_encoder_stream_equals_reference(model: Model) -> None:
    reference = model.reference()
    state, expected_state = model.backend.initial_state(), reference.initial_state()
    np.testing.assert_array_equal(flat(state), flat(expected_state))
    for features in random_features(model, 60, seed=1):
        before = flat(state).copy()
        out, after = model.backend.encoder_step(features, state)
        expected_out, expected_state = reference.encoder_step(features, expected_state)
        np.testing.assert_array_equal(out, expected_out)
        np.testing.assert_array_equal(flat(after), flat(expected_state))
        np.testing.assert_array_equal(flat(state), before)  # not modified
        state = after


def test_imputer_passes_equal_reference(model: Model) -> None:
    reference, rng = model.reference(), np.random.default_rng(2)
    head, tokens = model.spec.head, model.spec.tokens
    np.testing.assert_array_equal(model.backend.initial_context(), reference.initial_context())
    for _ in range(40):
        window = rng.integers(-128, 128, (head.window, model.spec.encoder.d_model)).astype(np.int8)
        alignment = rng.integers(0, tokens.mask_id + 1, head.window).astype(np.int32)
        logits = model.backend.imputer_step(window, alignment)
        expected = reference.imputer_step(window, alignment)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, expected)


def test_interleaved_streams_and_threads_do_not_mix(model: Model) -> None:
    streams = [random_features(model, 30, seed) for seed in range(4)]

    def encode(features: npt.NDArray[np.float32]) -> list[Int8]:
        state, outs = model.backend.initial_state(), []
        for chunk in features:
            out, state = model.backend.encoder_step(chunk, state)
            outs.append(out)
        return outs

    alone = [encode(features) for features in streams]
    results: dict[int, list[Int8]] = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: encode(streams[k])}))
        for k in range(len(streams))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, expected in enumerate(alone):
        np.testing.assert_array_equal(results[k], expected)


def test_features_are_rounded_as_in_python(model: Model) -> None:
    quant = model.encoder.tensors[model.encoder.inputs[0]].quant
    assert quant is not None
    ties = (np.arange(-300, 300) / 2).astype(np.float32) * np.float32(quant.scale)
    around = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    big = np.array([np.inf, -np.inf, 3e38, -3e38, 1e20, 0.0, -0.0], np.float32)
    check_rounding(model.backend, quant, np.concatenate([ties, *around, big]))


@settings(max_examples=50, deadline=None)
@given(values=npst.arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=False)))
def test_any_features_are_rounded_as_in_python(
    model: Model, values: npt.NDArray[np.float32]
) -> None:
    quant = model.encoder.tensors[model.encoder.inputs[0]].quant
    assert quant is not None
    check_rounding(model.backend, quant, values)


def check_rounding(
    backend: NativeBackend, quant: QuantParams, values: npt.NDArray[np.float32]
) -> None:
    out = np.zeros(values.size, np.int8)
    arguments = (ctypes.c_void_p(values.ctypes.data), values.size, ctypes.c_void_p(out.ctypes.data))
    backend.library.edim_quantize_features(*arguments)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, quantize(values, quant))


def test_int8_and_real_interfaces_agree(model: Model) -> None:
    """`edim_encoder_step` on quantised features is what the backend's step computes."""
    backend, quant = model.backend, model.encoder.tensors[model.encoder.inputs[0]].quant
    assert quant is not None
    features = random_features(model, 1, seed=3)[0]
    expected, (after,) = backend.encoder_step(features, backend.initial_state())
    (state,) = backend.initial_state()
    out, arena = np.zeros_like(expected), np.zeros(backend.info.arena_bytes, np.int8)
    arrays = [quantize(features, quant), state, out, arena]
    backend.library.edim_encoder_step(*(ctypes.c_void_p(a.ctypes.data) for a in arrays))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(state, after)


# ----------------------------------------------------------------------------- what is written


def c_tables(source: str) -> dict[str, npt.NDArray[np.int64]]:
    """Every table of a C file by name."""
    pattern = re.compile(r"static const (int8|int32)_t (\w+)\[(\d+)\] = \{([^}]*)\};")
    tables = {}
    for kind, name, size, body in pattern.findall(source):
        body = re.sub(r"/\*.*?\*/", "", body)
        values = np.array([int(v) for v in body.split(",") if v.strip()], np.int64)
        assert values.size == int(size), name
        assert (values == values.astype(kind)).all(), name
        tables[name] = values
    return tables


def test_tables_are_the_arrays_of_the_graphs(model: Model) -> None:
    tables = c_tables((model.native / "edim_model.c").read_text())
    for graph in (model.encoder, model.imputer):
        constants = {name: t.data for name, t in graph.tensors.items() if t.data is not None}
        assert constants
        for name, data in constants.items():
            found = tables.pop(f"{graph.name}_{re.sub(r'[^0-9a-zA-Z]', '_', name)}")
            np.testing.assert_array_equal(found, data.ravel())
    derived = ("_weight_sum", "_multiplier", "_shift", "_table")
    assert all(name.endswith(derived) for name in tables)


def test_writing_again_gives_the_same_bytes(model: Model, tmp_path: Path) -> None:
    write_native(model.encoder, model.imputer, tmp_path)
    written = {p.name: p.read_bytes() for p in (tmp_path / "native").iterdir()}
    assert written == {p.name: p.read_bytes() for p in model.native.iterdir()}
    assert all(str(tmp_path).encode() not in text for text in written.values())
    assert all(b"\r" not in text for text in written.values())


def test_model_info_is_that_of_the_specification(model: Model) -> None:
    info, spec = model.backend.info, model.spec
    assert isinstance(info, ModelInfo)
    assert (info.window, info.chunk_size) == (spec.head.window, spec.head.chunk_size)
    assert info.vocabulary_size == info.mask_id == spec.tokens.mask_id
    arenas = [model.bundle.manifest.graph(name).arena_bytes for name in ("encoder", "imputer")]
    assert info.arena_bytes == max(arenas)
    states = [model.encoder.tensors[name] for name, _ in model.encoder.state_pairs]
    assert info.state_bytes == sum(int(np.prod(t.shape)) for t in states)


def test_nothing_is_overwritten_while_it_is_needed(model: Model) -> None:
    for graph in (model.encoder, model.imputer):
        nothing_is_overwritten(graph, separate(graph))


def nothing_is_overwritten(graph: Graph, plan: Placement) -> None:
    """Follow which tensor was last written to every byte of the arena, operation by operation."""
    written: npt.NDArray[np.object_] = np.full(plan.arena_bytes, None, object)
    for op in graph.ops:
        if op.output in plan.views:
            continue
        used = [plan.places[name] for name in op.inputs if name in plan.places]
        sizes = [size_of(graph, name) for name in op.inputs if name in plan.places]
        roots = [root(plan, name) for name in op.inputs if name in plan.places]
        if op.output in plan.scratch:
            used.append(Place("arena", plan.scratch[op.output]))
            sizes.append(scratch_bytes(graph, op))
            roots.append("scratch")
            written[used[-1].offset : used[-1].offset + sizes[-1]] = "scratch"
        target, size = plan.places[op.output], size_of(graph, op.output)
        for at, n, name in zip(used, sizes, roots, strict=True):
            if at.base == "arena":
                assert (written[at.offset : at.offset + n] == name).all(), (op.output, name)
                apart = target.offset >= at.offset + n or at.offset >= target.offset + size
                assert target.base != "arena" or apart, (op.output, name)
        if target.base == "arena":
            assert target.offset + size <= plan.arena_bytes
            written[target.offset : target.offset + size] = op.output


def size_of(graph: Graph, name: str) -> int:
    return int(np.prod(graph.tensors[name].shape))


def root(plan: Placement, name: str) -> str:
    while name in plan.views:
        name = plan.views[name][0]
    return name


OWN_FUNCTIONS = {  # how graphs are compiled that are functions of their own
    "fast": ("-O3", "-march=native"),
    "sanitized": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}


def layer(kind: str, rng: np.random.Generator) -> Graph:
    """A layer of a kind: of realistic integers, or of arbitrary ones."""
    while True:
        try:
            graph = int_layer(kind, rng) if rng.random() < 0.5 else raw_int_layer(kind, rng)
            op_params(graph, graph.ops[0])
        except ExportError:  # a dead layer, or scales that do not fit each other
            continue
        return graph


def check_graphs(graphs: list[Graph], folder: Path, rng: np.random.Generator, build: str) -> None:
    """Run graphs in C and in numpy on several inputs each."""
    program = compile_graphs(graphs, folder, OWN_FUNCTIONS[build])
    calls = [(graph, list(random_feeds(graph, rng))) for graph in graphs]
    for (graph, feeds), results in zip(calls, run_graphs(program, calls), strict=True):
        interpreter = Interpreter(graph)
        for inputs, result in zip(feeds, results, strict=True):
            expected = interpreter.run(inputs)
            for name in graph.outputs:
                message = f"{graph.ops[0]}: {name}"
                np.testing.assert_array_equal(result[name], expected[name], err_msg=message)


@pytest.mark.parametrize("build", OWN_FUNCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_every_operation_alone(tmp_path: Path, seed: int, build: str) -> None:
    """Random layers of every kind, each as a C function of its own, equal the reference."""
    rng = np.random.default_rng(seed)
    layers = [layer(kind, rng) for kind in LAYERS for _ in range(8)]
    assert {graph.ops[0].kind for graph in layers} == KINDS
    check_graphs(layers, tmp_path, rng, build)


@pytest.mark.parametrize("build", OWN_FUNCTIONS)
def test_a_block_of_every_operation(tmp_path: Path, build: str) -> None:
    """Attention, convolutions and a state, together in one arena."""
    rng = np.random.default_rng(0)
    graphs = [block_of_everything(rng) for _ in range(3)]
    assert {op.kind for op in graphs[0].ops} == KINDS
    for graph in graphs:
        nothing_is_overwritten(graph, separate(graph))
    check_graphs(graphs, tmp_path, rng, build)


def test_what_moves_no_byte_costs_nothing() -> None:
    """Views: reshapes, contiguous slices, transpositions of axes of length 1; not of constants."""
    g = GraphBuilder("views")
    x = g.unary("relu", "x", g.input("in", (1, 6, 1, 4)))
    y = g.transpose("turned", x, (0, 2, 1, 3))
    y = g.slice("cut", g.reshape("rows", y, (6, 4)), 0, 2, 3)
    table = g.constant("table", np.arange(12, dtype=np.float32).reshape(1, 3, 4))
    z = g.slice("part", g.transpose("same", table, (1, 0, 2)), 0, 1, 1)
    moved = g.transpose("moved", y, (1, 0))
    out = g.binary("add", "out", g.reshape("back", moved, (3, 4)), g.reshape("z", z, (1, 4)))
    g.graph.outputs = [out]
    plan = separate(quantise(g.graph, dict.fromkeys(g.graph.tensors, (-1.0, 1.0))))
    assert set(plan.views) == {"turned", "rows", "cut", "back", "part", "z"}
    assert plan.places["cut"] == Place("arena", plan.places["x"].offset + 8)


def test_a_state_in_another_shape_is_copied(tmp_path: Path) -> None:
    """It may be overwritten before whoever reads its new shape is done."""
    g = GraphBuilder("states")
    state = g.input("x.state", (2, 3))
    flat, turned = g.reshape("flat", state, (1, 6)), g.transpose("turned", state, (1, 0))
    after = g.unary("relu", "x.after", state)
    g.graph.outputs = [g.binary("mul", "y", flat, flat), g.unary("tanh", "z", turned), after]
    g.graph.n_states = 1
    graph = quantise(g.graph, dict.fromkeys(g.graph.tensors, (-1.0, 1.0)))
    assert not separate(graph).views
    check_graphs([graph], tmp_path, np.random.default_rng(0), "fast")


def test_five_dimensions_are_refused() -> None:
    """Those of one element, and those that are contiguous, do not count."""
    for shape, refused in (((2, 3, 2, 3, 2), True), ((2, 1, 2, 3, 2), False)):
        g = GraphBuilder("five")
        x, y = g.input("x", shape), g.input("y", (1, *shape[1:2], 1, *shape[3:4], 1))
        g.graph.outputs = [g.binary("add", "sum", x, y)]
        graph = quantise(g.graph, dict.fromkeys(g.graph.tensors, (-1.0, 1.0)))
        if refused:
            with pytest.raises(ExportError, match=r"sum.shape: expected at most 4 dimensions, got"):
                compile_graphs([graph], Path(), ())
        else:
            Step(graph, separate(graph), "void f(void)")


# ------------------------------------------------------------------------------- the compiler


@pytest.mark.parametrize("level", ["-O0", "-Os", "-O3"])
def test_no_warnings(model: Model, level: str, tmp_path: Path) -> None:
    compile_c(model.c_files, tmp_path / "model.so", (level, "-shared", "-fPIC"))


def test_no_warnings_of_clang(model: Model, tmp_path: Path) -> None:
    flags = ("-O2", "-shared", "-fPIC")
    compile_c(model.c_files, tmp_path / "model.so", flags, compiler=tool("clang"))


def test_only_a_freestanding_header_is_included(model: Model) -> None:
    files = {path.name: path.read_text() for path in model.native.iterdir()}
    included = {name for text in files.values() for name in re.findall(r"#include (.*)", text)}
    assert included - {f'"{name}"' for name in files} == {"<stdint.h>"}


@pytest.mark.parametrize("standard", ["c++98", "c++17"])
def test_header_is_cplusplus(model: Model, standard: str, tmp_path: Path) -> None:
    source = tmp_path / "use.cpp"
    source.write_text(
        '#include "edge_imputer.h"\n'
        "int main() {\n    int8_t state[EDIM_STATE_BYTES];\n    edim_encoder_reset(state);\n"
        "    return edim_model()->api_version - EDIM_API_VERSION;\n}\n"
    )
    objects = []
    for unit in model.c_files:
        objects.append(compile_c([unit], tmp_path / f"{unit.stem}.o", ("-c", "-O1")))
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-std={standard}", f"-I{model.native}")
    run(tool("g++"), *flags, source, *objects, "-o", tmp_path / "use")
    run(tmp_path / "use")


PLAIN = ("-fno-pic", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-ffunction-sections")


@pytest.mark.parametrize("level", ["-O0", "-Os", "-O3"])
def test_code_needs_memcpy_and_nothing_else(model: Model, level: str, tmp_path: Path) -> None:
    out = tmp_path / "model.o"
    compile_c(model.c_files, out, (level, *PLAIN, "-r", "-nostdlib"))
    undefined = run(tool("nm"), "--undefined-only", out).decode().split()
    assert set(undefined) - {"U"} <= {"memcpy", "memset", "memmove"}
    symbols = run(tool("nm"), "--defined-only", "--extern-only", out).decode().split("\n")
    assert all(line.split()[-1].startswith("edim_") for line in symbols if line)
    writable = [line for line in symbols if line and line.split()[1] in "BbCSs"]
    assert not writable, "global state"


def test_stack_is_bounded_and_small(model: Model, tmp_path: Path) -> None:
    """Every frame has a static size; none but those of the float interface exceeds 512 bytes."""
    flags = ("-Os", *PLAIN, "-fstack-usage", "-c")
    for unit in model.c_files:
        compile_c([unit], tmp_path / f"{unit.stem}.o", flags)
    usage = [
        line.split("\t") for su in tmp_path.glob("*.su") for line in su.read_text().split("\n")
    ]
    frames = {line[0].split(":")[-1]: (int(line[1]), line[2]) for line in usage if len(line) == 3}
    assert "edim_conv2d" in frames
    assert {kind for _, kind in frames.values()} == {"static"}
    assert all(size <= 512 for name, (size, _) in frames.items() if not name.endswith("_f32"))


@pytest.mark.parametrize("unsigned", [0, 1])
def test_sanitizers_find_nothing(model: Model, unsigned: int, tmp_path: Path) -> None:
    """Exact heap blocks at odd addresses under ASan and UBSan; the reference's bytes again."""
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    define = f"-DEDIM_UNSIGNED_ACTIVATIONS={unsigned}"
    main = Path(__file__).parent / "c" / "stream.c"
    program = compile_c(
        [main, *model.c_files], tmp_path / "stream", (*flags, define, f"-I{model.native}")
    )
    rng, reference = np.random.default_rng(4), model.reference()
    quant = model.encoder.tensors[model.encoder.inputs[0]].quant
    assert quant is not None
    n_steps, head = 12, model.spec.head
    given, expected = [np.int32(n_steps).tobytes()], []
    state = reference.initial_state()
    for features in random_features(model, n_steps, seed=5):
        given.append(quantize(features, quant).tobytes())
        out, state = reference.encoder_step(features, state)
        expected += [out.tobytes(), flat(state).tobytes()]
    logits_quant = model.imputer.tensors[model.imputer.outputs[0]].quant
    assert logits_quant is not None
    for _ in range(6):
        window = rng.integers(-128, 128, (head.window, model.spec.encoder.d_model)).astype(np.int8)
        ids = rng.integers(0, model.spec.tokens.mask_id + 1, head.window).astype(np.int32)
        given += [window.tobytes(), ids.tobytes()]
        logits = quantize(reference.imputer_step(window, ids), logits_quant)
        expected += [b"\0", logits.tobytes()]
    assert run(program, stdin=b"".join(given)) == b"".join(expected)


# -------------------------------------------------------------------------------- the backend


@pytest.mark.parametrize("token", [-1, -(2**31), 2**31 - 1])
def test_token_out_of_range(model: Model, token: int) -> None:
    alignment = np.zeros(model.spec.head.window, np.int32)
    window = np.zeros((model.spec.head.window, model.spec.encoder.d_model), np.int8)
    if model.spec.head.mixer == "none":
        pytest.skip("a head that does not look at the alignment")
    for wrong in (token, model.spec.tokens.mask_id + 1):
        alignment[-1] = wrong
        with pytest.raises(BackendError, match=rf"expected tokens in \[0, .*got .*{wrong}"):
            model.backend.imputer_step(window, alignment)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A small bundle that a test may spoil."""
    spec, *_, encoder, imputer = small_model()
    return native_bundle(tmp_path / "bundle", spec, encoder, imputer)


def test_wrong_arrays_are_refused(bundle: Bundle) -> None:
    backend = NativeBackend(bundle)
    info, state = backend.info, backend.initial_state()
    features = np.zeros((info.feature_frames, info.n_mels), np.float32)
    window = np.zeros((info.window, info.d_model), np.int8)
    ids = np.zeros(info.window, np.int32)
    with pytest.raises(BackendError, match=r"expected features of shape .* got \(12,\)"):
        backend.encoder_step(features[0], state)
    with pytest.raises(BackendError, match=r"expected state .* got \(1,\) and int8"):
        backend.encoder_step(features, (state[0][:1],))
    with pytest.raises(BackendError, match=r"expected state .* float32"):
        backend.encoder_step(features, (state[0].astype(np.float32),))
    with pytest.raises(BackendError, match=r"expected encoder_window .* got .* float32"):
        backend.imputer_step(window.astype(np.float32), ids)
    with pytest.raises(BackendError, match=r"expected alignment_window .* got \(1,\)"):
        backend.imputer_step(window, ids[:1])


def test_no_compiler(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"no C compiler was found \(cc, gcc, clang\); install"):
        NativeBackend(bundle)
    monkeypatch.setenv("CC", "no-such-compiler -m32")
    with pytest.raises(BackendError, match=r"\(CC=no-such-compiler\)"):
        NativeBackend(bundle)


def test_compiler_that_is_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{tool('gcc')} -no-such-flag")
    with pytest.raises(BackendError, match=r"does not work as a C compiler: .*no-such-flag"):
        NativeBackend(bundle)


def test_compiler_that_does_not_start(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cc"
    program.write_bytes(b"\0")
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    with pytest.raises(BackendError, match=r"cc does not work as a C compiler: .*format error"):
        NativeBackend(bundle)


def test_compiler_without_march_native(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "old-cc"
    wrapper.write_text(
        f'#!/bin/sh\nfor a; do [ "$a" = -march=native ] && exit 1; done\nexec {tool("gcc")} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", str(wrapper))
    backend = NativeBackend(bundle)
    assert backend.info.chunk_size == bundle.spec.head.chunk_size


def spoil(bundle: Bundle, name: str, old: str, new: str) -> Bundle:
    """A bundle with one file changed and its manifest to match."""
    path = bundle.path / "native" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    graphs = bundle.manifest.graphs
    write_bundle(bundle.path, spec=bundle.spec, graphs=graphs, files=file_records(bundle.path))
    return Bundle.load(bundle.path)


def test_refused_sources_give_the_compilers_words(bundle: Bundle) -> None:
    spoiled = spoil(bundle, "edim_kernels.c", "int32_t", "int23_t")
    with pytest.raises(BackendError, match=r"refused the model's sources:\n(.*\n)*.*int23_t"):
        NativeBackend(spoiled)


def test_code_of_another_interface_or_model(bundle: Bundle) -> None:
    mask_id = bundle.spec.tokens.mask_id
    other = spoil(bundle, "edim_model.h", f"MASK_ID {mask_id}", f"MASK_ID {mask_id + 1}")
    with pytest.raises(BackendError, match=rf"mask_id: {mask_id} and {mask_id + 1}.*again"):
        NativeBackend(other)
    newer = spoil(other, "edge_imputer.h", "API_VERSION 2", "API_VERSION 3")
    with pytest.raises(BackendError, match="interface version 2, got 3"):
        NativeBackend(newer)


def test_bundle_without_c_code(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with pytest.raises(BundleIntegrityError, match=r"no native/edim_model\.c.*Export it again"):
        NativeBackend(Bundle.load(tmp_path))


def test_compiled_once_and_again_after_a_change(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_IMPUTER_CACHE", str(tmp_path / "cache"))

    def libraries() -> list[str]:
        return sorted(p.name for p in (tmp_path / "cache" / "native").iterdir())

    first = NativeBackend(bundle)
    (name,) = libraries()  # no temporary file is left
    with monkeypatch.context() as patch:
        patch.setattr(native_library, "_compile", lambda *_: pytest.fail("compiled again"))
        NativeBackend(bundle)
    changed = spoil(bundle, "edim_kernels.c", "(INT64_C(1) << (right - 1))", "0")
    second = NativeBackend(changed)
    assert len(libraries()) == 2
    assert name in libraries()
    rng = np.random.default_rng(0)
    shape = (first.info.feature_frames, first.info.n_mels)
    features = rng.normal(0, 3, (20, *shape)).astype(np.float32)
    outs = []
    for backend in (first, second):
        state, last = backend.initial_state(), []
        for chunk in features:
            out, state = backend.encoder_step(chunk, state)
            last.append(out)
        outs.append(np.array(last))
    assert (outs[0] != outs[1]).any(), "the changed source computes something else"


def test_damaged_library(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_IMPUTER_CACHE", str(tmp_path / "cache"))
    names = [n for n in bundle.manifest.files if n.startswith("native/")]
    path = native_library.compile_library(
        {n.removeprefix("native/"): bundle.file(n).read_bytes() for n in names}
    )
    path.write_bytes(b"not a library")
    with pytest.raises(BackendError, match=r"could not be loaded .* delete it"):
        NativeBackend(bundle)


def test_cache_that_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_IMPUTER_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"could not be kept in .*EDGE_IMPUTER_CACHE"):
        NativeBackend(bundle)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGE_IMPUTER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native_library.cache_folder() == tmp_path / "edge-imputer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert native_library.cache_folder() == tmp_path / "home" / ".cache" / "edge-imputer"


# ------------------------------------------------------------------------------- the exporter


def test_graphs_that_do_not_fit(tmp_path: Path) -> None:
    _, float_encoder, _, encoder, imputer = small_model()
    with pytest.raises(ExportError, match="expected two quantised graphs"):
        write_native(float_encoder, imputer, tmp_path)
    with pytest.raises(ExportError, match="at least one state"):
        write_native(imputer, imputer, tmp_path)
    with pytest.raises(ExportError, match="two inputs, one output and no state"):
        write_native(encoder, encoder, tmp_path)
    name = imputer.inputs[0]
    other = QuantParams(scale=0.5, zero_point=1)
    tensors = imputer.tensors | {name: replace(imputer.tensors[name], quant=other)}
    with pytest.raises(ExportError, match="share one scale and zero point"):
        write_native(encoder, replace(imputer, tensors=tensors), tmp_path)
    assert not list(tmp_path.iterdir())


def test_output_that_is_an_input(tmp_path: Path) -> None:
    """A state that is only passed on would be overwritten before it is copied."""
    *_, encoder, imputer = small_model()
    swapped = replace(encoder, outputs=[*encoder.outputs[:-1], encoder.inputs[-2]])
    with pytest.raises(ExportError, match=r"expected .* to be computed, it is an input"):
        write_native(swapped, imputer, tmp_path)


@given(value=st.floats(2.0**-100, 2.0**100, width=32))
def test_float_literals_are_exact(value: float) -> None:
    text = float32(value)
    assert re.fullmatch(r"[-0-9.e+]+f", text)
    assert np.float32(text[:-1]) == np.float32(value)


def test_names_are_unique_identifiers() -> None:
    names = Names({"state"})
    tensors = ["conv0.input", "conv0_input", "state", "int", "0x", "conv0.input"]
    assert [names[t] for t in tensors] == [
        "conv0_input",
        "conv0_input_2",
        "state_2",
        "int_2",
        "_0x",
        "conv0_input",
    ]
