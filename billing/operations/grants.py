"""What operators grant a tenant, or take from it, whatever its plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from billing import audit, catalogue, customers, overrides, state, sync, versions
from billing.audit import By
from billing.db import SYSTEM
from billing.errors import InvalidRequest, TenantNotFound
from billing.operations.tenants import said
from billing.state import Stored
from billing.wiring import Billing


@dataclass(frozen=True, slots=True)
class Granted:
    """An override that is set or lifted, and what that made of the document."""

    tenant_id: str
    feature: str
    value: str | None  # None: lifted
    expires_at: datetime | None
    version: int
    changes: Sequence[str]


def offered(billing: Billing) -> list[str]:
    """The features that the catalogue knows."""
    with billing.db.begin(SYSTEM) as connection:
        return sorted(catalogue.current(connection).keys)


def grant(
    billing: Billing,
    tenant_id: str,
    feature: str,
    value: str,
    by: By,
    *,
    expires_at: datetime | None = None,
    unsold: bool = False,
) -> Granted:
    """Set an override, in an earlier one's place.

    A feature that nothing sold has is refused unless that is meant (`unsold`): else a slip of the pen would be
    a feature of one tenant's own.
    """
    feature, value = feature.strip(), value.strip().lower()
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise InvalidRequest("The end must be in the future", param="expires_at")
    with billing.db.begin(SYSTEM) as connection:
        if feature not in catalogue.current(connection).keys and not unsold:
            raise InvalidRequest(
                "Nothing that is sold has this feature; say so if that is meant", param="feature"
            )
        before = _pinned(connection, tenant_id)
        try:
            overrides.put(
                connection, tenant_id, feature, value, author=by.actor, reason=by.reason, expires_at=expires_at
            )
        except ValueError as e:
            raise InvalidRequest(str(e)) from e
        until = f" until {expires_at:%Y-%m-%d %H:%M} UTC" if expires_at else ""
        audit.note(connection, by, "override.set", tenant_id=tenant_id, flow=f"{feature} = {value}{until}")
        changed = state.refresh(connection, [tenant_id], cause="override")
        after = _stored(connection, tenant_id)
    sync.tell(changed)
    return _granted(tenant_id, feature, value, expires_at, before, after)


def lift(billing: Billing, tenant_id: str, feature: str, by: By) -> Granted:
    """Take an override away; what the plan says holds again."""
    with billing.db.begin(SYSTEM) as connection:
        before = _pinned(connection, tenant_id)
        if not overrides.lift(connection, tenant_id, feature):
            raise InvalidRequest("The tenant has no such override", param="feature")
        audit.note(connection, by, "override.lift", tenant_id=tenant_id, flow=feature)
        changed = state.refresh(connection, [tenant_id], cause="override")
        after = _stored(connection, tenant_id)
    sync.tell(changed)
    return _granted(tenant_id, feature, None, None, before, after)


def _pinned(connection: Connection, tenant_id: str) -> Stored:
    """The tenant as it is, which nobody can forget meanwhile. `TenantNotFound` where nobody has named it.

    Its rows are locked before they are read, or one forgotten while we wait for them would come back.
    """
    customers.of(connection, tenant_id, keep=True)
    state.lock(connection, tenant_id)
    row = _stored(connection, tenant_id)
    is_named = row.version > 0 and not row.is_forgotten
    if not (is_named or customers.is_known(connection, tenant_id)):
        raise TenantNotFound
    customers.describe(connection, tenant_id, {})  # makes its row in tenant_config, if it has none
    return row


def _stored(connection: Connection, tenant_id: str) -> Stored:
    return state.stored(connection, tenant_id) or state.NOWHERE


def _granted(
    tenant_id: str, feature: str, value: str | None, expires_at: datetime | None, before: Stored, after: Stored
) -> Granted:
    changes = said(versions.differences(before.document or {}, after.document or {}))
    return Granted(tenant_id, feature, value, expires_at, after.version, changes)
