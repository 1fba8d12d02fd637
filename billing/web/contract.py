"""The contract of every HTTP door, read from the view itself.

A view says what it wants and gives in its annotations: `caller: Caller`, `body: SomeModel`, `-> SomeAnswer`.
`signed_in` supplies the caller, or `for_services` the service that calls, `checked` the body and the answer;
what they refuse is raised as `BillingError` and answered by `web.answers`. `web.openapi` writes the same
annotations down, so that what is documented is what is checked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import structlog
from flask import Response, current_app, request
from gunicorn.http.errors import ParseException
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import ClientDisconnected

from billing import errors
from billing.db import Query
from billing.errors import BillingError
from billing.wiring import Billing

LARGEST_BODY = 16 * 1024
JSON = "application/json"

View = Callable[..., Any]
Model = TypeVar("Model", bound=BaseModel)
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-20T10:00:03Z"])]


@dataclass(frozen=True, slots=True)
class Answer(Generic[Model]):
    """An answer with headers of its own, or one whose JSON is written already."""

    body: Model | str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


def service() -> Billing:
    """What this process holds, as `mount` left it."""
    billing: Billing = current_app.extensions["billing"]
    return billing


def signed_in(view: View) -> View:
    """The view gets `caller`, from the verified token and nothing else."""

    @functools.wraps(view)
    def inner(**kwargs: Any) -> Any:
        caller = service().identity.caller()
        structlog.contextvars.bind_contextvars(tenant=caller.tenant_id)
        return view(caller=caller, **kwargs)

    of_token = (errors.Unauthorized, errors.NoTenant, errors.UserTokenRequired)
    inner.__refusals__ = (*of_token, *refusals(view))  # type: ignore[attr-defined]
    inner.__security__ = [{"userToken": []}]  # type: ignore[attr-defined]
    return inner


def for_services(
    needs: str, *, reads: Callable[..., Query[Any] | None] | None = None
) -> Callable[[View], View]:
    """The view gets `caller`, a service whose token has this scope.

    With `reads`, which is given what the view is, it gets `found`, too: what that query finds on the service's
    behalf, in the trip that checks the token.
    """

    def wrap(view: View) -> View:
        @functools.wraps(view)
        def inner(**kwargs: Any) -> Any:
            caller, found = service().identity.service(needs, reads(**kwargs) if reads else None)
            structlog.contextvars.bind_contextvars(service=caller.name)
            return view(caller=caller, **({"found": found} if reads else {}), **kwargs)

        of_token = (errors.Unauthorized, errors.ServiceTokenRequired, errors.InsufficientScope)
        inner.__refusals__ = (*of_token, *refusals(view))  # type: ignore[attr-defined]
        inner.__security__ = [{"serviceToken": [needs]}]  # type: ignore[attr-defined]
        return inner

    return wrap


def told(view: View) -> View:
    """What goes wrong at Stripe is said in the words of this contract, instead of the bare 500."""

    @functools.wraps(view)
    def inner(**kwargs: Any) -> Any:
        try:
            return view(**kwargs)
        except errors.StripeFailed as e:
            raise e.told from e

    inner.__refusals__ = (errors.StripeRefused, errors.StripeUnavailable, *refusals(view))  # type: ignore[attr-defined]
    return inner


def checked(
    *refused_with: type[BillingError],
    takes: Sequence[Mapping[str, Any]] = (),
    gives: Mapping[str, Mapping[str, Any]] | None = None,
    raw: type[BaseModel] | None = None,
    may_be_same: bool = False,
    media_type: str = JSON,
) -> Callable[[View], View]:
    """Check the body by its annotation, and send the answer through its own; says which refusals to expect.

    The rest is announced, and left to the view: `takes` are parameters of path, query and header, and `gives`
    headers of the answer, as OpenAPI writes them; `raw` is a body that the view reads by `raw_body`, and
    `may_be_same` means a 304.
    """

    def wrap(view: View) -> View:
        hints = get_type_hints(view)
        body_model: type[BaseModel] | None = hints.get("body")

        @functools.wraps(view)
        def inner(**kwargs: Any) -> Response:
            if body_model:
                kwargs["body"] = _body(body_model)
            answer = view(**kwargs)
            if not isinstance(answer, Answer):
                answer = Answer(answer)
            written = answer.body if isinstance(answer.body, str) else answer.body.model_dump_json()
            return Response(written, answer.status, answer.headers, content_type=media_type)

        of_body = (errors.InvalidRequest, errors.BodyTooLarge, errors.NotJson) if body_model else ()
        inner.__refusals__ = (*of_body, *refused_with)  # type: ignore[attr-defined]
        inner.__takes__ = takes  # type: ignore[attr-defined]
        inner.__gives__ = gives or {}  # type: ignore[attr-defined]
        inner.__raw__ = raw  # type: ignore[attr-defined]
        inner.__may_be_same__ = may_be_same  # type: ignore[attr-defined]
        inner.__media_type__ = media_type  # type: ignore[attr-defined]
        return inner

    return wrap


def answers_with(view: View) -> type[BaseModel]:
    """The model of a view's answer."""
    hint: type[BaseModel] = get_type_hints(view)["return"]
    return get_args(hint)[0] if get_origin(hint) is Answer else hint


def raw_body(largest: int) -> bytes:
    """The body's very bytes, read once, and no more of them than that."""
    if (request.content_length or 0) > largest:
        raise errors.BodyTooLarge
    request.max_content_length = largest + 1  # a chunked body is cut there and not refused
    try:
        raw = request.get_data(cache=False, parse_form_data=False)
    except (OSError, ParseException, ClientDisconnected) as e:
        raise errors.InvalidRequest("The body could not be read to its end") from e
    if len(raw) > largest:
        raise errors.BodyTooLarge
    return raw


def _body(model: type[BaseModel]) -> BaseModel:
    raw = raw_body(LARGEST_BODY)
    if raw.strip() and request.mimetype != JSON:
        raise errors.NotJson
    try:
        return model.model_validate_json(raw if raw.strip() else b"{}")
    except ValidationError as e:
        raise _invalid(e) from e


def fault_of(model: type[BaseModel], raw: bytes) -> BillingError:
    """How a body that is not what the model says is answered."""
    try:
        model.model_validate_json(raw)
    except ValidationError as e:
        return _invalid(e)
    raise ValueError("there is nothing wrong with this body")


def unfit(parameter: Mapping[str, Any]) -> BillingError:
    """How a parameter is answered that is neither true nor false, or no number in its bounds."""
    name, schema = parameter["name"], parameter["schema"]
    bounds = f"a number from {schema.get('minimum')} to {schema.get('maximum')}"
    must_be = {"boolean": "true or false", "integer": bounds}[schema["type"]]
    return errors.InvalidRequest(f"{name}: must be {must_be}", param=name)


def _invalid(error: ValidationError) -> BillingError:
    """The first fault, with the member's name and never its value."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in fault["loc"])
    if not re.fullmatch(r"[\w.-]{1,64}", param, re.ASCII):
        param = ""
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "is not a member of this request"
    if fault["type"] == "json_invalid":
        message = "The body is not valid JSON"
    if fault["type"] == "model_type":
        message = "The body must be a JSON object"
    return errors.InvalidRequest(f"{param}: {message}" if param else message, param=param or None)


def refusals(view: View) -> tuple[type[BillingError], ...]:
    """What a view may answer beside its success."""
    found: tuple[type[BillingError], ...] = getattr(view, "__refusals__", ())
    return found
