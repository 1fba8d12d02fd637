"""The clients: wrk, asking for something with the tokens of many tenants in turn, or delivering events.

Many tenants, so that neither the limit of links per tenant nor one tenant's lock nor what was read just before
is what gets measured; whose turn is first is left to chance. Every event is delivered once: they are signed
beforehand, and who runs out of them has measured nothing.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jwt

from bench.events import Made, signature

HEAD = (
    b"POST /webhooks/stripe HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*; q=0.5, application/xml\r\n"
    b"User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nCache-Control: no-cache\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: %b\r\n\r\n"
)
TENANTS = [f"tenant-{number:04d}" for number in range(1000)]

SCRIPT = """
local requests, last = {}, 0

function init()
  for token in io.lines("%s") do
    local headers = {Authorization = "Bearer " .. token, ["If-None-Match"] = %s}
    requests[#requests + 1] = wrk.format("%s", "%s", headers)
  end
  math.randomseed(os.time())
  last = math.random(#requests)
end

function request()
  last = last %% #requests + 1
  return requests[last]
end

%s
"""

WALK = """
local requests, last = {}, 0

function init()
  local headers = {Authorization = "Bearer %s", ["If-None-Match"] = %s}
  for path in io.lines("%s") do requests[#requests + 1] = wrk.format("GET", path, headers) end
  math.randomseed(os.time())
  last = math.random(#requests)
end

function request()
  last = last %% #requests + 1
  return requests[last]
end

%s
"""

DELIVER = """
local deliveries = io.open("%s", "rb")

function request()
  local length = deliveries:read(8)
  if not length then os.exit(3) end
  return deliveries:read(tonumber(length))
end

%s
"""

DONE = """
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"answers": %d, "seconds": %f, "p50": %f, "p95": %f, "p99": %f, "failures": %d}\\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Answers:
    """What the clients saw; percentiles in milliseconds. A failure is an answer that is no 2xx, or none."""

    answers: int
    seconds: float
    p50: float
    p95: float
    p99: float
    failures: int


@dataclass(frozen=True)
class Wish:
    """What is asked for; with a tag, only if it has changed since."""

    method: str
    path: str
    tag: str | None = None


LINKS = Wish("POST", "/api/subscriptions/portal")


class Clients:
    """Connections kept alive, each asking again as soon as it is answered."""

    def __init__(self, key: str, scratch: Path, tenants: Iterable[str] = TENANTS) -> None:
        self._script, self._tokens = scratch / "ask.lua", scratch / "tokens"
        expires = int(time.time()) + 86400
        claims = ({"sub": "user-1", "tenant_id": tenant, "exp": expires} for tenant in tenants)
        self._tokens.write_text("\n".join(jwt.encode(one, key, "HS256") for one in claims))

    def first(self, port: int, wish: Wish) -> tuple[int, str | None]:
        """What the first of them is answered: the status, and the tag."""
        with self._tokens.open() as tokens:
            headers = {"Authorization": f"Bearer {next(tokens).strip()}"}
        if wish.tag:
            headers["If-None-Match"] = wish.tag
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request(wish.method, wish.path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["ETag"]

    def ask(self, port: int, *, clients: int, seconds: int, wish: Wish = LINKS) -> Answers:
        """Ask for so long; what is still unanswered at the end is abandoned."""
        tag = json.dumps(wish.tag) if wish.tag else "nil"
        self._script.write_text(SCRIPT % (self._tokens, tag, wish.method, wish.path, DONE))
        return _run(self._script, port, clients, seconds)


class Services:
    """The same with one token, on many paths in turn: other services, which ask about all tenants."""

    def __init__(self, token: str, scratch: Path) -> None:
        self._token = token
        self._script, self._paths = scratch / "walk.lua", scratch / "paths"

    def first(self, port: int, path: str, tag: str | None = None) -> tuple[int, str | None, bytes]:
        """What one of them is answered: status, tag and body."""
        headers = {"Authorization": f"Bearer {self._token}", **({"If-None-Match": tag} if tag else {})}
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["ETag"], answer.read()

    def ask(
        self, port: int, paths: Iterable[str], *, clients: int, seconds: int, tag: str | None = None
    ) -> Answers:
        """Ask for so long, for the paths in turn."""
        self._paths.write_text("\n".join(paths))
        tagged = json.dumps(tag) if tag else "nil"
        self._script.write_text(WALK % (self._token, tagged, self._paths, DONE))
        return _run(self._script, port, clients, seconds)


class Deliverers:
    """The same, with events instead: signed when they are taken in, and each sent once."""

    def __init__(self, secret: str, scratch: Path) -> None:
        self._secret = secret
        self._script, self._requests = scratch / "deliver.lua", scratch / "deliveries"
        self._script.write_text(DELIVER % (self._requests, DONE))

    def sign(self, made: Iterable[Made]) -> None:
        """Have these ready, signed now; what was left of the last is forgotten."""
        now = int(time.time())
        with self._requests.open("wb") as requests:
            for event in made:
                request = HEAD % (len(event.body), signature(event.body, self._secret, now)) + event.body
                requests.write(b"%08d" % len(request) + request)

    def deliver(self, port: int, *, clients: int, seconds: int) -> Answers:
        """Deliver for so long."""
        return _run(self._script, port, clients, seconds)


def _run(script: Path, port: int, clients: int, seconds: int) -> Answers:
    wrk = shutil.which("wrk") or sys.exit("wrk is missing: install it (apt-get install wrk).")
    options = ("-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script))
    said = subprocess.run([wrk, *options, f"http://127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True)
    if said.returncode:
        sys.exit(f"wrk ended with exit code {said.returncode}; 3 means that it had nothing more to deliver.")
    answers = Answers(**json.loads(said.stdout.splitlines()[-1]))
    if not answers.answers:
        sys.exit("A server answered nothing at all: there is nothing to compare.")
    return answers
