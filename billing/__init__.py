"""What stands between a multi-tenant product and Stripe.

Four kinds of room and one verb, and who may enter which is linted (pyproject.toml, import-linter):

*doors* parse, call and answer. `web` holds those for HTTP callers: `web.portal`, `web.webhooks`, `web.health`,
    and `web.contract`, which checks every request. `web.mount` puts them into an app. `worker` is the door for
    time, `commands` the one for operators at a terminal.
*the verb* is `sync`: bring customers up to date, from what events carry or by asking Stripe. Nobody else writes
    a tenant's billing state. `reconcile` finds what no event has told, and leaves the mending to the verb.
*subjects* hold one table with its rules and its queries: `customers` (tenant ↔ Stripe customer), `audit` (who
    did what), `inbox` (every event, and what became of it), `subscriptions` and `invoices` (the mirror),
    `questions` (whom Stripe has to be asked about), `checkouts` (sessions, and for whom), `budget` (how often
    Stripe is read), `chores` (what is done now and then). `events` and `signatures` have no table: they read
    what Stripe sends.
*edges* are the only places that know an outside thing: `stripe_api` (Stripe), `identity` (bearer tokens),
    `outbound` (HTTP calls that end in time).
Everybody stands on `db`, `config`, `errors` and `telemetry`; `schema` knows whether the database is migrated,
`wiring` builds what a process holds, once, and `serving` is how gunicorn's threads treat their callers.
"""
