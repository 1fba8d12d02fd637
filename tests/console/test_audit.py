"""The trail as operators read it: all of what fits and nothing else, however much is there."""

from __future__ import annotations

import csv
import io
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from billing import audit
from billing.audit import Place, Row, Wanted
from billing.db import SYSTEM, Database
from billing.operations import trail
from tests.conftest import MakeApp, rows
from tests.console.conftest import Browser
from tests.test_commands import say

BEGAN = datetime(2026, 3, 2, 12, tzinfo=UTC)
WHO, DONE = ["ana", "u_1", "service:crm"], ["portal", "token.revoke"]
OF, CAME = ["t_1", None], ["ok", "forbidden"]


@pytest.fixture
def written(database: Database) -> list[Row]:
    """Everybody does everything, three things a second; the newest first, as the trail is read."""
    kinds = itertools.product(WHO, DONE, OF, CAME)
    many = [
        {"at": BEGAN + timedelta(seconds=n // 3), "who": who, "done": done, "of": of, "came": came}
        for n, (who, done, of, came) in enumerate(itertools.islice(itertools.cycle(kinds), 72))
    ]
    with database.begin(SYSTEM) as connection:
        connection.execute(
            text("""
                INSERT INTO audit_log (at, settled_at, actor, action, tenant_id, outcome, started, ip)
                VALUES (:at, :at, :who, :done, :of, :came, false, '203.0.113.9')
            """),
            many,
        )
        return list(audit.find(connection, Wanted(), most=1000)[0])


def walked(database: Database, wanted: Wanted, most: int) -> list[Row]:
    """Page after page, as links lead on."""
    found: list[Row] = []
    after: Place | None = None
    while True:
        with database.begin(SYSTEM) as connection:
            page, rest = audit.find(connection, wanted, after=after, most=most)
        assert len(page) <= most
        found += page
        if rest is None:
            return found
        assert after is None or rest < after
        after = Place.read(str(rest))


def test_whatever_is_asked_for_is_found_whole_and_in_order_however_little_one_answer_looks_through(
    database: Database, written: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [row.id for row in written] == sorted((row.id for row in written), reverse=True)
    monkeypatch.setattr(audit, "LOOKED_THROUGH", 7)
    some_seconds = {"since": BEGAN + timedelta(seconds=5), "until": BEGAN + timedelta(seconds=15)}
    spans: list[dict[str, Any]] = [{}, some_seconds]
    for who, done, of, came, span in itertools.product(
        [None, "ana", "nobody"], [None, "portal"], [None, "t_1"], [None, "forbidden"], spans
    ):
        wanted = Wanted(who, done, of, came, **span)
        fits = [
            row
            for row in written
            if who in (None, row.actor)
            and done in (None, row.action)
            and of in (None, row.tenant_id)
            and came in (None, row.outcome)
            and span.get("since", row.at) <= row.at < span.get("until", row.at + timedelta(seconds=1))
        ]
        for most in (3, 50):
            assert walked(database, wanted, most) == fits, (wanted, most)


def test_the_page_filters_leads_on_and_keeps_the_question(
    ana: Browser, written: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ana.reads("audit?who=u_1&action=portal&tenant=t_1&from=2026-03-02T12:00&to=2026-03-02T12:00:05Z")
    first = ana.opens("audit?outcome=ok")
    monkeypatch.setattr(audit, "LOOKED_THROUGH", 7)
    rare = ana.opens("audit?action=portal&outcome=rare")

    assert shown.count("203.0.113.9") == 2
    assert "2026-03-02 12:00:02 UTC u_1 portal of t_1" in shown
    assert 'href="/billing/console/audit?after=' not in first.text  # all 36 and a sign-in fit
    assert "More may fit: go on with Older." in rare.text
    assert "&amp;who=&amp;action=portal&amp;tenant=&amp;outcome=rare" in rare.text
    for wrong in ("from=yesterday", "to=2026-13-01", "who=a%00b", "after=1", "after=1-9999999999999999999"):
        assert ana.opens(f"audit?{wrong}").status_code == 400, wrong


def test_the_trail_is_taken_away_as_csv_without_formulas_and_that_is_in_it(
    ana: Browser, database: Database, written: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.begin(SYSTEM) as connection:
        formula = audit.By("ana", "=HYPERLINK(1)", None, None)
        audit.note(connection, formula, "override.set", tenant_id="-t", flow='+1,"2"')
        for odd in (" =1", "a;=1+2", "\uff1d1", "b, @x", "a = b", "\ufeff-1"):
            audit.note(connection, audit.By("ana", odd, None, None), "override.lift")
    fields = {"who": "ana", "outcome": "ok", "reason": "the auditors ask"}

    answer = ana.sends("audit/export", seen="audit", **fields)
    whole = list(csv.DictReader(io.StringIO(answer.text)))
    monkeypatch.setattr(trail, "EXPORTED", 5)
    cut = list(csv.reader(io.StringIO(ana.sends("audit/export", seen="audit", **fields).text)))

    assert answer.content_type == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="audit-')
    assert [row["action"] for row in whole[:8]] == ["audit.export", *["override.lift"] * 6, "override.set"]
    assert [row["reason"] for row in whole[6:0:-1]] == [
        *("' =1", "a;'=1+2", "'\uff1d1", "b,' @x", "a = b", "'\ufeff-1")
    ]
    assert answer.text.startswith('"id","at",')
    assert (whole[7]["tenant_id"], whole[7]["flow"], whole[7]["reason"]) == (
        "'-t",
        '\'+1,"2"',
        "'=HYPERLINK(1)",
    )
    assert len(whole) == 8 + sum(row.actor == "ana" and row.outcome == "ok" for row in written)
    assert [len(cut), cut[-1]] == [7, ["More fits than is here. Ask again for what was before the last row."]]
    [kept, _] = rows(database, "SELECT actor, flow, reason FROM audit_log WHERE action = 'audit.export'")
    assert kept == {"actor": "ana", "flow": "actor=ana outcome=ok", "reason": "the auditors ask"}


def test_the_trail_is_read_at_a_terminal(
    make_app: MakeApp, written: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "LOOKED_THROUGH", 7)
    asked = ("--who", "u_1", "--action", "portal", "--tenant", "t_1", "--outcome", "ok")

    lines = say(make_app, "audit", *asked, "--limit", "2").output.splitlines()
    found = json.loads(say(make_app, "audit", *asked, "--until", "2026-03-02T12:00:10", "--json").output)
    nothing = say(make_app, "audit", "--who", "nobody")

    wanted = ("u_1", "portal", "t_1", "ok")
    newest = max(row.at for row in written if (row.actor, row.action, row.tenant_id, row.outcome) == wanted)
    assert lines[0] == f"{newest.astimezone(UTC):%Y-%m-%d %H:%M:%S}  u_1  t_1  portal  ok  ip 203.0.113.9"
    assert len(lines) == 2
    assert [(one["actor"], one["at"]) for one in found] == [("u_1", "2026-03-02T12:00:02Z")]
    assert (nothing.exit_code, nothing.output) == (0, "Nothing fits.\n")
