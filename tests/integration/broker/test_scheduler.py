"""Occurrences are sent when they are due, each as one job, also if senders are killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from broker import Dispatcher
from broker.history.collector import Collector, catch_up
from broker.history.engine import open_history
from broker.history.queries.jobs import query_jobs
from broker.history.schema import jobs
from broker.schedules.queries import changed_since, in_force, next_offset, sent
from broker.schedules.scheduler import ScheduleRunner
from broker.settings import HistorySettings
from schemas import (
    Command,
    Job,
    Report,
    Result,
    Schedule,
    ScheduleRemoval,
    State,
    group,
    workstation,
)
from schemas.orders.schedule import Occurrence
from tests.integration.broker.test_dispatcher import declare, drain
from tests.support.admin import Admin
from tests.support.clock import PROGRAM, Clock
from tests.support.programs import BIN, ROOT
from tests.support.rabbitmq import Broker, free_port
from tests.support.schedules import HOUR, MINUTE, NOON, make
from tests.support.waiting import LIMIT, until, until_there, until_true
from tests.support.workstation import (
    AgentProcess,
    Program,
    Workstation,
    agents_of,
    final,
    follow,
    until_state,
)

AHEAD = 4.0
_numbers = count(1)

Add = Callable[..., Any]


@pytest.fixture
async def add(dispatcher: Dispatcher) -> AsyncIterator[Add]:
    """Record schedules; they are removed afterwards, for the broker is that of all tests."""
    names = []

    async def record(schedule: Schedule) -> Schedule:
        await dispatcher.record(schedule)
        names.append(schedule.name)
        return schedule

    yield record
    for name in names:
        await dispatcher.record(ScheduleRemoval(name=name))


@pytest.fixture
def ours(node: Broker, tmp_path: Path) -> HistorySettings:
    return HistorySettings(amqp_url=(node.url,), history_url=f"sqlite:///{tmp_path}/history.db")


@pytest.fixture
def history(ours: HistorySettings) -> Iterator[Engine]:
    engine = open_history(ours.history_url)
    yield engine
    engine.dispose()


@pytest.fixture
def scheduler(ours: HistorySettings, history: Engine) -> ScheduleRunner:
    return ScheduleRunner(ours, history)


@pytest.fixture
async def queue(node: Broker) -> str:
    """The queue of a workstation without agents."""
    name = f"sched-{next(_numbers)}-{os.getpid()}"
    await declare(node, name)
    return name


def id_of(schedule: Schedule, at: datetime) -> str:
    return Occurrence(schedule, at.replace(tzinfo=None)).id


# What is in force


async def test_the_newest_counts_until_it_is_removed(
    dispatcher: Dispatcher, ours: HistorySettings, history: Engine
) -> None:
    first = make(group("x"))
    second = make(group("x"), name=first.name, repeat="5 * * * *")
    for record, expected in (
        (first, first),
        (second, second),
        (ScheduleRemoval(name=first.name), None),
        (first, first),
        (ScheduleRemoval(name=first.name), None),
    ):
        await dispatcher.record(record)
        await catch_up(ours, history)
        found = in_force(history).get(first.name)
        assert (found and found.record) == expected


async def test_what_is_said_of_a_schedule_while_it_is_recorded_again_still_counts(
    dispatcher: Dispatcher, ours: HistorySettings, history: Engine
) -> None:
    """As a rebuild of the history does, so that the record stays in the stream."""
    of, other = make(group("x")), make(group("x"))
    await dispatcher.record(of)
    await catch_up(ours, history)
    read = next_offset(history)
    removal = ScheduleRemoval(name=of.name)
    for record in (removal, of, other):
        await dispatcher.record(record)
    await catch_up(ours, history)
    assert in_force(history)[of.name].record == of
    assert [said.record for said in changed_since(history, read, [of])] == [removal]
    assert changed_since(history, next_offset(history), [of]) == []


async def test_a_schedule_over_the_size_limit_is_refused(dispatcher: Dispatcher) -> None:
    large = Job(command=Command(argv=("echo", *["x" * 100_000] * 11)), targets=(group("x"),))
    with pytest.raises(ValueError, match="over the limit of 1048576"):
        await dispatcher.record(make(job=large))


# Sending


async def test_several_schedulers_send_an_occurrence_once(
    node: Broker,
    scheduler: ScheduleRunner,
    ours: HistorySettings,
    queue: str,
    add: Add,
    tmp_path: Path,
) -> None:
    of = await add(make(workstation(queue), mandatory_after=60))
    await scheduler.send_due(NOON + MINUTE)
    await scheduler.send_due(NOON + MINUTE * 2)
    elsewhere = ours.model_copy(update={"history_url": f"sqlite:///{tmp_path}/another.db"})
    engine = open_history(elsewhere.history_url)
    await ScheduleRunner(elsewhere, engine).send_due(NOON + MINUTE * 30)
    assert await drain(node, queue) == [id_of(of, NOON)]
    with query_jobs(engine) as known:
        (row,) = known.rows(jobs.c.schedule == of.name)
    engine.dispose()
    assert (row.name, row.offer_at) == (of.name, NOON.timestamp())
    assert row.mandatory_at == (NOON + MINUTE).timestamp()


async def test_two_at_the_same_time_send_one_job(
    node: Broker, ours: HistorySettings, queue: str, add: Add, history: Engine
) -> None:
    of = await add(make(workstation(queue)))
    both = [ScheduleRunner(ours, history), ScheduleRunner(ours, history)]
    await asyncio.gather(*(each.send_due(NOON + MINUTE) for each in both))
    assert set(await drain(node, queue)) == {id_of(of, NOON)}
    await catch_up(ours, history)
    with query_jobs(history) as known:
        assert [row.id for row in known.rows(jobs.c.schedule == of.name)] == [id_of(of, NOON)]


async def test_after_a_downtime_the_last_missed_is_sent_late_or_none(
    node: Broker, scheduler: ScheduleRunner, queue: str, add: Add
) -> None:
    of = await add(make(workstation(queue)))
    await add(make(workstation(queue), missed="skip"))
    await scheduler.send_due(NOON + HOUR * 5 + MINUTE * 20)
    assert await drain(node, queue) == [id_of(of, NOON + HOUR * 5)]
    await scheduler.send_due(NOON + HOUR * 5 + MINUTE * 40)
    assert await drain(node, queue) == []


async def test_one_that_has_expired_is_not_sent(
    node: Broker, scheduler: ScheduleRunner, queue: str, add: Add
) -> None:
    of = await add(make(workstation(queue), expires_after=600))
    with capture_logs() as logged:
        for minute in (10, 20):
            await scheduler.send_due(NOON - timedelta(days=1) + MINUTE * minute)
    assert await drain(node, queue) == []
    skipped = [event for event in logged if event.get("schedule") == of.name]
    assert [event["event"] for event in skipped] == ["occurrence.skipped"]


async def test_who_cannot_be_reached_is_reported_of_and_tried_at_the_next_occurrence(
    node: Broker, scheduler: ScheduleRunner, queue: str, add: Add
) -> None:
    nowhere = f"nowhere-{os.getpid()}"
    lost = await add(make(workstation(nowhere)))
    many = await add(make(workstation(queue), workstation(nowhere)))
    fine = await add(make(workstation(queue)))
    with capture_logs() as logged:
        await scheduler.send_due(NOON + MINUTE)
        await scheduler.send_due(NOON + MINUTE * 2)
    failed = [event for event in logged if event["event"] == "occurrence.failed"]
    (said,) = [event for event in failed if event["schedule"] == lost.name]
    assert nowhere in said["reason"]
    (partly,) = [event for event in logged if event.get("schedule") == many.name]
    assert (partly["event"], partly["unbound"]) == ("occurrence.sent", f"workstation:{nowhere}")
    assert set(await drain(node, queue)) == {id_of(fine, NOON), id_of(many, NOON)}
    await declare(node, nowhere)
    await scheduler.send_due(NOON + MINUTE * 3)
    assert await drain(node, nowhere) == []
    await scheduler.send_due(NOON + HOUR)
    assert set(await drain(node, nowhere)) == {id_of(lost, NOON + HOUR), id_of(many, NOON + HOUR)}


async def test_a_change_counts_from_when_it_was_made(
    node: Broker, scheduler: ScheduleRunner, queue: str, add: Add, dispatcher: Dispatcher
) -> None:
    former = await add(make(workstation(queue)))
    changed = NOON + MINUTE * 50
    new = make(workstation(queue), name=former.name, repeat="*/30 * * * *", created_at=changed)
    await scheduler.send_due(NOON)
    await add(new)
    await scheduler.send_due(changed + MINUTE)
    assert await drain(node, queue) == [id_of(former, NOON)]
    await scheduler.send_due(NOON + HOUR)
    assert await drain(node, queue) == [id_of(new, NOON + HOUR)]
    await dispatcher.record(ScheduleRemoval(name=former.name))
    await scheduler.send_due(NOON + HOUR + MINUTE * 30)
    assert await drain(node, queue) == []


async def test_a_clock_that_is_set_doubles_nothing(
    node: Broker,
    scheduler: ScheduleRunner,
    ours: HistorySettings,
    queue: str,
    add: Add,
    history: Engine,
) -> None:
    of = await add(make(workstation(queue)))
    for hours in (0, 2, 1, 0, 2, 1, -1):
        await scheduler.send_due(NOON + HOUR * hours)
        await ScheduleRunner(ours, history).send_due(NOON + HOUR * hours)
    expected = [id_of(of, NOON + HOUR * hours) for hours in (0, 2, 1, -1)]
    assert await drain(node, queue) == expected


async def test_what_was_sent_long_ago_is_not_sent_again(
    node: Broker, scheduler: ScheduleRunner, queue: str, add: Add
) -> None:
    """A workstation that joins later does not get it."""
    monthly = f"0 12 {NOON.day} * *"
    of = await add(make(group(queue), repeat=monthly, created_at=NOON - HOUR))
    await declare(node, f"{queue}-1", queue)
    await scheduler.send_due(NOON)
    await declare(node, f"{queue}-2", queue)
    await scheduler.send_due(NOON + timedelta(days=20))
    assert await drain(node, f"{queue}-1") == [id_of(of, NOON)]
    assert await drain(node, f"{queue}-2") == []


async def test_while_a_collector_is_at_work_the_history_is_left_to_it(
    node: Broker,
    scheduler: ScheduleRunner,
    ours: HistorySettings,
    queue: str,
    add: Add,
    history: Engine,
) -> None:
    of = await add(make(workstation(queue)))
    collector = Collector(ours, history)
    with capture_logs() as logged:
        work = asyncio.create_task(collector.run())
        await until(lambda: "collector.up_to_date" in names(logged))
        await scheduler.send_due(NOON)
        await until(lambda: bool(sent(history, [id_of(of, NOON)])))
    await ScheduleRunner(ours, history).send_due(NOON)
    work.cancel()
    await asyncio.wait({work})
    assert await drain(node, queue) == [id_of(of, NOON)]


async def test_broker_and_database_away_are_reported_once_and_waited_for(
    node: Broker, queue: str, add: Add, tmp_path: Path
) -> None:
    of = await add(
        make(
            workstation(queue), created_at=datetime.now(UTC) - timedelta(days=2), repeat="0 0 * * *"
        )
    )
    port = free_port()
    settings = HistorySettings(
        amqp_url=(node.url.replace(str(node.port), str(port)),),
        history_url=f"sqlite:///{tmp_path}/away/history.db",
    )
    folder = tmp_path / "away" / "history.db"
    folder.mkdir(parents=True)  # a folder in the place of the file
    engine = open_lazily(settings.history_url)
    with capture_logs() as logged:
        work = asyncio.create_task(ScheduleRunner(settings, engine).run())
        await until(lambda: "scheduler.retrying" in names(logged))
        folder.rmdir()
        await until((tmp_path / "away" / "history.db").is_file)
        tried: list[asyncio.StreamWriter] = []

        def hanging_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tried.append(writer)
            writer.close()

        server = await asyncio.start_server(hanging_up, "127.0.0.1", port)
        await until(lambda: len(tried) > 1)  # the broker is away yet
        assert not work.done()
        server.close()
        way = await asyncio.start_server(forwarding(node.port), "127.0.0.1", port)
        await until(lambda: "scheduler.up_to_date" in names(logged))
        work.cancel()
        await asyncio.wait({work})
        way.close()
    assert names(logged).count("scheduler.retrying") == 1
    engine.dispose()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert await drain(node, queue) == [id_of(of, midnight)]


def open_lazily(url: str) -> Engine:
    from broker.history.engine import engine_of

    return engine_of(url)


def names(logged: list[Any]) -> list[str]:
    return [event["event"] for event in logged]


def forwarding(port: int) -> Callable[..., Any]:
    """Return what makes a server of asyncio a way to another port."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    return accepted


