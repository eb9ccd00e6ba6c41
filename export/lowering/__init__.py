"""From trained torch modules to float graphs: the only place that reads torch weights.

`context` has the table of types, `layers`, `encoders` and `heads` fill it.
"""

from . import encoders, heads, layers
from .context import LOWERINGS, Lowering
from .layers import GRU_GAP, GRU_STATE
from .traced import TracedArray, untraced

__all__ = [
    "GRU_GAP",
    "GRU_STATE",
    "LOWERINGS",
    "Lowering",
    "TracedArray",
    "encoders",
    "heads",
    "layers",
    "untraced",
]
