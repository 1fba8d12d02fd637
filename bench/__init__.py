"""Measurements, run by hand. `python -m bench.portal` compares the portal route with bare Flask routes.

`portal` has the contestants, the limits and the table; `bare` the routes to beat; `stub` the Stripe all of
them talk to; `load` the clients; `machine` the processes, the database and what they cost. Nothing of it is
used by the service, and nothing is written outside a temporary directory.
"""
