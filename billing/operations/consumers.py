"""Which services of the house may ask, by which tokens; and how far those are that follow the feed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from billing import audit, errors, feed, tokens
from billing.audit import By
from billing.db import SYSTEM
from billing.feed import Cursor
from billing.tokens import Token
from billing.wiring import Billing


@dataclass(frozen=True, slots=True)
class Consumer:
    """A service, by its tokens' name. One that has never read the feed stands nowhere in it."""

    name: str
    position: int | None
    behind: int | None  # counted up to `feed.COUNTED`, and one more where there are more
    asked_at: datetime | None
    tokens: Sequence[Token]  # that were not ended


@dataclass(frozen=True, slots=True)
class Consumers:
    """The end of the feed, and everybody who has a token."""

    head: str
    consumers: Sequence[Consumer]

    @property
    def readers(self) -> Sequence[Consumer]:
        """Those that have ever read the feed."""
        return [one for one in self.consumers if one.asked_at]


def read(billing: Billing) -> Consumers:
    """Everybody who has a token that was not ended, by name."""
    with billing.db.begin(SYSTEM) as connection:
        overview = feed.overview(connection)
        found = tokens.standing(connection)
    by_name: dict[str, list[Token]] = defaultdict(list)
    for token in found:
        by_name[token.name].append(token)
    reading = {one.name: one for one in overview.consumers}
    return Consumers(
        str(overview.head),
        [_consumer(name, reading.get(name), by_name[name]) for name in sorted(by_name.keys() | reading.keys())],
    )


def _consumer(name: str, at: feed.Consumer | None, held: Sequence[Token]) -> Consumer:
    if at is None:
        return Consumer(name, None, None, None, held)
    return Consumer(name, at.position, at.behind, at.asked_at, held)


def every_token(billing: Billing) -> Sequence[Token]:
    """All there ever were."""
    with billing.db.begin(SYSTEM) as connection:
        return tokens.every(connection)


def alive(billing: Billing, name: str) -> Sequence[Token]:
    """The service's tokens that hold."""
    with billing.db.begin(SYSTEM) as connection:
        return tokens.alive(connection, name)


def create(
    billing: Billing, by: By, name: str, scopes: Collection[str], expires_at: datetime | None
) -> tuple[str, Token]:
    """A new token of the service `name`, to be shown this once. `InvalidRequest` where it makes no sense."""
    if not re.fullmatch(tokens.NAME, name):
        raise errors.InvalidRequest(
            "must be at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit", param="name"
        )
    if not scopes or not set(scopes) <= set(tokens.SCOPES):
        raise errors.InvalidRequest(f"must be {' or '.join(tokens.SCOPES)}, or both", param="scope")
    with billing.db.begin(SYSTEM) as connection:
        secret, token = tokens.create(connection, name, tuple(scopes), expires_at)
        until = f" until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else ""
        what = f"{name} {token.id}: {' '.join(token.scopes)}{until}"
        audit.note(connection, by, "token.create", flow=what)
    return secret, token


def revoke(billing: Billing, by: By, name: str, ids: Collection[int] | None = None) -> Sequence[int]:
    """End these of the service's tokens, or all that hold. Which of them had not ended before."""
    with billing.db.begin(SYSTEM) as connection:
        if ids is None:
            ids = [token.id for token in tokens.alive(connection, name)]
        ended = sorted(tokens.revoke(connection, name, list(ids)))
        for id in ended:
            audit.note(connection, by, "token.revoke", flow=f"{name} {id}")
    return ended


def rewind(billing: Billing, by: By) -> Cursor:
    """Have every consumer start over. Where the feed ends then."""
    with billing.db.begin(SYSTEM) as connection:
        audit.note(connection, by, "feed.rewind")
        return feed.rewind(connection)


def end(written: str) -> datetime | None:
    """When a token ends, as people write it: a day, as it begins in UTC, or so many days from now; or never."""
    if not written:
        return None
    try:
        if days := re.fullmatch(r"(\d{1,6})d", written, re.ASCII):
            moment = datetime.now(UTC) + timedelta(days=int(days[1]))
        else:
            moment = datetime.strptime(written, "%Y-%m-%d").replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise errors.InvalidRequest(
            "must be a day, as in 2027-01-01, or so many days, as in 90d", param="expires"
        ) from None
    if moment <= datetime.now(UTC):
        raise errors.InvalidRequest("must be in the future", param="expires")
    return moment
