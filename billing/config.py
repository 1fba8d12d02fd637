"""The settings, read once from the environment, checked together, and never printed.

`load()` returns frozen `Settings` or raises `SettingsError` whose text lists every fault, by the variable's
name and without its value. A variable that is set but empty is a fault: an empty secret must not pass for none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"[\w-]+(\.[\w-]+)*|[0-9a-f:.]*:[0-9a-f:.]*", re.ASCII)
VISIBLE = re.compile(r"[!-~]+")
PATH = re.compile(r"/(?!/)[!-\[\]-~]*")  # everything visible but the backslash
CONSOLE_USER = re.compile(
    r"([a-z0-9][a-z0-9._@-]{0,62}):(scrypt:(\d{5,7}):(\d{1,2}):\d\$\w+\$[0-9a-f]{128}):(viewer|operator)",
    re.ASCII,
)
SPAN = re.compile(r"(?P<count>\d{1,7})(?P<unit>[smhd])?", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
JWT_KEYS = ("JWT_SECRET_KEY", "JWT_PUBLIC_KEY", "JWT_JWKS_URL")
SECRET_KEY = re.compile(r"[sr]k_(test|live)_\w+", re.ASCII)


class SettingsError(Exception):
    """The environment does not describe a service that may start."""

    def __init__(self, text: str, faults: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.faults = tuple(faults)  # each begins with the names of the variables it is about


def _comma_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _postgres(value: Any) -> str:
    """Heroku says postgres://, SQLAlchemy wants its driver named."""
    scheme, separator, rest = str(value).partition("://")
    address = f"postgresql+psycopg://{rest}"
    try:
        make_url(address)
    except (ArgumentError, ValueError):
        separator = ""
    if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise ValueError("must be a PostgreSQL address: postgresql://user:password@host/name")
    return address


def origin_of(value: str) -> str:
    """`https://host[:port]` and nothing more; plain http only on this machine."""
    text = value.removesuffix("/")
    origin = _origin_in(text)
    if origin != text.lower():
        raise ValueError("must be an origin: https://host[:port], without path, user or query")
    return origin


def _origin_in(address: str) -> str:
    """The origin of an address that can be asked safely. Python's own complaints would quote the address."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("must be an address: https://host[:port]") from None
    if parts.scheme == "http" and host not in LOCAL_HOSTS:
        raise ValueError("must begin with https:// (http:// is for localhost only)")
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with https://")
    if not HOST.fullmatch(host) or port == 0 or "@" in parts.netloc or not VISIBLE.fullmatch(address):
        raise ValueError("must be an address: https://host[:port], without user, blanks or wildcards")
    return f"{parts.scheme}://" + (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


def _origins(value: Any) -> Any:
    return tuple(origin_of(part) for part in _comma_list(value))


def _path(value: str) -> str:
    if not PATH.fullmatch(value):
        raise ValueError("must be a path that begins with one slash, in ASCII and without blanks")
    return value


def http_address(value: str) -> str:
    """An address that can be asked safely, kept as it is."""
    _origin_in(value)
    return value


def _secret_key(value: SecretStr) -> SecretStr:
    if not SECRET_KEY.fullmatch(value.get_secret_value()):
        raise ValueError("must be a secret or a restricted key (sk_… or rk_…)")
    return value


def _signing_secrets(value: Any) -> tuple[SecretStr, ...]:
    secrets = _comma_list(value)
    if not secrets or any(not secret.startswith("whsec_") or len(secret) < 16 for secret in secrets):
        raise ValueError("must be one or several signing secrets, each whsec_ and more behind it")
    return tuple(SecretStr(secret) for secret in secrets)


def _shared_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < 32:
        raise ValueError("must be at least 32 bytes")
    return value


def _public_key(value: Any) -> str:
    """Platforms that keep a setting on one line write a PEM's line ends as a backslash and an n."""
    pem = str(value).replace("\\n", "\n")
    if not _pem_algorithm(pem):
        raise ValueError("must be an RSA (2048 bits or more) or a P-256 public key in PEM")
    return pem


def _pem_algorithm(pem: str) -> str | None:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    return None


