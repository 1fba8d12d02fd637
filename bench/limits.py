"""How figures and verdicts are written: a median with what it lies between, and whether a limit holds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, the least and the most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def verdict(holds: bool, what: str, found: str) -> bool:
    """Say whether a limit holds, and pass it on."""
    print(f"{'holds' if holds else 'FAILS'}  {what}: {found}")
    return holds
