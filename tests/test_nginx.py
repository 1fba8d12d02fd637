"""deploy/nginx.conf, run by nginx: before the service, and before an upstream that says what reached it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from billing import tokens
from billing.db import SYSTEM, Database
from tests.conftest import rows

ROOT = Path(__file__).parent.parent
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or ""
SPOOFED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/evil",
    "X_Forwarded_For": "203.0.113.9",
    "Forwarded": "for=203.0.113.9;proto=https",
    "X-Request-Id": "chosen-by-the-caller",
}

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not installed")

Before = Callable[[int], str]


@pytest.fixture
def nginx_before(tmp_path: Path) -> Iterator[Before]:
    """Puts nginx before the upstream at a port; returns nginx's own address."""
    with ExitStack() as running:

        def before(upstream: int) -> str:
            port = a_free_port()
            configuration = tmp_path / f"{port}.conf"
            configuration.write_text(adapted(tmp_path, port, upstream))
            owner = " user root;" if os.geteuid() == 0 else ""  # else its workers may not enter tmp_path
            extra = f"daemon off; pid {tmp_path}/{port}.pid;{owner}"
            running.enter_context(
                program(port, NGINX, "-p", str(tmp_path), "-c", str(configuration), "-g", extra)
            )
            return f"http://127.0.0.1:{port}"

        yield before


