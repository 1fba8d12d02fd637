"""How `bin/dev` makes .venv: `run` gets little, the other commands get all, and going up adds to what is there.

In a project of its own with two tiny packages, so that pip and uv do it for real and without the network.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

SAYS_NOTHING_RUNS = "billing"  # a command that needs what `run` needs, and ends at once


@dataclass(frozen=True)
class Project:
    """As much of a clone as making .venv takes."""

    root: Path
    path: str

    def dev(self, command: str) -> str:
        """What it prints."""
        done = subprocess.run(
            [sys.executable, "bin/dev", command],
            cwd=self.root,
            env={"PATH": self.path, "HOME": str(self.root), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    @property
    def packages(self) -> set[str]:
        return {found.name for found in self.root.glob(".venv/lib/python*/site-packages/tiny_*.py")}

    def pin(self, lock: str, *names: str) -> None:
        wheels = {name: a_wheel(self.root, name) for name in names}
        pins = [f"{name}==1.0 --hash=sha256:{digest(wheel)}" for name, wheel in wheels.items()]
        (self.root / lock).write_text("\n".join([f"--find-links {self.root}", *pins, ""]))


def a_wheel(directory: Path, name: str) -> Path:
    """A package of one empty module."""
    wheel, about = directory / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in {
            f"{name}.py": "",
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": "",
        }.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return wheel


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def tool() -> str:
    """What this machine has: uv, or nothing but Python, which takes ten times as long."""
    return "uv"


@pytest.fixture
def project(tool: str, tmp_path: Path) -> Project:
    """A fresh clone."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if tool == "uv":
        (programs / "uv").symlink_to(Path(sys.executable).parent / "uv")
    root = tmp_path / "project"
    for file in ("bin/dev", "sandbox/__init__.py", "sandbox/demo/__init__.py"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    project = Project(root, f"{programs}:/usr/bin:/bin")
    project.pin("requirements-run.txt", "tiny_one")
    project.pin("requirements-dev.txt", "tiny_one", "tiny_two")
    return project


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_run_installs_what_it_needs_the_others_add_the_rest_and_nothing_starts_over(project: Project) -> None:
    first = project.dev(SAYS_NOTHING_RUNS)
    after_first = project.packages
    (project.root / ".venv" / "kept").touch()
    second = project.dev(SAYS_NOTHING_RUNS)
    third = project.dev("setup")
    after_third = project.packages
    fourth = project.dev(SAYS_NOTHING_RUNS)

    assert after_first == {"tiny_one.py"}
    assert after_third == {"tiny_one.py", "tiny_two.py"}
    assert first.startswith("Making .venv: 1 packages.")
    assert third.startswith("Completing .venv: 2 packages.")
    assert second == fourth == "Nothing runs here: start `make run` in another terminal first.\n"
    assert (project.root / ".venv" / "kept").exists()


def test_changed_pins_start_over_and_half_made_is_filled_up(project: Project) -> None:
    project.dev("setup")
    (project.root / ".venv" / "kept").touch()

    (project.root / ".venv" / ".made-from").unlink()  # as if it had been stopped before the end
    half_made = project.dev("setup")
    was_kept = (project.root / ".venv" / "kept").exists()
    project.pin("requirements-dev.txt", "tiny_three")
    changed = project.dev("setup")

    assert (half_made.split(":")[0], was_kept) == ("Completing .venv", True)
    assert changed.startswith("Making .venv: 1 packages.")
    assert project.packages == {"tiny_three.py"}
    assert not (project.root / ".venv" / "kept").exists()


def test_pins_of_run_that_change_start_it_over(project: Project) -> None:
    project.dev(SAYS_NOTHING_RUNS)

    project.pin("requirements-run.txt", "tiny_three")
    project.dev(SAYS_NOTHING_RUNS)

    assert project.packages == {"tiny_three.py"}


def test_of_two_started_at_once_one_makes_it(project: Project) -> None:
    command = [sys.executable, "bin/dev", "setup"]
    environment = {"PATH": project.path, "HOME": str(project.root), "UV_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    started = [
        subprocess.Popen(command, cwd=project.root, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    said = [process.communicate()[0] for process in started]

    assert sorted("Making" in words for words in said) == [False, True]
    assert [process.returncode for process in started] == [0, 0]
