"""Measurements, run by hand: the portal route beside bare Flask routes.

`python -m bench.portal` compares servers under load, `python -m bench.cpu` the CPU of one request, steadily.
`portal` has the contestants, the limits and the table; `bare` the routes to beat; `stub` the Stripe all of
them talk to; `load` the clients; `machine` the processes, the database and what they cost. Nothing of it is
used by the service, and nothing is written outside a temporary directory.
"""
