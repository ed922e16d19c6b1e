"""A dispatcher under broker faults: its jobs are stored, or it raises an error in time."""

import asyncio
import random
from datetime import timedelta
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings, Unreachable
from schemas import Job, Report, State
from tests.support.faults import counting, held, ran_once, succeeded_once, works
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Node
from tests.support.waiting import LIMIT, Gate, until
from tests.support.workstation import Workstation, final, follow


@pytest.fixture(scope="module")
def node(own_node: Node) -> Node:
    """The broker that suffers here."""
    return own_node


@pytest.fixture
def settings(node: Node) -> DispatcherSettings:
    """Settings of a dispatcher that waits for the broker to come back."""
    return patient(node.url)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file to which commands add a line."""
    return tmp_path / "ran"


def patient(url: str, seconds: float = LIMIT) -> DispatcherSettings:
    return DispatcherSettings(
        amqp_url=(url,), patience=timedelta(seconds=seconds), settle=timedelta(seconds=0.5)
    )


async def seeing(dispatcher: Dispatcher, job: Job, seen: asyncio.Event) -> list[Report]:
    """Follow a job to its end; set an event at the first report."""
    reports = []
    async for report in dispatcher.follow(job.id):
        reports.append(report)
        seen.set()
    return reports


async def test_the_broker_is_killed_and_starts_again(
    ws: Workstation, settings: DispatcherSettings, node: Node, ran: Path, tmp_path: Path
) -> None:
    """Dispatching, following and cancelling wait for the broker, and then succeed."""
    service = ws.start("service")
    jobs = [counting(ws, ran, number) for number in range(40)]
    gate, notices, sent = Gate(tmp_path / "go"), list[str](), list[Job]()
    async with Dispatcher.connect(settings, notices.append) as dispatcher:
        followed = await dispatcher.dispatch(held(ws, ran, gate, 40))
        withdrawn = await dispatcher.dispatch(ws.job("sleep", "600", background=True))
        service.wait_for("job.started", count=2)
        node.sync()

        async def dispatching() -> None:
            for job in jobs:
                sent.append(await dispatcher.dispatch(job))
                if len(sent) == len(jobs) // 2:
                    await until(lambda: notices)  # the others are sent to no broker

        async with asyncio.TaskGroup() as tasks:
            seen = asyncio.Event()
            following = tasks.create_task(seeing(dispatcher, followed, seen))
            watching = tasks.create_task(
                asyncio.to_thread(ws.run, "pcm", "watch", followed.id, patience=f"{LIMIT:.0f}s")
            )
            tasks.create_task(dispatching())
            await seen.wait()
            await until(lambda: len(sent) == len(jobs) // 2)
            await asyncio.to_thread(node.kill)
            tasks.create_task(dispatcher.cancel(withdrawn.id))
            await until(lambda: notices)
            gate.open()
            await asyncio.to_thread(node.start)
        assert final(following.result()).state is State.SUCCEEDED
        assert watching.result().returncode == 0, watching.result().stderr
        assert final(await follow(dispatcher, withdrawn)).state is State.CANCELLED
    await succeeded_once(settings, [*jobs, followed])
    ran_once(ran, range(41))


async def test_connections_cut_in_the_middle_of_frames(
    ws: Workstation, settings: DispatcherSettings, node: Node, ran: Path
) -> None:
    """Each job is stored, perhaps several times, and runs once."""
    ws.start("service")
    sizes = random.Random(11)
    jobs = [counting(ws, ran, number) for number in range(100)]
    with Proxy(node.port) as proxy:
        async with Dispatcher.connect(patient(proxy.url())) as dispatcher:

            async def cutting() -> None:
                while proxy.cuts < 10:
                    cuts = proxy.cuts
                    proxy.cut_after(sizes.choice([300, 3_000, 8_000, 12_000]) + cuts)
                    await until(lambda cuts=cuts: proxy.cuts > cuts)  # type: ignore[misc]

            task = asyncio.create_task(cutting())
            for number in range(0, len(jobs), 10):
                await asyncio.gather(*map(dispatcher.dispatch, jobs[number : number + 10]))
            reports = await follow(dispatcher, jobs[-1])
            task.cancel()
        assert proxy.cuts >= 5
    assert final(reports).state is State.SUCCEEDED
    await succeeded_once(settings, jobs)
    ran_once(ran, range(100))


async def test_a_frozen_broker_is_given_up(ws: Workstation, node: Node) -> None:
    """By connected programs, also while they follow, and by new connections."""
    service = ws.start("service")
    with Proxy(node.port) as proxy:
        url = proxy.url(heartbeat=1)
        async with (
            Dispatcher.connect(patient(url, 1)) as dispatcher,
            Dispatcher.connect(patient(url, 1)) as follower,
            Dispatcher.connect(patient(url, 1)) as canceller,
        ):
            job = await dispatcher.dispatch(ws.job("sleep", "600", background=True))
            service.wait_for("job.started")
            seen = asyncio.Event()
            following = asyncio.create_task(seeing(follower, job, seen))
            await seen.wait()
            proxy.freeze()
            programs = asyncio.gather(
                *(
                    asyncio.to_thread(ws.run, "pcm", *words, patience="1s", amqp_url=url)
                    for words in (
                        ("send", "--to", str(ws.target), "--background", "--", "true"),
                        ("watch", job.id),
                        ("cancel", job.id),
                    )
                )
            )
            results = await asyncio.gather(
                dispatcher.dispatch(ws.job("true", background=True)),
                canceller.cancel(job.id),
                following,
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [Unreachable] * 3
            for ended in await programs:
                assert ended.returncode == 3
                assert ended.stdout == ""
                *trying, last = ended.stderr.splitlines()
                assert last.startswith("pcm: the broker is unreachable: ")
                assert f"127.0.0.1:{proxy.port}" in last
                assert "no answer" in last
                assert len(trying) <= 1
            proxy.thaw()
            await works(ws, dispatcher)
            await canceller.cancel(job.id)
            assert final(await follow(follower, job)).state is State.CANCELLED


async def test_following_ends_on_request_though_the_broker_is_frozen(
    ws: Workstation, node: Node
) -> None:
    """Stopping does not wait for an answer that does not come."""
    service = ws.start("service")
    with Proxy(node.port) as proxy:
        async with Dispatcher.connect(patient(proxy.url())) as dispatcher:
            job = await dispatcher.dispatch(ws.job("sleep", "600", background=True))
            service.wait_for("job.started")
            seen = asyncio.Event()
            following = asyncio.create_task(seeing(dispatcher, job, seen))
            await seen.wait()
            proxy.freeze()
            following.cancel()
            done, _ = await asyncio.wait({following}, timeout=LIMIT)
            assert done
            assert following.cancelled()
            proxy.thaw()
            await dispatcher.cancel(job.id)
            assert final(await follow(dispatcher, job)).state is State.CANCELLED


async def test_the_first_of_two_brokers_is_silent(ws: Workstation, node: Node, ran: Path) -> None:
    ws.start("service")
    with Proxy(node.port) as proxy:
        proxy.freeze()
        sent = await asyncio.to_thread(
            ws.run, "pcm", "send", "--to", str(ws.target), "--background", "--wait", "--",
            "sh", "-c", f"echo 1 >> {ran}", amqp_url=f"{proxy.url()},{node.url}",
        )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    ran_once(ran, [1])


async def test_a_queue_that_is_deleted_is_reported_by_name(
    ws: Workstation, dispatcher: Dispatcher, node: Node
) -> None:
    """Without exchange and queue a job is unroutable until the agent has declared them."""
    service = ws.start("service")
    service.end()
    node.delete_queue(f"pcm.service.{ws.name}")
    sent = ws.run("pcm", "send", "--to", str(ws.target), "--background", "--", "true")
    assert sent.returncode == 1
    assert str(ws.target) in sent.stderr
    ws.start("service")
    await works(ws, dispatcher)
