"""A cluster of three nodes loses a node in several ways; no job is lost or run twice."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from agents.execution.spawn import JOB_VARIABLE
from broker import Dispatcher, DispatcherSettings, Unreachable
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.stream import stream
from schemas import Command, Job, Report, State, everyone
from schemas import workstation as workstation_target
from tests.support.cluster import Cluster, Member
from tests.support.rabbitmq import own_nodes
from tests.support.waiting import LIMIT
from tests.support.workstation import AgentProcess, Workstation, final, follow

_PAUSE = 0.15
_MOST = 60  # jobs on their way: a slow machine is not sent more than it can run
_ENOUGH = 20
_UNTIL_FILE = 'until test -e "$TMPDIR/end"; do sleep 0.2; done'

Key = tuple[str, str]
"""A job's id, and a workstation's name."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A private cluster."""
    with own_nodes(), Cluster() as started:
        yield started


@pytest.fixture
def workstations(cluster: Cluster, tmp_path: Path) -> Iterator[list[Workstation]]:
    """Three workstations, each of which tries the nodes in another order."""
    made: list[Workstation] = []
    for number in range(len(cluster.members)):
        folder = tmp_path / str(number)
        (folder / "ran").mkdir(parents=True)
        made.append(Workstation(f"ws-{number}", ",".join(cluster.urls(number)), folder))
        made[-1].environment["TMPDIR"] = str(folder)  # one of the few that commands get
    try:
        yield made
    finally:
        for workstation in made:
            workstation.stop()