def _console_users(value: Any) -> Any:
    users = [_console_user(entry) for entry in _comma_list(value)]
    if len({user.name for user in users}) != len(users):
        raise ValueError("names somebody twice")
    return tuple(users)


def _console_user(entry: str) -> ConsoleUser:
    found = CONSOLE_USER.fullmatch(entry)
    if not found or int(found[3]) < 2**15 or int(found[4]) < 8:
        raise ValueError("must be name:hash:role, as `flask billing console password` prints it")
    return ConsoleUser(name=found[1], hash=SecretStr(found[2]), may_act=found[5] == "operator")


def _span(value: Any) -> Any:
    """90, 90s, 30m, 6h, 2d."""
    found = SPAN.fullmatch(value) if isinstance(value, str) else None
    if not found or not int(found["count"]):
        raise ValueError("must be a span of time: seconds, or a number with s, m, h or d, as in 6h")
    return timedelta(seconds=int(found["count"]) * SECONDS[found["unit"] or "s"])


CommaList = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
Origin = Annotated[str, BeforeValidator(origin_of)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
Path = Annotated[str, AfterValidator(_path)]
Address = Annotated[str, AfterValidator(http_address)]
Base = Annotated[Address, AfterValidator(lambda address: address.rstrip("/"))]
Span = Annotated[timedelta, BeforeValidator(_span)]
Postgres = Annotated[str, BeforeValidator(_postgres)]


class ConsoleUser(BaseModel):
    """Somebody who may use the console, and do what can be done there or only look."""

    model_config = ConfigDict(frozen=True)

    name: str
    hash: SecretStr
    may_act: bool

    @property
    def fingerprint(self) -> bytes:
        """Another one as soon as anything about them changes."""
        return hashlib.sha256(f"{self.name}:{self.hash.get_secret_value()}:{self.may_act}".encode()).digest()


class Settings(BaseModel):
    """One field per environment variable, of the same name in lower case."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    database_url: Postgres = Field(repr=False)
    migrations_database_url: Postgres | None = Field(None, repr=False)
    database_pool_size: int = Field(10, ge=1, le=500)
    billing_allow_superuser: bool = False

    app_url: Origin
    billing_return_path: Path = "/settings/billing"
    billing_return_origins: Origins = ()

    stripe_secret_key: Annotated[SecretStr, AfterValidator(_secret_key)]
    stripe_webhook_secret: Annotated[tuple[SecretStr, ...], BeforeValidator(_signing_secrets)]
    stripe_api_base: Base | None = None
    stripe_deadline_seconds: float = Field(
        10.0, ge=1, le=20
    )  # with two waits for the database, below a router's 30 s
    billing_portal_configuration: str | None = Field(None, pattern=r"^bpc_\w+$")

    jwt_secret_key: Annotated[SecretStr, AfterValidator(_shared_secret)] | None = None
    jwt_public_key: Annotated[str, BeforeValidator(_public_key)] | None = None
    jwt_jwks_url: Address | None = None
    jwt_issuer: str | None = None
    jwt_audience: CommaList = ()
    jwt_authorized_parties: CommaList = ()
    jwt_tenant_claim: str = "tenant_id"
    jwt_roles_claim: str = "roles"
    billing_manager_roles: CommaList = ()

    billing_default_plan: str | None = Field(None, pattern=r"^[!-~]{1,200}$")
    billing_grace_days: int | None = Field(None, ge=0, le=365)
    billing_grace_after_trial: bool = True
    billing_trial_days: int = Field(0, ge=0, le=730)
    billing_automatic_tax: bool = False
    billing_promotion_codes: bool = False

    billing_stripe_reads_per_second: int = Field(20, ge=2, le=100)
    billing_expect_webhook_every: Span | None = None
    billing_links_per_minute: int = Field(30, ge=1)
    billing_console_users: Annotated[tuple[ConsoleUser, ...], BeforeValidator(_console_users)] = ()
    trusted_proxies: int = Field(0, ge=0, le=10)

    @property
    def livemode(self) -> bool:
        """Whether the key is one that moves money; events of the other mode are not ours."""
        return "_live_" in self.stripe_secret_key.get_secret_value()[:8]

    @property
    def jwt_algorithms(self) -> tuple[str, ...]:
        """What a token may be signed with. It follows from the kind of key, never from the token."""
        if self.jwt_secret_key:
            return ("HS256",)
        if self.jwt_public_key:
            return (str(_pem_algorithm(self.jwt_public_key)),)
        return ("RS256", "ES256")


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings, or one `SettingsError` that names every fault and no value."""
    given = {name: environ[name.upper()] for name in Settings.model_fields if name.upper() in environ}
    if "stripe_secret_key" not in given and "STRIPE_KEY" in environ:
        given["stripe_secret_key"] = environ["STRIPE_KEY"]
    faults = _blanks(given) + _contradictions(given)
    try:
        settings = Settings.model_validate(
            {name: value for name, value in given.items() if not _is_blank(value)}
        )
    except ValidationError as e:
        faults += _invalid(e, given)
    if faults:
        raise SettingsError("\n  ".join(["The service cannot start with these settings:", *faults]), faults)
    return settings


# Where there is nothing usable; what needs them must not be looked at.
STAND_INS = {
    "DATABASE_URL": "postgresql://localhost:1/none",
    "APP_URL": "https://app.invalid",
    "STRIPE_SECRET_KEY": "sk_test_none",
    "STRIPE_WEBHOOK_SECRET": "whsec_stands_in_for_none",
    "JWT_SECRET_KEY": "stands in where there is no key at all",
}


def without_faults(environ: Mapping[str, str] = os.environ) -> tuple[Settings, tuple[str, ...]]:
    """For who looks at a service that cannot start: the settings that can be read, and what is wrong with the
    others, which are left out; of those that must be there a stand-in is.
    """
    try:
        return load(environ), ()
    except SettingsError as e:
        faulty = names_in(e.faults)
        if "STRIPE_SECRET_KEY" in faulty:
            faulty.add("STRIPE_KEY")
        kept = {name: value for name, value in environ.items() if name not in faulty}
        others = {"JWT_SECRET_KEY": JWT_KEYS, "STRIPE_SECRET_KEY": ("STRIPE_SECRET_KEY", "STRIPE_KEY")}
        missing = [name for name in STAND_INS if not kept.keys() & {*others.get(name, [name])}]
        return load({**kept, **{name: STAND_INS[name] for name in missing}}), e.faults


def names_in(faults: Iterable[str]) -> set[str]:
    """The variables these faults are about."""
    return {name for fault in faults for name in fault.partition(":")[0].split(", ")}


def _is_blank(value: str) -> bool:
    return not value.strip(" ,\t\r\n")


def _blanks(given: Mapping[str, str]) -> list[str]:
    blank = [name.upper() for name, value in given.items() if _is_blank(value)]
    return [f"{name}: is set but empty; give it a value or unset it" for name in blank]


def _contradictions(given: Mapping[str, str]) -> list[str]:
    """Faults of settings that are each fine alone."""
    faults = []
    keys = [name for name in JWT_KEYS if name.lower() in given]
    if len(keys) != 1:
        faults.append(f"{', '.join(JWT_KEYS)}: exactly one of them must be set")
    if "stripe_api_base" in given and "_live_" in given.get("stripe_secret_key", "")[:8]:
        faults.append("STRIPE_API_BASE: a live key goes to Stripe only; unset this or use a test key")
    return faults


def _invalid(error: ValidationError, given: Mapping[str, str]) -> list[str]:
    faults = []
    for fault in error.errors(include_url=False, include_input=False):
        name = str(fault["loc"][0])
        if fault["type"] != "missing":
            faults.append(f"{name.upper()}: {fault['msg'].removeprefix('Value error, ')}")
        elif name not in given:
            faults.append(f"{name.upper()}: is required")
    return faults


def database_addresses(environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The service's address of the database and its owner's: all that migrations need to know."""
    service = environ.get("DATABASE_URL", "")
    try:
        return _postgres(service), _postgres(environ.get("MIGRATIONS_DATABASE_URL") or service)
    except ValueError as e:
        raise SettingsError(f"DATABASE_URL, MIGRATIONS_DATABASE_URL: each {e}") from None
