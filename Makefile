# `make` lists what there is. All of it is bin/dev; ARGS="…" passes arguments on.

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

run: ## start the service, its database, a demo and a pretend Stripe; Ctrl-C stops all
billing: ## run `flask billing …` on what `make run` has started; ARGS=inbox
test: ## run all tests; ARGS="-k portal" picks some
soak: ## the tests of order, crashes and hostile traffic at full length; hours
mutants: ## plant known bugs one by one and see the tests find them
fidelity: ## compare the sandbox with Stripe itself; needs STRIPE_TEST_KEY
lint: ## check style, formatting, types and imports
contract: ## write docs/openapi.json anew from what the routes say of themselves
pictures: ## take the pictures in docs/pictures anew; needs Chromium
setup: ## make .venv, which the others do by themselves
bench: ## ratios beside bare Flask routes; needs wrk; ARGS="acks --rounds 2" picks one
lock: ## pin requirements*.in into requirements*.txt; ARGS=--upgrade takes the newest
run billing test soak mutants fidelity lint contract pictures setup bench lock: ; @python3 bin/dev $@ $(ARGS)

.PHONY: help run billing test soak mutants fidelity lint contract pictures setup bench lock
