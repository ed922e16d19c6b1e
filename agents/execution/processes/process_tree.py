"""All processes of a command, also those that left its group, its session and their parent.

They are in the command's cgroup, or have its mark: a resource limit that each process inherits.
The limit, RLIMIT_LOCKS, has had no effect since Linux 2.6, and only root can raise it again. While
the agent that started them lives, they are its descendants as well (see `subreaper`).
"""

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from agents.execution.processes import subreaper
from agents.execution.processes.cgroup import Cgroup, cgroup_name, name_in
from agents.execution.processes.process_table import (
    RLIMIT_LOCKS,
    ProcessEntry,
    descendants_of,
    mark_of,
    process_entry,
    process_table,
    unless_ended,
)
from agents.platforms import NO_FILES

_POLL = 0.02
_KILL_WAIT = 2.0
_MAX_SWEEPS = 20
_RESOURCES_PAUSE = 0.2
_running: set[int] = set()  # the marks of commands that run
_left: set[int] = set()  # the marks of commands whose processes are left for good


def job_mark(workstation: str, job_id: str) -> int:
    """Return the mark of the processes of a job's command on a workstation."""
    digest = hashlib.sha256(f"{workstation} {job_id}".encode()).digest()
    return 1 << 30 | int.from_bytes(digest[:4]) >> 2  # fits into 32 bits, on all machines


class ProcessTree(ABC):
    """The processes of one run of a command."""

    def __init__(self, workstation: str, job_id: str, leader: int = 0) -> None:
        """Name the processes; `leader` is the command's first one, 0 if it is not known."""
        self._name = cgroup_name(workstation, job_id)
        self._mark = job_mark(workstation, job_id)
        self._leader = leader

    @abstractmethod
    def processes(self) -> dict[int, ProcessEntry]:
        """Return the live processes.

        Raises:
            OSError: the limit of open files is reached.
        """

    def leave(self) -> None:
        """Let the processes be: no other command's end ends them."""
        _left.add(self._mark)

    def signal(self, number: int) -> None:
        """Signal all processes."""
        try:
            found = self.processes()
        except OSError:  # the limit of open files is reached
            if self._leader:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._leader, number)
        else:
            _signal(found, number)

    def kill(self) -> None:
        """Kill all processes, also those that are forked meanwhile."""
        killed: set[int] = set()
        for _ in range(_MAX_SWEEPS):
            try:
                found = self.processes().keys() - killed
            except OSError:
                self.signal(signal.SIGKILL)
                return
            if not found:
                return
            _signal(found, signal.SIGKILL)
            killed |= found

    def may_be_alive(self) -> bool:
        """Return False if certainly no process lives, without a look at all of the machine's."""
        return True

    async def end(self, grace: float) -> bool:
        """End all processes: SIGTERM, SIGKILL after the grace period; return whether any lived."""
        asked: set[int] = set()
        deadline = time.monotonic() + grace
        while found := await self._scan():
            _signal(found.keys() - asked, signal.SIGTERM)
            asked |= found.keys()
            if not await self._wait_for_end(found, deadline):
                await self._kill_all()
                break
        return bool(asked)

    async def _kill_all(self) -> None:
        deadline = time.monotonic() + _KILL_WAIT  # a kernel call can block the end
        while (found := await self._scan()) and time.monotonic() < deadline:
            self.kill()
            await self._wait_for_end(found, deadline)

    async def _scan(self) -> dict[int, ProcessEntry]:
        """Return the live processes; wait while the limit of open files is reached."""
        while True:
            with suppress(OSError):
                return self.processes()
            await asyncio.sleep(_RESOURCES_PAUSE)

    async def _wait_for_end(self, found: Mapping[int, ProcessEntry], deadline: float) -> bool:
        while any(self._is_alive(pid, entry) for pid, entry in found.items()):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL)
        return True

    def _is_alive(self, pid: int, entry: ProcessEntry) -> bool:
        try:
            now = process_entry(pid)
        except OSError as error:
            return error.errno in NO_FILES
        if not now.has_ended:
            return now.started_at == entry.started_at
        if now.parent == os.getpid() and pid != self._leader:
            subreaper.reap(pid)
        return False