# Real processes


class Service(AgentProcess):
    """A `pcm schedule run`, and its log."""

    def __init__(
        self,
        ws: Workstation,
        name: str,
        program: Program = (BIN / "pcm", "schedule"),
        what: str = "run",
    ) -> None:
        history = {"PCM_HISTORY_URL": f"sqlite:///{ws.folder}/history.db"}
        super().__init__(what, {**ws.environment, **history}, ws.folder / f"{name}.log", program)
        ws.agents.append(self)  # is ended with them


_STRUCK = """
import sys
sys.path.insert(0, {root!r})
from tests.support.sabotage import sabotage
sabotage({point!r}, {text!r})
from broker.cli.main import main
main()
"""


def struck(point: str, text: str) -> Program:
    """Return a `pcm` that kills itself at a point."""
    root = str(ROOT)
    return (sys.executable, "-c", _STRUCK.format(root=root, point=point, text=text), "schedule")


class Minutes:
    """A schedule of each minute on a workstation, and the minutes of its own clock."""

    def __init__(self, ws: Workstation, scheduler: ScheduleRunner, of: Schedule) -> None:
        self._clock, self._scheduler, self.of = Clock(ws), scheduler, of
        self._first = of.created_at + MINUTE

    def job(self, minute: int) -> Job:
        """Return the job of the occurrence of a minute."""
        return Occurrence(self.of, (self._first + MINUTE * minute).replace(tzinfo=None)).job()

    async def send_due(
        self, minute: int, second: int, scheduler: ScheduleRunner | None = None
    ) -> list[str]:
        """Let it be a minute and second; return what was logged of the schedule's occurrences."""
        now = self._first + MINUTE * minute + timedelta(seconds=second)
        self._clock.set(now.timestamp() - time.time())
        with capture_logs() as logged:
            await (scheduler or self._scheduler).send_due(now)
        return [event["event"] for event in logged if event.get("schedule") == self.of.name]


