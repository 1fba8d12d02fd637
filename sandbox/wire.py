"""Reads what arrives on the wire: `a[b][0]=c` into nested values, and those into what an operation accepts.

What is accepted comes from stripe-python's own parameter types (`stripe.params`), so it is exactly what
the SDK could have sent. A member left empty becomes None, Stripe's way to unset it. The first thing
wrong is refused with Stripe's code, message and bracketed `param`.
"""

import functools
import re
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from stripe import RequestOptions, StripeObject
from typing_extensions import is_typeddict

from sandbox.errors import Refusal, missing

Params = dict[str, Any]

# Options of the SDK's call, never sent as parameters: api_key, headers, idempotency_key, ...
NOT_ON_THE_WIRE = frozenset(RequestOptions.__annotations__)


# What the SDK's types do not say.
NEVER_NEGATIVE = {"quantity", "unit_amount"}
LONGEST_KEY, LONGEST_VALUE = 40, 500  # of metadata


def decode(text: str) -> Params:
    """Nested values of a query string or form body; hashes keyed 0, 1, 2, ... become lists."""
    tree: Params = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        first, *rest = re.split(r"\]?\[", name.removesuffix("]"))
        plant(tree, [first, *rest], value, name)
    return {name: listed(value) for name, value in tree.items()}


def plant(tree: Params, path: list[str], value: str, name: str) -> None:
    for step in path[:-1]:
        tree = tree.setdefault(step or str(len(tree)), {})
        if not isinstance(tree, dict):
            raise Refusal("Invalid hash", param=name)
    if isinstance(tree.get(path[-1]), dict):
        raise Refusal("Invalid string", param=name)
    tree[path[-1] or str(len(tree))] = value


def listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    members = {name: listed(member) for name, member in value.items()}
    is_list = bool(members) and members.keys() == {str(i) for i in range(len(members))}
    return [members[str(i)] for i in range(len(members))] if is_list else members


def check(params: type, given: Any, *, empty_unsets: bool = False) -> Params:
    """The given parameters with their types, or a Refusal.

    `empty_unsets` is for the operations where Stripe lets an empty value clear any string.
    """
    return Reader(empty_unsets).hash(params, given, "")


@functools.cache
def members(params: type) -> Mapping[str, Any]:
    # StripeContext and Mapping are imported for type checkers only in the SDK's modules
    hints = get_type_hints(params, localns={"StripeContext": object, "Mapping": Mapping})
    return {name: hint for name, hint in hints.items() if name not in NOT_ON_THE_WIRE}


