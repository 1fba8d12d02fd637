"""`GET /api/changes` as consumers see it: the batch, the cursor, the end, and how far behind they are."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from billing import feed, state, tokens
from billing.db import STRANGER, SYSTEM, Database, Query
from tests import documented
from tests.conftest import MakeApp, rows
from tests.deliveries import logged
from tests.documented import faults
from tests.test_commands import say
from tests.test_state import override, refresh, team
from tests.tokens import a_token

CHANGES = "/api/changes"
BATCH = "application/cloudevents-batch+json"

Ask = Callable[..., TestResponse]


def a_consumer(database: Database, name: str = "search", scope: str = tokens.READ) -> dict[str, str]:
    """What a service of this name sends."""
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, name, (scope,), None)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def ask(client: FlaskClient, database: Database) -> Ask:
    """A consumer's request; `etag` is of the answer it has."""
    headers = a_consumer(database)

    def ask(since: str | None = None, *, etag: str | None = None, **query: Any) -> TestResponse:
        known = {"If-None-Match": etag} if etag else {}
        wanted = query if since is None else {"lastEventId": since, **query}
        return client.get(CHANGES, query_string=wanted, headers={**headers, **known})

    return ask


def ids(answer: TestResponse) -> list[str]:
    return [event["id"] for event in answer.json or []]


def subjects(answer: TestResponse) -> list[str]:
    return [event["subject"] for event in answer.json or []]


# ---- the batch