class Load:
    """Sends jobs continuously; each writes a line to its own file on each workstation."""

    def __init__(self, dispatcher: Dispatcher, workstations: list[Workstation]) -> None:
        self.accepted: list[Job] = []
        self.repeated = 0
        self._dispatcher = dispatcher
        self._workstations = workstations

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send jobs in the background; at the end wait until the broker has stored all of them."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_all(tasks, stop))
            yield
            stop.set()

    async def goes_on(self) -> None:
        """Wait until jobs that are made from now on have been taken, and have run everywhere."""
        now = datetime.now(UTC)

        def enough() -> bool:
            recent = [job for job in self.accepted if job.created_at > now]
            ran = [job for job in recent if self._ran_everywhere(job)]
            served = {found.name for job in ran for found in self._wanted(job)}
            return len(ran) >= _ENOUGH and len(served) == len(self._workstations)

        await eventually(enough)

    def expected(self) -> set[Key]:
        """Return each job with each workstation that it is for."""
        return {
            (job.id, workstation.name) for job in self.accepted for workstation in self._wanted(job)
        }

    def runs(self) -> dict[Key, int]:
        """Return how often each job ran on each workstation."""
        return {
            (file.name, workstation.name): file.read_text().count("\n")
            for workstation in self._workstations
            for file in (workstation.folder / "ran").iterdir()
        }

    async def _send_all(self, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        on_their_way: list[Job] = []
        numbers = itertools.count()
        while not stop.is_set():
            on_their_way = [job for job in on_their_way if not self._ran_everywhere(job)]
            if len(on_their_way) < _MOST:
                job = self._job(next(numbers))
                on_their_way.append(job)
                tasks.create_task(self._send(job))
            await asyncio.sleep(_PAUSE)

    async def _send(self, job: Job) -> None:
        while True:
            try:
                await self._dispatcher.dispatch(job)
            except Unreachable:
                # Its fate is not known: the same job again.
                self.repeated += 1
                await asyncio.sleep(_PAUSE)
            else:
                self.accepted.append(job)
                return

    def _job(self, number: int) -> Job:
        """Return a job: in turn for everyone and for each, mandatory ones and the user's too."""
        choice = number % (len(self._workstations) + 1)
        name = self._workstations[choice - 1].name
        return Job(
            name=str(number),
            command=Command(
                argv=(f'echo x >> "$TMPDIR/ran/${JOB_VARIABLE}"',),
                shell=True,
                background=number % 5 != 0,
            ),
            targets=(workstation_target(name) if choice else everyone,),
            mandatory_at=datetime.now(UTC) if number % 5 in {0, 1} else None,
        )

    def _wanted(self, job: Job) -> list[Workstation]:
        names = {target.name for target in job.targets}
        return [found for found in self._workstations if names & {None, found.name}]

    def _ran_everywhere(self, job: Job) -> bool:
        return all((found.folder / "ran" / job.id).exists() for found in self._wanted(job))


@asynccontextmanager
async def killed(member: Member) -> AsyncIterator[None]:
    """End a node as a power cut would, and start it again."""
    await asyncio.to_thread(member.kill)
    yield
    await asyncio.to_thread(member.start)


@asynccontextmanager
async def cut_off(member: Member) -> AsyncIterator[None]:
    """Part a node from the others; alone it is the minority, which an older broker pauses."""
    assert not member.paused
    pauses = await asyncio.to_thread(member.pauses)
    await asyncio.to_thread(member.cut_off)
    if pauses:
        await eventually(lambda: member.paused)
    yield
    await asyncio.to_thread(member.heal)


@asynccontextmanager
async def frozen(member: Member) -> AsyncIterator[None]:
    """Stop a node where it stands, its connections open and silent; then start it again."""
    member.freeze()
    yield
    # Were it let go on, it would not notice that it was in a minority, and stay parted.
    await asyncio.to_thread(member.kill)
    await asyncio.to_thread(member.start)


@pytest.mark.full
async def test_a_cluster_that_loses_nodes_runs_each_job_once(
    cluster: Cluster, workstations: list[Workstation]
) -> None:
    """One node is killed, one is partitioned, one is frozen, each with connected agents."""
    agents = [workstation.start("service", watch_interval="5s") for workstation in workstations]
    agents.append(workstations[0].start("interactive", watch_interval="5s"))
    hasty = DispatcherSettings(amqp_url=cluster.urls(0), patience=timedelta(0))
    patient = DispatcherSettings(amqp_url=cluster.urls(1), patience=timedelta(seconds=LIMIT))
    queues = await asyncio.to_thread(replicas, cluster.members[0])
    assert list(queues.values()) == [len(cluster.members)] * (len(agents) + 2), queues
    async with Dispatcher.connect(hasty) as sender, Dispatcher.connect(patient) as reader:
        load = Load(sender, workstations)
        long = workstations[1].job(_UNTIL_FILE, shell=True, background=True)
        await reader.dispatch(long)
        following = asyncio.create_task(follow(reader, long))
        async with load.running():
            await load.goes_on()
            for member, fault in zip(cluster.members, (killed, cut_off, frozen), strict=True):
                assert any(broker_of(agent) in member.url for agent in agents)
                async with fault(member):
                    await eventually(partial(cluster.without, member))
                    await load.goes_on()
                await eventually(cluster.whole)
                await load.goes_on()
        assert load.repeated
        assert not following.done()
        (workstations[1].folder / "end").touch()
        assert final(await following).state is State.SUCCEEDED
    expected = load.expected()
    reports = await all_ended(patient, expected)
    assert len(reports.pop((long.id, workstations[1].name))) == 1
    assert {key: len(found) for key, found in reports.items()} == dict.fromkeys(expected, 1)
    assert {report.state for (report,) in reports.values()} == {State.SUCCEEDED}
    assert {report.agent for (report,) in reports.values()} == {"service", "interactive-ada"}
    assert load.runs() == dict.fromkeys(expected, 1)
    assert all(agent.process.poll() is None for agent in agents)
    assert await asyncio.to_thread(replicas, cluster.members[0]) == queues


def broker_of(agent: AgentProcess) -> str:
    """Return where an agent is connected to."""
    address: str = agent.events("broker.connected")[-1]["broker"]
    return address


def replicas(member: Member) -> dict[str, int]:
    """Return on how many nodes each queue is."""
    text = member.ctl("list_queues", "name", "members", "--formatter", "json")
    return {queue["name"]: len(queue["members"]) for queue in json.loads(text)}


async def all_ended(settings: DispatcherSettings, expected: set[Key]) -> dict[Key, list[Report]]:
    """Read the whole stream until all jobs have ended; return the final reports of each.

    The stream may hold a report twice, under the same id; that is one.
    """
    deadline = time.monotonic() + LIMIT
    while True:
        found: dict[Key, dict[str, Report]] = {}
        async with connect(settings, "pcm test") as connection:
            publisher = await Publisher.open(connection)
            async for entry in stream.read_all(connection, publisher, None):
                for report in entry.records():
                    if isinstance(report, Report) and report.state.final:
                        key = (report.job_id, report.workstation)
                        found.setdefault(key, {})[report.id] = report
        if found.keys() >= expected or time.monotonic() > deadline:
            return {key: list(reports.values()) for key, reports in found.items()}
        await asyncio.sleep(0.5)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something has come true; it may block."""
    deadline = time.monotonic() + LIMIT
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.2)
