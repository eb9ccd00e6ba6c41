"""Keyword models in bundles: every runtime says the same, and every command takes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_imputer.backends import BACKENDS, load_backend, load_keyword_backend
from edge_imputer.backends.native_keywords import NativeKeywordBackend
from edge_imputer.bundle import Bundle, OperatingPoint, file_records, parse_manifest, write_manifest
from edge_imputer.cli.main import main
from edge_imputer.errors import (
    BackendError,
    BundleIntegrityError,
    BundleSchemaError,
    ExportError,
    SpecError,
)
from edge_imputer.export.build import build_keyword_graph
from edge_imputer.export.bundle import export_keyword_bundle, update_operating_point
from edge_imputer.export.card import model_card
from edge_imputer.export.graph import Graph
from edge_imputer.export.parity import same_arrays
from edge_imputer.export.simulate import (
    calibrated_keywords,
    graph_record,
    keyword_reference,
    quantise_all,
)
from edge_imputer.firmware_bridge.keywords import write_native_keywords
from edge_imputer.keyword_stream import KeywordStream
from edge_imputer.recognizer import Recognizer
from edge_imputer.specs import AnyFeatureSpec, AttentionSpec, ConformerSpec, KeywordModelSpec
from edge_imputer.spotter import KeywordSpotter
from edge_imputer.train.data import write_manifest as write_manifest_of
from edge_imputer.train.evaluation.systems import open_keyword_model
from edge_imputer.train.keyword_model import KeywordModel, TorchKeywordSystem
from edge_imputer.train.trainer.initial import read_initial

from .bundles import PROVENANCE
from .c_tools import compile_c, run
from .fakes import noise, write_bundle
from .improving_cases import (
    CONFUSING,
    KEYWORD,
    row,
    sound,
    train_spotter,
    write_clip,
    write_corpus,
)
from .keyword_cases import ENCODERS, MEL, MICRO, PCEN, model

RATE = 16_000
FEATURES: dict[str, AnyFeatureSpec] = {
    "crnn": MEL,
    "tcn": MICRO,
    "conformer": MEL,
    "crnn-windowed": PCEN,
    "cnn-windowed": PCEN,
}
COMPILED = ("tcn", "conformer", "crnn-windowed")  # one score a step, several, and no state
FILES = {
    "MODEL_CARD.md",
    "onnx/keywords.onnx",
    "onnx/keywords.int8.onnx",
    "tflite/keywords.tflite",
    "native/edim_model.c",
    "native/edim_model.h",
    "native/edim_kernels.c",
    "native/edim_kernels.h",
    "native/edge_imputer.c",
    "native/edge_imputer.h",
}


def calibration() -> list[np.ndarray]:
    """Noise that swells, and silence."""
    swell = np.linspace(0, 1, 16_000, dtype=np.float32)
    return [noise(16_000, seed=k, level=0.3) * swell for k in range(3)] + [np.zeros(4000, "f4")]


def export(out: Path, network: KeywordModel) -> Bundle:
    hop_frames = network.spec.step_features

    def native(graph: Graph, folder: Path) -> Mapping[str, int]:
        return write_native_keywords(graph, hop_frames, folder)

    return export_keyword_bundle(
        out,
        model=network,
        provenance=PROVENANCE,
        calibration=calibration(),
        name="small",
        licence="Apache-2.0",
        emitters=[native],
    )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_IMPUTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The bundle of an encoder's model, exported once."""
    folder, bundles = tmp_path_factory.mktemp("keywords"), dict[str, Bundle]()

    def bundle(name: str) -> Bundle:
        if name not in bundles:
            bundles[name] = export(folder / name, model(name, FEATURES[name]))
        return bundles[name]

    return bundle