def test_a_change_is_a_cloud_event_with_the_document_as_it_is_stored(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1")

    answer = ask()

    [stored] = rows(database, "SELECT body, changed_at FROM tenant_states")
    [event] = answer.json or []
    assert answer.content_type == BATCH
    assert re.fullmatch(r"[0-9a-f]{10}-0000000000000001", event.pop("id"))
    assert event.pop("data") == json.loads(stored["body"])
    assert stored["body"] in answer.text
    assert event == {
        "specversion": "1.0",
        "source": "/api/changes",
        "type": "billing.tenant.state",
        "subject": "t_1",
        "time": f"{stored['changed_at']:%Y-%m-%dT%H:%M:%SZ}",
        "datacontenttype": "application/json",
    }


def test_a_change_says_when_time_may_change_the_document(database: Database, ask: Ask) -> None:
    """To the second, and none too late: a copy must not outlive it."""
    team(database)
    ends = datetime(2100, 1, 2, 3, 4, 5, 900_000, tzinfo=UTC)
    override(database, "t_1", "true", expires_at=ends.timestamp())
    override(database, "t_2", "true", expires_at=ends.timestamp())
    with database.begin(SYSTEM) as connection:
        state.forget(connection, "t_1")
    refresh(database, "t_3")

    said = {event["subject"]: event.get("lastsuntil") for event in ask().json or []}
    assert said == {"t_1": None, "t_2": "2100-01-02T03:04:05Z", "t_3": None}


@pytest.mark.parametrize("tenant", ['t_"\\', "t_\n\x7f", "t_é\u2028😀", "</script>"], ids=ascii)
def test_a_tenants_id_may_be_anything(database: Database, ask: Ask, tenant: str) -> None:
    team(database)
    refresh(database, tenant)

    assert subjects(ask()) == [tenant]


def test_every_change_is_of_one_of_the_kinds_the_contract_has(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    override(database, "t_1", "true")
    with database.begin(SYSTEM) as connection:
        state.forget(connection, "t_2")

    kinds = {
        event["subject"]: [
            kind
            for kind in ("Changed", "Forgotten")
            if faults({"$ref": f"#/components/schemas/{kind}"}, event) == []
        ]
        for event in ask().json or []
    }

    assert kinds == {"t_1": ["Changed"], "t_2": ["Forgotten"], "t_3": ["Changed"]}


def test_a_consumer_without_a_cursor_gets_every_tenant_once_in_its_present_state(
    database: Database, ask: Ask
) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    override(database, "t_2", "true")
    override(database, "t_1", "true")
    override(database, "t_2", "false")

    answer = ask()

    assert subjects(answer) == ["t_3", "t_1", "t_2"]
    assert [event["data"]["version"] for event in answer.json or []] == [1, 2, 3]


def test_a_cursor_is_the_id_of_the_last_change(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    first = ask(limit=2)

    second = ask(ids(first)[-1], limit=2)

    assert (subjects(first), subjects(second)) == (["t_1", "t_2"], ["t_3"])
    assert ask(ids(second)[-1]).json == []


def test_a_batch_has_200_changes_unless_another_number_is_asked_for(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, *(f"t_{number:03}" for number in range(300)))
    refresh(database, *(f"t_{number:03}" for number in range(300, 600)))

    sizes = [len(ask(**query).json or []) for query in ({}, {"limit": 1}, {"limit": 500}, {"timeout": 30})]

    assert sizes == [200, 1, 500, 200]


def test_an_empty_feed_is_an_empty_batch(ask: Ask) -> None:
    assert (ask().status_code, ask().json) == (200, [])


# ---- the end


def test_at_the_end_there_is_a_tag_and_then_304_until_something_changes(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1")
    last = ids(ask())[-1]

    at_the_end = ask(last)
    again = ask(last, etag=at_the_end.headers["ETag"])
    override(database, "t_1", "true")
    changed = ask(last, etag=at_the_end.headers["ETag"])

    assert (at_the_end.status_code, at_the_end.json) == (200, [])
    assert at_the_end.headers["ETag"] == f'W/"{last}"'
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == at_the_end.headers["ETag"]
    assert (changed.status_code, subjects(changed)) == (200, ["t_1"])


def test_what_has_changes_in_it_has_no_tag_so_a_304_never_hides_any(database: Database, ask: Ask) -> None:
    """A consumer that lost its last step still has the tag of what came after it."""
    team(database)
    refresh(database, "t_1", "t_2")
    first, second = ids(ask())

    assert "ETag" not in ask().headers
    assert subjects(ask(first, etag=f'W/"{second}"')) == ["t_2"]
    assert subjects(ask(first, etag="*")) == ["t_2"]


def test_no_cache_may_answer_in_our_place(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1")

    for answer in (ask(), ask(ids(ask())[-1])):
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.headers["Vary"] == "Authorization"


def test_after_a_rewind_what_was_the_end_is_the_beginning(
    database: Database, ask: Ask, make_app: MakeApp
) -> None:
    team(database)
    refresh(database, "t_1", "t_2")
    last = ids(ask())[-1]
    tag = ask(last).headers["ETag"]

    result = say(make_app, "feed", "rewind")

    assert result.exit_code == 0
    answer = ask(last, etag=tag)
    assert subjects(answer) == ["t_1", "t_2"]
    assert ids(answer)[-1] in result.output
    assert ask(ids(answer)[-1]).json == []


# ---- what is refused


@pytest.mark.parametrize(
    "cursor",
    [
        *("0@", "t_1", "0123456789", "-0000000000000001", "0123456789-1", "0123456789-00000000000000001"),
        *("0123456789-000000000000000x", "0123456789-0000000000000001 ", "' OR true --", "é-0000000000000001"),
        *("0123456789-\u0660000000000000001", "01\n3456789-0000000000000001", "x" * 5000),
    ],
)
def test_a_cursor_that_was_never_one_of_ours_is_refused(ask: Ask, cursor: str) -> None:
    answer = ask(cursor)

    assert answer.status_code == 400
    refused = answer.json or {}
    assert (refused["code"], refused["param"]) == ("bad_cursor", "lastEventId")
    assert cursor not in refused["error"]


@pytest.mark.parametrize("limit", ["0", "501", "-1", "1.5", "", "many", "\u0661", "9" * 5000])
def test_a_limit_is_a_number_from_1_to_500(ask: Ask, limit: str) -> None:
    answer = ask(limit=limit)

    assert (answer.status_code, (answer.json or {})["param"]) == (400, "limit")


@pytest.mark.parametrize("timeout", ["30", "-1", "abc", ""])
def test_a_timeout_may_say_anything_and_the_contract_says_so(ask: Ask, timeout: str) -> None:
    said = documented.document()["paths"][CHANGES]["get"]["parameters"]
    [schema] = [one["schema"] for one in said if one["name"] == "timeout"]

    assert ask(timeout=timeout).status_code == 200
    assert documented.faults(schema, timeout) == []


def test_the_largest_position_is_only_beyond_the_end(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1")
    epoch = ids(ask())[0].split("-")[0]

    assert subjects(ask(f"{epoch}-{'9' * 16}")) == ["t_1"]


def test_only_a_service_that_may_read_is_answered(
    client: FlaskClient, database: Database, headers: dict[str, str]
) -> None:
    team(database)
    refresh(database, "t_secret")
    writer = a_consumer(database, "writer", tokens.WRITE)
    unknown = {"Authorization": "Bearer bsk_" + "x" * 43}
    answers = [client.get(CHANGES, headers=given) for given in ({}, unknown, headers, writer)]
    nonsense = [client.get(f"{CHANGES}?lastEventId=x&limit=x", headers=given) for given in ({}, unknown)]

    assert [answer.status_code for answer in answers] == [401, 401, 403, 403]
    assert [answer.status_code for answer in nonsense] == [401, 401]  # who asks comes first
    assert not any("t_secret" in answer.text for answer in answers)


def test_a_user_may_not_ask_even_with_a_service_scope_in_its_token(client: FlaskClient, acme: str) -> None:
    token = a_token(tenant_id=acme, scope=tokens.READ)

    assert client.get(CHANGES, headers={"Authorization": f"Bearer {token}"}).status_code == 403


# ---- how far consumers are


def consumers(database: Database) -> dict[str, tuple[int, int]]:
    """Where each was last seen, and how much it had before it."""
    with database.begin(SYSTEM) as connection:
        return {one.name: (one.position, one.behind) for one in feed.overview(connection).consumers}


def some_time_later(database: Database, seconds: int) -> None:
    rows(
        database,
        "UPDATE feed_consumers SET asked_at = asked_at - :s * interval '1 second' RETURNING 1",
        s=seconds,
    )


def test_of_each_consumer_we_know_how_far_it_has_come(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    first = ids(ask())[0]
    at_first = consumers(database)
    ask(first)
    too_soon = consumers(database)
    some_time_later(database, 6)
    ask(first)

    assert at_first == {"search": (0, 3)}
    assert too_soon == at_first
    assert consumers(database) == {"search": (1, 2)}


def test_who_reads_to_the_end_at_once_has_nothing_before_it(database: Database, ask: Ask) -> None:
    """A burst, and then silence for an hour: what is remembered is where it ended, not where it began."""
    team(database)
    refresh(database, *(f"t_{number}" for number in range(7)))
    cursor = None
    while read := ids(ask(cursor, limit=3)):
        cursor = read[-1]

    assert consumers(database) == {"search": (7, 0)}


def test_the_page_in_hand_goes_out_whoever_has_the_consumers_row(
    database: Database, database_url: str, ask: Ask
) -> None:
    """Somebody notes it at this moment, or an operator's session holds it: nobody waits for the bookkeeping."""
    team(database)
    refresh(database, "t_1")
    last = ids(ask())[-1]
    some_time_later(database, 3600)

    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', true)")
        connection.execute("SELECT FROM feed_consumers FOR UPDATE")
        began = time.monotonic()
        answers = [ask(), ask(last)]
        took = time.monotonic() - began
        connection.rollback()
    ask(last)

    assert [subjects(answer) for answer in answers] == [["t_1"], []]
    assert took < 1.0
    assert consumers(database) == {"search": (1, 0)}


def test_the_page_in_hand_goes_out_though_it_cannot_be_noted(
    database: Database, database_url: str, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    team(database)
    refresh(database, "t_1")
    said = logged(caplog)

    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("LOCK TABLE feed_consumers IN SHARE MODE")  # reading goes on, writing waits
        answer = ask()

    assert (answer.status_code, subjects(answer)) == (200, ["t_1"])
    assert ("feed.unnoted", "search") in [(one["event"], one.get("consumer")) for one in said()]


def test_who_stands_still_is_noted_once_a_minute(database: Database, ask: Ask) -> None:
    team(database)
    refresh(database, "t_1")
    last = ids(ask())[-1]
    some_time_later(database, 6)
    ask(last)
    noted = "SELECT xmin::text FROM feed_consumers"
    before = rows(database, noted)

    some_time_later(database, 50)
    before = rows(database, noted)
    ask(last)
    after_50 = rows(database, noted)
    some_time_later(database, 15)
    ask(last)

    assert after_50 == before
    assert rows(database, "SELECT asked_at > now() - interval '5 s' AS seen FROM feed_consumers") == [
        {"seen": True}
    ]


def test_tokens_of_a_name_are_one_consumer_and_other_names_others(
    client: FlaskClient, database: Database
) -> None:
    team(database)
    refresh(database, "t_1")

    for headers in (a_consumer(database), a_consumer(database), a_consumer(database, "reports")):
        assert client.get(CHANGES, headers=headers).status_code == 200

    assert consumers(database) == {"reports": (0, 1), "search": (0, 1)}


def test_many_requests_at_once_note_a_consumer_once(make_app: MakeApp, database: Database) -> None:
    team(database)
    refresh(database, "t_1")
    app, headers = make_app(), a_consumer(database)

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: app.test_client().get(CHANGES, headers=headers), range(24)))

    assert {answer.status_code for answer in answers} == {200}
    assert consumers(database) == {"search": (0, 1)}


def test_a_consumer_sees_no_other_in_the_database(database: Database, ask: Ask) -> None:
    """Its transaction reads its own row, to know whether there is news of it, and no more."""
    ask()
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "reports", (tokens.READ,), None)
    every = Query("all", "SELECT name FROM feed_consumers", {}, lambda found: found.fetchall())
    _, seen = database.run(STRANGER, tokens.find(token, tokens.READ), every)

    assert seen == []


def test_the_command_says_where_the_feed_ends_and_who_is_how_far_behind(
    database: Database, ask: Ask, make_app: MakeApp
) -> None:
    team(database)
    refresh(database, "t_1", "t_2", "t_3")
    last = ids(ask())[-1]
    some_time_later(database, 6)
    ask(ids(ask())[0])

    told = say(make_app, "feed").output.splitlines()
    as_json = json.loads(say(make_app, "feed", "--json").output)

    assert told[0] == f"The feed ends at {last}."
    assert re.fullmatch(r"search +at +1 +2 behind   last seen \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", told[1])
    assert as_json["head"] == last
    assert [(one["name"], one["position"], one["behind"]) for one in as_json["consumers"]] == [("search", 1, 2)]


def test_a_consumer_is_listed_until_the_last_token_of_its_name_is_revoked(
    client: FlaskClient, database: Database, make_app: MakeApp
) -> None:
    """One whose token has only run out is listed: it would like to read on, and cannot."""
    for name in ("search", "search", "expired"):
        assert client.get(CHANGES, headers=a_consumer(database, name)).status_code == 200
    ended = (
        "UPDATE service_tokens SET expires_at = now() - interval '1 hour' WHERE name = 'expired' RETURNING id"
    )
    assert len(rows(database, ended)) == 1
    [first, _] = rows(database, "SELECT id FROM service_tokens WHERE name = 'search' ORDER BY id")

    say(make_app, "tokens", "revoke", "search", "--id", str(first["id"]))
    one_left = consumers(database)
    say(make_app, "tokens", "revoke", "search")

    assert set(one_left) == {"search", "expired"}
    assert set(consumers(database)) == {"expired"}


def test_how_far_behind_is_counted_up_to_ten_thousand(database: Database, ask: Ask, make_app: MakeApp) -> None:
    some = "SELECT 't_' || n, n FROM generate_series(1, 10002) AS n"
    rows(database, f"INSERT INTO tenant_states (tenant_id, position) {some} RETURNING 1")
    ask()

    assert "more than 10000 behind" in say(make_app, "feed").output
