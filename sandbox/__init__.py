"""A pretend Stripe that keeps its word: the same addresses, answers and errors, no account and no money.

`wire` checks what comes in against stripe-python's own parameter types, `resources` says what each
operation does, `idempotency` and `store` remember it, `app` takes each call through these for the one
`account`, and `server` runs that in a thread or as a process. `life` lets time pass, `bills` draws up and
collects invoices, less `discounts`, `entitlements` says what they are good for, `changes` makes events of it
all, and `deliveries` tells webhook endpoints of them. `faults` and `lines` make calls fail, and `deliveries`
its posts, when told to through `control`; `pages` is what a customer sees and does, and `console`, at the
root, a page of all levers with an `overview` of what came of them. `safety` says where none of this starts and
whom it does not answer. Callers speak HTTP and import only `sandbox.server`. `demo` is a customer of the
service, not a part of Stripe.
"""
