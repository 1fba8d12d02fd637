"""Tokens, over HTTP: which are believed, and the many that are not.

A refusal is one answer for all reasons, costs no call to Stripe and is never a failure of ours. A `Way` is one
of the kinds of key that the service can be told to trust, seen from the side of the key's owner. What happens
when the owner publishes its keys itself, and fails to, is in the second half.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import TestResponse

from app import create_app
from billing import config
from billing.db import SYSTEM, Database
from billing.errors import ServiceUnavailable
from billing.identity import (
    KEYS_COOLDOWN_SECONDS,
    KEYS_KEPT_SECONDS,
    KEYS_LIVE_SECONDS,
    KEYS_PAUSE_SECONDS,
    IssuerKeys,
)
from sandbox.server import Control
from tests import issuer as issuers
from tests.conftest import SIGNING_SECRET, create_customer, link
from tests.issuer import Issuer
from tests.tokens import (
    SHARED_SECRET,
    PublicKey,
    Signer,
    a_token,
    base64url,
    claims,
    ec_key,
    ec_with,
    hmac_with,
    jwk,
    pem,
    raw,
    rsa_key,
    rsa_with,
    unsigned,
)

PORTAL = "/api/subscriptions/portal"
ISSUER, AUDIENCE = "https://issuer.example.com/", "https://billing.example.com"


@dataclass(frozen=True)
class Way:
    settings: Mapping[str, str]
    algorithm: str
    sign: Signer
    foreign: Signer
    public: PublicKey | None = None
    kid: str | None = None

    @property
    def header(self) -> dict[str, Any]:
        return {"alg": self.algorithm, "typ": "JWT"} | ({"kid": self.kid} if self.kid else {})

    def header_with(self, **members: Any) -> str:
        """A token whose header says something else as well, or instead."""
        return raw(self.header | members, claims(), self.sign)

    def saying(self, payload: Any) -> str:
        """A token with exactly this payload, properly signed."""
        return raw(self.header, payload, self.sign)

    def with_claims(self, **members: Any) -> str:
        """A good token but for these claims; None is null."""
        return self.saying(claims() | members)

    def without(self, name: str) -> str:
        return self.saying(claims(**{name: None}))

    def with_literal(self, name: str, literal: str) -> str:
        """The same for values that Python would not write down."""
        return self.saying(json.dumps(claims(**{name: None}))[:-1] + f', "{name}": {literal}}}')

    def parts(self) -> list[str]:
        return self.with_claims().split(".")


RSA, EC = rsa_key(), ec_key()
SIGNERS: dict[str, tuple[Signer, Signer, PublicKey | None]] = {
    "HS256": (hmac_with(SHARED_SECRET), hmac_with("another-secret-of-more-than-thirty-two-bytes"), None),
    "RS256": (rsa_with(RSA), rsa_with(rsa_key("mallory")), RSA.public_key()),
    "ES256": (ec_with(EC), ec_with(ec_key("mallory")), EC.public_key()),
}
WAYS = {
    "shared secret": ("HS256", None),
    "RSA key": ("RS256", None),
    "EC key": ("ES256", None),
    "issuer's RSA key": ("RS256", "rsa-1"),
    "issuer's EC key": ("ES256", "ec-1"),
}
PUBLISHED = (
    jwk(RSA.public_key(), kid="rsa-1", use="sig", alg="RS256"),
    jwk(EC.public_key(), kid="ec-1"),
    jwk(RSA.public_key(), kid="rsa-enc", use="enc"),
    {"kty": "oct", "kid": "oct-1", "k": base64url(SHARED_SECRET.encode()), "alg": "HS256"},
    {"kty": "quantum", "kid": "q-1"},
    jwk(RSA.public_key(), kid=["rsa-1"]),
    jwk(RSA.public_key(), kid="rsa-use", use=["sig"]),
)

Serve = Callable[..., FlaskClient]


@pytest.fixture(scope="module")
def member_customer(database_url: str, stripe_stand_in: Control) -> str:
    """Acme and its customer, for the whole module: a token that is believed opens a portal."""
    database, customer = Database(database_url, pool_size=1), create_customer(stripe_stand_in)
    with database.begin(SYSTEM) as connection:
        connection.execute(text("TRUNCATE tenant_config, audit_log"))
    link(database, "t_acme", customer)
    database.close()
    return customer


@pytest.fixture(scope="module")
def serve(database_url: str, stripe_stand_in: Control, member_customer: str) -> Iterator[Serve]:
    """The service with these settings beside the least; made once for the same settings."""
    made: dict[str, FlaskClient] = {}

    def serve(**settings: str) -> FlaskClient:
        least = {
            "DATABASE_URL": database_url,
            "APP_URL": "https://app.example.com",
            "STRIPE_SECRET_KEY": stripe_stand_in.key,
            "STRIPE_WEBHOOK_SECRET": SIGNING_SECRET,
            "STRIPE_API_BASE": stripe_stand_in.url,
            "BILLING_LINKS_PER_MINUTE": "1000000",
        }
        name = json.dumps(settings, sort_keys=True)
        if name not in made:
            made[name] = create_app(config.load(least | settings)).test_client()
        return made[name]

    yield serve
    for client in made.values():
        client.application.extensions["billing"].db.close()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer that works."""
    with issuers.running() as issuer:
        issuer.publish(*PUBLISHED)
        yield issuer


