"""Known bugs, planted one by one: each must be found by the test that is named for it.

`make mutants` copies the code, changes one line in the copy, and runs the named test there, which has to fail. A
mutant whose line is no longer there fails the run as well: it would prove nothing. ARGS="name …" picks some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("app.py", "wsgi.py", "gunicorn.conf.py", "alembic.ini", "pyproject.toml", "README.md")
TREES = ("billing", "sandbox", "client", "tests", "migrations", "bin", "deploy")
FAILED = 1  # pytest's word for: tests ran, and some failed


@dataclass(frozen=True)
class Mutant:
    """One bug: where it is planted, and who finds it."""

    name: str
    file: str
    line: str
    planted: str
    found_by: str


MUTANTS = [
    Mutant(
        "the host's clock ends copies",
        "client/billing_client.py",
        "(end - answer.date)",
        "(end - datetime.now(timezone.utc))",
        "tests/test_client.py::test_no_copy_outlives_a_known_end_by_the_services_clock",
    ),
    Mutant(
        "a document is anybody's",
        "client/billing_client.py",
        'body.get("tenant_id") != tenant',
        "False",
        "tests/test_client.py::test_a_failure_costs_nothing_but_freshness",
    ),
    Mutant(
        "everybody asks",
        "client/billing_client.py",
        "                flight = held.flight = _Flight()\n",
        "                flight = _Flight()\n",
        "tests/test_client.py::test_of_many_who_come_at_once_one_asks",
    ),
    Mutant(
        "everybody probes",
        "client/billing_client.py",
        "            self._rests_until = now + PAUSE_SECONDS\n        return True",
        "        return True",
        "tests/test_client.py::test_while_the_service_is_silent_one_asks_and_the_others_go_on",
    ),
    Mutant(
        "each receive has the whole time",
        "client/billing_client.py",
        "        self._sock.settimeout(self._connection.left())\n        return self._raw",
        "        self._sock.settimeout(2)\n        return self._raw",
        "tests/test_client.py::test_no_answer_takes_longer_than_the_deadline_whatever_is_slow",
    ),
    Mutant(
        "an answer comes after its time",
        "client/billing_client.py",
        "            if may_stay and len",
        "            if len",
        "tests/test_client.py::test_an_answer_that_comes_too_late_is_nobodys",
    ),
    Mutant(
        "what lies in the line is read",
        "client/billing_client.py",
        "        except OSError:\n            return False\n        return False",
        "        except OSError:\n            return False\n        return True",
        "tests/test_client.py::test_what_is_said_unasked_is_nobodys_answer",
    ),
    Mutant(
        "back is forward",
        "client/billing_client.py",
        "        if new.version >= held.version or now >= old.last:\n            return True",
        "        return True",
        "tests/test_client.py::test_a_service_that_goes_back_is_not_believed",
    ),
    Mutant(
        "browsers make us ask",
        "client/billing_client.py",
        "                self._held(document.tenant_id).missed = at_least, self._clock() + MISSED_SECONDS\n",
        "                pass\n",
        "tests/test_client.py::test_a_version_nobody_can_have_is_insisted_on_once_a_second",
    ),
    Mutant(
        "any body is read",
        "client/billing_client.py",
        "response.read(most + 1)",
        "response.read()",
        "tests/test_client.py::test_a_body_without_end_is_not_read_to_the_deadline",
    ),
    Mutant(
        "half an answer is one",
        "client/billing_client.py",
        "                if response.length:\n",
        "                if False:\n",
        "tests/test_client_feed.py::test_nonsense_is_neither_applied_nor_skipped",
    ),
    Mutant(
        "gone is not gone",
        "client/billing_client.py",
        "            held.copy, held.forgotten_at = None, self._clock()",
        "            held.copy = None",
        "tests/test_client_feed.py::test_an_answer_from_before_the_feed_said_gone_is_not_kept",
    ),
    Mutant(
        "another database in step",
        "client/billing_client.py",
        "                self._epoch, self._in_step_until = page.batch.epoch, NEVER",
        "                self._in_step_until = NEVER",
        "tests/test_client_feed.py::test_another_database_replaces_what_is_kept",
    ),
    Mutant(
        "the feed's word for ever",
        "client/billing_client.py",
        "        return is_in_step and now < min(copy.asked + LOOKED_UP_SECONDS, copy.last)",
        "        return is_in_step and now < copy.last",
        "tests/test_client_feed.py::test_the_feed_alone_keeps_nothing_fresh_for_ever",
    ),
    Mutant(
        "margin zero",
        "billing/subscriptions.py",
        "    margin = MARGIN_SECONDS[held.source]\n",
        "    margin = 0\n",
        "tests/test_subscriptions.py::test_what_differs_is_certain_outside_of_the_margin_only",
    ),
    Mutant(
        "ordered by created alone",
        "billing/subscriptions.py",
        "        return Verdict.AGREES\n    return Verdict.ASK\n",
        "        return Verdict.AGREES\n    return Verdict.NEWER if snapshot.created >= held.as_of else Verdict.OLDER\n",
        "tests/test_convergence.py::test_every_delivery_of_every_life_ends_as_it_is_at_stripe",
    ),
    Mutant(
        "equal facts settle first",
        "billing/subscriptions.py",
        "    margin = MARGIN_SECONDS[held.source]\n",
        "    if snapshot.subscription.facts.digest() == held.digest:\n        return Verdict.AGREES\n    margin = MARGIN_SECONDS[held.source]\n",
        "tests/test_subscriptions.py::test_an_event_that_agrees_with_an_answer_keeps_a_late_older_one_from_winning",
    ),
    Mutant(
        "an answer is an instant",
        "billing/sync.py",
        '        held = Held(status, subscription.facts.digest(), asked, max(asked, until), "answer")',
        '        held = Held(status, subscription.facts.digest(), asked, asked, "answer")',
        "tests/test_sync.py::test_an_answer_is_dated_by_stripes_clock",
    ),
    Mutant(
        "final rows revived by events",
        "billing/subscriptions.py",
        "    if held and held.is_final and not snapshot.is_final:\n",
        "    if False:\n",
        "tests/test_subscriptions.py::test_what_is_over_stays_over_whenever_the_snapshot_was_made",
    ),
    Mutant(
        "final rows revived by answers",
        "billing/sync.py",
        " or (row and row.held.is_final and status not in FINAL)",
        "",
        "tests/test_sync.py::test_an_answer_never_revives_what_is_over",
    ),
    Mutant(
        "stale first snapshots taken",
        "billing/subscriptions.py",
        "        return Verdict.NEWER if snapshot.fresh and readable else Verdict.ASK\n",
        "        return Verdict.NEWER if readable else Verdict.ASK\n",
        "tests/test_subscriptions.py::test_the_first_snapshot_is_taken_if_it_is_fresh_and_readable",
    ),
    Mutant(
        "a batch judged by the row before it",
        "billing/subscriptions.py",
        '            held = Held(facts.status, facts.digest(), snapshot.created, snapshot.created, "event")\n',
        '            held = held or Held(facts.status, facts.digest(), snapshot.created, snapshot.created, "event")\n',
        "tests/test_subscriptions.py::test_each_snapshot_is_judged_by_what_its_predecessor_left",
    ),
    Mutant(
        "no fence between answers",
        "billing/sync.py",
        "    if not questions.is_latest(connection, question):\n",
        "    if False:\n",
        "tests/test_sync.py::test_the_late_answer_of_a_lapsed_question_is_refused",
    ),
    Mutant(
        "no fence between answer and event",
        "billing/sync.py",
        "if row.heard > question.heard}",
        "if row.heard > question.heard + 1_000_000}",
        "tests/test_sync.py::test_an_answer_is_refused_after_a_newer_snapshot_and_asked_again",
    ),
    Mutant(
        "agreeing events are not heard",
        "billing/subscriptions.py",
        "HEARD = frozenset({Verdict.NEWER, Verdict.FINAL, Verdict.AGREES})",
        "HEARD = frozenset({Verdict.NEWER, Verdict.FINAL})",
        "tests/test_sync.py::test_an_answer_read_before_a_change_back_is_refused_although_the_event_only_agreed",
    ),
    Mutant(
        "a question put twice",
        "billing/questions.py",
        "          AND (asking_until IS NULL OR asking_until < statement_timestamp())\n",
        "",
        "tests/test_sync.py::test_a_question_in_flight_is_not_put_again",
    ),
    Mutant(
        "a late worker settles",
        "billing/inbox.py",
        "AS mine (id, attempt) USING (id, attempt)",
        "AS mine (id, claimed) USING (id)",
        "tests/test_worker.py::test_a_worker_that_comes_late_changes_nothing",
    ),
    Mutant(
        "a claim without a lease",
        "billing/inbox.py",
        "                     due_at = clock_timestamp() + %(lease)s,\n",
        "                     due_at = clock_timestamp(),\n",
        "tests/test_worker.py::test_a_claimed_event_is_nobody_elses_until_its_lease_is_over",
    ),
    Mutant(
        "poison charges its neighbours",
        "billing/inbox.py",
        "held = CASE WHEN held IS NULL THEN 'together' ELSE 'alone' END",
        "held = 'together'",
        "tests/test_worker.py::test_what_ends_its_worker_five_times_is_left_unread_and_stripe_is_asked_before_it_is_buried",
    ),
    Mutant(
        "what lapsed is claimed in company",
        "billing/inbox.py",
        " AND (place = 1 OR NOT past_a_lapse)",
        "",
        "tests/test_worker.py::test_what_lapsed_is_claimed_alone_and_its_neighbours_go_on_together",
    ),
    Mutant(
        "seen is done",
        "billing/inbox.py",
        "        WHERE state = 'due' AND due_at <= statement_timestamp()\n        ORDER BY due_at, id LIMIT %(most)s",
        "        WHERE state = 'due' AND attempt = 0 AND due_at <= statement_timestamp()\n        ORDER BY due_at, id LIMIT %(most)s",
        "tests/test_worker.py::test_what_lapsed_is_claimed_alone_and_its_neighbours_go_on_together",
    ),
    Mutant(
        "buried without asking",
        "billing/sync.py",
        "        outcome.ask(one, one.unreadable)\n",
        "        outcome.buried[one.unreadable].append(one.id)\n",
        "tests/test_worker.py::test_poison_is_not_buried_before_stripe_has_answered",
    ),
    Mutant(
        "an outage settles what it should not",
        "billing/sync.py",
        '        failure = e if deadline.left() > 0 else StripeFailed("out_of_time")\n',
        "        return None if hold(db, question, Answer()) else e\n",
        "tests/test_worker.py::test_while_stripe_fails_nothing_is_lost_or_buried_and_afterwards_all_is_settled",
    ),
    Mutant(
        "a refused key burns on",
        "billing/sync.py",
        "        budget.pause(ALL, KEY_REFUSED_SECONDS, because=failure.reason)\n",
        "        pass\n",
        "tests/test_budget.py::test_a_refused_key_stops_the_asking_loudly_and_uses_up_nothing",
    ),
    Mutant(
        "pages are free",
        "billing/sync.py",
        "            self._spend(endpoint)\n            return read(of, after)\n",
        "            return read(of, after)\n",
        "tests/test_budget.py::test_stripe_sees_no_more_than_its_rate_and_pages_count",
    ),
    Mutant(
        "people stand behind the backlog",
        "billing/budget.py",
        '"lane": lane, "every"',
        '"lane": "background", "every"',
        "tests/test_budget.py::test_who_waits_does_not_stand_behind_the_backlog",
    ),
    Mutant(
        "a deleted customer comes back",
        "billing/sync.py",
        "        if customer.is_deleted:\n            continue\n",
        "",
        "tests/test_sync.py::test_after_a_customers_end_a_late_snapshot_gives_no_access",
    ),
    Mutant(
        "an unused sequence has given out one",
        "billing/inbox.py",
        "SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM inbox_id_seq",
        "SELECT last_value FROM inbox_id_seq",
        "tests/test_sync.py::test_the_very_first_event_is_not_taken_for_one_that_had_arrived_before",
    ),
    Mutant(
        "an answer moves the time back",
        "billing/sync.py",
        "        asked = max(asked, row.held.as_of) if row else asked",
        "        asked = asked",
        "tests/test_sync.py::test_an_answer_never_moves_the_time_back",
    ),
    Mutant(
        "a key of another account settles all",
        "billing/sync.py",
        '                raise StripeFailed("unknown_customer")\n',
        "                return self._found\n",
        "tests/test_sync.py::test_a_customer_stripe_has_never_heard_of_settles_nothing_and_is_asked_about_again",
    ),
    Mutant(
        "what waits for a worker is drift",
        "billing/sync.py",
        "        is_untold = news and not (asked_by or _is_told(connection, customer))\n",
        "        is_untold = news\n",
        "tests/test_reconcile.py::test_a_change_whose_event_is_on_its_way_is_no_drift",
    ),
    Mutant(
        "what comes a moment later is drift",
        "billing/reconcile.py",
        "        if inbox.has_come(connection, customer, after=seen) or (newest or 0) > seen:\n",
        "        if seen < 0:\n",
        "tests/test_reconcile.py::test_a_change_is_judged_by_the_event_that_comes_after_it",
    ),
    Mutant(
        "the first answer of a link is drift",
        "billing/sync.py",
        " if questions.met(connection, [customer]) else {}\n",
        "\n",
        "tests/test_reconcile.py::test_what_the_first_answer_of_a_link_tells_is_no_drift",
    ),
    Mutant(
        "what was passed over is drift",
        "billing/sync.py",
        "        or inbox.is_passed_over(connection, customer.id, after=since)\n",
        "",
        "tests/test_reconcile.py::"
        "test_what_no_event_was_taken_in_for_is_drift_and_what_one_was_passed_over_for_is_none",
    ),
    Mutant(
        "an answer that is older than what is held differs",
        "billing/sync.py",
        "    if answered != question.put:\n",
        "    if answered < question.put:\n",
        "tests/test_reconcile.py::test_what_is_newer_than_the_answer_is_no_difference",
    ),
    Mutant(
        "an event is kept before whom it is about is suspected",
        "billing/missing.py",
        '            sync.suspect(connection, late, "missed_event", seen=inbox.newest(connection))\n',
        "            pass\n",
        "tests/test_reconcile.py::test_a_change_whose_event_was_missed_is_mended_and_told_once",
    ),
    Mutant(
        "the walk does not look how long the line is",
        "billing/reconcile.py",
        "        room = most - questions.in_line(connection, most=most)\n        found = questions.stalest(",
        "        room = most\n        found = questions.stalest(",
        "tests/test_reconcile.py::test_a_walk_adds_nobody_while_questions_wait_and_goes_on_when_they_are_put",
    ),
    Mutant(
        "listings pile up",
        "billing/worker.py",
        "        if self._looking is None or self._looking.done():\n",
        "        if True:\n",
        "tests/test_reconcile.py::test_a_listing_that_takes_long_is_not_begun_again_and_keeps_nobody_from_asking",
    ),
    Mutant(
        "a customer in other hands is waited for",
        "billing/questions.py",
        '_LOCK_FREE = text(f"{_LOCK} SKIP LOCKED")',
        "_LOCK_FREE = text(_LOCK)",
        "tests/test_sync.py::test_a_customer_in_somebody_elses_hands_holds_up_nobody_else",
    ),
    Mutant(
        "a slow database is the events' fault",
        "billing/worker.py",
        "        is_ours = not isinstance(fault, Busy)",
        "        is_ours = True",
        "tests/test_worker.py::test_a_database_that_is_slow_for_long_charges_no_event_and_ends_no_round_late",
    ),
    Mutant(
        "every event asks at once",
        "billing/questions.py",
        "coalesce(c.wanted_at, clock_timestamp())",
        "clock_timestamp()",
        "tests/test_sync.py::test_events_do_not_shorten_the_pause_after_a_failure",
    ),
    Mutant(
        "a want is eaten by a late answer",
        "billing/questions.py",
        ",\n                          stripe_customers.asking_until - interval '1 microsecond')",
        ")",
        "tests/test_sync.py::test_a_want_that_comes_after_the_lease_has_lapsed_outlives_the_late_answer",
    ),
    Mutant(
        "linking wakes nobody",
        "billing/sync.py",
        "        woken = inbox.wake(connection, customer)\n",
        "        woken = 0\n",
        "tests/test_links.py::test_linking_wakes_what_has_waited_and_has_stripe_asked",
    ),
    Mutant(
        "a document is written before its events are settled",
        "billing/sync.py",
        "        changed = _refresh(connection, batch, owned, outcome)\n",
        "    with db.begin(SYSTEM) as connection:\n        changed = _refresh(connection, batch, owned, outcome)\n",
        "tests/test_state.py::test_a_document_is_written_with_the_settling_of_its_events_or_not_at_all",
    ),
    Mutant(
        "every write is a version",
        "billing/state.py",
        "        grows = measured != bytes(digest)\n",
        "        grows = True\n",
        "tests/test_state.py::test_writing_the_same_again_changes_nothing_but_its_freshness",
    ),
    Mutant(
        "a copy of another tenant's document will do",
        "billing/state.py",
        "        written = json.dumps([self.tenant.id, self.evaluation.document], sort_keys=True)\n",
        "        written = json.dumps(self.evaluation.document, sort_keys=True)\n",
        "tests/test_documents.py::test_a_copy_of_another_tenants_document_is_none_of_this_one",
    ),
    Mutant(
        "a reader past the moment gets what is stored",
        "billing/documents.py",
        "        if found and found.is_known and found.edition and not found.is_due:\n",
        "        if found and found.is_known and found.edition:\n",
        "tests/test_documents.py::test_a_reader_sees_grace_trial_and_override_end_at_their_second_though_no_worker_runs",
    ),
    Mutant(
        "a stale document is the same",
        "billing/web/entitlements.py",
        "    if not document.is_stale and request.if_none_match.contains_weak(document.tag):\n",
        "    if request.if_none_match.contains_weak(document.tag):\n",
        "tests/test_documents.py::test_a_stale_document_is_never_the_same_and_never_kept",
    ),
    Mutant(
        "an older reading of the catalogue replaces a newer one",
        "billing/catalogue.py",
        "    return reading > held.kept and _publish(",
        "    return _publish(",
        "tests/test_cataloguing.py::test_of_readings_that_overlap_the_one_that_began_last_counts_whichever_ends_first",
    ),
    Mutant(
        "paused keeps Stripe's entitlements",
        "billing/policy.py",
        "    kept = tenant.entitlements - (lost - _entitled(having, catalogue))\n",
        "    kept = tenant.entitlements\n",
        "tests/test_policy.py",
    ),
    Mutant(
        "who has a subscription is sold another",
        "billing/buying.py",
        "        if any(map(_counts, held.values())):\n            raise errors.AlreadySubscribed\n",
        "",
        "tests/test_checkout.py::test_whoever_has_a_subscription_is_sent_to_the_portal",
    ),
    Mutant(
        "what has just been paid is canceled",
        "billing/buying.py",
        "        if is_awaited or self._unpaid(customer):\n",
        "        if is_awaited:\n",
        "tests/test_checkout.py::test_a_first_payment_that_came_without_our_hearing_of_it_is_not_canceled",
    ),
    Mutant(
        "a customer of a new key each time",
        "billing/enrolling.py",
        "idempotency_key=intent.id, **intent.params)",
        "idempotency_key=intent.id + str(id(whose)), **intent.params)",
        "tests/test_checkout.py::test_a_customer_that_may_have_been_made_is_not_made_again",
    ),
    Mutant(
        "the old session stays open",
        "billing/buying.py",
        '            session = self._expire(live, session)\n        if session and session.status == "complete":\n',
        '            self._settle(live, "expired")\n            return None\n'
        '        if session and session.status == "complete":\n',
        "tests/test_checkout.py::test_another_wish_closes_the_session_before_it_opens_its_own",
    ),
    Mutant(
        "a step on the way is shown",
        "billing/sync.py",
        "            _waits(folded, row, lacks) and not customer.failures\n",
        "            False\n",
        "tests/test_checkout_return.py::test_whichever_comes_first_the_document_is_the_same_and_one_version_on",
    ),
    Mutant(
        "one secret only",
        "billing/signatures.py",
        "    for place, secret in enumerate(secrets, 1):\n",
        "    for place, secret in enumerate(secrets[:1], 1):\n",
        "tests/test_signatures.py::test_every_secret_is_tried",
    ),
    Mutant(
        "one signature only",
        "billing/signatures.py",
        "signatures[:MOST_SIGNATURES]",
        "signatures[-1:]",
        "tests/test_signatures.py::test_one_good_signature_among_several_is_enough_wherever_it_stands",
    ),
    Mutant(
        "the future is now",
        "billing/signatures.py",
        "at is None or abs(now - at) > TOLERANCE_SECONDS:",
        "at is None or now - at > TOLERANCE_SECONDS:",
        "tests/test_signatures.py::test_it_holds_for_five_minutes_either_way",
    ),
    Mutant(
        "acknowledged before it is kept",
        "billing/web/webhooks.py",
        '        is_new = service().db.run(WEBHOOK, inbox.receive(delivery))\n    except (psycopg.Error, UnsafeRole) as e:  # whatever it is, the event is not stored\n        raise errors.ServiceUnavailable("database") from e\n',
        "        is_new = service().db.run(WEBHOOK, inbox.receive(delivery))\n    except (psycopg.Error, UnsafeRole, errors.ServiceUnavailable):\n        is_new = False\n",
        "tests/test_webhooks.py::test_an_event_that_cannot_be_stored_is_asked_for_again_in_seconds_and_then_taken",
    ),
    Mutant(
        "a query before the signature",
        "billing/web/webhooks.py",
        "    raw = raw_body(LARGEST_EVENT)\n",
        "    raw = raw_body(LARGEST_EVENT)\n    with service().db.begin(WEBHOOK):\n        pass\n",
        "tests/test_webhooks.py::test_all_that_is_wrong_with_a_signature_gets_one_answer_and_costs_no_query",
    ),
    Mutant(
        "a retry moves grace",
        "billing/invoices.py",
        "        min(finalized, default=None),\n",
        "        max(finalized, default=None),\n",
        "tests/test_invoices.py::test_a_retry_does_not_move_the_moment_it_was_finalized",
    ),
    Mutant(
        "an invoice goes back",
        "billing/invoices.py",
        "    ahead = max(one, other, key=lambda invoice: (RANK[invoice.status], invoice.status))\n",
        "    ahead = other\n",
        "tests/test_invoices.py::test_an_invoice_never_goes_back",
    ),
    Mutant(
        "a removed item stays",
        "billing/subscriptions.py",
        "        connection.execute(\n            _DROP_ITEMS,",
        "        (lambda *_: None)(\n            _DROP_ITEMS,",
        "tests/test_sync.py::test_an_item_that_was_removed_is_gone",
    ),
    Mutant(
        "a token outlives its end",
        "billing/tokens.py",
        "        WHERE hash = %(hash)s AND ended_at IS NULL\n",
        "        WHERE hash = %(hash)s\n",
        "tests/test_tokens.py::test_a_revoked_token_ends_with_the_next_request_in_every_process",
    ),
    Mutant(
        "a stranger's transaction is a service's",
        "billing/tokens.py",
        "CASE WHEN %(needs)s = ANY (scopes) THEN",
        "CASE WHEN true OR %(needs)s = ANY (scopes) THEN",
        "tests/test_tokens.py::test_a_transaction_is_a_services_only_after_its_token",
    ),
    Mutant(
        "every request writes its token's row",
        "billing/tokens.py",
        "        WHERE id = %(id)s AND coalesce(last_used_at <= clock_timestamp() - interval '1 minute', true)\n",
        "        WHERE id = %(id)s\n",
        "tests/test_tokens.py::test_of_those_who_all_found_it_unseen_one_writes_it_down",
    ),
    Mutant(
        "whoever asks about a tenant makes it",
        "billing/web/entitlements.py",
        "        documents.require(tenant_id)\n",
        "        pass\n",
        "tests/test_tenants.py::test_a_tenant_nobody_has_heard_of_is_not_found_and_not_made",
    ),
    Mutant(
        "a plain slash is the id's own",
        "billing/web/tenants.py",
        " and _is_to_the_letter(tenant_id)",
        "",
        "tests/test_tenants.py::test_the_address_of_a_document_is_no_tenant",
    ),
    Mutant(
        "who told something old has told",
        "billing/enrolling.py",
        "not (kept.is_untold or done)",
        "not kept.is_untold",
        "tests/test_tenants.py::test_who_told_something_old_last_tells_what_is_kept",
    ),
    Mutant(
        "another tenant's metadata does not matter",
        "billing/enrolling.py",
        "    if named and named != tenant_id and not whosever:\n",
        "    if False:\n",
        "tests/test_tenants.py::test_a_customer_whose_metadata_names_another_tenant_is_not_linked",
    ),
    Mutant(
        "a customer is made with today's name under yesterday's key",
        "billing/checkouts.py",
        "            return Intent(*row)  #",
        "            return Intent(row[0], params, row[2])  #",
        "tests/test_tenants.py::test_a_name_that_changes_while_the_customer_is_made_reaches_it",
    ),
    Mutant(
        "consumers are told of tenants nobody has asked about",
        "billing/state.py",
        "        return self.answered_at is not None and self.edition > 0\n",
        "        return True\n",
        "tests/test_feed.py::test_nobody_is_told_of_a_tenant_before_stripe_has_told_of_it",
    ),
    Mutant(
        "a position is given whether or not the version moves",
        "billing/state.py",
        "        moves = one.is_shown and version > fed\n",
        "        moves = one.is_shown\n",
        "tests/test_feed.py::test_what_only_confirms_a_document_moves_nobody",
    ),
    Mutant(
        "a silent process keeps the end of the feed",
        "billing/feed.py",
        "'idle_in_transaction_session_timeout', '2000', true",
        "'idle_in_transaction_session_timeout', '30000', true",
        "tests/test_feed.py::test_who_falls_silent_with_the_end_in_hand_loses_it_within_two_seconds",
    ),
    Mutant(
        "an epoch outlives a promotion",
        "billing/feed.py",
        "        substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)\n",
        "        ''\n",
        "tests/test_feed.py::test_a_replica_that_is_promoted_begins_an_epoch_though_it_has_every_position",
    ),
    Mutant(
        "a position beyond the end is the end",
        "billing/feed.py",
        " AND tail.position >= %(position)s",
        "",
        "tests/test_feed.py::test_a_position_beyond_the_end_leads_to_the_beginning",
    ),
    Mutant(
        "a 304 hides what a lost step has left",
        "billing/web/changes.py",
        "    if found.entries:\n",
        "    if found.entries and not request.if_none_match:\n",
        "tests/test_changes.py::test_what_has_changes_in_it_has_no_tag_so_a_304_never_hides_any",
    ),
    Mutant(
        "the next edition brings back who was forgotten",
        "billing/state.py",
        "NEVER = 2**63 - 1",
        "NEVER = 0",
        "tests/test_forgetting.py::test_nothing_of_ours_brings_a_forgotten_tenant_back",
    ),
    Mutant(
        "a worker that chose it before brings back who was forgotten",
        "billing/state.py",
        "if is_forgotten and (tenant not in back or one.answered_at is None):",
        "if is_forgotten and one.answered_at is None:",
        "tests/test_forgetting.py::test_a_worker_that_chose_the_document_before_does_not_bring_the_tenant_back",
    ),
    Mutant(
        "a link hides a deletion that nobody has heard of",
        "billing/state.py",
        "if is_forgotten and (tenant not in back or one.answered_at is None):",
        "if is_forgotten and tenant not in back:",
        "tests/test_forgetting.py"
        "::test_the_deletion_is_heard_of_though_the_tenant_is_linked_again_before_anybody_asks",
    ),
    Mutant(
        "forgetting undoes a link that came after the look",
        "billing/customers.py",
        '        raise Busy("database")\n',
        "        pass\n",
        "tests/test_forgetting.py::test_a_first_link_is_not_undone_by_who_looked_before_it",
    ),
    Mutant(
        "an answer brings back what a forgotten tenant had",
        "billing/forgetting.py",
        "    questions.drop(connection, customer)\n",
        "",
        "tests/test_forgetting.py::test_an_answer_under_way_brings_nothing_back",
    ),
    Mutant(
        "nobody is asked in place of what is ignored",
        "billing/sync.py",
        'if event.customer and event.state == "due"}',
        "if not event.customer}",
        "tests/console/test_inbox.py::test_what_is_ignored_in_a_workers_hands_is_not_applied_and_stripe_is_asked_instead",
    ),
    Mutant(
        "what was settled meanwhile is ignored all the same",
        "billing/inbox.py",
        "WHERE id = ANY(:ids) AND state <> 'settled' ORDER BY",
        "WHERE id = ANY(:ids) ORDER BY",
        "tests/console/test_inbox.py::test_who_ignores_what_is_just_being_settled_waits_and_changes_nothing",
    ),
    Mutant(
        "a list ends where none fits",
        "billing/triage.py",
        "    return high - LOOKED_AT - 1, high, high - LOOKED_AT\n",
        "    return high - LOOKED_AT - 1, high, None\n",
        "tests/console/test_inbox.py::test_going_on_through_a_list_shows_each_that_fits_once_however_few_are_looked_at",
    ),
]


def main(names: list[str]) -> int:
    """Run the named mutants, or all of them; how many were not found."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    if not passes({mutant.found_by for mutant in chosen}):
        print("These tests do not even pass on the code as it is.")
        return 1
    with ThreadPoolExecutor(2) as runners:
        verdicts = list(runners.map(hunt, chosen))
    for mutant, verdict in zip(chosen, verdicts, strict=True):
        print(f"{verdict:<18} {mutant.name}")
    escaped = sum(verdict != "found" for verdict in verdicts)
    print(f"{len(chosen) - escaped} of {len(chosen)} found.")
    return min(escaped, 1)


def passes(tests: set[str]) -> bool:
    """Whether the tests pass on the code as it is."""
    return run(ROOT, sorted(tests)) == 0


def hunt(mutant: Mutant) -> str:
    """What became of one mutant."""
    with tempfile.TemporaryDirectory(prefix="billing-mutant-") as directory:
        copy = Path(directory)
        for tree in TREES:
            shutil.copytree(ROOT / tree, copy / tree, ignore=shutil.ignore_patterns("__pycache__"))
        for file in COPIED:
            shutil.copy(ROOT / file, copy / file)
        code = (copy / mutant.file).read_text()
        if code.count(mutant.line) != 1:
            return "does not apply"
        (copy / mutant.file).write_text(code.replace(mutant.line, mutant.planted))
        return "found" if run(copy, [mutant.found_by]) == FAILED else "NOT FOUND"


def run(directory: Path, tests: list[str]) -> int:
    """Pytest's verdict on these tests there."""
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
