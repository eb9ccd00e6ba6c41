"""A training recipe: what can be set, read from TOML, unknown keys refused."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_imputer.errors import SpecError
from edge_imputer.specs import CrnnSpec, EncoderSpec, ImputerSpec, check_pair

from .data import AugmentSpec


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train. The defaults are the demo's: small data, a few minutes on two cores."""

    encoder: EncoderSpec = CrnnSpec()
    head: ImputerSpec = ImputerSpec()
    augment: AugmentSpec = AugmentSpec()
    updates: int = 3600
    batch_size: int = 16
    learning_rate: float = 4e-3
    warmup: float = 0.05  # share of the updates over which the learning rate rises
    weight_decay: float = 0.1
    logit_penalty: float = 1e-3  # times the head's mean squared logit: int8 steps stay fine
    dropout: float = 0.1
    gradient_clip: float = 1.0
    ctc_weight: float = 0.8  # of the encoder's own CTC loss; the head's is one minus this
    intermediate_weight: float = 0.5  # of a conformer's intermediate CTC in the encoder's loss
    stop_gradient: bool = True  # the head learns on the encoder, the encoder by CTC alone
    flat_start: float = 0.1  # share of the updates guided by evenly spread transcripts
    all_masked: float = 0.2  # share of the updates in which the head sees masks only
    valid_every: int = 400  # updates between two looks at the validation split
    seed: int = 1

    @property
    def flat_start_updates(self) -> int:
        """Updates guided by evenly spread transcripts."""
        return round(self.flat_start * self.updates)

    def check(self) -> None:
        """Raise `SpecError` on values that cannot train."""
        if min(self.updates, self.batch_size, self.valid_every) < 1 or self.learning_rate <= 0:
            raise SpecError(
                "expected updates, batch_size, valid_every >= 1 and learning_rate > 0, got "
                f"{self.updates}, {self.batch_size}, {self.valid_every}, {self.learning_rate}"
            )
        shares = {"flat_start": self.flat_start, "all_masked": self.all_masked}
        shares |= {"warmup": self.warmup, "dropout": self.dropout, "ramp": self.augment.ramp}
        wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
        if wrong:
            raise SpecError(f"expected shares of at least 0 and below 1, got {wrong}")
        self.encoder.check()
        self.head.check()
        check_pair(self.encoder, self.head)
        self.augment.check()
        if not 0 <= self.intermediate_weight < 1:
            raise SpecError(
                f"expected intermediate_weight from 0 to below 1, got {self.intermediate_weight}"
            )
        if not self.stop_gradient and not 0.8 <= self.ctc_weight <= 1.0:
            raise SpecError(
                f"expected ctc_weight between 0.8 and 1 without stop_gradient, got "
                f"{self.ctc_weight}: a smaller one was measured to ruin the encoder"
            )


def read_config(path: Path) -> TrainConfig:
    """A recipe from a TOML file."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=TrainConfig)
    except FileNotFoundError:
        raise SpecError(f"expected a TOML recipe at {path}, found no file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    config.check()
    return config