@pytest.fixture
def failing_issuer() -> Iterator[Issuer]:
    """An issuer of one test's own."""
    with issuers.running() as issuer:
        issuer.publish(*PUBLISHED)
        yield issuer


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, issuer: Issuer) -> Way:
    algorithm, kid = WAYS[request.param]
    sign, foreign, public = SIGNERS[algorithm]
    if kid:
        settings = {"JWT_JWKS_URL": issuer.url}
    elif public:
        settings = {"JWT_PUBLIC_KEY": pem(public)}
    else:
        settings = {"JWT_SECRET_KEY": SHARED_SECRET}
    return Way(settings, algorithm, sign, foreign, public, kid)


def ask(client: FlaskClient, token: str) -> TestResponse:
    return client.post(PORTAL, headers={"Authorization": f"Bearer {token}"})


def assert_refused(answer: TestResponse, sandbox: Control) -> None:
    assert (answer.status_code, answer.data) == (401, b'{"error":"Unauthorized"}')
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert sandbox.requests() == []


def test_a_good_token_is_believed(way: Way, serve: Serve) -> None:
    assert ask(serve(**way.settings), way.with_claims()).status_code == 200


@pytest.mark.parametrize("seconds", [("exp", -20), ("nbf", 20), ("iat", 20)], ids=["exp", "nbf", "iat"])
def test_clocks_that_differ_by_less_than_half_a_minute_do_not_matter(
    way: Way, serve: Serve, seconds: tuple[str, int]
) -> None:
    name, difference = seconds

    assert ask(serve(**way.settings), way.with_claims(**{name: time.time() + difference})).status_code == 200


# What nobody may be taken in by, whatever kind of key is trusted.
def later() -> int:
    return int(time.time()) + 3600


def swapped(way: Way, place: int, segment: Any) -> str:
    """A good token, one of its segments exchanged after it was signed."""
    parts = way.parts()
    parts[place] = segment(parts[place]) if callable(segment) else segment
    return ".".join(parts)


def other_tenant(_payload: str) -> str:
    return base64url(json.dumps(claims(tenant_id="t_other")).encode())


def flipped(segment: str) -> str:
    return ("B" if segment[0] == "A" else "A") + segment[1:]


def alg(word: str, sign: Signer | None = None) -> Callable[[Way], str]:
    return lambda way: raw(way.header | {"alg": word}, claims(), sign or way.sign)


