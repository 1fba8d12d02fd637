"""What was found by who looked: the values the doctor hands on, and how it says numbers and lengths of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from billing.vitals import COUNTED

SHOWN = 5

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. A note is worth knowing and nothing to be done about."""

    group: str
    level: Level
    sentence: str
    cure: str | None = None


@dataclass(frozen=True)
class Expected:
    """What the settings say of it."""

    livemode: bool
    secrets: Sequence[str] = ()  # fingerprints of the configured signing secrets, in their order
    portal: str | None = None
    webhook_every: timedelta | None = None
    may_bypass: bool = False


def span(seconds: float) -> str:
    """A length of time, as people say it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def many(number: int) -> str:
    """A number that was not counted to its end."""
    return f"more than {COUNTED:,}" if number > COUNTED else f"{number:,}"


def number_of(number: int, one: str, more: str | None = None, *, exact: bool = False) -> str:
    """So many of something: `1 event`, `2 events`. Exact is what was counted to its end."""
    written = f"{number:,}" if exact else many(number)
    return f"{written} {one if number == 1 else more or f'{one}s'}"


def few(names: Iterable[str]) -> str:
    """The first of them."""
    listed = list(names)
    rest = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "nothing") + rest
