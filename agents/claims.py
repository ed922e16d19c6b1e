"""Who may run a foreground job on this workstation: at most one agent, whatever crashes.

A claim is a file in a folder that the workstation's agents share. Who holds its lock may start
the job; the kernel drops the lock when the holder dies. What is written into it is decided for
good: the command was started, or never will be. Background jobs need no claim: only the service
agent receives them, and no user's process may stand in their way.
"""

import errno
import fcntl
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from agents.state import shared_directory

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


class Claims:
    """The claims of one agent among those of its workstation."""

    def __init__(self, state_dir: Path, agent: str) -> None:
        self._directory = shared_directory(shared_directory(state_dir) / "claims")
        self._agent = agent
        self._held: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Claims of {self._agent}, holding {sorted(self._held)}>"

    def holds(self, job_id: str) -> bool:
        """Whether this agent holds the right to start a job."""
        return job_id in self._held

    def take(self, job_id: str) -> bool:
        """Take the right to start a job; False if another agent holds it or it is decided.

        It is held until `decide`, `release`, or this process's end.
        """
        if job_id in self._held:
            return True
        try:
            file = self._open(job_id)
        except OSError as error:  # no room, or a user put something else there
            _log.warning("claim.failed", job=job_id, reason=error.strerror)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        if _read(file) is not None:
            os.close(file)
            return False
        self._held[job_id] = file
        return True

    def release(self, job_id: str) -> None:
        """Give the right back, undecided."""
        if (file := self._held.pop(job_id, None)) is not None:
            os.close(file)

    def decide(self, job_id: str, state: str) -> bool:
        """Take the claim and write down, for good and to the disk, what becomes of the job.

        Returns:
            Whether it was ours to decide; False if another agent holds the claim or decided.
        """
        if not self.take(job_id):
            return False
        file = self._held[job_id]
        try:
            os.pwrite(file, json.dumps({"agent": self._agent, "state": state}).encode(), 0)
            os.fsync(file)
            self._sync_directory()
        except OSError as error:  # the disk is full, say: not decided, to be tried again
            _log.warning("claim.failed", job=job_id, reason=error.strerror)
            os.ftruncate(file, 0)
            return False
        finally:
            self.release(job_id)
        return True

    def decision(self, job_id: str) -> Decision | None:
        """Return what was decided of a job, None while nothing is."""
        return decision(self._directory.parent, job_id)

    def close(self) -> None:
        """Release all that is held."""
        for job_id in list(self._held):
            self.release(job_id)

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
    except OSError:
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


def _read(file: int) -> Decision | None:
    text = os.pread(file, _READ_LIMIT, 0)
    if not text:
        return None
    try:
        found = json.loads(text)
        return Decision(str(found["agent"]), str(found["state"]))
    except (ValueError, KeyError, TypeError):
        # Somebody began to write: what they decided is unknown, so nobody starts it.
        return Decision(UNKNOWN, "unreadable")
