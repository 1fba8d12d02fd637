"""Ways out: through a proxy where the environment names one, and to nobody with the wrong certificate."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator

import pytest
from urllib3.exceptions import HTTPError

from billing import deadline, outbound
from billing.config import SettingsError


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it was asked for: it reads one request and hangs up."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            caller, _ = server.accept()
            with caller:
                asked.append(caller.recv(4096).decode())

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", asked
        thread.join()


@pytest.mark.parametrize("scheme", ["http://", ""], ids=["with a scheme", "without"])
def test_the_environments_proxy_is_used_with_its_user(
    monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[str]], scheme: str
) -> None:
    address, asked = proxy
    monkeypatch.setenv("https_proxy", f"{scheme}us%65r:p%40ss@{address}")

    with deadline.within(2), pytest.raises(HTTPError):
        outbound.Http("https://api.stripe.com", connections=1).request("GET", "https://api.stripe.com/v1")

    assert asked[0].startswith("CONNECT api.stripe.com:443 ")
    assert base64.b64encode(b"user:p@ss").decode() in asked[0]


def test_an_address_the_environment_excepts_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[str]]
) -> None:
    """The "proxy" here is the address itself: what arrives is a plain request, and no CONNECT."""
    address, asked = proxy
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    with deadline.within(2), pytest.raises(HTTPError):
        outbound.Http(f"http://{address}", connections=1).request("GET", f"http://{address}/keys")

    assert asked[0].startswith("GET /keys ")


def test_a_proxy_of_another_kind_is_a_fault_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")

    with pytest.raises(SettingsError, match="HTTPS_PROXY"):
        outbound.Http("https://api.stripe.com", connections=1)


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "nowhere.invalid"])
def test_a_host_that_cannot_be_is_unreachable_and_nothing_worse(host: str) -> None:
    with deadline.within(5), pytest.raises(HTTPError):
        outbound.Http(f"https://{host}", connections=1).request("GET", f"https://{host}/")
