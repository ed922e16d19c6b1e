"""The orphans of commands: the agent is their parent, and waits for the end of each.

A subreaper is the parent of every descendant whose own parent has ended: no process of a command
can leave its agent's descendants while the agent lives. As process 1 of a container, the agent is
the parent of all orphans there.
"""

import asyncio
import ctypes
import os
import resource
import threading
from contextlib import suppress
from functools import cache

from agents.execution.processes.process_table import (
    RLIMIT_LOCKS,
    process_entry,
    process_table,
    unless_ended,
)

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PAUSE = 5.0
SPAWN_LOCK = threading.RLock()
"""Is held while a child is started and registered."""

_registered: set[int] = set()


def become_subreaper() -> None:
    """Let the orphans among this process's descendants become its children."""
    with suppress(OSError, ValueError):  # an agent that a command started as root has its mark
        resource.setrlimit(RLIMIT_LOCKS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_subreaper() -> bool:
    """Return whether the orphans among this process's descendants become its children."""
    answer = ctypes.c_int(0)
    failed = _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return os.getpid() == 1 or (not failed and answer.value == 1)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def register(pid: int) -> None:
    """Register a child for whose end the caller waits itself."""
    _registered.add(pid)


def unregister(pid: int) -> None:
    """Unregister a child that was waited for."""
    _registered.discard(pid)


def orphans() -> set[int]:
    """Return the children of this process that are not registered."""
    with SPAWN_LOCK:
        try:
            # The kernel gives orphans to the first thread.
            with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123 - faster
                children = set(map(int, file.read().split()))
        except FileNotFoundError:  # a kernel without that file
            own = os.getpid()
            children = {pid for pid, entry in process_table().items() if entry.parent == own}
        return children - _registered


def reap(pid: int) -> bool:
    """Wait for a child if it has ended; return whether it had."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


async def reap_orphans() -> None:
    """Wait for the end of orphans, for ever."""
    ended_before: set[int] = set()
    while True:
        with suppress(OSError):  # the limit of open files is reached
            ended = {pid for pid in orphans() if _is_zombie(pid)}
            for pid in ended & ended_before:  # else a library can be about to wait for it
                reap(pid)
            ended_before = ended
        await asyncio.sleep(_PAUSE)


def _is_zombie(pid: int) -> bool:
    with unless_ended():
        return process_entry(pid).state == "Z"
    return False
