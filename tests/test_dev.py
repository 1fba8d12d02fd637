"""`bin/dev run` as a newcomer meets it: started as a program, judged by what it prints, does and leaves behind.

Each test has a directory of its own in place of .local, and ports of its own, so that they run side by side
with each other and with a developer's `make run`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from billing.db import Database
from sandbox.server import Control
from sandbox.server import running as stripe
from tests.conftest import create_customer
from tests.deliveries import at_stripe
from tests.sandbox.conftest import wait_until

ROOT = Path(__file__).parent.parent
DEV = [sys.executable, str(ROOT / "bin" / "dev"), "run"]
NOISE = 4  # how much slower than promised a busy machine may be before a test says so


@dataclass(frozen=True)
class Run:
    """A `bin/dev run` that said it is ready."""

    process: subprocess.Popen[str]
    local: Path
    printed: str
    seconds: float

    def portal_link(self) -> requests.Response:
        """Does what the printed curl does."""
        words = shlex.split(next(line for line in self.printed.splitlines() if line.strip().startswith("curl")))
        name, _, value = words[words.index("-H") + 1].partition(": ")
        url = next(word for word in words if word.startswith("http"))
        return requests.request(words[words.index("-X") + 1], url, headers={name: value}, timeout=10)

    def stripe(self) -> str:
        """Where the pretend Stripe is."""
        found = re.search(r"^  Stripe +(http\S+)", self.printed, re.MULTILINE)
        assert found
        return found[1]

    def customer(self) -> str:
        found = re.search(r"customer (cus_\w+)", self.printed)
        assert found
        return found[1]

    def end(self, how: signal.Signals) -> tuple[int, float]:
        """Its exit code, and how long it took to end."""
        began = time.monotonic()
        self.process.send_signal(how)
        code = self.process.wait(timeout=20)
        return code, time.monotonic() - began


@contextmanager
def running(local: Path, **settings: str) -> Iterator[Run]:
    began = time.monotonic()
    process = subprocess.Popen(
        DEV, env=environment(local, **settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    with process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        try:
            assert lines[-1].startswith("Ctrl-C"), "".join(lines)
            yield Run(process, local, "".join(lines), time.monotonic() - began)
        finally:
            process.terminate()


def refused(local: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(DEV, env=environment(local, **settings), capture_output=True, text=True, timeout=100)


def billing(local: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What somebody says in another terminal."""
    command = [*DEV[:2], "billing", *words]
    return subprocess.run(command, env=environment(local), capture_output=True, text=True, timeout=60)


