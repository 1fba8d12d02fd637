"""Operators find a tenant, see why it is in its state, and put it right; in a browser and at a terminal."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import Result

from billing import overrides, state
from billing.audit import By
from billing.db import SYSTEM, Database
from billing.operations import grants, tenants
from billing.operations.tenants import TIMES
from billing.wiring import Billing
from sandbox.server import Control
from tests.conftest import link, rows
from tests.console.conftest import Browser, words
from tests.deliveries import at_stripe, deliver, happened, take_in
from tests.shopping import Shop, a_shop, later, subscribes, work

ONE = "tenants/one?id="


@pytest.fixture
def shop(ana: Browser, database: Database, sandbox: Control) -> Shop:
    """A tenant with a customer and two seats, of which all events have come."""
    shop = a_shop(ana.client.application, database, sandbox).linked()
    subscribes(shop, **{"items[0][quantity]": "2"})
    shop.hear()
    return shop


def takes(shop: Shop, seats: int) -> None:
    """The tenant has another number of seats at Stripe, and nobody tells us."""
    [held] = shop.subscriptions()
    wanted = {"items[0][id]": held["items"]["data"][0]["id"], "items[0][quantity]": seats}
    at_stripe(shop.sandbox, "POST", f"subscriptions/{held['id']}", **wanted)


def page(shop: Shop) -> str:
    return ONE + shop.tenant


def says(browser: Browser, *arguments: str) -> Result:
    """A command, at a terminal of the same service."""
    return browser.client.application.test_cli_runner().invoke(args=["billing", *arguments])


def trail(database: Database, action: str) -> list[dict[str, Any]]:
    return rows(
        database,
        """
        SELECT actor, tenant_id, stripe_object, reason, flow FROM audit_log
        WHERE action = :action ORDER BY id
        """,
        action=action,
    )


def at(browser: Browser) -> Billing:
    billing: Billing = browser.client.application.extensions["billing"]
    return billing


# ---- finding


def test_a_tenant_is_found_by_whatever_one_has_of_it(ana: Browser, shop: Shop, database: Database) -> None:
    link(database, "t_Umlaut/Ä", None)
    later(database, "UPDATE tenant_config SET name = 'Ähren GmbH', email = 'Bo@acme.example'")
    later(
        database,
        "UPDATE tenant_config SET name = 'Acme GmbH', email = 'ada@acme.example' WHERE tenant_id = :id",
        id=shop.tenant,
    )
    [held] = shop.subscriptions()
    [event] = rows(database, "SELECT event_id FROM inbox WHERE customer = :id LIMIT 1", id=shop.customer)
    whole = [shop.tenant, shop.customer, held["id"], held["latest_invoice"], event["event_id"]]

    for wanted in [*whole, shop.tenant[:6].upper(), "ACME g", "ADA@acme.example"]:
        assert shop.tenant in ana.reads(f"tenants?q={wanted}"), wanted
    for wanted in ["nobody", "gmbh", "cus_none", "%", "t_%", "ada@acme.example_", "ad", "ada@acme.exampl"]:
        assert shop.tenant not in ana.reads(f"tenants?q={wanted}"), wanted
    assert ana.opens("tenants?q=a%00b").status_code == 200
    listed = ana.reads("tenants?q=acme")
    assert "Acme GmbH active" in listed
    assert f"team_monthly {TIMES} 2" in listed
    assert "a…@acme.example" in listed
    assert "ada@acme.example" not in listed
    [found] = tenants.find(at(ana), "t_umlaut/").rows
    assert (found.tenant_id, found.state, found.note) == ("t_Umlaut/Ä", None, "")

    later(database, "UPDATE tenant_config SET name = 'Zeta' WHERE tenant_id = :id", id=shop.tenant)
    assert tenants.find(at(ana), "acme g").rows == []
    assert [line.tenant_id for line in tenants.find(at(ana), "zeta").rows] == [shop.tenant]


def test_lists_go_on_where_the_page_before_ended_and_miss_nobody(ana: Browser, database: Database) -> None:
    some = [f"t_{n:03}" for n in range(120)]
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, some, cause="time")
    for tenant in some[::2]:
        link(database, tenant, f"cus_{tenant}")
        later(database, "INSERT INTO stripe_customers (stripe_customer_id) VALUES (:id)", id=f"cus_{tenant}")
    link(database, "t_zz", None)

    def walked(wanted: str = "", **filters: Any) -> list[str]:
        found, after = [], None
        while True:
            part = tenants.find(at(ana), wanted, after=after, **filters)
            found += [line.tenant_id for line in part.rows]
            if (after := part.after) is None:
                return found

    assert walked() == [*some, "t_zz"]
    assert walked("T_") == [*some, "t_zz"]
    assert walked("t_00", state="none") == some[:10]
    assert walked(state="none") == some
    assert walked(state="active") == walked("t_", state="active") == []
    assert sorted(walked(never_synced=True)) == some[::2]
    first = ana.opens("tenants?state=none")
    assert first.text.count("<li>\n      <h2>") == 50
    assert 'rel="next"' in first.text
    assert "More: --after 't_049'" in says(ana, "tenants", "find", "--state", "none").output
    assert ana.opens("tenants?q=t_&after=nonsense").status_code == 200


# ---- one tenant


def test_a_tenants_page_says_why_it_has_what_it_has(ana: Browser, shop: Shop, database: Database) -> None:
    with database.begin(SYSTEM) as connection:
        ends = datetime(2030, 1, 1, tzinfo=UTC)
        overrides.put(connection, shop.tenant, "sso", "false", author="ana", reason="a test", expires_at=ends)
        overrides.put(connection, shop.tenant, "projects", "7", author="bo", reason="owed")
        state.refresh(connection, [shop.tenant], cause="override")

    told = ana.reads(page(shop))

    assert "active: active at Stripe" in told
    assert f"seats 2 team_monthly {TIMES} 2: limit.seats = quantity" in told
    assert f"sso off team_monthly {TIMES} 2: feature.sso = true override by ana, until 2030-01-01" in told
    assert "projects 7 override by bo, without end: 7 (owed)" in told
    assert f"{shop.customer}" in told
    assert "customer.subscription.created" not in told  # what is settled is in the timeline by its id
    asked = rows(database, "SELECT count(*) AS n FROM audit_log WHERE tenant_id = :id", id=shop.tenant)
    assert asked == [{"n": 0}]  # looking leaves no trace

    output = says(ana, "tenants", "show", shop.tenant).output
    assert f"seats 2 (team_monthly {TIMES} 2: limit.seats = quantity)" in output
    answer = json.loads(says(ana, "tenants", "show", shop.tenant, "--json").output)
    assert answer["tenant"]["document"]["quantity"] == 2
    assert answer["tenant"]["document"]["version"] == answer["tenant"]["version"]


def test_nobody_who_was_never_named_has_a_page(ana: Browser) -> None:
    for id in ("t_nobody", "", "%00", "a%0Ab"):
        assert ana.opens(ONE + id).status_code == 404
    assert says(ana, "tenants", "show", "t_nobody").exit_code == 1


def test_the_timeline_says_which_event_changed_what_and_who_did_what(
    ana: Browser, shop: Shop, database: Database
) -> None:
    takes(shop, seats=5)
    shop.hear()
    [event] = rows(
        database,
        "SELECT event_id FROM inbox WHERE type = 'customer.subscription.updated' ORDER BY id DESC LIMIT 1",
    )
    ana.sends(
        "tenants/grant", seen=page(shop), id=shop.tenant, feature="sso", value="false", reason="a promise"
    )

    told = ana.reads(page(shop)).partition("Timeline")[2]

    assert told.index("by an override") < told.index("override.set (sso = false)") < told.index("seats 2 → 5")
    assert "sso on → off" in told
    assert "a promise" in told
    assert event["event_id"] in told
    assert "quantity 2 → 5" in told

    past = tenants.timeline(at(ana), shop.tenant).rows
    places = [None, *(json.dumps([one.at.isoformat(), one.kind, one.id]) for one in past)]
    again = [tenants.timeline(at(ana), shop.tenant, after=place).rows for place in places]
    assert [rest[0] for rest in again[:-1]] == list(past)  # every row is a place to go on from
    assert again[-1] == []


# ---- the second night: a customer nobody knows


def test_an_unknown_customer_is_looked_at_linked_and_its_events_are_applied(
    ana: Browser, raj: Browser, database: Database, sandbox: Control
) -> None:
    shop = a_shop(ana.client.application, database, sandbox)
    called = {"name": "Acme GmbH", "email": "ada@acme.example"}
    marked = {"metadata[crm]": "17"}
    customer = at_stripe(sandbox, "POST", "customers", **called, **marked)["id"]
    link(database, shop.tenant, None)
    price = subscribes_to(shop, customer)
    for event in happened(sandbox, customer):
        deliver(ana.client.application.test_client(), event)
    take_in(database)
    look = f"tenants/link?id={shop.tenant}&customer={customer}"

    for somebody in (ana, raj):
        seen = somebody.reads(look)
        assert ("a…@acme.example" in seen, "Belongs to nobody" in seen) == (True, True)
        assert ("Acme GmbH" in seen, "crm 17" in seen) == (False, False)
    assert "Reason" not in raj.reads(look)  # who may only look sees no form
    form = {"id": shop.tenant, "customer": customer, "reason": "is it theirs?"}
    revealed = words(ana.sends("tenants/reveal", seen=look, **form))
    assert ("Name Acme GmbH" in revealed, "ada@acme.example" in revealed, "crm 17" in revealed) == (True,) * 3
    assert [row["stripe_object"] for row in trail(database, "customer.reveal")] == [customer]
    assert ana.sends("tenants/reveal", seen=look, **{**form, "id": "t_unknown"}).status_code == 404
    assert len(trail(database, "customer.reveal")) == 1
    spent = rows(database, "SELECT lane FROM stripe_reads WHERE endpoint = 'customers.retrieve'")
    assert spent == [{"lane": "background"}]  # who looks takes nothing from those who wait
    answer = ana.sends("tenants/link", seen=look, id=shop.tenant, customer=customer, reason="told by phone")
    work(ana.client.application, database)

    assert answer.status_code == 303
    told = ana.reads(page(shop))
    assert f"{customer} is linked. It is up to date;" in told
    assert f"team_monthly {TIMES} 3: limit.seats = quantity" in told
    assert price
    assert rows(database, "SELECT DISTINCT state FROM inbox WHERE customer = :id", id=customer) == [
        {"state": "settled"}
    ]
    assert trail(database, "tenant.link") == [
        {
            "actor": "ana",
            "tenant_id": shop.tenant,
            "stripe_object": customer,
            "reason": "told by phone",
            "flow": None,
        }
    ]
    assert at_stripe(sandbox, "GET", f"customers/{customer}")["metadata"]["tenant_id"] == shop.tenant


def subscribes_to(shop: Shop, customer: str) -> dict[str, Any]:
    """The customer buys three seats while nobody knows whose it is."""
    link(shop.database, f"{shop.tenant}_for_a_moment", customer)
    bought = subscribes(shop.of(f"{shop.tenant}_for_a_moment"), **{"items[0][quantity]": "3"})
    later(shop.database, "DELETE FROM tenant_config WHERE tenant_id = :id", id=f"{shop.tenant}_for_a_moment")
    return bought


def test_a_customer_of_another_tenants_is_not_taken_and_one_in_place_of_another_is_said_to_be(
    ana: Browser, shop: Shop, database: Database, sandbox: Control
) -> None:
    other = a_shop(ana.client.application, database, sandbox).linked()
    of_another = f"tenants/link?id={shop.tenant}&customer={other.customer}"
    assert f"It is linked to another tenant, {other.tenant}" in ana.reads(of_another)
    refused = ana.sends("tenants/link", seen=page(shop), id=shop.tenant, customer=other.customer, reason="mine")
    assert refused.status_code == 409

    new = at_stripe(sandbox, "POST", "customers", **{"metadata[tenant_id]": "t_somebody"})["id"]
    asked = ana.reads(f"tenants/link?id={shop.tenant}&customer={new}")
    assert "Its metadata says that it is t_somebody's" in asked
    assert f"The tenant has another customer now, {shop.customer}" in asked
    form = {"seen": page(shop), "id": shop.tenant, "customer": new, "reason": "merged"}
    unsaid = [
        ana.sends("tenants/link", **form, **ticks) for ticks in ({}, {"whosever": "yes"}, {"replace": "yes"})
    ]
    assert {answer.status_code for answer in unsaid} == {409}
    before = shop.customer
    done = ana.sends("tenants/link", **form, whosever="yes", replace="yes")
    assert (done.status_code, shop.customer) == (303, new)
    told = ana.reads(page(shop))
    assert f"linked {new}" in told
    assert f"unlinked {before}" in told
    assert len(trail(database, "tenant.link")) == 1
    assert ana.opens(f"tenants/link?id={shop.tenant}&customer=cus_none").status_code == 404
    assert ana.opens(f"tenants/link?id={shop.tenant}&customer=nonsense").status_code == 400


# ---- the third night: a tenant that has drifted


def test_a_tenant_that_drifted_is_compared_and_made_equal(
    ana: Browser, raj: Browser, shop: Shop, database: Database
) -> None:
    shop.look()
    compare = f"tenants/compare?id={shop.tenant}"
    assert "No difference" in ana.reads(compare)
    assert says(ana, "tenants", "compare", shop.tenant).exit_code == 0
    takes(shop, seats=9)
    before = everything(database)

    told = raj.reads(compare)
    output = says(ana, "tenants", "compare", shop.tenant)

    assert "They differ" in told
    assert "seats differs 2 9" in told
    assert "state active active" in told
    assert "Make equal" not in told  # they may look and not act
    assert (output.exit_code, "seats: here 2, at Stripe 9" in output.output) == (1, True)
    assert everything(database) == before  # nothing was written
    answer = ana.sends("tenants/sync", seen=compare, id=shop.tenant, reason="it is three o'clock")
    assert answer.status_code == 303
    assert "seats 2 → 9" in ana.reads(page(shop))
    assert "No difference" in ana.reads(compare)
    assert [row["reason"] for row in trail(database, "tenant.sync")] == ["it is three o'clock"]


def everything(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All that an answer of Stripe's may change."""
    tables = "stripe_customers subscriptions subscription_items tenant_states tenant_versions inbox feed"
    return {name: rows(database, f"SELECT * FROM {name}") for name in tables.split()}


