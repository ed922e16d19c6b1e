"""Find, wait for or end the processes that an agent left running when it ended.

A command is identified by its process id, its start time and the machine's boot id. Where its run
was too short for that to be recorded, the job's id in the environment of its processes identifies
it.
"""

import asyncio
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agents.platforms import NO_FILES

JOB_VARIABLE = "PCM_JOB_ID"
"""The environment variable with the job's id."""
WORKSTATION_VARIABLE = "PCM_WORKSTATION"
"""The environment variable with the workstation's name."""

_POLL = 0.02
_KILL_WAIT = 2.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def process_identity(pid: int) -> str:
    """Return a process's identity, which is never reused; "" if the process has ended."""
    try:
        return f"{_BOOT.read_text().strip()} {pid} {_stat(pid)[19]}"
    except OSError:
        return ""


@dataclass(frozen=True)
class OrphanedProcess:
    """The remaining process groups of a job's command, and its first process if it is alive."""

    groups: frozenset[int]
    process: int | None

    def age(self) -> float:
        """Return the age of its first process in seconds, independent of the wall clock."""
        try:
            started_at = int(_stat(self.process or 0)[19]) / os.sysconf("SC_CLK_TCK")
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

    async def end(self, grace: float) -> bool:
        """End its groups: SIGTERM, SIGKILL after the grace period; return whether it had any."""
        for group in self.groups:
            signal_group(group, signal.SIGTERM)
        await wait_or_kill(self.groups, grace)
        return bool(self.groups)


def find(job_id: str, identity: str, owners: Collection[int]) -> OrphanedProcess:
    """Return the remaining processes of a job's command.

    Args:
        job_id: the job's id.
        identity: the identity of the command's first process; "" if it was not recorded.
        owners: the users under whom the command can run. Without an identity, only a process of
            theirs counts as the first: any user can set the job's id in a process's environment.

    Raises:
        OSError: the limit of open files is reached.
    """
    variable = f"{JOB_VARIABLE}={job_id}".encode()
    groups: set[int] = set()
    owned: set[int] = set()
    number = [*identity.split(), "", ""][1]
    pid = int(number) if number.isdecimal() else 0
    process = pid if identity and process_identity(pid) == identity else None
    if process is not None:
        groups.add(process)  # it leads its own group
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and (
                variable in (folder / "environ").read_bytes().split(b"\0")
            ):
                group = os.getpgid(int(folder.name))
                groups.add(group)
                if folder.stat().st_uid in owners:
                    owned.add(group)
        except OSError as error:
            if error.errno in NO_FILES:
                raise
    groups.discard(os.getpgrp())
    owned.discard(os.getpgrp())
    if process is None and len(owned) == 1 and alive(*owned):
        (process,) = owned
    return OrphanedProcess(frozenset(groups), process)


def alive(group: int) -> bool:
    """Return whether the group has a live process; a zombie does not count."""
    if not signal_group(group, 0):
        return False
    try:
        for name in os.listdir("/proc"):  # noqa: PTH208 - faster, and this blocks the event loop
            try:
                is_member = name.isdecimal() and os.getpgid(int(name)) == group
                if is_member and _stat(int(name))[0] not in "ZX":
                    return True
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue
    except OSError:  # the limit of open files is reached
        return True
    return False


async def wait_or_kill(groups: Collection[int], grace: float) -> None:
    """Wait for process groups that were signalled to end; SIGKILL after the grace period."""
    if not await _wait_for_end(groups, grace):
        for group in groups:
            signal_group(group, signal.SIGKILL)
        await _wait_for_end(groups, _KILL_WAIT)  # limited: a kernel call can block the end


async def _wait_for_end(groups: Collection[int], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while any(map(alive, groups)):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; return whether it exists and is ours."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # ended, or its id is another user's now
        return False
    return True


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's /proc stat file, from its state on (see proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
