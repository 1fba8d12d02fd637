"""What stands between a multi-tenant product and Stripe.

Four kinds of room, and who may enter which is linted (pyproject.toml, import-linter):

*doors* parse, call and answer. `web` holds those for HTTP callers: `web.portal`, `web.health`, and
    `web.contract`, which checks every request. `web.mount` puts them into an app.
*subjects* hold one table with its rules and its queries: `customers` (tenant ↔ Stripe customer),
    `audit` (who did what).
*edges* are the only places that know an outside thing: `stripe_api` (Stripe), `identity` (bearer tokens),
    `outbound` (HTTP calls that end in time).
Everybody stands on `db`, `config`, `errors` and `telemetry`; `wiring` builds what a process holds, once, and
`serving` is how gunicorn's threads treat their callers.
"""
