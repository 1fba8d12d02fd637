"""Stripe: the calls we make, plain values out. Nobody else imports `stripe`.

One `Stripe` per process. Every call ends within `deadline` seconds, its retries included, and every
failure leaves as `StripeFailed` (or the caller's own fault, `IdempotencyKeyReused`). What Stripe said
about it is logged by code and request id, never by its message, which may quote what was sent.

A read is one HTTP request, tried once: who reads counts what Stripe is asked for. It leaves as a `Reading`,
JSON as Stripe wrote it, dated by Stripe's own clock.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ssl import SSLCertVerificationError
from typing import Any, Literal
from urllib.parse import urlsplit

import stripe
import structlog
from stripe.params.billing_portal import SessionCreateParams
from urllib3.exceptions import HTTPError, SSLError

from billing import deadline, outbound, telemetry
from billing.errors import IdempotencyKeyReused, StripeFailed
from billing.events import Json, moment, name

API_VERSION = "2026-10-28.endive"
RETRIES = 2
TRY_SECONDS = 1.5  # the SDK's longest pause before one of them, and time for an answer
RETRY_AFTER_SECONDS = 5
ONE_TRY: Any = {"max_network_retries": 0}
PAGE = 100
REFUSED = frozenset({"refused", "key_refused"})  # trying again changes nothing
OUTCOMES = {401: "key_refused", 403: "key_refused", 404: "not_found", 429: "rate_limited"}
GROUPS = frozenset({"billing_portal", "checkout", "entitlements"})  # what comes after them is no id

PortalFlow = Literal[
    "payment_method_update", "subscription_cancel", "subscription_update", "subscription_update_confirm"
]
# fmt: off
PortalLocale = Literal[
    "auto", "bg", "cs", "da", "de", "el", "en", "en-AU", "en-CA", "en-GB", "en-IE", "en-IN", "en-NZ",
    "en-SG", "es", "es-419", "et", "fi", "fil", "fr", "fr-CA", "hr", "hu", "id", "it", "ja", "ko", "lt",
    "lv", "ms", "mt", "nb", "nl", "pl", "pt", "pt-BR", "ro", "ru", "sk", "sl", "sv", "th", "tr", "vi",
    "zh", "zh-HK", "zh-TW",
]
# fmt: on

_ESCAPED = str.maketrans({"\\": "\\\\", "'": "\\'"})  # within a search's quotes

log = structlog.get_logger(__name__)
stripe.enable_telemetry = False


@dataclass(frozen=True)
class PortalSession:
    """A door into Stripe's portal. `url` is a credential: not logged, not stored."""

    id: str
    url: str


@dataclass(frozen=True)
class CheckoutSession:
    """A Checkout as it stood when Stripe answered. `url` is a credential, and there only while it is open."""

    id: str
    status: str
    payment_status: str
    customer: str | None
    subscription: str | None
    url: str | None
    expires_at: int

    @property
    def is_paid(self) -> bool:
        """Whether nothing more is to be waited for."""
        return self.payment_status != "unpaid"


@dataclass(frozen=True)
class Created:
    """Something new at Stripe; `replayed` where an earlier request with the same key had made it."""

    id: str
    replayed: bool


@dataclass(frozen=True)
class NewEndpoint:
    """A webhook endpoint just made. Stripe shows the secret this once."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Reading:
    """What Stripe answered, true at some moment from `asked` to `answered`, whole seconds of Stripe's clock."""

    things: list[Json]
    has_more: bool
    asked: int
    answered: int


def pages(read: Callable[[str | None], Reading | None]) -> Iterator[Reading]:
    """Page after page, each read when it is wanted; `read` gets the id to go on after."""
    after: str | None = None
    while (page := read(after)) is not None:
        yield page
        if not page.has_more or not page.things:
            return
        after = str(page.things[-1].get("id"))


