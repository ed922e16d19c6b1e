"""A command as a process: started in a group of its own, or found again; and what it wrote.

One `poll` waits for its output, its end (a pidfd) and whoever wants to stop it. Linux, for pidfd
and /proc.
"""

import os
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from agents.capture import SPOOL_FILES, Capture, spooled
from agents.remains import Remains, alive, mark, signal_group
from agents.starting import CannotStart, start
from agents.surroundings import Account
from schemas import Command, Output

_CHUNK = 256 * 1024
_GROUP_POLL = 0.02
_KILL_WAIT = 2.0
_LOOKS = (0.005, 0.05, 0.5)  # seconds after the start at which its memory is looked at
_LOOK_PAUSE = 0.005  # not sooner again, however much it writes
_LONGEST_WAIT = 3600.0


class Running(Protocol):
    """A command that runs, whether we started it or found it."""

    began: float
    """When it was started, by time.monotonic()."""

    def wait(self, until: float, woken: int | None = None) -> bool:
        """Take its output until it ends (True), or the time comes or `woken` is written to."""

    def signal(self, number: int) -> bool:
        """Signal the group; return whether anybody is in it."""

    def reap(self) -> tuple[int | None, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory.

        None where nobody is told: only a parent is.
        """

    def end_group(self, grace: float) -> bool:
        """End what the process left in its group; return whether there was anything."""

    def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""

    def close(self) -> None:
        """Close what was open for it."""


class Process:
    """A process that we start. With a `spool` folder it writes there, and needs us no more."""

    def __init__(
        self,
        command: Command,
        variables: Mapping[str, str],
        output_limit: int,
        spool: Path | None,
        lasting: Callable[[str], object],
        heard: Callable[[str, bytes], object] | None = None,
        user: Account | None = None,
    ) -> None:
        """Start it; `lasting` is called with its mark once it has run for a while.

        `heard` is called with what it writes to its pipes, and the name of the stream; `user` is
        whom it runs as, if not as the agent's user.

        Raises:
            CannotStart: there is no such program or folder, or it may not be run.
            OSError: there are no files or processes left.
        """
        self._own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._lasting = lasting
        self._limit = output_limit
        self._spool = spool
        with ExitStack() as ours, ExitStack() as theirs:
            pipes, outlets = _outlets(spool, ours, theirs)
            if user is not None:
                for outlet in outlets:  # it may open its /dev/stdout
                    os.fchown(outlet, user.uid, user.gid)
            self.began = self._looked = time.monotonic()  # it may have ended when Popen returns
            self._popen = start(command, user, variables, outlets)
            self._files = ours.pop_all()
        self._pid = self._popen.pid
        self._pidfd = self._watched()
        self._peak = 0
        self._looks = deque(self.began + after for after in _LOOKS)
        stdout, stderr = (heard and partial(heard, stream) for stream in SPOOL_FILES)
        self._captures = Capture(output_limit, stdout), Capture(output_limit, stderr)
        self._open = dict(zip(pipes, self._captures, strict=False))
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        for pipe in pipes:
            self._poll.register(pipe, select.POLLIN)

    def _watched(self) -> int:
        try:
            return os.pidfd_open(self._pid)
        except OSError as error:  # no file is left: it runs, and must not be started again
            signal_group(self._pid, signal.SIGKILL)
            self._popen.wait()
            self._files.close()
            text = "it was ended at once: no file was left to watch it by"
            raise CannotStart(text) from error

    def close(self) -> None:
        """Close what was open for it."""
        os.close(self._pidfd)
        self._files.close()

    def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""
        if self._spool is not None:
            return spooled(self._spool, self._limit)
        stdout, stderr = self._captures
        return stdout.output(), stderr.output()

    def wait(self, until: float, woken: int | None = None) -> bool:
        """Take its output until it ends (True), or the time comes or `woken` is written to."""
        if woken is not None:
            self._poll.register(woken, select.POLLIN)
        try:
            while True:
                look = self._looks[0] if self._looks else until
                ready = self._read(min(look, until) - time.monotonic())
                if self._pidfd in ready:
                    return True
                now = time.monotonic()
                if woken in ready or now >= until:
                    return False
                if now >= look:
                    self._looks.popleft()
                    if not self._looks:
                        self._lasting(mark(self._pid))
                if now >= self._looked + _LOOK_PAUSE:
                    self._looked = now
                    self._peak = max(self._peak, _peak_memory(self._pid))
        finally:
            if woken is not None:
                self._poll.unregister(woken)

    def signal(self, number: int) -> bool:
        """Signal the group; return whether anybody is in it."""
        return signal_group(self._pid, number)

    def reap(self) -> tuple[int, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory."""
        _, status, usage = os.wait4(self._pid, 0)
        code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._poll.unregister(self._pidfd)
        # A new process starts with the size of the one that started it: below that, what was
        # seen while it ran is nearer to the truth: nothing, where it had ended before we looked.
        peak = usage.ru_maxrss * 1024
        return code, peak if peak > self._own_peak else self._peak

    def end_group(self, grace: float) -> bool:
        """End what the process left in its group; return whether there was anything.

        Then take the last of the output. Who left the group and still holds the pipe (a daemon)
        is not waited for.
        """
        left_behind = self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        killed = False
        while left_behind and alive(self._pid):
            self._read(_GROUP_POLL)
            if time.monotonic() >= deadline:
                if killed:
                    break  # in the kernel, and does not come out
                killed = True
                self.signal(signal.SIGKILL)
                deadline = time.monotonic() + _KILL_WAIT
        while self._open and self._read(0):
            pass
        return left_behind

    def _read(self, limit: float) -> set[int]:
        """Read what there is, for at most so many seconds; return the files that were ready."""
        ready = set()
        for file, _ in self._poll.poll(min(max(limit, 0), _LONGEST_WAIT) * 1000):
            ready.add(file)
            if capture := self._open.get(file):
                data = os.read(file, _CHUNK)
                capture.write(data)
                if not data:
                    self._poll.unregister(file)
                    del self._open[file]
        return ready


class Adopted:
    """A process that another agent of ours started, and that went on when it ended."""

    def __init__(self, remains: Remains, age: float, spool: Path, output_limit: int) -> None:
        self.began = time.monotonic() - age
        self._remains = remains
        self._spool = spool
        self._limit = output_limit

    def wait(self, until: float, woken: int | None = None) -> bool:
        """Wait until it ends (True), or the time comes or `woken` is written to."""
        return self._remains.wait(until, woken)

    def signal(self, number: int) -> bool:
        """Signal its groups; return whether anybody is in them."""
        return sum(signal_group(group, number) for group in self._remains.groups) > 0

    def reap(self) -> tuple[None, int]:
        """Return that its end is not known."""
        return None, 0

    def end_group(self, grace: float) -> bool:
        """End what it left in its group; return whether there was anything."""
        left_behind = any(map(alive, self._remains.groups))
        if left_behind:
            self._remains.end(grace)
        return left_behind

    def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""
        return spooled(self._spool, self._limit)

    def close(self) -> None:
        """Close nothing."""


def _outlets(spool: Path | None, ours: ExitStack, theirs: ExitStack) -> tuple[list[int], list[int]]:
    """Return what to read of, if anything, and what the command writes stdout and stderr to."""
    if spool is not None:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [], [
            theirs.enter_context((spool / name).open("wb")).fileno() for name in SPOOL_FILES
        ]
    pipes: list[int] = []
    outlets: list[int] = []
    for _ in SPOOL_FILES:
        inner, outer = os.pipe()
        ours.callback(os.close, inner)
        theirs.callback(os.close, outer)
        pipes.append(inner)
        outlets.append(outer)
    return pipes, outlets


def _peak_memory(pid: int) -> int:
    """Return the most memory that a process held so far, in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - faster
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