@pytest.fixture
async def minutes(ws: Workstation, scheduler: ScheduleRunner, add: Add, overlap: str) -> Minutes:
    """A service agent whose occurrence of the first minute runs until a file is there."""
    script = (
        f"echo $PCM_JOB_ID >> {ws.folder}/ran; until [ -e {ws.folder}/end ]; do sleep 0.05; done"
    )
    command = Command(argv=(script,), shell=True, background=True)
    of = make(
        repeat="* * * * *",
        overlap=overlap,
        # Ahead, since the times of reports are right, and all before the second minute.
        created_at=datetime.now(UTC).replace(second=0, microsecond=0) + MINUTE,
        job=Job(command=command, targets=(ws.target,)),
    )
    found = Minutes(ws, scheduler, of)
    await asyncio.to_thread(ws.start, "service", program=PROGRAM, concurrency="4")
    await add(of)
    return found


def ran(ws: Workstation) -> list[str]:
    """Return the jobs that have begun to run, in order."""
    return (ws.folder / "ran").read_text().split()


@pytest.mark.parametrize("overlap", ["skip"])
async def test_an_occurrence_is_skipped_while_an_earlier_one_runs(
    ws: Workstation, dispatcher: Dispatcher, minutes: Minutes
) -> None:
    assert await minutes.send_due(0, 1) == ["occurrence.sent"]
    await until_state(dispatcher, minutes.job(0), State.STARTED)
    assert await minutes.send_due(1, 1) == ["occurrence.skipped"]
    assert await minutes.send_due(1, 2) == []
    (ws.folder / "end").touch()
    assert final(await follow(dispatcher, minutes.job(0))).state is State.SUCCEEDED
    assert await minutes.send_due(2, 1) == ["occurrence.sent"]
    assert final(await follow(dispatcher, minutes.job(2))).state is State.SUCCEEDED
    assert ran(ws) == [minutes.job(0).id, minutes.job(2).id]