def adapted(scratch: Path, port: int, upstream: int) -> str:
    """The shipped file with ports and directories of this test, and with less patience."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    directories = "".join(
        f"{kind}_temp_path {scratch}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    for shipped, ours in {
        "http {\n": f"http {{ {directories}\n",
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "proxy_read_timeout 28s;": "proxy_read_timeout 2s;",
    }.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, ours)
    return text


@contextmanager
def program(port: int, *command: str, environ: dict[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=ROOT, env=environ)
    try:
        wait_until_it_listens(process, port)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args!r} ended"
            assert time.monotonic() < deadline, f"{process.args!r} does not listen"
            time.sleep(0.02)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mirror(BaseHTTPRequestHandler):
    """Answers with the headers and the body that reached it, as it got them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.path == "/silent":
            self.rfile.read()  # until nginx gives up and closes
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = json.dumps({"headers": self.headers.items(), "body": body.hex()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def mirror(nginx_before: Before) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield nginx_before(server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture
def service(nginx_before: Before, environ: dict[str, str]) -> Iterator[str]:
    """The service as it is deployed: gunicorn, told of one proxy."""
    port = a_free_port()
    settings = {"PATH": os.environ["PATH"], "PORT": str(port), "WEB_CONCURRENCY": "1", "TRUSTED_PROXIES": "1"}
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]
    with program(port, *gunicorn, environ={**environ, **settings}):
        yield nginx_before(port)


def is_json_error(answer: requests.Response, status: int) -> bool:
    return (
        answer.status_code == status
        and answer.headers["Content-Type"] == "application/json"
        and list(answer.json()) == ["error"]
        and "nginx/" not in answer.headers["Server"]
    )


def raw(address: str, request: bytes, *, ends: bool = True) -> bytes:
    """The answer to bytes that no well-behaved client sends."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(request)
        if ends:
            line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65536), b""))


def test_a_portal_link_comes_through(service: str, headers: dict[str, str]) -> None:
    answer = requests.post(f"{service}/api/subscriptions/portal", headers=headers)

    assert answer.status_code == 200
    assert list(answer.json()) == ["url"]


def test_the_service_records_the_caller_nginx_saw_and_the_id_it_gave(
    service: str, headers: dict[str, str], database: Database
) -> None:
    answer = requests.post(f"{service}/api/subscriptions/portal", headers={**headers, **SPOOFED})

    [attempt] = rows(database, "SELECT host(ip) AS ip, request_id FROM audit_log")
    assert attempt["ip"] == "127.0.0.1"
    assert attempt["request_id"] == answer.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", attempt["request_id"])


def test_a_tenants_id_arrives_as_it_was_written(service: str, database: Database) -> None:
    """Through nginx and gunicorn, neither of which tidies it up on the way."""
    with database.begin(SYSTEM) as connection:
        token, _ = tokens.create(connection, "crm", tokens.SCOPES, None)
    shown = {"Authorization": f"Bearer {token}"}

    def put(written: str) -> int:
        return requests.put(f"{service}/api/tenants/{written}", json={}, headers=shown).status_code

    assert [put(id) for id in ("a%2Fb", "%2Fa", "a%2F%2Fb", "%C3%A4%20b", "%25")] == [200] * 5
    assert [put(id) for id in ("a/b", "a/", "%FF", "a//b")] == [404] * 4
    kept = {row["id"] for row in rows(database, "SELECT tenant_id AS id FROM tenant_config")}
    assert kept == {"a/b", "/a", "a//b", "ä b", "%"}


def test_what_a_caller_claims_about_itself_ends_at_nginx(mirror: str) -> None:
    answer = requests.post(f"{mirror}/webhooks/stripe", data=b"{}", headers=SPOOFED)

    reached = [(name, value) for name, value in answer.json()["headers"] if "forwarded" in name.lower()]
    assert sorted(reached) == [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Proto", "http")]
    assert "chosen-by-the-caller" not in answer.text


@pytest.mark.parametrize("path", ["/", "/webhooks/stripe"])
def test_a_body_arrives_byte_for_byte(mirror: str, path: str) -> None:
    body = bytes(range(256)) * 2000 + b'{"amount": 1.10, "name": "\xc3\xa9"}\r\n\r\n'

    answer = requests.post(f"{mirror}{path}", data=body, headers={"Stripe-Signature": "t=1,v1=ab"})

    assert bytes.fromhex(answer.json()["body"]) == body
    assert ["Stripe-Signature", "t=1,v1=ab"] in answer.json()["headers"]


def test_a_body_over_one_megabyte_is_refused(mirror: str) -> None:
    answer = requests.post(f"{mirror}/", data=b"x" * (2**20 + 1))

    assert is_json_error(answer, 413)


def test_a_service_that_is_down_is_said_to_be_unavailable(nginx_before: Before) -> None:
    answer = requests.post(f"{nginx_before(a_free_port())}/", data=b"{}")

    assert is_json_error(answer, 502)
    assert answer.json() == {"error": "Service unavailable"}
    assert answer.headers["Retry-After"] == "5"


def test_a_silent_service_is_given_up(mirror: str) -> None:
    answer = requests.post(f"{mirror}/silent", data=b"{}")

    assert is_json_error(answer, 504)


def test_a_flood_from_one_address_is_slowed_down(nginx_before: Before) -> None:
    nginx = nginx_before(a_free_port())

    with requests.Session() as caller:  # one connection asks far faster than the 50 a second that are refilled
        answers = [caller.get(f"{nginx}/") for _ in range(600)]

    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(is_json_error(answer, 429) for answer in refused)
    assert {answer.status_code for answer in answers[:200]} == {502}


@pytest.mark.parametrize("path", ["/api/changes?limit=100", "/api/tenants/t_8f2/entitlements"])
def test_a_service_asks_for_all_its_tenants_from_one_address(nginx_before: Before, path: str) -> None:
    """10,000 tenants that are looked up every 30 s are 333 requests a second; here they come at once."""
    nginx = nginx_before(a_free_port())

    with requests.Session() as caller:
        answers = [caller.get(f"{nginx}{path}") for _ in range(600)]

    assert {answer.status_code for answer in answers} == {502}


def test_a_flood_of_what_services_ask_is_slowed_down_too(nginx_before: Before) -> None:
    nginx = nginx_before(a_free_port())
    one = b"GET /api/tenants/t_8f2/entitlements HTTP/1.1\r\nHost: a\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    with ThreadPoolExecutor(8) as callers:  # no answer is waited for, so faster than the refill
        answers = b"".join(callers.map(lambda _: raw(nginx, one * 499 + last, ends=False), range(16)))

    assert answers.count(b"HTTP/1.1 502 ") >= 2000
    assert b"HTTP/1.1 429 " in answers


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    ],
    ids=["two hosts", "long address", "long header"],
)
def test_malformed_requests_get_the_same_shape(mirror: str, request_: bytes, status: int) -> None:
    head, _, body = raw(mirror, request_).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert b"\r\nContent-Type: application/json\r\n" in head
    assert list(json.loads(body)) == ["error"]