def idempotency_key(*parts: str) -> str:
    """Stripe's key for a caller's key: bound to tenant and customer, so that no two tenants can meet in one."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Stripe:
    """Stripe's API over one pool that keeps at most `connections` open, shared by all threads."""

    def __init__(
        self,
        key: str,
        *,
        base: str | None = None,
        deadline: float = 10.0,
        connections: int = outbound.KEPT_OPEN,
    ) -> None:
        self._deadline = deadline
        self._client = stripe.StripeClient(
            key,
            stripe_version=API_VERSION,
            http_client=_Transport(
                outbound.Http(
                    base or "https://api.stripe.com", connections=connections, ca_certs=stripe.ca_bundle_path
                )
            ),
            max_network_retries=RETRIES,
            base_addresses={"api": base} if base else {},
        )

    def open_portal(
        self,
        customer: str,
        *,
        return_url: str,
        flow: Mapping[str, Any] | None = None,
        locale: PortalLocale | None = None,
        configuration: str | None = None,
        idempotency_key: str | None = None,
    ) -> PortalSession:
        """A Customer Portal session. The same `idempotency_key` with the same wishes gives the same session."""
        params: SessionCreateParams = {"customer": customer, "return_url": return_url}
        if flow:
            params["flow_data"] = flow  # type: ignore[typeddict-item]  # as `portal_flow` made it
        if locale:
            params["locale"] = locale
        if configuration:
            params["configuration"] = configuration
        session = self._call(self._client.v1.billing_portal.sessions.create, params, idempotency_key)
        return PortalSession(_text(session, "id"), _text(session, "url"))

    def create_customer(self, metadata: Mapping[str, str], *, idempotency_key: str, **named: str) -> Created:
        """A customer of this name and e-mail, where they are given. The same key gives the same one, deleted or
        not.
        """
        params = {"metadata": dict(metadata), **named}
        made = self._call(self._client.v1.customers.create, params, idempotency_key)
        response = getattr(made, "last_response", None)
        headers = response.headers if response is not None else {}
        return Created(_text(made, "id"), str(headers.get("Idempotent-Replayed")).lower() == "true")

    def update_customer(self, customer: str, metadata: Mapping[str, str], **named: str) -> None:
        """Have it say this, and nothing where a value is empty. What is not named stays as it is."""
        update = self._client.v1.customers.update
        self._call(
            lambda params, options: update(customer, params, options), {"metadata": dict(metadata), **named}
        )

    def customers_with(self, **metadata: str) -> Reading | None:
        """Customers with this metadata, by Stripe's index of them, which is some minutes behind."""
        asked = " AND ".join(
            f"metadata['{key}']:'{value.translate(_ESCAPED)}'" for key, value in sorted(metadata.items())
        )
        return self._read(
            lambda: self._client.v1.customers.search({"query": asked, "limit": PAGE}, ONE_TRY),
            kind="search_result",
        )

    def open_checkout(self, params: Mapping[str, Any], *, idempotency_key: str) -> CheckoutSession:
        """A Checkout session. The same key gives the same session for a day."""
        return _checkout(self._call(self._client.v1.checkout.sessions.create, params, idempotency_key))

    def checkout(self, session: str) -> CheckoutSession:
        """A Checkout session as it is now, for somebody who waits: tried again, as what is written is."""
        return _checkout(self._call(self._client.v1.checkout.sessions.retrieve, session))

    def expire_checkout(self, session: str) -> CheckoutSession:
        """Close a Checkout that is open; refused where it no longer is."""
        return _checkout(self._call(self._client.v1.checkout.sessions.expire, session))

    def cancel_subscription(self, subscription: str) -> str:
        """End it now; what it has become. One that has ended is refused."""
        return _text(self._call(self._client.v1.subscriptions.cancel, subscription), "status")

    def promotion_code(self, code: str) -> str | None:
        """The id of an active promotion code, by the word customers type; None where there is none."""
        found = self._read(
            lambda: self._client.v1.promotion_codes.list({"code": code, "active": True, "limit": 1}, ONE_TRY),
            kind="list",
        )
        return name(found.things[0].get("id")) if found and found.things else None

    def portal_configuration(self, configuration: str | None) -> Json | None:
        """A portal configuration, or the account's default one, with the products it lets people change to."""
        products = "features.subscription_update.products"  # left out unless asked for
        if configuration:
            one = self._client.v1.billing_portal.configurations.retrieve
            page = self._one(one, configuration, {"expand": [products]})
        else:
            wanted = {"is_default": True, "expand": [f"data.{products}"]}
            page = self._page(self._client.v1.billing_portal.configurations.list, wanted, None)
        return page.things[0] if page and page.things else None

    def products(self, after: str | None = None) -> Reading | None:
        """A page of all products, archived ones included."""
        return self._page(self._client.v1.products.list, {}, after)

    def prices(self, after: str | None = None) -> Reading | None:
        """A page of all prices, archived ones included: somebody may still be subscribed to them."""
        return self._page(self._client.v1.prices.list, {}, after)

    def features(self, after: str | None = None) -> Reading | None:
        """A page of Stripe's entitlement features."""
        return self._page(self._client.v1.entitlements.features.list, {}, after)

    def features_of(self, product: str, after: str | None = None) -> Reading | None:
        """A page of the entitlement features attached to a product."""
        list_page = self._client.v1.products.features.list
        return self._page(lambda wanted, options: list_page(product, wanted, options), {}, after)

    def entitlements_of(self, customer: str, after: str | None = None) -> Reading | None:
        """A page of the entitlements a customer has, whatever has become of its subscription."""
        wanted = {"customer": customer}
        return self._page(self._client.v1.entitlements.active_entitlements.list, wanted, after)

    def subscriptions_of(self, customer: str, after: str | None = None) -> Reading | None:
        """A page of a customer's subscriptions, ended ones included, with latest invoice and customer."""
        expand = ["data.latest_invoice", "data.customer"]
        wanted = {"customer": customer, "status": "all", "expand": expand}
        return self._page(self._client.v1.subscriptions.list, wanted, after)

    def subscription(self, subscription: str) -> Reading | None:
        """One subscription, with its latest invoice. None where Stripe does not know it."""
        return self._one(self._client.v1.subscriptions.retrieve, subscription, {"expand": ["latest_invoice"]})

    def items_of(self, subscription: str, after: str | None = None) -> Reading | None:
        """A page of a subscription's items, for the rare one with more than Stripe puts into it."""
        return self._page(self._client.v1.subscription_items.list, {"subscription": subscription}, after)

    def open_invoices_of(self, subscription: str, after: str | None = None) -> Reading | None:
        """A page of the invoices of a subscription that are open."""
        wanted = {"subscription": subscription, "status": "open"}
        return self._page(self._client.v1.invoices.list, wanted, after)

    def invoice(self, invoice: str) -> Reading | None:
        """One invoice. None where Stripe does not know it."""
        return self._one(self._client.v1.invoices.retrieve, invoice, {})

    def customer(self, customer: str) -> Reading | None:
        """A customer, or what is left of a deleted one. None where Stripe does not know it."""
        return self._one(self._client.v1.customers.retrieve, customer, {})

    def undelivered_events(self, since: int, after: str | None = None) -> Reading | None:
        """A page of the events since then that some webhook endpoint has not taken, newest first."""
        wanted = {"delivery_success": False, "created": {"gte": since}}
        return self._page(self._client.v1.events.list, wanted, after)

    def events_of(
        self, types: Sequence[str], since: int, until: int, after: str | None = None
    ) -> Reading | None:
        """A page of the events of these types, 20 at most, created from `since` on and before `until`."""
        wanted = {"types": list(types), "created": {"gte": since, "lt": until}}
        return self._page(self._client.v1.events.list, wanted, after)

    def customers(self, after: str | None = None) -> Reading | None:
        """A page of all customers that are not deleted, newest first."""
        return self._page(self._client.v1.customers.list, {}, after)

    def events_since(self, since: int, after: str | None = None) -> Reading | None:
        """A page of all events since then, newest first."""
        return self._page(self._client.v1.events.list, {"created": {"gte": since}}, after)

    def latest_event(self) -> Reading | None:
        """The account's newest event: the least that can be asked for."""
        return self._read(lambda: self._client.v1.events.list({"limit": 1}, ONE_TRY), kind="list")

    def webhook_endpoints(self, after: str | None = None) -> Reading | None:
        """A page of the account's webhook endpoints."""
        return self._page(self._client.v1.webhook_endpoints.list, {}, after)

    def create_webhook_endpoint(self, url: str, types: Sequence[str]) -> NewEndpoint:
        """An endpoint for these types of events, in our version."""
        params = {"url": url, "enabled_events": list(types), "api_version": API_VERSION}
        made = self._call(self._client.v1.webhook_endpoints.create, params)
        return NewEndpoint(_text(made, "id"), _text(made, "secret"))

    def update_webhook_endpoint(self, endpoint: str, types: Sequence[str]) -> None:
        """Have it enabled, and for these types. Its version stays what it was made with."""
        update = self._client.v1.webhook_endpoints.update
        wanted = {"enabled_events": list(types), "disabled": False}
        self._call(lambda params, options: update(endpoint, params, options), wanted)

    def _page(self, method: Any, wanted: Mapping[str, Any], after: str | None) -> Reading | None:
        cursor = {"starting_after": after} if after else {}
        return self._read(lambda: method({**wanted, "limit": PAGE, **cursor}, ONE_TRY), kind="list")

    def _one(self, method: Any, id: str, wanted: Mapping[str, Any]) -> Reading | None:
        return self._read(lambda: method(id, wanted, ONE_TRY))

    def _read(self, call: Callable[[], Any], *, kind: str | None = None) -> Reading | None:
        began = time.monotonic()
        try:
            with deadline.within(self._deadline):
                answer = call()
        except stripe.InvalidRequestError as e:
            if e.code == "resource_missing":
                return None
            raise _failed(e, final=True) from e
        except stripe.StripeError as e:
            raise _failed(e, final=False) from e
        return _reading(answer, time.monotonic() - began, kind)

    def _call(self, method: Any, params: Any, idempotency_key: str | None = None) -> Any:
        options = {"idempotency_key": idempotency_key} if idempotency_key else {}
        try:
            with deadline.within(self._deadline):
                return method(params, options=options)
        except stripe.IdempotencyError as e:
            raise IdempotencyKeyReused from e
        except stripe.StripeError as e:
            # Under the caller's own key Stripe would replay this very 500 for a day: no use in trying again.
            final = e.http_status == 500 and idempotency_key is not None
            raise _failed(e, final=final) from e


