"""What every process of the service holds, built once from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from billing import alarms
from billing.budget import Budget
from billing.buying import Buying, Terms
from billing.catalogue import Rules
from billing.config import Settings
from billing.db import Database
from billing.documents import Documents
from billing.identity import Identity
from billing.stripe_api import Stripe


@dataclass(frozen=True)
class Billing:
    """The edges, ready to use. Nothing is connected before it is first needed, so a fork may come between."""

    settings: Settings
    db: Database
    stripe: Stripe
    identity: Identity
    budget: Budget
    documents: Documents
    buying: Buying
    rules: Rules


def build(settings: Settings, stripe: Stripe | None = None) -> Billing:
    """Everything for one process; `stripe` replaces the real one where another is wanted."""
    db = Database(
        settings.database_url,
        pool_size=settings.database_pool_size,
        allow_superuser=settings.billing_allow_superuser,
    )
    stripe = stripe or Stripe(
        settings.stripe_secret_key.get_secret_value(),
        base=settings.stripe_api_base,
        deadline=settings.stripe_deadline_seconds,
    )
    alarms.watch(db, settings.billing_expect_webhook_every)
    budget = Budget(db, settings.billing_stripe_reads_per_second)
    terms = Terms(
        trial_days=settings.billing_trial_days,
        automatic_tax=settings.billing_automatic_tax,
        promotion_codes=settings.billing_promotion_codes,
    )
    return Billing(
        settings=settings,
        db=db,
        stripe=stripe,
        identity=Identity(settings, db),
        budget=budget,
        documents=Documents(db, stripe, budget),
        buying=Buying(db, stripe, budget, terms),
        rules=Rules(
            livemode=settings.livemode,
            default_plan=settings.billing_default_plan,
            grace_days=settings.billing_grace_days,
            grace_after_trial=settings.billing_grace_after_trial,
        ),
    )
