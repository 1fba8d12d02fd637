"""What operators see of the inbox: failures grouped by reason, events found by anything, each as a whole.

A question costs by what is unfinished, which has indexes of its own, and not by how many are settled. These are
found by their id, and by whom or what they are about; by anything else they are looked for among `LOOKED_AT` of
them at a time, and the answer says where to look on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, text

from billing.db import along_indexes

LOOKED_AT = 20_000  # events, in one look
COUNTED = 20_000
SLACK = timedelta(minutes=1)  # the numbers are in order, and times of arrival nearly so
LAST = 2**63 - 1

State = Literal["failing", "due", "waiting", "asking", "buried", "settled"]
STATES: tuple[State, ...] = get_args(State)
UNFINISHED: dict[str, str] = {  # each with its index; a failing event is due as well
    "failing": "state = 'due' AND reason IS NOT NULL",
    "waiting": "state = 'waiting'",
    "asking": "state = 'asking'",
    "buried": "state = 'buried'",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events somebody means: all that fit everything that is said.

    `about` is a customer, or the object of an event without one. `kind` is the first line of a fault.
    """

    event_ids: Sequence[str] | None = None
    state: State | None = None
    type: str | None = None
    reason: str | None = None
    kind: str | None = None
    about: str | None = None
    object_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    to_replay: bool = False  # not what is under way, nor what is of no use here unless it is meant

    def values(self) -> dict[str, Any]:
        """What is said, for a statement."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "event_ids": list(self.event_ids) if self.event_ids is not None else None
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in a list."""

    id: int
    event_id: str
    type: str
    object_id: str | None
    customer: str | None
    created: datetime | None
    received_at: datetime
    state: str
    due_at: datetime
    is_held: bool
    attempt: int
    lapses: int
    failures: int
    looks: int
    settled_at: datetime | None
    reason: str | None
    kind: str | None  # of the latest failure of ours, since it was last replayed


# Never the body: it is long, and kept apart from the row.
_FIELDS = """id, event_id, type, object_id, customer, created, received_at, state, due_at,
    held IS NOT NULL AS is_held, attempt, lapses, failures, looks, settled_at, reason,
    CASE WHEN failures > 0 THEN left(split_part(fault, E'\\n', 1), 255) END AS kind"""
_DUE = f"(SELECT {_FIELDS} FROM inbox WHERE state = 'due' ORDER BY due_at, id LIMIT :looked_at) AS due"  # noqa: S608  # ours, like all here
_FAILING = f"""(SELECT {_FIELDS} FROM inbox WHERE {UNFINISHED["failing"]}
                 ORDER BY id DESC LIMIT :looked_at) AS failing"""  # noqa: S608
_ABOUT = "(customer = :about OR customer IS NULL AND object_id = :about)"
_SAID = {
    "type": "type = :type",
    "reason": "reason = :reason",
    "kind": "kind = :kind",
    "object_id": "object_id = :object_id",
    "since": "received_at >= :since",
    "until": "received_at < :until",
}
_TO_REPLAY = "state NOT IN ('due', 'asking')"
_OF_USE = "(state <> 'settled' OR reason IS NULL)"


def _source(choice: Choice) -> str:
    """Where to look for the chosen, along an index."""
    if choice.event_ids is not None:
        return f"SELECT {_FIELDS} FROM inbox WHERE event_id = ANY(:event_ids)"  # noqa: S608
    if choice.about is not None and choice.state != "failing":
        return f"""SELECT {_FIELDS} FROM inbox WHERE customer = :about AND state <> 'due'
                   UNION ALL SELECT {_FIELDS} FROM inbox
                   WHERE object_id = :about AND customer IS NULL AND state <> 'due'
                   UNION ALL SELECT * FROM {_DUE} WHERE reason IS NULL AND {_ABOUT}
                   UNION ALL SELECT * FROM {_FAILING} WHERE {_ABOUT}"""  # noqa: S608
    if choice.state == "due":
        return f"SELECT * FROM {_DUE}"  # noqa: S608
    return f"SELECT {_FIELDS} FROM inbox WHERE {UNFINISHED.get(choice.state or '', 'true')}"  # noqa: S608


def _has_index(choice: Choice) -> bool:
    return choice.event_ids is not None or choice.about is not None or choice.state not in (None, "settled")


