"""A job's command once more, where it failed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aio_pika
import pytest
from sqlalchemy import update

from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.history.engine import open_history
from broker.history.schema import jobs
from broker.settings import HistorySettings
from broker.stream import stream
from schemas import Command, Job, Report, Result, State, workstation
from tests.support.fleets import Administrator, fleet, runs
from tests.support.rabbitmq import Broker


@pytest.fixture
def admin(node: Broker, tmp_path: Path) -> Iterator[Administrator]:
    made = Administrator(node.url, tmp_path)
    try:
        yield made
    finally:
        made.stop()


@asynccontextmanager
async def publisher(node: Broker) -> AsyncIterator[Publisher]:
    async with connect(HistorySettings(amqp_url=(node.url,)), "test") as connection:
        await topology.ensure(connection)
        yield await Publisher.open(connection)


async def test_it_runs_again_where_it_failed(
    node: Broker, admin: Administrator, tmp_path: Path
) -> None:
    """Q257271."""
    ran = tmp_path / "ran"
    with fleet(2, node.url, tmp_path) as two:
        two.start()
        good, bad = two.names
        script = (
            f"echo $PCM_WORKSTATION >> {ran}; test $PCM_WORKSTATION = {good}"
            f" || test $(grep -c {bad} {ran}) = 2"
        )
        sent = admin.pcm("send", *two.to, "--background", "--wait", "--shell", "--", script)
        assert sent.returncode == 1, sent
        job_id = sent.stdout.splitlines()[0]
        done = admin.pcm("rerun", job_id, "--wait")
        assert (done.returncode, done.stderr) == (0, ""), done
        new_id, summary, *_ = done.stdout.splitlines()
        assert summary == "again on 1 workstation"
        assert done.stdout.endswith(f"{new_id}: 1 succeeded\n")
        assert runs(ran) == {good: 1, bad: 2}
        nothing = admin.pcm("rerun", new_id)
        assert (nothing.returncode, nothing.stdout) == (1, "")
        assert nothing.stderr == f"pcm: {new_id}: it failed on no workstation; nothing was sent\n"
        first, *_ = admin.json("rerun", job_id, "--workstation", good)
        assert (first["rerun_of"], first["workstations"]) == (job_id, 1)
        two.stop()


async def report(to: Publisher, job: Job, states: dict[str, State]) -> None:
    """Put a job, and how it ended, into the stream."""
    await stream.append(to, f"job.{job.id}", job.body(), kind="job", message_id=job.id)
    result = Result(exit_code=0, duration=timedelta(0), max_memory=0)
    lines = [
        Report(
            job_id=job.id,
            workstation=name,
            agent="service",
            state=state,
            result=result if state is State.SUCCEEDED else None,
        ).body()
        for name, state in states.items()
    ]
    for start in range(0, len(lines), 1000):
        body = b"\n".join(lines[start : start + 1000])
        await stream.append(to, "failed.many.service", body, kind="report")


@asynccontextmanager
async def listening(node: Broker, key: str) -> AsyncIterator[list[Job]]:
    """Bind a queue to a key; its jobs are in the list afterwards."""
    connection = await aio_pika.connect(node.url)
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue("", exclusive=True)
        await queue.bind(topology.JOBS, key)
        found: dict[str, Job] = {}
        jobs_found: list[Job] = []
        yield jobs_found
        while message := await queue.get(fail=False, no_ack=True):
            if message.type == "job":
                job = Job.read(message.body)
                found[job.id] = job
        jobs_found.extend(found.values())


@pytest.mark.parametrize(
    ("words", "letters"),
    [
        ([], "bc"),
        (["--failed"], "bc"),
        (["--expired"], "c"),
        (["--state", "cancelled"], "d"),
        (["--state", "cancelled", "--expired"], "cd"),
        (["--state", "queued"], "e"),
        (["--workstation", "rerun-a", "--workstation", "rerun-b"], "ab"),
        (["--failed", "--workstation", "rerun-a", "--workstation", "rerun-b"], "b"),
    ],
)
async def test_who_is_chosen(
    node: Broker, admin: Administrator, words: list[str], letters: str
) -> None:
    named = [workstation(f"rerun-{letter}") for letter in "abcde"]
    job = Job(command=Command(argv=("true",), background=True), targets=tuple(named))
    states = [State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELLED]
    async with publisher(node) as to, listening(node, "#.workstation.*") as found:
        # One that is not known is unreachable; the last one has said that it is there.
        await report(to, job, {f"rerun-{at}": s for at, s in zip("abcd", states, strict=True)})
        await say_that_it_is_there(to, "rerun-e")
        done = await asyncio.to_thread(admin.pcm, "rerun", job.id, *words)
        assert (done.returncode, done.stderr) == (0, ""), done
    (new,) = found
    assert done.stdout.splitlines()[0] == new.id
    assert [target.name for target in new.targets] == [f"rerun-{letter}" for letter in letters]
    assert new.rerun_of == job.id


async def say_that_it_is_there(to: Publisher, name: str) -> None:
    here = {"kind": "check_in", "workstation": name, "agent": "service", "interval": 60}
    here["at"] = datetime.now(UTC).isoformat()
    body = json.dumps({"version": "1.0", **here}).encode()
    await stream.append(to, f"check_in.{name}.service", body, kind="check_in")


@pytest.mark.full
async def test_ten_thousand(node: Broker, admin: Administrator) -> None:
    names = [f"a-workstation-with-quite-a-long-name-{number:05}" for number in range(10_000)]
    command = Command(argv=("true",), background=True)
    job = Job(command=command, targets=tuple(map(workstation, names)))
    async with publisher(node) as to, listening(node, "background.optional.#") as found:
        await report(to, job, dict.fromkeys(names, State.FAILED))
        done = await asyncio.to_thread(admin.pcm, "rerun", job.id)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.splitlines()[1] == "again on 10,000 workstations"
    (new,) = found
    assert [target.name for target in new.targets] == names


async def test_one_that_is_gone_keeps_no_other_from_it(node: Broker, admin: Administrator) -> None:
    job = Job(
        command=Command(argv=("true",), background=True),
        targets=(workstation("rerun-here"), workstation("rerun-gone")),
    )
    states = dict.fromkeys(("rerun-here", "rerun-gone"), State.FAILED)
    async with publisher(node) as to:
        await report(to, job, states)
        gone = await asyncio.to_thread(admin.pcm, "rerun", job.id)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert (
            "bound to workstation:rerun-gone, workstation:rerun-here; nothing was sent"
            in gone.stderr
        )
        async with listening(node, "#.workstation.rerun-here") as found:
            done = await asyncio.to_thread(admin.pcm, "rerun", job.id)
            assert (done.returncode, done.stderr) == (
                0,
                "pcm: left out: no queue is bound for rerun-gone\n",
            )
    assert [str(target) for target in found[0].targets] == ["workstation:rerun-here"]


async def test_what_cannot_be_sent_again(node: Broker, admin: Administrator) -> None:
    job = Job(command=Command(argv=("true",)), targets=(workstation("rerun-x"),))
    async with publisher(node) as to:
        await report(to, job, {"rerun-x": State.FAILED})
    strange = admin.pcm("rerun", job.id, "--workstation", "rerun-y")
    assert (strange.returncode, "--workstation: rerun-y" in strange.stderr) == (1, True)
    wrong = admin.pcm("rerun", job.id, "--state", "broken")
    assert (wrong.returncode, "--state: 'broken' is not a state: use" in wrong.stderr) == (2, True)
    unknown = admin.pcm("rerun", "no-such-job")
    assert (unknown.returncode, "no such job was sent" in unknown.stderr) == (1, True)
    engine = open_history(admin.history_url)
    with engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(body=None))
    engine.dispose()
    gone = admin.pcm("rerun", job.id)
    assert (gone.returncode, gone.stderr) == (
        1,
        f"pcm: {job.id}: the history has reports of it, but not the job itself\n",
    )
