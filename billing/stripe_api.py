"""Stripe: the calls we make, plain values out. Nobody else imports `stripe`.

One `Stripe` per process. Every call ends within `deadline` seconds, its retries included, and every
failure leaves as `StripeFailed` (or the caller's own fault, `IdempotencyKeyReused`). What Stripe said
about it is logged by code and request id, never by its message, which may quote what was sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLCertVerificationError
from typing import Any, Literal

import stripe
import structlog
from stripe.params.billing_portal import SessionCreateParams
from urllib3.exceptions import HTTPError, SSLError

from billing import outbound
from billing.errors import IdempotencyKeyReused, StripeFailed

API_VERSION = "2026-10-28.endive"
RETRIES = 2
TRY_SECONDS = 1.5  # the SDK's longest pause before one of them, and time for an answer
RETRY_AFTER_SECONDS = 5

# The flows that need a subscription join this one with the mirror of it.
PortalFlow = Literal["payment_method_update"]
# fmt: off
PortalLocale = Literal[
    "auto", "bg", "cs", "da", "de", "el", "en", "en-AU", "en-CA", "en-GB", "en-IE", "en-IN", "en-NZ",
    "en-SG", "es", "es-419", "et", "fi", "fil", "fr", "fr-CA", "hr", "hu", "id", "it", "ja", "ko", "lt",
    "lv", "ms", "mt", "nb", "nl", "pl", "pt", "pt-BR", "ro", "ru", "sk", "sl", "sv", "th", "tr", "vi",
    "zh", "zh-HK", "zh-TW",
]
# fmt: on

log = structlog.get_logger(__name__)
stripe.enable_telemetry = False


@dataclass(frozen=True)
class PortalSession:
    """A door into Stripe's portal. `url` is a credential: not logged, not stored."""

    id: str
    url: str


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
        flow: PortalFlow | None = None,
        locale: PortalLocale | None = None,
        configuration: str | None = None,
        idempotency_key: str | None = None,
    ) -> PortalSession:
        """A Customer Portal session. The same `idempotency_key` with the same wishes gives the same session."""
        params: SessionCreateParams = {"customer": customer, "return_url": return_url}
        if flow:
            params["flow_data"] = {
                "type": flow,
                "after_completion": {"type": "redirect", "redirect": {"return_url": return_url}},
            }
        if locale:
            params["locale"] = locale
        if configuration:
            params["configuration"] = configuration
        session = self._call(self._client.v1.billing_portal.sessions.create, params, idempotency_key)
        return PortalSession(_text(session, "id"), _text(session, "url"))

    def _call(self, method: Any, params: Any, idempotency_key: str | None) -> Any:
        try:
            with outbound.within(self._deadline):
                return method(params, {"idempotency_key": idempotency_key} if idempotency_key else {})
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
        try:
            answer = self._http.request(method.upper(), url, headers=headers, body=post_data)
        except HTTPError as e:
            raise _unreachable(e) from e
        return answer.data.decode("utf-8", "replace"), answer.status, answer.headers

    def _should_retry(self, *args: Any, **kwargs: Any) -> bool:
        return bool(super()._should_retry(*args, **kwargs)) and outbound.has_left(TRY_SECONDS)

    def close(self) -> None:
        self._http.close()


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
    return StripeFailed(reason, retry_after=None if final or reason == "refused" else RETRY_AFTER_SECONDS)


def _reason(error: stripe.StripeError) -> str:
    if isinstance(error, stripe.APIConnectionError):
        return "unreachable"
    if isinstance(error, stripe.RateLimitError):
        return "rate_limited"
    if isinstance(error, stripe.APIError):  # 5xx, a conflict that outlived the retries, or no JSON at all
        return "broken"
    return "refused"


def _text(answer: Any, name: str) -> str:
    """Stripe's answers are input too: a list, or an object without the member, is a failure of theirs."""
    value = getattr(answer, name, None)
    if not isinstance(value, str) or not value:
        log.warning("stripe.failed", reason="nonsense", kind=type(answer).__name__)
        raise StripeFailed("nonsense", retry_after=RETRY_AFTER_SECONDS)
    return value
