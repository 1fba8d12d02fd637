"""`python -m billing.web`: the contract, as `make contract` keeps it in docs/openapi.json."""

from __future__ import annotations

import sys

from billing.web import contract

sys.stdout.write(contract())
