"""What every door that hands out a link to Stripe shares: return addresses, permission, limit and trail.

`audited` goes round such a door. Every request that reached a tenant leaves a row, whatever becomes of it.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import structlog
from flask import Request, g, request

from billing import audit, customers, errors
from billing.config import Settings
from billing.errors import BillingError
from billing.identity import Caller
from billing.web.contract import View, service

LONGEST_URL = 2000

log = structlog.get_logger(__name__)


def attempt(tenant_id: str, actor: str, action: str) -> audit.Attempt:
    """What the trail has to say of the current request."""
    return audit.Attempt(
        tenant_id=tenant_id,
        actor=actor,
        action=action,
        request_id=g.request_id,
        ip=ip_of(request),
        user_agent=request.user_agent.string[:400],
    )


class Trail:
    """One attempt to get a link, from the moment its tenant is known to the moment it is answered."""

    def __init__(self, caller: Caller, action: str) -> None:
        self._caller = caller
        self._attempt = attempt(caller.tenant_id, caller.subject, action)
        self._entry: audit.Entry | None = None
        self.flow: str | None = None
        self.stripe_object: str | None = None

    def start(self) -> str | None:
        """Count the attempt and write it down; the tenant's Stripe customer, if it has one.

        The transaction has ended when this returns: nothing is held while Stripe is asked.
        """
        entry, customer = service().db.run(
            self._caller.scope,
            audit.start(self._attempt, flow=self.flow, limit=service().settings.billing_links_per_minute),
            customers.find(self._caller.tenant_id),
            in_turn="links",
        )
        if isinstance(entry, audit.Limited):
            raise errors.TooManyLinks(retry_after=entry.retry_after)
        self._entry = entry
        return customer

    def settle(self, outcome: str) -> None:
        """Write down how it ended. If that fails the caller's answer stands, and the row says `started`."""
        written = (
            audit.settle(self._entry, outcome, self.stripe_object)
            if self._entry
            else audit.refuse(self._attempt, outcome, flow=self.flow)
        )
        try:
            service().db.run(self._caller.scope, written)
        except errors.ServiceUnavailable:
            log.warning("audit.unsettled", action=self._attempt.action, outcome=outcome)
        except Exception:  # whatever it is, the link exists by now
            log.exception("audit.unsettled", action=self._attempt.action, outcome=outcome)


def audited(action: str) -> Callable[[View], View]:
    """The view gets `trail` beside its `caller`, and its outcome is settled whatever it is."""

    def wrap(view: View) -> View:
        @functools.wraps(view)
        def inner(*, caller: Caller, **kwargs: Any) -> Any:
            trail = Trail(caller, action)
            try:
                answer = view(caller=caller, trail=trail, **kwargs)
            except errors.ServiceUnavailable:
                raise  # the database is away: there is nowhere to write
            except errors.TooManyLinks:
                raise  # written down, and settled, by the count itself
            except BillingError as e:
                trail.settle(e.outcome)
                raise
            except Exception:
                trail.settle("failed")
                raise
            trail.settle("opened")
            return answer

        return inner

    return wrap


def is_manager(caller: Caller) -> bool:
    """Whether the caller has one of BILLING_MANAGER_ROLES, where that is set."""
    managers = service().settings.billing_manager_roles
    return not managers or not caller.roles.isdisjoint(managers)


def require_manager(caller: Caller) -> None:
    """Only those who manage billing may go on."""
    if not is_manager(caller):
        raise errors.Forbidden


def idempotency_key() -> str | None:
    """The caller's own Idempotency-Key, where it sent one."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise errors.InvalidRequest(
            "Idempotency-Key: must be 1 to 255 printable ASCII characters", param="Idempotency-Key"
        )
    return key


def return_url(settings: Settings, wanted: str | None) -> str:
    """Where Stripe sends the browser back to: `wanted` if the allow-list has its origin, else the default.

    What is returned is put together from the parsed parts, never the string that came in.
    """
    if wanted is None:
        return settings.app_url + settings.billing_return_path
    if (
        len(wanted) > LONGEST_URL
        or not wanted.isascii()
        or not wanted.isprintable()
        or set(wanted) & set(' \\"<>^`{|}')
    ):
        raise errors.ReturnUrlNotAllowed
    if wanted.startswith("/") and not wanted.startswith("//"):
        wanted = settings.app_url + wanted
    try:
        parts = urlsplit(wanted)
        place = _place(parts)
    except ValueError:
        raise errors.ReturnUrlNotAllowed from None
    for allowed in (settings.app_url, *settings.billing_return_origins):
        if place == _place(urlsplit(allowed)) and "@" not in parts.netloc:
            query, fragment = parts.query and f"?{parts.query}", parts.fragment and f"#{parts.fragment}"
            return allowed + (parts.path or "/") + query + fragment
    raise errors.ReturnUrlNotAllowed


def with_query(url: str, query: str) -> str:
    """The address with one more parameter, for the page to know that its reader is back."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))


def _place(parts: SplitResult) -> tuple[str, str | None, int | None]:
    """What makes two origins the same: scheme, host and port, the scheme's own where none is given."""
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, usual if parts.port is None else parts.port


def ip_of(request: Request) -> str | None:
    """Where the request comes from; TRUSTED_PROXIES says whom to believe."""
    try:
        return str(ipaddress.ip_address(request.remote_addr or ""))
    except ValueError:  # a unix socket has none
        return None
