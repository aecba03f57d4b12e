"""Fixtures of the tests against Python peers: the built programs and the repository's folders."""

import os
import pathlib
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("TARGET_DIR", REPOSITORY / "target/release"))


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def program():
    """program("activation-dump", "--layer", 1, ...) runs a built program and returns what it printed."""

    def run(name, *arguments, folder=TARGET):
        done = subprocess.run(
            [folder / name, *map(str, arguments)], capture_output=True, text=True, cwd=REPOSITORY
        )
        assert done.returncode == 0, f"{name} failed ({done.returncode}):\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def example(program):
    """The same for a crate's example program."""
    return lambda name, *arguments: program(name, *arguments, folder=TARGET / "examples")
