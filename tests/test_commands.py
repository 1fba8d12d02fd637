"""`flask billing …`: what operators see of the inbox, replay, and link."""

from __future__ import annotations

import json
import logging
import re
import shlex
from datetime import timedelta

import click
import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient

from billing import inbox, state, telemetry
from billing.commands.base import group, logs_aside
from billing.commands.reconcile import ASKS
from billing.db import SYSTEM, Database
from billing.operations import events
from sandbox.server import Control
from tests.conftest import ROOT, SIGNING_SECRET, MakeApp, create_customer, link, rows
from tests.deliveries import (
    a_catalogue,
    a_subscription,
    a_worker,
    an_event,
    at_stripe,
    deliver,
    keep,
    make_due,
    signature,
    subscribe,
    take_in,
    until_quiet,
)

AT = 1_790_000_000
UPDATED = "customer.subscription.updated"
NO_WAY_TO_STRIPE = {"STRIPE_API_BASE": "http://127.0.0.1:9"}


def say(make_app: MakeApp, *words: str, **settings: str) -> Result:
    return make_app(**settings).test_cli_runner().invoke(args=["billing", *words])


def tell(database: Database, customer: str, *, kind: str = UPDATED, at: int = AT, late: int = 0) -> str:
    event = an_event(kind, a_subscription(customer), created=at)
    keep(database, event, late=late)
    return str(event["id"])


def bury(database: Database, event: str, reason: str) -> None:
    with database.begin(SYSTEM) as connection:
        [row] = rows(database, "SELECT id FROM inbox WHERE event_id = :event", event=event)
        inbox.bury(connection, [row["id"]], reason)


def states(database: Database) -> dict[str, str]:
    return {row["event_id"]: row["state"] for row in rows(database, "SELECT event_id, state FROM inbox")}


def test_what_is_logged_meanwhile_does_not_mix_with_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging()
    log = logging.getLogger("billing.of_the_test")

    with logs_aside():
        log.warning("meanwhile")
    aside = capsys.readouterr()
    log.warning("afterwards")

    assert (aside.out, "meanwhile" in aside.err) == ("", True)
    assert "afterwards" in capsys.readouterr().out


# ---- inbox


def test_an_empty_inbox_says_so(make_app: MakeApp) -> None:
    result = say(make_app, "inbox")

    assert (result.exit_code, result.output) == (0, "Nothing is under way.\n")


def test_the_inbox_counts_and_says_how_old_the_oldest_is(
    make_app: MakeApp, database: Database, acme: str, customer: str
) -> None:
    tell(database, customer, late=3600)
    tell(database, "cus_of_nobody")
    take_in(database)
    for _ in range(3):
        tell(database, customer)
    rows(
        database,
        "UPDATE inbox SET received_at = received_at - interval '2 hours' WHERE state = 'due' RETURNING 1",
    )

    lines = say(make_app, "inbox").output.splitlines()

    assert [line.split()[:2] for line in lines] == [["asking", "1"], ["due", "3"], ["waiting", "1"]]
    assert "oldest 2:00:0" in lines[1]


def test_failures_are_grouped_by_reason(make_app: MakeApp, database: Database) -> None:
    for _ in range(2):
        bury(database, tell(database, "cus_1"), "is not JSON")
    bury(database, tell(database, "cus_1", kind="invoice.paid"), "names no customer")

    output = say(make_app, "inbox").output

    assert "buried          2   is not JSON (customer.subscription.updated)" in output
    assert "buried          1   names no customer (invoice.paid)" in output


def test_the_secrets_in_use_are_told_apart_by_their_place_and_not_printed(
    make_app: MakeApp, client: FlaskClient
) -> None:
    deliver(client, an_event(UPDATED, a_subscription("cus_1")))
    secrets = f"whsec_the_new_one_of_two,{SIGNING_SECRET}"

    output = say(make_app, "inbox", STRIPE_WEBHOOK_SECRET=secrets).output

    assert "signed with secret 2 of 2: 1 of the last 1000" in output
    assert "whsec_" not in output


