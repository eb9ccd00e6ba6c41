"""From trained torch modules to float graphs: the only place that reads torch weights.

`context` has the table of types, the other modules fill it.
"""

from . import attention, encoders, heads, layers  # noqa: F401 - they fill the table
from .context import LOWERINGS, Lowering
from .layers import GRU_GAP, GRU_STATE
from .traced import TracedArray, untraced

__all__ = ["GRU_GAP", "GRU_STATE", "LOWERINGS", "Lowering", "TracedArray", "untraced"]