def test_what_cannot_be_compared_says_why(ana: Browser, shop: Shop, database: Database) -> None:
    link(database, "t_none", None)
    assert "No Stripe customer" in words(ana.opens("tenants/compare?id=t_none"))
    shop.sandbox.fault("503", path="/v1/subscriptions", times=1)
    away = ana.opens(f"tenants/compare?id={shop.tenant}")
    assert (away.status_code, "Stripe failed: try again" in words(away)) == (503, True)
    shop.sandbox.clear()
    at_stripe(shop.sandbox, "DELETE", f"customers/{shop.customer}")
    gone = ana.reads(f"tenants/compare?id={shop.tenant}")
    assert "deleted at Stripe" in gone
    assert "state differs active none" in gone
    later(
        database,
        "UPDATE tenant_config SET stripe_customer_id = 'cus_elsewhere' WHERE tenant_id = :id",
        id=shop.tenant,
    )
    assert ana.opens(f"tenants/compare?id={shop.tenant}").status_code == 404


def test_a_sync_at_a_terminal_says_what_it_moved(ana: Browser, shop: Shop, database: Database) -> None:
    takes(shop, seats=4)
    [before] = rows(database, "SELECT version FROM tenant_states WHERE tenant_id = :id", id=shop.tenant)
    version = before["version"]

    output = says(ana, "tenants", "sync", shop.tenant).output
    again = json.loads(says(ana, "tenants", "sync", shop.tenant, "--json", "--reason", "once more").output)

    assert f"{shop.tenant}  v{version} → v{version + 1}   quantity 2 → 4, seats 2 → 4   (" in output
    assert (again["before"], again["after"], again["changes"], again["is_current"]) == (
        version + 1,
        version + 1,
        [],
        True,
    )
    assert [row["reason"] for row in trail(database, "tenant.sync")] == ["by command", "once more"]
    assert says(ana, "tenants", "sync", "t_nobody").exit_code == 1


