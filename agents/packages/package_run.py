"""Run a command of a package: detection, required packages, the command, verification."""

import asyncio
import os
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agents.content.package_copy import PackageCopies
from agents.execution.command_run import CommandRun, Outcome, Place, Placed
from agents.execution.environment import UserAccount
from agents.execution.spawn import CannotStart
from agents.packages.inventory import Inventory
from broker.content.archive import WrongContent
from broker.log import get_logger
from schemas import Command, Job, Result, State
from schemas.orders.package import PackageReference, RequiredPackage
from schemas.packages.manifest import INSTALL, UNINSTALL, Manifest
from schemas.reports.packages import InstalledPackage

if TYPE_CHECKING:
    from agents.execution.live_output import LiveOutput

_log = get_logger()


class MakeRun(Protocol):
    """Makes the run of one command."""

    def __call__(self, command: Command, place: Place, *, own: bool) -> CommandRun:
        """Return a run; `own`: of the job's own command, with its secrets and live output."""


def place(copies: PackageCopies, command: Command, user: UserAccount | None) -> Placed:
    """Put a package's command into the package's folder.

    Raises:
        CannotStart: the package cannot be unpacked, or is not the manifest's any more.
    """
    manifest = copies.package.manifest
    owner = (os.geteuid(), os.getegid()) if user is None else (user.uid, user.gid)
    try:
        folder = copies.open(*owner)
    except WrongContent as error:
        raise CannotStart(f"{manifest.name}: {error}") from error
    return Placed(command.model_copy(update={"cwd": str(folder)}), variables(manifest, folder))