class _Transport(stripe.HTTPClient):
    """What carries the SDK's requests: one pool per process, and another try only while it may help.

    The SDK's own transports keep a session per thread and know no total deadline.
    """

    name = "billing"

    def __init__(self, http: outbound.Http) -> None:
        super().__init__()
        self._http = http

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        outcome = "failed"
        try:
            answer = self._http.request(method.upper(), url, headers=headers, body=post_data)
            outcome = _outcome(answer.status)
        except HTTPError as e:
            outcome = "timeout" if isinstance(e.__cause__, TimeoutError) else "unreachable"
            raise _unreachable(e) from e
        finally:
            telemetry.stripe_calls.add(1, {"endpoint": _endpoint(method, url), "outcome": outcome})
        return answer.data.decode("utf-8", "replace"), answer.status, answer.headers

    def _should_retry(self, *args: Any, **kwargs: Any) -> bool:
        return bool(super()._should_retry(*args, **kwargs)) and deadline.left() >= TRY_SECONDS

    def close(self) -> None:
        self._http.close()


def _endpoint(method: str, url: str) -> str:
    """As Stripe's reference calls it: what stands where an id would is left out, whatever it is."""
    version, *path = urlsplit(url).path.strip("/").split("/")
    group = [path.pop(0)] if path and path[0] in GROUPS else []
    words = ["{id}" if at % 2 and word != "search" else word for at, word in enumerate(path)]
    return f"{method.upper()} /{'/'.join([version, *group, *words])}"


