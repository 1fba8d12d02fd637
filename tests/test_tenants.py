"""`PUT /api/tenants/{id}` and `GET /api/tenants/{id}/entitlements`: what services say of tenants, and read."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import psycopg
import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from billing import checkouts, customers, enrolling, tokens
from billing.db import SYSTEM, Database
from billing.stripe_api import Stripe
from billing.wiring import Billing
from sandbox.server import Control
from tests.conftest import IS_SOAK, MakeApp, create_customer, link, rows
from tests.deliveries import Json, a_catalogue, at_stripe, logged, subscribe, take_in
from tests.shopping import a_shop
from tests.test_commands import NO_WAY_TO_STRIPE, say, tell
from tests.test_portal import PORTAL
from tests.test_tokens import a_service, bearer, change, code, shown
from tests.tokens import a_token

CUSTOMER_UPDATES = "/v1/customers/"


@dataclass(frozen=True)
class Service:
    """A service of the house that may read and write."""

    app: Flask
    database: Database
    sandbox: Control
    token: str

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def put(self, tenant: str, **said: Any) -> TestResponse:
        return self.client.put(f"/api/tenants/{quote(tenant, safe='')}", headers=bearer(self.token), json=said)

    def read(self, tenant: str, query: str = "", **headers: str) -> TestResponse:
        path = f"/api/tenants/{quote(tenant, safe='')}/entitlements{query}"
        return self.client.get(path, headers={**bearer(self.token), **headers})

    def updates(self) -> list[Json]:
        """What Stripe's customers were told, oldest first."""
        return [
            one
            for one in self.sandbox.requests()
            if one["method"] == "POST" and one["path"].startswith(CUSTOMER_UPDATES)
        ]


@pytest.fixture
def service(make_app: MakeApp, database: Database, sandbox: Control) -> Service:
    a_catalogue(database)
    return Service(make_app(), database, sandbox, a_service(database, "crm", *tokens.SCOPES))


def known(answer: TestResponse) -> Json:
    assert answer.status_code == 200, answer.text
    body: Json = answer.json or {}
    return body


def tenants(database: Database) -> list[str]:
    return [row["tenant_id"] for row in rows(database, "SELECT tenant_id FROM tenant_config ORDER BY 1")]


# ---- reading


