"""What an agent that ended left running: found again, waited for, or ended.

A command is known by its process, its start time and the boot of the machine; and, where it had
run too briefly to be on record, by the job's id in the environment of its processes.
"""

import os
import select
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
_LONGEST_POLL = 3600.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark(pid: int) -> str:
    """Return what tells a process from all others, before and after it; "" if it has ended."""
    try:
        return f"{_BOOT.read_text().strip()} {pid} {_stat(pid)[19]}"
    except OSError:
        return ""


@dataclass(frozen=True)
class Remains:
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

    def wait(self, until: float, woken: int | None = None) -> bool:
        """Wait until the command has ended (True), or the time comes or `woken` is written to.

        `until` is of the monotonic clock.
        """
        if self.process is None:
            return True
        try:
            file = os.pidfd_open(self.process)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            for waited in filter(None, (file, woken)):
                poll.register(waited, select.POLLIN)
            while (left := until - time.monotonic()) > 0:
                if ready := poll.poll(min(left, _LONGEST_POLL) * 1000):
                    return file in dict(ready)
            return False
        finally:
            os.close(file)

    def end(self, grace: float) -> bool:
        """End all of it: SIGTERM, SIGKILL after the grace period; return whether there was any."""
        for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_WAIT)):
            deadline = time.monotonic() + wait
            for group in self.groups:
                signal_group(group, number)
            while any(map(alive, self.groups)) and time.monotonic() < deadline:
                time.sleep(_POLL)
        return bool(self.groups)


def find(job_id: str, marked: str, owners: Collection[int]) -> Remains:
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
    return Remains(frozenset(groups), process)


def alive(group: int) -> bool:
    """Whether a process of the group lives; one that only waits to be reaped does not."""
    if not signal_group(group, 0):
        return False
    try:
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdecimal():
                    found = _stat(int(folder.name))
                    if int(found[2]) == group and found[0] not in "ZX":
                        return True
            except (ProcessLookupError, FileNotFoundError, PermissionError):
                continue
    except OSError:  # no file is left to look by
        return True
    return False


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
