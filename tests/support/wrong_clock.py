"""Runs `pcm-agent`, or `pcm`, by a wall clock that a test sets.

    python -m tests.support.wrong_clock service
    python -m tests.support.wrong_clock pcm schedule run

The file that `TEST_CLOCK` names holds the seconds by which it is wrong, as a C double. Only
`time.time` is, and what the scheduler takes for now: that is what they decide by.
"""

import os
import struct
import sys
import time
from datetime import datetime, tzinfo

from agents import cli
from broker.cli import main as administration
from broker.schedules import scheduler

_FILE = os.open(os.environ["TEST_CLOCK"], os.O_RDONLY)  # once: a test may use up all files
_right = time.time


def _wrong() -> float:
    (wrong_by,) = struct.unpack("d", os.pread(_FILE, 8, 0))
    return _right() + float(wrong_by)


class _Wrong(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(_wrong(), tz)


if __name__ == "__main__":
    time.time = _wrong
    if sys.argv[1] == "pcm":
        vars(scheduler)["datetime"] = _Wrong
        del sys.argv[0]
        administration.main()
    else:
        cli.main()
