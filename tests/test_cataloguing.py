"""Reading the catalogue: all of it, the latest that began, none of it by halves; and when it is read again.

The shop is the sandbox's, over HTTP, and each test has one of its own: what is for sale is known to the letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from billing import catalogue, cataloguing, chores, clock, sync
from billing.budget import Budget
from billing.catalogue import Catalogue, Rules
from billing.db import SYSTEM, Database
from billing.errors import StripeFailed
from billing.events import Json
from billing.stripe_api import Reading, Stripe
from billing.worker import Worker
from sandbox.server import Control, running
from tests.conftest import MakeApp, rows
from tests.deliveries import (
    a_catalogue,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    keep,
    logged,
    subscribe,
    take_in,
)
from tests.test_state import a_product, document, refresh, rule, work_until


@pytest.fixture
def stripe_stand_in() -> Iterator[Control]:
    """A shop that sells nothing yet."""
    with running() as control:
        yield control


@pytest.fixture
def stripe(sandbox: Control) -> Stripe:
    return Stripe(sandbox.key, base=sandbox.url)


@pytest.fixture
def budget(database: Database) -> Budget:
    return Budget(database, 100)


def sell(sandbox: Control, name: str, **metadata: str) -> str:
    """A new product with this metadata. Dots are written as double underscores."""
    said = {f"metadata[{key.replace('__', '.')}]": value for key, value in metadata.items()}
    return str(at_stripe(sandbox, "POST", "products", name=name, **said)["id"])


def price(sandbox: Control, product: str, **params: Any) -> str:
    monthly = {"currency": "eur", "unit_amount": 1000, "recurring[interval]": "month"}
    return str(at_stripe(sandbox, "POST", "prices", product=product, **{**monthly, **params})["id"])


def current(database: Database) -> Catalogue:
    with database.begin(SYSTEM) as connection:
        return catalogue.current(connection)


# ---- reading


def test_all_that_is_sold_is_kept_as_documents_need_it(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    product = sell(sandbox, "Team", feature__sso="true", plan="team")
    monthly = price(sandbox, product, lookup_key="team_monthly", **{"metadata[limit.seats]": "quantity"})
    feature = at_stripe(sandbox, "POST", "entitlements/features", lookup_key="audit-log", name="Audit log")
    at_stripe(sandbox, "POST", f"products/{product}/features", entitlement_feature=feature["id"])
    at_stripe(sandbox, "POST", "entitlements/features", lookup_key="of-nothing", name="Of nothing")

    assert cataloguing.read(database, stripe, budget)

    sold = current(database)
    assert sold.edition == 1
    assert sold.products[product].entitles == ("audit-log",)
    assert list(sold.plans) == ["team_monthly"]
    assert sorted(sold.terms[monthly]) == ["seats", "sso"]
    assert sold.features == ("audit-log", "of-nothing")
    assert sold.keys == {"seats", "sso", "audit_log", "of_nothing"}


def test_it_is_read_page_by_page_archived_things_included(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.stripe_api.PAGE", 2)
    products = [sell(sandbox, f"Product {number}") for number in range(5)]
    prices = [price(sandbox, product) for product in products]
    at_stripe(sandbox, "POST", f"products/{products[0]}", active="false")
    at_stripe(sandbox, "POST", f"prices/{prices[1]}", active="false")

    cataloguing.read(database, stripe, budget)

    assert sorted(current(database).products) == sorted(products)
    assert sorted(current(database).prices) == sorted(prices)
    assert not current(database).products[products[0]].active


def test_what_has_not_changed_is_no_new_edition(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    sell(sandbox, "Team", feature__sso="true")
    cataloguing.read(database, stripe, budget)
    before = rows(database, "SELECT edition, read_at FROM catalogue")[0]

    assert not cataloguing.read(database, stripe, budget)

    after = rows(database, "SELECT edition, read_at FROM catalogue")[0]
    assert after["edition"] == before["edition"] == 1
    assert after["read_at"] > before["read_at"]


def test_a_shop_that_sells_nothing_is_a_catalogue_too(
    database: Database, stripe: Stripe, budget: Budget
) -> None:
    assert cataloguing.read(database, stripe, budget)
    assert current(database).edition == 1


@pytest.mark.parametrize("path", ["/v1/entitlements/features", "/v1/products", "/v1/prices"])
@pytest.mark.parametrize("kind", ["503", "reset", "list"])
def test_while_stripe_fails_in_the_middle_the_old_one_stands(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget, path: str, kind: str
) -> None:
    sell(sandbox, "Team", feature__sso="true")
    cataloguing.read(database, stripe, budget)
    before = rows(database, "SELECT edition, content, measure FROM catalogue")
    sell(sandbox, "Pro", feature__sso="true")
    sandbox.fault(kind, path=path)

    with pytest.raises(StripeFailed):
        cataloguing.read(database, stripe, budget)

    assert rows(database, "SELECT edition, content, measure FROM catalogue") == before
    sandbox.clear()
    assert cataloguing.read(database, stripe, budget)
    assert current(database).edition == 2


def test_a_page_that_is_lost_after_the_first_loses_nothing_of_the_old_one(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    sell(sandbox, "Team")
    cataloguing.read(database, stripe, budget)
    sell(sandbox, "Pro")
    monkeypatch.setattr("billing.stripe_api.PAGE", 1)
    page = stripe.products

    def away_on_the_second_page(after: str | None = None) -> Reading | None:
        if after:
            sandbox.fault("503")
        return page(after)

    monkeypatch.setattr(stripe, "products", away_on_the_second_page)

    with pytest.raises(StripeFailed):
        cataloguing.read(database, stripe, budget)

    assert [product.name for product in current(database).products.values()] == ["Team"]


# ---- overlap


def content(name: str) -> Json:
    return {"products": [a_product(name)], "prices": [], "features": []}


@pytest.mark.parametrize("ends_first", ["first", "second"])
def test_of_readings_that_overlap_the_one_that_began_last_counts_whichever_ends_first(
    database: Database, ends_first: str
) -> None:
    with database.begin(SYSTEM) as connection:
        begun = {name: catalogue.begin(connection) for name in ("first", "second")}

    for name in sorted(begun, reverse=ends_first == "second"):
        with database.begin(SYSTEM) as connection:
            catalogue.keep(connection, begun[name], content(name))

    assert list(current(database).products) == ["second"]


def test_a_reading_that_others_overtake_again_and_again_still_comes_to_something(database: Database) -> None:
    """Each begins before the one before it has ended, for as long as somebody changes prices by script."""
    with database.begin(SYSTEM) as connection:
        begun = catalogue.begin(connection)

    for number in range(5):
        with database.begin(SYSTEM) as connection:
            later = catalogue.begin(connection)
            catalogue.keep(connection, begun, content(f"prod_{number}"))
        begun = later

    assert current(database).edition > 0


def test_a_change_in_the_middle_of_a_reading_is_in_the_one_that_begins_after_it(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has read it all by the time the first one ends with what is old by then."""
    sell(sandbox, "Team")
    prices = stripe.prices

    def overtaken(after: str | None = None) -> Reading | None:
        monkeypatch.undo()
        sell(sandbox, "Pro")
        assert cataloguing.read(database, Stripe(sandbox.key, base=sandbox.url), budget)
        return prices(after)

    monkeypatch.setattr(stripe, "prices", overtaken)
    assert not cataloguing.read(database, stripe, budget)

    assert sorted(product.name for product in current(database).products.values()) == ["Pro", "Team"]


