"""Edge Imputer: keyword spotting and small speech recognition for small devices.

The runtime: audio, front end, constant-step decoding, keyword scores, backends. It needs no torch.
What is listed in ``__all__`` is loaded on first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import load_backend
    from .bundle import Bundle
    from .errors import EdgeImputerError
    from .events import Event, Final, Keyword, Partial, Transcript, Word
    from .recognizer import Recognizer
    from .spotter import KeywordSpotter

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "EdgeImputerError",
    "Event",
    "Final",
    "Keyword",
    "KeywordSpotter",
    "Partial",
    "Recognizer",
    "Transcript",
    "Word",
    "__version__",
    "load_backend",
]

_HOME = {
    "Bundle": "bundle",
    "EdgeImputerError": "errors",
    "Event": "events",
    "Final": "events",
    "Keyword": "events",
    "KeywordSpotter": "spotter",
    "Partial": "events",
    "Recognizer": "recognizer",
    "Transcript": "events",
    "Word": "events",
    "load_backend": "backends",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
