"""Run the detection of the packages that an agent has run: daily, for the inventory."""

import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from agents.content.contents import Contents
from agents.packages.inventory import Inventory
from agents.store.threads import ThreadPool
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import State
from schemas.errors import PcmError
from schemas.orders.package import RequiredPackage
from schemas.reports.packages import InstalledPackage

if TYPE_CHECKING:
    from agents.packages.package_run import Locks, MakeRun

_log = get_logger()
_INTERVAL = 24 * 3600.0
_LOOK = 3600.0


class Detection:
    """Finds out daily whether the packages of the inventory are still there.

    A package that the cache has no more keeps its last state, and the time of it.
    """

    def __init__(
        self,
        inventory: Inventory,
        contents: Contents,
        locks: "Locks",
        make_run: "MakeRun",
        threads: ThreadPool,
        *,
        as_user: bool,
    ) -> None:
        """Create the object.

        Args:
            inventory: the packages that the agent has run.
            contents: where their files are.
            locks: the locks of packages.
            make_run: makes the run of one command.
            threads: in which files are verified.
            as_user: whether a user's agent runs it.
        """
        self._inventory = inventory
        self._contents = contents
        self._locks = locks
        self._make_run = make_run
        self._threads = threads
        self._as_user = as_user
        self._began = time.time()
        self._tried: dict[str, float] = {}  # monotonic time of the last attempt, by name

    async def run(self) -> None:
        """Detect until cancelled."""
        while True:
            self._inventory.changed.clear()
            for package in self._inventory.all():
                if self._is_due(package):
                    await self._check(package)
            with suppress(TimeoutError):
                async with timeout(_LOOK * random.uniform(0.5, 1)):  # noqa: S311 - no secret
                    await self._inventory.changed.wait()

    def _is_due(self, package: InstalledPackage) -> bool:
        """Whether the last detection is a day old, or an earlier run of the agent left it open."""
        if package.state is State.STARTED:
            return package.ran_at.timestamp() < self._began and not self._was_tried(package)
        last = (package.checked_at or package.ran_at).timestamp()
        return time.time() - last >= _INTERVAL and not self._was_tried(package)

    def _was_tried(self, package: InstalledPackage) -> bool:
        return time.monotonic() < self._tried.get(package.name, 0.0) + _INTERVAL

    async def _check(self, package: InstalledPackage) -> None:
        from agents.packages.package_run import run_detection

        self._tried[package.name] = time.monotonic()
        required = RequiredPackage(
            name=package.name, version=package.version, manifest=package.manifest
        )
        folder = f"detect:{package.name}"  # no id of a job
        async with self._locks.of(package.name):
            if self._inventory.get(package.name) != package:
                return  # it ran meanwhile
            try:
                copies = await self._threads.submit(partial(self._contents.find, required, folder))
                found = await run_detection(copies, self._make_run, as_user=self._as_user)
            except (PcmError, OSError) as error:
                _log.info("package.not_checked", package=str(required), reason=str(error))
                return
            finally:
                await self._threads.submit(partial(self._contents.remove_copies, folder))
            if isinstance(found, bool):
                changes = {"present": found, "checked_at": datetime.now(UTC)}
                await self._inventory.save(package.model_copy(update=changes))
