"""Services, their tokens, and how far they are in the feed."""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from billing.db import Database
from tests.conftest import MakeApp, rows
from tests.console.conftest import Browser, words
from tests.test_changes import CHANGES
from tests.test_commands import say
from tests.test_tokens import UNAUTHORIZED, bearer, shown

TRAIL = "SELECT actor, action, flow, reason FROM audit_log WHERE action NOT LIKE 'console.%' ORDER BY id"


def test_a_token_is_made_in_the_console_shown_once_and_revoked_there(
    ana: Browser, raj: Browser, client: FlaskClient, database: Database
) -> None:
    wish = {"name": "search", "scope": "billing:read", "expires": "90d", "reason": "search goes live"}
    made = ana.sends("consumers/create", seen="consumers", **wish)
    [token] = re.findall(r"bsk_\w{43}", made.text)
    let_in = client.get(CHANGES, headers=bearer(token))
    [kept] = rows(database, "SELECT id, extract(day FROM expires_at - now()) AS days FROM service_tokens")
    page = raj.reads("consumers")

    assert (made.status_code, made.headers["Cache-Control"], let_in.status_code) == (201, "no-store", 200)
    assert made.headers.getlist("Set-Cookie") == []
    assert kept["days"] in (89, 90)
    assert re.search(r"search up to date at 0 last seen \d s ago token \d+ billing:read until 20", page)
    assert token not in page + str(rows(database, "SELECT * FROM audit_log"))

    ended = ana.sends(
        "consumers/revoke", seen="consumers", name="search", id=str(kept["id"]), reason="it leaked"
    )
    again = ana.sends(
        "consumers/revoke", seen="consumers", name="search", id=str(kept["id"]), reason="it leaked"
    )

    assert (ended.status_code, again.status_code) == (303, 409)
    assert shown(client.get(CHANGES, headers=bearer(token))) == UNAUTHORIZED
    assert "No service has a token." in ana.reads("consumers")
    id = kept["id"]
    assert [(row["actor"], row["action"], row["reason"]) for row in rows(database, TRAIL)] == [
        ("ana", "token.create", "search goes live"),
        ("ana", "token.revoke", "it leaked"),
    ]
    [created, revoked] = [row["flow"] for row in rows(database, TRAIL)]
    assert re.fullmatch(rf"search {id}: billing:read until \d{{4}}-\d\d-\d\d \d\d:\d\d UTC", created)
    assert revoked == f"search {id}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Search"},
        {"scope": "billing:all"},
        {"scope": ""},
        {"expires": "1d2"},
        {"expires": "2020-01-01"},
    ],
    ids=str,
)
def test_a_token_that_makes_no_sense_is_refused_with_a_sentence(
    ana: Browser, database: Database, wrong: dict[str, str]
) -> None:
    wish = {"name": "search", "scope": "billing:read", "expires": "", "reason": "why not", **wrong}

    answer = ana.sends("consumers/create", seen="consumers", **wish)

    assert (answer.status_code, "must be" in words(answer)) == (400, True)
    assert rows(database, "SELECT FROM service_tokens") == rows(database, TRAIL) == []


def test_what_is_done_to_tokens_and_the_feed_at_a_terminal_is_in_the_trail_too(
    make_app: MakeApp, database: Database
) -> None:
    for words_ in (
        ["tokens", "create", "crm", "--scope", "billing:write", "--reason", "ticket 1"],
        ["tokens", "create", "crm", "--scope", "billing:read"],
        ["tokens", "revoke", "crm", "--all"],
        ["tokens", "revoke", "crm", "--all"],
        ["feed", "rewind", "--reason", "restored a snapshot"],
    ):
        say(make_app, *words_)

    assert [(row["actor"], row["action"], row["reason"]) for row in rows(database, TRAIL)] == [
        ("command", "token.create", "ticket 1"),
        ("command", "token.create", "by command"),
        ("command", "token.revoke", "by command"),
        ("command", "token.revoke", "by command"),
        ("command", "feed.rewind", "restored a snapshot"),
    ]
