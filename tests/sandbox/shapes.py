"""Says where a JSON answer differs from the SDK's annotations of its resource.

Every field that is not Optional must be there, every field of the right type, and none that the SDK
does not know. Open enums (`Literal[...] | str`) are taken as closed: the sandbox invents no values.
"""

from collections.abc import Iterator
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, ClassVar, ForwardRef, Literal, Union, get_args, get_origin

from stripe import ListObject, StripeObject
from stripe._object_classes import get_object_class
from stripe._stripe_object import UntypedStripeObject

WIRE_TYPES: dict[Any, Any] = {Decimal: str, float: (int, float)}


def differences(annotation: Any, value: Any, path: str = "") -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        yield from of_a_union(closed(arguments), value, path)
    elif origin is Literal:
        if value not in arguments:
            yield f"{path}: {value!r} is none of {arguments}"
    elif origin is list:
        yield from of_a_list(arguments[0], value, path)
    elif origin is ListObject:
        yield from of_a_page(arguments[0], value, path)
    elif isinstance(annotation, ForwardRef | str):
        yield from of_a_resource(value, path)
    elif (origin or annotation) is UntypedStripeObject:
        for name, member in value.items():
            yield from differences(arguments[0], member, f"{path}.{name}")
    elif isinstance(annotation, type) and issubclass(annotation, StripeObject):
        yield from of_an_object(annotation, value, path)
    elif not is_plain(annotation, value):
        yield f"{path}: {value!r} is no {annotation}"


def closed(choices: tuple[Any, ...]) -> list[Any]:
    is_enum = any(get_origin(choice) is Literal for choice in choices)
    return [choice for choice in choices if not (is_enum and choice is str)]


def of_a_union(choices: list[Any], value: Any, path: str) -> Iterator[str]:
    if value is None and NoneType in choices:
        return
    found = [list(differences(choice, value, path)) for choice in choices if choice is not NoneType]
    yield from min(found, key=len)


def of_a_list(item: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: {value!r} is no list"
        return
    for place, member in enumerate(value):
        yield from differences(item, member, f"{path}[{place}]")


def of_a_page(item: Any, value: Any, path: str) -> Iterator[str]:
    if value.keys() != {"object", "data", "has_more", "url"} or value["object"] != "list":
        yield f"{path}: {value!r} is no list object"
        return
    yield from differences(bool, value["has_more"], f"{path}.has_more")
    yield from differences(str, value["url"], f"{path}.url")
    yield from of_a_list(item, value["data"], f"{path}.data")


def of_a_resource(value: Any, path: str) -> Iterator[str]:
    """The SDK imports it for type checkers only; the JSON says what it is."""
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no resource"
        return
    yield from of_an_object(get_object_class("V1", value["object"]), value, path)


def of_an_object(cls: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no {cls.__qualname__}"
        return
    fields = {n: a for n, a in cls.__annotations__.items() if get_origin(a) is not ClassVar and n[0] != "_"}
    for name in value.keys() - fields.keys():
        yield f"{path}.{name}: the SDK's {cls.__qualname__} has no such field"
    for name, annotation in fields.items():
        if name in value:
            yield from differences(annotation, value[name], f"{path}.{name}")
        elif NoneType not in get_args(annotation):
            yield f"{path}.{name}: is missing"


def is_plain(annotation: Any, value: Any) -> bool:
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, WIRE_TYPES.get(annotation, annotation))
