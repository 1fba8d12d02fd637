"""The clients: wrk, asking for portal links with the tokens of many tenants in turn.

Many tenants, so that neither the limit of links per tenant nor one tenant's lock is what gets measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jwt

TENANTS = [f"tenant-{number:04d}" for number in range(1000)]

SCRIPT = """
local tokens = {%s}
local requests, last = {}, 0

function init()
  for i, token in ipairs(tokens) do
    requests[i] = wrk.format("POST", "/api/subscriptions/portal", {Authorization = "Bearer " .. token})
  end
end

function request()
  last = last %% #requests + 1
  return requests[last]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"answers": %%d, "seconds": %%f, "p50": %%f, "p99": %%f, "failures": %%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Answers:
    """What the clients saw; `p50` and `p99` in milliseconds. A failure is an answer that is no 2xx, or none."""

    answers: int
    seconds: float
    p50: float
    p99: float
    failures: int


class Clients:
    """Connections kept alive, each asking again as soon as it is answered."""

    def __init__(self, key: str, scratch: Path) -> None:
        self._wrk = shutil.which("wrk") or sys.exit("wrk is missing: install it (apt-get install wrk).")
        self._script = scratch / "portal.lua"
        expires = int(time.time()) + 86400
        tokens = [
            jwt.encode({"sub": "user-1", "tenant_id": tenant, "exp": expires}, key, "HS256")
            for tenant in TENANTS
        ]
        self._script.write_text(SCRIPT % ",\n".join(f'"{token}"' for token in tokens))

    def ask(self, port: int, *, clients: int, seconds: int) -> Answers:
        """Ask for so long; what is still unanswered at the end is abandoned."""
        options = ("-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(self._script))
        said = subprocess.run(
            [self._wrk, *options, f"http://127.0.0.1:{port}"], check=True, stdout=subprocess.PIPE, text=True
        )
        answers = Answers(**json.loads(said.stdout.splitlines()[-1]))
        if not answers.answers:
            sys.exit("A server answered nothing at all: there is nothing to compare.")
        return answers
