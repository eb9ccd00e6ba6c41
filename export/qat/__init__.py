"""Quantisation-aware training: the forward pass is the exported int8 graph, integer by integer.

`exact` has the arithmetic, `kernels` the operations, `schedule` their order over whole utterances,
`executor` runs them, `models` puts them in place of a task's modules, and `quantiser` is what the
trainer is given.
"""

from .executor import QuantisedGraph
from .quantiser import ExportQuantiser

__all__ = ["ExportQuantiser", "QuantisedGraph"]
