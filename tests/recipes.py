"""The code that the documents print for those who build on the service, by the names in the comments above it.

`printed` is what a test runs, word for word; test_recipes sees to it that every block has such a test.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "api.md", ROOT / "docs" / "client.md"]
TO_LOOK_AT = {"text", "http", "json"}  # drawings, requests and answers
FENCED = re.compile(r"(?:^<!-- recipe: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Some code in a document."""

    name: str
    language: str
    code: str


BLOCKS = [Block(*found) for document in DOCUMENTS for found in FENCED.findall(document.read_text())]


def printed(name: str) -> str:
    """The code that stands under this name."""
    [code] = [block.code for block in BLOCKS if block.name == name]
    return code


def surroundings(**more: str) -> dict[str, str]:
    """The environment of somebody who has our tools at hand, and a copy of the client."""
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": here, "PYTHONPATH": str(ROOT / "client"), **more}
