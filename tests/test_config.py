"""The settings: what is refused, that everything is refused at once, and that nothing refused is shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from billing import config
from billing.config import Settings, SettingsError
from tests.tokens import SHARED_SECRET, ec_key, pem, rsa_key

ROOT = Path(__file__).parent.parent
REQUIRED = ("DATABASE_URL", "APP_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET")
LEAST = {
    "DATABASE_URL": "postgresql://billing:pw@db.example.com/billing",
    "APP_URL": "https://app.example.com",
    "STRIPE_SECRET_KEY": "sk_test_4eC39HqLyjWDarjtT1zdp7dc",
    "STRIPE_WEBHOOK_SECRET": "whsec_5f0c6cd1a6f94d0c",
    "JWT_SECRET_KEY": SHARED_SECRET,
}


def load(**changes: str | None) -> Settings:
    """The settings of the least environment and these changes; None unsets."""
    return config.load({name: value for name, value in {**LEAST, **changes}.items() if value is not None})


def faults(**changes: str | None) -> list[str]:
    """The names that are complained about."""
    with pytest.raises(SettingsError) as refusal:
        load(**changes)
    first, *lines = str(refusal.value).splitlines()
    assert first == "The service cannot start with these settings:"
    return [line.strip().split(":")[0] for line in lines]


def key_settings(**key: str) -> dict[str, str | None]:
    return {"JWT_SECRET_KEY": None, **key}


def test_the_least_settings_are_enough() -> None:
    settings = load()

    assert settings.app_url + settings.billing_return_path == "https://app.example.com/settings/billing"
    assert settings.jwt_tenant_claim == "tenant_id"
    assert settings.billing_links_per_minute == 30
    assert settings.trusted_proxies == 0
    assert settings.billing_manager_roles == ()


def test_settings_do_not_change_once_they_are_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().trusted_proxies = 1


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_setting_that_is_missing_is_named(name: str) -> None:
    assert faults(**{name: None}) == [name]


ALL = sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize("blank", ["", " ", "\t\n", " , ,"], ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_a_setting_that_is_set_but_empty_is_a_fault_and_not_the_default(name: str, blank: str) -> None:
    assert set(faults(**{name: blank})) - {"JWT_SECRET_KEY, JWT_PUBLIC_KEY, JWT_JWKS_URL"} == {name}


def test_every_fault_is_reported_at_once() -> None:
    assert set(
        faults(
            DATABASE_URL="mysql://db/billing",
            APP_URL=None,
            STRIPE_SECRET_KEY="",
            JWT_SECRET_KEY="short",
            JWT_JWKS_URL="ftp://issuer",
            TRUSTED_PROXIES="many",
            BILLING_RETURN_PATH="settings",
        )
    ) == {
        "DATABASE_URL",
        "APP_URL",
        "STRIPE_SECRET_KEY",
        "JWT_SECRET_KEY",
        "JWT_JWKS_URL",
        "JWT_SECRET_KEY, JWT_PUBLIC_KEY, JWT_JWKS_URL",
        "TRUSTED_PROXIES",
        "BILLING_RETURN_PATH",
    }


CANARY = "c4nary"
SPOILT = {
    "nothing but the canary": "{}",
    "in a host": "https://{}\uff0f.example.com",
    "in brackets": "https://[{}]/",
    "in a port": "https://host:{}/",
    "in a database port": "postgresql://u:p@host:{}/db",
    "as user": "https://{}@host/",
    "a live key": "sk_live_{}",
    "a key of two lines": "sk_test_{}\nX-Evil: 1",
    "a webhook secret": "whsec_{},",
    "not Unicode": "{}\udcff",
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("name", ALL)
def test_no_refusal_shows_a_value(name: str, spoilt: str) -> None:
    environ = {"STRIPE_API_BASE": "http://localhost:1", **LEAST, "TRUSTED_PROXIES": CANARY}

    with pytest.raises(SettingsError) as refusal:
        config.load(environ | {name: spoilt.format(CANARY)})

    assert CANARY not in str(refusal.value)
    assert CANARY not in repr(refusal.value)


def test_settings_keep_their_secrets_when_they_are_printed() -> None:
    settings = load(
        DATABASE_URL=f"postgresql://billing:{CANARY}@db/billing",
        MIGRATIONS_DATABASE_URL=f"postgresql://owner:{CANARY}@db/billing",
        STRIPE_SECRET_KEY=f"sk_test_{CANARY}",
        STRIPE_WEBHOOK_SECRET=f"whsec_{CANARY}{CANARY},whsec_{CANARY}_{CANARY}",
        JWT_SECRET_KEY=CANARY * 6,
    )

    assert CANARY not in str(settings)
    assert CANARY not in repr(settings)
    assert CANARY not in settings.model_dump_json(
        exclude={"database_url", "migrations_database_url"}
    )  # addresses are whole there: SQLAlchemy needs them


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_both_spellings_of_postgresql_are_understood(scheme: str) -> None:
    settings = load(DATABASE_URL=f"{scheme}://billing:pw@db:5433/billing?sslmode=require")

    assert settings.database_url == "postgresql+psycopg://billing:pw@db:5433/billing?sslmode=require"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "mysql://u:p@db/billing",
            "sqlite:///billing.db",
            "postgresql+asyncpg://u:p@db/billing",
            "db/billing",
        ),
        *("postgresql:/db", "postgresql://u:p@db:port/billing"),
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "MIGRATIONS_DATABASE_URL"])
def test_what_is_no_address_of_a_postgresql_is_refused(name: str, address: str) -> None:
    assert faults(**{name: address}) == [name]


def test_migrations_need_to_know_the_database_alone() -> None:
    service, owner = "postgres://billing:pw@db/billing", "postgres://owner:pw@db/billing"

    assert (
        config.database_addresses({"DATABASE_URL": service})[1] == "postgresql+psycopg://billing:pw@db/billing"
    )
    assert config.database_addresses({"DATABASE_URL": service, "MIGRATIONS_DATABASE_URL": owner}) == (
        "postgresql+psycopg://billing:pw@db/billing",
        "postgresql+psycopg://owner:pw@db/billing",
    )
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        config.database_addresses({})


def test_stripes_key_may_have_its_shorter_name() -> None:
    settings = load(STRIPE_SECRET_KEY=None, STRIPE_KEY="rk_test_short")

    assert settings.stripe_secret_key.get_secret_value() == "rk_test_short"


def test_of_two_names_of_stripes_key_the_full_one_counts() -> None:
    settings = load(STRIPE_KEY="rk_test_short")

    assert settings.stripe_secret_key.get_secret_value() == LEAST["STRIPE_SECRET_KEY"]


@pytest.mark.parametrize(
    "key",
    ["pk_test_public", "whsec_5f0c6cd1a6f94d0c", "sk_test_", " sk_test_x", "sk_test_x\n", "sk_test_\u00e4"],
)
def test_what_is_no_secret_key_of_stripes_is_refused(key: str) -> None:
    assert faults(STRIPE_SECRET_KEY=key) == ["STRIPE_SECRET_KEY"]


@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "STRIPE_KEY"])
@pytest.mark.parametrize("key", ["sk_live_real", "rk_live_real"])
def test_a_live_key_goes_to_stripe_and_nowhere_else(name: str, key: str) -> None:
    given = {"STRIPE_SECRET_KEY": None, name: key}

    assert faults(**given, STRIPE_API_BASE="http://localhost:8420") == ["STRIPE_API_BASE"]
    assert load(**given).stripe_secret_key.get_secret_value() == key


@pytest.mark.parametrize(
    "secret", ["whsec_", "whsec_short", "5f0c6cd1a6f94d0c5f0c", "whsec_5f0c6cd1a6f94d0c,oops"]
)
def test_what_is_no_signing_secret_is_refused(secret: str) -> None:
    assert faults(STRIPE_WEBHOOK_SECRET=secret) == ["STRIPE_WEBHOOK_SECRET"]


def test_several_signing_secrets_may_be_valid_at_once() -> None:
    settings = load(STRIPE_WEBHOOK_SECRET="whsec_5f0c6cd1a6f94d0c, whsec_0123456789abcdef,")

    assert [secret.get_secret_value() for secret in settings.stripe_webhook_secret] == [
        "whsec_5f0c6cd1a6f94d0c",
        "whsec_0123456789abcdef",
    ]


EXACTLY_ONE = "JWT_SECRET_KEY, JWT_PUBLIC_KEY, JWT_JWKS_URL"
JWKS = "https://issuer.example.com/jwks.json"


@pytest.mark.parametrize(
    "given",
    [
        key_settings(),
        {"JWT_JWKS_URL": JWKS},
        {"JWT_PUBLIC_KEY": pem(rsa_key().public_key())},
        key_settings(JWT_JWKS_URL=JWKS, JWT_PUBLIC_KEY=pem(ec_key().public_key())),
        {"JWT_JWKS_URL": JWKS, "JWT_PUBLIC_KEY": pem(ec_key().public_key())},
    ],
    ids=["none", "secret and issuer", "secret and key", "key and issuer", "all"],
)
def test_tokens_are_trusted_for_exactly_one_reason(given: dict[str, str | None]) -> None:
    assert faults(**given) == [EXACTLY_ONE]


@pytest.mark.parametrize("secret", ["x", "x" * 31, "ä" * 15])
def test_a_secret_that_could_be_guessed_is_refused(secret: str) -> None:
    assert faults(JWT_SECRET_KEY=secret) == ["JWT_SECRET_KEY"]


@pytest.mark.parametrize("secret", ["x" * 32, "ä" * 16])
def test_a_secrets_length_is_counted_in_bytes(secret: str) -> None:
    assert load(JWT_SECRET_KEY=secret).jwt_algorithms == ("HS256",)


@pytest.mark.parametrize("newline", ["\n", "\\n", "\r\n"], ids=repr)
@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(rsa_key().public_key(), "RS256"), (ec_key().public_key(), "ES256")],
    ids=["RSA", "EC"],
)
def test_a_public_key_says_which_algorithm_its_tokens_have(
    key: ec.EllipticCurvePublicKey, algorithm: str, newline: str
) -> None:
    given = key_settings(JWT_PUBLIC_KEY=pem(key).replace("\n", newline))

    assert load(**given).jwt_algorithms == (algorithm,)


def private_pem() -> str:
    return rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def certificate() -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer.example.com")])
    day = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, ec_key().public_key(), 1, day, day.replace(2027))
    return builder.sign(ec_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def public_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


UNFIT_KEYS = {
    "garbage": "garbage",
    "a PEM of garbage": "-----BEGIN PUBLIC KEY-----\nZ2FyYmFnZQ==\n-----END PUBLIC KEY-----\n",
    "half a PEM": pem(ec_key().public_key())[:80],
    "private": private_pem(),
    "certificate": certificate(),
    "RSA of 1024 bits": pem(rsa_key("old", 1024).public_key()),
    "P-384": public_pem(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": public_pem(ec.generate_private_key(ec.SECP256K1())),
    "Ed25519": public_pem(ed25519.Ed25519PrivateKey.generate()),
    "a shared secret": SHARED_SECRET,
}


@pytest.mark.parametrize("key", UNFIT_KEYS.values(), ids=UNFIT_KEYS)
def test_what_is_no_public_key_we_can_trust_is_refused(key: str) -> None:
    assert faults(**key_settings(JWT_PUBLIC_KEY=key)) == ["JWT_PUBLIC_KEY"]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "issuer.example.com/jwks",
            "ftp://issuer.example.com/jwks",
            "file:///etc/passwd",
            "https://",
            "https:///jwks",
        ),
        *(
            "http://issuer.example.com/jwks",
            "https://user:pw@issuer.example.com/jwks",
            "https://host:port/jwks",
        ),
        *("https://host:99999/jwks", "https://[::1/jwks", "https://issuer.example.com/a b", "https://h/jwks\n"),
    ],
)
@pytest.mark.parametrize("name", ["JWT_JWKS_URL", "STRIPE_API_BASE"])
def test_an_address_that_cannot_be_asked_safely_is_refused(name: str, address: str) -> None:
    given = key_settings(JWT_JWKS_URL=JWKS) | {name: address}

    assert faults(**given) == [name]


@pytest.mark.parametrize("address", [JWKS, f"{JWKS}/", "http://localhost:1234/jwks", "http://[::1]:80/j?k=1"])
def test_an_issuers_address_is_https_or_on_this_machine_and_kept_as_it_is(address: str) -> None:
    assert load(**key_settings(JWT_JWKS_URL=address)).jwt_jwks_url == address


def test_paths_can_be_put_behind_stripes_address() -> None:
    assert load(STRIPE_API_BASE="http://127.0.0.1:8420/").stripe_api_base == "http://127.0.0.1:8420"


ORIGINS = {
    "https://app.example.com": "https://app.example.com",
    "https://app.example.com/": "https://app.example.com",
    "HTTPS://App.Example.COM": "https://app.example.com",
    "https://app.example.com:8443": "https://app.example.com:8443",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "https://192.0.2.7": "https://192.0.2.7",
    "https://[2001:db8::1]:8443": "https://[2001:db8::1]:8443",
    "http://localhost:3000": "http://localhost:3000",
    "http://127.0.0.1:3000": "http://127.0.0.1:3000",
    "http://[::1]:3000": "http://[::1]:3000",
    "http://[::1]": "http://[::1]",
}


@pytest.mark.parametrize(("given", "origin"), ORIGINS.items(), ids=ORIGINS)
def test_an_origin_is_kept_in_its_plain_form(given: str, origin: str) -> None:
    settings = load(APP_URL=given, BILLING_RETURN_ORIGINS=f" {given} ,https://admin.example.com,")

    assert settings.app_url == origin
    assert settings.billing_return_origins == (origin, "https://admin.example.com")


NO_ORIGINS = [
    *("app.example.com", "//app.example.com", "https://", "https:///", "https:app.example.com", "null", "*"),
    *("http://app.example.com", "http://localhost.example.com", "http://127.0.0.2", "http://0.0.0.0"),
    *("ftp://app.example.com", "javascript://app.example.com", "file:///app"),
    *("https://app.example.com/app", "https://app.example.com//", "https://app.example.com/?"),
    *("https://app.example.com?x=1", "https://app.example.com#x", "https://app.example.com/#"),
    *("https://user@app.example.com", "https://user:pw@app.example.com", "https://@app.example.com"),
    *("https://app.example.com:", "https://app.example.com:0443", "https://app.example.com:99999"),
    *("https://app.example.com:port", "https://app.example.com:0", "https://app.example.com:-1"),
    *(
        "https://*.example.com",
        "https://app.example.com.",
        "https://app%2eexample.com",
        "https://app example.com",
    ),
    *(
        "https://app.example.com\\",
        "https://app\\.example.com",
        "https://app.exa\nmple.com",
        "https://bücher.example",
    ),
    *("https://[::1", "https://::1", "https://[app.example.com]", "https://[fe80::1%25eth0]", "https://a/b@c"),
]


@pytest.mark.parametrize("value", NO_ORIGINS)
def test_what_is_more_or_less_than_an_origin_is_refused(value: str) -> None:
    assert faults(APP_URL=value) == ["APP_URL"]
    assert faults(BILLING_RETURN_ORIGINS=f"https://admin.example.com,{value}") == ["BILLING_RETURN_ORIGINS"]


@pytest.mark.parametrize(
    "path",
    ["settings", "//evil.example.com", "/\\evil.example.com", "https://x/", "/a b", "/a\tb", "/a\\b", "/ä"],
)
def test_a_return_path_is_a_path(path: str) -> None:
    assert faults(BILLING_RETURN_PATH=path) == ["BILLING_RETURN_PATH"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DATABASE_POOL_SIZE", value) for value in ("0", "-1", "501", "ten", "1.5", "1e3")),
        *(("STRIPE_DEADLINE_SECONDS", value) for value in ("0", "0.5", "26", "nan", "inf", "-inf", "soon")),
        *(("BILLING_LINKS_PER_MINUTE", value) for value in ("0", "-1", "many", "9" * 5000)),
        *(("TRUSTED_PROXIES", value) for value in ("-1", "11", "true", "127.0.0.1", "1,2")),
        *(("BILLING_ALLOW_SUPERUSER", value) for value in ("2", "maybe")),
        *(("BILLING_EXPECT_WEBHOOK_EVERY", value) for value in ("0", "-1", "6 h", "1w", "h", "1.5h", "6h30m")),
        *(("BILLING_PORTAL_CONFIGURATION", value) for value in ("pc_1", "bpc_", "bpc_1\n", "bpc_1 bpc_2")),
    ],
    ids=lambda value: value[:30],
)
def test_a_value_out_of_range_is_refused(name: str, value: str) -> None:
    assert faults(**{name: value}) == [name]


@pytest.mark.parametrize("hops", ["0", "1", "10"])
def test_the_number_of_trusted_proxies_is_taken_as_it_is(hops: str) -> None:
    assert load(TRUSTED_PROXIES=hops).trusted_proxies == int(hops)


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("6h", 21_600), ("2d", 172_800)]
)
def test_a_span_of_time_has_its_unit_or_is_in_seconds(given: str, seconds: int) -> None:
    assert load(BILLING_EXPECT_WEBHOOK_EVERY=given).billing_expect_webhook_every == timedelta(seconds=seconds)


def test_lists_are_separated_by_commas_and_forgive_blanks() -> None:
    settings = load(
        JWT_AUDIENCE="billing, https://billing.example.com ,",
        JWT_AUTHORIZED_PARTIES="https://app.example.com",
        BILLING_MANAGER_ROLES=" owner,billing admin",
    )

    assert settings.jwt_audience == ("billing", "https://billing.example.com")
    assert settings.jwt_authorized_parties == ("https://app.example.com",)
    assert settings.billing_manager_roles == ("owner", "billing admin")


@pytest.mark.parametrize("name", [*ALL, "STRIPE_KEY"])
def test_who_looks_at_a_service_that_cannot_start_gets_what_can_be_read_and_no_fault_with_it(name: str) -> None:
    """Whatever is at fault is left out, and the rest is as it was given."""
    for value in ("", *(spoilt.format("canary") for spoilt in SPOILT.values())):
        settings, found = config.without_faults({**LEAST, "JWT_AUDIENCE": "billing", name: value})

        assert "canary" not in f"{found}{settings!r}" or not found
        if name not in ("APP_URL", "JWT_AUDIENCE"):
            assert (settings.app_url, settings.jwt_audience) == ("https://app.example.com", ("billing",))


@pytest.mark.parametrize("name", ["STRIPE_KEY", "STRIPE_SECRET_KEY"])
def test_no_stand_in_comes_before_what_is_given(name: str) -> None:
    given = {"STRIPE_SECRET_KEY": None, name: "sk_test_given", "JWT_SECRET_KEY": None, "JWT_JWKS_URL": JWKS}
    left = {key: value for key, value in {**LEAST, **given, "APP_URL": None}.items() if value is not None}

    settings, _ = config.without_faults(left)

    assert settings.stripe_secret_key.get_secret_value() == "sk_test_given"
    assert (settings.jwt_secret_key, settings.jwt_jwks_url) == (None, JWKS)


def test_where_nothing_is_set_every_required_setting_is_at_fault_and_has_a_stand_in() -> None:
    settings, found = config.without_faults({})

    assert config.names_in(found) >= {*REQUIRED, *config.JWT_KEYS}
    assert settings.app_url == config.STAND_INS["APP_URL"]


def test_the_service_does_not_start_with_a_bad_environment_and_says_why() -> None:
    bad = {"APP_URL": f"http://{CANARY}.example.com", "STRIPE_SECRET_KEY": CANARY, "JWT_SECRET_KEY": ""}

    started = subprocess.run(
        [sys.executable, "-c", "import wsgi"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **bad},
        capture_output=True,
        text=True,
    )

    assert started.returncode == 1
    assert started.stdout == ""
    assert "Traceback" not in started.stderr
    assert CANARY not in started.stderr
    assert set(re.findall(r"^  ([A-Z_]+):", started.stderr, re.MULTILINE)) == {
        "DATABASE_URL",
        "APP_URL",
        "STRIPE_SECRET_KEY",
        "STRIPE_WEBHOOK_SECRET",
        "JWT_SECRET_KEY",
    }
