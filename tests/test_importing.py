"""Customers that Stripe had before us are linked where it says whose they are and nothing speaks against it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing import enrolling, importing, questions, reconcile, state, sync
from billing.audit import By
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.importing import Unreadable
from billing.stripe_api import Stripe
from billing.wiring import Billing
from sandbox.server import Control, running
from tests.conftest import MakeApp, create_customer, link, rows
from tests.deliveries import a_catalogue, a_worker, at_stripe, subscribe, until_quiet
from tests.test_commands import say


@pytest.fixture
def stripe_stand_in() -> Iterator[Control]:
    """An account of our own: all of its customers are looked at."""
    with running() as control:
        yield control


def a_customer(sandbox: Control, tenant: str | None = None) -> str:
    """With an e-mail address that others have, too: it says nothing."""
    customer = create_customer(sandbox)
    if tenant is not None:
        at_stripe(sandbox, "POST", f"customers/{customer}", **{"metadata[tenant_id]": tenant})
    return customer


def links(database: Database) -> dict[str, str]:
    found = rows(database, "SELECT tenant_id, stripe_customer_id AS c FROM tenant_config ORDER BY tenant_id")
    return {row["tenant_id"]: row["c"] for row in found}


def test_customers_are_linked_by_their_metadata_unless_something_speaks_against_it(
    make_app: MakeApp, environ: dict[str, str], database: Database, sandbox: Control, tmp_path: Path
) -> None:
    a_catalogue(database)
    good, nobodys = a_customer(sandbox, "t_good"), a_customer(sandbox)
    twice = {a_customer(sandbox, "t_twice"), a_customer(sandbox, "t_twice")}
    has, other = a_customer(sandbox, "t_has"), a_customer(sandbox)
    taken, gone = a_customer(sandbox, "t_taken"), a_customer(sandbox, "t_gone")
    forgotten = a_customer(sandbox, "t_forgotten")
    own, spare = a_customer(sandbox, "t_own"), a_customer(sandbox, "t_own")
    taken_away = a_customer(sandbox, "t_away")
    link(database, "t_own", own)
    sync.link(database, "t_away", taken_away, by="test")
    sync.unlink(database, "t_away", By("ana", "not theirs"))
    link(database, "t_has", other)
    link(database, "t_owner", taken)
    at_stripe(sandbox, "DELETE", f"customers/{gone}")
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, ["t_forgotten"], cause="time")
        state.forget(connection, "t_forgotten")
    subscribe(sandbox, good)
    before = links(database)

    dry = say(make_app, "reconcile", "--import", "metadata", "--dry-run", "--json")
    untouched = links(database)
    report = tmp_path / "report.csv"
    done = say(make_app, "reconcile", "--import", "metadata", "--report", str(report))
    again = say(make_app, "reconcile", "--import", "metadata", "--json")
    with a_worker(environ) as worker:
        until_quiet(worker)

    planned = json.loads(dry.output)
    assert planned["linked"] == [{"tenant_id": "t_good", "customer_id": good}]
    assert untouched == before
    assert links(database) == before | {"t_good": good}
    assert (planned["already"], planned["untold"]) == (1, 0)
    assert [result.exit_code for result in (dry, done, again)] == [1, 1, 1]
    told = json.loads(again.output)
    assert (told["linked"], told["already"]) == ([], 2)
    not_linked = {why: {one["customer_id"] for one in ones} for why, ones in told["not_linked"].items()}
    assert not_linked == {
        "names_no_tenant": {nobodys, other},
        "claimed_twice": twice,
        "other_customer": {has, spare},
        "other_tenant": {taken},
        "forgotten": {forgotten},
        "unlinked": {taken_away},
    }
    assert told["not_linked"] == planned["not_linked"]
    assert "2 not linked: several customers say that they are this tenant's" in done.output
    assert {line["customer_id"]: line["why"] for line in csv.DictReader(report.read_text().splitlines())} == {
        id: why for why, ids in not_linked.items() for id in ids
    }
    assert rows(database, "SELECT actor, action, reason FROM audit_log WHERE tenant_id = 't_good'") == [
        {"actor": "command", "action": "tenant.link", "reason": "imported from metadata"}
    ]
    assert rows(database, "SELECT status FROM subscriptions") == [{"status": "active"}]
    assert (
        rows(database, "SELECT FROM drift WHERE tenant_id = 't_good'") == []
    )  # a first answer has all to tell
    assert rows(database, "SELECT FROM tenant_config WHERE tenant_id = 't_good' AND untold_since IS NULL")


def test_customers_are_linked_by_a_file_and_told_whose_they_are(
    make_app: MakeApp, database: Database, sandbox: Control, tmp_path: Path
) -> None:
    new, both, of_another = a_customer(sandbox), a_customer(sandbox), a_customer(sandbox, "t_somebody")
    file = tmp_path / "customers.csv"
    file.write_text(
        "\ufeffTenant_ID,customer_id\r\n"
        f"t_new,{new}\r\nt_new,{new}\r\n\r\n"
        f't_one,{both}\r\n"t,two",{both}\r\n'
        f"t_else,{of_another}\r\nt_lost,cus_unknown\r\n",
        encoding="utf-8",
    )

    done = say(make_app, "reconcile", "--import", str(file), "--json")

    told = json.loads(done.output)
    assert links(database) == {"t_new": new}
    assert {why: [one["tenant_id"] for one in ones] for why, ones in told["not_linked"].items()} == {
        "claims_two": ["t_one", "t,two"],
        "named_otherwise": ["t_else"],
        "unknown_customer": ["t_lost"],
    }
    assert at_stripe(sandbox, "GET", f"customers/{new}")["metadata"] == {"tenant_id": "t_new"}


def test_what_stripe_does_not_answer_ends_no_import_and_what_it_was_not_told_is_told_later(
    make_app: MakeApp, database: Database, sandbox: Control, tmp_path: Path
) -> None:
    new, unread = a_customer(sandbox), a_customer(sandbox)
    file, report = tmp_path / "customers.csv", tmp_path / "report.csv"
    file.write_text(f"t_unread,{unread}\nt_new,{new}\nt_lost,cus_unknown\n")
    sandbox.fault("500", path=f"/v1/customers/{unread}", times=1)
    sandbox.fault("429", method="POST", path=f"/v1/customers/{new}", times=None)

    done = say(make_app, "reconcile", "--import", str(file), "--report", str(report))
    billing: Billing = make_app().extensions["billing"]
    rows(database, "UPDATE tenant_config SET untold_since = untold_since - interval '1 hour' RETURNING 1")
    away = enrolling.tell_late(database, billing.stripe, billing.budget)
    sandbox.clear()
    ended = enrolling.tell_late(database, billing.stripe, billing.budget, after="")

    assert (done.exit_code, links(database)) == (1, {"t_new": new})
    assert "1 of them could not be told" in done.output
    assert [line["why"] for line in csv.DictReader(report.read_text().splitlines())] == [
        "not_answered",
        "unknown_customer",
    ]
    assert (away, ended) == ("t_new", "")
    assert at_stripe(sandbox, "GET", f"customers/{new}")["metadata"] == {"tenant_id": "t_new"}
    assert rows(database, "SELECT FROM tenant_config WHERE untold_since IS NOT NULL") == []


def test_of_many_who_are_imported_no_event_waits_for_the_answers(
    database: Database, sandbox: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And blanks around a tenant's name in the metadata are none of its name."""
    monkeypatch.setattr(importing, "PAUSES", (0.0,))
    stripe, budget = Stripe(sandbox.key, base=sandbox.url), Budget(database, 1000)
    many = {f"t_{n}": a_customer(sandbox, f"t_{n}" if n else " t_0 ") for n in range(20)}
    sandbox.fault("500", path="/v1/customers", times=1)

    claims = importing.from_metadata(stripe, budget)
    judged = list(importing.link(database, stripe, budget, claims, source="metadata", look=False))
    with database.begin(SYSTEM) as connection:
        waiting = questions.in_line(connection, most=100)
    met = reconcile.meet(database)

    assert [one.became for one in judged] == ["linked"] * len(many)
    assert (links(database), waiting, met[0]) == (many, 0, reconcile.IN_LINE)
    assert at_stripe(sandbox, "GET", f"customers/{many['t_0']}")["metadata"] == {"tenant_id": "t_0"}
    assert rows(database, "SELECT FROM tenant_config WHERE untold_since IS NOT NULL") == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"t_1,cus_1\nt_2\n", "line 2 has 1 columns"),
        (b"t_1,cus_1\n,cus_2\n", "line 2 has no usable tenant_id"),
        (b"t_1,cus_1\nt_2,sub_2\n", "line 2 has no customer_id"),
        (b"customer_id,tenant_id\ncus_1,t_1\n", "line 1 has no customer_id"),
        ("t_ü,cus_1\n".encode("latin-1"), "it is not UTF-8"),
        (b't_1,"cus_1\n', "it is no CSV"),
    ],
    ids=["columns", "tenant", "customer", "order", "encoding", "quotes"],
)
def test_of_a_file_with_one_bad_line_nothing_is_used(content: bytes, fault: str) -> None:
    with pytest.raises(Unreadable, match=fault):
        importing.from_file(content)


def test_a_bad_file_is_a_mistake_in_what_was_typed(
    make_app: MakeApp, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "customers.csv"
    file.write_text("t_1,cus_1\nt_2,sub_2\n")

    bad = say(make_app, "reconcile", "--import", str(file))
    absent = say(make_app, "reconcile", "--import", str(tmp_path / "absent.csv"))

    assert (bad.exit_code, absent.exit_code) == (2, 2)
    assert "line 2" in bad.output
    assert links(database) == {}
