"""Claims: at most one agent of a workstation runs a foreground job, whichever process crashes.

A claim is a file in a folder that the workstation's agents share. The agent that holds its lock
may start the job; the kernel releases the lock when the process dies. The decision written into
the file is final: the command was started, or never will be. The agent that started it holds the
lock until the end of the command is recorded. A start whose lock is free and whose end is not
recorded was interrupted. Background jobs need no claim: only the service agent receives them, and
a user's process must not be able to block them.

All users may write to the folder. The deciding agent makes the file read-only for others. The
service agent, whose user owns the folder, replaces another user's file by its own. It also does
this if a claim is held for too long. Holder and service agent may decide at the same time: the
holder writes, then checks that its file is still in place; the service agent replaces the file,
then checks what the old one says. So at most one of them succeeds.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from agents.claims.claim_file import (
    OPEN_FLAGS,
    READ_LIMIT,
    ClaimRecord,
    check_regular,
    decision,
    overwrite,
    read_claim,
)
from agents.claims.standings import PREFIX
from agents.store.state_folder import claims_directory, set_aside, shared_directory, sync_directory
from broker.log import get_logger
from schemas import State

_log = get_logger()
_DECIDED_MODE = 0o644  # other users may only lock it


class Claims:
    """The claims of one agent in its workstation's folder."""

    def __init__(self, state_dir: Path, agent: str) -> None:
        self._directory = claims_directory(shared_directory(state_dir))
        # The owner may replace other users' files.
        self._owns_directory = os.geteuid() == state_dir.stat().st_uid
        self._agent = agent
        self._held: dict[str, int] = {}
        self._reported: set[str] = set()

    def __repr__(self) -> str:
        return f"<Claims of {self._agent}, holding {sorted(self._held)}>"

    def holds(self, job_id: str) -> bool:
        """Whether this agent holds the job's claim."""
        return job_id in self._held

    def take(self, job_id: str) -> bool:
        """Take the job's claim; return False if another agent holds it or it is decided.

        The claim is held until `decide`, `release`, or the end of this process.
        """
        return job_id in self._held or self._lock(
            job_id, lambda decision: decision is None, create=True
        )

    def resume(self, job_id: str) -> bool:
        """Take the claim of this agent's interrupted start; False if another agent has it."""
        return job_id in self._held or self._lock(
            job_id, lambda decision: decision == ClaimRecord(self._agent, State.STARTED)
        )

    def adopt(self, job_id: str) -> bool:
        """Decide another agent's interrupted start; return False if it was not interrupted."""

        def orphaned(decision: ClaimRecord | None) -> bool:
            return decision is not None and decision.running and decision.agent != self._agent

        if not self._lock(job_id, orphaned):
            return False
        try:
            return self._write(job_id, State.INTERRUPTED)
        finally:
            self.release(job_id)

    def release(self, job_id: str) -> None:
        """Release the claim."""
        if (file := self._held.pop(job_id, None)) is None:
            return
        if self._owns_directory and not os.fstat(file).st_size and self._is_current(job_id, file):
            with suppress(OSError):  # removed, since other users cannot write to our file
                (self._directory / job_id).unlink()
        os.close(file)

    def decide(self, job_id: str, state: State) -> bool:
        """Take the claim and write the job's final decision to the disk.

        If the decision is to start the job, the claim is held until `conclude`.

        Returns:
            Whether this agent decided; False if another agent holds the claim or has decided.
        """
        decided = False
        try:
            decided = self.take(job_id) and self._write(job_id, state)
        finally:
            if not decided or state is not State.STARTED:
                self.release(job_id)
        return decided

    def force(self, job_id: str, expected: ClaimRecord | None, state: State) -> bool:
        """Decide a job whose claim another agent holds for too long.

        `expected` is the decision that the claim held when the caller read it.

        Returns:
            Whether this agent decided; False if the other agent decided meanwhile, or if this
            user does not own the folder.
        """
        if not self._owns_directory or job_id in self._held:
            return False
        try:
            other = self._open(job_id, create=False)
        except OSError:  # missing or not a regular file
            other = None
        decided = False
        try:
            if other is not None and self._read(other) != expected:
                return False
            if self._replace(job_id, ClaimRecord(self._agent, state)):
                _log.warning("claim.forced", job=job_id, state=str(state))
                current = expected if other is None else self._read(other)
                decided = current == expected or not self._replace(job_id, current)
        except OSError as error:
            self._report_failure(job_id, error)
        finally:
            if other is not None:
                os.close(other)
            if not decided or state is not State.STARTED:
                self.release(job_id)
        return decided

    def conclude(self, job_id: str) -> None:
        """Record that the started job has ended, and release the claim."""
        if (file := self._held.get(job_id)) is None:
            return
        decision = self._read(file)
        if decision is not None and decision.running:
            # Not synced: if the write is lost, `conclude_all` repeats it at the next start.
            with suppress(OSError):
                overwrite(file, ClaimRecord(decision.agent, decision.state, ended=True))
        self.release(job_id)

    def conclude_all(self, still_open: Collection[str]) -> None:
        """Conclude this agent's former starts, except the jobs that are still open."""
        for path in self._directory.iterdir():
            job_id = path.name
            if job_id not in still_open:
                decision = self.decision(job_id)
                ours = decision and decision.running and decision.agent == self._agent
                if ours and self.resume(job_id):
                    self.conclude(job_id)

    def orphaned(self, job_id: str) -> bool:
        """Whether another agent's start was interrupted: its lock is free, its end not recorded."""
        orphan = self.decision(job_id)
        if orphan is None or not orphan.running or orphan.agent == self._agent:
            return False
        is_free = self._lock(job_id, lambda decision: decision == orphan)
        self.release(job_id)
        return is_free

    def forget(self, before: float) -> None:
        """Remove this user's decided claims that were last written before a time."""
        try:
            paths = list(self._directory.iterdir())
        except OSError:  # no file descriptor is left; the next call tries again
            return
        for path in paths:
            if path.name.startswith(PREFIX):
                continue
            try:
                status = path.stat(follow_symlinks=False)
                # The sticky bit of the folder forbids removing other users' files.
                if (
                    status.st_mtime < before
                    and status.st_uid == os.geteuid()
                    and (
                        decision(self._directory.parent, path.name) and path.name not in self._held
                    )
                ):
                    path.unlink()
            except OSError:
                continue

    def decision(self, job_id: str) -> ClaimRecord | None:
        """Return the decision about a job; None if it is undecided."""
        return decision(self._directory.parent, job_id)

    def close(self) -> None:
        """Release all claims."""
        for job_id in list(self._held):
            self.release(job_id)

    def _lock(
        self, job_id: str, wanted: Callable[[ClaimRecord | None], bool], *, create: bool = False
    ) -> bool:
        """Lock a claim and hold it, if it is free and its decision is `wanted`."""
        try:
            file = self._open(job_id, create=create)
        except FileNotFoundError:
            return False
        except OSError as error:  # the disk is full, or another user's file blocks the path
            self._report_failure(job_id, error)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not wanted(self._read(file)) or not self._is_current(job_id, file):
                raise BlockingIOError
        except OSError:
            os.close(file)
            return False
        self._held[job_id] = file
        return True

    def _report_failure(self, job_id: str, error: OSError) -> None:
        """Log once that a claim cannot be written."""
        if job_id not in self._reported:
            self._reported.add(job_id)
            _log.warning("claim.failed", job=job_id, reason=error.strerror)

    def _write(self, job_id: str, state: State) -> bool:
        file = self._held[job_id]
        before = os.pread(file, READ_LIMIT, 0)
        decision = ClaimRecord(self._agent, state)
        try:
            if self._owns_directory and os.fstat(file).st_uid != os.geteuid():
                decided = self._replace(job_id, decision)
            else:
                overwrite(file, decision)
                os.fsync(file)
                sync_directory(self._directory)
                with suppress(PermissionError):  # another user's file
                    os.fchmod(file, _DECIDED_MODE)
                decided = self._is_current(job_id, file)
        except OSError as error:  # the disk is full, for example: undecided, tried again later
            self._report_failure(job_id, error)
            with suppress(OSError):
                os.pwrite(file, before, 0)
                os.ftruncate(file, len(before))
            return False
        self._reported.discard(job_id)
        return decided

    def _replace(self, job_id: str, decision: ClaimRecord | None) -> bool:
        """Replace another user's file by our own, and hold it; return True."""
        path = self._directory / job_id
        new = self._directory / f".{job_id}.{secrets.token_hex(8)}"  # not a valid job id
        file = os.open(new, os.O_RDWR | OPEN_FLAGS | os.O_CREAT | os.O_EXCL, _DECIDED_MODE)
        try:
            os.fchmod(file, _DECIDED_MODE)  # independent of the umask
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

    def _is_current(self, job_id: str, file: int) -> bool:
        """Whether an open file is still the claim's file."""
        try:
            status = os.lstat(self._directory / job_id)
        except OSError:
            return False
        return os.path.samestat(status, os.fstat(file))

    def _open(self, job_id: str, *, create: bool) -> int:
        path = self._directory / job_id
        flags = os.O_RDWR | OPEN_FLAGS
        mode = _DECIDED_MODE if self._owns_directory else 0o666
        while True:
            # First without O_CREAT: the kernel may refuse it for another user's file in a
            # world-writable folder (fs.protected_regular).
            try:
                return check_regular(os.open(path, flags))
            except PermissionError:  # decided by another user, or writable by its owner only
                return check_regular(os.open(path, os.O_RDONLY | OPEN_FLAGS))
            except FileNotFoundError:
                if not create:
                    raise
            try:
                file = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
            except FileExistsError:
                continue
            os.fchmod(file, mode)  # independent of the umask: the other agent is another user's
            return file

    def _read(self, file: int) -> ClaimRecord | None:
        return read_claim(file, self._directory.parent)
