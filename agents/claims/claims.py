"""Who may run a foreground job on this workstation: at most one agent, whatever crashes.

A claim is a file in a folder that the workstation's agents share. Who holds its lock may start
the job; the kernel drops the lock when the holder dies. What is written into it is decided for
good: the command was started, or never will be. Who started it holds the lock until it has ended
and that is on record: a start whose lock is free, and whose end is not noted, was cut off.
Background jobs need no claim: only the service agent receives them, and no user's process may
stand in their way.

The folder is open to all users, and any of them may put anything into it. What is decided can be
altered by nobody else: whoever decides makes the file read-only to others, and the service agent,
whose folder it is, puts a file of its own in the place of another user's. It can do so, too, where
a claim is held for too long. Holder and overruler may meet: the holder writes, then looks whether
its file is still there; the overruler puts its file there, then looks what the other one says. So
it is never both.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from agents.claims.claim_file import (
    READ_LIMIT,
    SAFELY,
    ClaimRecord,
    decision,
    overwrite,
    read,
    regular,
)
from agents.store.state_folder import claims_directory, set_aside, shared_directory, sync_directory
from broker.log import get_logger
from schemas import State

_log = get_logger()
_DECIDED = 0o644  # others may lock it, no more


class Claims:
    """The claims of one agent among those of its workstation."""

    def __init__(self, state_dir: Path, agent: str) -> None:
        self._directory = claims_directory(shared_directory(state_dir))
        self._rules = os.geteuid() == state_dir.stat().st_uid  # may replace others' files
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
        return job_id in self._held or self._lock(
            job_id, lambda decision: decision is None, make=True
        )

    def resume(self, job_id: str) -> bool:
        """Take up a start of ours that was cut off; False if another agent concluded it."""
        return job_id in self._held or self._lock(
            job_id, lambda decision: decision == ClaimRecord(self._agent, State.STARTED)
        )

    def inherit(self, job_id: str) -> bool:
        """Conclude another agent's start that was cut off; False if it was not, or by another."""

        def orphaned(decision: ClaimRecord | None) -> bool:
            return decision is not None and decision.running and decision.agent != self._agent

        if not self._lock(job_id, orphaned):
            return False
        try:
            return self._write(job_id, State.INTERRUPTED)
        finally:
            self.release(job_id)

    def release(self, job_id: str) -> None:
        """Give the right back, undecided."""
        if (file := self._held.pop(job_id, None)) is None:
            return
        if self._rules and not os.fstat(file).st_size and self._is_there(job_id, file):
            with suppress(OSError):  # others may not write to a file of ours
                (self._directory / job_id).unlink()
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

    def overrule(self, job_id: str, told: ClaimRecord | None, state: State) -> bool:
        """Decide a job whose claim another agent holds for too long; `told` is what it says.

        Returns:
            Whether it is decided; False where the other decided meanwhile, or the folder is not
            ours.
        """
        if not self._rules or job_id in self._held:
            return False
        try:
            other = self._open(job_id, make=False)
        except OSError:  # nothing that could be written to
            other = None
        decided = False
        try:
            if other is not None and self._read(other) != told:
                return False
            if self._replace(job_id, ClaimRecord(self._agent, state)):
                _log.warning("claim.overruled", job=job_id, state=str(state))
                found = told if other is None else self._read(other)
                decided = found == told or not self._replace(job_id, found)
        except OSError as error:
            self._tell(job_id, error)
        finally:
            if other is not None:
                os.close(other)
            if not decided or state is not State.STARTED:
                self.release(job_id)
        return decided

    def conclude(self, job_id: str) -> None:
        """Note that what was started has ended, and is on record; then let go of it."""
        if (file := self._held.get(job_id)) is None:
            return
        found = self._read(file)
        if found is not None and found.running:
            # Not synced: were it lost, the service would ask in vain, and say what is known.
            with suppress(OSError):
                overwrite(file, ClaimRecord(found.agent, found.state, ended=True))
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

    def decision(self, job_id: str) -> ClaimRecord | None:
        """Return what was decided of a job, None while nothing is."""
        return decision(self._directory.parent, job_id)

    def close(self) -> None:
        """Release all that is held."""
        for job_id in list(self._held):
            self.release(job_id)

    def _lock(
        self, job_id: str, wanted: Callable[[ClaimRecord | None], bool], *, make: bool = False
    ) -> bool:
        """Take the lock of a claim and hold it, if nobody else does and what it says is wanted."""
        try:
            file = self._open(job_id, make=make)
        except FileNotFoundError:
            return False
        except OSError as error:  # no room, or a user put something else there
            self._tell(job_id, error)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not wanted(self._read(file)) or not self._is_there(job_id, file):
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
        before = os.pread(file, READ_LIMIT, 0)
        decision = ClaimRecord(self._agent, state)
        try:
            if self._rules and os.fstat(file).st_uid != os.geteuid():
                decided = self._replace(job_id, decision)
            else:
                overwrite(file, decision)
                os.fsync(file)
                sync_directory(self._directory)
                with suppress(PermissionError):  # another user made it; what they do is theirs
                    os.fchmod(file, _DECIDED)
                decided = self._is_there(job_id, file)
        except OSError as error:  # the disk is full, say: not decided, to be tried again
            self._tell(job_id, error)
            with suppress(OSError):
                os.pwrite(file, before, 0)
                os.ftruncate(file, len(before))
            return False
        self._told.discard(job_id)
        return decided

    def _replace(self, job_id: str, decision: ClaimRecord | None) -> bool:
        """Put a file of ours in the place of another user's, and hold it; return True."""
        path = self._directory / job_id
        new = self._directory / f".{job_id}.{secrets.token_hex(8)}"  # the name of no job
        file = os.open(new, os.O_RDWR | SAFELY | os.O_CREAT | os.O_EXCL, _DECIDED)
        try:
            os.fchmod(file, _DECIDED)  # whatever our umask
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if decision is not None:
                overwrite(file, decision)
            os.fsync(file)
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    set_aside(path)
            new.rename(path)
        except BaseException:
            os.close(file)
            new.unlink(missing_ok=True)
            raise
        self.release(job_id)
        self._held[job_id] = file
        sync_directory(self._directory)
        return True

    def _is_there(self, job_id: str, file: int) -> bool:
        """Whether a file that we opened is still the claim's."""
        try:
            found = os.lstat(self._directory / job_id)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(file))

    def _open(self, job_id: str, *, make: bool) -> int:
        path = self._directory / job_id
        flags = os.O_RDWR | SAFELY
        mode = _DECIDED if self._rules else 0o666  # what is ours, others only lock
        while True:
            # Not by one O_CREAT: the kernel may refuse that for another user's file in an open
            # folder (fs.protected_regular).
            try:
                return regular(os.open(path, flags))
            except PermissionError:  # it is decided by another user, or they may only lock it
                return regular(os.open(path, os.O_RDONLY | SAFELY))
            except FileNotFoundError:
                if not make:
                    raise
            try:
                file = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
            os.fchmod(file, mode)  # whatever our umask: the other agent is another user's
            return file

    def _read(self, file: int) -> ClaimRecord | None:
        return read(file, self._directory.parent)
