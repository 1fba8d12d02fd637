"""What no linter knows: the documents tell the truth, and the code keeps its own rules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from billing.config import Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
CONVERTER = re.compile(r"<\w+:")
PRODUCT = [ROOT / "app.py", ROOT / "wsgi.py", *(ROOT / "billing").rglob("*.py")]


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme(setting: str) -> None:
    assert f"`{setting.upper()}`" in README


def test_every_route_is_in_the_readme_and_every_route_there_exists(client: FlaskClient) -> None:
    routes = {
        f"{method} {CONVERTER.sub('<', rule.rule)}"
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) [^`]+)` \|", README, re.MULTILINE)) == routes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#:]+\.md)(#([\w-]+))?\)", document.read_text()):
        linked = document.parent / target
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
        assert not heading or heading in {
            re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings
        }


@pytest.mark.parametrize("module", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_lives_there(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text()))


def test_no_exception_is_swallowed_whole() -> None:
    """Whatever catches everything raises it again, but for three: settling the trail, for the link exists by
    then; the worker, whose events come back after their lease; and a question, which is put again."""
    swallowing = {
        str(module.relative_to(ROOT))
        for module in PRODUCT
        for handler in ast.walk(ast.parse(module.read_text()))
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"})
        and not isinstance(handler.body[-1], ast.Raise)
    }

    assert swallowing == {"billing/sync.py", "billing/web/links.py", "billing/worker.py"}


def test_no_code_of_the_operators_asks_stripe_for_money_or_for_a_link() -> None:
    """What `Stripe` writes may not so much as be named there; links and purchases are made by others."""
    written = {
        method.name
        for method in ast.walk(ast.parse((ROOT / "billing" / "stripe_api.py").read_text()))
        if isinstance(method, ast.FunctionDef) and "self._call(" in ast.unparse(method)
    }
    assert {"open_portal", "open_checkout", "cancel_subscription"} < written
    named = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for room in ("console", "operations")
        for module in (ROOT / "billing" / room).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
    }

    assert named & (written | {"buying"}) == set()


def test_every_metric_is_in_the_table_of_alarms_and_every_one_there_is_measured() -> None:
    table = (ROOT / "docs" / "operations.md").read_text().partition("\n## Alarms\n")[2].partition("\n## ")[0]
    made = {
        name
        for module in PRODUCT
        for call in ast.walk(ast.parse(module.read_text()))
        if isinstance(call, ast.Call) and re.search(r"(^|\.)(create_\w+|Gauge)$", ast.unparse(call.func))
        for name in (one.value for one in call.args[:1] if isinstance(one, ast.Constant))
        if str(name).startswith("billing.")
    }

    assert set(re.findall(r"^\| `(billing\.[\w.]+)`", table, re.MULTILINE)) == made


def test_every_pin_has_its_hash() -> None:
    for lock in ("requirements.txt", "requirements-run.txt", "requirements-dev.txt"):
        text = (ROOT / lock).read_text()
        pins = re.findall(r"^[a-z][\w.\[\]-]*==[^\n]*(?:\\\n\s+--hash=\S+\s*)+", text, re.MULTILINE)
        assert len(pins) == len(re.findall(r"^[a-z][\w.\[\]-]*==", text, re.MULTILINE)) > 40


def test_the_release_runs_on_what_is_pinned_and_nothing_else() -> None:
    pinned = set(
        re.findall(r"^([a-z][\w.-]*)(?:\[[\w,]+\])?==", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    )

    assert {"flask", "sqlalchemy", "alembic", "psycopg", "stripe", "flask-jwt-extended", "gunicorn"} <= pinned
    assert "opentelemetry-instrumentation-flask" in pinned
