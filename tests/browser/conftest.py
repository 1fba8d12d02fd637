"""One run and one browser for all that is played here: tests/conftest.py sends it to one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.stage import CHROMIUM, Actor, Stage, a_stage


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
