"""Who is asking: a bearer token from the Authorization header, turned into a `Caller` or a `Service`.

A member of a tenant brings the issuer's JWT, another service of the house a token that we have made (`tokens`).
Who brings the wrong one of them is told so, if it is good; who brings none that is good is told nothing.
The algorithm and the key come from the settings, never from the token; `exp` and `sub` are required; issuer,
audience and authorized party are checked when set. Anything wrong with a token is `Unauthorized`, one answer
for all reasons. When the issuer's keys cannot be had, that is `ServiceUnavailable`: not the caller's fault.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from flask import Flask, request
from flask_jwt_extended import JWTManager, get_jwt, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt import PyJWK, PyJWKSet
from jwt.exceptions import InvalidTokenError, PyJWKSetError, PyJWTError
from urllib3.exceptions import HTTPError

from billing import deadline, outbound, tokens
from billing.config import Settings
from billing.db import STRANGER, SYSTEM, Database, Query, Scope
from billing.errors import (
    InsufficientScope,
    NoTenant,
    ServiceTokenRequired,
    ServiceUnavailable,
    Unauthorized,
    UserTokenRequired,
)

LEEWAY_SECONDS = 30
KEYS_LIVE_SECONDS = 300
KEYS_DEADLINE_SECONDS = 3
KEYS_COOLDOWN_SECONDS = 30  # a token with an unknown key id asks the issuer again at most this often
KEYS_PAUSE_SECONDS = 2  # so long is an issuer left alone that has just failed: what callers are told, too
KEYS_KEPT_SECONDS = 3600  # so long do the keys in hand serve on while it is away
LONGEST_NAME = 255

BEARER = re.compile(r"Bearer +([\w.=-]+)", re.ASCII)
# What absurd types, sizes and depths raise, in tokens that are signed all the same and in published keys.
NONSENSE = (ArithmeticError, TypeError, ValueError, RecursionError)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Caller:
    """A signed-in member of a tenant."""

    subject: str
    tenant_id: str
    roles: frozenset[str]

    @property
    def scope(self) -> Scope:
        """The only scope a door may open on this caller's behalf."""
        return Scope.tenant(self.tenant_id)


@dataclass(frozen=True)
class Service:
    """Another service of the house, which may ask about any tenant."""

    name: str
    token_id: int
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """Its name in the trail."""
        return f"service:{self.name}"