NONE = ("none", "None", "NONE", "nOnE", "none ", "")
DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, Callable[[Way], str]] = {
    **{f"alg {word!r}, signed": alg(word) for word in NONE},
    **{f"alg {word!r}, unsigned": alg(word, unsigned) for word in NONE},
    "alg null": lambda way: way.header_with(alg=None),
    "alg list": lambda way: way.header_with(alg=[way.algorithm]),
    "alg object": lambda way: way.header_with(alg={"name": way.algorithm}),
    "alg number": lambda way: way.header_with(alg=256),
    "alg lower-case": lambda way: way.header_with(alg=way.algorithm.lower()),
    "alg unknown": lambda way: way.header_with(alg="XS256"),
    "alg missing": lambda way: raw({"typ": "JWT", "kid": way.kid or "k"}, claims(), way.sign),
    "alg of a longer hash": lambda way: way.header_with(alg=way.algorithm.replace("256", "384")),
    "foreign key": lambda way: raw(way.header, claims(), way.foreign),
    "foreign key, sent along": lambda way: raw(
        way.header | {"jwk": jwk(rsa_key("mallory").public_key())}, claims(), way.foreign
    ),
    "empty key": lambda way: raw(way.header | {"alg": "HS256"}, claims(), hmac_with("")),
    "header changed": lambda way: swapped(way, 0, base64url(json.dumps(way.header | {"x": 1}).encode())),
    "payload changed": lambda way: swapped(way, 1, other_tenant),
    "signature of something else": lambda way: swapped(way, 2, raw(way.header, {}, way.sign).split(".")[2]),
    "signature flipped": lambda way: swapped(way, 2, flipped),
    "signature truncated": lambda way: swapped(way, 2, lambda signature: signature[:-8]),
    "signature of one byte": lambda way: swapped(way, 2, "AA"),
    "signature extended": lambda way: swapped(way, 2, lambda signature: signature + "AAAA"),
    "signature empty": lambda way: swapped(way, 2, ""),
    "signature of zeros": lambda way: swapped(way, 2, base64url(bytes(64))),
    "signature not base64": lambda way: swapped(way, 2, "===="),
    "one segment": lambda way: way.parts()[0],
    "two segments": lambda way: ".".join(way.parts()[:2]),
    "four segments": lambda way: ".".join([*way.parts(), way.parts()[2]]),
    "five segments": lambda way: ".".join([*way.parts(), "AAAA", "AAAA"]),
    "only dots": lambda way: "..",
    "no payload": lambda way: way.saying(""),
    "nonsense": lambda way: "not.a.token",
    "an opaque secret": lambda way: "whsec_5f0c6cd1a6f94d0c",
    "header list": lambda way: raw([way.header], claims(), way.sign),
    "header null": lambda way: raw("null", claims(), way.sign),
    "header not JSON": lambda way: raw("{alg:}", claims(), way.sign),
    "header deep": lambda way: raw(json.dumps(way.header)[:-1] + f', "x": {DEEP}}}', claims(), way.sign),
    "payload list": lambda way: way.saying([claims()]),
    "payload null": lambda way: way.saying("null"),
    "payload text": lambda way: way.saying('"t_acme"'),
    "payload not JSON": lambda way: way.saying("tenant_id=t_acme"),
    "payload not UTF-8": lambda way: swapped(way, 1, base64url(b'{"sub": "\xff"}')),
    "payload deep": lambda way: way.with_literal("x", DEEP),
    "100 kB, foreign": lambda way: raw(way.header, claims(x="x" * 100_000), way.foreign),
    "100 kB of dots": lambda way: "." * 100_000,
    "exp past": lambda way: way.with_claims(exp=int(time.time()) - 60),
    "exp missing": lambda way: way.without("exp"),
    "exp null": lambda way: way.with_claims(exp=None),
    "exp text": lambda way: way.with_claims(exp="tomorrow"),
    "exp number as text": lambda way: way.with_claims(exp=str(later())),
    "exp true": lambda way: way.with_claims(exp=True),
    "exp list": lambda way: way.with_claims(exp=[later()]),
    "exp object": lambda way: way.with_claims(exp={"at": later()}),
    "exp negative": lambda way: way.with_claims(exp=-later()),
    "exp NaN": lambda way: way.with_literal("exp", "NaN"),
    "exp Infinity": lambda way: way.with_literal("exp", "Infinity"),
    "exp 1e400": lambda way: way.with_literal("exp", "1e400"),
    "exp of 6,000 digits": lambda way: way.with_literal("exp", "9" * 6000),
    "nbf in the future": lambda way: way.with_claims(nbf=int(time.time()) + 60),
    "nbf text": lambda way: way.with_claims(nbf="yesterday"),
    "nbf list": lambda way: way.with_claims(nbf=[0]),
    "nbf 1e400": lambda way: way.with_literal("nbf", "1e400"),
    "iat in the future": lambda way: way.with_claims(iat=int(time.time()) + 60),
    "iat text": lambda way: way.with_claims(iat="now"),
    "iat object": lambda way: way.with_claims(iat={}),
    "sub missing": lambda way: way.without("sub"),
    "sub null": lambda way: way.with_claims(sub=None),
    "sub empty": lambda way: way.with_claims(sub=""),
    "sub blank": lambda way: way.with_claims(sub="  "),
    "sub number": lambda way: way.with_claims(sub=7),
    "sub list": lambda way: way.with_claims(sub=["u_ada"]),
    "sub object": lambda way: way.with_claims(sub={"id": "u_ada"}),
    "sub with NUL": lambda way: way.with_claims(sub="u_ada\x00"),
    "sub with half a surrogate pair": lambda way: way.with_claims(sub="u_\ud800"),
    "sub of 256 characters": lambda way: way.with_claims(sub="u" * 256),
    "jti number": lambda way: way.with_claims(jti=5),
    "refresh token": lambda way: way.with_claims(type="refresh"),
    "kid number": lambda way: way.header_with(kid=5),
    "kid list": lambda way: way.header_with(kid=["rsa-1"]),
    "kid object": lambda way: way.header_with(kid={"kid": "rsa-1"}),
    "kid null": lambda way: way.header_with(kid=None),
    "kid of an empty file": lambda way: raw(
        {"alg": "HS256", "kid": "../../../../dev/null"}, claims(), hmac_with("")
    ),
    "kid as SQL": lambda way: raw(
        {"alg": "HS256", "kid": "x' UNION SELECT 'mine' --"}, claims(), hmac_with("mine")
    ),
    "crit unknown": lambda way: way.header_with(crit=["exp"]),
    "crit empty": lambda way: way.header_with(crit=[]),
    "crit text": lambda way: way.header_with(crit="b64", b64=True),
    "crit of numbers": lambda way: way.header_with(crit=[64]),
    "b64 false": lambda way: way.header_with(b64=False, crit=["b64"]),
    "b64 false, not critical": lambda way: way.header_with(b64=False),
    "b64 false, no payload": lambda way: raw(way.header | {"b64": False, "crit": ["b64"]}, "", way.sign),
}


@pytest.mark.parametrize("attack", HOSTILE.values(), ids=HOSTILE)
def test_a_token_that_does_not_hold_is_refused(
    attack: Callable[[Way], str], way: Way, serve: Serve, sandbox: Control
) -> None:
    assert_refused(ask(serve(**way.settings), attack(way)), sandbox)


def test_a_huge_token_that_holds_is_read_all_the_same(way: Way, serve: Serve) -> None:
    assert ask(serve(**way.settings), way.with_claims(x="x" * 100_000)).status_code == 200