def _outcome(status: int) -> str:
    if status >= 500:
        return "broken"
    return OUTCOMES.get(status, "refused" if status >= 400 else "ok")


def _unreachable(error: HTTPError) -> stripe.APIConnectionError:
    wrong_certificate = isinstance(error, SSLError) and isinstance(error.args[0], SSLCertVerificationError)
    again = not wrong_certificate  # safe to say: the SDK sends the same idempotency key again
    return stripe.APIConnectionError(type(error).__name__, should_retry=again)  # type: ignore[no-untyped-call]


def _failed(error: stripe.StripeError, *, final: bool) -> StripeFailed:
    reason = _reason(error)
    log.warning(
        "stripe.failed",
        reason=reason,
        kind=type(error).__name__,
        status=error.http_status,
        code=error.code,
        param=getattr(error, "param", None),
        stripe_request=error.request_id,
    )
    return StripeFailed(
        reason,
        retry_after=None if final or reason in REFUSED else RETRY_AFTER_SECONDS,
        code=error.code,
        about=getattr(error, "param", None),
        replayed=str((error.headers or {}).get("Idempotent-Replayed")).lower() == "true",
        status=error.http_status,
    )


def _reason(error: stripe.StripeError) -> str:
    if isinstance(error, stripe.APIConnectionError):
        return "unreachable"
    if isinstance(error, stripe.RateLimitError):
        return "rate_limited"
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return "key_refused"
    if isinstance(error, stripe.APIError):  # 5xx, a conflict that outlived the retries, or no JSON at all
        return "broken"
    return "refused"


