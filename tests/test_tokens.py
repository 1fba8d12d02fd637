"""Service tokens: how they are made, shown once, followed by others, ended; and what they open."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from werkzeug.test import TestResponse

from billing import tokens
from billing.db import STRANGER, SYSTEM, Database
from billing.errors import TooManyTokens
from tests.conftest import MakeApp, rows
from tests.deliveries import a_catalogue
from tests.test_commands import say
from tests.test_portal import PORTAL
from tests.tokens import a_token

UNAUTHORIZED = (401, b'{"error":"Unauthorized"}')
OF_ACME = "/api/tenants/t_acme/entitlements"


def a_service(
    database: Database, name: str = "search", *scopes: str, expires_at: datetime | None = None
) -> str:
    """A token of this service, `billing:read` unless other scopes are given."""
    with database.begin(SYSTEM) as connection:
        return tokens.create(connection, name, scopes or (tokens.READ,), expires_at)[0]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def shown(answer: TestResponse) -> tuple[int, bytes]:
    return answer.status_code, answer.data


def code(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, (answer.json or {})["code"]


def change(database: Database, statement: str, **values: Any) -> None:
    with database.begin(SYSTEM) as connection:
        connection.execute(text(statement), values)


# ---- made, shown, listed, ended


def test_a_token_is_shown_once_and_kept_as_its_hash(make_app: MakeApp, database: Database) -> None:
    result = say(make_app, "tokens", "create", "search", "--scope", "billing:read")

    token = result.stdout.strip()
    assert re.fullmatch(r"bsk_[0-9A-Za-z]{43}", token)
    [row] = rows(database, "SELECT * FROM service_tokens")
    assert bytes(row["hash"]) == hashlib.sha256(token.encode()).digest()
    assert token not in str(rows(database, "SELECT * FROM service_tokens"))
    assert (
        token not in say(make_app, "tokens", "list").output + say(make_app, "tokens", "list", "--json").output
    )


def test_tokens_are_random_through_all_their_digits() -> None:
    made = {tokens._base62(number.to_bytes(32)) for number in (0, 1, 61, 62, 2**255, 2**256 - 1)}

    assert len(made) == 6
    assert {len(digits) for digits in made} == {43}


def test_the_list_says_who_may_what_until_when_and_who_still_does(
    make_app: MakeApp, database: Database, client: FlaskClient
) -> None:
    say(make_app, "tokens", "create", "search", "--scope", "billing:read", "--expires", "2999-01-01")
    both = say(
        make_app, "tokens", "create", "crm", "--scope", "billing:write", "--scope", "billing:read", "--json"
    )
    say(make_app, "tokens", "revoke", "search")
    client.get(OF_ACME, headers=bearer(json.loads(both.stdout)["token"]))

    lines = say(make_app, "tokens", "list").output.splitlines()
    listed = json.loads(say(make_app, "tokens", "list", "--json").output)

    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert re.search(rf"^crm +\d+  billing:read billing:write +alive +last used {today} ", lines[0])
    assert re.search(rf"^search +\d+  billing:read +ended {today} [\d:]+ UTC +last used never$", lines[1])
    assert [(one["name"], one["scopes"], one["is_alive"], one["expires_at"]) for one in listed] == [
        ("crm", ["billing:read", "billing:write"], True, None),
        ("search", ["billing:read"], False, "2999-01-01T00:00:00Z"),
    ]


def test_where_nobody_has_a_token_the_list_says_so(make_app: MakeApp, database: Database) -> None:
    assert say(make_app, "tokens", "list").output == "There are no tokens.\n"
    assert say(make_app, "tokens", "list", "--json").output == "[]\n"


def test_a_token_may_end_so_many_days_from_now(make_app: MakeApp, database: Database) -> None:
    say(make_app, "tokens", "create", "search", "--scope", "billing:read", "--expires", "90d")

    [row] = rows(database, "SELECT expires_at FROM service_tokens")
    assert abs(row["expires_at"] - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "words",
    [
        ["search"],
        ["search", "--scope", "billing:everything"],
        ["Search", "--scope", "billing:read"],
        ["", "--scope", "billing:read"],
        ["s" * 64, "--scope", "billing:read"],
        ["search\n", "--scope", "billing:read"],
        *(
            ["search", "--scope", "billing:read", "--expires", never]
            for never in (
                "2020-01-01",
                "0d",
                "-1d",
                "90",
                "tomorrow",
                "2027-13-01",
                "9999999999d",
                "",
            )
        ),
    ],
    ids=" ".join,
)
def test_a_token_that_makes_no_sense_is_not_made(
    make_app: MakeApp, database: Database, words: list[str]
) -> None:
    result = say(make_app, "tokens", "create", *words)

    assert result.exit_code == 2
    assert rows(database, "SELECT FROM service_tokens") == []


def test_two_of_a_name_may_be_alive_and_no_third(make_app: MakeApp, database: Database) -> None:
    create = ("tokens", "create", "search", "--scope", "billing:read")
    results = [say(make_app, *create) for _ in range(3)]

    assert [result.exit_code for result in results] == [0, 0, 1]
    assert "Two tokens of this name are alive" in results[2].output
    assert say(make_app, "tokens", "create", "crm", "--scope", "billing:read").exit_code == 0


def test_of_two_that_are_alive_the_one_to_be_revoked_is_named(make_app: MakeApp, database: Database) -> None:
    for _ in range(2):
        a_service(database)
    first, second = [row["id"] for row in rows(database, "SELECT id FROM service_tokens ORDER BY id")]

    unclear = say(make_app, "tokens", "revoke", "search")
    done = say(make_app, "tokens", "revoke", "search", "--id", str(first), "--json")
    rest = say(make_app, "tokens", "revoke", "search")
    again = say(make_app, "tokens", "revoke", "search")

    assert (unclear.exit_code, done.exit_code, rest.exit_code, again.exit_code) == (2, 0, 0, 1)
    assert f"--id {first} or --id {second}" in unclear.output
    assert json.loads(done.output) == {"name": "search", "revoked": [first]}
    assert rest.output == f"Revoked: {second} of search.\n"


def test_all_of_a_name_are_revoked_on_request_and_nobody_elses(make_app: MakeApp, database: Database) -> None:
    mine = [a_service(database), a_service(database)]
    other = a_service(database, "crm")
    [theirs] = rows(database, "SELECT id FROM service_tokens WHERE name = 'crm'")

    wrong = say(make_app, "tokens", "revoke", "search", "--id", str(theirs["id"]))
    done = say(make_app, "tokens", "revoke", "search", "--all")

    client = make_app().test_client()
    assert (wrong.exit_code, done.exit_code) == (1, 0)
    assert {shown(client.get(OF_ACME, headers=bearer(token))) for token in mine} == {UNAUTHORIZED}
    assert client.get(OF_ACME, headers=bearer(other)).status_code == 404


def test_one_that_has_expired_leaves_its_place_to_another(database: Database) -> None:
    a_service(database)
    a_service(database)
    change(database, "UPDATE service_tokens SET expires_at = clock_timestamp() WHERE slot = 2")

    a_service(database)

    ended = rows(database, "SELECT slot FROM service_tokens WHERE ended_at = expires_at")
    assert ended == [{"slot": 2}]


@pytest.mark.parametrize("alive", [0, 1])
def test_of_many_made_at_once_two_are_alive(database: Database, alive: int) -> None:
    for _ in range(alive):
        a_service(database)
    together = threading.Barrier(5)

    def make(_: int) -> bool:
        together.wait()
        try:
            a_service(database)
        except TooManyTokens:
            return False
        return True

    with ThreadPoolExecutor(5) as threads:
        made = list(threads.map(make, range(5)))

    assert sum(made) == 2 - alive
    assert len(rows(database, "SELECT FROM service_tokens WHERE ended_at IS NULL")) == 2


def test_the_database_itself_keeps_a_third_one_out(database: Database) -> None:
    a_service(database)

    with pytest.raises(IntegrityError, match="uq_service_tokens_name_slot"):
        change(
            database,
            "INSERT INTO service_tokens (name, slot, hash, scopes) VALUES ('search', 1, 'x', '{billing:read}')",
        )
    with pytest.raises(IntegrityError, match="two_at_most"):
        change(
            database,
            "INSERT INTO service_tokens (name, slot, hash, scopes) VALUES ('search', 3, 'x', '{billing:read}')",
        )


# ---- shown at a door


def test_a_token_that_holds_opens_the_routes_of_its_scope(client: FlaskClient, database: Database) -> None:
    reads, writes = a_service(database), a_service(database, "crm", tokens.WRITE)

    assert code(client.get(OF_ACME, headers=bearer(reads))) == (404, "tenant_not_found")
    assert code(client.get(OF_ACME, headers=bearer(writes))) == (403, "insufficient_scope")


def expired(token: str, database: Database) -> str:
    change(database, "UPDATE service_tokens SET expires_at = clock_timestamp()")
    return token


def revoked(token: str, database: Database) -> str:
    with database.begin(SYSTEM) as connection:
        tokens.revoke(connection, "search", [token.id for token in tokens.alive(connection, "search")])
    return token


SPOILED: dict[str, Callable[[str, Database], str]] = {
    "unknown": lambda token, _: token[:-1] + ("a" if token[-1] != "a" else "b"),
    "expired": expired,
    "revoked": revoked,
    "short": lambda token, _: token[:-1],
    "long": lambda token, _: token + "0",
    "prefix alone": lambda *_: "bsk_",
    "other case": lambda token, _: token.swapcase(),
    "its hash": lambda token, _: "bsk_" + hashlib.sha256(token.encode()).hexdigest(),
    "without prefix": lambda token, _: token.removeprefix("bsk_"),
    "as a JWT": lambda token, _: f"{token}.{token}.{token}",
    "huge": lambda token, _: token + "0" * 4000,
}


@pytest.mark.parametrize("path", [OF_ACME, "/api/entitlements", PORTAL])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_token_that_does_not_hold_gets_one_answer_everywhere(
    client: FlaskClient, database: Database, spoil: Callable[[str, Database], str], path: str
) -> None:
    """The tenant exists, and nothing of it is to be seen."""
    a_catalogue(database)
    client.get("/api/entitlements", headers=bearer(a_token()))
    token = spoil(a_service(database), database)

    answer = client.open(path, method="POST" if path == PORTAL else "GET", headers=bearer(token))

    assert shown(answer) == UNAUTHORIZED
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Basic {}",
        "bearer {}",
        "{}",
        "Bearer {} {}",
        "Bearer {},{}",
        'Bearer "{}"',
        "Bearer bsk_\xf6",
    ],
)
def test_a_token_counts_only_as_the_one_bearer(client: FlaskClient, database: Database, value: str) -> None:
    token = a_service(database)

    answer = client.get(OF_ACME, headers={"Authorization": value.replace("{}", token)})

    assert shown(answer) == UNAUTHORIZED


@pytest.mark.parametrize("place", ["query_string", "cookie", "json"])
def test_a_token_counts_nowhere_but_in_its_header(client: FlaskClient, database: Database, place: str) -> None:
    token = a_service(database)
    elsewhere: dict[str, Any] = {
        "query_string": {"query_string": {"token": token, "access_token": token}},
        "cookie": {"headers": {"Cookie": f"token={token}; access_token_cookie={token}"}},
        "json": {"json": {"token": token}},
    }[place]

    assert shown(client.get(OF_ACME, **elsewhere)) == UNAUTHORIZED


def test_whoever_shows_a_good_token_of_the_wrong_kind_is_told(
    client: FlaskClient, database: Database, headers: dict[str, str]
) -> None:
    service = bearer(a_service(database, "all", *tokens.SCOPES))

    for method, path in [
        ("GET", "/api/entitlements"),
        ("POST", PORTAL),
        ("POST", "/api/subscriptions/checkout"),
        ("GET", "/api/subscriptions/checkout/cs_1"),
    ]:
        assert code(client.open(path, method=method, headers=service)) == (403, "user_token_required")
    for user in (headers, bearer(a_token(tenant_id=None))):
        assert code(client.get(OF_ACME, headers=user)) == (403, "service_token_required")
    for bad in (a_token(exp=1), a_token("another-secret-of-more-than-thirty-two-bytes"), "a.b.c", "x"):
        assert shown(client.get(OF_ACME, headers=bearer(bad))) == UNAUTHORIZED


def test_a_revoked_token_ends_with_the_next_request_in_every_process(
    make_app: MakeApp, database: Database
) -> None:
    here, there = make_app().test_client(), make_app().test_client()
    token = bearer(a_service(database))
    before = [client.get(OF_ACME, headers=token).status_code for client in (here, there)]

    say(make_app, "tokens", "revoke", "search")

    assert before == [404, 404]
    assert {shown(client.get(OF_ACME, headers=token)) for client in (here, there)} == {UNAUTHORIZED}


def test_a_token_that_is_revoked_while_it_is_used_opens_nothing_afterwards(
    make_app: MakeApp, database: Database
) -> None:
    """No request that began after the commit was let in, however busy the others were."""
    app, token, over = make_app(DATABASE_POOL_SIZE="4"), bearer(a_service(database)), threading.Event()

    def use(_: int) -> list[tuple[bool, int]]:
        client = app.test_client()
        seen: list[tuple[bool, int]] = []
        while not seen or not seen[-1][0] or len(seen) < 5:
            is_over = over.is_set()
            seen.append((is_over, client.get(OF_ACME, headers=token).status_code))
        return seen

    with ThreadPoolExecutor(4) as threads:
        using = [threads.submit(use, number) for number in range(4)]
        revoked("", database)
        over.set()
        seen = [one for used in using for one in used.result()]

    assert {status for is_over, status in seen if is_over} == {401}
    assert {status for is_over, status in seen} <= {401, 404}


# ---- its use


def test_its_use_is_written_down_once_a_minute_by_all_processes_together(
    make_app: MakeApp, database: Database
) -> None:
    apps: list[Flask] = [make_app(), make_app()]
    token = bearer(a_service(database))

    def use(number: int) -> int:
        return apps[number % 2].test_client().get(OF_ACME, headers=token).status_code

    versions = "SELECT xmin::text AS version, last_used_at FROM service_tokens"
    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(use, range(30))) == {404}
        [first] = rows(database, versions)
        assert set(threads.map(use, range(30))) == {404}
        [second] = rows(database, versions)
        change(database, "UPDATE service_tokens SET last_used_at = last_used_at - interval '1 minute'")
        [older] = rows(database, versions)
        assert set(threads.map(use, range(30))) == {404}
        [third] = rows(database, versions)

    assert first["last_used_at"] is not None
    assert second == first
    assert third["last_used_at"] > older["last_used_at"] + timedelta(minutes=1) - timedelta(seconds=1)


def test_of_those_who_all_found_it_unseen_one_writes_it_down(database: Database) -> None:
    token = database.run(STRANGER, tokens.find(a_service(database)))
    assert token
    seen = "SELECT xmin::text AS version FROM service_tokens"

    database.run(SYSTEM, tokens.use(token.id))
    first = rows(database, seen)
    database.run(SYSTEM, tokens.use(token.id))

    assert token.is_unseen
    assert rows(database, seen) == first


def test_nobody_waits_for_a_use_that_another_writes_down(client: FlaskClient, database: Database) -> None:
    token = bearer(a_service(database))
    with database.begin(SYSTEM) as connection:
        connection.execute(text("UPDATE service_tokens SET last_used_at = NULL"))

        assert client.get(OF_ACME, headers=token).status_code == 404


def test_what_does_not_hold_is_not_used(client: FlaskClient, database: Database) -> None:
    client.get(OF_ACME, headers=bearer(expired(a_service(database), database)))

    assert rows(database, "SELECT last_used_at FROM service_tokens") == [{"last_used_at": None}]


# ---- in the database


def test_a_transaction_is_a_services_only_after_its_token(database: Database, database_url: str) -> None:
    """The rows of tenants are out of sight in a transaction that shows no good one, whatever it asks for."""
    change(database, "INSERT INTO tenant_states (tenant_id) VALUES ('t_acme')")
    good, bad = a_service(database), "bsk_unknown"
    writes = a_service(database, "crm", tokens.WRITE)

    def seen(token: str, needs: str) -> int:
        shown = tokens.find(token, needs)
        with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
            connection.execute("SELECT set_config('billing.scope', 'stranger', true)")
            connection.execute(shown.sql, shown.values).fetchall()
            return len(connection.execute("SELECT FROM tenant_states").fetchall())

    assert seen(good, tokens.READ) == 1
    assert (seen(bad, tokens.READ), seen(good, ""), seen(writes, tokens.READ)) == (0, 0, 0)
