"""What every process of the service holds, built once from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from billing.config import Settings
from billing.db import Database
from billing.identity import Identity
from billing.stripe_api import Stripe


@dataclass(frozen=True)
class Billing:
    """The edges, ready to use. Nothing is connected before it is first needed, so a fork may come between."""

    settings: Settings
    db: Database
    stripe: Stripe
    identity: Identity


def build(settings: Settings, stripe: Stripe | None = None) -> Billing:
    """Everything for one process; `stripe` replaces the real one where another is wanted."""
    return Billing(
        settings=settings,
        db=Database(
            settings.database_url,
            pool_size=settings.database_pool_size,
            allow_superuser=settings.billing_allow_superuser,
        ),
        stripe=stripe
        or Stripe(
            settings.stripe_secret_key.get_secret_value(),
            base=settings.stripe_api_base,
            deadline=settings.stripe_deadline_seconds,
        ),
        identity=Identity(settings),
    )
