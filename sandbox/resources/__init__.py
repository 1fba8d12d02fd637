"""What the sandbox can do, one module per Stripe resource, each a list of operations.

An operation is an address, the SDK's type of its parameters and a function of the store and what was
read from the request; it answers the resource as JSON or raises a Refusal. It runs with the store's
lock held. Shared here: ids, addresses, lists by page, and what `expand` asks for.
"""

import re
import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from sandbox.errors import Refusal, not_here
from sandbox.store import NO_REQUEST, Json, Store
from sandbox.wire import Params

ALPHABET = string.ascii_letters + string.digits
DEEPEST_EXPANSION = 4  # a list's `data` counts


@dataclass(frozen=True)
class Operation:
    """`run(call, **ids)`, the ids being those in the address."""

    method: str
    path: str
    params: type
    run: Callable[..., Json]
    empty_unsets: bool = False


@dataclass(frozen=True)
class Call:
    """What an operation works with."""

    store: Store
    params: Params
    public_url: str
    request: Json = field(default_factory=lambda: NO_REQUEST)


def new_id(prefix: str, length: int = 14) -> str:
    return f"{prefix}_{''.join(secrets.choice(ALPHABET) for _ in range(length))}"


def pick(params: Params, *names: str) -> Params:
    """The given parameters of these names; another one that was given is more than the sandbox can do."""
    for name in params.keys() - {*names, "expand"}:
        raise not_here(f"the parameter '{name}' of this operation")
    return {name: value for name, value in params.items() if name != "expand"}


def check_url(url: str | None, param: str) -> None:
    if url is not None and not is_of_the_web(url):
        raise Refusal("Not a valid URL", code="url_invalid", param=param)


def is_of_the_web(url: str) -> bool:
    """Whether it has a host, and can be read by those who have to say which."""
    try:
        urlsplit(url)
    except ValueError:
        return False
    return bool(re.match(r"https?://[^/?#\s]", url))


def expanded(call: Call, thing: Json) -> Json:
    """The resource with the ids named in `expand` replaced by what they stand for."""
    for name in call.params.get("expand", []):
        path = name.split(".")
        if len(path) > DEEPEST_EXPANSION:
            raise Refusal(
                f"You cannot expand more than {DEEPEST_EXPANSION} levels of a property. Property: {name}",
                code="property_expansion_max_depth",
            )
        thing = with_expanded(call.store, thing, path, name)
    return thing


def with_expanded(store: Store, value: Any, path: list[str], name: str) -> Any:
    """`value` with what is at the end of the path expanded, and unchanged itself."""
    if isinstance(value, list):
        return [with_expanded(store, member, path, name) for member in value]
    if isinstance(value, str):
        value = store.lookup(value)
    if value is None:
        return None
    if not path:
        return value
    if not isinstance(value, dict) or path[0] not in value or path == ["id"]:
        raise not_expandable(name)
    member = value[path[0]]
    found = with_expanded(store, member, path[1:], name)
    is_part = len(path) == 1 and isinstance(member, dict) and "object" not in member
    if is_part or (found is None and member is not None):
        raise not_expandable(name)
    return value | {path[0]: found}


def not_expandable(name: str) -> Refusal:
    return Refusal(f"This property cannot be expanded ({name}).", param="expand")


def merged_metadata(before: dict[str, str], given: dict[str, str] | None) -> dict[str, str]:
    """Empty values remove keys, an empty hash's worth removes all."""
    merged: dict[str, str] = before | given if given is not None else {}
    return {name: value for name, value in merged.items() if value != ""}


def merged(before: Any, given: Any) -> Any:
    """`before` with what was given on top, hash by hash."""
    if not (isinstance(before, dict) and isinstance(given, dict)):
        return given
    return before | {name: merged(before.get(name), value) for name, value in given.items()}


def listed(call: Call, kind: str, url: str, *fields: str, among: Iterable[Json] | None = None) -> Json:
    """A page of a kind, or of those `among` it, with the values that were given for these fields."""
    given = pick(call.params, "limit", "starting_after", "ending_before", "created", *fields)
    wanted = {name: given[name] for name in fields if name in given}
    things = call.store.collection(kind).values() if among is None else among
    found = [
        thing
        for thing in things
        if is_within(thing.get("created", 0), given.get("created", {}))
        and all(thing.get(name) == value for name, value in wanted.items())
    ]
    return page(found, call.params, url)


def is_within(instant: int, bounds: int | dict[str, int]) -> bool:
    """`bounds` as the lists' `created` has them: one instant, or any of gt, gte, lt and lte."""
    if isinstance(bounds, int):
        return instant == bounds
    return bounds.get("gt", instant - 1) < instant < bounds.get("lt", instant + 1) and bounds.get(
        "gte", instant
    ) <= instant <= bounds.get("lte", instant)


def page(things: Iterable[Json], params: Params, url: str) -> Json:
    """Stripe's list object: newest first, from a cursor, 10 or as many as asked for."""
    limit = params.get("limit", 10)
    if not 1 <= limit <= 100:
        bound = "greater than or equal to 1" if limit < 1 else "less than or equal to 100"
        raise Refusal(f"Invalid limit: must be {bound}", code="parameter_invalid_integer", param="limit")
    newest_first = list(things)[::-1]
    places = {thing["id"]: place for place, thing in enumerate(newest_first)}
    if (after := params.get("starting_after")) is not None:
        newest_first = newest_first[place_of(after, places, "starting_after") + 1 :]
    if (before := params.get("ending_before")) is not None:
        earlier = newest_first[: place_of(before, places, "ending_before")]
        return {"object": "list", "url": url, "data": earlier[-limit:], "has_more": len(earlier) > limit}
    return {"object": "list", "url": url, "data": newest_first[:limit], "has_more": len(newest_first) > limit}


def place_of(id: str, places: dict[str, int], param: str) -> int:
    if id not in places:
        raise Refusal(f"No such object: '{id}'", code="resource_missing", param=param)
    return places[id]
