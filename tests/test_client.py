"""What other services copy keeps its word, whatever the service and the network do. All over real sockets."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import random
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import billing_client
from client.billing_client import BillingClient, Document, UndeclaredFeature
from tests.conftest import ROOT
from tests.unruly import TOKEN, Asked, Clock, Reply, Service, a_service, answer

ACME = "t_acme"
SOURCE = Path(billing_client.__file__)
FALLBACK: dict[str, bool | int | None] = {"export": True, "sso": False, "projects": 3, "seats": None}
TIMEOUT = 0.3
DAY = 86_400


@pytest.fixture
def service() -> Iterator[Service]:
    with a_service() as service:
        yield service


@pytest.fixture
def clock(service: Service) -> Clock:
    return Clock(service)


MakeClient = Callable[..., BillingClient]


@pytest.fixture
def make_client(service: Service, clock: Clock) -> Iterator[MakeClient]:
    made = []

    def make(**options: Any) -> BillingClient:
        given = {"fallback": FALLBACK, "timeout": 2.0, "clock": clock, "url": service.url, **options}
        made.append(BillingClient(given.pop("url"), TOKEN, given.pop("fallback"), **given))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def billing(make_client: MakeClient) -> BillingClient:
    return make_client()


def counted(billing: BillingClient) -> dict[str, int]:
    return {name: count for name, count in billing.counters().items() if count}


# ---- answers


@pytest.mark.parametrize(
    ("given", "enabled", "limit", "one_more", "many_more"),
    [
        ({"enabled": True}, True, None, True, True),
        ({"enabled": False}, False, 0, False, False),
        ({"enabled": True, "limit": 10}, True, 10, True, False),
        ({"enabled": True, "limit": None}, True, None, True, True),
        ({"enabled": False, "limit": 0}, False, 0, False, False),
        ({"enabled": True, "limit": 10, "unit": "of a later release"}, True, 10, True, False),
    ],
    ids=["on", "off", "limited", "unlimited", "off with a limit", "with a member nobody knows"],
)
def test_a_feature_is_what_the_document_says(
    service: Service,
    billing: BillingClient,
    given: dict[str, Any],
    enabled: bool,
    limit: int | None,
    one_more: bool,
    many_more: bool,
) -> None:
    service.put(ACME, 1)["features"]["projects"] = given

    assert billing.enabled(ACME, "projects") is enabled
    assert billing.limit(ACME, "projects") == limit
    assert billing.allows(ACME, "projects", used=9) is one_more
    assert billing.allows(ACME, "projects", used=10) is many_more


@pytest.mark.parametrize(
    ("feature", "enabled", "limit", "allowed"),
    [
        ("export", True, None, True),
        ("sso", False, 0, False),
        ("projects", True, 3, False),
        ("seats", True, None, True),
    ],
)
def test_a_service_that_was_never_reached_leaves_what_is_declared(
    service: Service,
    billing: BillingClient,
    feature: str,
    enabled: bool,
    limit: int | None,
    allowed: bool,
) -> None:
    service.stop()

    document = billing.get(ACME)

    assert (document.origin, document.version, document.tenant_id) == ("fallback", 0, ACME)
    assert billing.enabled(ACME, feature) is enabled
    assert billing.limit(ACME, feature) == limit
    assert billing.allows(ACME, feature, used=3) is allowed


def test_a_feature_without_a_fallback_is_refused_even_where_the_service_knows_it(
    service: Service, billing: BillingClient
) -> None:
    """Or the slip would show on the day of an outage."""
    service.put(ACME, 1, audit_log=True)

    with pytest.raises(UndeclaredFeature, match="audit_log"):
        billing.enabled(ACME, "audit_log")


def test_a_feature_the_document_lacks_is_loudly_what_is_declared(
    service: Service, billing: BillingClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    service.put(ACME, 1, sso=True)

    assert billing.limit(ACME, "projects") == 3
    assert billing.limit(ACME, "projects") == 3
    assert [record.levelname for record in caplog.records if "'projects'" in record.message] == ["ERROR"]
    clock.pass_by(61)
    billing.limit(ACME, "projects")

    assert len([record for record in caplog.records if "'projects'" in record.message]) == 2
    assert billing.counters()["absent"] == 3


@pytest.mark.parametrize("value", [-1, "yes", 1.5, [True]], ids=repr)
def test_a_fallback_that_means_nothing_is_refused(make_client: MakeClient, value: Any) -> None:
    with pytest.raises(ValueError, match="'sso'"):
        make_client(fallback={"sso": value})


def test_an_empty_tenant_is_refused(billing: BillingClient) -> None:
    with pytest.raises(ValueError, match="tenant"):
        billing.enabled("", "export")


@pytest.mark.parametrize(
    "tenant",
    ["a/b", "...", "a b", "a?b#c", "100%25", "zo\u00eb/\u65e5\u672c", "a\r\nHost: evil", "x" * 500],
    ids=["slash", "dots", "blank", "query", "percent", "unicode", "line break", "long"],
)
def test_any_id_arrives_as_it_is(service: Service, billing: BillingClient, tenant: str) -> None:
    service.put(tenant, 7, sso=True)

    assert billing.get(tenant).version == 7
    assert service.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert set(service.asked[0].path) <= set(map(chr, range(33, 127)))


@pytest.mark.parametrize("tenant", [".", ".."])
def test_an_id_that_is_lost_on_the_way_is_not_asked_about(
    service: Service, billing: BillingClient, tenant: str
) -> None:
    """A proxy takes it for a step in the path, and would ask about something else."""
    service.put(tenant, 1, sso=True)

    assert billing.get(tenant).origin == "fallback"
    assert billing.get(tenant, at_least=1).is_behind
    assert service.asked == []
    assert billing.counters()["errors"] == 0


def test_an_id_that_is_no_text_harms_nobody(service: Service, billing: BillingClient) -> None:
    assert billing.get("t_\ud800").origin == "fallback"


# ---- how long a copy serves


def test_a_copy_is_fresh_for_thirty_seconds_and_then_looked_up(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 41, sso=True)

    seen = [billing.get(ACME)]
    clock.pass_by(29.9)
    seen.append(billing.get(ACME))
    clock.pass_by(0.1)
    seen.append(billing.get(ACME))
    service.put(ACME, 42, sso=False)
    clock.pass_by(30)
    seen.append(billing.get(ACME))

    assert [document.origin for document in seen] == ["changed", "fresh", "revalidated", "changed"]
    assert [document.version for document in seen] == [41, 41, 41, 42]
    assert [asked.headers.get("if-none-match", "")[:5] for asked in service.asked] == ["", 'W/"41', 'W/"41']
    assert counted(billing) == {"changed": 2, "fresh": 1, "revalidated": 1}


@pytest.mark.parametrize(
    ("cached", "seconds"),
    [
        ("private, max-age=5, stale-if-error=100", 5),
        ("private, max-age=3600", 30),
        ("private, no-cache", 0),
        ("no-store, max-age=10", 0),
        ("", 0),
        ("max-age=-1", 0),
        ("max-age=" + "9" * 5000, 0),
    ],
)
def test_a_copy_is_never_fresh_for_longer_than_the_service_allows(
    service: Service, billing: BillingClient, clock: Clock, cached: str, seconds: int
) -> None:
    service.put(ACME, 1)
    service.cached = cached
    billing.get(ACME)

    clock.pass_by(seconds - 0.1 if seconds else 0)
    assert (billing.get(ACME).origin == "fresh") is (seconds > 0)
    clock.pass_by(0.2)
    assert billing.get(ACME).origin != "fresh"


@pytest.mark.parametrize(("allowed", "seconds"), [(86_400, DAY + 30), (100, 130), (0, 30), (10**8, DAY + 30)])
def test_a_copy_serves_in_need_for_as_long_as_the_service_allowed_and_a_day_at_most(
    service: Service, billing: BillingClient, clock: Clock, allowed: int, seconds: int
) -> None:
    service.put(ACME, 41, sso=True)
    service.cached = f"private, max-age=30, stale-if-error={allowed}"
    billing.get(ACME)
    service.stop()

    clock.pass_by(seconds - 0.1)
    assert (billing.get(ACME).version, billing.get(ACME).origin) == (41, "stale" if seconds > 30 else "fresh")
    assert billing.enabled(ACME, "sso")
    clock.pass_by(0.2)
    assert billing.get(ACME).origin == "fallback"
    assert not billing.enabled(ACME, "sso")


def test_no_copy_outlives_a_known_end_by_the_services_clock(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """Whatever `Cache-Control` says. The service lives in 2031, which this machine does not."""
    end = service.now + timedelta(seconds=20)
    service.put(ACME, 41, sso=True)["valid_until"] = end.isoformat()
    billing.get(ACME)
    service.stop()

    clock.pass_by(18.5)
    assert billing.get(ACME).origin == "fresh"
    clock.pass_by(1.5)

    assert billing.get(ACME).origin == "fallback"


def test_without_the_services_clock_what_ends_is_not_kept(service: Service, billing: BillingClient) -> None:
    document = service.put(ACME, 41)
    document["valid_until"] = (service.now + timedelta(days=300)).isoformat()
    service.reply = lambda _: answer(document, Cache_Control="max-age=30", Date="yesterday, I think")

    assert [billing.get(ACME).origin for _ in range(2)] == ["changed", "changed"]


def test_time_spent_on_the_way_counts(service: Service, billing: BillingClient, clock: Clock) -> None:
    document = service.put(ACME, 41)
    service.reply = lambda _: answer(document, Cache_Control="max-age=30", Age="20")
    billing.get(ACME)

    clock.pass_by(10)

    assert billing.get(ACME).origin == "changed"


def test_a_document_that_calls_itself_stale_is_used_and_not_kept(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 41, sso=True)
    billing.get(ACME)
    clock.pass_by(31)
    service.documents[ACME]["stale"] = True
    assert [billing.get(ACME).body["stale"] for _ in range(2)] == [True, True]

    service.documents[ACME]["stale"] = False
    service.stop()

    assert (billing.get(ACME).origin, billing.get(ACME).version) == ("stale", 41)  # the copy from before


def test_no_304_is_asked_for_a_document_that_calls_itself_stale(
    service: Service, billing: BillingClient
) -> None:
    service.put(ACME, 41, sso=True)["stale"] = True
    billing.get(ACME)
    service.documents[ACME]["stale"] = False

    assert billing.get(ACME).body["stale"] is False
    assert "if-none-match" not in service.asked[1].headers


def test_a_tenant_the_service_does_not_know_has_no_copy(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 41, sso=True)
    billing.get(ACME)
    service.forget(ACME)
    clock.pass_by(30)

    assert [billing.get(ACME).origin for _ in range(3)] == ["fallback"] * 3
    assert len(service.asked) == 2
    service.put(ACME, 43, sso=True)
    clock.pass_by(5)

    assert billing.get(ACME).version == 43
    assert "errors" not in counted(billing)


def test_memory_is_bounded_and_what_is_asked_for_stays(service: Service, make_client: MakeClient) -> None:
    billing = make_client(tenants=3)
    for tenant in ("a", "b", "c", "a", "d"):
        service.put(tenant, 1)
        billing.get(tenant)

    assert [billing.get(tenant).origin for tenant in ("a", "c", "d")] == ["fresh"] * 3
    assert billing.get("b").origin == "changed"
    assert len(billing._tenants) == 3


# ---- a service that fails

FEATURES: dict[str, Any] = {"sso": {"enabled": True}}


def lie(**members: Any) -> Reply:
    """Its own document of version 41, but for these members."""
    good = {"tenant_id": ACME, "version": 41, "as_of": None, "stale": False, "features": FEATURES}
    return lambda _: answer({**good, **members}, Cache_Control="max-age=30", ETag='W/"41-lie"')


GENERAL: dict[str, Reply] = {
    "500": lambda _: answer({"error": "Internal server error"}, 500),
    "503": lambda _: answer({"error": "Service unavailable"}, 503),
    "502 of a proxy": lambda _: answer(b"<html>Bad gateway", 502),
    "a refused token": lambda _: answer({"error": "Unauthorized"}, 401),
    "a scope too few": lambda _: answer({"error": "…", "code": "insufficient_scope"}, 403),
    "too many": lambda _: answer({"error": "…"}, 429),
    "a redirect": lambda _: answer(b"", 307, Location="http://localhost:1/"),
    "no content": lambda _: answer(b"", 204, Content_Length=""),
    "HTML": lambda _: answer(b"<html>Sign in to the hotel's network"),
    "nothing": lambda _: answer(b""),
    "half a document": lambda _: [answer(b'{"tenant_id": "t_acme"', Content_Length="900")],
    "not HTTP": lambda _: [b"220 smtp.example.com ESMTP\r\n"],
    "silence and an end": lambda _: [],
    "deep": lambda _: answer(b"[" * 100_000),
    "a number without end": lambda _: answer(b'{"version": ' + b"9" * 50_000 + b"}"),
    "headers without end": lambda _: [b"HTTP/1.1 200 OK\r\n", *(b"X: y\r\n" for _ in range(5000))],
    "one header without end": lambda _: [b"HTTP/1.1 200 OK\r\nX: ", *(b"y" * 65_536 for _ in range(20))],
    "continue without end": lambda _: [b"HTTP/1.1 100 Continue\r\n\r\n" * 50 for _ in range(50)],
    "chunks of nonsense": lambda _: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"],
    "binary": lambda _: answer(bytes(range(256)), Content_Encoding="gzip"),
}
OF_ONE_TENANT: dict[str, Reply] = {
    "Stripe was never heard of it": lambda _: answer({"error": "…", "code": "state_unknown"}, 503),
    "another 404": lambda _: answer(b"<html>Not found", 404),
    "414": lambda _: answer(b"", 414),
    "a huge body": lambda _: answer(b'"' + b"x" * 1_000_000 + b'"'),
    "a huge body in chunks": lambda _: [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b"10000\r\n" + b" " * 65_536 + b"\r\n" for _ in range(8)),
    ],
    "a list": lambda _: answer([1, 2]),
    "null": lambda _: answer(None),
    "another tenant's": lie(tenant_id="t_globex"),
    "nobody's": lie(tenant_id=None),
    "a list of tenants": lie(tenant_id=[ACME]),
    "a version of text": lie(version="41"),
    "a version of truth": lie(version=True),
    "a version with a fraction": lie(version=41.0),
    "a negative version": lie(version=-41),
    "version 0, which is the fallback's": lie(version=0),
    "no features": lie(features=None),
    "features in a list": lie(features=["sso"]),
    "a feature of truth": lie(features={"sso": True}),
    "a feature that is a word": lie(features={"sso": {"enabled": "false"}}),
    "a limit of text": lie(features={"projects": {"enabled": True, "limit": "50"}}),
    "a limit of truth": lie(features={"projects": {"enabled": True, "limit": True}}),
    "a negative limit": lie(features={"projects": {"enabled": True, "limit": -1}}),
    "an end that is a word": lie(valid_until="soon"),
    "an end that is a number": lie(valid_until=1_900_000_000),
    "an end without a zone": lie(valid_until="2031-01-01T00:00:00"),
    "304 for another copy": lambda _: answer(status=304, ETag='W/"40-0"', Content_Length=""),
}
FAILURES = {**GENERAL, **OF_ONE_TENANT}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_costs_nothing_but_freshness(
    service: Service, billing: BillingClient, clock: Clock, failure: Reply
) -> None:
    service.put(ACME, 41, sso=True)
    billing.get(ACME)
    clock.pass_by(31)
    service.reply = failure

    document = billing.get(ACME)

    assert (document.origin, document.version, document.tenant_id) == ("stale", 41, ACME)
    assert document.features["sso"].enabled
    assert billing.counters()["errors"] == 1


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_at_first_leaves_what_is_declared(
    service: Service, billing: BillingClient, failure: Reply
) -> None:
    service.reply = failure

    assert billing.get(ACME).origin == "fallback"
    assert billing.enabled(ACME, "export")
    assert not billing.enabled(ACME, "sso")


def test_304_without_a_copy_is_no_answer(service: Service, billing: BillingClient) -> None:
    service.reply = lambda _: answer(status=304, ETag='W/"41-0"', Content_Length="")

    assert billing.get(ACME).origin == "fallback"
    assert billing.counters()["errors"] == 1


@pytest.mark.parametrize("failure", GENERAL.values(), ids=GENERAL.keys())
def test_after_a_failure_of_the_service_nobody_asks_for_five_seconds(
    service: Service, billing: BillingClient, clock: Clock, failure: Reply
) -> None:
    service.put("t_globex", 7)
    service.reply = failure
    billing.get(ACME)
    service.reply = None
    already = len(service.asked)

    clock.pass_by(4.9)
    assert billing.get("t_globex").origin == "fallback"
    assert len(service.asked) == already
    clock.pass_by(0.1)

    assert billing.get("t_globex").version == 7


@pytest.mark.parametrize("failure", OF_ONE_TENANT.values(), ids=OF_ONE_TENANT.keys())
def test_a_failure_about_one_tenant_rests_that_tenant_only(
    service: Service, billing: BillingClient, clock: Clock, failure: Reply
) -> None:
    service.put(ACME, 41)
    service.put("t_globex", 7)
    service.reply = failure
    billing.get(ACME)
    service.reply = None

    assert billing.get("t_globex").version == 7
    assert billing.get(ACME).origin == "fallback"
    clock.pass_by(5)
    assert billing.get(ACME).version == 41


def test_the_service_may_ask_for_a_longer_pause_but_not_for_an_endless_one(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 41)
    service.reply = lambda _: answer({"error": "…"}, 503, Retry_After="86400")
    billing.get(ACME)
    service.reply = None

    clock.pass_by(29.9)
    assert billing.get(ACME).origin == "fallback"
    clock.pass_by(0.1)

    assert billing.get(ACME).version == 41


def silent(service: Service) -> Iterator[bytes]:
    service.closed.wait(5)
    yield b""


def dripping(service: Service, whole: bytes) -> Iterator[bytes]:
    for byte in whole:
        yield bytes([byte])
        if service.closed.wait(0.05):
            return


SLOW: dict[str, Callable[[Service], Reply]] = {
    "says nothing": lambda service: lambda _: silent(service),
    "drips its headers": lambda service: lambda asked: dripping(service, service.entitlements(asked)),
    "drips its body": lambda service: (
        lambda asked: (
            part
            for parts in (
                [service.entitlements(asked)[:-60]],
                dripping(service, service.entitlements(asked)[-60:]),
            )
            for part in parts
        )
    ),
    "goes on continuing": lambda service: lambda _: dripping(service, b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
}


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW.keys())
def test_no_answer_takes_longer_than_the_deadline_whatever_is_slow(
    service: Service, make_client: MakeClient, slow: Callable[[Service], Reply]
) -> None:
    billing = make_client(timeout=TIMEOUT)
    service.put(ACME, 41)
    service.reply = slow(service)
    begun = time.monotonic()

    document = billing.get(ACME)

    assert document.origin == "fallback"
    assert TIMEOUT * 0.9 < time.monotonic() - begun < TIMEOUT + 0.5  # a busy machine's half second


def test_a_body_without_end_is_not_read_to_the_deadline(service: Service, make_client: MakeClient) -> None:
    billing = make_client(timeout=5)
    headers = answer(b"", Transfer_Encoding="chunked", Content_Length="")
    service.reply = lambda _: itertools.chain(
        [headers], itertools.repeat(b"10000\r\n" + b" " * 65_536 + b"\r\n")
    )
    begun = time.monotonic()

    assert billing.get(ACME).origin == "fallback"
    assert time.monotonic() - begun < 3


def test_a_service_that_accepts_nobody_ends_with_the_deadline(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as first:
        first.connect(server.getsockname())
        others = [socket.socket() for _ in range(2)]  # fill what little queue there is
        for other in others:
            other.setblocking(False)
            other.connect_ex(server.getsockname())
        billing = make_client(timeout=TIMEOUT, url=f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()

        assert billing.get(ACME).origin == "fallback"
        assert time.monotonic() - begun < TIMEOUT + 0.5
        for other in others:
            other.close()


def test_a_resolver_that_is_silent_ends_with_the_deadline(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: over.wait(5) and [])
    begun = time.monotonic()

    assert make_client(timeout=TIMEOUT).get(ACME).origin == "fallback"
    assert time.monotonic() - begun < TIMEOUT + 0.5
    over.set()


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".example", "xn--\u00e9.example"])
def test_a_host_that_cannot_be_is_a_failure_and_nothing_worse(make_client: MakeClient, host: str) -> None:
    assert make_client(url=f"http://{host}").get(ACME).origin == "fallback"


def test_while_the_service_is_silent_one_asks_and_the_others_go_on(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    billing = make_client(timeout=TIMEOUT)
    service.reply = lambda _: silent(service)
    billing.get("t_globex")
    clock.pass_by(5)

    with ThreadPoolExecutor(8) as threads:
        begun = time.monotonic()
        probe = threads.submit(billing.get, ACME)
        service.wait_until_asked(2)
        others = [threads.submit(billing.get, tenant) for tenant in [ACME] * 50 + ["t_globex"] * 50]
        assert {other.result().origin for other in others} == {"fallback"}
        took = time.monotonic() - begun
        assert not probe.done()
        assert took < TIMEOUT
        assert probe.result().origin == "fallback"

    assert len(service.asked) == 2


def test_a_tenant_whose_answer_never_comes_in_time_holds_up_the_others_once(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    """Silence does not say whether it is about one tenant or all. So others are asked about first."""
    billing = make_client(timeout=TIMEOUT)
    for tenant in (ACME, "t_globex", "t_initech"):
        service.put(tenant, 7)
    service.reply = lambda asked: silent(service) if asked.tenant == ACME else service.by_contract(asked)

    assert billing.get(ACME).origin == "fallback"
    assert billing.get("t_globex").origin == "fallback"
    clock.pass_by(5)
    already = len(service.asked)
    assert billing.get(ACME).origin == "fallback"
    assert len(service.asked) == already
    assert billing.get("t_globex").version == 7
    clock.pass_by(5)
    assert billing.get(ACME).origin == "fallback"
    assert len(service.asked) == already + 2
    assert billing.get("t_initech").version == 7


def test_a_tenant_that_was_slow_once_is_asked_about_again(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    billing = make_client(timeout=TIMEOUT)
    service.put(ACME, 41)
    service.reply = lambda _: silent(service)
    billing.get(ACME)
    service.reply = None
    clock.pass_by(10)

    assert billing.get(ACME).version == 41


def test_an_end_of_the_failure_is_noticed_by_the_next_who_asks(
    service: Service, billing: BillingClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service.put(ACME, 41)
    service.stop()
    billing.get(ACME)
    clock.pass_by(5)
    billing.get(ACME)
    service.start()
    clock.pass_by(5)

    assert billing.get(ACME).version == 41
    assert billing.get("t_globex").origin == "fallback"  # asked at once: nobody knows it
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert counted(billing) == {"fallback": 3, "changed": 1, "errors": 2}


def test_random_bytes_in_any_place_never_reach_the_caller(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    """Answers that are cut, doubled, and sown with bytes: a document of this tenant, or what is declared."""
    chance = random.Random(41)  # the same bytes each time
    billing = make_client(timeout=TIMEOUT)
    service.put(ACME, 41, sso=True, projects=10)

    def mutated(asked: Asked) -> list[bytes]:
        whole = bytearray(service.entitlements(asked))
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(whole) or 1)
            if chance.random() < 0.7 and whole:
                whole[place] = chance.choice([0, 10, 13, 32, 34, 44, 45, 48, 57, 58, 123, 125, 0x80, 255])
            else:
                whole[place:] = whole[place:] * 2 if chance.random() < 0.5 else b""
        return [bytes(whole)]

    service.reply = mutated
    seen: set[str] = set()
    for _ in range(300):
        document = billing.get(ACME)
        seen.add(document.origin)
        assert document.tenant_id == ACME
        assert isinstance(billing.allows(ACME, "projects", used=9), bool)
        clock.pass_by(31)

    assert seen >= {"changed", "stale"}
    assert billing.counters()["errors"] > 50


# ---- many at once


def test_of_many_who_come_at_once_one_asks(service: Service, billing: BillingClient) -> None:
    document, may_answer = service.put(ACME, 41), threading.Event()

    def late(asked: Asked) -> bytes:
        assert may_answer.wait(5)
        return answer(document)  # not to be kept, and still everybody's who has waited

    service.reply = late
    with ThreadPoolExecutor(20) as threads:
        seen = [threads.submit(billing.get, ACME) for _ in range(20)]
        service.wait_until_asked(1)
        time.sleep(0.1)  # for the others to come, who leave no trace that could be waited for
        may_answer.set()
        versions = {one.result().version for one in seen}

    assert versions == {41}
    assert len(service.asked) == 1


def test_who_holds_a_copy_that_may_serve_meanwhile_does_not_wait(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    billing = make_client(timeout=2)
    service.put(ACME, 41)
    billing.get(ACME)
    clock.pass_by(89)
    may_answer = threading.Event()
    service.reply = lambda asked: (may_answer.wait(5) and service.entitlements(asked)) or b""

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(billing.get, ACME)
        service.wait_until_asked(2)
        begun = time.monotonic()
        assert billing.get(ACME).origin == "fresh"
        assert time.monotonic() - begun < 0.5
        may_answer.set()

        assert first.result().origin == "revalidated"


def test_who_waits_for_another_waits_no_longer_than_the_deadline(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    billing = make_client(timeout=TIMEOUT)
    service.put(ACME, 41)
    billing.get(ACME)
    clock.pass_by(1000)
    service.reply = lambda _: silent(service)

    begun = time.monotonic()
    with ThreadPoolExecutor(10) as threads:
        seen = list(threads.map(billing.get, [ACME] * 10))

    assert {document.origin for document in seen} == {"stale"}
    assert time.monotonic() - begun < 2 * TIMEOUT + 0.5
    assert len(service.asked) == 2


def test_no_thread_ever_sees_another_tenants_document(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    """A service that lies, closes and cuts its answers at random, and a cache that is too small."""
    billing = make_client(timeout=TIMEOUT, tenants=5)
    chance = random.Random(7)
    tenants = [f"t_{n}" for n in range(8)]
    for n, tenant in enumerate(tenants):
        service.put(tenant, 100 * n + 1, projects=n)

    def moody(asked: Asked) -> bytes | list[bytes]:
        luck = chance.random()
        good = service.entitlements(asked)
        if luck < 0.1:
            return service.entitlements(Asked("/api/tenants/t_3/entitlements", {}, 0))
        return [good] if luck < 0.3 else [good[:-9]] if luck < 0.35 else good

    def look(tenant: str) -> Document:
        clock.pass_by(3)
        return billing.get(tenant)

    service.reply = moody
    with ThreadPoolExecutor(8) as threads:
        wanted = random.Random(8).choices(tenants, [4, 4, 2, 1, 1, 1, 1, 1], k=1500)
        for tenant, document in zip(wanted, threads.map(look, wanted), strict=True):
            n = tenants.index(tenant)
            assert document.tenant_id == tenant
            assert document.origin == "fallback" or document.version == 100 * n + 1
            assert document.origin == "fallback" or document.features["projects"].limit == n

    assert counted(billing).keys() >= {"fresh", "changed", "revalidated", "errors"}


# ---- versions


def test_a_version_that_must_be_there_skips_an_older_copy(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 41)
    billing.get(ACME)
    service.put(ACME, 42)

    assert billing.get(ACME).version == 41
    assert billing.get(ACME, at_least=42).version == 42
    assert billing.get(ACME, at_least=42).origin == "fresh"
    assert "behind" not in counted(billing)


def test_a_service_that_is_a_moment_behind_is_asked_again(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 41)
    billing.get(ACME)

    def a_replica(asked: Asked) -> bytes:
        if len(service.asked) == 3:
            service.put(ACME, 42)
        return service.entitlements(asked)

    service.reply = a_replica
    document = billing.get(ACME, at_least=42)

    assert (document.version, document.is_behind) == (42, False)


def test_a_version_that_does_not_come_leaves_what_there_is_and_says_so(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 41, sso=True)

    document = billing.get(ACME, at_least=42)

    assert (document.version, document.is_behind, document.features["sso"].enabled) == (41, True, True)
    assert len(service.asked) == 3
    assert billing.counters()["behind"] == 1


def test_a_version_nobody_can_have_is_insisted_on_once_a_second(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """The number comes from browsers, and must be no lever to make us ask."""
    service.put(ACME, 41)
    for _ in range(20):
        assert billing.get(ACME, at_least=10**12).is_behind
    assert len(service.asked) == 3

    service.put(ACME, 42)
    assert billing.get(ACME, at_least=42).version == 42  # who wants what there is still gets it
    clock.pass_by(1)
    assert billing.get(ACME, at_least=10**12).is_behind
    assert len(service.asked) == 7


def test_a_version_is_not_waited_for_while_the_service_fails(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 41)
    billing.get(ACME)
    service.stop()
    begun = time.monotonic()

    document = billing.get(ACME, at_least=42)

    assert (document.version, document.is_behind) == (41, True)
    assert time.monotonic() - begun < 0.5


def test_a_service_that_goes_back_is_not_believed(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    before = dict(service.put(ACME, 41, sso=False))
    clock.pass_by(1)
    service.put(ACME, 42, sso=True)
    billing.get(ACME)
    clock.pass_by(30)
    service.documents[ACME] = before

    seen = [billing.get(ACME) for _ in range(3)]

    assert [(document.version, document.origin) for document in seen] == [(42, "stale")] * 3
    assert len(service.asked) == 2
    assert billing.counters()["errors"] == 1


def test_a_lower_version_that_stripe_has_confirmed_later_is_another_databases(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    """Within one database a later confirmation never has a lower version."""
    service.put(ACME, 42, sso=True)
    billing.get(ACME)
    clock.pass_by(31)
    service.put(ACME, 12, sso=False)

    assert (billing.get(ACME).version, billing.get(ACME).origin) == (12, "fresh")


def test_a_lower_version_is_taken_when_the_copys_time_is_up(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    before = dict(service.put(ACME, 12))
    service.put(ACME, 42)
    billing.get(ACME)
    service.documents[ACME] = before
    clock.pass_by(DAY + 31)

    assert billing.get(ACME).version == 12


def test_the_same_version_with_another_tag_is_taken(
    service: Service, billing: BillingClient, clock: Clock
) -> None:
    service.put(ACME, 42, sso=True)
    billing.get(ACME)
    service.put(ACME, 42, sso=False)
    clock.pass_by(30)

    assert not billing.enabled(ACME, "sso")


# ---- connections


def test_connections_are_kept_open(service: Service, billing: BillingClient, clock: Clock) -> None:
    service.put(ACME, 41)
    for _ in range(5):
        billing.get(ACME)
        clock.pass_by(30)

    assert len({asked.port for asked in service.asked}) == 1


@pytest.mark.parametrize("how", ["closed", "restarted", "closed at the next request"])
def test_a_connection_that_is_gone_is_nobodys_failure(
    service: Service, billing: BillingClient, clock: Clock, how: str
) -> None:
    service.put(ACME, 41)
    billing.get(ACME)
    clock.pass_by(30)
    if how == "closed":
        service.drop()
    elif how == "restarted":
        service.stop()
        service.start()
    else:
        service.reply = lambda asked: service.entitlements(asked) if len(service.asked) > 2 else []

    assert billing.get(ACME).origin == "revalidated"
    assert "errors" not in counted(billing)


def test_what_is_said_unasked_is_nobodys_answer(service: Service, billing: BillingClient, clock: Clock) -> None:
    """It could be an answer to somebody else, and 304 would pass for one to us."""
    service.put(ACME, 41)
    billing.get(ACME)
    clock.pass_by(30)
    service.put(ACME, 42)
    service.say(answer(status=304, Cache_Control="max-age=30", Content_Length=""))
    time.sleep(0.05)  # until it is here

    assert billing.get(ACME).version == 42


def test_an_answer_that_comes_too_late_is_nobodys(
    service: Service, make_client: MakeClient, clock: Clock
) -> None:
    billing = make_client(timeout=TIMEOUT)
    service.put(ACME, 41)
    service.put("t_globex", 7)

    def late(asked: Asked) -> Iterator[bytes]:
        time.sleep(1.5 * TIMEOUT)
        yield service.entitlements(asked)

    service.reply = late
    billing.get(ACME)
    service.reply = None
    clock.pass_by(5)

    assert billing.get("t_globex").version == 7


def test_a_redirect_leads_nowhere_and_takes_no_token_along(service: Service, billing: BillingClient) -> None:
    with a_service() as elsewhere:
        elsewhere.put(ACME, 41)
        service.reply = lambda asked: answer(b"", 302, Location=elsewhere.url + asked.path)

        assert billing.get(ACME).origin == "fallback"
        assert elsewhere.asked == []


def test_the_environments_proxy_sees_nothing(
    service: Service, billing: BillingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.put(ACME, 41)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")

    assert billing.get(ACME).version == 41
    assert service.asked[0].path.startswith("/")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A certificate for localhost that only those trust who are told to, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "localhost.pem"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_certificate_nobody_vouches_for_gets_no_token(make_client: MakeClient, authority: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)
    with a_service(context) as service:
        service.put(ACME, 41)

        assert make_client(url=service.url).get(ACME).origin == "fallback"
        assert service.asked == []
        trusting = make_client(url=service.url, context=ssl.create_default_context(cafile=authority))
        assert [trusting.get(tenant).version for tenant in (ACME, "t_globex", "t_other")] == [41, 0, 0]
        assert len({asked.port for asked in service.asked}) == 1


def test_a_handshake_that_is_never_answered_ends_with_the_deadline(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        billing = make_client(timeout=TIMEOUT, url=f"https://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()

        assert billing.get(ACME).origin == "fallback"
        assert time.monotonic() - begun < TIMEOUT + 0.5


def test_a_service_below_a_path_is_found_there(service: Service, make_client: MakeClient) -> None:
    service.reply = lambda _: answer({"tenant_id": ACME, "version": 41, "features": {}})

    assert make_client(url=f"{service.url}/billing/").get(ACME).version == 41
    assert service.asked[0].path == "/billing/api/tenants/t_acme/entitlements"


def test_the_token_is_in_no_log_no_error_and_no_repr(
    service: Service, billing: BillingClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for failure in FAILURES.values():
        service.reply = failure
        billing.get(ACME)
        clock.pass_by(100)
    with pytest.raises(ValueError, match="ASCII") as of_token:
        BillingClient(service.url, f"{TOKEN}\n", FALLBACK)
    with pytest.raises(ValueError, match="without user") as of_url:
        BillingClient(f"http://user:{TOKEN}@localhost", TOKEN, FALLBACK)

    seen = f"{caplog.text} {of_token.value} {of_url.value} {billing!r} {billing.get(ACME)!r}"

    assert "The billing service fails" in seen
    assert TOKEN not in seen


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "ftp://localhost",
        "http://",
        "http://h:port",
        "http://h/?q=1",
        "http://h/#f",
        "http://h/a b",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        BillingClient(url, TOKEN, FALLBACK)


# ---- where it runs


def test_it_needs_the_standard_library_and_nothing_else() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert imported <= sys.stdlib_module_names


def test_its_syntax_is_python_3_9s() -> None:
    ast.parse(SOURCE.read_text(), feature_version=(3, 9))


def interpreters() -> list[str]:
    """Of the versions it says it runs on, those that are here and work."""
    found = []
    for minor in range(9, 15):
        name = f"python3.{minor}"
        asked = [shutil.which(name) or name, "-c", "import ssl"]
        if shutil.which(name) and subprocess.run(asked, capture_output=True).returncode == 0:
            found.append(name)
    return found or [sys.executable]


LOOK = """
    import sys
    sys.path.insert(0, {folder!r})
    from billing_client import BillingClient
    billing = BillingClient({url!r}, "bsk_x", {{"sso": False, "projects": 3}})
    assert billing.enabled("t_acme", "sso")
    assert billing.allows("t_acme", "projects", used=9, at_least=41)
    assert billing.get("t_acme").as_of.year == 2031
    assert billing.get("t_globex").origin == "fallback"
    assert billing.counters()["fresh"] == 2, billing.counters()
    billing.close()
