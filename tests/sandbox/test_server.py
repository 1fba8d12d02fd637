"""Starting, stopping, keeping data; as a thread and as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from sandbox.server import CannotStart, Control, open_server, running
from tests.sandbox.conftest import client_for, wait_until

ROOT = Path(__file__).parents[2]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """python -m sandbox, gone at the end of the test whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", *arguments],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def control_of(process: subprocess.Popen[str]) -> Control:
    assert process.stdout
    return Control(process.stdout.readline().split()[-1], "sk_test_sandbox")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_process_ends_at_once_though_calls_hang(start: Start, number: int) -> None:
    process = start("--port", "0")
    control = control_of(process)
    control.fault("hang")
    caller = socket.create_connection(("127.0.0.1", int(control.url.split(":")[-1])))
    caller.sendall(b"GET /v1/customers HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_until(lambda: bool(control.requests()))

    began = time.monotonic()
    process.send_signal(number)
    output, complaints = process.communicate(timeout=20)

    assert time.monotonic() - began < 3  # 0.2 s on an idle machine; the call would hang for an hour
    assert (process.returncode, output, complaints) == (0, "", "")
    assert caller.recv(1) == b""
    caller.close()


def test_a_second_signal_does_not_spoil_the_end(start: Start) -> None:
    process = start("--port", "0")
    control_of(process)

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)

    assert process.communicate(timeout=20)[1] == ""


def test_a_busy_port_is_one_sentence(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start("--port", str(port))
        output, complaint = process.communicate(timeout=20)

    assert process.returncode == 1
    assert output == ""
    assert complaint.count("\n") == 1
    assert f"Port {port} is not free" in complaint


def test_a_process_gives_out_the_public_address(start: Start) -> None:
    process = start("--port", "0", "--public-url", "https://stripe.test/", "--key", "sk_test_mine")
    api = client_for(Control(control_of(process).url, "sk_test_mine"))

    session = api.v1.billing_portal.sessions.create({"customer": api.v1.customers.create().id})

    assert session.url.startswith("https://stripe.test/p/session/")


@pytest.mark.parametrize(
    ("environ", "key", "reason"),
    [
        ({"DYNO": "web.1"}, "sk_test_sandbox", "Heroku"),
        ({"STRIPE_SECRET_KEY": "sk_live_1"}, "sk_test_sandbox", "STRIPE_SECRET_KEY"),
        ({"STRIPE_KEY": "rk_live_1"}, "sk_test_sandbox", "STRIPE_KEY"),
        ({}, "sk_live_1", "sk_test_"),
    ],
    ids=["dyno", "live key", "live restricted key", "live key of its own"],
)
def test_it_does_not_start_where_real_money_is_near(environ: dict[str, str], key: str, reason: str) -> None:
    with pytest.raises(CannotStart, match=reason) as refused:
        open_server(port=0, data=None, key=key, environ=environ)

    assert "live_1" not in str(refused.value)


def test_data_survives_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "sandbox.json"
    with running(data=data) as control:
        api = client_for(control)
        customer = api.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k-restart"})
        session = api.v1.billing_portal.sessions.create({"customer": customer.id})

    with running(data=data) as control:
        api = client_for(control)
        again = api.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k-restart"})
        configuration = api.v1.billing_portal.configurations.list({"is_default": True}).data[0]
        page = requests.get(f"{control.url}/p/session/{session.url.split('/')[-1]}")

    assert again.id == customer.id
    assert configuration.id == session.configuration
    assert "Ada" in page.text


def test_the_file_is_whole_whenever_it_is_read(tmp_path: Path) -> None:
    data = tmp_path / "sandbox.json"
    sizes = set()
    with running(data=data) as control:
        api = client_for(control)
        done = threading.Event()

        def create() -> None:
            for _ in range(30):
                api.v1.customers.create()
            done.set()

        writer = threading.Thread(target=create)
        writer.start()
        while not done.is_set():
            sizes.add(len(json.loads(data.read_text())))
        writer.join()

    assert sizes
    assert list(tmp_path.iterdir()) == [data]


def test_the_file_is_for_its_owner_only_whatever_was_there(tmp_path: Path) -> None:
    data = tmp_path / "sandbox.json"
    for left in (data, tmp_path / "sandbox.json.new"):
        left.write_text("{}")
        left.chmod(0o644)

    with running(data=data) as control:
        client_for(control).v1.customers.create()

    assert data.stat().st_mode & 0o777 == 0o600


def test_a_process_signs_with_the_services_first_secret(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "sandbox.json"
    address = ("--port", "0", "--data", str(data), "--webhook-url", "http://127.0.0.1:9/")
    control_of(start(*address, STRIPE_WEBHOOK_SECRET="whsec_new, whsec_old"))

    [endpoint] = json.loads(data.read_text())["webhook_endpoint"].values()
    assert [kept["secret"] for kept in endpoint["secrets"]] == ["whsec_new"]


@pytest.mark.parametrize("content", ["", "[]", "{"], ids=["empty", "a list", "cut off"])
def test_a_file_that_is_not_its_own_is_left_alone(tmp_path: Path, content: str) -> None:
    data = tmp_path / "sandbox.json"
    data.write_text(content)

    with pytest.raises(CannotStart, match="move it away"):
        open_server(port=0, data=data, key="sk_test_sandbox", environ={})

    assert data.read_text() == content


def test_nothing_is_left_running_after_the_block() -> None:
    before = set(threading.enumerate())
    with running() as control:
        idle = socket.create_connection(("127.0.0.1", int(control.url.split(":")[-1])))
        requests.get(control.url)
        began = time.monotonic()
    stopped = time.monotonic()

    assert stopped - began < 3  # the idle caller would stay for ever
    assert set(threading.enumerate()) <= before
    assert idle.recv(1) == b""
    idle.close()


def test_two_sandboxes_share_nothing() -> None:
    with running() as one, running(key="sk_test_other") as other:
        customer = client_for(one).v1.customers.create().id

        answer = requests.get(f"{other.url}/v1/customers/{customer}", auth=(other.key, ""))

    assert answer.status_code == 404


def test_callers_wait_in_line_while_all_come_at_once() -> None:
    server = open_server(port=0, data=None, key="sk_test_sandbox", environ={})
    address = ("127.0.0.1", server.port)

    # nobody accepts: a queue too short would let the connections time out
    callers = [socket.create_connection(address, timeout=0.5) for _ in range(100)]

    for caller in callers:
        caller.close()
    server.server_close()