@pytest.fixture
def copy(made: Callable[[str], Bundle], tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    return Path(shutil.copytree(made("tcn").path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


# ------------------------------------------------------------------------------ the files


def integers(network: KeywordModel) -> Graph:
    """A model's graph as it is exported."""
    graph = build_keyword_graph(network)
    (quantised,) = quantise_all([calibrated_keywords(graph, network.spec, calibration())])
    return quantised


@pytest.mark.parametrize("name", ENCODERS)
def test_a_bundle_holds_one_graph_in_every_form(
    name: str, made: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle, network = made(name), model(name, FEATURES[name])
    assert set(bundle.manifest.files) == FILES
    assert bundle.spec == network.spec
    (graph,) = quantise_all(
        [calibrated_keywords(build_keyword_graph(network), network.spec, calibration())]
    )
    (record,) = bundle.manifest.graphs
    assert record == graph_record(graph, record.arena_bytes)
    assert (record.n_states == 0) == network.spec.windowed
    same_arrays(
        graph, bundle.file("onnx/keywords.int8.onnx"), bundle.file("tflite/keywords.tflite")
    )
    raw = json.loads((bundle.path / "manifest.json").read_text())
    assert (raw["schema_version"], raw["spec"]["kind"]) == (5, "keywords")
    again = export(tmp_path / "again", network)
    assert again.manifest == bundle.manifest
    # Version 4 had the same: what version 5 adds is of heads.
    (again.path / "manifest.json").write_text(json.dumps({**raw, "schema_version": 4}))
    assert Bundle.load(again.path).manifest == bundle.manifest


def test_the_card_says_what_it_listens_for(made: Callable[[str], Bundle]) -> None:
    for name, texts in {
        "cnn-windowed": ("windows of 310 ms", "(pcen)", "score every 100 ms"),
        "tcn": ("a streaming network", "(micro)", "score every 30 ms"),
    }.items():
        bundle = made(name)
        card = bundle.file("MODEL_CARD.md").read_text("utf-8")
        assert card == model_card(msgspec.structs.replace(bundle.manifest, files={}))
        for text in (*texts, "Keywords: yes, no", "KeywordSpotter(", "'yes': 0.5", "no others"):
            assert text in card
        assert "characters" not in card


# ------------------------------------------------------------------------------ the runtimes


@pytest.mark.parametrize("name", ENCODERS)
def test_every_runtime_scores_as_it_should(name: str, made: Callable[[str], Bundle]) -> None:
    """Float as torch; C as the exact integers, to the last bit; the others beside these."""
    bundle, network = made(name), model(name, FEATURES[name])
    spec = network.spec
    (graph,) = quantise_all(
        [calibrated_keywords(build_keyword_graph(network), spec, calibration())]
    )
    waveform = noise(17_000, seed=9)
    found = {
        backend: KeywordStream(spec, load_keyword_backend(bundle, backend)).score(waveform)
        for backend in BACKENDS
        if backend != "native" or name in COMPILED
    }
    wanted = TorchKeywordSystem(network).score(waveform)
    np.testing.assert_allclose(found["onnx-float"], wanted, atol=1e-4)
    exact = KeywordStream(spec, keyword_reference(graph, spec)).score(waveform)
    np.testing.assert_array_equal(found.get("native", exact), exact)
    for backend in ("onnx", "litert"):
        np.testing.assert_allclose(found[backend], exact, atol=0.02)
        assert found[backend].shape == wanted.shape
    assert np.abs(exact - wanted).max() < 0.1
    assert np.ptp(wanted, axis=0).max() > 0  # there is something to score


@pytest.mark.parametrize("name", ["tcn", "crnn-windowed"])
def test_integer_runtimes_decide_alike(name: str, made: Callable[[str], Bundle]) -> None:
    bundle, waveform = made(name), noise(24_000, seed=2)
    scores = KeywordStream(bundle.spec, load_keyword_backend(bundle, "native")).score(waveform)
    heights = np.unique(scores.round(4))
    middle = heights[len(heights) // 2 :]
    gap = int(np.diff(middle).argmax())  # where no score is near
    threshold = float(middle[gap : gap + 2].mean())
    events = {
        backend: [
            (event.text, event.start_s)
            for event in KeywordSpotter(
                bundle, dict.fromkeys(("yes", "no"), threshold), backend=backend, refractory_s=60
            ).spot(waveform, sample_rate=RATE)
        ]
        for backend in ("onnx", "litert", "native")
    }
    assert {text for text, _ in events["native"]}
    for other in ("onnx", "litert"):
        assert [text for text, _ in events[other]] == [text for text, _ in events["native"]]


@pytest.mark.parametrize("name", ["tcn", "crnn-windowed"])
def test_backends_hold_no_state_and_check_what_they_get(
    name: str, made: Callable[[str], Bundle]
) -> None:
    bundle = made(name)
    spec = bundle.spec
    assert isinstance(spec, KeywordModelSpec)
    shape = spec.input_features, spec.features.n_mels
    rng = np.random.default_rng(0)
    x = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
    for backend_name in BACKENDS:
        backend = load_keyword_backend(bundle, backend_name)
        assert backend.name == backend_name
        before = backend.initial_state()
        first, state = backend.keywords_step(x[0], before)
        assert first.shape == (spec.step_scores, 3)
        assert first.dtype == np.float32
        backend.keywords_step(x[1], state)
        again, _ = backend.keywords_step(x[0], backend.initial_state())
        np.testing.assert_array_equal(first, again)
        for one, other in zip(before, backend.initial_state(), strict=True):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(BackendError, match="expected features of shape"):
            backend.keywords_step(x[0][:, 1:], before)
    with pytest.raises(BackendError, match="expected state of shape"):
        backend.keywords_step(x[0], (np.zeros(7, np.int8),))


@pytest.mark.parametrize("name", ["tcn", "crnn-windowed"])
def test_c_code_is_strict_c99_and_a_window_needs_no_state(
    name: str, made: Callable[[str], Bundle], tmp_path: Path
) -> None:
    native = made(name).path / "native"
    program = tmp_path / "main.c"
    program.write_text(
        '#include "edge_imputer.h"\n'
        "int main(void) {\n"
        "    static int8_t features[EDIM_FEATURES], logits[EDIM_LOGITS], arena[EDIM_ARENA_BYTES];\n"
        "#if EDIM_STATE_BYTES > 0\n"
        "    static int8_t state[EDIM_STATE_BYTES];\n"
        "#else\n"
        "    int8_t *const state = 0;\n"
        "#endif\n"
        "    edim_keywords_reset(state);\n"
        "    edim_keywords_step(features, state, logits, arena);\n"
        "    return edim_keywords()->state_bytes != EDIM_STATE_BYTES;\n"
        "}\n"
    )
    windowed = "EDIM_STATE_BYTES 0\n" in (native / "edim_model.h").read_text()
    assert windowed == (name == "crnn-windowed")
    sources = [program, *sorted(native.glob("*.c"))]
    run(compile_c(sources, tmp_path / "main", ["-O1", "-fsanitize=address,undefined"]))


def test_c_code_of_another_model_is_refused(copy: Path) -> None:
    header = copy / "native/edim_model.h"
    right = header.read_text()
    assert "EDIM_HOP_FRAMES 3\n" in right

    def spoil(text: str) -> Bundle:
        header.write_text(text)
        manifest = parse_manifest((copy / "manifest.json").read_bytes(), source="here")
        records = {n: r for n, r in file_records(copy).items() if n in manifest.files}
        write_manifest(copy, msgspec.structs.replace(manifest, files=records))
        return Bundle.load(copy)

    with pytest.raises(BackendError, match=r"two models \(hop_frames: 3 and 4\)"):
        NativeKeywordBackend(spoil(right.replace("HOP_FRAMES 3", "HOP_FRAMES 4")))
    (copy / "native/edim_model.c").write_text("")
    with pytest.raises(BundleIntegrityError):
        Bundle.load(copy)


# ------------------------------------------------------------------------------ refusals


def test_each_kind_of_model_has_its_own_way_in(
    made: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = made("tcn")
    for opens in (Recognizer, load_backend):
        with pytest.raises(SpecError, match=r"keywords yes, no; listen .* with KeywordSpotter"):
            opens(bundle)
    for backend in BACKENDS:
        with pytest.raises(SpecError, match="expected a model that writes down speech"):
            load_backend(bundle, backend)
    with pytest.raises(BackendError, match=r"expected a backend among onnx, .*, got 'tpu'"):
        load_keyword_backend(bundle, "tpu")
    write_bundle(tmp_path)
    with pytest.raises(BackendError, match="expected a keyword model, got one that writes"):
        load_keyword_backend(Bundle.load(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["spec"].pop("kind"), "kind"),
        (lambda m: m["spec"].update(kind="speech"), r"spec\.features\.kind"),
        (lambda m: m["spec"].pop("smoothing_ms"), r"missing spec\.smoothing_ms"),
        (lambda m: m["spec"].update(keywords=[]), "distinct keywords, at least one"),
        (lambda m: m["graphs"].clear(), "expected the graphs keywords .*, got none"),
        (lambda m: m["graphs"][0].update(name="encoder"), "the graphs keywords .*, got encoder"),
        (lambda m: m["graphs"].append(m["graphs"][0]), "got keywords, keywords"),
    ],
)
def test_manifests_that_contradict_themselves(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(copy, change)
    with pytest.raises((BundleSchemaError, SpecError), match=message):
        Bundle.load(copy)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    attention = AttentionSpec(pattern="dense", direction="bidirectional", heads=2)
    spec = KeywordModelSpec(
        features=MEL, encoder=ConformerSpec(d_model=8, attention=attention), keywords=("yes",)
    )
    with pytest.raises(SpecError, match="stream"):
        export(tmp_path / "out", KeywordModel(spec).eval())
    network = model("tcn", MICRO)
    with pytest.raises(ExportError, match="calibration audio"):
        quantise_all([calibrated_keywords(build_keyword_graph(network), network.spec, [])])
    with pytest.raises(ExportError, match="expected a quantised graph"):
        write_native_keywords(build_keyword_graph(network), 3, tmp_path)
    (graph,) = quantise_all(
        [calibrated_keywords(build_keyword_graph(network), network.spec, calibration())]
    )
    graph.outputs = graph.outputs[:1]
    with pytest.raises(ExportError, match="besides the states"):
        write_native_keywords(graph, 3, tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ from end to end


POINT = OperatingPoint(
    thresholds={"no": 0.25, "yes": 0.75},
    target_fa_per_hour=0.5,
    target_met=True,
    refractory_s=0.7,
    chosen_on=None,
    reported_on=None,
    seed=0,
    created_by="test",
)


def test_an_operating_point_is_what_the_spotter_takes(copy: Path) -> None:
    with pytest.raises(SpecError, match="a threshold for every keyword"):
        KeywordSpotter(copy)
    updated = update_operating_point(copy, POINT)
    assert "no at 0.25" in updated.file("MODEL_CARD.md").read_text()
    spotter = KeywordSpotter(copy)
    assert spotter.thresholds == POINT.thresholds
    assert KeywordSpotter(copy, ["yes"]).thresholds == {"yes": 0.75}
    waveform = noise(16_000)
    by_hand = KeywordSpotter(copy, POINT.thresholds, refractory_s=0.7)
    assert spotter.spot(waveform, sample_rate=RATE) == by_hand.spot(waveform, sample_rate=RATE)


def test_evaluation_hears_what_the_bundle_scores(copy: Path) -> None:
    opened = open_keyword_model(copy, backend="litert")
    stream = KeywordStream(opened.system.spec, load_keyword_backend(Bundle.load(copy), "litert"))
    waveform = noise(20_000)
    np.testing.assert_array_equal(opened.system.score(waveform), stream.score(waveform))
    assert opened.thresholds == {}
    other = open_keyword_model(copy, ["no", "yes"], backend="onnx")
    assert other.identity != opened.identity
    update_operating_point(copy, POINT)
    assert open_keyword_model(copy).thresholds == POINT.thresholds
    assert open_keyword_model(copy).identity == other.identity  # its figures are not the model
    with pytest.raises(SpecError, match="listens for yes, no and for nothing else, got yes"):
        open_keyword_model(copy, ["yes"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of tones and a checkpoint of a few updates, exported by the command."""
    home = tmp_path_factory.mktemp("tones")
    corpus = write_corpus(home / "corpus", per_sound=4)
    checkpoint = train_spotter(corpus, home / "run", "run.updates=30", "run.valid_every=30")
    main_(["export", checkpoint, "--data", corpus, "--out", home / "bundle", "--licence", "MIT"])
    return home


def main_(arguments: list[object]) -> None:
    """The command line; typer ends it with an exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_the_command_exports_a_checkpoint(trained: Path) -> None:
    bundle = Bundle.load(trained / "bundle")
    assert set(bundle.manifest.files) == FILES | {"weights.npz", "recipe.json"}
    assert (bundle.manifest.licence, bundle.manifest.provenance.updates) == ("MIT", 30)
    waveform = sound(KEYWORD, np.random.default_rng(0), around_s=0.3)
    ours = open_keyword_model(trained / "bundle", backend="onnx-float").system.score(waveform)
    theirs = open_keyword_model(trained / "run" / "last.ckpt").system.score(waveform)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    initial = read_initial(trained / "bundle")
    assert initial.spec == bundle.spec
    assert set(initial.weights)


def test_the_commands_take_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = trained / "bundle"
    clip = write_clip(trained / "up.wav", sound(KEYWORD, np.random.default_rng(1), around_s=0.4))
    capsys.readouterr()
    main_(["spot", bundle, clip, "--threshold", "0.05", "--json", "--backend", "native"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events
    assert {event["text"] for event in events} == {KEYWORD}
    main_(["info", bundle])
    text = capsys.readouterr().out
    for part in ("keywords", KEYWORD, "a score every", "smoothing"):
        assert part in text
    main_(["info", bundle, "--json"])
    assert json.loads(capsys.readouterr().out)["spec"]["kind"] == "keywords"
    main_(["bench", "latency", "--bundle", bundle, "--out", trained / "bench"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(figures[backend]["step_us"] > 0 for backend in BACKENDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe"], "only knows the keywords up"),
        (["spot", "--steps", "4", "--threshold", "0.5"], "n_steps belongs to models that write"),
        (["spot", "--revisions", "0", "--threshold", "0.5"], "revisions belongs to models that"),
        (["spot", "--keyword", "seven"], "trained for, up, got seven"),
        (["spot"], "a threshold for every keyword"),
    ],
)
def test_commands_that_do_not_fit_say_so(
    arguments: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    with pytest.raises(SystemExit) as ended:
        main([command, str(trained / "bundle"), str(trained / "corpus/train-up-0.wav"), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_it_is_evaluated_with_its_integers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(trained / "bundle", tmp_path / "bundle"))
    negatives = tmp_path / "negatives"
    write_clip(negatives / "noise.wav", noise(10 * RATE))
    write_manifest_of(negatives, [row("noise.wav", 10.0, label="_unknown_", split="valid")])
    options = ["--split", "valid", "--threshold", "0.05", "--backend", "litert", "--write"]
    data = ["--task", "keywords", "--data", trained / "corpus", "--negatives", negatives]
    main_(["evaluate", bundle, *data, *options, "--json", "--out", tmp_path / "out"])
    report = json.loads(capsys.readouterr().out)
    assert report["run"]["settings"]["runtime"] == "litert"
    assert report["misses"][0]["frr"]["n"] == 6
    point = Bundle.load(bundle).manifest.operating_point
    assert point is not None
    assert point.thresholds == {KEYWORD: 0.05}
    assert KeywordSpotter(bundle).thresholds == point.thresholds
    with pytest.raises(SystemExit):
        main(["evaluate", str(bundle), "--data", str(trained / "corpus"), "--split", "valid"])
    assert "only knows the keywords up" in capsys.readouterr().err


def test_it_is_improved_and_exported_again(trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for take in range(8):
        write_clip(tmp_path / "fires" / f"{take}.wav", sound(CONFUSING, rng))
    old, out = trained / "bundle", tmp_path / "out"
    clips = ["--false-fires", tmp_path / "fires", "--data", trained / "corpus"]
    main_(["improve", old, *clips, "--out", out, "--updates", "3"])
    before, after = Bundle.load(old), Bundle.load(out / "bundle")
    assert after.spec == before.spec
    assert after.manifest.name == before.manifest.name
    graph = "onnx/keywords.onnx"
    assert after.manifest.files[graph] != before.manifest.files[graph]