def test_a_secret_that_is_gone_from_the_settings_is_still_noticed(
    make_app: MakeApp, database: Database
) -> None:
    old = "whsec_which_was_rolled_away"
    before = make_app(STRIPE_WEBHOOK_SECRET=old).test_client()
    event = b'{"id": "evt_of_the_old_secret", "type": "customer.updated"}'
    deliver(before, event, Stripe_Signature=signature(event, secret=old))

    assert "signed with a secret that is no longer configured: 1" in say(make_app, "inbox").output


def test_events_are_listed_by_what_is_said_and_shown_one_by_one(
    make_app: MakeApp, database: Database, acme: str, customer: str
) -> None:
    paid = tell(database, customer, kind="invoice.paid")
    other = tell(database, "cus_1")
    bury(database, other, "is not JSON")

    def listed(*words: str) -> list[str]:
        found = json.loads(say(make_app, "inbox", "--json", *words).stdout)
        return [row["event_id"] for row in found["page"]["rows"]]

    assert listed("--tenant", acme) == listed("--type", "invoice.paid") == listed("--state", "due") == [paid]
    assert listed("--customer", "cus_1") == listed("--reason", "is not JSON") == [other]
    assert listed("--since", "2026-01-01") == [other, paid]
    assert listed("--until", "2026-01-01") == []
    [line] = say(make_app, "inbox", "--state", "buried").output.splitlines()
    assert line.split()[1:4] == ["buried", other, UPDATED]
    overview = json.loads(say(make_app, "inbox", "--json").stdout)
    assert [(one["reason"], one["events"]) for one in overview["failures"]] == [("is not JSON", 1)]

    told = say(make_app, "inbox", "show", other).output
    story = json.loads(say(make_app, "inbox", "show", paid, "--json").stdout)
    assert "reason       is not JSON: Its body cannot be read." in told
    assert listed("--after", str(2**62)) == [other, paid]
    assert (story["tenant_id"], story["event"]["state"], story["payload"]["is_masked"]) == (acme, "due", True)
    assert say(make_app, "inbox", "show", "evt_unknown").exit_code == 1


def test_a_payload_is_revealed_for_a_reason_that_stays_in_the_trail(
    make_app: MakeApp, database: Database
) -> None:
    event = an_event("customer.deleted", {"id": "cus_1", "object": "customer", "email": "ada@acme.example"})
    keep(database, event)
    show = ["inbox", "show", event["id"]]

    assert "ada@" not in say(make_app, *show).output
    assert say(make_app, *show, "--reveal").exit_code == 2
    assert "ada@acme.example" in say(make_app, *show, "--reveal", "--reason", "a dispute").output
    assert trail(database) == [("command", "payload.reveal", event["id"], "a dispute")]


def test_events_are_ignored_by_id_or_as_described_and_never_all_that_is_due(
    make_app: MakeApp, database: Database
) -> None:
    first, second, due = (tell(database, "cus_1") for _ in range(3))
    for event in (first, second):
        bury(database, event, "is not JSON")
    because = ["--reason", "a test of theirs"]

    assert say(make_app, "inbox", "ignore", first).exit_code == 2  # no reason
    for words in ([], ["--type", UPDATED], ["--state", "due"], [first, "--state", "buried"]):
        assert say(make_app, "inbox", "ignore", *words, *because).exit_code == 2, words
    assert states(database) == {first: "buried", second: "buried", due: "due"}
    by_id = say(make_app, "inbox", "ignore", first, *because)
    described = say(
        make_app, *("inbox", "ignore", "--state", "buried", "--reason-is", "is not JSON", "--json"), *because
    )

    assert (by_id.output, json.loads(described.stdout)) == (
        "1 event is ignored.\n",
        {"ignored": 1, "left": 0},
    )
    assert states(database) == {first: "settled", second: "settled", due: "due"}
    deeds = [("command", "event.ignore", event, "a test of theirs") for event in (first, second)]
    assert trail(database) == deeds


def trail(database: Database) -> list[tuple[str, ...]]:
    found = rows(database, "SELECT actor, action, stripe_object, reason FROM audit_log ORDER BY id")
    return [tuple(row.values()) for row in found]


# ---- what is printed can be done