def environment(local: Path, **settings: str) -> dict[str, str]:
    free = {"PORT": str(a_free_port()), "SANDBOX_PORT": str(a_free_port())}
    return {"PATH": os.environ["PATH"], "BILLING_LOCAL_DIR": str(local), **free, **settings}


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(local: Path) -> list[str]:
    """What still runs for this directory: its name is in the environment or the command line of every one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if os.fsencode(local) in about:
            found.append(f"{process.name} {(process / 'cmdline').read_bytes().replace(bytes(1), b' ')!r}")
    return found


def wait_until_gone(local: Path) -> None:
    deadline = time.monotonic() + 20
    while left := processes_of(local):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def local() -> Iterator[Path]:
    """Not in tmp_path, which pytest keeps closing to the account that PostgreSQL runs as under root."""
    with tempfile.TemporaryDirectory(prefix="billing-dev-") as directory:
        yield Path(directory) / ".local"


@pytest.mark.timeout(300)  # each of its starts may take a minute on a very busy machine
def test_a_run_ends_when_told_to_starts_again_with_its_data_and_leaves_nothing_when_killed(local: Path) -> None:
    """The life of one directory: three starts, and three ends."""
    half_stocked(local)
    with running(local) as first:
        shop_is_filled_up(first)
        ends_within_two_seconds(first, signal.SIGINT)

    with running(local) as second:
        assert second.portal_link().status_code == 200
        ends_within_two_seconds(second, signal.SIGTERM)

    assert second.customer() == first.customer()
    assert "a token for the feed" not in second.printed  # nothing is made twice
    assert second.seconds < max(5 * NOISE, 2 * first.seconds)
    (local / "sandbox.json").unlink()  # the pretend Stripe has forgotten what the service remembers
    with running(local) as third:
        assert third.portal_link().status_code == 200
        assert third.customer() != first.customer()
        third.end(signal.SIGKILL)
        wait_until_gone(local)


TEAM = {"name": "Team", "description": "As we left it"}


def half_stocked(local: Path) -> None:
    """A shop that was left in the middle, or comes from an older release."""
    with stripe(data=local / "sandbox.json", key="sk_test_sandbox") as account:
        team = at_stripe(account, "POST", "products", **TEAM)["id"]
        half = {"currency": "usd", "unit_amount": "1300", "recurring[interval]": "month"}
        at_stripe(account, "POST", "prices", product=team, lookup_key="team_monthly", **half)
        at_stripe(account, "POST", "prices", product=team, lookup_key="once", currency="usd", unit_amount="5")


def shop_is_filled_up(run: Run) -> None:
    """What was missing is there, and what was changed is as it was."""
    shop = Control(run.stripe(), "sk_test_sandbox")
    products = at_stripe(shop, "GET", "products")["data"]
    prices = at_stripe(shop, "GET", "prices")["data"]
    codes = at_stripe(shop, "GET", "promotion_codes")["data"]
    expanded = {"expand[]": "data.features.subscription_update.products"}
    [portal] = at_stripe(shop, "GET", "billing_portal/configurations", **expanded)["data"]

    plans = {price["lookup_key"]: price["unit_amount"] for price in prices}
    offered = portal["features"]["subscription_update"]["products"]
    assert sorted(product["name"] for product in products) == ["Business", "Free", "Team"]
    assert TEAM["description"] in [product["description"] for product in products]
    assert plans == {"once": 5, "team_monthly": 1300, "team_yearly": 12000, "business_monthly": 9900}
    assert sorted(len(product["prices"]) for product in offered) == [1, 2]
    assert [code["code"] for code in codes] == ["WELCOME"]


def ends_within_two_seconds(run: Run, how: signal.Signals) -> None:
    """All of it, though a connection is kept alive."""
    idle = requests.Session()
    idle.get(re.findall(r"http://\S+", run.printed)[0], timeout=10)
    assert len(processes_of(run.local)) >= 4  # bin/dev, web, sandbox, postgres: the check below can see them

    code, seconds = run.end(how)
    left = processes_of(run.local)
    idle.close()

    assert (code, left) == (0, [])
    assert seconds < 2 * NOISE


@pytest.mark.timeout(300)  # each of its starts may take a minute on a very busy machine
def test_with_a_key_of_ones_own_a_run_goes_by_what_that_account_has_and_lives_by_all_it_started(
    local: Path,
) -> None:
    with stripe(key="sk_test_mine") as account:
        sells_gold(account)
        account.clear()
        with running(local, STRIPE_SECRET_KEY=account.key, STRIPE_API_BASE=account.url) as run:
            assert re.search(rf"^  Stripe +{account.url}, which takes your test key", run.printed, re.MULTILINE)
            assert """--json '{"plan": "gold"}'""" in run.printed
            assert "flask billing listen" in run.printed
            brings_events(run, account)
            nothing_is_invented(run, account)
            command = billing(local, "reconcile")  # finds what was typed before the start
            assert command.returncode == 0, command.stderr
            says_who_ended_and_ends_the_rest(run)


def sells_gold(account: Control) -> None:
    gold = at_stripe(account, "POST", "products", name="Gold")["id"]
    price = {"currency": "usd", "unit_amount": "100", "recurring[interval]": "month"}
    at_stripe(account, "POST", "prices", product=gold, lookup_key="gold", **price)


def brings_events(run: Run, account: Control) -> None:
    """To the service, and past the demo."""
    wait_until(lambda: "from now on" in (run.local / "listen.log").read_text(), seconds=60)
    event = account.happen("invoice.paid", {"id": "in_1", "object": "invoice"})["id"]
    demo = re.findall(r"http://\S+/demo", run.printed)[0]
    wait_until(lambda: event in requests.get(f"{demo}/facts", timeout=10).text, seconds=30)


def nothing_is_invented(run: Run, account: Control) -> None:
    """At somebody's own Stripe we only look."""
    assert run.portal_link().status_code == 404
    assert not [call for call in account.requests() if call["method"] != "GET"]
    assert not (run.local / "sandbox.json").exists()


