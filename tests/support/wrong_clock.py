"""Runs `pcm-agent`, or `pcm`, by a wall clock that a test sets.

    python -m tests.support.wrong_clock service
    python -m tests.support.wrong_clock pcm schedule run

The file that `TEST_CLOCK` names holds the seconds by which it is wrong, and those that the machine
has slept, as C doubles. Only `time.time` is wrong, and what the scheduler takes for now: that is
what they decide by.
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
_right_of = time.clock_gettime


def _read() -> tuple[float, float]:
    wrong_by, asleep = struct.unpack("dd", os.pread(_FILE, 16, 0))
    return wrong_by, asleep


def _wrong() -> float:
    return _right() + _read()[0]


def _wrong_of(clock: int) -> float:
    return _right_of(clock) + (_read()[1] if clock == time.CLOCK_BOOTTIME else 0.0)


class _Wrong(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(_wrong(), tz)


if __name__ == "__main__":
    time.time = _wrong
    time.clock_gettime = _wrong_of
    if sys.argv[1] == "pcm":
        vars(scheduler)["datetime"] = _Wrong
        del sys.argv[0]
        administration.main()
    else:
        cli.main()
