"""The service as it is deployed: real gunicorn processes, many callers, signals, and a collector."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests

from billing.db import SYSTEM, Database
from sandbox.server import Control
from tests.conftest import ROOT, rows
from tests.gateway import a_gateway
from tests.test_portal import PORTAL, asked_of_stripe
from tests.test_portal_options import wait_until


@dataclass
class Served:
    """A running gunicorn."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> float:
        """Ask it to end as a platform does; how long that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(25)
        return time.monotonic() - began

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def gunicorn(environ: dict[str, str], log: IO[bytes], port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": str(port), "WEB_CONCURRENCY": "2", **environ},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def served(environ: dict[str, str], log: Path) -> Iterator[Served]:
    port = a_free_port()
    with log.open("wb") as output:
        process = gunicorn(environ, output, port)
        try:
            service = Served(f"http://127.0.0.1:{port}", process, log)
            wait_until(lambda: is_up(service) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield service
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def is_up(service: Served) -> bool:
    """Both workers hear signals by now: one that is told to end before that would not notice."""
    return service.log.read_text().count("Worker ready") == 2


def test_two_workers_answer_200_callers_at_once_and_hold_no_connection_over_stripes_call(
    environ: dict[str, str], headers: dict[str, str], database: Database, sandbox: Control, tmp_path: Path
) -> None:
    """Ten connections for 200 callers: held for Stripe's 200 ms, most would wait past the limit for one."""
    sandbox.latency(0.2)
    limits = {"DATABASE_POOL_SIZE": "5", "BILLING_LINKS_PER_MINUTE": "1000"}

    with served({**environ, **limits}, tmp_path / "log") as service, ThreadPoolExecutor(200) as callers:
        statuses = list(
            callers.map(lambda _: requests.post(service.url + PORTAL, headers=headers).status_code, range(200))
        )

    assert Counter(statuses) == {200: 200}
    assert rows(database, "SELECT outcome, count(*) AS n FROM audit_log GROUP BY 1") == [
        {"outcome": "opened", "n": 200}
    ]


def test_a_worker_finishes_what_it_has_begun_and_then_goes(
    environ: dict[str, str], headers: dict[str, str], sandbox: Control, tmp_path: Path
) -> None:
    sandbox.latency(1)
    with served(environ, tmp_path / "log") as service, ThreadPoolExecutor(1) as caller:
        asking = caller.submit(requests.post, service.url + PORTAL, headers=headers)
        wait_until(lambda: bool(asked_of_stripe(sandbox)))

        took = service.stop()

        assert asking.result().status_code == 200
        assert took < 10
        assert service.process.returncode == 0


def test_every_log_line_is_json_and_a_request_can_be_followed(
    environ: dict[str, str], headers: dict[str, str], tmp_path: Path
) -> None:
    with served(environ, tmp_path / "log") as service:
        requests.post(service.url + PORTAL, headers={**headers, "X-Request-Id": "follow-me"})
        service.stop()
        lines = service.lines()

    [answered] = [line for line in lines if line.get("request_id") == "follow-me"]
    assert answered["event"] == "http.answered"
    assert (answered["route"], answered["status"], answered["tenant"]) == (PORTAL, 200, "t_acme")
    assert any("gunicorn" in str(line["logger"]) for line in lines)


def test_nothing_secret_is_in_a_log_line(
    environ: dict[str, str], headers: dict[str, str], sandbox: Control, database: Database, tmp_path: Path
) -> None:
    """Links, tokens, keys, addresses: not when all is well, and not in any of the ways to fail."""
    token = headers["Authorization"].split()[1]
    with served({**environ, "STRIPE_DEADLINE_SECONDS": "1"}, tmp_path / "log") as service:
        link = requests.post(service.url + PORTAL, headers=headers).json()["url"]
        for fault in ("400", "401", "429", "500", "html", "list", "truncated", "drip"):
            sandbox.fault(fault, path="/v1/billing_portal", times=3)
            requests.post(service.url + PORTAL, headers={**headers, "Idempotency-Key": "canary-key"})
            sandbox.clear()
        requests.post(service.url + PORTAL, headers={"Authorization": f"Bearer {token}x"})
        requests.post(
            f"{service.url}{PORTAL}?token={token}", headers=headers, json={"return_url": "//canary.example"}
        )
        say(service, f"GET / HTTP/1.1\r\nAuthorization Bearer {token}\r\n\r\n")
        with database.begin(SYSTEM) as connection:
            connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO audit_log_away")
        try:
            broken = requests.post(service.url + PORTAL, headers=headers)
        finally:
            with database.begin(SYSTEM) as connection:
                connection.exec_driver_sql("ALTER TABLE audit_log_away RENAME TO audit_log")
        service.stop()
        lines, text = service.lines(), service.log.read_text()

    assert (broken.status_code, broken.content) == (500, b'{"error":"Internal server error"}')
    assert Counter(line["event"] for line in lines).keys() >= {
        "stripe.failed",
        "http.unforeseen",
        "http.malformed",
    }
    secrets = (token, link, environ["STRIPE_SECRET_KEY"], environ["JWT_SECRET_KEY"], environ["DATABASE_URL"])
    for secret in (*secrets, "ada@acme.example", "canary"):
        assert secret not in text, secret


