"""Another user of the machine, who means no good: code that runs with their rights alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.execution.environment import PATH
from tests.support.waiting import LIMIT

UID = 65534
_PYTHON = shutil.which("python3", path=PATH) or sys.executable
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")


def _start(code: str, words: "tuple[str | Path, ...]") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [_PYTHON, "-c", f"import fcntl, os, socket, sys, time; a = sys.argv[1:]\n{code}", *words],
        user=UID,
        group=UID,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def does(code: str, *words: str | Path) -> str:
    """Run code as another user, with its words in `a`; return what it prints, errors included."""
    with _start(code, words) as process:
        return process.communicate(timeout=LIMIT)[0]


@contextmanager
def doing(code: str, *words: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Let code of another user run, once it has printed a line."""
    with _start(code, words) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.stdout.read()
            yield process
        finally:
            process.kill()


def opened(folder: Path) -> Path:
    """Let other users reach a folder of a test; return it."""
    for step in (folder, *folder.parents):
        if step.stat().st_uid == os.geteuid() and step != Path("/"):
            step.chmod(step.stat().st_mode | 0o011)
    return folder


def shared_folder(folder: Path) -> Path:
    """Make a folder in a test's folder that every user can write to; return it."""
    shared = opened(folder) / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    return shared
