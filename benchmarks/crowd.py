"""Simulated workstations, many in one process, for `benchmarks.simulated`.

    python -m benchmarks.crowd URL FOLDER NAME

Each is a real service agent with its own queue, ledger file and connection. These are the
differences from a workstation:

- A command is reported as succeeded, and no process is started.
- All agents of the process share the threads for ledgers, claims and runs, and their objects are
  exempt from garbage collection. Thousands of agents in one interpreter would slow each other down
  in a way that a single agent is not.
- A call to the broker can take two minutes instead of ten seconds, since it waits for thousands of
  others in its process.
- Only warnings and errors are logged.
- Check-ins, and checks of the consumer, are hourly.

The process reads numbers, one a line, and starts agents until it has that many. It answers each
number with itself and the CPU seconds used so far. It ends with its input.
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

_AT_ONCE = 4  # agents that connect at the same time
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
    """A run without a process."""

    async def complete(self) -> Outcome:
        """Return that the command succeeded."""
        return _ENDED


class _Kept(ThreadPool):
    def close(self) -> None:
        """Do nothing: other agents need the threads."""


def _shared(count: int, name: str) -> ThreadPool:
    """Return the shared threads of the process."""
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
    """Run the simulated workstations."""
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
        os._exit(0)  # the end of thousands of agents is not measured


if __name__ == "__main__":
    main()
