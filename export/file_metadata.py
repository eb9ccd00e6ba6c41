"""What a bundle's model files say of themselves: JSON texts under three keys.

``licence`` is in every file of ``onnx/``, ``tflite/`` and ``fused/``. ``labels`` (names of the
outputs, in order) and ``features`` (the specification of the front end) are in those of the graph
that gives a model's answer, the head, the keyword model or the fused one, which has the front end
in it: who has the files alone knows what goes in and what comes out, and it is said once.
"""

from __future__ import annotations

import msgspec

from edge_imputer.specs import AnyModelSpec, KeywordModelSpec

BLANK = "<blank>"
UNSTATED = "unstated"  # the licence of a model whose owner said none


def labels_of(spec: AnyModelSpec) -> list[str]:
    """Names of a model's outputs, in order: a keyword model's classes, or blank and characters."""
    if isinstance(spec, KeywordModelSpec):
        return list(spec.classes)
    return [BLANK, *spec.tokens.characters]


def file_metadata(spec: AnyModelSpec, licence: str, *, last: bool) -> dict[str, str]:
    """Metadata of one graph's files.

    Parameters
    ----------
    spec : ModelSpec or KeywordModelSpec
    licence : str
    last : bool
        Whether the graph gives the model's answer.
    """
    texts: dict[str, object] = {"licence": licence}
    if last:
        texts |= {"labels": labels_of(spec), "features": spec.features}
    return {key: msgspec.json.encode(value).decode() for key, value in texts.items()}
