"""Hands the open foreground jobs of a workstation to the agents of users who log on later.

A user's queue receives only what is sent after the agent's first connection. The service agent has
received every job, and sends the open foreground jobs, as it received them and with their
signatures, to every interactive agent that connects to its socket; new ones follow. The user's
agent checks them like messages of its queue. Background jobs are never sent: of these the service
agent keeps no original. The claims make sure that each job runs once.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from agents.changes import Changes
from agents.claims.claims import Claims
from agents.content.contents import Contents
from agents.jobs.open_jobs import OpenJobs
from agents.store.ledger import Ledger
from agents.store.transaction import JobRecord, Original, Transaction
from agents.user import control
from agents.user.control import Answer, RequestRejected, Stream, text_of
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Context, State
from schemas.policy import order

_log = get_logger()
_SOCKET = "jobs.sock"
_REQUEST = {"do": "foreground_jobs"}
_FETCH = "fetch_packages"
_CONNECTIONS = 4  # of each user
_PAUSE = 1.0  # seconds for which changes are collected
_RETRY = 10.0
_ASK_LIMIT = 5.0
_LINE_LIMIT = 8 * 1024 * 1024  # a job of the greatest size, as JSON in JSON


class ForegroundJobs:
    """Sends the service agent's open foreground jobs to the users' agents."""

    def __init__(
        self,
        state_dir: Path,
        ledger: Ledger,
        claims: Claims,
        open_jobs: OpenJobs,
        changes: Changes,
        contents: Contents,
    ) -> None:
        self._contents = contents
        self._state_dir = state_dir
        self._claims = claims
        self._ledger = ledger
        self._open_jobs = open_jobs
        self._changes = changes

    async def serve(self) -> None:
        """Serve users' agents until cancelled."""
        while True:
            try:
                await control.serve(self._state_dir, self._answer, _SOCKET, _CONNECTIONS)
            except OSError as error:  # such as another user's file in the place of the socket
                _log.warning("handover.failed", reason=str(error))
            await asyncio.sleep(_RETRY)

    async def _answer(self, request: dict[str, Any]) -> Answer:
        if request == _REQUEST:
            return self._stream()
        if request.get("do") != _FETCH:
            raise RequestRejected("unknown request")
        record = self._open_jobs.get(text_of(request, "job"))
        if record is None or record.job.context is not Context.FOREGROUND:
            raise RequestRejected("no such job")
        self._contents.hurry(record.job.id)
        if request.get("wrong") is True:
            self._contents.recheck(record.job.id)
        return "ok"

    async def _stream(self) -> Stream:
        sent: set[str] = set()
        while True:
            number = self._changes.number
            waiting = {r.job.id: r for r in self._open_jobs.all() if _can_be_handed_over(r)}
            new = [record for job_id, record in waiting.items() if job_id not in sent]
            for record in sorted(new, key=order):
                if original := await self._original(record.job.id):
                    yield {"job": original.body.decode(), "signatures": original.signatures}
            sent = set(waiting)
            await self._changes.wait_beyond(number)
            await asyncio.sleep(_PAUSE)

    async def _original(self, job_id: str) -> Original | None:
        """Return a job as it was received; None if an agent has decided it."""
        if self._claims.decision(job_id) is not None:
            return None
        return await self._ledger.commit(partial(Transaction.original, job_id=job_id))


def _can_be_handed_over(record: JobRecord) -> bool:
    return (
        record.job.context is Context.FOREGROUND
        and record.cancelled is None
        and record.state is not State.STARTED
    )


async def ask_to_fetch(state_dir: Path, job_id: str, *, wrong: bool) -> None:
    """Ask the service agent to fetch a foreground job's packages now.

    Args:
        state_dir: the state directory.
        job_id: the job.
        wrong: whether this agent found one that is not what its sum says.
    """
    request = {"do": _FETCH, "job": job_id, "wrong": wrong}
    with suppress(OSError, TimeoutError):
        async with timeout(_ASK_LIMIT):
            _, writer = await _connect(state_dir, request)
            writer.close()


async def receive(state_dir: Path, accept: Callable[[Original], Awaitable[None]]) -> None:
    """Receive the service agent's open foreground jobs until cancelled; reconnect if it ends."""
    while True:
        with suppress(OSError, ValueError, LookupError, TypeError):
            async with aclosing(_originals(state_dir)) as originals:
                async for original in originals:
                    await accept(original)
        await asyncio.sleep(_RETRY)


async def _originals(state_dir: Path) -> AsyncGenerator[Original, None]:
    """Yield the jobs that the service agent sends.

    Raises:
        OSError: it does not run.
        ValueError, LookupError, TypeError: a line is not a job.
    """
    reader, writer = await _connect(state_dir, _REQUEST)
    try:
        while line := await reader.readline():
            content = json.loads(line)
            yield Original(str(content["job"]).encode(), content["signatures"])
    finally:
        writer.close()


async def _connect(
    state_dir: Path, request: dict[str, Any]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request to the service agent.

    Raises:
        OSError: it does not run, or another user's program answers.
    """
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(folder).st_uid
        path = f"/proc/self/fd/{folder}/{_SOCKET}"
        reader, writer = await asyncio.open_unix_connection(path, limit=_LINE_LIMIT)
    finally:
        os.close(folder)
    if control.peer_of(writer.get_extra_info("socket")) != owner:
        writer.close()  # the service agent's user owns the folder
        raise PermissionError("another user's program answers")
    writer.write(json.dumps(request).encode() + b"\n")
    return reader, writer
