"""The real SDK in front of the sandbox, and plain HTTP where the SDK hides too much."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import stripe

from sandbox.server import Control

stripe.enable_telemetry = False

Raw = Callable[..., requests.Response]


def client_for(sandbox: Control, **options: Any) -> stripe.StripeClient:
    chosen = {"base_addresses": {"api": sandbox.url}, "max_network_retries": 0, **options}
    return stripe.StripeClient(sandbox.key, **chosen)


@pytest.fixture
def http_client() -> Iterator[stripe.RequestsClient]:
    client = stripe.RequestsClient(timeout=10)
    yield client
    client.close()  # type: ignore[no-untyped-call]  # the SDK left it so


@pytest.fixture
def api(sandbox: Control, http_client: stripe.RequestsClient) -> stripe.StripeClient:
    return client_for(sandbox, http_client=http_client)


@pytest.fixture
def raw(sandbox: Control) -> Iterator[Raw]:
    """A request as sent and an answer as received."""
    with requests.Session() as session:

        def send(method: str, path: str, *, key: str = sandbox.key, **options: Any) -> requests.Response:
            headers = {"Authorization": f"Bearer {key}", **options.pop("headers", {})}
            return session.request(method, sandbox.url + path, headers=headers, timeout=10, **options)

        yield send


def wait_until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """For what another thread or process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
