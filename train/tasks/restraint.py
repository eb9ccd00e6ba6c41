"""Speech that nobody transcribed, but in which a keyword was heard that nobody said."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_imputer.keywords import KeywordScorer, check_keywords
from edge_imputer.specs import BLANK_ID, ModelSpec
from edge_imputer.spotter import keyword_detector
from edge_imputer.tokens import Tokenizer

from ..objective import ctc_loss

LEAST = 1e-5  # added to -log p, which float32 may take below 0 where the keyword is certain


class Restraint:
    """Keeps keywords out of the clips in which they were wrongly heard.

    What else is said there is not known, so CTC has no targets. But where a keyword was heard is
    known: `KeywordScorer`, which also decides it in use, gives the frames of its best path. There
    the keyword is to be improbable (the unlikelihood of Welleck et al. 2020, arXiv:1908.04319, of a
    text instead of a token)::

        loss = -log(1 - p),  p = P(keyword | its frames) ** (1 / its tokens)

    with P summed over the alignments within these frames (CTC), and by token as a confidence is.

    Parameters
    ----------
    spec : ModelSpec
    keywords : spelled with the model's characters

    Raises
    ------
    SpecError, TokenError
        No keyword, a repeated one, or one that the model cannot spell.
    """

    def __init__(self, spec: ModelSpec, keywords: tuple[str, ...]) -> None:
        check_keywords(keywords)
        tokenizer = Tokenizer(spec.tokens)
        self._ids = [tokenizer.encode(keyword) for keyword in keywords]
        self._scorer: KeywordScorer = keyword_detector(spec, dict.fromkeys(keywords, 1.0)).scorer

    def losses(self, logits: Tensor, frames: Tensor) -> Tensor:
        """The loss of each utterance, (N,); 0 where no keyword fits.

        Parameters
        ----------
        logits : (N, T, V)
        frames : (N,)
            Each utterance's own; what follows is of its padding.
        """
        found = [
            (row, *heard)
            for row, n in enumerate(frames.tolist())
            if (heard := self._best(logits[row, :n])) is not None
        ]
        if not found:
            return 0.0 * logits.sum((1, 2))  # with a gradient, as others have
        pieces = [logits[row, start : end + 1] for row, _, start, end in found]
        targets = [torch.tensor(self._ids[keyword]) for _, keyword, _, _ in found]
        n_tokens = torch.tensor([len(ids) for ids in targets], device=logits.device)
        unlikely: Tensor = ctc_loss(
            torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True),
            torch.nn.utils.rnn.pad_sequence(targets, batch_first=True).to(logits.device),
            torch.tensor([len(piece) for piece in pieces], device=logits.device),
            n_tokens,
            blank_id=BLANK_ID,
            reduction="none",
            zero_infinity=True,
            validate=False,
        )
        rows = torch.tensor([row for row, *_ in found], device=logits.device)
        losses = -(-torch.expm1(-unlikely / n_tokens - LEAST)).log()
        return losses.new_zeros(len(logits)).index_add(0, rows, losses)

    def _best(self, logits: Tensor) -> tuple[int, int, int] | None:
        """Keyword, first and last frame of what is most likely to fire; None: nothing could."""
        if not len(logits):
            return None
        log_probs = logits.detach().float().log_softmax(-1).cpu().numpy()
        self._scorer.reset()
        parts = [self._scorer.push(log_probs), self._scorer.finish()]
        best: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        for part in parts:
            frame, keyword = divmod(int(part.confidence.argmax()), len(self._ids))
            confidence = float(part.confidence[frame, keyword])
            if confidence > best[0]:
                start, end = int(part.start[frame, keyword]), int(part.end[frame, keyword])
                best = confidence, keyword, start, end
        return best[1:] if best[0] > 0 else None
