"""What happens by itself as time passes, each thing at its own instant and in order of time.

`catch_up` does all that is due by now, `advance` moves Stripe's clock first. A subscription falls due at
the end of its trial or period, when it is to be canceled, when a pause of its collection ends, 23 hours
after a first invoice nobody paid; an invoice when it is to be finalized or charged; a Checkout session, a
coupon or a promotion code when it expires. `due_at` says when, from what the object says; doing it moves
that on.
"""

import heapq
import itertools
from calendar import monthrange
from datetime import UTC, datetime
from typing import Any

from sandbox import bills, changes, discounts
from sandbox.bills import DAY
from sandbox.errors import Refusal
from sandbox.resources import new_id
from sandbox.store import Json, Store

FIRST_PAYMENT_SECONDS = 23 * 3600
WARNING_SECONDS = 3 * DAY
LAST_INSTANT = 32_503_679_999  # of 2999: dates are reckoned well beyond what is due

# which trial ends were announced, by subscription
WARNED = "trial_warning"


def advance(store: Store, seconds: int = 0, *, days: int = 0, months: int = 0) -> None:
    """By all of these; months are those of the calendar."""
    with store.lock:
        now = store.now()
        until = stepped(now, "month", months) + days * DAY + seconds
        if until > LAST_INSTANT:
            raise Refusal("The sandbox's time ends with the year 2999.")
        store.offset_seconds += until - now
        catch_up(store)


def pass_trial(store: Store, subscription_id: str) -> None:
    """Advance to the end of a trial, as far as that is still to come."""
    with store.lock:
        subscription = store.find("subscription", subscription_id)
        if subscription["status"] != "trialing":
            raise Refusal("This subscription is not on trial.")
        advance(store, max(0, subscription["trial_end"] - store.now()))


def catch_up(store: Store) -> None:
    with store.lock:
        until = store.now()
        while (due := next_due(store, until)) is not None:
            at, thing = due
            with store.standing_at(at):
                HAPPENINGS[thing["object"]](store, thing)


def next_due(store: Store, until: int) -> tuple[int, Json] | None:
    """The first thing due until then; an entry whose object says otherwise by now is out of date."""
    while store.written:
        (kind, id), thing = store.written.popitem()
        if (at := due_at(store, thing)) is not None:
            heapq.heappush(store.agenda, (at, kind, id))
    while store.agenda and store.agenda[0][0] <= until:
        at, kind, id = heapq.heappop(store.agenda)
        thing = store.collection(kind)[id]
        if due_at(store, thing) == at:
            return at, thing
    return None


def due_at(store: Store, thing: Json) -> int | None:
    dates = DATES[thing["object"]](store, thing) if thing.get("object") in DATES else []
    return min((date for date in dates if date is not None), default=None)


def dates_of_subscription(store: Store, subscription: Json) -> list[int | None]:
    status = subscription["status"]
    if status in bills.ENDED:
        return []
    if status == "incomplete":
        return [subscription["created"] + FIRST_PAYMENT_SECONDS]
    if status == "paused":
        return [subscription["cancel_at"]]
    pause = subscription["pause_collection"] or {}
    return [
        period_of(subscription)[1],
        subscription["cancel_at"],
        pause.get("resumes_at"),
        warning(store, subscription),
    ]


def dates_of_invoice(store: Store, invoice: Json) -> list[int | None]:
    if not invoice["auto_advance"]:
        return []
    return [invoice["automatically_finalizes_at" if invoice["status"] == "draft" else "next_payment_attempt"]]


def dates_of_session(store: Store, session: Json) -> list[int | None]:
    return [session["expires_at"]] if session["status"] == "open" else []


def dates_of_coupon(store: Store, coupon: Json) -> list[int | None]:
    return [coupon["redeem_by"]] if coupon["valid"] else []


def dates_of_code(store: Store, code: Json) -> list[int | None]:
    return [code["expires_at"]] if code["active"] else []


def subscription_due(store: Store, subscription: Json) -> None:
    now = store.now()
    pause = subscription["pause_collection"] or {}
    if subscription["status"] == "incomplete":
        expire(store, subscription)
    elif is_over(subscription["cancel_at"], now):
        end(store, subscription)
    elif is_over(warning(store, subscription), now):
        warn(store, subscription)
    elif is_over(pause.get("resumes_at"), now):
        changes.updated(store, subscription, pause_collection=None)
    elif subscription["status"] == "trialing":
        end_trial(store, subscription)
    else:
        renew(store, subscription)


def invoice_due(store: Store, invoice: Json) -> None:
    if invoice["status"] == "open":
        collect(store, invoice)
        return
    bills.finalize(store, invoice)
    pause = bills.subscription_of(store, invoice)["pause_collection"] or {}
    if pause.get("behavior") == "void":
        bills.void(store, invoice)
    elif pause.get("behavior") == "mark_uncollectible":
        bills.write_off(store, invoice)
    else:
        collect(store, invoice)


def session_due(store: Store, session: Json) -> None:
    store.change(session, status="expired", url=None)
    changes.happened(store, session, "expired")


def is_over(date: int | None, now: int) -> bool:
    return date is not None and date <= now


def expire(store: Store, subscription: Json) -> None:
    """Nobody paid the first invoice: voiding it is the end."""
    bills.void(store, store.find(bills.KIND, subscription["latest_invoice"]))


def end(store: Store, subscription: Json, **details: Any) -> None:
    """What never began expires instead."""
    now = store.now()
    store.change(
        subscription,
        canceled_at=subscription["canceled_at"] or now,
        cancellation_details={
            **subscription["cancellation_details"],
            "reason": "cancellation_requested",
            **details,
        },
    )
    if subscription["status"] == "incomplete":
        expire(store, subscription)
        return
    store.change(subscription, status="canceled", ended_at=now)
    changes.happened(store, subscription, "deleted")
    bills.give_up(store, subscription)