def say(service: Served, words: str) -> bytes:
    """Send bytes as they are, and read until the service hangs up."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(words.encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


MALFORMED = {
    "no request line": ("nonsense\r\n\r\n", 400),
    "header without a colon": ("GET / HTTP/1.1\r\nAuthorization Bearer sesame\r\n\r\n", 400),
    "long request line": (f"GET /{'x' * 5000} HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "long header": (f"GET / HTTP/1.1\r\nHost: x\r\nX-Long: {'x' * 9000}\r\n\r\n", 431),
    "two lengths": ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
    "both framings": (
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
}


def test_what_is_no_http_gets_the_same_error_shape_and_is_not_repeated(
    environ: dict[str, str], headers: dict[str, str], tmp_path: Path
) -> None:
    chunked = f"POST {PORTAL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunked += f"Authorization: {headers['Authorization']}\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n"
    with served(environ, tmp_path / "log") as service:
        requests.post(service.url + PORTAL, headers=headers)
        answers = {name: say(service, words) for name, (words, _) in MALFORMED.items()}
        bad_chunk = say(service, chunked)
        service.stop()
        lines = service.lines()

    for name, (_, status) in MALFORMED.items():
        head, _, body = answers[name].partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), name
        assert b"Content-Type: application/json" in head
        assert set(json.loads(body)) == {"error"}
    assert bad_chunk.startswith(b"HTTP/1.1 400 ")
    assert "sesame" not in str(lines)
    assert not [line for line in lines if line["event"] == "http.malformed" and "tenant" in line]
    assert not [line for line in lines if line["event"] == "http.unforeseen"]


def test_recycled_workers_cost_nobody_an_answer(environ: dict[str, str], tmp_path: Path) -> None:
    recycling = {"GUNICORN_CMD_ARGS": "--max-requests 60 --max-requests-jitter 20"}
    with served({**environ, **recycling}, tmp_path / "log") as service, ThreadPoolExecutor(8) as callers:
        statuses = list(callers.map(lambda _: requests.get(f"{service.url}/healthz").status_code, range(600)))

    assert Counter(statuses) == {200: 600}


def test_a_busy_port_ends_the_start(environ: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, (tmp_path / "log").open("wb") as output:
        process = gunicorn(environ, output, taken.getsockname()[1])
        assert process.wait(25) != 0


def test_it_starts_while_the_database_is_away_and_recovers_without_a_restart(
    environ: dict[str, str], headers: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    with a_gateway(database_url) as gateway:
        gateway.refuse()
        with served({**environ, "DATABASE_URL": gateway.url}, tmp_path / "log") as service:
            away = requests.post(service.url + PORTAL, headers=headers)
            gateway.restore()
            back = requests.post(service.url + PORTAL, headers=headers)
            service.stop()

    assert (away.status_code, away.content) == (503, b'{"error":"Service unavailable"}')
    assert back.status_code == 200


def test_it_does_not_start_as_a_superuser(environ: dict[str, str], server_url: str, tmp_path: Path) -> None:
    output = refused_start({**environ, "DATABASE_URL": server_url}, tmp_path / "log")

    assert "BILLING_ALLOW_SUPERUSER" in output
    assert "Traceback" not in output


def refused_start(environ: dict[str, str], log: Path) -> str:
    with log.open("wb") as output:
        process = gunicorn(environ, output, a_free_port())
        assert process.wait(20) != 0
    return log.read_text()


# ---- telemetry


@contextmanager
def a_collector() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Takes what OpenTelemetry exports, by path: /v1/traces, /v1/metrics."""
    received: dict[str, bytes] = {}

    class Sink(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received[self.path] = received.get(self.path, b"") + body
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_spans_and_metrics_of_every_worker_arrive_before_it_is_gone(
    environ: dict[str, str], headers: dict[str, str], tmp_path: Path
) -> None:
    with a_collector() as (endpoint, received):
        exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SEMCONV_STABILITY_OPT_IN": "http,database"}
        with served({**environ, **exporting}, tmp_path / "log") as service:
            answer = requests.post(service.url + PORTAL, headers=headers)
            refused = requests.post(service.url + PORTAL + "?token=sesame")
            service.stop()
            lines = service.lines()

    assert (answer.status_code, refused.status_code) == (200, 401)
    traces, metrics = received["/v1/traces"], received["/v1/metrics"]
    for name in (
        b"portal.open",
        b"POST /api/subscriptions/portal",
        b"audit.start customers.find",
        b"/v1/billing_portal/sessions",
        b"Unauthorized",
    ):
        assert name in traces, name
    for name in (b"billing.calls", b"billing.duration", b"billing.stripe.calls", b"billing.workers"):
        assert name in metrics, name
    assert any(line.get("trace_id") for line in lines if line["event"] == "http.answered")
    for secret in (headers["Authorization"].split()[1], environ["STRIPE_SECRET_KEY"], answer.json()["url"]):
        assert secret.encode() not in traces + metrics
    assert b"sesame" not in traces + metrics


def test_a_dead_collector_does_not_hold_up_the_end(
    environ: dict[str, str], headers: dict[str, str], tmp_path: Path
) -> None:
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{a_free_port()}"}
    with served({**environ, **exporting}, tmp_path / "log") as service:
        assert requests.post(service.url + PORTAL, headers=headers).status_code == 200

        assert service.stop() < 15
