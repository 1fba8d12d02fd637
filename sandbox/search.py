"""Stripe's search query language, as far as it asks for metadata: metadata['key']:'value' AND ….

All clauses have to hold; a space joins them as AND does. Keys and values match as they are written.
"""

import re

from sandbox.errors import not_here
from sandbox.store import Json

QUOTED = r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
CLAUSE = rf"metadata\[{QUOTED}\]:{QUOTED}"
QUERY = re.compile(rf"\s*{CLAUSE}(?:\s+(?:AND\s+)?{CLAUSE})*\s*", re.IGNORECASE)


def clauses(query: str) -> list[tuple[str, str]]:
    """The keys and values that are asked for."""
    if not QUERY.fullmatch(query):
        raise not_here(f"the search query {query}")
    return [(unquoted(key), unquoted(value)) for key, value in re.findall(CLAUSE, query)]


def unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def matches(thing: Json, wanted: list[tuple[str, str]]) -> bool:
    return all(thing["metadata"].get(key) == value for key, value in wanted)
