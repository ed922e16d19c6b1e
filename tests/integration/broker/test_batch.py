"""Many jobs at once: all are stored under faults, and one that fails holds back no other."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker import Dispatcher, DispatcherSettings, Progress, Sent, Unreachable, Unroutable
from broker.client.batch import send_all
from schemas import Command, Job, group, workstation
from tests.integration.broker.test_dispatcher import declare, drain
from tests.support.faults import counting, ran_once, succeeded_once
from tests.support.proxy import Proxy
from tests.support.rabbitmq import Broker, Node
from tests.support.waiting import LIMIT, until
from tests.support.workstation import Workstation

NOT_SENT = "targets: no workstation is bound to workstation:nowhere; nothing was sent"


def job(target: str = "batch", **fields: object) -> Job:
    return Job.model_validate(
        {"command": Command(argv=("true",)), "targets": (workstation(target),), **fields}
    )


async def test_all_are_stored_and_reported_in_their_order(
    dispatcher: Dispatcher, node: Broker
) -> None:
    await declare(node, "batch")
    jobs = [job() for _ in range(300)]
    sent = [sent async for sent in dispatcher.dispatch_all(jobs, in_flight=50)]
    assert sent == [(job, None) for job in jobs]
    assert sorted(await drain(node, "batch")) == sorted(job.id for job in jobs)


async def test_what_cannot_be_sent_is_reported_and_keeps_no_other(
    dispatcher: Dispatcher, node: Broker
) -> None:
    await declare(node, "batch")
    then = datetime.now(UTC) - timedelta(hours=1)
    good = [job() for _ in range(4)]
    nowhere = job("nowhere")
    late = job(created_at=then, expires_at=then + timedelta(minutes=1))
    partly = job(targets=(workstation("batch"), workstation("nowhere")))
    jobs = [good[0], nowhere, good[1], late, good[2], partly, good[3]]
    errors = {sent.job.id: sent.error async for sent in dispatcher.dispatch_all(jobs)}
    assert list(errors) == [job.id for job in jobs]
    for wrong in (nowhere, partly):
        assert isinstance(errors[wrong.id], Unroutable)
        assert str(errors[wrong.id]) == NOT_SENT
    assert "expires_at: is in the past" in str(errors[late.id])
    assert [errors[job.id] for job in good] == [None] * 4
    assert sorted(await drain(node, "batch")) == sorted(job.id for job in good)
    progress = Progress(nowhere.id)
    assert not [report async for report in dispatcher.follow(nowhere.id, progress)]
    assert progress.cancellation is not None


async def test_the_same_job_twice_is_reported_twice(dispatcher: Dispatcher, node: Broker) -> None:
    """The broker names what it returns by its id: neither is taken for the other."""
    await declare(node, "batch")
    nowhere, good = job("nowhere"), job()
    jobs = [nowhere, good, nowhere, good, nowhere]
    errors = [str(error) async for _, error in dispatcher.dispatch_all(jobs)]
    assert errors == [NOT_SENT, "None", NOT_SENT, "None", NOT_SENT]
    assert set(await drain(node, "batch")) == {good.id}


async def test_no_more_are_taken_than_may_be_on_the_way(
    dispatcher: Dispatcher, node: Broker
) -> None:
    await declare(node, "batch")
    taken: list[Job] = []

    def endless() -> Iterator[Job]:
        while True:
            taken.append(job())
            yield taken[-1]

    async with aclosing(dispatcher.dispatch_all(endless(), in_flight=7)) as all_sent:
        async for number, _ in _numbered(all_sent):
            assert len(taken) <= number + 7
            if number == 20:
                break
    assert await drain(node, "batch")


async def _numbered(items: AsyncIterator[object]) -> AsyncIterator[tuple[int, object]]:
    number = 0
    async for item in items:
        yield number, item
        number += 1


async def test_each_is_reported_before_the_next_is_there(
    dispatcher: Dispatcher, node: Broker
) -> None:
    """Of jobs that come slowly, none waits for the next one."""
    await declare(node, "batch")
    noticed = asyncio.Event()

    async def slow() -> AsyncIterator[Job]:
        yield job()
        await asyncio.wait_for(noticed.wait(), LIMIT)
        yield job()

    async for _ in dispatcher.dispatch_all(slow()):
        noticed.set()
    assert len(await drain(node, "batch")) == 2


async def test_jobs_that_end_in_an_error_are_sent_up_to_there(
    dispatcher: Dispatcher, node: Broker
) -> None:
    await declare(node, "batch")

    def broken() -> Iterator[Job]:
        yield job()
        yield job()
        raise OSError("no more of the list can be read")

    sent: list[str] = []

    async def sending() -> None:
        async for item in dispatcher.dispatch_all(broken()):
            sent.append(item.job.id)  # noqa: PERF401 - it ends in an error

    with pytest.raises(OSError, match="no more of the list"):
        await sending()
    assert sorted(await drain(node, "batch")) == sorted(sent)
    assert len(sent) == 2


async def test_none_on_the_way_is_no_number(dispatcher: Dispatcher) -> None:
    with pytest.raises(ValueError, match="in_flight: 0"):
        await anext(dispatcher.dispatch_all([], in_flight=0))


async def test_none_waits_for_the_confirm_of_another(
    own_node: Node, settings: DispatcherSettings
) -> None:
    """While the broker confirms nothing, as many as may be are on the way."""
    await declare(own_node, "batch")
    with Proxy(own_node.port) as proxy:
        slow = settings.model_copy(update={"amqp_url": (proxy.url(),)})
        async with Dispatcher.connect(slow) as dispatcher:
            send, begun = dispatcher.sender(), list[Job]()

            async def counted(jobs: Sequence[Job]) -> list[Sent]:
                begun.extend(jobs)
                return await send(jobs)

            async def sending() -> list[Sent]:
                jobs = [job() for _ in range(300)]
                return [sent async for sent in send_all(counted, jobs, in_flight=200)]

            proxy.freeze()
            task = asyncio.create_task(sending())
            await until(lambda: len(begun) == 200)
            for _ in range(1000):  # turns, in which nothing would keep it from going on
                await asyncio.sleep(0)
            assert len(begun) == 200
            proxy.thaw()
            assert [sent.job for sent in await task] == begun
    assert sorted(await drain(own_node, "batch")) == sorted(job.id for job in begun)


async def test_a_connection_cut_in_the_middle_loses_and_doubles_nothing(
    ws: Workstation, settings: DispatcherSettings, own_node: Node, tmp_path: Path
) -> None:
    """It is reported once for each cut, whatever was in flight."""
    ws.environment["PCM_AMQP_URL"] = own_node.url
    ws.start("service", concurrency="8")
    direct = settings.model_copy(update={"amqp_url": (own_node.url,)})
    sizes = random.Random(5)
    ran, notices = tmp_path / "ran", list[str]()
    jobs = [counting(ws, ran, number) for number in range(300)]
    with Proxy(own_node.port) as proxy:
        cut = direct.model_copy(
            update={"amqp_url": (proxy.url(),), "patience": timedelta(seconds=60)}
        )
        async with Dispatcher.connect(cut, notices.append) as dispatcher:

            async def cutting() -> None:
                while proxy.cuts < 6:
                    cuts = proxy.cuts
                    proxy.cut_after(sizes.choice([3_000, 20_000, 60_000]))
                    await until(lambda cuts=cuts: proxy.cuts > cuts)  # type: ignore[misc]

            task = asyncio.create_task(cutting())
            sent = [sent async for sent in dispatcher.dispatch_all(jobs, in_flight=100)]
            task.cancel()
        assert sent == [(job, None) for job in jobs]
        assert proxy.cuts >= 3
        assert 1 <= len(notices) <= proxy.cuts
    await succeeded_once(direct, jobs)
    ran_once(ran, range(300))


async def test_a_broker_that_answers_no_more_is_given_up_once(
    own_node: Node, settings: DispatcherSettings
) -> None:
    """The limit is for the whole batch, not for each job."""
    notices: list[str] = []
    with Proxy(own_node.port) as proxy:
        patient = settings.model_copy(
            update={"amqp_url": (proxy.url(),), "patience": timedelta(seconds=1)}
        )
        async with Dispatcher.connect(patient, notices.append) as dispatcher:
            proxy.freeze()
            async with asyncio.timeout(LIMIT):
                with pytest.raises(Unreachable):
                    await anext(dispatcher.dispatch_all(job() for _ in range(500)))
            proxy.thaw()
    assert len(notices) == 1


async def test_a_refused_login_is_tried_once(own_node: Node) -> None:
    """Login is tried once, not for each job: brokers count failed logins."""
    own_node.add_user("batch", "right")
    with Proxy(own_node.port) as proxy:
        url = proxy.url("batch", "right")
        async with Dispatcher.connect(DispatcherSettings(amqp_url=(url,))) as dispatcher:
            own_node.ctl("change_password", "batch", "other")
            proxy.cut_after(10_000)
            with pytest.raises(Unreachable, match="refused the login"):
                async for _ in dispatcher.dispatch_all(
                    job(targets=(group("x"),)) for _ in range(99)
                ):
                    pass
        assert proxy.accepted == 2
