"""What is wrong with the service, and what would cure it: the settings first, then all the doctor sees."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError

from billing import audit, config, doctor, signatures
from billing.account import Mended
from billing.audit import By
from billing.budget import Budget
from billing.config import Settings
from billing.db import SYSTEM, Database
from billing.errors import BillingError
from billing.findings import Expected, Finding, Level
from billing.stripe_api import Stripe

log = structlog.get_logger(__name__)

OF_DATABASE = {"DATABASE_URL"}
OF_STRIPE = {"STRIPE_SECRET_KEY", "STRIPE_KEY", "STRIPE_API_BASE"}


def findings(
    settings: Settings, db: Database, stripe: Stripe, budget: Budget, faults: Sequence[str] = ()
) -> list[Finding]:
    """All there is to find. What a setting with a fault leads to is not looked at."""
    faulty = config.names_in(faults)
    return [
        *of_settings(settings, faults),
        *doctor.look(
            None if faulty & OF_DATABASE else db,
            None if faulty & OF_STRIPE else stripe,
            budget,
            _expected(settings, faulty),
        ),
    ]


def note_mended(db: Database, by: By, mended: Mended) -> bool:
    """Leave a row in the trail of what was mended. Whether there is one now: the database may be at fault."""
    try:
        with db.begin(SYSTEM) as connection:
            audit.note(connection, by, "webhook_endpoint.mend", flow=mended.did, stripe_object=mended.id)
    except (BillingError, DBAPIError, psycopg.Error) as e:
        log.warning("doctor.not_noted", did=mended.did, kind=type(e).__name__)
        return False
    return True


def by_group(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Each group once, where its first finding stands."""
    groups: dict[str, list[Finding]] = {}
    for one in findings:
        groups.setdefault(one.group, []).append(one)
    return groups


def _expected(settings: Settings, faulty: Collection[str]) -> Expected:
    secrets = [] if "STRIPE_WEBHOOK_SECRET" in faulty else settings.stripe_webhook_secret
    return Expected(
        livemode=settings.livemode,
        secrets=[signatures.fingerprint(secret.get_secret_value()) for secret in secrets],
        portal=settings.billing_portal_configuration,
        webhook_every=settings.billing_expect_webhook_every,
        may_bypass=settings.billing_allow_superuser,
    )


def of_settings(settings: Settings, faults: Sequence[str]) -> Iterator[Finding]:
    """Every fault, and of what is set without one, what may well be looked at."""
    faulty = config.names_in(faults)
    for fault in faults:
        yield Finding("Settings", "problem", fault, "README.md, Settings; the service does not start before")
    if "APP_URL" not in faulty:
        is_here = settings.livemode and not settings.app_url.startswith("https://")
        level: Level = "warning" if is_here else "ok"
        cure = "people would be led to their own machines" if is_here else None
        yield Finding("Settings", level, f"APP_URL {settings.app_url}", cure)
    if not faulty & set(config.JWT_KEYS):
        algorithms = " or ".join(settings.jwt_algorithms)
        yield Finding("Settings", "ok", f'tokens: {algorithms}, tenant claim "{settings.jwt_tenant_claim}"')
        if settings.jwt_jwks_url and not settings.jwt_audience:
            yield Finding(
                "Settings",
                "note",
                "JWT_AUDIENCE is not set: whatever your issuer's tokens are for, they are taken here",
            )
    if settings.stripe_api_base:
        yield Finding("Settings", "note", f"STRIPE_API_BASE {settings.stripe_api_base}: this is not Stripe")
