"""Journeys of somebody who buys: a shop at Stripe, clicks at our door, payments on Stripe's page, and the news.

The goods are made once per sandbox, and brought into the service's catalogue as a reading would. A `Shop` is
one tenant's way through it, and every tenant is new. Nothing of a purchase reaches the service unless it looks
by itself, or is told by `hear`.
"""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, replace
from typing import Any

from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from billing import catalogue, inbox, questions, sync
from billing.db import SYSTEM, Database
from billing.wiring import Billing
from sandbox.server import Control
from tests.conftest import link, rows
from tests.deliveries import Json, a_catalogue, at_stripe, deliver, happened, make_due, take_in
from tests.tokens import a_token

CHECKOUT = "/api/subscriptions/checkout"
CUSTOMERS = "/v1/customers"
SESSIONS = "/v1/checkout/sessions"

BANK_ACCOUNT = "pm_usBankAccount_success"
THREE_D_SECURE = "pm_card_threeDSecureRequired"
DECLINED = "pm_card_visa_chargeDeclined"


@dataclass(frozen=True)
class Goods:
    """What the shop has at Stripe, as the catalogue keeps it; and its prices' ids, by their lookup keys."""

    content: Json
    prices: dict[str, str]


@functools.cache
def goods(sandbox: Control) -> Goods:
    """Sold: team by the seat, crew in threes to tens, pro as it is. The others are not for sale any more."""
    products = {
        "team": a_product(sandbox, "Team", {"feature.sso": "true", "limit.seats": "quantity"}),
        "crew": a_product(
            sandbox, "Crew", {"limit.seats": "quantity", "min_quantity": "3", "max_quantity": "10"}
        ),
        "pro": a_product(sandbox, "Pro", {"feature.sso": "true", "limit.projects": "50"}),
        "secret": a_product(sandbox, "Secret", {"hidden": "true"}),
        "retired": a_product(sandbox, "Retired", {}),
    }
    prices = {
        "team_monthly": a_price_of(sandbox, products["team"], "team_monthly"),
        "team_yearly": a_price_of(sandbox, products["team"], "team_yearly", interval="year", amount=12000),
        "crew_monthly": a_price_of(sandbox, products["crew"], "crew_monthly"),
        "pro_monthly": a_price_of(sandbox, products["pro"], "pro_monthly"),
        "pro_tried": a_price_of(sandbox, products["pro"], "pro_tried", trial_days=14),
        "pro_former": a_price_of(sandbox, products["pro"], "pro_former", active=False),
        "pro_once": a_price_of(sandbox, products["pro"], "pro_once", interval=None),
        "secret_monthly": a_price_of(sandbox, products["secret"], "secret_monthly"),
        "retired_monthly": a_price_of(sandbox, products["retired"], "retired_monthly"),
    }
    products["retired"] = at_stripe(sandbox, "POST", f"products/{products['retired']['id']}", active="false")
    content = {
        "products": [catalogue.product_from(product) for product in products.values()],
        "prices": [catalogue.price_from(price) for price in prices.values()],
    }
    return Goods(content, {key: price["id"] for key, price in prices.items()})


def a_product(sandbox: Control, name: str, metadata: dict[str, str]) -> Json:
    written = {f"metadata[{key}]": says for key, says in metadata.items()}
    return at_stripe(sandbox, "POST", "products", name=name, **written)


def a_price_of(
    sandbox: Control,
    product: Json,
    key: str,
    *,
    interval: str | None = "month",
    amount: int = 1200,
    active: bool = True,
    trial_days: int | None = None,
) -> Json:
    price = {"product": product["id"], "currency": "usd", "unit_amount": amount, "active": str(active).lower()}
    keyed = {"lookup_key": key, "transfer_lookup_key": "true"}
    recurring = {"recurring[interval]": interval} if interval else {}
    tried = {"metadata[trial_days]": trial_days} if trial_days else {}
    return at_stripe(sandbox, "POST", "prices", **price, **keyed, **recurring, **tried)


def a_shop(app: Flask, database: Database, sandbox: Control) -> Shop:
    """A tenant that has never been here, before an app that knows the goods."""
    a_catalogue(database, **goods(sandbox).content)
    sandbox.send("DELETE", "requests")
    return Shop(app, database, sandbox, f"t_{secrets.token_hex(6)}")


