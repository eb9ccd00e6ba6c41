"""A wake word's two files: what devices make of them, the manifest, the memory, the command."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.errors import ExportError, MissingExtraError, SpecError
from edge_imputer.export import reference
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.esphome import Manifest, MicroSection, Pack, write_esphome_pack
from edge_imputer.export.esphome import arena as arena_module
from edge_imputer.export.esphome.arena import kernel_memory, measured_arena, trial
from edge_imputer.export.esphome.contract import INPUT_QUANT
from edge_imputer.export.esphome.pack import ExactWakeWord, file_name
from edge_imputer.export.fixed_point import multiply_by_quantized_multiplier
from edge_imputer.microfrontend import Microfrontend, int16_samples
from edge_imputer.quantization import quantize
from edge_imputer.specs import MicroSpec
from edge_imputer.train.trainer import read_corpus, train

from .conftest import import_or_skip
from .esphome_cases import N_FRAMES, STEPS, collect, litert, pymicro, tflite_micro, wake_word_model
from .graphs import waveforms
from .test_cli import refusal, run
from .training_cases import tiny_recipe, write_corpus


@pytest.fixture(scope="module")
def pack(micro: str, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return write_esphome_pack(
        wake_word_model(),
        waveforms(),
        tmp_path_factory.mktemp("pack") / "new",
        wake_word="Hey, Lamp!",
        author="Ann",
        website="https://example.com/lamp",
        trained_languages=("en", "nl"),
        probability_cutoff=0.8,
    )


@pytest.fixture
def twice_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference as TFLite's own kernels, and ESP-NN's, round convolutions."""
    monkeypatch.setattr(reference, "requantize", multiply_by_quantized_multiplier)


def test_devices_compute_these_integers(pack: Pack, micro: str, twice_rounded: None) -> None:
    """TensorFlow Lite Micro, in the memory that the manifest states, and LiteRT's reference."""
    expected = collect(ExactWakeWord(pack.graph).step, STEPS)
    assert len(set(expected)) > 50
    data = pack.model_path.read_bytes()
    hear, interpreter = tflite_micro(data, pack.manifest.micro.tensor_arena_size)
    np.testing.assert_array_equal(collect(hear, STEPS), expected)
    assert not np.array_equal(collect(hear, STEPS), expected)  # it has heard something before
    interpreter.reset()
    np.testing.assert_array_equal(collect(hear, STEPS), expected)
    np.testing.assert_array_equal(collect(litert(data, "litert-reference"), STEPS), expected)