# ---- rules


def test_rules_make_an_edition_where_they_differ(database: Database) -> None:
    a_catalogue(database)

    editions = []
    for plan in ("free", "free", None):
        rule(database, default_plan=plan)
        editions.append(current(database).edition)

    assert editions == [2, 2, 3]
    assert current(database).rules == Rules()


def test_rules_wait_for_the_first_catalogue(database: Database) -> None:
    rule(database, default_plan="free")
    assert current(database).edition == 0

    a_catalogue(database)

    assert (current(database).edition, current(database).rules.default_plan) == (1, "free")


# ---- faults


def test_what_cannot_be_read_disables_the_feature_and_is_told_to_operators_and_raises_nothing(
    database: Database,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
    caplog: pytest.LogCaptureFixture,
) -> None:
    product = sell(sandbox, "Pro", limit__projects="fifty", feature__sso="true", feature__Big="true")
    pro = price(sandbox, product, lookup_key="pro")
    subscribe(sandbox, customer, price=pro)
    told = logged(caplog)

    cataloguing.read(database, stripe, budget)
    assert sync.now(database, stripe, budget, customer)
    refresh(database, acme)

    features = document(database)["features"]
    assert features == {"projects": {"enabled": False, "limit": 0}, "sso": {"enabled": True}}
    faults = {line["key"]: line["where"] for line in told() if line["event"] == "catalogue.fault"}
    assert faults.keys() == {"limit.projects", "feature.Big"}
    assert set(faults.values()) <= {product, pro}


@pytest.mark.parametrize("says", ["", "\U0001f600", "9" * 400, "9" * 16, "-1", "1e9", "½", "quantity*10", "٣"])
def test_whatever_somebody_types_into_stripe_gives_nothing_and_breaks_nothing(
    database: Database, says: str
) -> None:
    terms = {"feature.sso": says, "limit.seats": says, f"limit.{says}": "1", "trial_days": says, "sort": says}
    a_catalogue(
        database,
        products=[a_product(**terms, hidden=says, per_seat="true", min_quantity=says, max_quantity=says)],
    )

    refresh(database, "t_acme")

    assert document(database)["features"] == {
        "seats": {"enabled": False, "limit": 0},
        "sso": {"enabled": False},
    }


