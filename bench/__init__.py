"""Measurements, run by hand: the service beside bare Flask routes and loops.

`python -m bench.portal` compares the portal route under load, `bench.cpu` the CPU of one such request.
`bench.entitlements` compares reads of what a tenant may use, among few tenants and among a million, and
`bench.changes` how other services of the house follow a million and ask about them;
`bench.acks` how events are taken, `bench.drain` how a backlog is worked off. `bench.claim` asks what a claim
takes in a large inbox, `bench.renewal` lives through the day on which everybody's month begins, and
`bench.console` opens the operators' pages among a million tenants and ten million events.

`bare` has the routes to beat; `stub` the Stripe the portal talks to; `events` what Stripe delivers; `documents`
what tenants have; `load` the clients; `machine` the processes, the database and what they cost; `limits` how
verdicts are written. Nothing of it is used by the service, and nothing is written outside a temporary
directory.
"""
