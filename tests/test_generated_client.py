"""A client made from the contract by a generator that many use: without a warning, well typed, and of use."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.serving import make_server

from billing import state, tokens
from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import ROOT, MakeApp
from tests.shopping import a_shop
from tests.test_state import refresh
from tests.test_tokens import a_service

GENERATOR = Path(sys.executable).with_name("openapi-python-client")
USE = """
import sys

from made.api.changes import get_changes
from made.api.checkout import open_checkout
from made.api.entitlements import get_entitlements, get_tenant_entitlements, list_plans
from made.api.tenants import put_tenant
from made.client import AuthenticatedClient, Client
from made.models import (
    Changed,
    CheckoutLink,
    CheckoutRequest,
    Entitlements,
    EntitlementsState,
    Error,
    Forgotten,
    OfferedPlans,
    Tenant,
    TenantRequest,
)

address, token, service_token = sys.argv[1:]

plans = list_plans.sync(client=Client(base_url=address))
assert isinstance(plans, OfferedPlans)
amounts: dict[str, int | None] = {offered.plan: offered.amount for offered in plans.plans}
assert amounts["team_monthly"] == 1200

with AuthenticatedClient(base_url=address, token=token) as client:
    link = open_checkout.sync(client=client, body=CheckoutRequest(plan="team_monthly", quantity=3))
    assert isinstance(link, CheckoutLink)
    session: str = link.session_id
    assert session.startswith("cs_")

    told = get_entitlements.sync_detailed(client=client, sync=True)
    document = told.parsed
    assert isinstance(document, Entitlements)
    assert document.state is EntitlementsState.NONE
    assert document.features["sso"].enabled is False
    assert told.headers["Billing-Sync"] == "done"

with AuthenticatedClient(base_url=address, token=service_token) as service:
    batch = get_changes.sync(client=service, limit=2, timeout="5000")
    assert isinstance(batch, list)
    [forgotten] = [change for change in batch if isinstance(change, Forgotten)]
    [changed] = [change for change in batch if isinstance(change, Changed)]
    assert forgotten.subject == "t_gone"
    assert changed.subject == changed.data.tenant_id
    assert changed.time.tzinfo is not None

    last = batch[-1].id
    end = get_changes.sync_detailed(client=service, last_event_id=last)
    assert end.parsed == []
    same = get_changes.sync_detailed(client=service, last_event_id=last, if_none_match=end.headers["ETag"])
    assert (same.status_code, same.parsed) == (304, None)

    tenant = put_tenant.sync("a/b", client=service, body=TenantRequest(name="Acme", email=None))
    assert isinstance(tenant, Tenant)
    assert (tenant.tenant_id, tenant.name, tenant.email) == ("a/b", "Acme", None)
    of_it = get_tenant_entitlements.sync("a/b", client=service)
    assert isinstance(of_it, Entitlements)
    assert (of_it.tenant_id, of_it.version) == ("a/b", tenant.version)

    wrong_cursor = get_changes.sync(client=service, last_event_id="5")
    assert isinstance(wrong_cursor, Error)
    assert (wrong_cursor.code, wrong_cursor.param) == ("bad_cursor", "lastEventId")
    not_a_user = get_entitlements.sync(client=service)
    assert isinstance(not_a_user, Error)
    assert not_a_user.code == "user_token_required"

refused = get_entitlements.sync(client=AuthenticatedClient(base_url=address, token="not.a.token"))
assert isinstance(refused, Error)
sentence: str = refused.error
assert sentence == "Unauthorized"
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """Where `made`, the generated package, and `use.py`, somebody who uses it, stand side by side."""
    (tmp_path / "config.yml").write_text("post_hooks: []\n")  # they would only format it
    (tmp_path / "use.py").write_text(USE)
    document = str(ROOT / "docs" / "openapi.json")
    options = ("--config", "config.yml", "--meta", "none", "--output-path", "made", "--fail-on-warning")
    made = run(GENERATOR, "generate", "--path", document, *options, at=tmp_path)
    assert "Warning" not in made
    return tmp_path


def test_a_generated_client_type_checks_and_is_answered_with_typed_data(
    workshop: Path, make_app: MakeApp, database: Database, sandbox: Control
) -> None:
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "made", "use.py", at=workshop)

    app = make_app()
    shop = a_shop(app, database, sandbox).linked().look()
    token = shop.headers["Authorization"].removeprefix("Bearer ")
    service_token = a_service(database, "crm", *tokens.SCOPES)
    refresh(database, "t_gone")
    with database.begin(SYSTEM) as connection:
        state.forget(connection, "t_gone")
    with served(app) as address:
        run(sys.executable, "-W", "error", "use.py", address, token, service_token, at=workshop)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The app at an address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(*command: str | Path, at: Path) -> str:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
