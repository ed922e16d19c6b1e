"""A timeout is distinguished from a cancellation, also after earlier cancellations of the task."""

import asyncio

import pytest

from broker.amqp.timeouts import timeout


async def fail() -> None:
    raise OSError


async def test_after_a_group_that_failed() -> None:
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    with pytest.raises(TimeoutError):
        async with timeout(0.01):
            await asyncio.sleep(60)


async def test_within_another_one() -> None:
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    async with timeout(60):
        with pytest.raises(TimeoutError):
            async with timeout(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)


async def test_a_cancellation_remains_one() -> None:
    async def wait() -> None:
        async with timeout(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
