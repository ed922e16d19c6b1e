"""Publishes check-ins: the agent's state and settings; the last one says that it stops.

A lost check-in does not matter, since another follows. Check-ins are not stored, and they must
not delay reports.
"""

import asyncio
import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version

from aio_pika.abc import AbstractConnection

from agents import facts
from agents.content.contents import Contents
from agents.identity import Identity
from agents.jobs.clock import ClockChanges
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.packages.inventory import Inventory
from agents.settings import AgentSettings
from broker.amqp import topology
from broker.amqp.connection import Blocked, BrokerError, Refused, blocked, local_address_of
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from broker.stream import stream
from schemas import CheckIn, State
from schemas.reports.check_in import Machine
from schemas.reports.packages import ContentState, InstalledPackage

_log = get_logger()
_RETRY = 30.0
_COLLECT = 5.0  # seconds for which changes of packages are collected
_PROGRESS_INTERVAL = 30.0


class Heartbeat:
    """Sends the check-ins of an agent."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        open_jobs: OpenJobs,
        executor: Executor,
        pause: PauseState,
        contents: Contents,
        inventory: Inventory,
        sealing_key: str,
        machine: Machine,
    ) -> None:
        self._sealing_key = sealing_key
        self._machine = machine
        self._standby = False
        self._settings = settings
        self._identity = identity
        self._open_jobs = open_jobs
        self._executor = executor
        self._pause = pause
        self._contents = contents
        self._inventory = inventory
        self._timer: asyncio.TimerHandle | None = None
        self._reported: object = ()
        self._reported_at = 0.0
        self._program = version("package-command-manager")
        self._stopping = False
        self._is_logged = False
        self.queue_new_at: datetime | None = None
        """When the agent's queue was last made anew; None if it was there."""
        self._woke_at: datetime | None = None
        self._connection: AbstractConnection | None = None
        # A separate channel: a refused publish closes the channel, and reports must not be lost.
        self._publisher: Publisher | None = None

    async def run(self, connection: AbstractConnection, *, standby: bool = False) -> None:
        """Check in now, at each change, and periodically, until cancelled.

        Args:
            connection: to the broker.
            standby: whether another machine has the agent's queue.
        """
        self._standby = standby
        interval = self._settings.check_in.total_seconds()
        self._connection = connection
        try:
            while not self._stopping:
                self._pause.changed.clear()
                is_sent = await self._send(connection)
                pause = interval if is_sent else min(interval, _RETRY)
                with suppress(TimeoutError):
                    async with timeout(pause * random.uniform(0.75, 1)):  # noqa: S311 - no secret
                        await self._pause.changed.wait()
        finally:
            self._connection = self._publisher = None

    def packages_changed(self) -> None:
        """Check in soon if the state of a package has changed; changes are collected."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COLLECT, self._report_packages)

    def _report_packages(self) -> None:
        self._timer = None
        found = self._contents.progress() or ()
        state = [(one.package.manifest, one.state, one.reason) for one in found]
        is_fetching = any(one.state is ContentState.FETCHING for one in found)
        now = time.monotonic()
        is_due = is_fetching and now >= self._reported_at + _PROGRESS_INTERVAL
        _, packages = self._inventory.to_report()
        if is_due or packages is not None or state != self._reported:
            self._reported, self._reported_at = state, now
            self._pause.changed.set()

    def clock_changed(self, changes: ClockChanges) -> None:
        """Check in if the zone has changed or the machine slept: administrators compute by both."""
        if changes.slept:
            self._woke_at = datetime.now(UTC)
        if changes.zone or changes.slept:
            self._pause.changed.set()

    async def send_final(self) -> None:
        """Send the last check-in: the agent stops."""
        self._stopping = True
        if self._connection is not None:
            await self._send(self._connection, up=False)

    async def _send(self, connection: AbstractConnection, *, up: bool = True) -> bool:
        """Send a check-in; return whether the broker confirmed it."""
        try:
            if await blocked(connection):
                return False
            number, packages = self._inventory.to_report()
            if self._publisher is None:
                self._publisher = await Publisher.open(
                    connection, declares=not self._settings.enrolled
                )
            await stream.append(
                self._publisher,
                topology.report_key("check_in", self._identity.workstation, self._identity.name),
                self._check_in(packages, up=up, address=local_address_of(connection)).body(),
                kind="check_in",
            )
            self._inventory.reported(number)
        except Blocked:
            return False
        except BrokerError as error:  # a lost connection is handled by the session
            self._publisher = None
            if isinstance(error, Refused) and not self._is_logged:
                self._is_logged = True
                _log.warning("check_in.failed", reason=str(error))
            return False
        self._is_logged = False
        return True

    def _check_in(
        self, packages: tuple[InstalledPackage, ...] | None, *, up: bool, address: str
    ) -> CheckIn:
        settings = self._settings
        return CheckIn(
            workstation=self._identity.workstation,
            agent=self._identity.name,
            up=up,
            pause=self._pause.message if self._pause.paused else None,
            groups=facts.groups(settings),
            facts=facts.gather(),
            machine=self._machine.model_copy(update={"address": address}),
            standby=self._standby,
            program=self._program,
            windows=str(settings.windows),
            zone=facts.zone(),
            countdown=settings.countdown,
            takeover_grace=settings.takeover_grace,
            accept_offers=settings.accept_offers,
            queue_new_at=self.queue_new_at,
            woke_at=self._woke_at,
            missing_after=settings.missing_after,
            waiting=sum(record.state is not State.STARTED for record in self._open_jobs.all()),
            running=self._executor.count,
            interval=settings.check_in,
            signed_only=settings.trusted_keys is not None,
            packages=packages,
            contents=self._contents.progress(),
            sealing_key=self._sealing_key,
        )
