"""Says where JSON differs from the SDK's annotations of what it should be.

Every field that is not Optional must be there, every field of the right type, and none that the SDK
does not know. Open enums (`Literal[...] | str`) are taken as closed: the sandbox invents no values. What
is deleted is down to its id. An annotation is read once and kept as a check, a function from a value to
what is wrong with it, each with the path to it.
"""

import functools
from collections.abc import Callable
from decimal import Decimal
from types import GenericAlias, NoneType, UnionType
from typing import Any, ClassVar, ForwardRef, Literal, Union, get_args, get_origin

from stripe import ListObject, SearchResultObject, StripeObject
from stripe._object_classes import get_object_class
from stripe._stripe_object import UntypedStripeObject

Check = Callable[[Any], list[str]]

WIRE_TYPES: dict[Any, Any] = {Any: object, Decimal: str, float: (int, float)}

PAGES: dict[Any, dict[str, Any]] = {
    ListObject: {"object": Literal["list"], "url": str, "has_more": bool},
    SearchResultObject: {
        "object": Literal["search_result"],
        "url": str,
        "has_more": bool,
        "next_page": str | None,
    },
}


def differences(annotation: Any, value: Any) -> list[str]:
    return check_of(annotation)(value)


@functools.cache
def check_of(annotation: Any) -> Check:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return of_a_union(arguments)
    if origin is Literal:
        return lambda value: [] if value in arguments else [f": {value!r} is none of {arguments}"]
    if origin is list:
        return of_a_list(arguments[0])
    if origin in PAGES:
        return of_members(PAGES[origin] | {"data": GenericAlias(list, arguments)}, origin.__name__)
    if (origin or annotation) is UntypedStripeObject:
        return of_a_hash(arguments[0])
    if isinstance(annotation, ForwardRef | str):
        return of_a_resource
    if isinstance(annotation, type) and issubclass(annotation, StripeObject):
        return of_an_object(annotation)
    return of_a_plain(annotation)


def of_a_union(arguments: tuple[Any, ...]) -> Check:
    is_enum = any(get_origin(choice) is Literal for choice in arguments)
    choices = [choice for choice in arguments if choice is not NoneType and not (is_enum and choice is str)]
    checks = [check_of(choice) for choice in choices]

    def check(value: Any) -> list[str]:
        if value is None and NoneType in arguments:
            return []
        fewest = checks[0](value)
        for check in checks[1:]:
            fewest = min(fewest, check(value), key=len) if fewest else fewest
        return fewest

    return check


def of_a_list(item: Any) -> Check:
    of_each = check_of(item)

    def check(value: Any) -> list[str]:
        if not isinstance(value, list):
            return [f": {value!r} is no list"]
        return [f"[{place}]{wrong}" for place, each in enumerate(value) for wrong in of_each(each)]

    return check


def of_a_hash(member: Any) -> Check:
    of_each = check_of(member)

    def check(value: Any) -> list[str]:
        if not isinstance(value, dict):
            return [f": {value!r} is no hash"]
        return [f".{name}{wrong}" for name, each in value.items() for wrong in of_each(each)]

    return check


def of_a_resource(value: Any) -> list[str]:
    """The SDK imports it for type checkers only; the JSON says what it is."""
    if not isinstance(value, dict) or "object" not in value:
        return [f": {value!r} is no resource"]
    return differences(get_object_class("V1", value["object"]), value)


def of_an_object(cls: Any) -> Check:
    annotations = {
        name: annotation
        for name, annotation in cls.__annotations__.items()
        if get_origin(annotation) is not ClassVar and not name.startswith("_")
    }
    whole = of_members(annotations, cls.__qualname__)
    remains = {name: annotations[name] for name in ("id", "object", "deleted") if name in annotations}
    deleted = of_members(remains, f"deleted {cls.__qualname__}")

    def check(value: Any) -> list[str]:
        return (deleted if isinstance(value, dict) and value.get("deleted") else whole)(value)

    return check


def of_members(annotations: dict[str, Any], name: str) -> Check:
    checks = {name: check_of(annotation) for name, annotation in annotations.items()}
    required = {name for name, annotation in annotations.items() if NoneType not in get_args(annotation)}

    def check(value: Any) -> list[str]:
        if not isinstance(value, dict):
            return [f": {value!r} is no {name}"]
        found = [f".{member}: is missing" for member in required if member not in value]
        for member, each in value.items():
            if member not in checks:
                found.append(f".{member}: the SDK's {name} has no such field")
            elif wrong := checks[member](each):
                found += [f".{member}{where}" for where in wrong]
        return found

    return check


def of_a_plain(kind: Any) -> Check:
    kinds = WIRE_TYPES.get(kind, kind)

    def check(value: Any) -> list[str]:
        fits = kind in (bool, Any) if isinstance(value, bool) else isinstance(value, kinds)
        return [] if fits else [f": {value!r} is no {kind}"]

    return check
