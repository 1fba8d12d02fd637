"""What the documents print, on all of `make run`: a frontend, a backend, an operator's shell, a test-suite."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask, request
from playwright.sync_api import Locator, Page, expect

from tests.browser.stage import PATIENCE, Actor, Stage
from tests.conftest import ROOT
from tests.deliveries import Json, at_stripe
from tests.recipes import printed, surroundings
from tests.sandbox.conftest import wait_until

PATH = "/settings/billing"
TENANT = "acme"

NO_MORE_THAN_PYTEST = ("-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:xdist")

Shell = Callable[[str], str]


# ---- the frontend

FRONTEND = "\n".join(
    [printed("ask"), printed("buttons"), printed("return page"), printed("gate in the frontend")]
)

PRODUCT = """<!doctype html><title>A product</title><link rel="icon" href="data:,">
{buttons}
<section data-feature="sso">Single sign-on</section>
<section data-feature="teleport">What no plan has</section>
<script type="module">
const session = {{ getToken: async () => {token} }};
{code}
document.body.append("All is shown");
</script>"""


@dataclass(frozen=True)
class Product:
    """A page of somebody's product, on the service's origin, with the code of the documents and no other.

    It is written over what answers at its address: to answer in its place would switch the browser's cache off.
    """

    page: Page
    html: str

    def arrives(self) -> None:
        """The browser is there, and the page has shown what it has to."""
        self.page.wait_for_url(f"**{PATH}*")
        self.page.set_content(self.html)
        expect(self.page.locator("body")).to_contain_text("All is shown", timeout=PATIENCE)
        expect(self.page.locator('[data-feature="teleport"]')).to_be_hidden()
        assert self.page.url.endswith(PATH)  # the rest of the address was taken away

    @property
    def single_sign_on(self) -> Locator:
        return self.page.locator('[data-feature="sso"]')


@pytest.fixture
def product(ada: Actor, stage: Stage) -> Product:
    token = requests.get(f"{stage.service}/demo/session", timeout=10).json()["token"]
    ids = re.findall(r'getElementById\("(\w+)"\)', FRONTEND)
    buttons = "".join(f'<button id="{id}">{id}</button>' for id in ids)
    product = Product(ada.page, PRODUCT.format(buttons=buttons, token=json.dumps(token), code=FRONTEND))
    ada.page.goto(stage.service + PATH)
    product.arrives()
    return product


def test_buttons_lead_to_checkout_and_portal_and_the_page_shows_what_came_of_it(
    product: Product, ada: Actor, stage: Stage
) -> None:
    stage.control.webhooks(drop=1)  # nobody but the page brings the news
    expect(product.single_sign_on).to_be_hidden()

    ada.page.click("#upgrade")
    ada.pays()
    product.arrives()
    expect(product.single_sign_on).to_be_visible()
    assert stage.document()["plan"] == "team_monthly"

    ada.page.goto(stage.service + PATH)
    product.arrives()
    expect(product.single_sign_on).to_be_visible()  # and not what the browser has kept from before

    ada.page.click("#yearly")
    ada.page.get_by_role("button", name="Confirm").click()
    product.arrives()
    assert (stage.document()["plan"], stage.document()["quantity"]) == ("team_yearly", 6)

    ada.page.click("#card")
    ada.page.get_by_label("A card that pays").check()
    ada.page.get_by_role("button", name="Save").click()
    product.arrives()


def test_who_has_a_plan_is_led_from_both_buttons_to_the_portal_and_back(product: Product, ada: Actor) -> None:
    ada.page.click("#upgrade")
    ada.pays()
    product.arrives()
    asked: list[str] = []
    ada.page.on("request", lambda request: asked.append(request.url))

    for button in ("#upgrade", "#manage"):
        ada.page.click(button)
        ada.page.get_by_role("link", name=re.compile("^Return to")).click()
        product.arrives()

    assert len([url for url in asked if url.endswith("/entitlements?sync=true")]) == 2


# ---- a backend


@pytest.fixture
def names(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Python program with the client that is printed, and the token that `make run` prints."""
    token = re.search(r"Bearer (bsk_\w+)", stage.run.printed)
    assert token
    monkeypatch.setenv("BILLING_URL", stage.service)
    monkeypatch.setenv("BILLING_TOKEN", token[1])
    monkeypatch.syspath_prepend(ROOT / "client")
    names: dict[str, Any] = {}
    exec(printed("the client"), names)  # noqa: S102  # ours
    yield names
    names["billing"].close()