# ---- overrides


def test_an_override_is_set_replaced_and_lifted_each_with_its_reason(
    ana: Browser, raj: Browser, shop: Shop, database: Database
) -> None:
    form = {"seen": page(shop), "id": shop.tenant}
    before = shop.document()["version"]

    ana.sends(
        "tenants/grant", **form, feature="projects", value=" Unlimited ", ends="2999-01-01", reason="a deal"
    )
    assert shop.document()["features"]["projects"] == {"enabled": True, "limit": None}
    told = ana.reads(page(shop))
    assert "projects = unlimited" in told
    assert "until 2999-01-01" in told
    says(ana, "overrides", "set", shop.tenant, "projects", "5", "--reason", "less")
    assert shop.document()["features"]["projects"]["limit"] == 5
    listed = json.loads(says(ana, "overrides", "list", shop.tenant, "--json").output)
    assert listed == [
        {
            "feature": "projects",
            "value": "5",
            "author": "command",
            "reason": "less",
            "expires_at": None,
            "is_over": False,
        }
    ]
    later(database, "UPDATE overrides SET expires_at = clock_timestamp() - interval '1 hour'")
    assert "projects = 5 over" in ana.reads(page(shop))
    assert "over command: less" in says(ana, "overrides", "list", shop.tenant).output
    assert (
        raj.sends("tenants/lift", seen="", id=shop.tenant, feature="projects", reason="no").status_code == 403
    )
    lifted = ana.sends("tenants/lift", **form, feature="projects", reason="done")
    assert lifted.status_code == 303
    assert shop.document()["features"]["projects"] == {"enabled": False, "limit": 0}
    assert "There are none." in says(ana, "overrides", "list", shop.tenant).output
    assert shop.document()["version"] == before + 3
    assert [(row["actor"], row["flow"]) for row in trail(database, "override.set")] == [
        ("ana", "projects = unlimited until 2999-01-01 00:00 UTC"),
        ("command", "projects = 5"),
    ]
    assert ana.sends("tenants/lift", **form, feature="projects", reason="again").status_code == 400


