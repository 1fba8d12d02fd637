"""What `bin/dev run` has started, looked at: one run for all of it, on one worker (tests/conftest.py)."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests

from sandbox.server import Control
from tests.sandbox.conftest import wait_until
from tests.test_dev import Run, billing, refused, running


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
    assert "Compared 1 tenant with Stripe" in done.stdout
    assert (run.local / "running.json").stat().st_mode & 0o777 == 0o600


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