"""


@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).name)
def test_it_runs_on_each_python_that_is_here(service: Service, python: str) -> None:
    service.put(ACME, 41, sso=True, projects=10)
    script = textwrap.dedent(LOOK).format(folder=str(SOURCE.parent), url=service.url)

    subprocess.run([python, "-I", "-W", "error", "-c", script], check=True, timeout=30)


FORK = """
    import os, sys, threading
    from client.billing_client import BillingClient
    billing = BillingClient({url!r}, "bsk_x", {{"sso": False}})
    assert billing.get("t_acme").origin == "changed"
    with billing._lock:  # as if another thread were at it in this very moment
        child = os.fork()
        if child == 0:
            told = threading.Timer(5, os._exit, [3])  # whoever waits for that thread waits for ever
            told.start()
            fine = billing.get("t_acme").origin == "fresh" and billing.get("t_globex").version == 7
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert billing.get("t_globex").version == 7
    billing.close()
"""


def test_a_child_shares_neither_connections_nor_locks_with_its_parent(service: Service) -> None:
    service.put(ACME, 41)
    service.put("t_globex", 7)
    script = textwrap.dedent(FORK).format(url=service.url)

    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=30)

    parent, child, again = service.asked
    assert parent.port == again.port != child.port


def test_json_is_all_a_document_holds(service: Service, billing: BillingClient) -> None:
    service.put(ACME, 41, sso=True)

    assert json.loads(json.dumps(dict(billing.get(ACME).body))) == service.documents[ACME]
