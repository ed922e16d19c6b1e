"""Runs `pcm-agent` by a wall clock that a test sets.

The file that `TEST_CLOCK` names holds the seconds by which it is wrong. Only `time.time` is:
that is what the agents decide by.
"""

import os
import time
from pathlib import Path

from agents.cli import main

_FILE = Path(os.environ["TEST_CLOCK"])
_right = time.time


def _wrong() -> float:
    return _right() + float(_FILE.read_text())


if __name__ == "__main__":
    time.time = _wrong
    main()