def says_who_ended_and_ends_the_rest(run: Run) -> None:
    worker = next(line for line in processes_of(run.local) if "-m billing.worker" in line)
    os.kill(int(worker.split()[0]), signal.SIGKILL)

    code = run.process.wait(timeout=20)
    assert run.process.stdout
    last = run.process.stdout.read().splitlines()[-1]

    assert code == 1
    assert last == f"worker ended with exit code -9: {run.local}/worker.log"
    assert processes_of(run.local) == []


def test_a_key_that_stripe_refuses_is_the_end_of_the_start(local: Path) -> None:
    with stripe(key="sk_test_mine") as account:
        done = refused(local, STRIPE_SECRET_KEY="sk_test_wrong", STRIPE_API_BASE=account.url)

    assert done.returncode == 1
    assert done.stderr == f"{account.url} refuses your test key: correct STRIPE_SECRET_KEY, or unset it.\n"
    assert not local.exists()


def test_why_there_is_no_token_for_the_feed_is_said(local: Path, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE service_tokens ADD CONSTRAINT full_up CHECK (false) NOT VALID")
        try:
            with stripe(key="sk_test_mine") as account:
                mine = {"STRIPE_SECRET_KEY": account.key, "STRIPE_API_BASE": account.url}
                done = refused(local, DATABASE_URL=database_url, **mine)
        finally:
            connection.execute("ALTER TABLE service_tokens DROP CONSTRAINT full_up")

    assert done.returncode == 1
    assert done.stderr.startswith("No token for the feed could be made: ")
    assert "full_up" in done.stderr


def test_a_given_database_and_customer_are_used_and_a_stripe_that_is_away_is_told_in_the_summary(
    local: Path, database_url: str, database: Database
) -> None:
    place: Any = {"port": a_free_port(), "data": local.parent / "account.json", "key": "sk_test_mine"}
    with stripe(**place) as account:
        mine = {"STRIPE_KEY": account.key, "STRIPE_API_BASE": account.url, "DATABASE_URL": database_url}
        mine["DEMO_CUSTOMER"] = create_customer(account)
    with running(local, **mine) as run:
        with stripe(**place):
            answer = run.portal_link()

    is_away = rf"^  Stripe +{mine['STRIPE_API_BASE']}, which does not answer your test key now"
    assert re.search(is_away, run.printed, re.MULTILINE)
    assert "/api/subscriptions/checkout" not in run.printed  # nobody knows what could be bought
    assert answer.status_code == 200  # once it is back
    assert not (local / "postgres").exists()
    assert database_url not in run.printed  # it may hold a password


def test_an_operators_command_without_a_run_says_so(local: Path) -> None:
    done = billing(local, "inbox")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Nothing runs here: start `make run` in another terminal first.\n"


@pytest.mark.parametrize("variable", ["PORT", "SANDBOX_PORT"])
def test_a_busy_port_is_one_sentence_that_names_the_way_out(local: Path, variable: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])

        done = refused(local, **{variable: port})

    assert done.returncode == 1
    assert done.stderr == (
        f"Port {port} is not free (address already in use): stop what uses it,"
        f" or choose another with {variable}=….\n"
    )
    assert not local.exists()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"STRIPE_SECRET_KEY": "sk_live_x"}, "live key"),
        ({"STRIPE_KEY": "rk_live_x"}, "live key"),
        ({"DYNO": "web.1"}, "dyno"),
        ({"PORT": "http"}, "PORT must be a port"),
        ({"PORT": "65536"}, "PORT must be a port"),
        ({"DATABASE_URL": "postgres://u:p@db.example.com/billing"}, "DATABASE_URL names a database on another"),
        (
            {"STRIPE_SECRET_KEY": "sk_test_mine", "DATABASE_URL": "postgres://u:p@db.example.com/billing"},
            "DATABASE_URL names a database on another",
        ),
    ],
    ids=["live key", "live restricted key", "dyno", "no number", "no port", "far database", "far, and own key"],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(
    local: Path, settings: dict[str, str], word: str
) -> None:
    done = refused(local, **settings)

    assert done.returncode == 1
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert not local.exists()