@dataclass(frozen=True)
class Shop:
    """One tenant, its browser, and all it can reach."""

    app: Flask
    database: Database
    sandbox: Control
    tenant: str

    # ---- at our door

    def of(self, tenant: str) -> Shop:
        """The same shop, and somebody else in it."""
        return replace(self, tenant=tenant)

    @property
    def headers(self) -> dict[str, str]:
        """What a member of the tenant sends."""
        return {"Authorization": f"Bearer {a_token(tenant_id=self.tenant)}"}

    def click(self, plan: str = "team_monthly", *, key: str | None = None, **wish: Any) -> TestResponse:
        """Press a plan's button."""
        keyed = {"Idempotency-Key": key} if key is not None else {}
        body = {"plan": plan, **wish}
        return self.app.test_client().post(CHECKOUT, headers={**self.headers, **keyed}, json=body)

    def opened(self, plan: str = "team_monthly", **wish: Any) -> str:
        """The session that a click leads to."""
        answer = self.click(plan, **wish)
        assert answer.status_code == 200, answer.text
        return str((answer.json or {})["session_id"])

    def back(self, session: str) -> TestResponse:
        """Come back from Stripe's page, and ask how it stands."""
        return self.app.test_client().get(f"{CHECKOUT}/{session}", headers=self.headers)

    def document(self) -> Json:
        """What the tenant may use."""
        answer = self.app.test_client().get("/api/entitlements", headers=self.headers)
        assert answer.status_code == 200, answer.text
        document: Json = answer.json or {}
        return document

    # ---- at Stripe

    @property
    def customer(self) -> str:
        """Whom the tenant is linked to."""
        [row] = rows(
            self.database,
            "SELECT stripe_customer_id AS id FROM tenant_config WHERE tenant_id = :tenant",
            tenant=self.tenant,
        )
        return str(row["id"])

    def linked(self) -> Shop:
        """The same tenant, with a customer that somebody else has made."""
        made = at_stripe(self.sandbox, "POST", "customers", **{"metadata[tenant_id]": self.tenant})
        link(self.database, self.tenant, made["id"])
        self.sandbox.send("DELETE", "requests")
        return self

    def customers_made(self) -> list[str]:
        """Those at Stripe that carry the tenant's name and are not deleted."""
        query = f"metadata['tenant_id']:'{self.tenant}'"
        return [one["id"] for one in at_stripe(self.sandbox, "GET", "customers/search", query=query)["data"]]

    def open_sessions(self) -> list[str]:
        """Where any customer of the tenant's could still pay."""
        return [
            session["id"]
            for customer in self.customers_made()
            for session in at_stripe(
                self.sandbox, "GET", "checkout/sessions", customer=customer, status="open", limit=100
            )["data"]
        ]

    def at_stripe(self, session: str) -> Json:
        """The session as Stripe has it."""
        return at_stripe(self.sandbox, "GET", f"checkout/sessions/{session}")

    def subscriptions(self) -> list[Json]:
        """What the tenant's customers have at Stripe, ended ones included."""
        return [
            subscription
            for customer in self.customers_made()
            for subscription in at_stripe(
                self.sandbox, "GET", "subscriptions", customer=customer, status="all"
            )["data"]
        ]

    def asked(self, method: str, path: str) -> list[Json]:
        """The service's calls below this path, oldest first."""
        return [
            one
            for one in self.sandbox.requests()
            if one["method"] == method and one["path"].startswith(path) and one["path"] != "/v1/events"
        ]

    # ---- what Stripe tells, asked or not

    def look(self) -> Shop:
        """Stripe is asked about the tenant's customer, whatever was heard."""
        billing: Billing = self.app.extensions["billing"]
        assert sync.now(self.database, billing.stripe, billing.budget, self.customer)
        return self

    def hear(self) -> None:
        """Stripe's events of the tenant's customer are delivered, and worked on until nothing is left to do."""
        for event in happened(self.sandbox, self.customer):
            assert deliver(self.app.test_client(), event).status_code == 200
        work(self.app, self.database)


def work(app: Flask, database: Database) -> None:
    """What a worker does with events and questions, and without its chores."""
    billing: Billing = app.extensions["billing"]
    for _ in range(20):
        make_due(database)
        if is_due := bool(rows(database, "SELECT FROM inbox WHERE state = 'due' AND held IS NULL LIMIT 1")):
            take_in(database)
        with database.begin(SYSTEM) as connection:
            put = questions.put(connection, seen=inbox.newest(connection), most=10)
        for question in put:
            sync.ask(database, billing.stripe, billing.budget, question)
        if not (is_due or put):
            return
    raise AssertionError("there is always something left to do")


# ---- time goes by on our side


def long_after_the_last_look(database: Database) -> None:
    """Stripe may be asked about every session again."""
    later(database, "UPDATE checkouts SET looked_at = looked_at - interval '2 seconds'")


def later(database: Database, change: str, **values: Any) -> None:
    """Have rows be older than they are."""
    with database.begin(SYSTEM) as connection:
        connection.execute(text(change), values)


def a_code(sandbox: Control, word: str, **params: Any) -> Json:
    """A promotion code that takes a quarter off."""
    coupon = at_stripe(sandbox, "POST", "coupons", percent_off=25, duration="once")["id"]
    wanted = {"promotion[type]": "coupon", "promotion[coupon]": coupon, "code": word}
    return at_stripe(sandbox, "POST", "promotion_codes", **wanted, **params)


def subscribes(shop: Shop, key: str = "team_monthly", **params: Any) -> Json:
    """The tenant's customer gets a subscription by other ways than ours, paid by a card that works."""
    method = at_stripe(shop.sandbox, "POST", "payment_methods/pm_card_visa/attach", customer=shop.customer)
    default = {"invoice_settings[default_payment_method]": method["id"]}
    at_stripe(shop.sandbox, "POST", f"customers/{shop.customer}", **default)
    wanted = {"customer": shop.customer, "items[0][price]": goods(shop.sandbox).prices[key], **params}
    return at_stripe(shop.sandbox, "POST", "subscriptions", **wanted)