WRONG = [
    {"feature": "nobody_sells_this", "value": "true"},
    {"feature": "Not A Key", "value": "true", "unsold": "yes"},
    {"feature": "sso", "value": "perhaps"},
    {"feature": "sso", "value": "10*quantity"},
    {"feature": "sso", "value": "true", "ends": "2001-01-01"},
    {"feature": "sso", "value": "true", "ends": "soon"},
]


def test_an_override_that_makes_no_sense_is_refused(ana: Browser, database: Database, sandbox: Control) -> None:
    shop = a_shop(ana.client.application, database, sandbox)
    link(database, shop.tenant, None)

    for wrong in WRONG:
        answer = ana.sends("tenants/grant", seen=page(shop), id=shop.tenant, reason="why not", **wrong)
        assert answer.status_code == 400, wrong

    assert trail(database, "override.set") == rows(database, "SELECT * FROM overrides") == []


def test_an_override_of_what_nobody_sells_has_to_be_meant_and_a_tenant_has_to_be_known(
    ana: Browser, database: Database, sandbox: Control
) -> None:
    shop = a_shop(ana.client.application, database, sandbox)
    link(database, shop.tenant, None)
    form = {"seen": page(shop), "feature": "beta", "value": "true", "unsold": "yes", "reason": "a pilot"}

    assert ana.sends("tenants/grant", id=shop.tenant, **form).status_code == 303
    assert shop.document()["features"]["beta"] == {"enabled": True}
    assert ana.sends("tenants/grant", id="t_nobody", **form).status_code == 404


def test_of_two_who_override_at_once_the_document_says_what_is_kept(
    ana: Browser, shop: Shop, database: Database
) -> None:
    billing, by = at(ana), By("ana", "a race")

    def set_to(value: int) -> None:
        grants.grant(billing, shop.tenant, "projects", str(value), by)

    racers = [threading.Thread(target=set_to, args=[n]) for n in range(1, 7)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    [kept] = rows(database, "SELECT value FROM overrides")
    assert shop.document()["features"]["projects"]["limit"] == int(kept["value"])
    assert len(trail(database, "override.set")) == len(racers)
    moves = rows(
        database, "SELECT version FROM tenant_versions WHERE tenant_id = :id ORDER BY id", id=shop.tenant
    )
    assert [row["version"] for row in moves] == list(range(1, shop.document()["version"] + 1))
