"""What all operations share: pages of long lists, and how their answers are written for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SHOWN = 50  # of a list, at once


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list, and where the next of it begin, as text; None at the end."""

    rows: Sequence[T]
    after: str | None

    @classmethod
    def of(cls, found: Sequence[T], most: int, key: Any) -> Page[T]:
        """Of one row more than are wanted, if there are so many. `key` says where a row stands."""
        rows = found[:most]
        return cls(rows, str(key(rows[-1])) if len(found) > most else None)


def plain(value: Any) -> Any:
    """As JSON has it: dataclasses as objects, moments in UTC, bytes not at all."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value
