"""Simulated workstations, many in one process, for `benchmarks.simulated`.

    python -m benchmarks.crowd URL FOLDER NAME

Each is a service agent as it is, with its own queue, ledger file and connection. Only this is not
as on a workstation: a command is said to have succeeded, and no process is started for it; the
threads for ledgers, claims and runs are those of the process, not of each agent, and what the
agents are made of is not looked through for garbage again and again: thousands of threads, and of
agents, in one interpreter hinder each other as one agent in its own is not; a call to the broker
may take two minutes, not ten seconds, since it waits for thousands of others in its process;
nothing below a warning is logged; check-ins, and looks for the consumer, come once an hour.

It reads numbers, one a line, becomes as many workstations, and answers each number with itself and
its own CPU seconds so far; it ends with its input.
"""

import asyncio
import gc
import logging
import os
import resource
import sys
import time
from datetime import timedelta
from functools import cache
from pathlib import Path

import structlog

import agents.inbox.consumer
import agents.jobs.executor
import agents.jobs.job_claims
import agents.session.broker_session
import agents.store.ledger
import broker.amqp.connection
import broker.amqp.publisher
import broker.stream.stream
from agents.execution.command_run import CommandRun, Outcome
from agents.service import ServiceAgent
from agents.settings import AgentSettings
from agents.store.threads import ThreadPool
from schemas import Output, Result, State

_AT_ONCE = 4  # that connect
_THREADS = 8
_CALL_LIMIT = 120.0
_ENDED = Outcome(
    State.SUCCEEDED,
    Result(
        exit_code=0,
        duration=timedelta(milliseconds=1),
        max_memory=1_000_000,
        stdout=Output(head=b"Linux\n"),
    ),
)


class _Said(CommandRun):
    """A run of no process."""

    async def complete(self) -> Outcome:
        """Say that the command succeeded."""
        return _ENDED


class _Kept(ThreadPool):
    def close(self) -> None:
        """Go on: others need them."""


def _shared(count: int, name: str) -> ThreadPool:
    """Return the threads of the process, whoever asks for how many of what name."""
    del count, name
    return _threads()


@cache
def _threads() -> ThreadPool:
    return _Kept(_THREADS, "shared")


class _Simulated(ServiceAgent):
    async def connected(self) -> None:
        """Wait until the broker delivers."""
        while self._session.state.state != "connected":
            await self.changes.wait_beyond(self.changes.number)


async def _become(count: int, crowd: list["asyncio.Task[None]"], base: AgentSettings) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def begin(number: int) -> None:
        async with gate:
            name = f"{base.workstation}-{number:05}"
            folder = base.state_dir / name
            agent = _Simulated(base.model_copy(update={"workstation": name, "state_dir": folder}))
            crowd.append(asyncio.create_task(agent.run()))
            await agent.connected()

    await asyncio.gather(*(begin(number) for number in range(len(crowd), count)))


async def _serve(base: AgentSettings) -> None:
    crowd: list[asyncio.Task[None]] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        await _become(int(line), crowd, base)
        for task in crowd:
            if task.done():
                task.result()
        gc.freeze()
        print(line.strip(), time.process_time(), flush=True)


def main() -> None:
    """Simulate."""
    url, folder, name = sys.argv[1:]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for module, what, other in (
        (agents.jobs.executor, "CommandRun", _Said),
        (agents.jobs.executor, "ThreadPool", _shared),
        (agents.jobs.job_claims, "ThreadPool", _shared),
        (agents.store.ledger, "ThreadPool", _shared),
    ):
        setattr(module, what, other)
    for module in (
        agents.inbox.consumer,
        agents.session.broker_session,
        broker.amqp.connection,
        broker.amqp.publisher,
        broker.stream.stream,
    ):
        module.CALL_LIMIT = _CALL_LIMIT  # type: ignore[attr-defined]
    broker.amqp.publisher.STORE_LIMIT = _CALL_LIMIT
    base = AgentSettings(
        amqp_url=(url,),
        workstation=name,
        state_dir=Path(folder),
        concurrency=1,
        queue_type="classic",
        watch_interval=timedelta(hours=1),
        check_in=timedelta(hours=1),
    )
    asyncio.run(_serve_and_leave(base))


async def _serve_and_leave(base: AgentSettings) -> None:
    try:
        await _serve(base)
    finally:
        sys.stdout.flush()
        os._exit(0)  # what thousands would do at their end is not measured


if __name__ == "__main__":
    main()
