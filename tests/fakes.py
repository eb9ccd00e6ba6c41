"""A small deterministic model in numpy: real recurrence, a real head, no training, no runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_imputer.backends.base import Array, Float32, Int32, State
from edge_imputer.bundle import (
    FileRecord,
    GraphRecord,
    Manifest,
    Metrics,
    Provenance,
    TensorRecord,
    write_manifest,
)
from edge_imputer.quantization import QuantParams
from edge_imputer.specs import (
    ConvSpec,
    CrnnSpec,
    FeatureSpec,
    ImputerSpec,
    ModelSpec,
    TokenSpec,
)
from edge_imputer.specs.head import Order


def small_spec(
    *,
    block_size: int = 4,
    chunk_blocks: int = 1,
    depth: int = 1,
    kernel: int = 3,
    hidden: int = 6,
    characters: tuple[str, ...] = (" ", "a", "b", "c"),
    schedule: tuple[int, ...] | None = None,
    order: Order = "confidence",
    flush_ms: int = 160,
) -> ModelSpec:
    """A model spec with a real front end and small everything else."""
    return ModelSpec(
        features=FeatureSpec(n_mels=10, mean=-4.0, std=3.0),
        encoder=CrnnSpec(conv=(ConvSpec(channels=2), ConvSpec(channels=2)), hidden=hidden),
        head=ImputerSpec(
            depth=depth,
            width=4,
            kernel=kernel,
            block_size=block_size,
            chunk_blocks=chunk_blocks,
            schedule=(1,) * block_size if schedule is None else schedule,
            order=order,
        ),
        tokens=TokenSpec(characters=characters),
        flush_ms=flush_ms,
    )


class FakeBackend:
    """Random weights: a gated recurrence over the features, a head that mixes its window.

    Always called with the same shapes, so its bits do not depend on how a stream was cut.
    `n_head_calls` and `n_encoder_calls` count.
    """

    def __init__(self, spec: ModelSpec, *, seed: int = 0, gain: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        d, head = spec.encoder.d_model, spec.head
        n_features = spec.encoder.subsampling * spec.features.n_mels

        def weights(*shape: int) -> Float32:
            return rng.standard_normal(shape, np.float32)

        self.name = "fake"
        self.spec = spec
        self._gate = weights(n_features + d, d) / np.float32(np.sqrt(n_features + d))
        self._candidate = weights(n_features + d, d)
        self._mix = weights(head.chunk_size, head.window) / np.float32(np.sqrt(head.window))
        self._embedding = weights(spec.tokens.vocabulary_size + 1, d)
        self._output = np.float32(gain) * weights(d, spec.tokens.vocabulary_size)
        self.n_head_calls = 0
        self.n_encoder_calls = 0

    def initial_state(self) -> State:
        return (np.zeros(self.spec.encoder.d_model, np.float32),)

    def initial_context(self) -> Array:
        return np.zeros((self.spec.head.left_context, self.spec.encoder.d_model), np.float32)

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        assert features.shape == (self.spec.encoder.subsampling, self.spec.features.n_mels)
        self.n_encoder_calls += 1
        x = np.concatenate([features.ravel(), state[0]])
        gate = 1 / (1 + np.exp(-(x @ self._gate)))
        h = (gate * state[0] + (1 - gate) * np.tanh(x @ self._candidate)).astype(np.float32)
        return h[np.newaxis], (h,)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        assert encoder_window.shape == (self.spec.head.window, self.spec.encoder.d_model)
        assert alignment_window.shape == (self.spec.head.window,)
        assert alignment_window.dtype == np.int32
        self.n_head_calls += 1
        x = encoder_window + self._embedding[alignment_window]
        mixed: Float32 = np.tanh(self._mix @ x) @ self._output
        return mixed


@dataclass(frozen=True)
class Described:
    """The least that a model has: its spec."""

    spec: ModelSpec


class ScriptedBackend(FakeBackend):
    """Says what it is told: one row of logits an encoder frame, whatever is heard.

    The encoder's frame carries its own number, and the head looks its chunk's rows up.
    """

    def __init__(self, spec: ModelSpec, logits: npt.ArrayLike) -> None:
        super().__init__(spec)
        self.logits = np.asarray(logits, np.float32)  # (T, V)

    def encoder_step(self, features: Float32, state: State) -> tuple[Array, State]:
        number = state[0] + 1
        return number[np.newaxis], (number,)

    def imputer_step(self, encoder_window: Array, alignment_window: Int32) -> Float32:
        self.n_head_calls += 1
        frames = encoder_window[-self.spec.head.chunk_size :, 0].astype(int) - 1
        rows: Float32 = self.logits[frames]
        return rows


def logits_of(spec: ModelSpec, alignment: str, *, margin: float = 8.0) -> Float32:
    """Logits that spell an alignment such as ``"..a.bb"``; a dot is the blank."""
    ids = [0 if c == "." else spec.tokens.characters.index(c) + 1 for c in alignment]
    return np.float32(margin) * np.eye(spec.tokens.vocabulary_size, dtype=np.float32)[ids]


def noise(n_samples: int, *, seed: int = 0, level: float = 0.1) -> Float32:
    """White noise that never clips, float32 (n,)."""
    rng = np.random.default_rng(seed)
    return np.clip(level * rng.standard_normal(n_samples, np.float32), -0.9, 0.9)


def write_bundle(folder: Path, **changes: Any) -> Manifest:
    """A bundle of two files that only look like models; `changes` replace manifest fields."""
    files = {}
    for name in ("onnx/encoder.onnx", "onnx/imputer.onnx"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        files[name] = FileRecord(sha256=hashlib.sha256(name.encode()).hexdigest(), bytes=len(name))
    tensor = TensorRecord(
        name="x", shape=(1, 4), dtype="int8", quant=QuantParams(scale=0.5, zero_point=-3)
    )
    ids = TensorRecord(name="ids", shape=(4,), dtype="int32", quant=None)
    manifest = Manifest(
        schema_version=5,
        minimum_runtime_version="0.1.0",
        name="fake",
        spec=small_spec(),
        graphs=(
            GraphRecord(
                name="encoder",
                inputs=(tensor,),
                outputs=(tensor,),
                n_states=0,
                macs=10,
                arena_bytes=64,
                weight_bytes=32,
            ),
            GraphRecord(
                name="imputer",
                inputs=(tensor, ids),
                outputs=(tensor,),
                n_states=0,
                macs=10,
                arena_bytes=64,
                weight_bytes=32,
            ),
        ),
        keyword_threshold=None,
        operating_point=None,
        metrics=Metrics(
            data=None,
            digit_accuracy=None,
            wer=None,
            keyword_recall=None,
            keyword_fa_per_hour=None,
            negative_hours=None,
        ),
        licence="Apache-2.0",
        provenance=Provenance(
            data="none", n_clips=0, seed=0, updates=0, checkpoint_sha256="0" * 64, created_by="test"
        ),
        files=files,
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    write_manifest(folder, manifest)
    return manifest
