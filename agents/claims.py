"""Who may run a foreground job on this workstation: at most one agent, whatever crashes.

A claim is a file in a folder that the workstation's agents share. Who holds its lock may start
the job; the kernel drops the lock when the holder dies. What is written into it is decided for
good: the command was started, or never will be. Who started it holds the lock until it has ended
and that is on record: a start whose lock is free, and whose end is not noted, was cut off.
Background jobs need no claim: only the service agent receives them, and no user's process may
stand in their way.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from agents.platforms import NO_FILES
from agents.state import shared_directory
from schemas import State

_log = structlog.get_logger()
_READ_LIMIT = 4096
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither by a link, nor waiting at a pipe
UNKNOWN = "unknown"
"""Stands for the agent of a decision that cannot be read."""


@dataclass(frozen=True)
class Decision:
    """What was decided of a job on this workstation, and by which agent."""

    agent: str
    state: str
    ended: bool = False

    @property
    def running(self) -> bool:
        """Whether the job was started, and its end is not noted."""
        return self.state == State.STARTED and not self.ended


class Claims:
    """The claims of one agent among those of its workstation."""

    def __init__(self, state_dir: Path, agent: str) -> None:
        self._directory = shared_directory(shared_directory(state_dir) / "claims")
        self._agent = agent
        self._held: dict[str, int] = {}
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<Claims of {self._agent}, holding {sorted(self._held)}>"

    def holds(self, job_id: str) -> bool:
        """Whether this agent holds the right to start a job."""
        return job_id in self._held

    def take(self, job_id: str) -> bool:
        """Take the right to start a job; False if another agent holds it or it is decided.

        It is held until `decide`, `release`, or this process's end.
        """
        return job_id in self._held or self._lock(job_id, lambda decision: decision is None)

    def resume(self, job_id: str) -> bool:
        """Take up a start of ours that was cut off; False if another agent concluded it."""
        return job_id in self._held or self._lock(
            job_id, lambda decision: decision == Decision(self._agent, State.STARTED)
        )

    def inherit(self, job_id: str) -> bool:
        """Conclude another agent's start that was cut off; False if it was not, or by another."""

        def orphaned(decision: Decision | None) -> bool:
            return decision is not None and decision.running and decision.agent != self._agent

        if not self._lock(job_id, orphaned):
            return False
        try:
            return self._write(job_id, State.INTERRUPTED)
        finally:
            self.release(job_id)

    def release(self, job_id: str) -> None:
        """Give the right back, undecided."""
        if (file := self._held.pop(job_id, None)) is not None:
            os.close(file)

    def decide(self, job_id: str, state: State) -> bool:
        """Take the claim and write down, for good and to the disk, what becomes of the job.

        Where that is its start the claim is held on, until `conclude`.

        Returns:
            Whether it was ours to decide; False if another agent holds the claim or decided.
        """
        decided = False
        try:
            decided = self.take(job_id) and self._write(job_id, state)
        finally:
            if not decided or state is not State.STARTED:
                self.release(job_id)
        return decided

    def conclude(self, job_id: str) -> None:
        """Note that what was started has ended, and is on record; then let go of it."""
        if (file := self._held.get(job_id)) is None:
            return
        found = _read(file)
        if found is not None and found.running:
            # Not synced: were it lost, the service would ask in vain, and say what is known.
            with suppress(OSError):
                _overwrite(file, Decision(found.agent, found.state, ended=True))
        self.release(job_id)

    def conclude_all(self, still_open: Collection[str]) -> None:
        """Conclude our former starts whose ends are on record: all but those still open."""
        for path in self._directory.iterdir():
            job_id = path.name
            if job_id not in still_open:
                found = self.decision(job_id)
                if found and found.running and found.agent == self._agent and self.resume(job_id):
                    self.conclude(job_id)

    def orphaned(self, job_id: str) -> bool:
        """Whether another agent's start was cut off: its holder is gone, its end not noted."""
        found = self.decision(job_id)
        if found is None or not found.running or found.agent == self._agent:
            return False
        free = self._lock(job_id, lambda decision: decision == found)
        self.release(job_id)
        return free

    def forget(self, before: float) -> None:
        """Remove our decided claims that were last written before a time."""
        try:
            paths = list(self._directory.iterdir())
        except OSError:  # no file is left to look by: next time
            return
        for path in paths:
            try:
                found = path.stat(follow_symlinks=False)
                # Others' files are theirs to remove: the folder's mode sees to that.
                if (
                    found.st_mtime < before
                    and found.st_uid == os.geteuid()
                    and (
                        decision(self._directory.parent, path.name) and path.name not in self._held
                    )
                ):
                    path.unlink()
            except OSError:
                continue

    def decision(self, job_id: str) -> Decision | None:
        """Return what was decided of a job, None while nothing is."""
        return decision(self._directory.parent, job_id)

    def close(self) -> None:
        """Release all that is held."""
        for job_id in list(self._held):
            self.release(job_id)

    def _lock(self, job_id: str, wanted: Callable[[Decision | None], bool]) -> bool:
        """Take the lock of a claim and hold it, if nobody else does and what it says is wanted."""
        try:
            file = self._open(job_id)
        except OSError as error:  # no room, or a user put something else there
            self._tell(job_id, error)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not wanted(_read(file)):
                raise BlockingIOError
        except OSError:
            os.close(file)
            return False
        self._held[job_id] = file
        return True

    def _tell(self, job_id: str, error: OSError) -> None:
        """Tell of a claim that cannot be written: once, however often it is tried."""
        if job_id not in self._told:
            self._told.add(job_id)
            _log.warning("claim.failed", job=job_id, reason=error.strerror)

    def _write(self, job_id: str, state: State) -> bool:
        file = self._held[job_id]
        before = os.pread(file, _READ_LIMIT, 0)
        try:
            _overwrite(file, Decision(self._agent, state))
            os.fsync(file)
            self._sync_directory()
        except OSError as error:  # the disk is full, say: not decided, to be tried again
            self._tell(job_id, error)
            os.pwrite(file, before, 0)
            os.ftruncate(file, len(before))
            return False
        self._told.discard(job_id)
        return True

    def _open(self, job_id: str) -> int:
        path = self._directory / job_id
        flags = os.O_RDWR | _SAFELY
        while True:
            # Not by one O_CREAT: the kernel may refuse that for another user's file in an open
            # folder (fs.protected_regular).
            try:
                return _regular(os.open(path, flags))
            except FileNotFoundError:
                pass
            try:
                file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                continue
            os.fchmod(file, 0o666)  # whatever our umask: the other agent is another user's
            return file

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def decision(state_dir: Path, job_id: str) -> Decision | None:
    """Return what the agents of a state directory decided of a job, None while nothing is."""
    path = state_dir / "claims" / job_id
    try:
        file = _regular(os.open(path, os.O_RDONLY | _SAFELY))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in NO_FILES:
            return None  # it cannot be looked at now: whoever wants to decide finds out
        return Decision(UNKNOWN, "unreadable")
    try:
        return _read(file)
    finally:
        os.close(file)


def _regular(file: int) -> int:
    """Return the file if it is a plain one: any user may put other things into the folder."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "is no plain file")
    return file


def _overwrite(file: int, decision: Decision) -> None:
    """Write in one piece, and over all of what was there."""
    text = json.dumps(asdict(decision)).encode().ljust(os.fstat(file).st_size)
    if os.pwrite(file, text, 0) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(file: int) -> Decision | None:
    text = os.pread(file, _READ_LIMIT, 0)
    if not text:
        return None
    try:
        found = json.loads(text)
        return Decision(str(found["agent"]), str(found["state"]), found.get("ended") is True)
    except (ValueError, KeyError, TypeError):
        # Somebody began to write: what they decided is unknown, so nobody starts it.
        return Decision(UNKNOWN, "unreadable")