# ---- when


@pytest.mark.parametrize("kind", ["product.created", "product.updated", "price.updated", "price.deleted"])
def test_news_of_what_is_sold_has_the_catalogue_read_at_once(database: Database, kind: str) -> None:
    with database.begin(SYSTEM) as connection:
        chores.hasten(connection, cataloguing.CHORE)
    rows(database, "UPDATE chores SET due_at = now() + interval '10 min' RETURNING 1")

    keep(database, an_event(kind, {"id": "x_1", "object": kind.split(".")[0]}))
    take_in(database)

    assert rows(database, "SELECT due_at <= now() + interval '5 s' AS soon FROM chores") == [{"soon": True}]
    assert rows(database, "SELECT state FROM inbox") == [{"state": "settled"}]


def test_what_is_sold_reaches_documents_soon_after_stripe_says_so(
    database: Database,
    environ: dict[str, str],
    make_app: MakeApp,
    acme: str,
    customer: str,
    sandbox: Control,
    stripe: Stripe,
    budget: Budget,
) -> None:
    product = sell(sandbox, "Team", limit__projects="5")
    subscribe(sandbox, customer, price=price(sandbox, product))
    cataloguing.read(database, stripe, budget)
    assert sync.now(database, stripe, budget, customer)
    before = document(database)
    client = make_app().test_client()

    at_stripe(sandbox, "POST", f"products/{product}", **{"metadata[limit.projects]": "50"})
    with a_worker(environ, catalogues=True) as worker:
        deliver(client, latest(sandbox, "product.updated"))
        read_again_at(database, "10 min")
        work_until(worker, lambda: document(database)["version"] > before["version"])

    after = document(database)
    assert before["features"]["projects"] == {"enabled": True, "limit": 5}
    assert after["features"]["projects"] == {"enabled": True, "limit": 50}
    assert after["version"] == before["version"] + 1


def latest(sandbox: Control, kind: str) -> Json:
    """The latest event of this type."""
    event: Json = at_stripe(sandbox, "GET", "events", type=kind, limit=1)["data"][0]
    return event


def read_again_at(database: Database, after: str) -> None:
    """The next turn of the periodic reading, unless something hastens it."""
    rows(database, f"INSERT INTO chores VALUES ('catalogue', now() + interval '{after}') RETURNING 1")


def test_a_worker_reads_the_catalogue_first_of_all_and_again_without_any_event(
    database: Database, environ: dict[str, str], sandbox: Control
) -> None:
    product = sell(sandbox, "Team")
    with a_worker(environ, catalogues=True) as worker:
        work_until(worker, lambda: current(database).edition == 1)
        feature = at_stripe(sandbox, "POST", "entitlements/features", lookup_key="sso", name="SSO")
        at_stripe(sandbox, "POST", f"products/{product}/features", entitlement_feature=feature["id"])

        its_turn(database, worker)
        work_until(worker, lambda: current(database).edition == 2)

    assert current(database).products[product].entitles == ("sso",)


def its_turn(database: Database, worker: Worker) -> None:
    """As if its ten minutes were over."""
    rows(database, "UPDATE chores SET due_at = now() WHERE name = 'catalogue' RETURNING 1")
    for chore in worker._chores:
        chore.next_look = 0.0


def test_a_reading_that_failed_is_soon_begun_again(
    database: Database, environ: dict[str, str], sandbox: Control, caplog: pytest.LogCaptureFixture
) -> None:
    told = logged(caplog)
    sandbox.fault("503", path="/v1/prices")

    with a_worker(environ, catalogues=True) as worker:
        work_until(worker, lambda: any(line["event"] == "catalogue.failed" for line in told()))
        work_until(worker, lambda: not worker.is_asking)

    again = "SELECT due_at <= now() + interval '1 min' AS soon FROM chores WHERE name = 'catalogue'"
    assert rows(database, again) == [{"soon": True}]
    assert current(database).edition == 0


def test_documents_are_measured_by_what_was_read_when_the_round_comes_to_them(
    database: Database, sandbox: Control, stripe: Stripe, budget: Budget
) -> None:
    sell(sandbox, "Free", plan="free", feature__sso="true")
    rule(database, default_plan="free")
    refresh(database, "t_acme")
    assert document(database)["features"] == {}

    cataloguing.read(database, stripe, budget)
    clock.catch_up(database)

    assert document(database)["features"] == {"sso": {"enabled": True}}
