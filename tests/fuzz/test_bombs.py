"""Small inputs cannot cause large costs in time, memory or stack."""

import subprocess
import sys

import pytest


@pytest.mark.full
def test_small_bytes_that_want_much() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