def _reading(answer: Any, elapsed: float, kind: str | None) -> Reading:
    """The answer was made before the second after its `Date`, and not before it was asked for."""
    response = getattr(answer, "last_response", None)
    thing = response.data if response is not None else None
    if not isinstance(thing, dict) or (thing.get("object") != kind if kind else thing.get("object") == "list"):
        raise _nonsense(answer)
    things = thing.get("data") if kind else [thing]
    if not isinstance(things, list) or not all(isinstance(one, dict) for one in things):
        raise _nonsense(answer)
    try:
        date = int(parsedate_to_datetime(response.headers["Date"]).timestamp())  # type: ignore[union-attr]
    except (KeyError, TypeError, ValueError):
        raise _nonsense(answer) from None
    return Reading(things, bool(thing.get("has_more")), date - math.ceil(elapsed), date + 1)


def _checkout(answer: Any) -> CheckoutSession:
    url = getattr(answer, "url", None)
    return CheckoutSession(
        _text(answer, "id"),
        _text(answer, "status"),
        _text(answer, "payment_status"),
        name(getattr(answer, "customer", None)),
        name(getattr(answer, "subscription", None)),
        url if isinstance(url, str) and url else None,
        moment(getattr(answer, "expires_at", None)) or 0,
    )


def _text(answer: Any, name: str) -> str:
    """Stripe's answers are input too: a list, or an object without the member, is a failure of theirs."""
    value = getattr(answer, name, None)
    if not isinstance(value, str) or not value:
        raise _nonsense(answer)
    return value


def _nonsense(answer: Any) -> StripeFailed:
    log.warning("stripe.failed", reason="nonsense", kind=type(answer).__name__)
    return StripeFailed("nonsense", retry_after=RETRY_AFTER_SECONDS)