class Reader:
    """Walks a value and its annotation together."""

    def __init__(self, empty_unsets: bool) -> None:
        self.empty_unsets = empty_unsets

    def hash(self, params: Any, value: Any, path: str) -> Params:
        if not isinstance(value, dict):
            raise Refusal("Invalid object", param=path)
        known = members(params)
        if unknown := [join(path, name) for name in value if name not in known]:
            names = ("parameter: " if len(unknown) == 1 else "parameters: ") + ", ".join(unknown)
            raise Refusal(f"Received unknown {names}", code="parameter_unknown", param=unknown[0])
        for name in known:
            if name in params.__required_keys__ and name not in value:
                raise missing(join(path, name))
        return {name: self.value(known[name], member, join(path, name)) for name, member in value.items()}

    def value(self, annotation: Any, value: Any, path: str) -> Any:
        choices = alternatives(annotation)
        if value == "" and (None in choices or (self.empty_unsets and str in choices)):
            return None
        if value == "":
            raise empty(path)
        shapes = [choice for choice in choices if choice is not None]
        *others, last = [shape for shape in shapes if fits(shape, value)] or shapes[-1:]
        for shape in others:
            with suppress(Refusal):
                return self.shaped(shape, value, path)
        return self.shaped(last, value, path)

    def shaped(self, shape: Any, value: Any, path: str) -> Any:
        if is_typeddict(shape):
            return self.hash(shape, value, path)
        origin, arguments = get_origin(shape), get_args(shape)
        if origin is list:
            return self.array(arguments[0], value, path)
        if origin is dict:
            return texts(value, path)
        if not isinstance(value, str):
            raise Refusal(f"Invalid {'string' if shape is str else 'value'}: {value}", param=path)
        if origin is Literal:
            return one_of(arguments, value, path)
        return SCALARS[shape](value, path)

    def array(self, item: Any, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise Refusal("Invalid array", param=path)
        if "" in value:  # which unsets a member of a hash, and there is none in its place here
            raise empty(f"{path}[{value.index('')}]")
        return [self.value(item, member, f"{path}[{i}]") for i, member in enumerate(value)]


def join(path: str, name: str) -> str:
    return f"{path}[{name}]" if path else name


def alternatives(annotation: Any) -> list[Any]:
    """What a member may be, None for empty. Open enums are closed; the SDK's object classes are left out."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    choices = [None if c == Literal[""] else c for c in get_args(annotation) if not is_stripe_object(c)]
    is_enum = any(get_origin(c) is Literal for c in choices)
    return [c for c in choices if not (is_enum and c is str)]


def is_stripe_object(choice: Any) -> bool:
    cls = get_origin(choice) or choice
    return isinstance(cls, type) and issubclass(cls, StripeObject)


def fits(shape: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return is_typeddict(shape) or get_origin(shape) is dict
    return (get_origin(shape) is list) == isinstance(value, list)


def one_of(allowed: Iterable[str], value: str, path: str) -> str:
    if value in allowed:
        return value
    *others, last = allowed
    choice = f"one of {', '.join(others)}, or {last}" if others else last
    raise Refusal(f"Invalid {path}: must be {choice}", param=path)


def texts(value: Any, path: str) -> dict[str, str]:
    """Metadata, the one hash whose keys are the caller's own."""
    if isinstance(value, list):  # keys 0, 1, 2, ... are as good as others here
        value = {str(i): member for i, member in enumerate(value)}
    if not isinstance(value, dict):
        raise Refusal("Invalid object", param=path)
    for name, member in value.items():
        if not isinstance(member, str):
            raise Refusal(f"Invalid string: {member}", param=join(path, name))
        for what, given, most in (("key", name, LONGEST_KEY), ("value", member, LONGEST_VALUE)):
            if len(given) > most:
                raise too_long(what, given, most, path)
    return value


def too_long(what: str, given: str, most: int, path: str) -> Refusal:
    return Refusal(
        f"Metadata {what}s can have up to {most} characters, but you passed in a {what} that is {len(given)}"
        f" characters. Invalid {what}: {given}",
        param=path,
    )


def text(value: str, path: str) -> str:
    return value


def integer(value: str, path: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
        raise Refusal(f"Invalid integer: {value}", code="parameter_invalid_integer", param=path)
    if int(value) < 0 and path.removesuffix("]").split("[")[-1] in NEVER_NEGATIVE:
        raise Refusal(
            "This value must be greater than or equal to 0.", code="parameter_invalid_integer", param=path
        )
    return int(value)


def decimal(value: str, path: str) -> float:
    if not re.fullmatch(r"-?\d+(\.\d+)?", value, re.ASCII):
        raise Refusal(f"Invalid decimal: {value}", param=path)
    return float(value)


def boolean(value: str, path: str) -> bool:
    if value not in ("true", "false"):
        raise Refusal(f"Invalid boolean: {value}", param=path)
    return value == "true"


SCALARS = {str: text, int: integer, float: decimal, Decimal: decimal, bool: boolean}


def empty(path: str) -> Refusal:
    return Refusal(
        f"You passed an empty string for '{path}'. We assume empty values are an attempt to unset a"
        f" parameter; however '{path}' cannot be unset. You should remove '{path}' from your request or"
        " supply a non-empty value.",
        code="parameter_invalid_empty",
        param=path,
    )