class Identity:
    """Reads tokens the way the settings say, and the services' own in the database."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._db = db
        self._keys = IssuerKeys(settings.jwt_jwks_url) if settings.jwt_jwks_url else None

    def install(self, app: Flask) -> None:
        """Hand the settings to flask-jwt-extended, which reads them from the app."""
        settings = self._settings
        app.config.update(
            JWT_TOKEN_LOCATION=["headers"],
            JWT_ALGORITHM=settings.jwt_algorithms[0],
            JWT_DECODE_ALGORITHMS=list(settings.jwt_algorithms),
            JWT_DECODE_ISSUER=settings.jwt_issuer,
            JWT_DECODE_AUDIENCE=list(settings.jwt_audience) or None,
            JWT_DECODE_LEEWAY=LEEWAY_SECONDS,
        )
        JWTManager(app).decode_key_loader(self._key)

    def caller(self) -> Caller:
        """The member the current request speaks for; `Unauthorized` or `NoTenant` where there is none."""
        token = _bearer()
        if token.startswith(tokens.PREFIX):
            self._service(self._db.run(STRANGER, tokens.find(token)))
            raise UserTokenRequired
        subject, claims = self._member()
        tenant_id = claim(claims, self._settings.jwt_tenant_claim)
        if not is_name(tenant_id):
            raise NoTenant
        return Caller(subject, tenant_id, granted(claim(claims, self._settings.jwt_roles_claim)))

    def service(self, needs: str, reads: Query[Found] | None = None) -> tuple[Service, Found | None]:
        """The service the current request comes from, if it may do what `needs` says.

        And what `reads` finds on its behalf in the same trip to the database: nothing, unless it may.
        """
        token = _bearer()
        if not token.startswith(tokens.PREFIX):
            self._member()
            raise ServiceTokenRequired
        shown, found = tokens.find(token, needs), None
        if reads:
            alive, found = self._db.run(STRANGER, shown, reads)
        else:
            alive = self._db.run(STRANGER, shown)
        service = self._service(alive)
        if needs not in service.scopes:
            raise InsufficientScope
        return service, found

    def _service(self, alive: tokens.Alive | None) -> Service:
        if alive is None:
            raise Unauthorized
        if alive.is_unseen:
            self._db.run(SYSTEM, tokens.use(alive.id))
        return Service(alive.name, alive.id, alive.scopes)

    def _member(self) -> tuple[str, Mapping[str, Any]]:
        """Whose token it is, and what it says."""
        claims = _verified()
        subject = claims.get("sub")
        if not (is_name(subject) and _is_number(claims.get("exp")) and self._is_party(claims.get("azp"))):
            raise Unauthorized
        return subject, claims

    def _is_party(self, party: Any) -> bool:
        parties = self._settings.jwt_authorized_parties
        return not parties or party in parties

    def _key(self, header: Mapping[str, Any], _claims: Mapping[str, Any]) -> str | PyJWK:
        settings = self._settings
        if settings.jwt_secret_key:
            return settings.jwt_secret_key.get_secret_value()
        if settings.jwt_public_key:
            return settings.jwt_public_key
        assert self._keys
        return self._keys.find(header.get("kid"))


class IssuerKeys:
    """The issuer's published keys, for any number of threads: one asks while those who need the answer wait.

    Callers whose key is in hand wait for nobody else's question. An issuer that is away or answers nonsense is
    left alone for a moment, and the keys in hand serve on, though not for ever: one of them may be withdrawn.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._http = outbound.Http(address, connections=1)
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str, PyJWK] = {}
        self._asked_at = self._fetched_at = -math.inf
        self._failure: Exception | None = None

    def find(self, kid: Any) -> PyJWK:
        """The key of that id. PyJWT's own error when the issuer has none such."""
        if not isinstance(kid, str):
            raise InvalidTokenError("no key id")
        if self._is_due(kid) and self._lock.acquire(blocking=not self._is_in_hand(kid)):
            try:
                if self._is_due(kid):
                    self._ask()
            finally:
                self._lock.release()
        if self._is_in_hand(kid):
            return self._keys[kid]
        if self._failure:  # it may be a new key
            raise ServiceUnavailable("issuer") from self._failure
        raise InvalidTokenError("unknown key id")

    def _is_in_hand(self, kid: str) -> bool:
        return kid in self._keys and self._clock() - self._fetched_at < KEYS_KEPT_SECONDS

    def _is_due(self, kid: str) -> bool:
        """Known keys grow old, an unknown one may be new, a failure may be over."""
        if self._is_in_hand(kid):
            wait = KEYS_LIVE_SECONDS
        else:
            wait = KEYS_PAUSE_SECONDS if self._failure else KEYS_COOLDOWN_SECONDS
        return self._clock() - self._asked_at >= wait

    def _ask(self) -> None:
        try:
            self._keys, self._failure = self._published(), None
            self._fetched_at = self._clock()
        except (HTTPError, PyJWTError, *NONSENSE, AttributeError) as e:
            self._failure = e
        self._asked_at = self._clock()

    def _published(self) -> Mapping[str, PyJWK]:
        with deadline.within(KEYS_DEADLINE_SECONDS):
            answer = self._http.request("GET", self._address)
        if answer.status != 200:
            raise HTTPError(f"the issuer answered {answer.status}")
        keys = PyJWKSet.from_dict(answer.json()).keys
        signing = {
            key.key_id: key
            for key in keys
            if isinstance(key.key_id, str) and key.public_key_use in ("sig", None)
        }
        if not signing:
            raise PyJWKSetError("the issuer publishes no signing keys")
        return signing


def _bearer() -> str:
    """The request's token. One bearer and nothing beside it: the extension would pick one out of several."""
    bearer = BEARER.fullmatch(request.headers.get("Authorization", ""))
    if not bearer:
        raise Unauthorized
    return bearer[1]


def _verified() -> Mapping[str, Any]:
    """The claims of the request's token, of which the signature, the times, issuer and audience hold."""
    try:
        verify_jwt_in_request()
    except (PyJWTError, JWTExtendedException, *NONSENSE) as e:
        raise Unauthorized from e
    return get_jwt()


def claim(claims: Mapping[str, Any], path: str) -> Any:
    """`org_id`, `app_metadata.tenant_id`, or a URL-named claim such as `https://example.com/tenant`."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def granted(value: Any) -> frozenset[str]:
    """Roles as issuers write them: a list, or one string with spaces between."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    return frozenset(word for word in words if isinstance(word, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_name(value: Any) -> TypeGuard[str]:
    """Text that PostgreSQL can hold and index: not blank, no control character, no half of a surrogate pair."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and bool(value.strip())
        and all(character.isprintable() or character == " " for character in value)
    )
