"""Settings of the scores."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from edge_imputer.errors import SpecError

Loss = Literal["auto", "ctc", "imputer"]
Entropy = Literal["frame", "sequence"]


class ScoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set; each strategy takes some of it, see `STRATEGIES`.

    Attributes
    ----------
    loss : "auto", "ctc" or "imputer"
        Of a model with an Imputer head, which loss's output layer counts: the encoder's CTC, or
        the head's. "auto" is the head's where there is one. All that is heard comes from it too.
    n_best : int
        Labelings that "egl" sums over, the most probable ones that a beam of this width finds.
    renormalise : bool
        Whether their probabilities are divided by their sum: as if no other labeling could be,
        which puts "egl" far too high where many can. Without, it is the sum as the paper has it,
        and falls towards 0 as clips get longer.
    n_samples : int
        Labelings that are drawn, where they are.
    n_masks : int
        Random roll-ins that an Imputer head is shown: partial alignments of what it hears.
    squared : bool
        Whether a gradient's length is squared, as in the paper: then scores of frames add up, and
        "egl-bound" is one. Else it is the length itself.
    parameters : tuple of str
        Names of the model's parameters, as ``task.named_parameters()`` has them, whose gradient
        counts in the place of the output layer's. By autograd, a clip and labeling at a time.
    entropy : "frame" or "sequence"
        The sum of the frames' entropies, in one pass; or the labeling's, from `n_samples` draws.
    dimensions : int
        Numbers of an embedding, at most.
    """

    loss: Loss = "auto"
    n_best: int = 10
    renormalise: bool = True
    n_samples: int = 16
    n_masks: int = 2
    squared: bool = True
    parameters: tuple[str, ...] = ()
    entropy: Entropy = "frame"
    dimensions: int = 128

    def check(self) -> None:
        """Raise `SpecError` on values that no score can be computed with."""
        for name, choices in (("loss", Loss), ("entropy", Entropy)):
            if getattr(self, name) not in get_args(choices):
                raise SpecError(
                    f"{name}: expected one of {', '.join(get_args(choices))}, got "
                    f"{getattr(self, name)!r}"
                )
        for name in ("n_best", "n_samples", "n_masks", "dimensions"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: expected 1 or more, got {getattr(self, name)}")