def variables(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Return the variables by which a command finds its package."""
    return {
        "PCM_PACKAGE_DIR": str(folder.absolute()),
        "PCM_PACKAGE_NAME": manifest.name,
        "PCM_PACKAGE_VERSION": manifest.version,
    }


def helper(command: Command, *, as_user: bool) -> Command:
    """Return a command that only decides, such as detection: it outlives nothing.

    A user's agent runs it as its user.
    """
    changes: dict[str, object] = {"survives_agent": False, "leaves_processes": False}
    if as_user:
        changes |= {"run_as": None, "background": False}
    return command.model_copy(update=changes)


async def run_detection(
    copies: PackageCopies, make_run: MakeRun, *, as_user: bool
) -> bool | Outcome | None:
    """Return whether a package is there; None: it has no detection.

    An outcome, if detection did not end in time.

    Raises:
        OSError: files or processes ran out, or the disk does not take the package.
    """
    detect = copies.package.manifest.detect
    if detect is None:
        return None
    run = make_run(helper(detect, as_user=as_user), partial(place, copies), own=False)
    try:
        outcome = await run.complete()
    except CannotStart as error:  # its program is missing, for example
        _log.info("package.not_detected", package=copies.package.manifest.name, reason=str(error))
        return False
    if outcome.state is State.TIMED_OUT:
        return _failed(f"detect: {outcome.reason}")
    return outcome.state is State.SUCCEEDED


@dataclass(frozen=True)
class _Stop:
    state: State
    reason: str


class Locks:
    """One lock for each package's name: two jobs do not install one package at a time."""

    def __init__(self) -> None:
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def of(self, name: str) -> asyncio.Lock:
        """Return the lock of a package."""
        return self._locks[name]


class PackageRun:
    """The run of a job with a package; `stop`, `quit` and `kill` as those of `CommandRun`."""

    def __init__(
        self,
        job: Job,
        reference: PackageReference,
        make_run: MakeRun,
        inventory: Inventory,
        locks: Locks,
        *,
        as_user: bool,
    ) -> None:
        """Create a run.

        Args:
            job: the job.
            reference: the job's package and command.
            make_run: makes the run of one command.
            inventory: is told what ran.
            locks: the locks of packages.
            as_user: whether a user's agent runs it.
        """
        self.job_id = job.id
        self._job = job
        self._reference = reference
        self.copies: list[PackageCopies] = []
        """The job's packages; its own is the last. Set before `complete`."""
        self.live: LiveOutput | None = None
        self.started_at = time.time()
        """When the job was started, or is about to be started."""
        self._make_run = make_run
        self._inventory = inventory
        self._locks = locks
        self._as_user = as_user
        self._stop: _Stop | None = None
        self._current: CommandRun | None = None
        self._is_own = False
        self._restart_required = False

    @property
    def stopped(self) -> tuple[State, str] | None:
        """The state and the reason of a requested stop; None if none is requested."""
        return None if self._stop is None else (self._stop.state, self._stop.reason)

    def stop(self, state: State, reason: str) -> None:
        """End the command that runs, and start no other."""
        self._stop = self._stop or _Stop(state, reason)
        if self._current is not None:
            self._current.stop(state, reason)

    def quit(self, reason: str) -> None:
        """End the command because its agent ends; leave the job's own if it survives its agent."""
        self._stop = self._stop or _Stop(State.INTERRUPTED, reason)
        if self._current is not None:
            self._current.quit(reason)

    def kill(self) -> None:
        """End the command immediately."""
        if self._current is not None:
            self._current.kill()

    async def complete(self) -> Outcome:
        """Run all that the job needs; return how it ended.

        Raises:
            CannotStart: the job's own command cannot be started.
            CannotOpen: its secrets cannot be opened.
            LeftRunning: it was left running.
            OSError: files or processes ran out; nothing was started.
        """
        for required, copies in zip(self._reference.requires, self.copies, strict=False):
            async with self._locks.of(required.name):
                if failure := await self._require(required, copies):
                    return failure
        async with self._locks.of(self._reference.name):
            outcome = await self._run_own(self.copies[-1])
        if outcome.result is not None and self._restart_required:
            result = outcome.result.model_copy(update={"restart_required": True})
            outcome = Outcome(outcome.state, result, outcome.reason)
        return outcome

    async def _require(self, required: RequiredPackage, copies: PackageCopies) -> Outcome | None:
        """Install a required package where it is missing; return the outcome if that fails."""
        manifest = copies.package.manifest
        found = await self._detect(copies)
        if isinstance(found, Outcome):
            return _for(required, found)
        known = self._inventory.get(required.name)
        if found is None and known is not None and known.version == required.version:
            found = known.installed
        if found:
            return None
        if INSTALL not in manifest.commands:
            return _failed(f"requires {required}, which is missing and has no command install")
        command = manifest.command(INSTALL)
        if self._as_user and command.background:
            return _failed(f"requires {required}, which only the service agent can install")
        _log.info("package.required", job=self.job_id, package=str(required))
        command = command.model_copy(update={"survives_agent": False})
        outcome = await self._run_and_verify(copies, INSTALL, command, own=False)
        await self._record(copies, required, INSTALL, outcome.state)
        if outcome.result is not None:
            self._restart_required |= outcome.result.restart_required
        return None if outcome.state is State.SUCCEEDED else _for(required, outcome)

    async def _run_own(self, copies: PackageCopies) -> Outcome:
        name, manifest = self._reference.command, copies.package.manifest
        if manifest.detects_before(name) or (name == UNINSTALL and manifest.detect is not None):
            found = await self._detect(copies)
            if isinstance(found, Outcome):
                return found
            if found is (name != UNINSTALL):
                await self._save(self._reference, name, State.SUCCEEDED, present=found)
                return _already(present=found)
        await self._save(self._reference, name, State.STARTED, present=None)
        outcome = await self._run_and_verify(copies, name, self._job.command, own=True)
        await self._record(copies, self._reference, name, outcome.state)
        return outcome

    async def _run_and_verify(
        self, copies: PackageCopies, name: str, command: Command, *, own: bool
    ) -> Outcome:
        manifest = copies.package.manifest
        outcome = await self._run(copies, command, own=own)
        if own and self.live is not None:
            self.live.close()  # what follows is not its output
        if outcome.state is not State.SUCCEEDED or not manifest.verifies_after(name):
            return outcome
        verify = helper(manifest.verify or command, as_user=self._as_user)
        try:
            verified = await self._run(copies, verify)
        except CannotStart as error:
            verified = _failed(str(error))
        if verified.state is State.SUCCEEDED:
            return outcome
        reason = f"{name} succeeded, but verify did not: {verified.reason}"
        if manifest.on_failed_verify == UNINSTALL and self._stop is None:
            reason += f"; {await self._undo(copies)}"
        state = verified.state if self._stop is not None else State.FAILED
        return Outcome(state, verified.result or outcome.result, reason)

    async def _undo(self, copies: PackageCopies) -> str:
        """Uninstall a package whose verification failed; return how that ended."""
        uninstall = copies.package.manifest.command(UNINSTALL)
        try:
            outcome = await self._run(copies, helper(uninstall, as_user=self._as_user))
        except CannotStart as error:
            return f"uninstall: {error}"
        succeeded = outcome.state is State.SUCCEEDED
        return "uninstalled" if succeeded else f"uninstall: {outcome.reason}"

    async def _detect(self, copies: PackageCopies) -> bool | Outcome | None:
        """Return whether a package is there; None: it has no detection.

        An outcome, if the run was stopped, or if detection did not end in time.
        """
        if self._stop is not None:
            return Outcome(self._stop.state, None, self._stop.reason)

        def make_run(command: Command, place: Place, *, own: bool) -> CommandRun:
            self._current = self._make_run(command, place, own=own)
            return self._current

        try:
            found = await run_detection(copies, make_run, as_user=self._as_user)
        finally:
            self._current = None
        if self._stop is not None:
            return Outcome(self._stop.state, None, self._stop.reason)
        return found

    async def _run(self, copies: PackageCopies, command: Command, *, own: bool = False) -> Outcome:
        if self._stop is not None:
            return Outcome(self._stop.state, None, self._stop.reason)
        run = self._make_run(command, partial(place, copies), own=own)
        self._current = run
        try:
            return await run.complete()
        finally:
            self._current = None

    async def _record(
        self, copies: PackageCopies, package: RequiredPackage, name: str, state: State
    ) -> None:
        """Store in the inventory what ran, and what detection says after it."""
        present = None
        if self._stop is None:
            with suppress(OSError):
                found = await self._detect(copies)
                present = found if isinstance(found, bool) else None
        await self._save(package, name, state, present=present)

    async def _save(
        self, package: RequiredPackage, name: str, state: State, *, present: bool | None
    ) -> None:
        now = datetime.now(UTC)
        await self._inventory.save(
            InstalledPackage(
                name=package.name,
                version=package.version,
                manifest=package.manifest,
                command=name,
                state=state,
                ran_at=now,
                present=present,
                checked_at=None if present is None else now,
            )
        )


def _failed(reason: str) -> Outcome:
    return Outcome(State.FAILED, None, reason)


def _for(required: RequiredPackage, outcome: Outcome) -> Outcome:
    """Return the outcome of a job whose required package is not there."""
    return Outcome(outcome.state, outcome.result, f"requires {required}: {outcome.reason}")


def _already(*, present: bool) -> Outcome:
    result = Result(exit_code=0, duration=timedelta(0), max_memory=0, already_present=present)
    text = "is there already" if present else "is not there"
    return Outcome(State.SUCCEEDED, result, f"nothing was run: detection says that it {text}")
