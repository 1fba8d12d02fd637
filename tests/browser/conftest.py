"""One run and one browser for all stories: they are put on the same worker (`--dist loadgroup`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.stage import CHROMIUM, Actor, Stage, a_stage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="session")
def whole_stage() -> Iterator[Stage]:
    """Everything, as `make run` starts it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install Debian's package chromium")
    with a_stage() as stage:
        yield stage


@pytest.fixture
def stage(whole_stage: Stage) -> Stage:
    """The same, with nothing left of the story before."""
    whole_stage.clear_the_stage()
    return whole_stage


@pytest.fixture
def ada(stage: Stage) -> Iterator[Actor]:
    """Ada, owner of Acme, before an empty stage."""
    with stage.actor() as actor:
        yield actor