SAID = re.compile(r"flask (billing .+?)(?=[`#\n;]| adds |$)")
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def test_every_command_that_a_cure_or_the_manual_names_can_be_said_so() -> None:
    """Each is read as click reads it, and not done."""
    cures = [ask.format(tenant="t_20d", customer="cus_1") for ask in ASKS.values()]
    said = [words for text in (OPERATIONS, *cures) for words in SAID.findall(text)]
    with CliRunner().isolation(input="y\n" * 99):  # some ask
        refused = {words: problem for words in said if (problem := problem_of(words))}

    assert len(said) > 30
    assert refused == {}


def problem_of(words: str) -> str | None:
    """What click would find wrong with a command, short of doing it."""
    line = shlex.split(words.strip().rstrip(".,:)"))[1:]
    command: click.Command = group
    name: str | None = "billing"
    try:
        while True:
            context = command.make_context(name, list(line))
            rest = [*context._protected_args, *context.args]
            if not isinstance(command, click.Group) or not rest:
                return None
            name, found, line = command.resolve_command(context, rest)
            assert found  # or it has been refused
            command = found
    except click.exceptions.Exit:
        return None
    except click.ClickException as e:
        return str(e.message)


def test_what_changes_something_can_be_said_for_programs(make_app: MakeApp, database: Database) -> None:
    link(database, "t_acme", None)
    why = ("--reason", "a test")

    unsold = say(make_app, "overrides", "set", "t_acme", "beta", "true", *why)
    forgotten = say(make_app, "tenants", "forget", "t_acme", "--yes", "--json", *why)
    rewound = say(make_app, "feed", "rewind", "--json")

    assert (unsold.exit_code, "--unsold" in unsold.output) == (1, True)
    assert json.loads(forgotten.stdout) == {"tenant_id": "t_acme", "forgotten": True}
    assert list(json.loads(rewound.stdout)) == ["head"]


# ---- replay


def test_a_replay_without_a_choice_is_refused(make_app: MakeApp, database: Database) -> None:
    event = tell(database, "cus_1")
    bury(database, event, "no reason")

    result = say(make_app, "replay")

    assert result.exit_code == 2
    assert states(database) == {event: "buried"}


