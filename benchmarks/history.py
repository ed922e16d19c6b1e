"""Measure the history: its reading rate beside a bare consumer's, and its query times.

    make bench

All sides run alternately, on one machine, with SQLite. The consumer is bare aiormq with the same
prefetch count.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import islice

from benchmarks.bare_stream import PREFETCH
from benchmarks.measured import Comparison, Series, in_turns
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history.collector import catch_up
from broker.history.engine import open_history
from broker.history.queries.jobs import query_jobs
from broker.history.reader import rebuild
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import CheckIn, Command, Job, Output, Report, Result, State, everyone
from schemas.reports.report import final_id
from tests.support.programs import BIN
from tests.support.rabbitmq import Node

SINGLE_JOBS = 5
JOBS = 100
WORKSTATIONS = 2500
TOGETHER = 50  # reports in one message, as a busy agent sends them
AT_ONCE = 200
STORY = (State.RECEIVED, State.STARTED, State.SUCCEEDED)


def new_job() -> Job:
    """Return a job for everyone."""
    return Job(command=Command(argv=("/bin/true",), background=True), targets=(everyone,))


def reports_by(name: str, job: Job) -> Iterator[Report]:
    """Yield a workstation's reports of a job."""
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
    """Append messages in batches; return their number."""
    count = 0
    while several := list(islice(messages, AT_ONCE)):
        outgoing = [
            publisher.outgoing(topology.REPORTS, key, body, kind=kind, unroutable_fails=True)
            for kind, key, body in several
        ]
        await stream.append_all(publisher, outgoing)
        count += len(several)
    return count


def check_ins(names: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the check-ins of workstations."""
    for name in names:
        check_in = CheckIn(workstation=name, agent="service", interval=timedelta(minutes=15))
        yield "check_in", topology.report_key("check_in", name, "service"), check_in.body()


def story(jobs: list[Job], names: list[str], together: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield the messages of jobs that run everywhere, with `together` reports in each."""
    for job in jobs:
        yield "job", f"job.{job.id}", job.body()
    for start in range(0, len(jobs), together):
        for name in names:
            stories = zip(
                *(reports_by(name, job) for job in jobs[start : start + together]), strict=True
            )
            for reports in stories:
                key = topology.report_key(reports[0].state, name, "service")
                yield "report", key, b"\n".join(report.body() for report in reports)


def bare(url: str, messages: int, first: int = 0) -> float:
    """Return messages a second of a consumer that discards them, from an offset on."""
    words = ["-m", "benchmarks.bare_stream", url, topology.REPORTS, str(first), str(messages)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return float(done.stdout)


def caught_up(settings: HistorySettings, reports: int) -> float:
    """Return reports a second of a history that is rebuilt."""
    engine = open_history(settings.history_url)
    rebuild(engine)
    taken = timed(lambda: asyncio.run(catch_up(settings, engine)))
    engine.dispose()
    return reports / taken


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


async def fill(settings: HistorySettings, jobs: list[Job], names: list[str], together: int) -> int:
    """Fill a new stream with jobs and their reports; return the number of messages."""
    async with connect(settings, "bench") as connection:
        async with connection.channel() as channel:
            await channel.queue_delete(topology.REPORTS)
            await topology.apply(channel)
        publisher = await Publisher.open(connection)
        count = await publish(publisher, check_ins(names))
        return count + await publish(publisher, story(jobs, names, together))


def compare(settings: HistorySettings, name: str, jobs: int, together: int) -> None:
    """Measure catching up beside a bare consumer, and store the comparison."""
    names = [f"ws-{number:05}" for number in range(WORKSTATIONS)]
    made = [new_job() for _ in range(jobs)]
    messages = asyncio.run(fill(settings, made, names, together))
    reports = messages if together == 1 else jobs * len(names) * len(STORY)
    ours, limit = "ours: pcm catches up from nothing", "limit: a bare consumer"
    figures = in_turns(
        {
            ours: lambda: caught_up(settings, reports),
            limit: lambda: bare(settings.amqp_url[0], messages) * reports / messages,
        }
    )
    each = "one report a message" if together == 1 else f"{together} reports a message"
    abouts = {
        ours: "SQLite, WAL; what was read is committed with the place up to which it was",
        limit: f"aiormq {version('aiormq')}, prefetch {PREFETCH}, acknowledged by halves; parses"
        " and keeps nothing",
    }
    series = [Series(name, found, abouts[name]) for name, found in figures.items()]
    title = f"The history reads {messages:,} messages of the stream, {each}"
    Comparison(name, title, "reports/s", series, baseline=ours).keep()


def main() -> None:
    """Measure, print and store the comparisons."""
    with Node() as node, tempfile.TemporaryDirectory() as folder:
        settings = HistorySettings(
            amqp_url=(node.url,), history_url=f"sqlite:///{folder}/history.db"
        )
        asyncio.run(_ensure(settings))
        compare(settings, "history-single", SINGLE_JOBS, 1)
        compare(settings, "history-together", JOBS, TOGETHER)
        _ask(settings)


async def _ensure(settings: HistorySettings) -> None:
    async with connect(settings, "bench") as connection:
        await topology.ensure(connection)


def _ask(settings: HistorySettings) -> None:
    engine = open_history(settings.history_url)
    with query_jobs(engine) as asked:
        newest = asked.rows(most=1)[0].id
        questions: dict[str, Callable[[], object]] = {
            "ours: 50 jobs with their counts": lambda: asked.rows(most=50),
            "ours: jobs with a failure": lambda: asked.rows(asked.has_state(["failed"])),
            "ours: a job's failures, grouped": lambda: asked.failures(newest),
            "ours: a job's first 50 workstations": lambda: asked.outcomes(newest, most=50),
            "ours: all workstations of a job": lambda: asked.outcomes(newest),
        }
        figures = in_turns({name: _milliseconds(work) for name, work in questions.items()})
    engine.dispose()
    environment = {
        "PATH": os.environ["PATH"],
        "PCM_AMQP_URL": settings.amqp_url[0],
        "PCM_HISTORY_URL": settings.history_url,
    }

    def run(*words: str) -> None:
        done = subprocess.run(
            [BIN / "pcm", *words], env=environment, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            sys.exit(f"pcm {words[0]}: status {done.returncode}")

    collector = subprocess.Popen(
        [BIN / "pcm", "collect"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(5)
        programs = {
            "ours: pcm jobs": _milliseconds(lambda: run("jobs")),
            "ours: pcm show JOB": _milliseconds(lambda: run("show", newest)),
        }
        figures |= in_turns(programs)
    finally:
        collector.terminate()
        collector.wait()
    about = f"SQLite; {JOBS} jobs on {WORKSTATIONS:,} workstations"
    series = [Series(name, found, about) for name, found in figures.items()]
    title = "Queries of the history; of a program, including its start"
    Comparison("history-questions", title, "ms", series, more_is_better=False).keep()


def _milliseconds(work: Callable[[], object]) -> Callable[[], float]:
    return lambda: timed(work) * 1000


if __name__ == "__main__":
    main()