def test_a_service_reads_what_the_members_of_any_tenant_read(service: Service) -> None:
    for tenant in ("t_acme", "t_globex"):
        member = service.client.get("/api/entitlements", headers=bearer(a_token(tenant_id=tenant)))
        answer = service.read(tenant)

        assert answer.data == member.data
        assert known(answer)["tenant_id"] == tenant
        for header in ("ETag", "Cache-Control", "Vary"):
            assert answer.headers[header] == member.headers[header]
        assert service.read(tenant, **{"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_the_copy_of_another_tenants_document_is_none_of_this_one(service: Service) -> None:
    for tenant in ("t_acme", "t_globex"):
        service.put(tenant)
    tag = service.read("t_acme").headers["ETag"]

    assert service.read("t_globex", **{"If-None-Match": tag}).status_code == 200


def test_a_service_may_have_stripe_asked_first(service: Service, acme: str, customer: str) -> None:
    service.read(acme)
    subscribe(service.sandbox, customer)

    before, asked = service.read(acme), service.read(acme, "?sync=true")

    assert known(before)["state"] == "none"
    assert known(asked)["state"] == "active"
    assert asked.headers["Billing-Sync"] == "done"
    assert code(service.read(acme, "?sync=yes")) == (400, "invalid_request")


@pytest.mark.parametrize("query", ["", "?sync=true"])
def test_a_tenant_nobody_has_heard_of_is_not_found_and_not_made(service: Service, query: str) -> None:
    answer = service.read("t_typo", query)

    assert code(answer) == (404, "tenant_not_found")
    assert rows(service.database, "SELECT FROM tenant_states") == []
    assert tenants(service.database) == []


def test_a_tenant_that_has_only_just_been_linked_is_known(service: Service, customer: str) -> None:
    """By a row that somebody has written into tenant_config, before there is any document."""
    link(service.database, "t_new", customer)

    assert known(service.read("t_new"))["stripe"]["customer"] == customer


ODD = [
    "a b",
    "a/b",
    "/a",
    "a/",
    "a//b",
    "a/entitlements",
    "ä",
    "株式会社",
    "a%2Fb",
    "a?b",
    "a#b",
    "a+b",
    "...",
    "../b",
    "%",
    "é" * 255,
]


@pytest.mark.parametrize("tenant", ODD)
def test_a_tenant_may_have_any_id_that_a_token_may_name(service: Service, tenant: str) -> None:
    made = known(service.put(tenant, name="Odd"))
    read = known(service.read(tenant))
    member = service.client.get("/api/entitlements", headers=bearer(a_token(tenant_id=tenant)))

    assert (made["tenant_id"], read["tenant_id"]) == (tenant, tenant)
    assert known(member) == read
    assert tenants(service.database) == [tenant]


MALFORMED = {
    "empty": "",
    "blank": "%20",
    "too long": "a" * 256,
    "line feed": "a%0Ab",
    "NUL": "a%00b",
    "a dot, which is no address": "%2E",
    "two dots": "..",
    "no UTF-8": "%FF",
    "half a pair": "%ED%A0%80",
    "a plain slash": "t_acme/b",
    "a slash at the end": "t_acme/",
    "two slashes": "//t_acme",
    "another address": "t_acme/entitlements/x",
    "encoded twice": "t%255Facme",
    "other case": "T_ACME",
    "more": "t_acme%20",
    "a wide letter": "t_%EF%BD%81cme",
    "a wildcard": "t_%25",
    "SQL": "t_acme'%20OR%20'1'='1",
    "another tenant's, in a query": "t_nobody?tenant_id=t_acme",
}


@pytest.mark.parametrize("written", MALFORMED.values(), ids=MALFORMED)
def test_an_id_that_is_no_tenants_is_not_found_whatever_it_looks_like(service: Service, written: str) -> None:
    service.put("t_acme", name="Acme")
    path, _, query = written.partition("?")

    answer = service.client.get(f"/api/tenants/{path}/entitlements?{query}", headers=bearer(service.token))

    assert code(answer) == (404, "tenant_not_found")
    assert "acme" not in answer.text.lower()


@pytest.mark.parametrize("name", list(MALFORMED)[:12])
def test_no_tenant_is_made_of_an_address_that_says_something_else(service: Service, name: str) -> None:
    answer = service.client.put(
        f"/api/tenants/{MALFORMED[name]}", headers=bearer(service.token), json={"name": "Slip"}
    )

    assert code(answer) == (404, "tenant_not_found")
    assert tenants(service.database) == []
    assert rows(service.database, "SELECT FROM audit_log") == []


def test_the_address_of_a_document_is_no_tenant(service: Service) -> None:
    answer = service.client.put("/api/tenants/t_acme/entitlements", headers=bearer(service.token), json={})

    assert code(answer) == (404, "tenant_not_found")
    assert tenants(service.database) == []


@pytest.mark.parametrize(
    ("written", "tenant"),
    [
        ("t_acme%2Fentitlements", "t_acme"),
        ("a/x%2Fentitlements", "a/x"),
        ("tenants%2Fentitlements", "tenants"),
        ("entitlements/entitlements%2Fentitlements", "entitlements/entitlements"),
    ],
)
def test_the_slash_after_the_id_is_a_plain_one(service: Service, written: str, tenant: str) -> None:
    """Else it is one of a longer id's, and nobody has asked for its document."""
    service.put(tenant, name="Acme")

    answer = service.client.get(f"/api/tenants/{written}", headers=bearer(service.token))

    assert answer.status_code == 404
    assert tenant not in answer.text


@pytest.mark.parametrize("tenant", ["t_acme", "a/b", "a/entitlements", "株式会社", "tenants"])
@pytest.mark.parametrize(
    "before",
    ["", "/below", "/be%20low", "http://billing.internal"],
    ids=["plain", "below another application", "the same with a blank", "in full, as proxies are asked"],
)
def test_a_tenant_is_found_whatever_stands_before_its_address(
    service: Service, tenant: str, before: str
) -> None:
    service.put(tenant)
    address = f"/api/tenants/{quote(tenant, safe='').lower()}/entitlements?sync=false"

    answer = service.client.get(
        address,
        headers=bearer(service.token),
        environ_overrides={
            "RAW_URI": before + address,
            "SCRIPT_NAME": unquote(before) if before.startswith("/") else "",
        },
    )

    assert known(answer)["tenant_id"] == tenant


@pytest.mark.parametrize(("tenant", "status"), [("t_acme", 200), ("a/b", 404)])
def test_where_the_server_hides_what_was_sent_no_slash_is_trusted(
    service: Service, tenant: str, status: int
) -> None:
    service.put(tenant)

    answer = service.client.get(
        f"/api/tenants/{quote(tenant, safe='')}/entitlements",
        headers=bearer(service.token),
        environ_overrides={"RAW_URI": ""},
    )

    assert answer.status_code == status


def test_a_proxy_may_send_an_id_without_encoding_it(service: Service) -> None:
    """As bytes, which WSGI shows as Latin-1."""
    service.put("ä")
    sent = "/api/tenants/ä/entitlements".encode().decode("latin-1")

    answer = service.client.get(
        "/api/tenants/%C3%A4/entitlements",
        headers=bearer(service.token),
        environ_overrides={"RAW_URI": sent},
    )

    assert known(answer)["tenant_id"] == "ä"


# ---- who may


ROUTES = [
    ("GET", "/api/tenants/{}/entitlements"),
    ("PUT", "/api/tenants/{}"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_but_a_service_of_the_scope_learns_whether_a_tenant_exists(
    service: Service, headers: dict[str, str], method: str, path: str
) -> None:
    service.put("t_acme", name="Acme")
    lacking = tokens.WRITE if method == "GET" else tokens.READ
    callers = {
        "nobody": {},
        "a stranger": bearer("bsk_" + "x" * 43),
        "a member of it": headers,
        "a member of another": bearer(a_token(tenant_id="t_globex")),
        "a service without the scope": bearer(a_service(service.database, "other", lacking)),
    }

    for who, shows in callers.items():
        answers = {
            shown(service.client.open(path.format(id), method=method, headers={**shows, "X-Request-Id": "1"}))
            for id in ("t_acme", "t_nobody", "%00", "a/b", "t_%25")
        }
        assert len(answers) == 1, who
        [(status, body)] = answers
        assert status in (401, 403)
        assert b"cme" not in body
    assert tenants(service.database) == ["t_acme"]


def test_ids_of_other_tenants_things_get_a_member_nothing(service: Service, database: Database) -> None:
    """The one user route that takes an id: another tenant's is answered as one that never was."""
    change(
        database,
        "INSERT INTO checkouts (id, tenant_id, stripe_customer_id, wish, params, stripe_session_id, state)"
        " VALUES ('c', 't_globex', 'cus_globex', '{}', '{}', 'cs_globex', 'open')",
    )
    ids = ["cs_globex", "cs_nobody", "cs_", "x", "cs_globex%00", "cs%5Fglobex", "cs_%EF%BC%91"]
    mine = {**bearer(a_token(tenant_id="t_acme")), "X-Request-Id": "1"}

    answers = {shown(service.client.get(f"/api/subscriptions/checkout/{id}", headers=mine)) for id in ids}

    [(status, body)] = answers
    assert status == 404
    assert b"globex" not in body


# ---- what a tenant is called


def test_a_tenant_is_kept_and_answered_as_it_is(service: Service) -> None:
    answer = known(service.put("t_acme", name="Acme GmbH", email="ada@acme.example"))

    assert answer == {
        "tenant_id": "t_acme",
        "name": "Acme GmbH",
        "email": "ada@acme.example",
        "stripe_customer_id": None,
        "version": 1,
    }
    assert known(service.read("t_acme"))["version"] == answer["version"]
    assert service.updates() == []


def test_what_is_left_out_stays_and_what_is_null_is_taken_back(service: Service) -> None:
    service.put("t_acme", name="Acme", email="ada@acme.example")

    named = known(service.put("t_acme", name="Acme GmbH"))
    same = known(service.client.put("/api/tenants/t_acme", headers=bearer(service.token)))
    less = known(service.put("t_acme", email=None))

    assert (named["name"], named["email"]) == ("Acme GmbH", "ada@acme.example")
    assert same == named
    assert (less["name"], less["email"]) == ("Acme GmbH", None)


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\u2028b"}, "name"),
        ({"name": "  "}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 257}, "name"),
        ({"name": 5}, "name"),
        ({"email": "ada"}, "email"),
        ({"email": "ada@"}, "email"),
        ({"email": "@acme.example"}, "email"),
        ({"email": "a@b@c"}, "email"),
        ({"email": "ada @acme.example"}, "email"),
        ({"email": "ada@acme.example\x07"}, "email"),
        ({"email": "ada@acme.example\n"}, "email"),
        ({"email": "a" * 512 + "@a"}, "email"),
        ({"stripe_customer_id": "sub_1"}, "stripe_customer_id"),
        ({"stripe_customer_id": "cus_"}, "stripe_customer_id"),
        ({"stripe_customer_id": "cus_1/../x"}, "stripe_customer_id"),
        ({"stripe_customer_id": "cus_1\n"}, "stripe_customer_id"),
        ({"tenant_id": "t_globex"}, "tenant_id"),
        ({"version": 3}, "version"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_its_name(service: Service, said: Json, param: str) -> None:
    answer = service.put("t_acme", **said)

    assert code(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == param
    assert tenants(service.database) == []


def test_names_of_every_script_are_good(service: Service) -> None:
    for name in ("株式会社　アクメ", "شركة أكمي", "Łódź & Söhne «Acme»", "👩‍🚀 Inc."):
        assert known(service.put("t_acme", name=name))["name"] == name


def test_a_body_beyond_the_limit_is_refused(service: Service) -> None:
    assert code(service.put("t_acme", name="a" * 17_000)) == (413, "body_too_large")


def test_a_customer_made_for_a_checkout_is_called_as_its_tenant(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    shop = a_shop(make_app(), database, sandbox)
    service = Service(shop.app, database, sandbox, a_service(database, "crm", tokens.WRITE))
    service.put(shop.tenant, name="Acme GmbH", email="ada@acme.example")

    shop.opened()

    made = at_stripe(sandbox, "GET", f"customers/{shop.customer}")
    assert (made["name"], made["email"]) == ("Acme GmbH", "ada@acme.example")
    assert made["metadata"]["tenant_id"] == shop.tenant
    assert service.updates() == []
    assert rows(database, "SELECT params FROM customer_intents") == [{"params": {}}]


def test_stripes_customer_follows_and_is_told_of_changes_only(
    service: Service, acme: str, customer: str
) -> None:
    """What is changed at Stripe, in the portal say, is not undone by saying the same again."""
    service.put(acme, name="Acme", email="ada@acme.example")
    at_stripe(service.sandbox, "POST", f"customers/{customer}", email="bills@acme.example")
    service.sandbox.send("DELETE", "requests")

    service.put(acme, name="Acme", email="ada@acme.example")
    after = at_stripe(service.sandbox, "GET", f"customers/{customer}")

    assert service.updates() == []
    assert (after["name"], after["email"]) == ("Acme", "bills@acme.example")
    assert after["metadata"]["tenant_id"] == acme


def test_what_is_taken_back_is_taken_from_stripes_customer_and_what_was_never_said_is_not(
    service: Service, acme: str, customer: str
) -> None:
    service.put(acme, email=None, name="Acme")
    before = at_stripe(service.sandbox, "GET", f"customers/{customer}")
    service.put(acme, name=None)
    after = at_stripe(service.sandbox, "GET", f"customers/{customer}")

    assert (before["name"], before["email"]) == ("Acme", "ada@acme.example")
    assert (after["name"], after["email"]) == (None, "ada@acme.example")


def test_what_stripe_could_not_be_told_is_told_with_the_next_time_it_is_said(
    make_app: MakeApp, service: Service, acme: str, customer: str
) -> None:
    cut_off = Service(make_app(**NO_WAY_TO_STRIPE), service.database, service.sandbox, service.token)

    refused = cut_off.put(acme, name="Acme 2")
    kept = rows(service.database, "SELECT name, untold_since IS NULL AS told FROM tenant_config")
    again = service.put(acme, name="Acme 2")

    assert code(refused) == (503, "stripe_unavailable")
    assert refused.headers["Retry-After"]
    assert kept == [{"name": "Acme 2", "told": False}]
    assert again.status_code == 200
    assert at_stripe(service.sandbox, "GET", f"customers/{customer}")["name"] == "Acme 2"
    assert [row["outcome"] for row in trail(service.database)] == ["stripe_unreachable", "done"]


def test_an_address_that_stripe_does_not_take_is_the_callers_fault(
    service: Service, acme: str, customer: str
) -> None:
    change(service.database, "UPDATE tenant_config SET email = 'ada'")  # as good as ours, to the stand-in

    answer = service.put(acme, name="Acme")

    assert code(answer) == (400, "invalid_request")
    assert (answer.json or {})["param"] == "email"


def test_two_who_say_different_things_at_once_end_with_stripe_saying_what_is_kept(
    service: Service, acme: str, customer: str
) -> None:
    service.sandbox.latency(0.05)
    with ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(lambda n: service.put(acme, name=f"Acme {n}").status_code, range(8)))

    service.sandbox.latency(0)
    service.put(acme)
    [kept] = rows(service.database, "SELECT name FROM tenant_config")
    assert set(statuses) <= {200, 503}
    assert at_stripe(service.sandbox, "GET", f"customers/{customer}")["name"] == kept["name"]


def test_who_told_something_old_last_tells_what_is_kept(service: Service, acme: str, customer: str) -> None:
    """Its call reached Stripe after that of somebody who came later."""
    billing: Billing = service.app.extensions["billing"]

    class Late(Stripe):
        """While the first call is on its way, somebody else says something newer, and tells it."""

        def update_customer(self, customer: str, metadata: Any, **named: str) -> None:
            if named.get("name") == "Old":
                assert service.put(acme, name="New").status_code == 200
            super().update_customer(customer, metadata, **named)

    with service.database.begin(SYSTEM) as connection:
        customers.describe(connection, acme, {"name": "Old"})
    enrolling.tell(billing.db, Late(service.sandbox.key, base=service.sandbox.url), acme)

    assert [one["params"]["name"] for one in service.updates()] == ["New", "Old", "New"]
    assert at_stripe(service.sandbox, "GET", f"customers/{customer}")["name"] == "New"


def test_a_customer_that_is_gone_is_asked_about_and_the_name_is_kept_for_the_next(
    service: Service, acme: str, customer: str
) -> None:
    at_stripe(service.sandbox, "DELETE", f"customers/{customer}")

    answer = known(service.put(acme, name="Acme"))

    assert answer["name"] == "Acme"
    wanted = rows(service.database, "SELECT wanted_at IS NOT NULL AS wanted FROM stripe_customers")
    assert wanted == [{"wanted": True}]


# ---- names and intents


def test_a_name_that_stripe_refuses_stands_in_nobodys_way_to_buy(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    shop = a_shop(make_app(), database, sandbox)
    service = Service(shop.app, database, sandbox, a_service(database, "crm", tokens.WRITE))
    service.put(shop.tenant, name="Acme")
    change(database, "UPDATE tenant_config SET email = 'ada'")

    shop.opened()

    assert at_stripe(sandbox, "GET", f"customers/{shop.customer}")["metadata"]["tenant_id"] == shop.tenant


def test_a_name_that_changes_while_the_customer_is_made_reaches_it(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    """The key goes with what it was first sent with, and the customer is told the rest."""
    shop = a_shop(make_app(), database, sandbox)
    service = Service(shop.app, database, sandbox, a_service(database, "crm", tokens.WRITE))
    service.put(shop.tenant, name="Before")
    with database.begin(SYSTEM) as connection:
        intent = checkouts.intend_customer(connection, shop.tenant, {"name": "Before"})
    billing: Billing = shop.app.extensions["billing"]
    billing.stripe.create_customer(
        {"tenant_id": shop.tenant, "billing_intent": intent.id}, idempotency_key=intent.id, name="Before"
    )
    service.put(shop.tenant, name="After")

    shop.opened()

    assert at_stripe(sandbox, "GET", f"customers/{shop.customer}")["name"] == "After"
    assert len(shop.customers_made()) == 1


# ---- linking


def test_a_service_links_a_customer_and_gets_what_it_has(service: Service, customer: str) -> None:
    subscribe(service.sandbox, customer)
    tell(service.database, customer)
    take_in(service.database)

    answer = known(service.put("t_acme", stripe_customer_id=customer))

    document = known(service.read("t_acme"))
    assert answer["stripe_customer_id"] == customer
    assert (document["state"], document["version"]) == ("active", answer["version"])
    assert rows(service.database, "SELECT tenant_id, linked_by FROM tenant_links") == [
        {"tenant_id": "t_acme", "linked_by": "service:crm"}
    ]
    assert at_stripe(service.sandbox, "GET", f"customers/{customer}")["metadata"]["tenant_id"] == "t_acme"
    take_in(service.database)
    assert rows(service.database, "SELECT state FROM inbox") == [{"state": "settled"}]


def test_the_same_customer_again_is_fine_and_asks_nobody(
    make_app: MakeApp, service: Service, customer: str
) -> None:
    first = known(service.put("t_acme", name="Acme", stripe_customer_id=customer))
    cut_off = Service(make_app(**NO_WAY_TO_STRIPE), service.database, service.sandbox, service.token)

    again = known(cut_off.put("t_acme", name="Acme", stripe_customer_id=customer))

    assert again == first


def test_what_was_answered_may_be_said_again(service: Service, customer: str) -> None:
    for said in ({}, {"stripe_customer_id": customer}):
        answer = known(service.put("t_acme", **said))
        echoed = {key: answer[key] for key in ("name", "email", "stripe_customer_id")}
        assert known(service.put("t_acme", **echoed)) == answer


@pytest.mark.parametrize("deleted", [False, True], ids=["unknown", "deleted"])
def test_a_customer_that_stripe_does_not_have_is_not_linked(
    service: Service, customer: str, deleted: bool
) -> None:
    if deleted:
        at_stripe(service.sandbox, "DELETE", f"customers/{customer}")

    answer = service.put("t_acme", name="Acme", stripe_customer_id=customer if deleted else "cus_unknown")

    assert code(answer) == (404, "customer_not_found")
    assert tenants(service.database) == []
    assert [row["outcome"] for row in trail(service.database)] == ["customer_not_found"]


def test_a_customer_of_another_tenant_is_not_linked(service: Service, acme: str, customer: str) -> None:
    answer = service.put("t_globex", name="Globex", stripe_customer_id=customer)

    assert code(answer) == (409, "already_linked")
    assert tenants(service.database) == [acme]
    assert service.updates() == []


def test_a_customer_whose_metadata_names_another_tenant_is_not_linked(
    make_app: MakeApp, service: Service, customer: str
) -> None:
    at_stripe(service.sandbox, "POST", f"customers/{customer}", **{"metadata[tenant_id]": "t_globex"})

    answer = service.put("t_acme", stripe_customer_id=customer)
    operator = say(make_app, "tenants", "link", "t_acme", customer)
    insists = say(make_app, "tenants", "link", "t_acme", customer, "--whosever")

    assert code(answer) == (409, "customer_of_another")
    assert (operator.exit_code, insists.exit_code) == (1, 0)
    assert "customer_of_another" in operator.output
    assert at_stripe(service.sandbox, "GET", f"customers/{customer}")["metadata"]["tenant_id"] == "t_acme"


@pytest.mark.parametrize("other", [True, False], ids=["another", "none"])
def test_a_tenants_customer_is_neither_replaced_nor_taken_away(
    service: Service, acme: str, customer: str, other: bool
) -> None:
    wanted = create_customer(service.sandbox) if other else None

    answer = service.put(acme, name="New", stripe_customer_id=wanted)

    assert code(answer) == (409, "other_customer")
    assert rows(service.database, "SELECT stripe_customer_id, name FROM tenant_config") == [
        {"stripe_customer_id": customer, "name": None}
    ]


def test_a_tenant_gets_no_customer_by_a_service_while_one_is_being_made(
    service: Service, customer: str
) -> None:
    with service.database.begin(SYSTEM) as connection:
        intent = checkouts.intend_customer(connection, "t_acme", {})

    during = service.put("t_acme", stripe_customer_id=customer)
    with service.database.begin(SYSTEM) as connection:
        checkouts.close_intent(connection, intent.id, None)
    after = service.put("t_acme", stripe_customer_id=customer)

    assert code(during) == (409, "checkout_under_way")
    assert known(after)["stripe_customer_id"] == customer


def test_a_link_and_a_checkout_that_race_leave_one_customer_who_may_pay(
    make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    app = make_app()
    sandbox.latency(0.02)
    for _ in range(4):
        shop = a_shop(app, database, sandbox)
        service = Service(
            app, database, sandbox, a_service(database, shop.tenant.replace("_", "-"), tokens.WRITE)
        )
        existing = create_customer(sandbox)
        with ThreadPoolExecutor(2) as threads:
            clicked = threads.submit(shop.click)
            linked = threads.submit(service.put, shop.tenant, stripe_customer_id=existing)

        assert linked.result().status_code in (200, 409), linked.result().text
        assert clicked.result().status_code in (200, 503), clicked.result().text
        assert linked.result().status_code == 409 or shop.customer == existing
        open_for = {
            session["customer"]
            for id in (existing, shop.customer)
            for session in at_stripe(sandbox, "GET", "checkout/sessions", customer=id, status="open")["data"]
        }
        assert open_for <= {shop.customer}


def test_of_tenants_that_want_one_customer_at_once_one_gets_it(service: Service, customer: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda n: service.put(f"t_{n}", stripe_customer_id=customer).status_code, range(4))
        )

    assert sorted(answers) == [200, 409, 409, 409]
    assert len(tenants(service.database)) == 1


def test_without_stripe_nobody_is_linked(make_app: MakeApp, service: Service, customer: str) -> None:
    cut_off = Service(make_app(**NO_WAY_TO_STRIPE), service.database, service.sandbox, service.token)

    answer = cut_off.put("t_acme", name="Acme", stripe_customer_id=customer)

    assert code(answer) == (503, "stripe_unavailable")
    assert tenants(service.database) == []


# ---- the trail


def trail(database: Database) -> list[Json]:
    return rows(database, "SELECT * FROM audit_log WHERE action = 'tenant' ORDER BY id")


def test_every_put_leaves_a_row_without_what_was_said(service: Service, customer: str) -> None:
    service.put("t_acme", name="Acme GmbH", email="ada@acme.example", stripe_customer_id=customer)
    service.put("t_globex", stripe_customer_id=customer)

    first, second = trail(service.database)
    assert (first["tenant_id"], first["actor"], first["outcome"]) == ("t_acme", "service:crm", "done")
    assert (first["stripe_object"], first["started"]) == (customer, False)
    assert (second["tenant_id"], second["outcome"]) == ("t_globex", "already_linked")
    assert "Acme" not in str([first, second])
    assert "ada@" not in str([first, second])


@pytest.mark.parametrize("outcome", ["failed", "started"])
def test_what_nobody_foresaw_is_failed_in_the_trail_or_at_least_answered_as_what_it_is(
    service: Service, database_url: str, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as holder:

        def has_a_bug(*_: object) -> None:
            if outcome == "started":  # it cannot be written
                holder.execute("LOCK TABLE audit_log IN SHARE MODE")
            raise KeyError("a bug")

        monkeypatch.setattr(customers, "describe", has_a_bug)
        answer = service.put("t_acme", name="Acme")

    assert (answer.status_code, answer.json) == (500, {"error": "Internal server error"})
    assert [row["outcome"] for row in trail(service.database)] == [outcome]


def test_what_services_say_does_not_count_towards_a_tenants_links(
    make_app: MakeApp, service: Service, headers: dict[str, str], acme: str
) -> None:
    for _ in range(3):
        service.put(acme)

    answer = make_app(BILLING_LINKS_PER_MINUTE="1").test_client().post(PORTAL, headers=headers)

    assert answer.status_code == 200


def test_nothing_said_of_people_is_in_a_log(
    service: Service, acme: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = logged(caplog)

    service.put(acme, name="Ada Lovelace", email="ada@lovelace.example")
    service.put(acme, email="not an address of Ada")

    printed = str(said())
    assert "'service': 'crm'" in printed
    assert "Ada" not in printed
    assert "lovelace" not in printed
    assert service.token not in printed


# ---- everybody at once

NAMES = ("t_acme", "t_globex", "t_initech", "t_umbrella")
WITH_A_CUSTOMER = NAMES[:2]


@dataclass(frozen=True)
class Asks:
    """Who asks for what, and all that the answer may say: of which tenants, and whose secret."""

    method: str
    path: str
    token: str
    status: int
    code: str | None = None
    tenants: tuple[str, ...] = ()
    secret: str | None = None
    said: Json | None = None


@pytest.fixture
def crowd(make_app: MakeApp, database: Database, sandbox: Control) -> Service:
    """Four tenants with a secret each, two of them with a customer; and two connections for all who ask."""
    a_catalogue(database)
    app = make_app(DATABASE_POOL_SIZE="2", BILLING_LINKS_PER_MINUTE="10000")
    service = Service(app, database, sandbox, a_service(database, "crm", tokens.WRITE))
    for name in NAMES:
        linked = {"stripe_customer_id": create_customer(sandbox)} if name in WITH_A_CUSTOMER else {}
        known(service.put(name, name=f"secret of {name}", **linked))
    return service


def test_nothing_leaks_between_callers_of_every_kind_over_two_connections(
    crowd: Service, database: Database, make_app: MakeApp
) -> None:
    """Members of several tenants, services and strangers, in no order: each sees its own and nothing else."""
    reader, writer, ended = a_service(database), crowd.token, a_service(database, "ended", *tokens.SCOPES)
    assert say(make_app, "tokens", "revoke", "ended").exit_code == 0

    def asks(number: int) -> Asks:
        dice = random.Random(number)  # the same traffic each time
        own, other = dice.sample(NAMES, 2)
        tenant, document = f"/api/tenants/{own}", f"/api/tenants/{own}/entitlements"
        member, stranger = a_token(tenant_id=own), dice.choice([ended, "bsk_" + "x" * 43, "nobody"])
        said: Json = {"name": f"secret of {own}"}
        return dice.choice(
            [
                Asks("GET", "/api/entitlements", member, 200, tenants=(own,)),
                Asks("POST", PORTAL, member, 200, tenants=(own,), secret=own)
                if own in WITH_A_CUSTOMER
                else Asks("POST", PORTAL, member, 404),
                Asks("GET", document, a_token(tenant_id=other), 403, "service_token_required"),
                Asks("PUT", tenant, a_token(tenant_id=other), 403, "service_token_required", said=said),
                Asks("GET", "/api/changes", member, 403, "service_token_required"),
                Asks("GET", document, reader, 200, tenants=(own,)),
                Asks("GET", f"/api/tenants/{own}{number}/entitlements", reader, 404, "tenant_not_found"),
                Asks("PUT", tenant, reader, 403, "insufficient_scope", said=said),
                Asks("GET", "/api/changes", reader, 200, tenants=NAMES),
                Asks("GET", document, writer, 403, "insufficient_scope"),
                Asks("GET", "/api/changes", writer, 403, "insufficient_scope"),
                Asks("PUT", tenant, writer, 200, tenants=(own,), secret=own, said=said),
                Asks("GET", "/api/entitlements", writer, 403, "user_token_required"),
                Asks("GET", document, stranger, 401),
                Asks("GET", "/api/changes", stranger, 401),
                Asks("PUT", tenant, stranger, 401, said=said),
            ]
        )

    def is_answered_alone(number: int) -> bool:
        one = asks(number)
        answer = crowd.client.open(one.path, method=one.method, headers=bearer(one.token), json=one.said)
        told = answer.json if isinstance(answer.json, dict) else {}
        text = requests.get(told["url"]).text if "url" in told else answer.text  # where the link leads
        return (
            (answer.status_code, told.get("code")) == (one.status, one.code)
            and {name for name in NAMES if name in text} == set(one.tenants)
            and {name for name in NAMES if f"secret of {name}" in text} == {one.secret} - {None}
        )

    with ThreadPoolExecutor(4) as threads:
        fine = list(threads.map(is_answered_alone, range(10_000 if IS_SOAK else 400)))

    assert [asks(number) for number, is_fine in enumerate(fine) if not is_fine] == []