async def test_which_occurrences_are_skipped_follows_from_when_the_others_ran(
    node: Broker, ours: HistorySettings, history: Engine, queue: str, add: Add, tmp_path: Path
) -> None:
    """So every scheduler decides the same, also long after the earlier one has ended."""
    admin = Admin(node.url, tmp_path)
    of = await add(make(workstation(queue)))
    await ScheduleRunner(ours, history).send_due(NOON)
    job = Occurrence(of, NOON.replace(tzinfo=None)).job()
    took = Result(exit_code=0, duration=timedelta(minutes=90), max_memory=1)
    started = Report(
        job_id=job.id, workstation=queue, agent="service", state=State.STARTED, at=NOON + MINUTE
    )
    ended = started.model_copy(
        update={
            "id": f"{started.id}0",
            "state": State.SUCCEEDED,
            "at": NOON + MINUTE * 91,
            "result": took,
        }
    )
    await admin.append([started])
    await ScheduleRunner(ours, history).send_due(NOON + HOUR)
    await admin.append([ended])
    for minutes in (92, 110):
        await ScheduleRunner(ours, history).send_due(NOON + MINUTE * minutes)
    assert await drain(node, queue) == [job.id]
    await ScheduleRunner(ours, history).send_due(NOON + HOUR * 2)
    assert await drain(node, queue) == [id_of(of, NOON + HOUR * 2)]


