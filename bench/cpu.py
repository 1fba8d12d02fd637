"""CPU per portal request, steadily: `python -m bench.cpu`.

On a shared machine a server's CPU per request moves by half from one second to the next, and two servers are
never measured in the same second. So here the bare route and the service run in one process and one thread, in
turns of some requests, called as gunicorn calls them, and ratios are taken turn by turn: first without
telemetry, then with it. What gunicorn itself costs is left out; it is the same for all and would bring every
ratio nearer to one, so the price of telemetry, which is judged in a server, is only told here.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import jwt

from bench import machine
from bench.load import TENANTS

REQUESTS = 150  # a turn
LIMIT = 1.2

App = Callable[[dict[str, Any], Callable[..., Any]], Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--turns", type=int, default=30)
    turns: int = parser.parse_args().turns
    with tempfile.TemporaryDirectory(prefix="billing-bench-") as scratch, ExitStack() as resources:
        Path(scratch).chmod(0o711)  # PostgreSQL may run as somebody else
        server = resources.enter_context(machine.postgres(Path(scratch)))
        database = resources.enter_context(machine.database(server, TENANTS))
        stub = _stub(resources, Path(scratch))
        table, sys.stdout = sys.stdout, resources.enter_context((Path(scratch) / "log").open("w"))
        try:
            plain, traced = _compare(database, stub, turns)
        finally:
            sys.stdout = table
    verdict = "holds" if plain <= LIMIT else "FAILS"
    print(f"CPU over the bare route          {plain:.2f}, at most {LIMIT}: {verdict}")
    print(f"CPU with telemetry over without  {traced / plain:.2f}")
    return plain > LIMIT


def _stub(resources: ExitStack, scratch: Path) -> str:
    port, log = machine.free_port(), scratch / "stub.log"
    process = resources.enter_context(
        machine.started(sys.executable, "-m", "bench.stub", str(port), "0", log=log, cwd=machine.ROOT)
    )
    machine.wait_for_port(port, process, log)
    return f"http://127.0.0.1:{port}"


def _compare(database: machine.Database, stub: str, turns: int) -> tuple[float, float]:
    """The service over the bare route, without telemetry and with it."""
    os.environ.update(
        DATABASE_URL=database.url,
        DATABASE_POOL_SIZE="10",
        APP_URL="https://app.example.com",
        STRIPE_SECRET_KEY="sk_test_bench",
        STRIPE_API_BASE=stub,
        STRIPE_WEBHOOK_SECRET=f"whsec_{secrets.token_hex(16)}",
        JWT_SECRET_KEY=secrets.token_hex(32),
        BILLING_LINKS_PER_MINUTE="1000000",
    )
    from app import create_app
    from bench import bare
    from billing import telemetry

    plain = _ratio(create_app(), bare.hold, database, turns)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = stub
    telemetry.start()
    traced = _ratio(create_app(), bare.hold, database, turns)
    telemetry.stop()
    return plain, traced


def _ratio(service: App, bare: App, database: machine.Database, turns: int) -> float:
    claims = {"sub": "user-1", "exp": int(time.time()) + 3600}
    key = os.environ["JWT_SECRET_KEY"]
    tokens = [jwt.encode({**claims, "tenant_id": tenant}, key, "HS256") for tenant in TENANTS]
    for app in (service, bare):
        _ask(app, tokens)
    backends = database.backends()
    return median(_cost(service, tokens, backends) / _cost(bare, tokens, backends) for _ in range(turns))


def _cost(app: App, tokens: list[str], backends: list[int]) -> float:
    """Seconds of CPU for one turn, the database's included."""
    before = time.process_time() + machine.cpu_seconds(backends)
    _ask(app, tokens)
    return time.process_time() + machine.cpu_seconds(backends) - before


def _ask(app: App, tokens: list[str]) -> None:
    for token in random.sample(tokens, REQUESTS):
        statuses: list[str] = []
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/api/subscriptions/portal",
            "HTTP_AUTHORIZATION": f"Bearer {token}",
            "HTTP_HOST": "localhost",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
        }
        answer = app(environ, lambda status, *_, seen=statuses: seen.append(status))
        b"".join(answer)
        answer.close()
        if statuses != ["200 OK"]:
            sys.exit(f"A request failed: {statuses}")


if __name__ == "__main__":
    sys.exit(main())