def test_pymicro_wakeword_hears_what_our_front_end_and_graph_do(pack: Pack) -> None:
    """From the samples on: its features, its int8, its steps, its mean."""
    package = import_or_skip("pymicro_wakeword")
    word = package.MicroWakeWord.from_config(pack.manifest_path)
    waveform = np.concatenate(waveforms(seed=3))
    pcm = int16_samples(waveform).tobytes()
    theirs = [
        word.process_streaming_prob(frame)
        for frame in package.MicroWakeWordFeatures().process_streaming(pcm)
    ]
    features = quantize(Microfrontend(MicroSpec())(waveform), INPUT_QUANT)
    steps = features[: len(features) // N_FRAMES * N_FRAMES].reshape(-1, N_FRAMES, 40)
    ours = smoothed(collect(pymicro(package, pack.manifest_path), steps), len(theirs))
    np.testing.assert_allclose(theirs, ours, atol=1e-9)
    exact = smoothed(collect(ExactWakeWord(pack.graph).step, steps), len(theirs))
    assert np.ptp(exact) > 0.3
    np.testing.assert_allclose(theirs, exact, atol=3 / 256)  # its kernels round otherwise


def smoothed(probabilities: np.ndarray, n_frames: int) -> list[float]:
    """What pymicro-wakeword gives after every feature frame: 0 until the mean is one of all."""
    window: deque[float] = deque(maxlen=7)  # of 30 ms each, as in 200 ms of smoothing
    means = []
    for k in range(1, n_frames + 1):
        if k % N_FRAMES == 0:
            window.append(float(probabilities[k // N_FRAMES - 1]) / 256)
        full = k % N_FRAMES == 0 and len(window) == 7
        means.append(float(np.mean(window)) if full else 0.0)
    return means


# ------------------------------------------------------------------------------ the manifest


def test_the_manifest_is_what_esphome_reads(pack: Pack) -> None:
    assert pack.manifest_path.name == "hey_lamp.json"
    assert sorted(p.name for p in pack.manifest_path.parent.iterdir()) == [
        "hey_lamp.json",
        "hey_lamp.tflite",
    ]
    written = json.loads(pack.manifest_path.read_text("utf-8"))
    size = written["micro"].pop("tensor_arena_size")
    assert size == measured_arena(pack.model_path.read_bytes()) + kernel_memory(pack.graph)
    assert written == {
        "type": "micro",
        "wake_word": "Hey, Lamp!",
        "author": "Ann",
        "website": "https://example.com/lamp",
        "model": "hey_lamp.tflite",
        "trained_languages": ["en", "nl"],
        "version": 2,
        "micro": {
            "probability_cutoff": 0.8,
            "feature_step_size": 10,
            "sliding_window_size": 7,  # 200 ms of smoothing, 30 ms a step
            "minimum_esphome_version": "2024.7.0",
        },
    }


def test_the_same_model_gives_the_same_files(pack: Pack, tmp_path: Path) -> None:
    again = write_esphome_pack(wake_word_model(), waveforms(), tmp_path)
    assert again.model_path.read_bytes() == pack.model_path.read_bytes()
    written = json.loads(again.manifest_path.read_text("utf-8"))
    assert (written["wake_word"], written["author"]) == ("hey lamp", "unstated")
    assert (written["micro"]["probability_cutoff"], written["trained_languages"]) == (0.9, [])
    assert "website" not in written


@pytest.mark.parametrize(
    ("name", "file"),
    [("Hey, Lamp!", "hey_lamp"), ("Okay Nabu 2", "okay_nabu_2"), ("смотри", "wake_word")],
)
def test_file_names(name: str, file: str) -> None:
    assert file_name(name) == file


MICRO = MicroSection(
    probability_cutoff=0.9, feature_step_size=10, sliding_window_size=5, tensor_arena_size=1
)
GOOD = Manifest(
    wake_word="hey", author="Ann", model="hey.tflite", trained_languages=("en",), micro=MICRO
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wake_word": " "}, "neither empty nor 'vad'.* got ' '"),
        ({"wake_word": "vad"}, "takes for a model of voice activity, got 'vad'"),
        ({"website": "example.com"}, "a website such as https://example.com, got 'example.com'"),
        ({"trained_languages": ("en", "")}, "languages such as en, got"),
        ({"probability_cutoff": 90.0}, "between 0 and 1, such as 0.9, got 90"),
        ({"probability_cutoff": float("nan")}, "between 0 and 1, such as 0.9, got nan"),
        ({"sliding_window_size": 0}, "sliding_window_size of 1 or more, got 0"),
    ],
)
def test_manifests_that_esphome_would_refuse(changes: dict[str, object], reason: str) -> None:
    GOOD.check()
    micro = {name: value for name, value in changes.items() if hasattr(MICRO, name)}
    rest = {name: value for name, value in changes.items() if name not in micro}
    changed = msgspec.structs.replace(GOOD, micro=msgspec.structs.replace(MICRO, **micro), **rest)
    with pytest.raises(SpecError, match=reason):
        changed.check()


# ------------------------------------------------------------------------------ memory


def test_the_measured_memory_is_enough_and_a_tenth_less_is_not(pack: Pack) -> None:
    data = pack.model_path.read_bytes()
    size = measured_arena(data)
    with trial(data) as runs_in:
        assert runs_in(size)
        assert runs_in(pack.manifest.micro.tensor_arena_size)
        assert not runs_in(9 * size // 10)


def test_a_file_that_runs_nowhere_has_no_size(micro: str) -> None:
    with pytest.raises(ExportError, match="TensorFlow Lite Micro runs in 8388608 bytes, got one"):
        measured_arena(b"\0\0\0\0TFL3 and nothing")


def test_measuring_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "RUNTIME", "tflite_micro_that_is_not_there")
    with pytest.raises(MissingExtraError, match=r"edge-imputer\[esphome\]"):
        measured_arena(b"")


def rounded_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@given(
    c_in=st.integers(1, 130),
    c_out=st.integers(1, 130),
    taps=st.integers(1, 8),
    stride=st.integers(1, 4),
)
def test_kernels_of_espressif_ask_for_no_more(
    c_in: int, c_out: int, taps: int, stride: int
) -> None:
    """What ``esp_nn_get_conv_scratch_size_esp32s3`` gave in three versions, without padding."""
    stride = min(stride, taps)
    g = GraphBuilder("convolution")
    x = g.input("x", (1, taps, 1, c_in))
    weight = np.zeros((c_out, taps, 1, c_in), np.float32)
    g.conv2d("y", x, weight, np.zeros(c_out, np.float32), (stride, 1), relu=True)
    n_input, n_weights = taps * c_in, weight.size
    copies = 2 * (n_weights + n_input) + 32
    padded = taps * rounded_up(c_in, 16) * c_out
    rows = (taps + stride - 1) * c_in  # one row more than it reads, for every stride
    vectors = 2 * padded + rows + 32 + 4 * c_out
    window = rounded_up(n_input, 16)
    columns = 4 * c_out + 32 + (c_out + 1) * window + 32
    pointwise = rounded_up(c_in, 8) * (taps + c_out) + 16 * rounded_up(c_in, 8) * (taps > 7) + 32
    assert kernel_memory(g.graph) >= max(copies, vectors, pointwise)
    if c_in < 16:  # only then
        assert kernel_memory(g.graph) >= columns


@given(channels=st.integers(4, 130), taps=st.integers(1, 8), n_frames=st.integers(1, 30))
def test_depthwise_kernels_of_espressif_ask_for_no_more(
    channels: int, taps: int, n_frames: int
) -> None:
    """What ``esp_nn_get_depthwise_conv_scratch_size_esp32s3`` gave in three versions."""
    g = GraphBuilder("convolution")
    x = g.input("x", (1, taps - 1 + n_frames, 1, channels))
    weight = np.zeros((1, taps, 1, channels), np.float32)
    g.depthwise_conv2d("y", x, weight, np.zeros(channels, np.float32))
    padded = rounded_up(channels, 8)
    n_input = (taps - 1 + n_frames) * padded
    wide = rounded_up(2 * taps * padded, 16) + rounded_up(2 * n_input, 16)
    wide += rounded_up(n_frames * padded, 16) + 12 * padded + 16
    in_place = 4 * channels + 2 * taps * channels + 64
    assert kernel_memory(g.graph) >= max(wide, in_place)


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "tones")


@pytest.fixture(scope="module")
def checkpoint(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the shipped recipe, in a tiny size."""
    recipe = tiny_recipe("wake-word-esphome")
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    out = tmp_path_factory.mktemp("run")
    return train(*data, recipe, out, data_name="tones", progress=False)


def test_from_a_checkpoint_to_a_device(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    micro: str,
) -> None:
    monkeypatch.setattr("edge_imputer.cli.steps.N_CALIBRATION", 8)
    options = ("--wake-word", "Hey Ab", "--cutoff", "0.7", "--sliding-window", "3")
    options += ("--author", "Ann", "--languages", "en, nl", "--website", "https://example.com")
    made = run(
        capsys,
        "export",
        checkpoint,
        "--target",
        "esphome",
        "--data",
        corpus,
        "--out",
        tmp_path / "pack",
        *options,
    )
    assert made.strip() == str(tmp_path / "pack" / "hey_ab.json")
    manifest = msgspec.json.decode(Path(made.strip()).read_bytes(), type=Manifest)
    manifest.check()
    assert (manifest.wake_word, manifest.author) == ("Hey Ab", "Ann")
    assert (manifest.trained_languages, manifest.website) == (("en", "nl"), "https://example.com")
    assert manifest.micro.probability_cutoff == 0.7
    assert (manifest.micro.feature_step_size, manifest.micro.sliding_window_size) == (10, 3)
    data = (tmp_path / "pack" / manifest.model).read_bytes()
    hear, _ = tflite_micro(data, manifest.micro.tensor_arena_size)
    steps = np.random.default_rng(0).integers(-128, 128, (20, 4, 40)).astype(np.int8)
    assert len(set(collect(hear, steps))) > 1


def test_the_command_says_what_esphome_cannot_have(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    export = ("export", checkpoint, "--data", corpus, "--out", tmp_path / "out")
    to_esphome = (*export, "--target", "esphome")
    line = refusal(capsys, *export, "--cutoff", "0.7", "--author", "Ann")
    assert "got author, probability_cutoff, which are for ESPHome; add --target esphome" in line
    assert "no --licence" in refusal(capsys, *to_esphome, "--licence", "MIT")
    for option in (["--fused"], ["--precision", "mixed"], ["--report", tmp_path / "x"]):
        assert "they are for bundles" in refusal(capsys, *to_esphome, *option)
    assert "belongs to --precision mixed" in refusal(capsys, *export, "--snr-db", "40")
    assert "int8 alone" in refusal(capsys, *export, "--fused", "--precision", "mixed")
    (tmp_path / "file").touch()
    assert "expected a folder" in refusal(capsys, *export, "--report", tmp_path / "file")
    assert "0 and 1" in refusal(capsys, *to_esphome, "--cutoff", "70")
    assert "such as en, got" in refusal(capsys, *to_esphome, "--languages", "en,")
    shipped = ("export", checkpoint, "--target", "esphome", "--out", tmp_path / "out")
    assert "pass --data FOLDER" in refusal(capsys, *shipped)
    assert not (tmp_path / "out").exists()


def test_speech_is_no_wake_word(
    capsys: pytest.CaptureFixture[str], corpus: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("digits")
    data = read_corpus(corpus, recipe.data, recipe.features.sample_rate)
    speech = train(*data, recipe, tmp_path / "run", data_name="tones", progress=False)
    line = refusal(capsys, "export", speech, "--target", "esphome", "--data", corpus)
    assert "expected a model of one keyword, got one that writes down speech" in line