@pytest.fixture
def two_days(database: Database) -> dict[str, str]:
    """Four settled events by what sets them apart: type, tenant, day, failure."""
    link(database, "t_acme", "cus_acme")
    events = {
        "type": tell(database, "cus_1", kind="invoice.paid"),
        "tenant": tell(database, "cus_acme"),
        "old": tell(database, "cus_1"),
        "failed": tell(database, "cus_1"),
    }
    rows(database, "UPDATE inbox SET state = 'settled', settled_at = now() RETURNING 1")
    rows(
        database,
        "UPDATE inbox SET received_at = '2026-01-02T03:00Z' WHERE event_id = :event RETURNING 1",
        event=events["old"],
    )
    bury(database, events["failed"], "no reason")
    return events


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--type", "invoice.paid"], {"type"}),
        (["--tenant", "t_acme"], {"tenant"}),
        (["--until", "2026-01-02T03:00:01"], {"old"}),
        (["--since", "2026-01-02T03:00:01"], {"type", "tenant", "failed"}),
        (["--since", "2026-01-02T03:00:00", "--until", "2026-01-02T03:00:01"], {"old"}),
        (["--until", "2026-01-02T03:00:00"], set()),
        (["--failed"], {"failed"}),
        (["--failed", "--type", "invoice.paid"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_replay_takes_what_fits_everything_that_is_said(
    make_app: MakeApp, database: Database, two_days: dict[str, str], words: list[str], chosen: set[str]
) -> None:
    result = say(make_app, "replay", *words)

    assert result.output == f"{len(chosen)} {'event is' if len(chosen) == 1 else 'events are'} due again.\n"
    assert {name for name, event in two_days.items() if states(database)[event] == "due"} == chosen


def test_a_replay_by_id_takes_those_alone(
    make_app: MakeApp, database: Database, two_days: dict[str, str]
) -> None:
    replayed = say(make_app, "replay", two_days["old"], two_days["failed"], "evt_unknown")
    ignored = say(make_app, "inbox", "ignore", "evt_unknown", "--reason", "a test")

    assert (replayed.exit_code, ignored.exit_code) == (1, 1)
    assert replayed.stdout == "2 events are due again.\n"
    assert "Not here: evt_unknown." in replayed.stderr

    due = {name for name, event in two_days.items() if states(database)[event] == "due"}
    assert due == {"old", "failed"}
    deeds = {("command", "event.retry", two_days[name], "by command") for name in due}
    assert set(trail(database)) == deeds


def test_a_tenant_without_a_customer_has_nothing_to_replay(make_app: MakeApp, database: Database) -> None:
    result = say(make_app, "replay", "--tenant", "t_nobody")

    assert (result.exit_code, result.output) == (1, "Error: This tenant has no Stripe customer.\n")


def test_a_replay_leaves_alone_what_is_under_way(
    make_app: MakeApp, database: Database, acme: str, customer: str
) -> None:
    asking = tell(database, customer, late=3600)
    take_in(database)
    due = tell(database, customer)

    result = say(make_app, "replay", asking, due, "--json")

    assert json.loads(result.stdout) == {"due": 0, "left": 0}
    assert states(database) == {asking: "asking", due: "due"}


def test_what_was_buried_is_settled_after_a_replay(
    make_app: MakeApp, environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    """Its events may be beyond reading: Stripe is asked about their customers, too."""
    id = subscribe(sandbox, customer)["id"]
    event = tell(database, customer)
    bury(database, event, "no reason")

    say(make_app, "replay", "--failed")
    with a_worker(environ) as worker:
        until_quiet(worker)
        make_due(database)  # where the answer came first, the event is looked at once more
        until_quiet(worker)

    assert states(database)[event] == "settled"
    held = rows(database, "SELECT status FROM subscriptions WHERE stripe_subscription_id = :id", id=id)
    assert held == [{"status": "active"}]


def test_a_worker_that_still_holds_a_replayed_event_can_no_longer_settle_it(
    make_app: MakeApp, database: Database, acme: str, customer: str
) -> None:
    event = tell(database, customer)
    with database.begin(SYSTEM) as connection:
        claimed = inbox.claim(connection, most=1, lease=timedelta(seconds=20))
    bury(database, event, "by hand")
    say(make_app, "replay", event)

    with database.begin(SYSTEM) as connection:
        assert inbox.still_mine(connection, claimed) == set()


def test_a_replay_goes_through_the_whole_inbox_piece_by_piece(
    make_app: MakeApp, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 7)
    for _ in range(20):
        bury(database, tell(database, "cus_1"), "no reason")

    assert say(make_app, "replay", "--failed").output == "20 events are due again.\n"


# ---- reconcile


def test_reconciling_compares_everybody_and_says_what_it_mended(
    make_app: MakeApp, environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    """As text and as JSON, and first without doing anything. Anything found ends it with 1."""
    subscribe(sandbox, customer)
    a_catalogue(database)
    first = say(make_app, "reconcile")
    with a_worker(environ) as worker:
        until_quiet(worker)
    rows(database, "UPDATE subscriptions SET status = 'unpaid', facts = 'otherwise' RETURNING 1")
    with database.begin(SYSTEM) as connection:
        state.refresh(connection, [acme], cause="time")
    link(database, "t_lost", "cus_of_another_account")

    dry = say(make_app, "reconcile", "--dry-run", "--json")
    told = say(make_app, "reconcile")
    again = say(make_app, "reconcile", "--json")

    assert first.exit_code == 0
    assert re.search(
        r"^Compared 1 tenant with Stripe in \d+ s\n0 fixed, 0 need you$", first.output, re.MULTILINE
    )
    assert [result.exit_code for result in (dry, told, again)] == [1, 1, 1]
    imagined = {one["tenant_id"]: one for one in json.loads(dry.output)["findings"]}
    assert (imagined[acme]["kind"], imagined[acme]["mended_at"]) == ("changed", None)
    before, after = imagined[acme]["version_before"], imagined[acme]["version_after"]
    [mended] = [line for line in told.output.splitlines() if acme in line]
    assert mended.split(maxsplit=1)[1].startswith("differs: state suspended → active (no event told)")
    assert mended.endswith(f"fixed (v{before} → v{after})")
    assert "needs you: look at cus_of_another_account in Stripe" in told.output
    assert "1 not answered by Stripe" in told.output
    assert told.output.endswith("1 fixed, 1 needs you\n")
    assert [one["tenant_id"] for one in json.loads(again.output)["findings"]] == ["t_lost"]


def test_reconciling_fetches_what_was_dropped_on_the_way(
    make_app: MakeApp, environ: dict[str, str], database: Database, acme: str, customer: str, sandbox: Control
) -> None:
    endpoint = {"url": "http://127.0.0.1:9/webhooks/stripe", "enabled_events[0]": "*"}
    at_stripe(sandbox, "POST", "webhook_endpoints", **endpoint)
    sandbox.webhooks(drop=1.0)
    id = subscribe(sandbox, customer)["id"]

    output = say(make_app, "reconcile").output

    assert "had not come: 0" not in output
    assert rows(database, "SELECT stripe_subscription_id AS id, status FROM subscriptions") == [
        {"id": id, "status": "active"}
    ]


def test_without_stripe_reconciling_says_so(make_app: MakeApp, database: Database, acme: str) -> None:
    result = say(make_app, "reconcile", **NO_WAY_TO_STRIPE)

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output


# ---- tenants link


def test_linking_brings_the_tenant_up_to_date(
    make_app: MakeApp, database: Database, customer: str, sandbox: Control
) -> None:
    subscribe(sandbox, customer)
    tell(database, customer)
    take_in(database)
    sandbox.fault("429", method="POST", path=f"/v1/customers/{customer}", times=None)

    result = say(make_app, "tenants", "link", "t_acme", customer)
    sandbox.clear()

    assert result.exit_code == 0
    assert result.output == (
        f"t_acme is linked to {customer} and is up to date; 1 event had waited for it.\n"
        "Stripe's customer does not say so yet; a worker goes on telling it.\n"
    )
    assert rows(database, "SELECT status FROM subscriptions") == [{"status": "active"}]
    assert rows(database, "SELECT tenant_id, linked_by FROM tenant_links") == [
        {"tenant_id": "t_acme", "linked_by": "command"}
    ]


def test_a_customer_of_another_tenant_is_refused(
    make_app: MakeApp, database: Database, acme: str, customer: str
) -> None:
    result = say(make_app, "tenants", "link", "t_globex", customer, "--replace")

    assert result.exit_code == 1
    assert "linked to another tenant" in result.output
    assert rows(database, "SELECT tenant_id FROM tenant_config") == [{"tenant_id": acme}]


def test_a_tenants_customer_is_replaced_on_request_only(
    make_app: MakeApp, database: Database, acme: str, sandbox: Control
) -> None:
    new = create_customer(sandbox)

    refused = say(make_app, "tenants", "link", acme, new)
    done = say(make_app, "tenants", "link", acme, new, "--replace")

    assert (refused.exit_code, done.exit_code) == (1, 0)
    assert "--replace" in refused.output
    assert rows(database, "SELECT stripe_customer_id AS c FROM tenant_config") == [{"c": new}]


@pytest.mark.parametrize("deleted", [False, True], ids=["unknown", "deleted"])
def test_a_customer_stripe_does_not_know_is_refused(
    make_app: MakeApp, database: Database, customer: str, sandbox: Control, deleted: bool
) -> None:
    if deleted:
        at_stripe(sandbox, "DELETE", f"customers/{customer}")

    result = say(make_app, "tenants", "link", "t_acme", customer if deleted else "cus_unknown")

    assert result.exit_code == 1
    assert "Stripe knows no such customer" in result.output
    assert rows(database, "SELECT FROM tenant_config") == []


def test_an_id_of_something_else_is_refused_without_asking(make_app: MakeApp, database: Database) -> None:
    result = say(make_app, "tenants", "link", "t_acme", "sub_1", **NO_WAY_TO_STRIPE)

    assert result.exit_code == 2


def test_without_stripe_nobody_is_linked_and_the_operator_is_told(
    make_app: MakeApp, database: Database, customer: str
) -> None:
    result = say(make_app, "tenants", "link", "t_acme", customer, **NO_WAY_TO_STRIPE)

    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert rows(database, "SELECT FROM tenant_config") == []
