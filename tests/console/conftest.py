"""Operators before the console, who do with its pages what a browser would do."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from html import unescape
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from billing import operators
from billing.console import access
from billing.db import SYSTEM
from billing.wiring import Billing
from tests.conftest import MakeApp

PASSWORD = "correct horse battery staple"
HASH = (
    "scrypt:32768:8:1$IPD43uqMqlyzFPVD$c6c6d7cfce4af45ead57cb2e8fcca31809e4c33d61dd307792fa5d5b738906ed"
    "d0df2c38db8cd3a7041a2ca9505c528cfdd67a94e4602e520ad3ce916c2b9484"
)
USERS = f"ana:{HASH}:operator,raj:{HASH}:viewer"
HERE = "https://billing.example.com"
HOME = "/billing/console/"


@dataclass(frozen=True)
class Browser:
    """Somebody who sees pages, follows links and sends forms."""

    client: FlaskClient

    def opens(self, path: str, **headers: str) -> TestResponse:
        """An address of the console, its part after /billing/console/."""
        return self.client.get(HOME + path, base_url=HERE, headers=headers)

    def sends(self, path: str, *, seen: str | None = None, **fields: str) -> TestResponse:
        """A form, as it stands on the page `seen`, to an address of the console."""
        token = self.token(seen if seen is not None else path)
        return self.client.post(HOME + path, base_url=HERE, data={"form": token, **fields})

    def token(self, path: str) -> str:
        """What the forms of a page carry."""
        found = re.search(r'name="form" value="(\w+)"', self.opens(path).text)
        assert found, f"{path} has no form"
        return found[1]

    def signs_in(self, name: str, password: str = PASSWORD) -> TestResponse:
        return self.sends("sign-in", name=name, password=password)

    def reads(self, path: str) -> str:
        """What stands on a page, without its markup."""
        answer = self.opens(path)
        assert answer.status_code == 200, answer.text
        return words(answer)


def words(answer: TestResponse) -> str:
    """The text of a page, a blank between any two words."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


@pytest.fixture
def stranger(make_app: MakeApp) -> Browser:
    """Somebody who has found the console's address."""
    return Browser(make_app(BILLING_CONSOLE_USERS=USERS).test_client())


@pytest.fixture
def ana(stranger: Browser) -> Browser:
    """An operator who has signed in."""
    return signed_in(stranger.client.application, "ana")


@pytest.fixture
def raj(stranger: Browser) -> Browser:
    """A viewer who has signed in."""
    return signed_in(stranger.client.application, "raj")


def signed_in(app: Flask, name: str) -> Browser:
    """A browser with a session, as signing in leaves it: to check a password takes longer than most tests."""
    token = secrets.token_urlsafe(32)
    billing: Billing = app.extensions["billing"]
    [user] = [user for user in billing.settings.billing_console_users if user.name == name]
    with billing.db.begin(SYSTEM) as connection:
        operators.open_session(connection, token, name, user.fingerprint)
    browser = Browser(app.test_client())
    browser.client.set_cookie(access.COOKIE, token, domain=urlsplit(HERE).hostname or "")
    return browser
