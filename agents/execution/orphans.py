"""What an agent that ended left running: found again, waited for, or ended.

A command is known by its process, its start time and the boot of the machine; and, where it had
run too briefly to be on record, by the job's id in the environment of its processes.
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
"""The environment variable that tells a command which job it belongs to."""
WORKSTATION_VARIABLE = "PCM_WORKSTATION"
"""The one that tells it on which workstation it runs."""

_POLL = 0.02
_KILL_WAIT = 2.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(pid: int) -> str:
    """Return what tells a process from all others, before and after it; "" if it has ended."""
    try:
        return f"{_BOOT.read_text().strip()} {pid} {_stat(pid)[19]}"
    except OSError:
        return ""


@dataclass(frozen=True)
class OrphanedProcess:
    """The process groups that are left of a job's command, and its first process if it lives."""

    groups: frozenset[int]
    process: int | None

    def age(self) -> float:
        """Return for how many seconds its first process has run, whatever the wall clock did."""
        try:
            began = int(_stat(self.process or 0)[19]) / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has ended
            return 0.0
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began)

    def watched(self) -> int | None:
        """Return a pidfd of its first process, for the caller to close; None if it has ended.

        Raises:
            OSError: there are no files left to look by.
        """
        if self.process is None:
            return None
        try:
            return os.pidfd_open(self.process)
        except ProcessLookupError:
            return None

    async def end(self, grace: float) -> bool:
        """End all of it: SIGTERM, SIGKILL after the grace period; return whether there was any."""
        for group in self.groups:
            signal_group(group, signal.SIGTERM)
        await see_off(self.groups, grace)
        return bool(self.groups)


def find(job_id: str, marked: str, owners: Collection[int]) -> OrphanedProcess:
    """Return what is left of a job's command; `marked` is its process's mark, if that is known.

    Where it is not, only a process of one of its `owners` is taken for it: any user can name a
    process of theirs after a job.

    Raises:
        OSError: there are no files left to look by.
    """
    variable = f"{JOB_VARIABLE}={job_id}".encode()
    groups: set[int] = set()
    owned: set[int] = set()
    number = [*marked.split(), "", ""][1]
    pid = int(number) if number.isdecimal() else 0
    process = pid if marked and mark(pid) == marked else None
    if process is not None:
        groups.add(process)  # it leads a group of its own
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
    """Whether a process of the group lives; one that only waits to be reaped does not."""
    if not signal_group(group, 0):
        return False
    try:
        for name in os.listdir("/proc"):  # noqa: PTH208 - faster: the event loop waits
            try:
                inside = name.isdecimal() and os.getpgid(int(name)) == group
                if inside and _stat(int(name))[0] not in "ZX":
                    return True
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue
    except OSError:  # no file is left to look by
        return True
    return False


async def see_off(groups: Collection[int], grace: float) -> None:
    """Wait for process groups to end, as they were told; SIGKILL after the grace period."""
    if not await _gone(groups, grace):
        for group in groups:
            signal_group(group, signal.SIGKILL)
        await _gone(groups, _KILL_WAIT)  # unless it is in the kernel, and does not come out


async def _gone(groups: Collection[int], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while any(map(alive, groups)):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; return whether anybody is in it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone, or another user's by now
        return False
    return True


def _stat(pid: int) -> list[str]:
    """Return what the kernel tells of a process, from its state on (see proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