async def test_one_that_waited_is_sent_late_also_where_missed_ones_are_not(
    node: Broker, ours: HistorySettings, history: Engine, queue: str, add: Add, tmp_path: Path
) -> None:
    admin = Admin(node.url, tmp_path)
    of = await add(make(workstation(queue), overlap="queue", missed="skip"))
    await ScheduleRunner(ours, history).send_due(NOON)
    job = Occurrence(of, NOON.replace(tzinfo=None)).job()
    started = Report(
        job_id=job.id, workstation=queue, agent="service", state=State.STARTED, at=NOON + MINUTE
    )
    await admin.append([started])
    await ScheduleRunner(ours, history).send_due(NOON + HOUR)
    await ScheduleRunner(ours, history).send_due(NOON + MINUTE * 80)
    assert await drain(node, queue) == [job.id]
    took = Result(exit_code=0, duration=timedelta(minutes=80), max_memory=1)
    end = {"id": f"{started.id}0", "state": State.SUCCEEDED, "at": NOON + MINUTE * 81}
    await admin.append([started.model_copy(update={**end, "result": took})])
    await ScheduleRunner(ours, history).send_due(NOON + MINUTE * 82)
    assert await drain(node, queue) == [id_of(of, NOON + HOUR)]
    # The next one was missed: no scheduler ran.
    await ScheduleRunner(ours, history).send_due(NOON + HOUR * 2 + MINUTE * 30)
    assert await drain(node, queue) == []


@pytest.mark.parametrize("overlap", ["queue"])
async def test_of_occurrences_that_wait_for_an_earlier_one_the_last_is_sent_at_its_end(
    ws: Workstation,
    dispatcher: Dispatcher,
    minutes: Minutes,
    ours: HistorySettings,
    history: Engine,
) -> None:
    assert await minutes.send_due(0, 1) == ["occurrence.sent"]
    await until_state(dispatcher, minutes.job(0), State.STARTED)
    assert await minutes.send_due(1, 1) == ["occurrence.waits"]
    assert await minutes.send_due(1, 2) == []  # it waits still
    assert await minutes.send_due(2, 1) == ["occurrence.waits"]
    (ws.folder / "end").touch()
    assert final(await follow(dispatcher, minutes.job(0))).state is State.SUCCEEDED
    assert await minutes.send_due(2, 40) == ["occurrence.sent"]
    assert await minutes.send_due(2, 41, ScheduleRunner(ours, history)) == []
    assert final(await follow(dispatcher, minutes.job(2))).state is State.SUCCEEDED
    assert ran(ws) == [minutes.job(0).id, minutes.job(2).id]


@pytest.mark.parametrize("overlap", ["allow"])
async def test_occurrences_overlap_where_that_is_allowed(
    ws: Workstation, dispatcher: Dispatcher, minutes: Minutes
) -> None:
    for minute in (0, 1):
        assert await minutes.send_due(minute, 1) == ["occurrence.sent"]
        await until_state(dispatcher, minutes.job(minute), State.STARTED)
    assert ran(ws) == [minutes.job(0).id, minutes.job(1).id]
    (ws.folder / "end").touch()
    for minute in (0, 1):
        assert final(await follow(dispatcher, minutes.job(minute))).state is State.SUCCEEDED


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_an_agent_lets_no_occurrences_overlap(
    ws: Workstation, dispatcher: Dispatcher, overlap: str
) -> None:
    """Those by its own clock are sent hours before, and those in its queue while it was off."""
    script = (
        f"echo $PCM_JOB_ID >> {ws.folder}/ran; until [ -e {ws.folder}/end ]; do sleep 0.05; done"
    )
    first, second, third = (
        ws.job(script, shell=True, background=True, schedule="hourly", overlap=overlap)
        for _ in range(3)
    )
    service = ws.start("service", concurrency="4")
    await dispatcher.dispatch(first)
    await until_state(dispatcher, first, State.STARTED)
    for job in (second, third):
        await dispatcher.dispatch(job)
    async with asyncio.timeout(LIMIT):
        skipped = final(await follow(dispatcher, second))
    assert skipped.state is State.CANCELLED
    reasons = {
        "skip": f"skipped: {first.id} still ran",
        "queue": f"skipped: the later occurrence {third.id} waits",
    }
    assert skipped.reason == reasons[overlap]
    if overlap == "skip":
        assert final(await follow(dispatcher, third)).reason == reasons[overlap]
    service.wait_for("job.received", 3)
    assert ran(ws) == [first.id]
    (ws.folder / "end").touch()
    assert final(await follow(dispatcher, first)).state is State.SUCCEEDED
    if overlap == "queue":
        assert final(await follow(dispatcher, third)).state is State.SUCCEEDED
        assert ran(ws) == [first.id, third.id]


