"""Measure the history: how fast it catches up beside a bare consumer, and how fast it answers.

    make bench

Everything runs in one go, on one machine, in turns, on SQLite; ratios compare, seconds do not.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from broker import stream, topology
from broker.connection import Publisher, connect
from broker.history.accounts import accounts
from broker.history.collector import catch_up
from broker.history.reader import rebuild
from broker.history.tables import open_history
from broker.settings import HistorySettings
from schemas import CheckIn, Command, Job, Output, Report, Result, State, everyone
from schemas.report import final_id
from tests.rabbitmq import Node
from tests.workstation import BIN

SINGLE_JOBS = 5
JOBS = 100
WORKSTATIONS = 2500
TOGETHER = 50  # reports of one message, as an agent that is busy sends them
ROUNDS = 3
STORY = (State.RECEIVED, State.STARTED, State.SUCCEEDED)


def new_job() -> Job:
    """Return a job for everyone."""
    return Job(command=Command(argv=("/bin/true",), background=True), targets=(everyone,))


def told_by(name: str, job: Job) -> Iterator[Report]:
    """Yield all that a workstation says of a job."""
    for state in (State.RECEIVED, State.STARTED, State.FAILED, State.SUCCEEDED):
        fails = hash(job.id + name) % 20 == 0
        if state is (State.SUCCEEDED if fails else State.FAILED):
            continue
        result = Result(
            exit_code=int(fails),
            duration=timedelta(seconds=1),
            max_memory=1_000_000,
            stdout=Output(head=b"all is well\n"),
            stderr=Output(head=b"E: no such package\n" * fails),
        )
        final = {"id": final_id(job.id, name), "result": result} if state.final else {}
        yield Report(
            job_id=job.id,
            workstation=name,
            agent="service",
            state=state,
            at=datetime.now(UTC),
            **final,  # type: ignore[arg-type]
        )


async def publish(publisher: Publisher, messages: Iterator[tuple[str, str, bytes]]) -> int:
    """Append messages, many at once; return how many."""
    count = 0

    async def sender() -> None:
        nonlocal count
        for kind, key, body in messages:
            await stream.append(publisher, key, body, kind=kind)
            count += 1

    await asyncio.gather(*(sender() for _ in range(500)))
    return count


def check_ins(names: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the messages by which workstations become known."""
    for name in names:
        told = CheckIn(workstation=name, agent="service", interval=timedelta(minutes=15))
        yield "check_in", topology.report_key("check_in", name, "service"), told.body()


def story(jobs: list[Job], names: list[str], together: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield the messages of jobs that run everywhere; some reports in each."""
    for job in jobs:
        yield "job", f"job.{job.id}", job.body()
    for start in range(0, len(jobs), together):
        for name in names:
            stories = zip(
                *(told_by(name, job) for job in jobs[start : start + together]), strict=True
            )
            for reports in stories:
                key = topology.report_key(reports[0].state, name, "service")
                yield "report", key, b"\n".join(report.body() for report in reports)


async def bare(settings: HistorySettings, count: int) -> float:
    """Return entries a second of a consumer that does nothing with them."""
    async with (
        connect(settings, "bench") as connection,
        stream.read(connection, None, 8000) as entries,
    ):
        began = time.perf_counter()
        read = 0
        while read < count:
            read += len(await entries.batch(4000))
        return count / (time.perf_counter() - began)


async def caught_up(settings: HistorySettings, count: int) -> float:
    """Return entries a second of a history that is made from nothing."""
    engine = open_history(settings.history_url)
    rebuild(engine)
    began = time.perf_counter()
    await catch_up(settings, engine)
    taken = time.perf_counter() - began
    engine.dispose()
    return count / taken


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def tell(what: str, figures: list[float], unit: str) -> None:
    """Print a median and its spread."""
    spread = f"{min(figures):.3g} to {max(figures):.3g}"
    print(f"{what:<60}{statistics.median(figures):>10.3g} {unit:<16}{spread}", flush=True)


def main() -> None:
    """Measure and print."""
    names = [f"ws-{number:05}" for number in range(WORKSTATIONS)]
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        settings = HistorySettings(
            amqp_url=(node.url,), history_url=f"sqlite:///{folder}/history.db"
        )
        asyncio.run(_measure(settings, names))
        _ask(settings)


async def _measure(settings: HistorySettings, names: list[str]) -> None:
    async with connect(settings, "bench") as connection:
        await topology.ensure(connection)
        publisher = await Publisher.open(connection)
        count = await publish(publisher, check_ins(names))
        count += await publish(publisher, story([new_job() for _ in range(SINGLE_JOBS)], names, 1))
        print(f"{count:,} messages of one report each, {len(names):,} workstations")
        alone, ours = [], []
        for _ in range(ROUNDS):
            alone.append(await bare(settings, count))
            ours.append(await caught_up(settings, count))
        tell("bare consumer", alone, "a second")
        tell("history, from nothing", ours, "a second")
        tell("  / bare consumer", [a / b for a, b in zip(ours, alone, strict=True)], "")
        jobs = [new_job() for _ in range(JOBS)]
        await publish(publisher, story(jobs, names, TOGETHER))
    reports = (JOBS + SINGLE_JOBS) * len(names) * 3
    print(f"{reports:,} reports in all; {JOBS} jobs more in messages of {TOGETHER} reports")
    tell("history, from nothing", [await caught_up(settings, reports)], "reports a second")


def _ask(settings: HistorySettings) -> None:
    engine = open_history(settings.history_url)
    with accounts(engine) as asked:
        newest = asked.jobs(most=1)[0].id
        for what, work in {
            "50 jobs with their tallies": lambda: asked.jobs(most=50),
            "the jobs that failed somewhere": lambda: asked.jobs(asked.has_state(["failed"])),
            "a job's failures, grouped": lambda: asked.failures(newest),
            "a job's first 50 workstations": lambda: asked.pairs(newest, most=50),
            "all workstations of a job": lambda: asked.pairs(newest),
        }.items():
            tell(what, [timed(work) * 1000 for _ in range(5)], "ms")
    engine.dispose()
    environment = {
        "PATH": os.environ["PATH"],
        "PCM_AMQP_URL": settings.amqp_url[0],
        "PCM_HISTORY_URL": settings.history_url,
    }
    collector = subprocess.Popen(
        [BIN / "pcm", "collect"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(5)
        for words in (("jobs",), ("show", newest)):

            def work(words: tuple[str, ...] = words) -> None:
                done = subprocess.run(
                    [BIN / "pcm", *words], env=environment, stdout=subprocess.DEVNULL, check=False
                )
                if done.returncode:
                    sys.exit(f"pcm {words[0]}: status {done.returncode}")

            tell(f"pcm {words[0]}, wall time", [timed(work) * 1000 for _ in range(5)], "ms")
    finally:
        collector.terminate()
        collector.wait()


if __name__ == "__main__":
    main()
