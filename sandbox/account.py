"""One pretend Stripe account: its key, what it holds, and what is ordered to go wrong with it."""

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from sandbox.faults import Faults
from sandbox.lines import Lines
from sandbox.store import Store
from sandbox.wire import Params

MOST_CALLS = 10_000  # are kept


@dataclass
class Record:
    """A noted API call. `status` stays None until there is an answer; 499 means the caller hung up first."""

    method: str
    path: str
    idempotency_key: str | None
    stripe_version: str
    connection: int
    params: Params = field(default_factory=dict)
    status: int | None = None
    replayed: bool = False
    at: float = field(default_factory=time.time)


class Log:
    """The latest calls, newest last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.records: deque[Record] = deque(maxlen=MOST_CALLS)

    def add(self, record: Record) -> Record:
        with self.lock:
            self.records.append(record)
        return record

    def list(self, latest: int | None = None) -> list[dict[str, Any]]:
        """Oldest first; all, or so many of the latest."""
        with self.lock:
            newest_first = islice(reversed(self.records), latest)
            return [asdict(record) for record in newest_first][::-1]

    def clear(self) -> None:
        with self.lock:
            self.records.clear()


@dataclass
class Account:
    key: str
    store: Store
    public_url: str = ""  # known once the server has its port
    latency_seconds: float = 0.0
    faults: Faults = field(default_factory=Faults)
    lines: Lines = field(default_factory=Lines)
    log: Log = field(default_factory=Log)


def is_live(key: str) -> bool:
    return key.startswith(("sk_live_", "rk_live_"))
