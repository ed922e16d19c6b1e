"""Check-ins: the agent reports that it is up, and how it is; at its end, that it leaves.

A check-in that is lost does not matter, since another follows: none is stored, and none may delay
reports.
"""

import random
from contextlib import suppress
from importlib.metadata import version

from aio_pika.abc import AbstractConnection

from agents import facts
from agents.identity import Identity
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.settings import AgentSettings
from broker.amqp import topology
from broker.amqp.connection import Blocked, BrokerError, Refused, blocked
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from broker.stream import stream
from schemas import CheckIn, State

_log = get_logger()
_RETRY = 30.0


class Heartbeat:
    """Sends the check-ins of an agent."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        open_jobs: OpenJobs,
        executor: Executor,
        pause: PauseState,
        sealing_key: str,
    ) -> None:
        self._sealing_key = sealing_key
        self._settings = settings
        self._identity = identity
        self._open_jobs = open_jobs
        self._executor = executor
        self._pause = pause
        self._program = version("package-command-manager")
        self._leaving = False
        self._told = False
        self._connection: AbstractConnection | None = None
        # Of its own: what the broker refuses closes the channel, and must not cost reports theirs.
        self._publisher: Publisher | None = None

    async def run(self, connection: AbstractConnection) -> None:
        """Check in now, whenever something changes, and in time; until cancelled."""
        interval = self._settings.check_in.total_seconds()
        self._connection = connection
        try:
            while not self._leaving:
                self._pause.changed.clear()
                said = await self._say(connection)
                pause = interval if said else min(interval, _RETRY)
                with suppress(TimeoutError):
                    async with timeout(pause * random.uniform(0.75, 1)):  # noqa: S311 - no secret
                        await self._pause.changed.wait()
        finally:
            self._connection = self._publisher = None

    async def send_final(self) -> None:
        """Send a check-in that says that the agent stops; no other follows."""
        self._leaving = True
        if self._connection is not None:
            await self._say(self._connection, up=False)

    async def _say(self, connection: AbstractConnection, *, up: bool = True) -> bool:
        """Send a check-in; return whether the broker has it."""
        try:
            if await blocked(connection):
                return False
            if self._publisher is None:
                self._publisher = await Publisher.open(
                    connection, declares=not self._settings.enrolled
                )
            await stream.append(
                self._publisher,
                topology.report_key("check_in", self._identity.workstation, self._identity.name),
                self._check_in(up=up).body(),
                kind="check_in",
            )
        except Blocked:
            return False
        except BrokerError as error:  # a lost connection is noticed, and told, by others
            self._publisher = None
            if isinstance(error, Refused) and not self._told:
                self._told = True
                _log.warning("check_in.failed", reason=str(error))
            return False
        self._told = False
        return True

    def _check_in(self, *, up: bool) -> CheckIn:
        settings = self._settings
        return CheckIn(
            workstation=self._identity.workstation,
            agent=self._identity.name,
            up=up,
            pause=self._pause.message if self._pause.paused else None,
            groups=facts.groups(settings),
            facts=facts.gather(),
            program=self._program,
            windows=str(settings.windows),
            zone=facts.zone(),
            countdown=settings.countdown,
            takeover_grace=settings.takeover_grace,
            accept_offers=settings.accept_offers,
            waiting=sum(entry.state is not State.STARTED for entry in self._open_jobs.all()),
            running=self._executor.count,
            interval=settings.check_in,
            signed_only=settings.trusted_keys is not None,
            sealing_key=self._sealing_key,
        )