def collect(store: Store, invoice: Json) -> None:
    """Charge an open invoice; after the last attempt in vain the subscription ends as the account wants it."""
    bills.collect(store, invoice)
    subscription = bills.subscription_of(store, invoice)
    if invoice["status"] == "paid" or invoice["auto_advance"] or subscription["status"] != "past_due":
        return
    if store.after_retries == "canceled":
        end(store, subscription, reason="payment_failed")
    elif store.after_retries == "unpaid":
        changes.updated(store, subscription, status="unpaid")
        bills.give_up(store, subscription)


def warning(store: Store, subscription: Json) -> int | None:
    """When the end of its trial is to be announced, unless that was done."""
    if subscription["status"] != "trialing" or warned(store, subscription) == subscription["trial_end"]:
        return None
    date: int = subscription["trial_end"] - WARNING_SECONDS
    return date


def warned(store: Store, subscription: Json) -> int | None:
    return store.collection(WARNED).get(f"trial of {subscription['id']}", {}).get("trial_end")


def warn(store: Store, subscription: Json) -> None:
    """Three days before the end of a trial, or at once when less is left of it."""
    trial = {"id": f"trial of {subscription['id']}", "object": WARNED, "trial_end": subscription["trial_end"]}
    store.insert(trial)
    store.change(subscription)  # it falls due at another date now
    changes.happened(store, subscription, "trial_will_end")


def warn_early(store: Store, subscription: Json) -> None:
    if is_over(warning(store, subscription), store.now()):
        warn(store, subscription)


def out_of_trial(store: Store, subscription: Json) -> Json:
    """A trial that is ended before its time is announced all the same."""
    if warning(store, subscription) is not None:
        warn(store, subscription)
    return {"status": "active", "trial_end": store.now()}


def end_trial(store: Store, subscription: Json) -> None:
    missing = subscription["trial_settings"]["end_behavior"]["missing_payment_method"]
    if missing == "create_invoice" or bills.method_of(store, subscription):
        renew(store, subscription)
    elif missing == "cancel":
        end(store, subscription)
    else:
        changes.updated(store, subscription, status="paused")
        changes.happened(store, subscription, "paused")


def renew(store: Store, subscription: Json) -> None:
    """On to the next period, with a draft of its invoice. What was a trial is active from here."""
    start, end = period_of(subscription)
    status = "active" if subscription["status"] == "trialing" else subscription["status"]
    items = moved(store, bills.items_of(store, subscription), subscription["billing_cycle_anchor"], end)
    invoice_id = new_id("in", 24)
    changes.updated(store, subscription, status=status, items=items, latest_invoice=invoice_id)
    bills.draw_up(store, subscription, "subscription_cycle", id=invoice_id, period=(start, end))


def restart(store: Store, subscription: Json, items: list[Json], **more: Any) -> Json:
    """A period that begins now and is billed at once; answers its invoice, open."""
    now = store.now()
    invoice_id = new_id("in", 24)
    more |= {
        "billing_cycle_anchor": now,
        "items": moved(store, items, now, now),
        "latest_invoice": invoice_id,
    }
    changes.updated(store, subscription, **more | end_with_period(store, subscription | more))
    invoice = bills.draw_up(store, subscription, "subscription_update", id=invoice_id)
    bills.finalize(store, invoice)
    return invoice


def moved(store: Store, items: list[Json], anchor: int, start: int) -> Json:
    """The items in the period that begins at `start`."""
    recurring = items[0]["price"]["recurring"]
    end = next_date(anchor, recurring["interval"], recurring["interval_count"], start)
    period = {"current_period_start": start, "current_period_end": end}
    return bills.embedded(items[0]["subscription"], [store.insert(item | period) for item in items])


def end_with_period(store: Store, subscription: Json) -> Json:
    """What is to end with its period goes along when that is moved."""
    return {"cancel_at": period_end(store, subscription)} if subscription["cancel_at_period_end"] else {}


def period_end(store: Store, subscription: Json) -> int:
    """The next one: that of a paused subscription may lie behind."""
    return max(period_of(subscription)[1], store.now())


def period_of(subscription: Json) -> tuple[int, int]:
    """All items share it: they are of one interval."""
    first = subscription["items"]["data"][0]
    return first["current_period_start"], first["current_period_end"]


def next_date(anchor: int, interval: str, count: int, after: int) -> int:
    """The first date after `after` that is whole intervals from the anchor; months end on their last day."""
    longest = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY, "year": 366 * DAY}[interval] * count
    past = max(0, (after - anchor) // longest)
    dates = (stepped(anchor, interval, count * n) for n in itertools.count(past))
    return next(date for date in dates if date > after)


def stepped(anchor: int, interval: str, steps: int) -> int:
    if interval in ("day", "week"):
        return anchor + steps * DAY * (7 if interval == "week" else 1)
    from_day = datetime.fromtimestamp(anchor, UTC)
    years, month = divmod(from_day.month - 1 + steps * (12 if interval == "year" else 1), 12)
    year = from_day.year + years
    day = min(from_day.day, monthrange(year, month + 1)[1])
    return int(from_day.replace(year=year, month=month + 1, day=day).timestamp())


DATES = {
    "subscription": dates_of_subscription,
    "invoice": dates_of_invoice,
    "checkout.session": dates_of_session,
    "coupon": dates_of_coupon,
    "promotion_code": dates_of_code,
}
HAPPENINGS = {
    "subscription": subscription_due,
    "invoice": invoice_due,
    "checkout.session": session_due,
    "coupon": discounts.lapse,
    "promotion_code": discounts.lapse,
}
