"""Find the processes of a command whose agent ended, and wait for them or end them.

Its first process is known by process id, start time and the machine's boot id. Where its run was
too short for that to be recorded, it is the one that leads a session of its own.
"""

import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agents.execution.processes.process_table import process_entry
from agents.execution.processes.process_tree import LeftProcessTree

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int) -> str:
    """Return a process's identity, which is never reused; "" if the process has ended."""
    try:
        return f"{_BOOT.read_text().strip()} {pid} {process_entry(pid).started_at}"
    except OSError:
        return ""


@dataclass(frozen=True)
class OrphanedProcess:
    """The remaining processes of a job's command, and its first process if it is alive."""

    tree: LeftProcessTree
    process: int | None

    def age(self) -> float:
        """Return the age of its first process in seconds, independent of the wall clock."""
        try:
            started_at = process_entry(self.process or 0).started_at / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has ended
            return 0.0
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_at)

    def open_pidfd(self) -> int | None:
        """Return a pidfd of its first process, for the caller to close; None if it has ended.

        Raises:
            OSError: the limit of open files is reached.
        """
        if self.process is None:
            return None
        try:
            return os.pidfd_open(self.process)
        except ProcessLookupError:
            return None


def find_orphans(
    workstation: str, job_id: str, identity: str, owners: Collection[int]
) -> OrphanedProcess:
    """Return the remaining processes of a job's command.

    Args:
        workstation: the workstation's name.
        job_id: the job's id.
        identity: the identity of the command's first process; "" if it was not recorded.
        owners: the users under whom the command can run. Without an identity, only a process that
            one of them started counts as the first: a user can give a job's mark to a process of
            theirs, also to one that has another user's rights by its file's mode.

    Raises:
        OSError: the limit of open files is reached.
    """
    if identity:
        number = [*identity.split(), ""][1]
        is_same = number.isdecimal() and process_identity(int(number)) == identity
        process = int(number) if is_same and _is_alive(int(number)) else None
    else:
        found = LeftProcessTree(workstation, job_id).processes().items()
        leaders = [
            pid for pid, entry in found if entry.session == pid and _real_user(pid) in owners
        ]
        process = leaders[0] if len(leaders) == 1 else None
    return OrphanedProcess(LeftProcessTree(workstation, job_id, process or 0), process)


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return not process_entry(pid).has_ended
    return False


def _real_user(pid: int) -> int | None:
    """Return the id of the user who started a process; None if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"Uid:"):
                return int(line.split()[1])
    return None