def _window(low: int, high: int, *, upwards: bool) -> tuple[int, int, int | None]:
    """The first LOOKED_AT numbers between these, and past which to look on. A LIMIT would not keep the planner,
    who thinks that the policy leaves little, from reading the whole table."""
    if high - low <= LOOKED_AT + 1:
        return low, high, None
    if upwards:
        return low, low + LOOKED_AT + 1, low + LOOKED_AT
    return high - LOOKED_AT - 1, high, high - LOOKED_AT


def _stretch(choice: Choice, way: str) -> str:
    return f"""
        SELECT * FROM ({_source(choice)}) AS source WHERE id > :low AND id < :high
        ORDER BY id {way} LIMIT :looked_at
    """  # noqa: S608


def _fits(choice: Choice) -> str:
    said = [sql for name, sql in _SAID.items() if getattr(choice, name) is not None]
    if choice.state == "failing" and choice.about is not None:
        said.append(_ABOUT)  # they lie behind one another, whomever they are about
    if choice.state:
        said.append(UNFINISHED.get(choice.state, f"state = '{choice.state}'"))
    if choice.to_replay:
        said.append(_TO_REPLAY)
        if choice.event_ids is None and choice.reason is None:
            said.append(_OF_USE)
    return " AND ".join(said) or "true"


def look(
    connection: Connection, choice: Choice, *, most: int, past: int | None = None, upwards: bool = False
) -> tuple[list[Entry], int | None]:
    """Up to `most` of the chosen, the newest first or `upwards`, and the number past which to look on, if any.

    Of those looked at in one go there may be none that fits, and others further on.
    """
    way, edge = ("ASC", "max") if upwards else ("DESC", "min")
    if choice.event_ids is None:
        along_indexes(connection)
    low, high = _bounds(connection, choice)
    if past is not None:
        low, high = (max(low, past), high) if upwards else (low, min(high, past))
    if looks_through := not _has_index(choice):
        low, high, on = _window(low, high, upwards=upwards)
    values = {**choice.values(), "low": low, "high": high, "looked_at": LOOKED_AT, "most": most + 1}
    stretch = _stretch(choice, way)
    find = f"SELECT * FROM ({stretch}) AS looked_at WHERE {_fits(choice)} ORDER BY id {way} LIMIT :most"  # noqa: S608
    found = [Entry(*row) for row in connection.execute(text(find), values)]
    if len(found) > most:
        return found[:most], found[most - 1].id
    if looks_through:
        return found, on
    end = f"SELECT CASE WHEN count(*) = :looked_at THEN {edge}(id) END FROM ({stretch}) AS looked_at"  # noqa: S608
    return found, connection.scalar(text(end), values)


def count(connection: Connection, choice: Choice) -> tuple[int, bool]:
    """How many of the chosen one look finds, from the oldest on; and whether there is more to look at."""
    along_indexes(connection)
    low, high = _bounds(connection, choice)
    values = {**choice.values(), "low": low, "high": high, "looked_at": LOOKED_AT}
    stretch = f"({_stretch(choice, 'ASC')}) AS looked_at"
    counts = f"SELECT count(*) FILTER (WHERE {_fits(choice)}), count(*) = :looked_at FROM {stretch}"  # noqa: S608
    row = connection.execute(text(counts), values).one()
    return row[0], row[1]


_ENDS = text("SELECT coalesce(min(id), 1), coalesce(max(id), 0) + 1 FROM inbox")
_NEXT = text("SELECT id, received_at FROM inbox WHERE id >= :id ORDER BY id LIMIT 1")


def _bounds(connection: Connection, choice: Choice) -> tuple[int, int]:
    """Between which numbers the chosen are, as far as the time says."""
    first, end = connection.execute(_ENDS).one()
    low = _number_at(connection, choice.since - SLACK, first, end) if choice.since else first
    high = _number_at(connection, choice.until + SLACK, first, end) if choice.until else end
    return low - 1, high


def _number_at(connection: Connection, moment: datetime, low: int, high: int) -> int:
    """From which number on events came at this moment or later. An index would cost each delivery."""
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(_NEXT, {"id": middle}).one_or_none()
        if found is None or found.received_at >= moment:
            high = middle
        else:
            low = found.id + 1
    return low


# ---- one event


@dataclass(frozen=True, slots=True)
class Record(Entry):
    """Everything there is of an event."""

    api_version: str | None
    livemode: bool | None
    sent_at: datetime | None
    secret: str | None
    trace: str | None
    fault: str | None
    failed_at: Sequence[datetime]
    body: bytes


_RECORD = text(f"""
    SELECT {_FIELDS}, api_version, livemode, sent_at, secret, trace, fault, failed_at, body
    FROM inbox WHERE event_id = :event_id
""")  # noqa: S608


