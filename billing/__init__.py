"""What stands between a multi-tenant product and Stripe.

Four kinds of room, and who may enter which is linted (pyproject.toml, import-linter):

*doors* parse, call and answer. `web` holds those for HTTP callers: `web.entitlements` (what a tenant may use,
    and what can be bought), `web.changes` (who may use something else now), `web.checkout`, `web.portal`,
    `web.tenants` (what services say of tenants), `web.webhooks`, `web.health`, and `web.contract`, which checks
    every request. `web.mount` puts them into an app. `worker` is the door for time, `commands` the one for
    operators at a terminal, `console` the one for operators in a browser; what these two ask and do is
    `operations`, once.
*verbs* join subjects and Stripe. `sync` brings customers up to date, from what events carry or by asking
    Stripe; nobody else writes a tenant's billing state. `documents` reads what a tenant may use, `buying`
    opens Checkouts and sees what came of them, `enrolling` gives a tenant its customer and its name there,
    `forgetting` ends what we know of one, `clock` lets time pass, `cataloguing` reads what is sold.
    `reconcile` finds what no event has told, and leaves the mending to `sync`; `listening` brings events where
    Stripe cannot post. `doctor` says, in `findings`, what is wrong with the service, and `account` what is with
    how it is set up at Stripe.
*subjects* hold one table with its rules and its queries. `state` is the document of each tenant, made by
    `policy` (pure) of the others: `subscriptions` and `invoices` (the mirror), `entitlements` (Stripe's own
    features), `catalogue` (what is sold, and what it gives), `overrides` (what operators granted). `feed` is
    the order in which documents changed, and who copies them.
    `customers` (tenant ↔ Stripe customer), `checkouts` (what was begun at Stripe for a tenant), `audit` (who
    did what), `versions` (how each document came to say what it says), `directory` (by what operators find
    tenants), `tokens` (which services may ask), `inbox` (every event, and what became of it), `triage` (what
    operators see of it), `questions` (whom Stripe has to be asked about), `late` (whose news is), `budget`
    (how often Stripe is read), `chores` (what is done now and then), `workers` (which are alive), `operators`
    (who may use the console). `vitals` has the figures by which the service is watched, and `alarms`
    exports them. `events` and `signatures` have no table: they read what Stripe sends.
*edges* are the only places that know an outside thing: `stripe_api` (Stripe), `identity` (bearer tokens),
    `outbound` (HTTP calls that end in time).
Everybody stands on `db`, `config`, `deadline`, `errors` and `telemetry`; `schema` knows whether the database
is migrated, `wiring` builds what a process holds, once, and `serving` is how gunicorn's threads treat their
callers.
"""
