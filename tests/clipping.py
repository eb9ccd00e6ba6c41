"""What everything that listens along a stream says of clipped audio."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from edge_imputer.audio import ClippingWarning

RATE = 16_000


class Listens(Protocol):
    """A decoder or a spotter."""

    def push(self, pcm: npt.NDArray[Any], *, sample_rate: int) -> object: ...

    def flush(self) -> object: ...

    def reset(self) -> None: ...


def check_clipping_warnings(listening: Listens) -> None:
    """One a stream, and again one in the next, however the last one ended."""
    clipped = np.ones(500, np.float32)
    for end in (listening.flush, listening.reset, listening.flush):
        with pytest.warns(ClippingWarning) as caught:
            listening.push(clipped, sample_rate=RATE)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            listening.push(clipped, sample_rate=RATE)
            end()
