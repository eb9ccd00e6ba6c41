"""A keyword model in torch, and the detector that it makes."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_imputer.frontend import Float32
from edge_imputer.frontends import frontend_of
from edge_imputer.keyword_stream import smoothed
from edge_imputer.specs import KeywordModelSpec, WindowedSpec

from .encoders import build_encoder
from .layers.base import State, StreamingLayer


class KeywordModel(StreamingLayer):
    """Feature frames -> logits of the classes, one a window or an encoder frame.

    See `KeywordModelSpec`. `step` takes what the encoder's does: any number of feature frames for
    windows and for conformers, whole encoder frames for the others; and `finish` gives what the
    encoder holds back at a stream's end.
    """

    def __init__(self, spec: KeywordModelSpec) -> None:
        super().__init__()
        spec.check()
        self.spec = spec
        self.encoder = build_encoder(spec.encoder, spec.features)
        self.classifier: nn.Module = nn.Identity()
        if not spec.windowed:
            self.classifier = nn.Linear(spec.encoder.d_model, len(spec.classes))

    def initial_state(self, batch: int = 1) -> State:
        """The encoder's."""
        return self.encoder.initial_state(batch)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by feature frames (B, t, n_mels): logits (B, t', C) and the next state."""
        out, state = self.encoder.step(chunk, state)
        return self.classifier(out), state

    def finish(self, state: State) -> Tensor:
        """Logits (B, t', C) that are due at a stream's end; t' may be 0."""
        end = getattr(self.encoder, "finish", None)
        if end is None:
            return state[0].new_zeros(len(state[0]), 0, len(self.spec.classes))
        return cast(Tensor, self.classifier(end(state)))

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the classifier reads: (B, T, n_mels) and (B,) -> (B, T', d) and (B,).

        Any lengths: what is left of an encoder frame is dropped.
        """
        if not self.spec.windowed:
            n, unit = features.shape[1], self.encoder.subsampling
            features = F.pad(features, (0, 0, 0, max(1, -(-n // unit)) * unit - n))
        out, n_frames = self.encoder(features, lengths)
        return out, n_frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score whole utterances.

        Parameters
        ----------
        x : (B, T, n_mels)
        lengths : (B,)
            Valid feature frames; what stands after them has no effect.

        Returns
        -------
        logits : (B, T', C)
        n_scores : (B,)
            Each utterance's own; what follows is of its padding.
        """
        out, n_scores = self.encode(x, lengths)
        return self.classifier(out), n_scores


class TorchKeywordSystem:
    """A trained keyword model as a detector: audio in, a score a keyword and frame out.

    Score t is of the audio up to ``(t + 1) * frame_s``, and what the last feature frame reaches
    beyond (15 ms; 12.5 ms where frames are centred, 20 ms of the microfrontend; a conformer's chunk
    besides), as a stream would have it: the posterior, averaged over the last
    ``spec.smoothing_ms``. Windows end there, and before the stream they have zeros, as the encoder
    puts after an utterance. A recording is followed by silence until its last chunk is whole. A
    keyword scores highest when it has been heard for a while, or lies in its window as in training:
    up to `latency_s` after its last sound. Whoever scores clips lets that much follow.

    `edge_imputer.keyword_stream.KeywordStream` gives the same scores from a bundle.

    Attributes
    ----------
    keywords : tuple of str
    frame_s : float
    latency_s : float
    """

    def __init__(self, model: KeywordModel) -> None:
        spec = model.spec
        self.model = model.eval()
        self.spec = spec
        self.keywords = spec.keywords
        self.frame_s = spec.frame_s
        self.latency_s = spec.latency_s
        self._frontend = frontend_of(spec.features)

    @torch.no_grad()
    def posteriors(self, waveform: Float32) -> Float32:
        """Probabilities of all classes, (T, C), without smoothing.

        Parameters
        ----------
        waveform : float32, (n,), in -1..1, at the front end's rate
        """
        device = next(self.model.parameters()).device
        n_scores = self.spec.n_scores(len(waveform))
        whole = np.pad(waveform, (0, self.spec.closing_samples(len(waveform))))
        features = torch.from_numpy(self._frontend(whole)).to(device)
        encoder = self.spec.encoder
        if isinstance(encoder, WindowedSpec):  # the first window ends with the first hop
            before = encoder.window_frames - encoder.hop_frames
            features = F.pad(features, (0, 0, before, 0))
            features = features[: before + n_scores * encoder.hop_frames]
            if not n_scores:
                return np.zeros((0, len(self.spec.classes)), np.float32)
        logits, _ = self.model(features[None], torch.tensor([len(features)], device=device))
        probabilities: Float32 = logits[0, :n_scores].softmax(-1).cpu().numpy()
        return probabilities

    def score(self, waveform: Float32) -> Float32:
        """Scores of the keywords, (T, K), in 0..1."""
        posteriors = self.posteriors(waveform)[:, 1 : 1 + len(self.keywords)]
        return smoothed(posteriors, self.spec.smoothing_frames)
