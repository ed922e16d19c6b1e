"""`pcm watch` on a terminal, through a pipe, and as JSON; with reports of fleets that are not."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import pytest

from broker import Progress
from broker.watch.tally import WatchTally
from schemas import Command, Job, State, group
from tests.support.admin import ended, report


def job_for(name: str) -> Job:
    return Job(command=Command(argv=("true",), background=True), targets=(group(name),))


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number:04}" for number in range(count)]


def instructions(work: Callable[[], None]) -> int:
    """Return how many instructions Python executes for some work; a time would vary."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_each_report_costs_the_same_however_many_there_were() -> None:
    """Q140389: else a large fleet is never done; 10,000 took a minute."""
    job = job_for("cost")
    progress = Progress(job.id)
    tally = WatchTally(progress)
    progress.add(job)

    def take(members: list[str]) -> None:
        for name in members:
            for one in (report(job, name, State.STARTED), ended(job, name, 1)):
                progress.add(one)
                tally.add(one)
                assert progress.ended is (one.state is State.FAILED)

    members = names("cost", 10_000)
    first = instructions(lambda: take(members[:100]))
    take(members[100:9900])
    assert instructions(lambda: take(members[9900:])) < 1.1 * first
    assert (tally.ended, tally.failed, len(tally.failures)) == (10_000, 10_000, 1)


def test_the_rate_is_that_of_what_ended_while_we_watched() -> None:
    now = 1000.0
    job = job_for("rate")
    progress = Progress(job.id)
    tally = WatchTally(progress, clock=lambda: now)

    def end(count: int) -> None:
        for _ in range(count):
            one = ended(job, f"w{len(progress.workstations)}")
            progress.add(one)
            tally.add(one)

    end(500)
    progress.caught_up.set()
    assert tally.rate == 0
    for _ in range(10):
        now += 1
        end(20)
    assert tally.rate == pytest.approx(20)
    now += 25
    assert 0 < tally.rate < 5
    now += 10
    assert tally.rate == 0


def test_a_report_of_less_than_is_known_changes_no_count() -> None:
    job = job_for("less")
    progress = Progress(job.id)
    tally = WatchTally(progress)
    final = ended(job, "w", 1)
    late = report(job, "w", State.STARTED, at=datetime(2030, 1, 1, tzinfo=UTC))
    for one in (report(job, "w", State.RECEIVED), final, late, final):
        if progress.add(one):
            tally.add(one)
    assert (tally.started, tally.failed, tally.ended) == ({}, 1, 1)
    assert +progress.counts == {State.FAILED: 1}
