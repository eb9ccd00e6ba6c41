"""The parts of the fused form: features in a graph, and the loop of passes with its decisions."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_imputer.audio import read_audio
from edge_imputer.errors import ExportError
from edge_imputer.export.builder import GraphBuilder
from edge_imputer.export.fused.builder import FusedBuilder
from edge_imputer.export.fused.features import (
    filters,
    log_mel,
    mel_energy,
    mel_matrix,
    plan,
    second,
)
from edge_imputer.export.fused.loop import Loop, commits, exponentials
from edge_imputer.export.fused.streams import SCALES
from edge_imputer.export.graph import Array, Graph
from edge_imputer.export.reference import Interpreter
from edge_imputer.frontend import LogMel, hann_window, mel_filterbank
from edge_imputer.imputation import StreamingImputer, log_softmax
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import FeatureSpec, ImputerSpec, TokenSpec

from .fused_cases import RUNTIMES, load, pcm16
from .graphs import model_spec

DIGITS = Path(__file__).parents[1] / "train" / "digits" / "audio"
SPECS = {
    "default": FeatureSpec(mean=-8.0, std=3.0),
    "8 kHz": FeatureSpec(
        sample_rate=8000, frame_length=200, hop_length=80, n_fft=256, f_max_hz=3800.0, n_mels=24
    ),
    "odd P": FeatureSpec(frame_length=480, hop_length=160, n_fft=480, n_mels=30),
    "one row": FeatureSpec(frame_length=256, hop_length=256, n_fft=256, n_mels=20),
    "odd rows": FeatureSpec(frame_length=135, hop_length=45, n_fft=135, n_mels=10),
    "no common divisor": FeatureSpec(frame_length=60, hop_length=25, n_fft=64, n_mels=8),
}


def feature_graph(spec: FeatureSpec, n_frames: int, pcm: str = "float32") -> Graph:
    g = FusedBuilder("features")
    x = g.input("samples", (plan(spec).kept + n_frames * spec.hop_length,), pcm)
    if pcm != "float32":
        x = g.cast("float", x, "float32")
    energy = mel_energy(g, "x", x, spec, SCALES[pcm])
    g.graph.outputs = [log_mel(g, "x", energy, spec)]
    return g.graph


def lead(spec: FeatureSpec) -> int:
    """Samples at the beginning that no frame reads."""
    return plan(spec).kept - (spec.frame_length - spec.hop_length)


@pytest.mark.parametrize("name", SPECS)
def test_the_two_sums_are_the_transform(name: str) -> None:
    """To the rounding of the constants; and the mel weights find every bin once."""
    spec = SPECS[name]
    p = plan(spec)
    x = np.random.default_rng(0).standard_normal(p.frame_rows * p.row)
    bank = filters(spec, 1.0).reshape(p.frame_rows, p.row, -1)
    parts = np.einsum("rq,rqm->mq", x.reshape(p.frame_rows, p.row), bank).reshape(-1, 2 * p.row)
    real, imaginary = np.split(parts @ second(spec).T, 2, axis=1)
    power = real**2 + imaginary**2  # (n_first, row)
    frame = x[x.size - spec.frame_length :] * hann_window(spec.frame_length)
    spectrum = np.abs(np.fft.rfft(frame, spec.n_fft)) ** 2
    got = np.einsum("mkq,kq->m", mel_matrix(spec), power)
    np.testing.assert_allclose(got, spectrum @ mel_filterbank(spec), rtol=2e-5)
    assert mel_matrix(spec).sum() == pytest.approx(mel_filterbank(spec).sum(), rel=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["default", "8 kHz", "no common divisor"])
def test_features_of_speech_in_every_runtime(
    tmp_path: Path, micro: str, runtime: str, name: str
) -> None:
    """Speech over faint noise, at several levels; in nats, before the normalisation."""
    spec = msgspec.structs.replace(SPECS[name], mean=0.0, std=1.0)
    speech = read_audio(min(DIGITS.rglob("*.ogg")))[0]
    noise = np.random.default_rng(0).standard_normal(speech.size).astype(np.float32)
    samples = (speech + 1e-4 * noise)[: plan(spec).kept + 40 * spec.hop_length]
    model = load(feature_graph(spec, 40), runtime, tmp_path, micro)
    for level in (1.0, 0.03):
        x = (level * samples).astype(np.float32)
        (got,) = model.run([x])
        np.testing.assert_allclose(got, LogMel(spec)(x[lead(spec) :]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_silence_full_scale_and_a_tone(tmp_path: Path, micro: str, runtime: str) -> None:
    """Where nothing is, there is the floor; beside a tone, what rounding leaves of it."""
    spec = SPECS["default"]
    model = load(feature_graph(spec, 4, "int16"), runtime, tmp_path, micro)
    n = plan(spec).kept + 4 * spec.hop_length
    floor = np.float32((np.log(spec.log_floor) - spec.mean) / spec.std)
    np.testing.assert_allclose(model.run([np.zeros(n, np.int16)])[0], floor, rtol=1e-6)
    rng = np.random.default_rng(1)
    tone = pcm16(0.9 * np.sin(2 * np.pi * 1000 / spec.sample_rate * np.arange(n)))
    for x in (tone, rng.choice(np.array([-32768, 32767], np.int16), n)):
        expected = LogMel(spec)(x[lead(spec) :].astype(np.float32) / 32768)
        np.testing.assert_allclose(model.run([x])[0], expected, atol=0.02)


def head_graph(
    head: ImputerSpec, tokens: TokenSpec, scale: float, rng: np.random.Generator
) -> Graph:
    """A head whose logits are the frames plus what the alignment says of each: easily tied."""
    g = GraphBuilder("imputer")
    frames = g.input("encoder_window", (head.window, tokens.vocabulary_size))
    ids = g.input("alignment", (head.window,), "int32")
    table = rng.integers(-9, 10, (tokens.mask_id + 1, tokens.vocabulary_size)).astype(np.float32)
    seen = g.binary("add", "seen", frames, g.embedding("told", ids, table))
    before = g.slice("before", seen, 0, 0, head.chunk_size)
    chunk = g.slice("chunk", seen, 0, head.left_context, head.chunk_size)
    g.graph.outputs = [g.binary("add", "logits", before, chunk)]
    for tensor in g.graph.tensors.values():
        if tensor.dtype == "float32":
            tensor.dtype, tensor.quant = "int8", QuantParams(scale=scale, zero_point=3)
            if tensor.data is not None:
                tensor.data = tensor.data.astype(np.int8)
    return g.graph


def loop_graph(
    imputer: Graph, fields: dict[str, object], passes: list[int], revisions: int
) -> Graph:
    """The passes alone: frames and what each pass sees left of them in, decisions out."""
    spec = model_spec(**fields)
    g = FusedBuilder("loop")
    shape = imputer.tensors[imputer.inputs[0]].shape
    g.input("frames", shape)
    g._typed("frames", "int8", imputer.tensors[imputer.inputs[0]].quant)
    loop, left, after = Loop(g, imputer, spec, "frames"), spec.head.left_context, []
    for k, n in enumerate([*passes, *[None] * revisions]):
        before = g.input(f"before{k}", (left,), "int32") if left else None
        name = f"pass{k}"
        after.append(loop.revise(name, before) if n is None else loop.run_pass(name, before, n))
    g.graph.outputs = [g.cast("tokens", loop.tokens, "int32"), loop.log_probs()]
    g.graph.outputs += [name for name in after if name]
    return g.graph


@st.composite
def loops(draw: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...]]:
    """A head and a schedule, passes without commits among them."""
    block = draw(st.integers(1, 6))
    fields = {
        "block_size": block,
        "chunk_blocks": draw(st.integers(1, 3)),
        "depth": draw(st.integers(1, 2)),
        "kernel": draw(st.sampled_from([1, 3])),
        "order": draw(st.sampled_from(["confidence", "left-to-right", "non-blank-first"])),
    }
    schedule = draw(st.lists(st.integers(0, block), min_size=1, max_size=5))
    missing = max(0, block - sum(schedule))
    schedule.insert(draw(st.integers(0, len(schedule))), missing)
    return fields | {"schedule": tuple(schedule)}, tuple(schedule)


@settings(max_examples=60, deadline=None)
@given(
    case=loops(), revisions=st.integers(0, 2), seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.02, 0.11, 0.5]), spread=st.sampled_from([2, 8, 40]),
)  # fmt: skip
def test_the_loop_commits_what_the_imputer_commits(
    case: tuple[dict[str, object], tuple[int, ...]],
    revisions: int,
    seed: int,
    scale: float,
    spread: int,
) -> None:
    """On logits with many ties: tokens, log-probabilities, and what the next chunk sees."""
    fields, schedule = case
    spec, rng = model_spec(**fields), np.random.default_rng(seed)
    head, tokens = spec.head, spec.tokens
    imputer = head_graph(head, tokens, float(np.float32(scale)), rng)
    passes = commits(schedule, head.block_size)
    loop = Interpreter(graph := loop_graph(imputer, fields, passes, revisions))
    whole = Interpreter(imputer)
    zeros = np.full((head.left_context, tokens.vocabulary_size), 3, np.int8)

    def step(frames: Array, ids: Array) -> Array:
        logits = whole.run({"encoder_window": frames, "alignment": ids})["logits"]
        return (logits.astype(np.float32) - np.float32(3)) * np.float32(scale)

    expected = StreamingImputer(
        step, head, tokens, context=zeros, schedule=schedule, revisions=revisions
    )
    context = zeros
    blanks = np.full(head.left_context, tokens.blank_id, np.int32)
    before = [blanks] * (len(passes) + revisions)
    for _ in range(3):
        chunk = rng.integers(-spread, spread + 1, (head.chunk_size, tokens.vocabulary_size))
        chunk = chunk.astype(np.int8)
        frames = np.concatenate([context, chunk])
        named = {f"before{k}": row for k, row in enumerate(before)} if head.left_context else {}
        values = loop.run({"frames": frames, **named})
        outputs = [values[name] for name in graph.outputs]
        wanted = expected.push_chunk(chunk)
        np.testing.assert_array_equal(outputs[0], wanted.alignment)
        rows = wanted.log_probs[np.arange(head.chunk_size), wanted.alignment]
        np.testing.assert_allclose(outputs[1], rows, atol=1e-6)
        context, before = frames[head.chunk_size :], outputs[2:] or before


@given(n_tokens=st.integers(2, 4096), scale=st.floats(1e-3, 2), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_odds_have_no_rounding_until_their_parts_are_joined(
    n_tokens: int, scale: float, seed: int
) -> None:
    """In any order, and in float32 as in float64; and they are the probability's."""
    rng = np.random.default_rng(seed)
    table, gaps = exponentials(scale, n_tokens), rng.integers(0, 256, n_tokens)
    gaps[0] = 0
    exact = table[gaps].astype(np.float64).sum(0)
    for order in (gaps, rng.permutation(gaps), np.sort(gaps)):
        total = np.zeros(2, np.float32)
        for gap in order:
            total += table[gap]
        np.testing.assert_array_equal(total.astype(np.float64), exact)
    best = log_softmax((-scale * gaps[np.newaxis]).astype(np.float32))[0, 0]
    odds = np.float32(exact[0] - 1) + np.float32(exact[1])
    assert -np.log1p(odds) == pytest.approx(float(best), rel=1e-4, abs=1e-4)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ExportError, match=r"at most 4096 tokens .* got 4097; decode outside"):
        exponentials(0.1, 4097)


def test_passes_that_commit_nothing_are_left_out() -> None:
    assert commits((0, 3, 0, 2, 9, 4), 8) == [3, 2, 3]
    assert commits((1,) * 8, 8) == [1] * 8
    assert commits((9,), 8) == [8]


def test_long_concatenations_are_in_parts() -> None:
    g = FusedBuilder("parts")
    names = [g.constant(f"c{k}", np.full((1, 2), k, np.float32)) for k in range(123)]
    g.graph.outputs = [g.join("all", names, 0)]
    assert max(len(op.inputs) for op in g.graph.ops) == 10
    got = Interpreter(g.graph).run({})["all"]
    np.testing.assert_array_equal(got[:, 0], np.arange(123))
    assert g.join("one", ["c5"], 0) == "c5"