def record(connection: Connection, event_id: str) -> Record | None:
    """The event, or None if it is not here, or no more."""
    row = connection.execute(_RECORD, {"event_id": event_id}).one_or_none()
    return Record(*row) if row else None


# ---- the whole at a glance; what is settled is many, and not looked at

_COUNTS = text("""
    SELECT state, count(*) AS events,
           extract(epoch FROM clock_timestamp() - min(received_at))::bigint AS oldest_seconds
    FROM (
        (SELECT state, received_at FROM inbox WHERE state = 'due' ORDER BY due_at, id LIMIT :most)
        UNION ALL (SELECT state, received_at FROM inbox WHERE state = 'waiting' ORDER BY id LIMIT :most)
        UNION ALL (SELECT state, received_at FROM inbox WHERE state = 'asking' ORDER BY id LIMIT :most)
        UNION ALL (SELECT state, received_at FROM inbox WHERE state = 'buried' ORDER BY id LIMIT :most)
    ) AS unsettled
    GROUP BY state ORDER BY state
""")
_FAILURES = text(f"""
    SELECT state, reason, type, kind, NULL AS customer, count(*), min(received_at), max(received_at)
    FROM (
        (SELECT {_FIELDS} FROM inbox WHERE {UNFINISHED["buried"]} ORDER BY id DESC LIMIT :most)
        UNION ALL (SELECT {_FIELDS} FROM inbox WHERE {UNFINISHED["failing"]} ORDER BY id DESC LIMIT :most)
        UNION ALL (SELECT {_FIELDS} FROM inbox WHERE {UNFINISHED["asking"]} ORDER BY id DESC LIMIT :most)
    ) AS failing
    WHERE reason IS NOT NULL
    GROUP BY state, reason, type, kind ORDER BY 6 DESC, reason, type LIMIT :groups
""")  # noqa: S608
_STRANGERS = text("""
    SELECT state, NULL AS reason, NULL AS type, NULL AS kind, customer, count(*),
           min(received_at), max(received_at)
    FROM (
        SELECT state, customer, received_at FROM inbox WHERE state = 'waiting' ORDER BY id DESC LIMIT :most
    ) AS waiting
    GROUP BY state, customer ORDER BY 6 DESC, customer LIMIT :groups
""")
_SECRETS = text("""
    SELECT secret, count(*) AS events, max(received_at) AS latest
    FROM (SELECT secret, received_at FROM inbox ORDER BY id DESC LIMIT 1000) AS newest
    WHERE secret IS NOT NULL GROUP BY secret ORDER BY latest DESC
""")
GROUPS = 50


@dataclass(frozen=True, slots=True)
class Count:
    """How many events are in a state, counted up to `COUNTED` and one more, and the age of the oldest."""

    state: str
    events: int
    oldest_seconds: int


@dataclass(frozen=True, slots=True)
class Group:
    """Events that fail alike; those that wait are alike where nobody owns the same customer."""

    state: str
    reason: str | None
    type: str | None
    kind: str | None
    customer: str | None
    events: int  # of the newest `COUNTED` in their state
    oldest: datetime
    newest: datetime


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing secret, by its fingerprint, and how many of the newest 1000 events came with it."""

    fingerprint: str
    events: int
    latest: datetime


@dataclass(frozen=True, slots=True)
class Overview:
    """How much is under way, why some of it failed, whom nobody owns, and which secrets Stripe signs with."""

    states: Sequence[Count]
    failures: Sequence[Group]
    strangers: Sequence[Group]
    secrets: Sequence[Secret]


def overview(connection: Connection) -> Overview:
    """What an operator asks first."""
    along_indexes(connection)
    strangers = connection.execute(_STRANGERS, {"most": COUNTED, "groups": GROUPS})
    return Overview(
        [Count(*row) for row in connection.execute(_COUNTS, {"most": COUNTED + 1})],
        failures(connection),
        [Group(*row) for row in strangers],
        secrets(connection),
    )


def failures(connection: Connection) -> list[Group]:
    """What fails or was given up, by what is wrong; the largest groups first."""
    return [Group(*row) for row in connection.execute(_FAILURES, {"most": COUNTED, "groups": GROUPS})]


def secrets(connection: Connection) -> list[Secret]:
    """Which secrets the newest 1000 events came with, the latest first."""
    return [Secret(*row) for row in connection.execute(_SECRETS)]
