"""What stripe-python says of Stripe's addresses: the type of each one's parameters and of its answer.

Read from the methods of its services, each of which makes one request.
"""

import functools
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType
from typing import Any, NamedTuple, get_args, get_type_hints

import stripe

METHODS = ("get", "post", "delete")


class Address(NamedTuple):
    params: type
    answer: Any


@functools.cache
def address_of(method: str, path: str) -> Address:
    """By whatever names the path calls its ids: /v1/customers/<id>."""
    return told_by(functions_below(path.split("/")[2])[method, nameless(path)])


@functools.cache
def functions_below(root: str) -> dict[tuple[str, str], FunctionType]:
    service = getattr(stripe.StripeClient("sk_test_none").v1, root)
    return {place: function for function in functions_of(service) if (place := place_of(function))}


def functions_of(service: Any) -> Iterator[FunctionType]:
    yield from (member for member in vars(type(service)).values() if isinstance(member, FunctionType))
    for name in getattr(sys.modules[type(service).__module__], "_subservices", {}):
        yield from functions_of(getattr(service, name))


def place_of(function: FunctionType) -> tuple[str, str] | None:
    """The method and path it asks for, which are among its constants."""
    words = [word for word in function.__code__.co_consts if isinstance(word, str)]
    method = next((word for word in words if word in METHODS), None)
    path = next((word for word in words if word.startswith("/v1/")), None)
    return (method.upper(), nameless(path)) if method and path else None


def nameless(path: str) -> str:
    return re.sub(r"<\w+>|\{\w+\}", "{}", path)


def told_by(function: FunctionType) -> Address:
    hints = get_type_hints(function, localns=Names(function.__module__.rpartition(".")[0]))
    optional = get_args(hints["params"])
    return Address(optional[0] if optional else hints["params"], hints["return"])


class Names(dict[str, Any]):
    """What the SDK's modules import for type checkers only, found in the packages it comes from."""

    def __init__(self, package: str) -> None:
        params = package.replace("stripe", "stripe.params", 1)
        self.modules = [import_module(name) for name in (package, params, "stripe", "stripe.params", "typing")]

    def __missing__(self, name: str) -> Any:
        for module in self.modules:
            if hasattr(module, name):
                return getattr(module, name)
        raise KeyError(name)