class OwnProcessTree(ProcessTree):
    """The processes of a command that this agent starts: they are its descendants."""

    def __init__(self, workstation: str, job_id: str) -> None:
        """Prepare the start of a command: `spawn`, `enclose` if it runs on, `close` at its end."""
        super().__init__(workstation, job_id)
        self._cgroup: Cgroup | None = None
        _running.add(self._mark)

    def spawn(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start the first process, with the mark."""
        with subreaper.SPAWN_LOCK, _own_mark(self._mark):
            popen = subprocess.Popen(argv, **options)  # noqa: S603 - the purpose
            subreaper.register(popen.pid)
        self._leader = popen.pid
        with suppress(OSError):  # it has ended, or has executed a setuid program
            resource.prlimit(popen.pid, RLIMIT_LOCKS, (self._mark, self._mark))
        return popen

    def enclose(self) -> None:
        """Move the processes into a cgroup of their own, if one can be made.

        It costs as much as the start of a short command, which does not need it.
        """
        cgroup = Cgroup.create(self._name)
        if cgroup is None:
            return
        if cgroup.add(self._leader):
            self._cgroup = cgroup
            with suppress(OSError):  # the limit of open files is reached
                for pid in descendants_of(self._leader):
                    cgroup.add(pid)
        else:
            cgroup.remove()

    def close(self) -> None:
        """Forget the processes: all have ended, or they are left."""
        _running.discard(self._mark)
        subreaper.unregister(self._leader)
        if self._cgroup is not None:
            self._cgroup.remove()

    def kill(self) -> None:
        """Kill all processes, also those that are forked meanwhile."""
        if self._cgroup is not None:
            self._cgroup.kill()
        super().kill()

    def processes(self) -> dict[int, ProcessEntry]:
        """Return the live processes."""
        table = process_table()
        children = _children(table)
        candidates = set(table)
        if subreaper.is_subreaper():
            candidates = _with_descendants([os.getpid()], children)
        seeds = self._cgroup.pids() & table.keys() if self._cgroup is not None else set()
        for pid in candidates - seeds:
            with unless_ended():
                if self._is_ours(pid, table[pid]):
                    seeds.add(pid)
        found = _with_descendants(seeds, children) - {os.getpid()}
        return {pid: table[pid] for pid in found if not table[pid].has_ended}

    def may_be_alive(self) -> bool:
        """Return False if certainly no process lives, without a look at all of the machine's."""
        if not subreaper.is_subreaper():
            return True
        try:
            in_cgroup = self._cgroup is not None and self._cgroup.is_populated()
            return in_cgroup or any(map(self._is_our_orphan, subreaper.orphans()))
        except OSError:
            return True

    def _is_our_orphan(self, pid: int) -> bool:
        with unless_ended():
            return self._is_ours(pid, process_entry(pid))
        return False

    def _is_ours(self, pid: int, entry: ProcessEntry) -> bool:
        if entry.session == self._leader:
            return True
        mark = mark_of(pid)
        if mark is None or mark == self._mark:
            return mark is not None
        # A mark that no command has was altered: it is ended with any command.
        is_altered = mark not in {*_running, *_left, *_own_limits()}
        return is_altered and entry.parent == os.getpid() and subreaper.is_subreaper()


class LeftProcessTree(ProcessTree):
    """The processes of a command that a former run of the agent started."""

    def processes(self) -> dict[int, ProcessEntry]:
        """Return the live processes."""
        table = process_table()
        children = _children(table)
        seeds = set()
        for pid, entry in table.items():
            with unless_ended():
                if self._is_ours(pid, entry):
                    seeds.add(pid)
        # The command can have started this agent.
        found = _with_descendants(seeds, children) - _with_descendants([os.getpid()], children)
        return {pid: table[pid] for pid in found if not table[pid].has_ended}

    def _is_ours(self, pid: int, entry: ProcessEntry) -> bool:
        in_session = bool(self._leader) and entry.session == self._leader
        return in_session or mark_of(pid) == self._mark or name_in(pid) == self._name


def _children(table: Mapping[int, ProcessEntry]) -> dict[int, list[int]]:
    children: dict[int, list[int]] = defaultdict(list)
    for pid, entry in table.items():
        children[entry.parent].append(pid)
    return children


def _with_descendants(pids: Iterable[int], children: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        if (pid := waiting.pop()) not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _own_limits() -> tuple[int, int]:
    return resource.getrlimit(RLIMIT_LOCKS)


@contextmanager
def _own_mark(mark: int) -> Iterator[None]:
    """Let the children that this process starts meanwhile inherit a mark."""
    limits = _own_limits()
    with suppress(OSError, ValueError):  # the agent is a command's process itself
        resource.setrlimit(RLIMIT_LOCKS, (mark, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(RLIMIT_LOCKS, limits)