SPELLINGS: dict[str, Callable[[PublicKey], bytes]] = {
    "PEM": lambda key: pem(key).encode(),
    "PEM stripped": lambda key: pem(key).strip().encode(),
    "PEM with CRLF": lambda key: pem(key).replace("\n", "\r\n").encode(),
    "PEM on one line": lambda key: pem(key).replace("\n", "\\n").encode(),
    "PEM body": lambda key: "".join(pem(key).splitlines()[1:-1]).encode(),
    "PEM with a byte order mark": lambda key: b"\xef\xbb\xbf" + pem(key).encode(),
    "DER": lambda key: key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "JWK": lambda key: json.dumps(jwk(key)).encode(),
    "SSH": lambda key: key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
}


@pytest.mark.parametrize("way", [name for name, (alg, _) in WAYS.items() if alg != "HS256"], indirect=True)
@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_public_key_is_no_shared_secret(
    spelling: Callable[[PublicKey], bytes], way: Way, serve: Serve, sandbox: Control
) -> None:
    assert way.public

    token = raw(way.header | {"alg": "HS256"}, claims(), hmac_with(spelling(way.public)))

    assert_refused(ask(serve(**way.settings), token), sandbox)


RIGHT_KEY_WRONG_ALGORITHM: dict[str, tuple[str, str, Signer]] = {
    "HS384": ("shared secret", "HS384", hmac_with(SHARED_SECRET, "sha384")),
    "HS512": ("shared secret", "HS512", hmac_with(SHARED_SECRET, "sha512")),
    "RS384": ("RSA key", "RS384", rsa_with(RSA, hashes.SHA384())),
    "RS512": ("RSA key", "RS512", rsa_with(RSA, hashes.SHA512())),
    "PS256": ("RSA key", "PS256", rsa_with(RSA, pss=True)),
    "RS512, issuer's": ("issuer's RSA key", "RS512", rsa_with(RSA, hashes.SHA512())),
    "PS256, issuer's": ("issuer's RSA key", "PS256", rsa_with(RSA, pss=True)),
    "ES256 in DER": ("EC key", "ES256", lambda message: EC.sign(message, ec.ECDSA(hashes.SHA256()))),
    "ES256 for an RSA key": ("RSA key", "ES256", ec_with(EC)),
    "RS256 for an EC key": ("EC key", "RS256", rsa_with(RSA)),
}


@pytest.mark.parametrize(
    ("way", "algorithm", "sign"),
    RIGHT_KEY_WRONG_ALGORITHM.values(),
    ids=RIGHT_KEY_WRONG_ALGORITHM,
    indirect=["way"],
)
def test_the_settings_choose_the_algorithm_and_the_token_does_not(
    way: Way, algorithm: str, sign: Signer, serve: Serve, sandbox: Control
) -> None:
    token = raw(way.header | {"alg": algorithm}, claims(), sign)

    assert_refused(ask(serve(**way.settings), token), sandbox)


@pytest.mark.parametrize("member", ["jku", "x5u"])
def test_nobody_goes_where_a_token_says_its_key_is(
    member: str, way: Way, serve: Serve, sandbox: Control, failing_issuer: Issuer
) -> None:
    token = raw(way.header | {member: failing_issuer.url}, claims(), way.foreign)

    assert_refused(ask(serve(**way.settings), token), sandbox)
    assert failing_issuer.asked == 0


def by_secret(serve: Serve, **settings: str) -> FlaskClient:
    return serve(JWT_SECRET_KEY=SHARED_SECRET, **settings)