@pytest.mark.full
@pytest.mark.parametrize(
    ("point", "text"),
    [
        ("sending", "pcm.jobs background.optional.workstation.{ws}"),
        ("sent", "pcm.jobs background.optional.workstation.{ws}"),
        ("sent", "pcm.reports job."),
    ],
)
async def test_killed_in_the_middle_another_one_sends_it(
    ws: Workstation, dispatcher: Dispatcher, add: Add, tmp_path: Path, point: str, text: str
) -> None:
    ran = tmp_path / "ran"
    script = Command(argv=(f"echo x >> {ran}",), shell=True, background=True)
    ws.start("service")
    at = datetime.now(UTC).replace(second=0, microsecond=0)
    of = await add(
        make(
            repeat=f"{at.minute} {at.hour} * * *",
            created_at=at - HOUR,
            job=Job(command=script, targets=(ws.target,)),
        )
    )
    first = Service(ws, "struck", struck(point, text.format(ws=ws.name)))
    assert first.process.wait(LIMIT) == -signal.SIGKILL
    second = Service(ws, "second")
    second.wait_for("scheduler.up_to_date")
    assert second.end() == 0
    job = Occurrence(of, at.replace(tzinfo=None)).job()
    reports = await follow(dispatcher, job)
    assert agents_of(reports, State.SUCCEEDED) == {"service"}
    assert ran.read_text() == "x\n"


async def test_a_collector_sends_what_is_due_as_well(
    ws: Workstation, node: Broker, queue: str, add: Add
) -> None:
    at = datetime.now(UTC).replace(second=0, microsecond=0)
    daily = f"{at.minute} {at.hour} * * *"
    of = await add(make(workstation(queue), repeat=daily, created_at=at - HOUR))
    service = Service(ws, "collect", (BIN / "pcm",), "collect")
    service.wait_for("occurrence.sent")
    assert service.end() == 0
    reasons = {event["reason"] for event in service.events("scheduler.retrying")}
    assert reasons <= {"the collector has not caught up"}  # its tables were new
    assert await drain(node, queue) == [id_of(of, at)]


@pytest.mark.full
def test_two_services_and_a_kill_over_the_minute(ws: Workstation) -> None:
    """The occurrence is sent at its time, and runs once, while one of the two is killed."""
    environment = {"history_url": f"sqlite:///{ws.folder}/history.db"}
    ran = ws.folder / "ran"
    ws.start("service")
    name = f"minutely-{os.getpid()}"
    added = ws.run(
        "pcm", "schedule", "add", name, "--repeat", "* * * * *", "--zone", "UTC", "--background",
        "--to", str(ws.target), "--shell", "--", f"date +%s.%N >> {ran}", **environment,
    )  # fmt: skip
    assert added.returncode == 0, added
    # By their clock the minute begins some seconds from now.
    boundary = time.time() // 60 * 60 + 60
    wrong_by = boundary - time.time() - AHEAD
    Clock(ws, wrong_by)
    both = [Service(ws, name, (*PROGRAM, "pcm", "schedule")) for name in ("one", "two")]
    try:
        for service in both:
            service.wait_for("scheduler.up_to_date")
        while time.time() + wrong_by < boundary:
            time.sleep(0.001)
        both[0].end(signal.SIGKILL)
        until_true(lambda: both[0].events("occurrence.sent") or both[1].events("occurrence.sent"))
        until_there(ran)
    finally:
        assert ws.run("pcm", "schedule", "remove", name, **environment).returncode == 0
    assert both[1].end() == 0
    (at,) = map(float, ran.read_text().split())
    assert boundary <= at + wrong_by
    shown = subprocess.run(
        [BIN / "pcm", "schedule", "next", name],
        env={**ws.environment, "PCM_HISTORY_URL": environment["history_url"]},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (1, f"pcm: {name}: there is no such schedule\n")
