"""Open TCP connections, seen from the sandbox's end.

A Line can wait without losing sight of its caller, and can be cut from another thread: both end the wait
at once. Lines counts those that have carried an API call, which shows whether a caller keeps and
returns its connections.
"""

import select
import socket
import struct
import threading
from contextlib import suppress

from sandbox.faults import Fault

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close() sends RST instead of FIN


class HungUp(Exception):
    """The caller is gone, or the line was cut."""


class Line:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.number: int | None = None  # given with the first API call
        self.fault: Fault | None = None  # what is wrong with the answer under way

    def pause(self, seconds: float) -> None:
        """Wait; raises HungUp as soon as nobody is there to wait for."""
        if seconds <= 0:
            return
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if poll.poll(seconds * 1000):
            raise HungUp

    def cut(self) -> None:
        with suppress(OSError):  # the caller was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, head: bytes, body: bytes) -> None:
        """Send an answer, spoiled as ordered. Raises HungUp when the connection ends with it."""
        fault = self.fault
        match fault.kind if fault else None:
            case "reset":
                self.reset()
            case "truncated":
                self.connection.sendall(head + body[: len(body) // 2])
                raise HungUp
            case "drip":
                self.connection.sendall(head)
                self.drip(body)
            case "drip_headers":
                self.drip(head)
                self.connection.sendall(body)
            case "hang":
                self.hang()
                self.connection.sendall(head + body)
            case _:
                self.connection.sendall(head + body)
        self.fault = None

    def hang(self) -> None:
        assert self.fault
        self.pause(self.fault.pause_seconds)

    def drip(self, data: bytes) -> None:
        assert self.fault
        for byte in data:
            self.pause(self.fault.pause_seconds)
            self.connection.sendall(bytes([byte]))

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.connection.close()
        raise HungUp


class Lines:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all: set[Line] = set()
        self.opened = 0
        self.closed = False

    def add(self, line: Line) -> None:
        with self.lock:
            self.all.add(line)
            if self.closed:  # accepted in the last moment
                line.cut()

    def remove(self, line: Line) -> None:
        with self.lock:
            self.all.discard(line)

    def number_of(self, line: Line) -> int:
        with self.lock:
            if line.number is None:
                self.opened += 1
                line.number = self.opened
            return line.number

    def counts(self) -> dict[str, int]:
        with self.lock:
            return {"opened": self.opened, "open": sum(line.number is not None for line in self.all)}

    def cut(self, *, faulty_only: bool = False) -> None:
        with self.lock:
            for line in self.all:
                if line.fault or not faulty_only:
                    line.cut()

    def close(self) -> None:
        with self.lock:
            self.closed = True
        self.cut()