GOOD = a_token(exp=int(time.time()) + 100_000)
ELSEWHERE: dict[str, dict[str, Any]] = {
    "nowhere": {},
    "empty": {"headers": {"Authorization": ""}},
    "query, jwt": {"query_string": {"jwt": GOOD}},
    "query, access_token": {"query_string": {"access_token": GOOD}},
    "cookie": {"headers": {"Cookie": f"access_token_cookie={GOOD}; jwt={GOOD}; token={GOOD}"}},
    "JSON body": {"json": {"access_token": GOOD}},
    "form body": {"data": {"access_token": GOOD, "jwt": GOOD}},
    "X-Authorization": {"headers": {"X-Authorization": f"Bearer {GOOD}"}},
    "X-Access-Token": {"headers": {"X-Access-Token": GOOD}},
    "X-Forwarded-Authorization": {"headers": {"X-Forwarded-Authorization": f"Bearer {GOOD}"}},
    "Proxy-Authorization": {"headers": {"Proxy-Authorization": f"Bearer {GOOD}"}},
    **{
        f"Authorization, {name}": {"headers": {"Authorization": value}}
        for name, value in {
            "no scheme": GOOD,
            "Token": f"Token {GOOD}",
            "JWT": f"JWT {GOOD}",
            "Basic": f"Basic {GOOD}",
            "Bearer:": f"Bearer: {GOOD}",
            "no space": f"Bearer{GOOD}",
            "tab": f"Bearer\t{GOOD}",
            "quoted": f'Bearer "{GOOD}"',
            "no token": "Bearer",
            "the scheme twice": f"Bearer Bearer {GOOD}",
            "two tokens": f"Bearer {GOOD} {GOOD}",
            "two tokens, comma": f"Bearer {GOOD},{GOOD}",
            "two bearers": f"Bearer {GOOD}, Bearer {GOOD}",
            "another scheme before": f"Basic YTpi, Bearer {GOOD}",
            "another scheme after": f"Bearer {GOOD}, Basic YTpi",
            "only commas": ", ,",
            "a blank before": f", ,Bearer {GOOD}",
            "not ASCII": "Bearer t\xf6ken",
        }.items()
    },
    "two headers": {"headers": [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Bearer {a_token()}")]},
}


@pytest.mark.parametrize("request_", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_token_counts_only_as_the_one_bearer_of_the_authorization_header(
    request_: dict[str, Any], serve: Serve, sandbox: Control
) -> None:
    assert_refused(by_secret(serve).post(PORTAL, **request_), sandbox)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_schemes_spelling_is_no_failure(scheme: str, serve: Serve) -> None:
    answer = by_secret(serve).post(PORTAL, headers={"Authorization": f"{scheme} {GOOD}"})

    assert answer.status_code in {200, 401}


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["https://other.example.com", AUDIENCE]])
def test_a_token_from_the_right_issuer_for_us_is_believed(serve: Serve, audience: object) -> None:
    client = by_secret(serve, JWT_ISSUER=ISSUER, JWT_AUDIENCE=f"https://old.example.com,{AUDIENCE}")

    assert ask(client, a_token(iss=ISSUER, aud=audience)).status_code == 200


MISADDRESSED: dict[str, dict[str, Any]] = {
    "iss missing": {"iss": None},
    "iss other": {"iss": "https://evil.example.com/"},
    "iss prefix": {"iss": ISSUER[:-1]},
    "iss longer": {"iss": ISSUER + "x"},
    "iss upper-case": {"iss": ISSUER.upper()},
    "iss empty": {"iss": ""},
    "iss list": {"iss": [ISSUER]},
    "iss object": {"iss": {ISSUER: ISSUER}},
    "iss number": {"iss": 1},
    "aud missing": {"aud": None},
    "aud other": {"aud": "https://other.example.com"},
    "aud prefix": {"aud": AUDIENCE[:-1]},
    "aud longer": {"aud": AUDIENCE + "/"},
    "aud empty": {"aud": ""},
    "aud empty list": {"aud": []},
    "aud list of others": {"aud": ["https://other.example.com"]},
    "aud list with a number": {"aud": [AUDIENCE, 5]},
    "aud nested list": {"aud": [[AUDIENCE]]},
    "aud object": {"aud": {AUDIENCE: True}},
    "aud true": {"aud": True},
}


@pytest.mark.parametrize("said", MISADDRESSED.values(), ids=MISADDRESSED)
def test_a_token_from_elsewhere_or_for_somebody_else_is_refused(
    said: dict[str, Any], serve: Serve, sandbox: Control
) -> None:
    client = by_secret(serve, JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE)
    payload = claims(**{"iss": ISSUER, "aud": AUDIENCE} | said)

    assert_refused(ask(client, raw({"alg": "HS256"}, payload, hmac_with(SHARED_SECRET))), sandbox)


# The shapes of well-known issuers.
def clerk(**changes: Any) -> dict[str, Any]:
    """A session token of version 2: the organisation nested and abbreviated, `azp`, and no `aud`."""
    return claims(
        **{
            "iss": "https://clean-mayfly-62.clerk.accounts.dev",
            "sub": "user_2rWXYZ",
            "azp": "https://app.example.com",
            "sid": "sess_2rWXYZ",
            "role": "authenticated",
            "fva": [3, -1],
            "o": {"id": "t_acme", "rol": "admin", "slg": "acme"},
            "v": 2,
            "tenant_id": None,
        }
        | changes
    )


def auth0(**changes: Any) -> dict[str, Any]:
    """An access token: URL-named custom claims, several audiences, `permissions`, `scope`."""
    return claims(
        **{
            "iss": "https://acme.eu.auth0.com/",
            "sub": "auth0|65f0c1",
            "aud": [AUDIENCE, "https://acme.eu.auth0.com/userinfo"],
            "azp": "client_1",
            "scope": "openid manage:billing",
            "permissions": ["manage:billing", "read:reports"],
            "https://example.com/tenant_id": "t_acme",
            "tenant_id": None,
        }
        | changes
    )


def nile(**changes: Any) -> dict[str, Any]:
    return claims(**{"sub": "0190f2c4-7d2b", "tenantId": "t_acme", "tenant_id": None} | changes)


CLERK = {
    "JWT_TENANT_CLAIM": "o.id",
    "JWT_AUTHORIZED_PARTIES": "https://admin.example.com,https://app.example.com",
}
AUTH0 = {
    "JWT_TENANT_CLAIM": "https://example.com/tenant_id",
    "JWT_AUDIENCE": AUDIENCE,
    "JWT_ISSUER": "https://acme.eu.auth0.com/",
}
SHAPES: dict[str, tuple[dict[str, str], dict[str, Any], int]] = {
    "Clerk": (CLERK, clerk(), 200),
    "Clerk, admin": (
        CLERK | {"JWT_ROLES_CLAIM": "o.rol", "BILLING_MANAGER_ROLES": "admin"},
        clerk(),
        200,
    ),
    "Clerk, member": (
        CLERK | {"JWT_ROLES_CLAIM": "o.rol", "BILLING_MANAGER_ROLES": "admin"},
        clerk(o={"id": "t_acme", "rol": "member"}),
        403,
    ),
    "Clerk, other party": (CLERK, clerk(azp="https://evil.example.com"), 401),
    "Clerk, no party": (CLERK, clerk(azp=None), 401),
    "Clerk, party in a list": (CLERK, clerk(azp=["https://app.example.com"]), 401),
    "Clerk, party nested": (CLERK, clerk(azp={"https://app.example.com": 1}), 401),
    "Clerk, no organisation": (CLERK, clerk(o=None), 400),
    "Clerk, organisation is text": (CLERK, clerk(o="t_acme"), 400),
    "Clerk, organisation is a list": (CLERK, clerk(o=["t_acme"]), 400),
    "Auth0": (AUTH0, auth0(), 200),
    "Auth0, permission": (
        AUTH0 | {"JWT_ROLES_CLAIM": "permissions", "BILLING_MANAGER_ROLES": "manage:billing"},
        auth0(),
        200,
    ),
    "Auth0, no permission": (
        AUTH0 | {"JWT_ROLES_CLAIM": "permissions", "BILLING_MANAGER_ROLES": "manage:billing"},
        auth0(permissions=["read:reports"]),
        403,
    ),
    "Auth0, scope": (
        AUTH0 | {"JWT_ROLES_CLAIM": "scope", "BILLING_MANAGER_ROLES": "manage:billing"},
        auth0(),
        200,
    ),
    "Auth0, other scope": (
        AUTH0 | {"JWT_ROLES_CLAIM": "scope", "BILLING_MANAGER_ROLES": "manage:billing"},
        auth0(scope="openid manage:billing:all"),
        403,
    ),
    "Auth0, other audience": (AUTH0, auth0(aud=["https://acme.eu.auth0.com/userinfo"]), 401),
    "Auth0, no tenant": (AUTH0, auth0(**{"https://example.com/tenant_id": None}), 400),
    "Nile": ({"JWT_TENANT_CLAIM": "tenantId"}, nile(), 200),
    "Nile, no tenant": ({"JWT_TENANT_CLAIM": "tenantId"}, nile(tenantId=None), 400),
    "dotted path": (
        {"JWT_TENANT_CLAIM": "app_metadata.billing.tenant"},
        claims(app_metadata={"billing": {"tenant": "t_acme"}}, tenant_id=None),
        200,
    ),
    "dotted name": (
        {"JWT_TENANT_CLAIM": "app_metadata.tenant"},
        claims(**{"app_metadata.tenant": "t_acme", "tenant_id": None}),
        200,
    ),
    "dotted path to an object": (
        {"JWT_TENANT_CLAIM": "app_metadata"},
        claims(app_metadata={"tenant": "t_acme"}),
        400,
    ),
    "billed per user": ({"JWT_TENANT_CLAIM": "sub"}, claims(sub="t_acme", tenant_id=None), 200),
    "another claim than the usual": ({"JWT_TENANT_CLAIM": "org_id"}, claims(), 400),
}


@pytest.mark.parametrize(("settings", "said", "status"), SHAPES.values(), ids=SHAPES)
def test_the_tokens_of_well_known_issuers_are_understood(
    settings: dict[str, str], said: dict[str, Any], status: int, serve: Serve, issuer: Issuer
) -> None:
    client = serve(JWT_JWKS_URL=issuer.url, **settings)
    fresh = {"iat": int(time.time()), "exp": later()}

    answer = ask(client, raw({"alg": "RS256", "kid": "rsa-1"}, said | fresh, rsa_with(RSA)))

    assert answer.status_code == status


@pytest.mark.parametrize(
    "roles", ["owner", ["owner"], ["member", "billing_admin"], "member owner", ["member", 5, "owner"]]
)
def test_a_member_with_one_of_the_roles_may_open_the_portal(serve: Serve, roles: object) -> None:
    client = by_secret(serve, BILLING_MANAGER_ROLES="owner, billing_admin")

    assert ask(client, a_token(roles=roles)).status_code == 200


@pytest.mark.parametrize(
    "roles",
    [
        *(None, "", "member", "Owner", "ownership", "owner,member", "\ud800"),
        *(5, True, 0.5, {"owner": True}),
        *([], ["member"], ["own", "er"], [["owner"]], [{"owner": 1}], [None], ["x"] * 20_000),
    ],
    ids=lambda roles: repr(roles)[:40],
)
def test_a_member_without_any_of_the_roles_is_forbidden(serve: Serve, roles: object, sandbox: Control) -> None:
    client = by_secret(serve, BILLING_MANAGER_ROLES="owner, billing_admin")

    answer = ask(client, a_token(roles=roles))

    assert answer.status_code == 403
    assert answer.json == {
        "error": "Your role does not allow this; ask somebody who manages billing",
        "code": "forbidden",
        "request_id": answer.headers["X-Request-Id"],
    }
    assert sandbox.requests() == []


@pytest.mark.parametrize("roles", [None, "member", 5, {"owner": True}])
def test_where_no_roles_are_named_every_member_may_open_the_portal(serve: Serve, roles: object) -> None:
    assert ask(by_secret(serve), a_token(roles=roles)).status_code == 200


# Keys that the issuer publishes itself.
def by_issuer(kid: Any = "rsa-1", sign: Signer | None = None, algorithm: str = "RS256") -> str:
    header = {"alg": algorithm} | ({"kid": kid} if kid else {})
    return raw(header, claims(), sign or rsa_with(RSA))


MISNAMED: dict[str, Callable[[], str]] = {
    "no kid": lambda: by_issuer(kid=None),
    "unknown kid": lambda: by_issuer(kid="rsa-9"),
    "kid of a path": lambda: by_issuer(kid="../rsa-1"),
    "kid of 100 kB": lambda: by_issuer(kid="k" * 100_000),
    "kid with half a surrogate pair": lambda: by_issuer(kid="\ud800"),
    "kid of the EC key, signed with RSA": lambda: by_issuer("ec-1"),
    "kid of the RSA key, signed with EC": lambda: by_issuer("rsa-1", ec_with(EC), "ES256"),
    "key for encryption": lambda: by_issuer("rsa-enc"),
    "published secret": lambda: by_issuer("oct-1", hmac_with(SHARED_SECRET), "HS256"),
    "unusable key": lambda: by_issuer("q-1"),
}


@pytest.mark.parametrize("token", MISNAMED.values(), ids=MISNAMED)
def test_a_token_that_names_no_signing_key_of_the_issuers_is_refused(
    token: Callable[[], str], serve: Serve, issuer: Issuer, sandbox: Control
) -> None:
    assert_refused(ask(serve(JWT_JWKS_URL=issuer.url), token()), sandbox)


def test_the_issuer_is_asked_once_for_many_callers_at_once(serve: Serve, failing_issuer: Issuer) -> None:
    app = serve(JWT_JWKS_URL=failing_issuer.url).application
    together = threading.Barrier(12)

    def arrive(_: int) -> int:
        together.wait()
        return ask(app.test_client(), by_issuer()).status_code

    with ThreadPoolExecutor(12) as callers:
        statuses = list(callers.map(arrive, range(12)))

    assert statuses == [200] * 12
    assert failing_issuer.asked == 1


def test_a_flood_of_unknown_keys_does_not_reach_the_issuer(serve: Serve, failing_issuer: Issuer) -> None:
    client = serve(JWT_JWKS_URL=failing_issuer.url)

    statuses = {ask(client, by_issuer(kid=f"k{n}")).status_code for n in range(50)}

    assert statuses == {401}
    assert failing_issuer.asked == 1


FAILURES: dict[str, tuple[str, int]] = {
    "HTML": ("<!doctype html><title>Sorry</title>", 200),
    "nothing": ("", 200),
    "list": ("[]", 200),
    "null": ("null", 200),
    "text": ('"keys"', 200),
    "no keys": ("{}", 200),
    "empty keys": ('{"keys": []}', 200),
    "keys is a number": ('{"keys": 5}', 200),
    "keys is text": ('{"keys": "rsa-1"}', 200),
    "keys of numbers": ('{"keys": [5]}', 200),
    "unusable keys": ('{"keys": [{"kty": "RSA", "kid": "rsa-1"}]}', 200),
    "absurd keys": ('{"keys": [{"kty": "RSA", "kid": "rsa-1", "alg": []}]}', 200),
    "only keys without an id": (json.dumps({"keys": [jwk(RSA.public_key())]}), 200),
    "deep": (DEEP, 200),
    "404": ("not found", 404),
    "500": (json.dumps({"keys": PUBLISHED}), 500),
    "503": ("busy", 503),
}


def assert_unavailable(answer: TestResponse) -> None:
    assert (answer.status_code, answer.data) == (503, b'{"error":"Service unavailable"}')
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize(("body", "status"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("kid", ["rsa-1", "unknown"])
def test_nonsense_from_the_issuer_is_not_the_callers_fault(
    body: str, status: int, kid: str, serve: Serve, failing_issuer: Issuer
) -> None:
    failing_issuer.answer(body, status)

    assert_unavailable(ask(serve(JWT_JWKS_URL=failing_issuer.url), by_issuer(kid)))


def test_an_issuer_that_is_down_is_not_the_callers_fault(serve: Serve, failing_issuer: Issuer) -> None:
    failing_issuer.close()

    assert_unavailable(ask(serve(JWT_JWKS_URL=failing_issuer.url), by_issuer()))


def test_keys_are_not_fetched_from_where_the_issuer_redirects_to(
    serve: Serve, issuer: Issuer, failing_issuer: Issuer
) -> None:
    before = issuer.asked
    failing_issuer.answer(json.dumps({"keys": PUBLISHED}), 302, Location=issuer.url)

    assert_unavailable(ask(serve(JWT_JWKS_URL=failing_issuer.url), by_issuer()))
    assert issuer.asked == before


def test_a_dripping_issuer_holds_callers_up_no_longer_than_its_deadline(
    serve: Serve, failing_issuer: Issuer
) -> None:
    failing_issuer.answer(json.dumps({"keys": PUBLISHED}), drip=True)
    app, began = serve(JWT_JWKS_URL=failing_issuer.url).application, time.monotonic()

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: ask(app.test_client(), by_issuer()), range(4)))

    assert time.monotonic() - began < 5  # one deadline of 3 s for all of them, not one after the other
    for answer in answers:
        assert_unavailable(answer)
    assert failing_issuer.asked == 1


def test_the_keys_in_hand_are_used_while_the_issuer_is_down(serve: Serve, failing_issuer: Issuer) -> None:
    client = serve(JWT_JWKS_URL=failing_issuer.url)
    ask(client, by_issuer())
    failing_issuer.close()

    assert ask(client, by_issuer()).status_code == 200
    assert ask(client, by_issuer("ec-1", ec_with(EC), "ES256")).status_code == 200


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(failing_issuer: Issuer, clock: Clock) -> IssuerKeys:
    """Keys that have been fetched once."""
    keys = IssuerKeys(failing_issuer.url, clock)
    keys.find("rsa-1")
    return keys


def rotate(issuer: Issuer) -> None:
    issuer.publish(jwk(rsa_key("mallory").public_key(), kid="rsa-2"))


def test_a_rotated_key_is_found_once_the_cooldown_is_over(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    rotate(failing_issuer)

    clock.now += KEYS_COOLDOWN_SECONDS - 1
    with pytest.raises(jwt.InvalidTokenError):
        keys.find("rsa-2")
    clock.now += 1
    assert keys.find("rsa-2").key_id == "rsa-2"
    assert failing_issuer.asked == 2


def test_a_withdrawn_key_is_forgotten_once_the_keys_are_old(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    rotate(failing_issuer)

    clock.now += KEYS_LIVE_SECONDS
    with pytest.raises(jwt.InvalidTokenError):
        keys.find("rsa-1")


def test_unknown_keys_make_the_issuer_be_asked_once_per_cooldown(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    for _ in range(3):
        clock.now += KEYS_COOLDOWN_SECONDS
        for n in range(20):
            with pytest.raises(jwt.InvalidTokenError):
                keys.find(f"unknown-{n}")

    assert failing_issuer.asked == 1 + 3


def test_a_key_too_old_to_trust_is_not_given_out_while_somebody_asks_for_new_ones(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    clock.now += KEYS_KEPT_SECONDS
    failing_issuer.answer("[]" + " " * 400, drip=True)  # slowly, and to no avail

    with ThreadPoolExecutor(2) as callers:
        asking = [callers.submit(keys.find, "rsa-1") for _ in range(2)]
        refusals = [type(caller.exception()) for caller in asking]

    assert refusals == [ServiceUnavailable, ServiceUnavailable]


def test_callers_with_a_key_in_hand_do_not_wait_for_its_renewal(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    clock.now += KEYS_LIVE_SECONDS
    failing_issuer.answer("[]" + " " * 400, drip=True)

    with ThreadPoolExecutor(2) as callers:
        renewing = callers.submit(keys.find, "rsa-1")
        failing_issuer.wait_until_asked(2)
        began = time.monotonic()
        keys.find("rsa-1")
        took = time.monotonic() - began

    assert renewing.result().key_id == "rsa-1"
    assert took < 0.5


def test_a_failing_issuer_is_left_alone_for_a_while_and_then_asked_again(
    failing_issuer: Issuer, clock: Clock
) -> None:
    keys = IssuerKeys(failing_issuer.url, clock)
    failing_issuer.answer("busy", 503)

    for _ in range(20):
        with pytest.raises(ServiceUnavailable):
            keys.find("rsa-1")
    assert failing_issuer.asked == 1

    failing_issuer.publish(*PUBLISHED)
    clock.now += KEYS_PAUSE_SECONDS
    assert keys.find("rsa-1").key_id == "rsa-1"


def test_a_key_that_may_be_new_is_not_called_false_while_the_issuer_is_away(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    failing_issuer.close()
    clock.now += KEYS_COOLDOWN_SECONDS

    with pytest.raises(ServiceUnavailable):
        keys.find("rsa-2")
    assert keys.find("rsa-1").key_id == "rsa-1"


def test_known_keys_do_not_wait_while_the_issuer_is_asked_for_an_unknown_one(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    failing_issuer.answer(json.dumps({"keys": PUBLISHED}), drip=True)
    clock.now += KEYS_COOLDOWN_SECONDS

    with ThreadPoolExecutor(1) as caller:
        asking = caller.submit(keys.find, "rsa-2")
        failing_issuer.wait_until_asked(2)
        assert keys.find("rsa-1").key_id == "rsa-1"
        assert not asking.done()
        failing_issuer.close()

    with pytest.raises(ServiceUnavailable):
        asking.result()


def test_old_keys_serve_on_while_the_issuer_is_away_but_not_for_ever(
    keys: IssuerKeys, failing_issuer: Issuer, clock: Clock
) -> None:
    failing_issuer.close()

    clock.now += KEYS_LIVE_SECONDS
    assert keys.find("rsa-1").key_id == "rsa-1"
    clock.now += KEYS_KEPT_SECONDS
    with pytest.raises(ServiceUnavailable):
        keys.find("rsa-1")
