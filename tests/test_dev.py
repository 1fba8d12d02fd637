"""`bin/dev run` as a newcomer meets it: started as a program, judged by what it prints, does and leaves behind.

Each test has a directory of its own in place of .local, and ports of its own, so that they run side by side
with each other and with a developer's `make run`.
"""

from __future__ import annotations

import json
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

import psycopg
import pytest
import requests

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
    return subprocess.run(DEV, env=environment(local, **settings), capture_output=True, text=True, timeout=60)


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


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """One run for the tests that only look at it, in a directory too long for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="billing-dev-") as directory:
        with running(Path(directory) / ("long" * 25) / ".local") as run:
            yield run


def test_the_printed_curl_returns_a_portal_address_that_opens(run: Run) -> None:
    answer = run.portal_link()
    page = requests.get(answer.json()["url"], timeout=10)

    assert answer.status_code == 200
    assert page.status_code == 200
    assert run.customer() in page.text


def test_the_demo_is_served_and_signed_in(run: Run) -> None:
    demo = re.findall(r"http://\S+/demo", run.printed)[0]
    token = requests.get(f"{demo}/session", timeout=10).json()["token"]
    bearer = {"Authorization": f"Bearer {token}"}

    document = requests.get(f"{demo.removesuffix('/demo')}/api/entitlements", headers=bearer, timeout=10).json()

    assert "Acme Notes" in requests.get(demo, timeout=10).text
    assert (document["tenant_id"], document["features"]["notes"]) == ("acme", {"enabled": True, "limit": 3})


def test_what_stripe_tells_comes_late_and_is_seen_by_the_demo(run: Run) -> None:
    demo = re.findall(r"http://\S+/demo", run.printed)[0]

    switches = requests.get(f"{run.stripe()}/_sandbox/webhooks", timeout=10).json()

    assert switches["delay"] == 2
    event = Control(run.stripe(), "sk_test_sandbox").happen("invoice.paid", {"id": "in_1", "object": "invoice"})
    wait_until(lambda: event["id"] in requests.get(f"{demo}/facts", timeout=10).text)


def test_an_operators_command_finds_what_runs(run: Run) -> None:
    done = billing(run.local, "reconcile")

    assert done.returncode == 0, done.stderr
    assert "1 customers are asked about" in done.stdout
    assert (run.local / "running.json").stat().st_mode & 0o777 == 0o600


def test_an_operators_command_without_a_run_says_so(local: Path) -> None:
    done = billing(local, "inbox")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Nothing runs here: start `make run` in another terminal first.\n"


def test_the_service_is_held_by_row_level_security(run: Run) -> None:
    address = next(word for word in run.printed.split() if word.startswith("postgresql://"))
    with psycopg.connect(address) as connection:
        role = connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
        ).fetchone()

    assert role == ("billing", False, False)


def test_secrets_are_kept_for_their_owner_only(run: Run) -> None:
    secret = json.loads((run.local / "dev.json").read_text())["STRIPE_WEBHOOK_SECRET"]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]

    assert secret in (run.local / "sandbox.json").read_text()  # it signs with it
    assert not [command for command in commands if secret.encode() in command]
    for file in ("dev.json", "running.json", "sandbox.json"):
        assert (run.local / file).stat().st_mode & 0o777 == 0o600


def test_two_runs_do_not_share_one_directory(run: Run) -> None:
    second = refused(run.local)

    assert second.returncode == 1
    assert second.stderr == (
        f"Another `run` is using {run.local}: stop it, or set BILLING_LOCAL_DIR to another directory.\n"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_an_interruption_ends_everything_within_two_seconds(local: Path, how: signal.Signals) -> None:
    with running(local) as run:
        idle = requests.Session()
        idle.get(re.findall(r"http://\S+", run.printed)[0], timeout=10)  # a connection that is kept alive
        assert len(processes_of(local)) >= 4  # bin/dev, web, sandbox, postgres: the check below can see them

        code, seconds = run.end(how)
        left = processes_of(local)
        idle.close()

    assert (code, left) == (0, [])
    assert seconds < 2 * NOISE


def test_a_second_start_is_quick_and_keeps_its_data_and_mends_what_the_sandbox_forgot(local: Path) -> None:
    with running(local) as first:
        first.end(signal.SIGINT)
    with running(local) as second:
        answer = second.portal_link()
        second.end(signal.SIGINT)
    (local / "sandbox.json").unlink()
    with running(local) as third:
        mended = third.portal_link()

    assert second.customer() == first.customer()
    assert second.seconds < 5 * NOISE
    assert third.customer() != first.customer()
    assert (answer.status_code, mended.status_code) == (200, 200)


def test_a_shop_that_was_left_half_stocked_is_filled_up_and_keeps_what_was_changed(local: Path) -> None:
    with stripe(data=local / "sandbox.json", key="sk_test_sandbox") as account:
        team = at_stripe(account, "POST", "products", name="Team", description="As we left it")
        half = {"currency": "usd", "unit_amount": "1300", "recurring[interval]": "month"}
        at_stripe(account, "POST", "prices", product=team["id"], lookup_key="team_monthly", **half)
        at_stripe(
            account, "POST", "prices", product=team["id"], lookup_key="once", currency="usd", unit_amount="5"
        )
    with running(local) as run:
        shop = Control(run.stripe(), "sk_test_sandbox")
        products = at_stripe(shop, "GET", "products")["data"]
        prices = at_stripe(shop, "GET", "prices")["data"]
        codes = at_stripe(shop, "GET", "promotion_codes")["data"]
        expanded = {"expand[]": "data.features.subscription_update.products"}
        [portal] = at_stripe(shop, "GET", "billing_portal/configurations", **expanded)["data"]
        run.end(signal.SIGINT)

    plans = {price["lookup_key"]: price["unit_amount"] for price in prices}
    offered = portal["features"]["subscription_update"]["products"]
    assert sorted(product["name"] for product in products) == ["Business", "Free", "Team"]
    assert [product["description"] for product in products if product["id"] == team["id"]] == ["As we left it"]
    assert plans == {"once": 5, "team_monthly": 1300, "team_yearly": 12000, "business_monthly": 9900}
    assert sorted(len(product["prices"]) for product in offered) == [1, 2]
    assert [code["code"] for code in codes] == ["WELCOME"]


def test_an_operators_command_finds_what_was_typed_before_the_start(local: Path) -> None:
    with stripe(key="sk_test_mine") as account:
        with running(local, STRIPE_SECRET_KEY=account.key, STRIPE_API_BASE=account.url):
            done = billing(local, "reconcile")

    assert done.returncode == 0, done.stderr


def test_a_key_that_stripe_refuses_is_the_end_of_the_start(local: Path) -> None:
    with stripe(key="sk_test_mine") as account:
        done = refused(local, STRIPE_SECRET_KEY="sk_test_wrong", STRIPE_API_BASE=account.url)

    assert done.returncode == 1
    assert done.stderr == f"{account.url} refuses your test key: correct STRIPE_SECRET_KEY, or unset it.\n"
    assert not local.exists()


def test_a_stripe_that_is_away_is_told_in_the_summary(local: Path) -> None:
    nobody = f"http://127.0.0.1:{a_free_port()}"

    with running(local, STRIPE_SECRET_KEY="sk_test_mine", STRIPE_API_BASE=nobody) as run:
        printed = run.printed

    assert re.search(rf"^  Stripe +{nobody}, which does not answer your test key now", printed, re.MULTILINE)
    assert "/api/subscriptions/checkout" not in printed  # nobody knows what could be bought


def test_the_printed_checkout_is_of_what_the_account_sells(local: Path) -> None:
    with stripe(key="sk_test_mine") as account:
        gold = at_stripe(account, "POST", "products", name="Gold")["id"]
        price = {"currency": "usd", "unit_amount": "100", "recurring[interval]": "month"}
        at_stripe(account, "POST", "prices", product=gold, lookup_key="gold", **price)
        with running(local, STRIPE_SECRET_KEY=account.key, STRIPE_API_BASE=account.url) as run:
            printed = run.printed

    assert """--json '{"plan": "gold"}'""" in printed
    assert re.search(rf"^  Stripe +{account.url}, which takes your test key", printed, re.MULTILINE)


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


def test_with_a_key_of_ones_own_nothing_is_invented_at_stripe_and_its_events_are_brought(local: Path) -> None:
    with stripe(key="sk_test_mine") as account:
        with running(local, STRIPE_SECRET_KEY=account.key, STRIPE_API_BASE=account.url) as run:
            answer = run.portal_link()
            wait_until(lambda: "from now on" in (local / "listen.log").read_text(), seconds=60)
            event = account.happen("invoice.paid", {"id": "in_1", "object": "invoice"})["id"]
            demo = re.findall(r"http://\S+/demo", run.printed)[0]
            wait_until(lambda: event in requests.get(f"{demo}/facts", timeout=10).text, seconds=30)
            called = account.requests()

    assert answer.status_code == 404
    assert "flask billing listen" in run.printed
    assert not [call for call in called if call["method"] != "GET"]
    assert not (local / "sandbox.json").exists()


def test_a_given_database_and_customer_are_used_in_place_of_our_own(local: Path, database_url: str) -> None:
    with stripe(key="sk_test_mine") as account:
        mine = {"STRIPE_KEY": account.key, "STRIPE_API_BASE": account.url, "DATABASE_URL": database_url}
        with running(local, DEMO_CUSTOMER=create_customer(account), **mine) as run:
            answer = run.portal_link()

    assert answer.status_code == 200
    assert not (local / "postgres").exists()
    assert database_url not in run.printed  # it may hold a password


def test_nothing_survives_when_it_is_killed_outright(local: Path) -> None:
    with running(local) as run:
        run.end(signal.SIGKILL)

        wait_until_gone(local)


def test_it_says_who_ended_and_ends_the_rest(local: Path) -> None:
    with running(local) as run:
        sandbox = next(line for line in processes_of(local) if "-m sandbox" in line)
        os.kill(int(sandbox.split()[0]), signal.SIGKILL)

        code = run.process.wait(timeout=20)
        assert run.process.stdout
        last = run.process.stdout.read().splitlines()[-1]

    assert code == 1
    assert last == f"sandbox ended with exit code -9: {local}/sandbox.log"
    assert processes_of(local) == []


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
