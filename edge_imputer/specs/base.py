"""What every specification is."""

from __future__ import annotations

import msgspec


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen, unknown keys refused. (Keyword-only is not inherited: each spec says it.)"""
