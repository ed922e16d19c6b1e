"""A command as a process: started in a group of its own, or found again; and what it wrote.

The event loop waits for its output, its end (a pidfd) and whoever wants to stop it. Linux, for
pidfd and /proc.
"""

import asyncio
import os
import resource
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from agents.execution.environment import UserAccount
from agents.execution.orphans import OrphanedProcess, alive, mark, see_off, signal_group
from agents.execution.output import SPOOL_FILES, Capture, Inlet, spooled
from agents.execution.spawn import CannotStart, start
from schemas import Command, Output

_LOOKS = (0.005, 0.05, 0.5)  # seconds after the start at which its memory is looked at
_LOOK_PAUSE = 0.005  # not sooner again, however much it writes


class RunningProcess(ABC):
    """A command that runs, whether we started it or found it; watched by the event loop.

    Attributes:
        began: when it was started, by time.monotonic(), which is the loop's clock.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self._pidfd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while that looks at the pidfd
        self._waiter: asyncio.Future[None] | None = None

    def watch(self) -> None:
        """Have the event loop look at it, until it ends or is closed.

        Raises:
            OSError: there is no room for that.
        """
        if self._pidfd is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._pidfd, self._end)
            self._loop = loop

    async def wait(self, until: float) -> bool:
        """Wait until it ends (True), or the time comes or it is woken."""
        if self._loop is not None:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(until, self.wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        return self._loop is None

    def wake(self) -> None:
        """Have who waits for it look up."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._unwatch()
        self.wake()

    def _unwatch(self) -> None:
        if self._loop is not None and self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            self._loop = None

    def close(self) -> None:
        """Close what was open for it."""
        self._unwatch()
        if self._pidfd is not None:
            os.close(self._pidfd)

    @abstractmethod
    def signal(self, number: int) -> bool:
        """Signal its groups; return whether anybody is in them."""

    @abstractmethod
    def reap(self) -> tuple[int | None, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory.

        None where nobody is told: only a parent is.
        """

    @abstractmethod
    async def end_group(self, grace: float) -> bool:
        """End what it left in its groups; return whether there was anything."""

    @abstractmethod
    async def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""


class Process(RunningProcess):
    """A process that we start. With a `spool` folder it writes there, and needs us no more."""

    def __init__(
        self,
        command: Command,
        variables: Mapping[str, str],
        output_limit: int,
        spool: Path | None,
        lasting: Callable[[str], object],
        heard: Callable[[str, bytes], object] | None = None,
        user: UserAccount | None = None,
    ) -> None:
        """Start it, in any thread; `lasting` is called with its mark once it has run for a while.

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
            super().__init__(time.monotonic())  # it may have ended when Popen returns
            self._popen = start(command, user, variables, outlets)
            self._files = ours.pop_all()
        self._pid = self._popen.pid
        self._pidfd = self._pidfd_opened()
        self._looked = self.began
        self._peak = 0
        stdout, stderr = (heard and partial(heard, stream) for stream in SPOOL_FILES)
        self._captures = Capture(output_limit, stdout), Capture(output_limit, stderr)
        self._inlets = [
            Inlet(pipe, capture, self._look_again)
            for pipe, capture in zip(pipes, self._captures, strict=False)
        ]
        self._timer: asyncio.TimerHandle | None = None

    def _pidfd_opened(self) -> int:
        try:
            return os.pidfd_open(self._pid)
        except OSError as error:  # no file is left: it runs, and must not be started again
            signal_group(self._pid, signal.SIGKILL)
            self._popen.wait()
            self._files.close()
            text = "it was ended at once: no file was left to watch it by"
            raise CannotStart(text) from error

    def watch(self) -> None:
        """Have the event loop look at it; at what it writes only if it does not end at once."""
        super().watch()
        self._look_at(0)

    def _unwatch(self) -> None:
        super()._unwatch()
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """Close what was open for it."""
        super().close()
        for inlet in self._inlets:
            inlet.close()
        self._inlets.clear()  # they know us, too
        self._files.close()

    async def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""
        if self._spool is not None:
            return await spooled(self._spool, self._limit)
        stdout, stderr = self._captures
        return stdout.output(), stderr.output()

    def _look_at(self, number: int) -> None:
        if self._loop is not None:
            at = self.began + _LOOKS[number]
            self._timer = self._loop.call_at(at, self._look, number)

    def _look(self, number: int) -> None:
        if number == 0:
            for inlet in self._inlets:
                inlet.open()
        if number + 1 < len(_LOOKS):
            self._look_at(number + 1)
        else:
            self._lasting(mark(self._pid))
        self._look_again()

    def _look_again(self) -> None:
        """Look at its memory, unless that was done just now."""
        now = time.monotonic()
        if self._loop is not None and now >= self._looked + _LOOK_PAUSE:
            self._looked = now
            self._peak = max(self._peak, _peak_memory(self._pid))

    def signal(self, number: int) -> bool:
        """Signal the group; return whether anybody is in it."""
        return signal_group(self._pid, number)

    def reap(self) -> tuple[int, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory."""
        _, status, usage = os.wait4(self._pid, 0)
        code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        # A new process starts with the size of the one that started it: below that, what was
        # seen while it ran is nearer to the truth: nothing, where it had ended before we looked.
        peak = usage.ru_maxrss * 1024
        return code, peak if peak > self._own_peak else self._peak

    async def end_group(self, grace: float) -> bool:
        """End what the process left in its group; return whether there was anything.

        Then take the last of the output. Who left the group and still holds the pipe (a daemon)
        is not waited for.
        """
        left_behind = self.signal(signal.SIGTERM)
        if left_behind:
            for inlet in self._inlets:  # it may have ended before they were
                inlet.open()
            await see_off([self._pid], grace)
        for inlet in self._inlets:
            inlet.drain()
        return left_behind


class Adopted(RunningProcess):
    """A process that another agent of ours started, and that went on when it ended."""

    def __init__(
        self, remains: OrphanedProcess, age: float, spool: Path, output_limit: int
    ) -> None:
        """Find its process again.

        Raises:
            OSError: there are no files left to look by.
        """
        super().__init__(time.monotonic() - age)
        self._pidfd = remains.watched()
        self._remains = remains
        self._spool = spool
        self._limit = output_limit

    def signal(self, number: int) -> bool:
        """Signal its groups; return whether anybody is in them."""
        return sum(signal_group(group, number) for group in self._remains.groups) > 0

    def reap(self) -> tuple[None, int]:
        """Return that its end is not known."""
        return None, 0

    async def end_group(self, grace: float) -> bool:
        """End what it left in its groups; return whether there was anything."""
        left_behind = any(map(alive, self._remains.groups))
        if left_behind:
            await self._remains.end(grace)
        return left_behind

    async def outputs(self) -> tuple[Output, Output]:
        """Return what it wrote to stdout and stderr."""
        return await spooled(self._spool, self._limit)


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