class Notes:
    """What the product keeps."""

    def __init__(self) -> None:
        self.kept = ["one", "two"]

    def count(self, _tenant: str) -> int:
        return len(self.kept)

    def add(self, _tenant: str, text: str) -> Json:
        self.kept.append(text)
        return {"notes": self.kept}


def test_a_view_refuses_what_the_plan_has_no_room_for(names: dict[str, Any]) -> None:
    app = Flask("product")
    names |= {"app": app, "request": request, "notes": Notes(), "current_tenant": lambda: TENANT}
    exec(printed("gate in the backend"), names)  # noqa: S102  # ours

    answers = [app.test_client().post("/notes", json={"text": text}) for text in ("three", "four")]

    assert [answer.status_code for answer in answers] == [201, 403]
    assert (answers[1].json or {})["code"] == "limit_reached"
    assert names["billing"].get(TENANT).origin == "fresh"  # it went by the document, and not by the fallback


def test_a_version_in_a_header_is_asked_for_and_nonsense_is_none(names: dict[str, Any]) -> None:
    names |= {"request": request, "tenant": TENANT}
    seen = []
    for header in ("1", "nonsense", ""):
        with Flask("product").test_request_context(headers={"Billing-Version": header}):
            exec(printed("a version somebody has seen"), names)  # noqa: S102  # ours
        seen.append(names["seen"])

    assert seen == [1, 0, 0]


def test_the_feed_keeps_the_clients_copies_warm(names: dict[str, Any]) -> None:
    exec(printed("keep warm"), names)  # noqa: S102  # ours
    wait_until(lambda: names["billing"]._in_step_until > 0)
    before = names["billing"].counters()

    document = names["billing"].get(TENANT)
    names["stop"].set()

    assert document.origin == "fresh"
    assert names["billing"].counters()["changed"] == before["changed"]


# ---- an operator's shell


@pytest.fixture
def shell(whole_stage: Stage) -> Shell:
    """A terminal in the service's directory, with its environment. Addresses are those of this run."""
    local = whole_stage.run.local
    settings = json.loads((local / "running.json").read_text())
    stripe = whole_stage.control.url.replace("127.0.0.1", "localhost")
    here = surroundings(BILLING_LOCAL_DIR=str(local), BILLING_URL=whole_stage.service, **settings)

    def type_in(lines: str) -> str:
        lines = lines.replace("http://localhost:8000", whole_stage.service)
        lines = lines.replace("http://localhost:4242", stripe)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=ROOT,
            env=here,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return type_in


def test_a_tenant_is_set_up_and_read_by_services(shell: Shell) -> None:
    told = json.loads(shell(printed("set up a tenant")))
    read = json.loads(shell(printed("read any tenant")))

    assert (told["name"], told["email"], told["stripe_customer_id"]) == (
        "Acme GmbH",
        "billing@acme.example",
        None,
    )
    assert (read["tenant_id"], read["state"], read["plan"]) == ("t_8f2", "none", "free")


def test_what_is_sold_is_changed_at_stripe_and_the_document_follows(stage: Stage, shell: Shell) -> None:
    look, change = printed("change what is sold").splitlines()
    [free] = [product for product in json.loads(shell(look))["data"] if product["name"] == "Free"]
    version = stage.document()["version"]

    shell(change.replace("prod_…", free["id"]))
    wait_until(lambda: stage.document()["features"]["notes"]["limit"] is None, seconds=20)

    assert stage.document()["version"] == version + 1
    at_stripe(stage.control, "POST", f"products/{free['id']}", **{"metadata[limit.notes]": "3"})
    wait_until(lambda: stage.document()["features"]["notes"]["limit"] == 3, seconds=20)


# ---- somebody's tests


def test_somebodys_test_suite_has_time_cards_and_webhooks_in_hand(
    stage: Stage, shell: Shell, tmp_path: Path
) -> None:
    lines = shell(printed("a token for tests") + "echo $BILLING_TOKEN $BILLING_URL $STRIPE_URL $JWT_SECRET_KEY")
    found = dict(
        zip(("BILLING_TOKEN", "BILLING_URL", "STRIPE_URL", "JWT_SECRET_KEY"), lines.split(), strict=True)
    )
    (tmp_path / "test_product.py").write_text(printed("test your product"))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *NO_MORE_THAN_PYTEST],
        cwd=tmp_path,
        env=surroundings(**found),
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
