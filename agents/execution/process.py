"""The process of a command: started in its own group, or adopted; and its output.

The event loop waits for its output, its end (a pidfd) and a stop. Needs Linux: pidfd and /proc.
"""

import asyncio
import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from agents.execution.environment import UserAccount
from agents.execution.output import STREAMS, Capture, PipeReader
from agents.execution.processes.orphans import OrphanedProcess, process_identity
from agents.execution.processes.process_tree import OwnProcessTree, ProcessTree
from agents.execution.spawn import JOB_VARIABLE, WORKSTATION_VARIABLE, CannotStart, start
from agents.execution.spool import open_spool, spooled
from schemas import Command, Output

_SAMPLES = (0.005, 0.05, 0.5)  # seconds after the start at which its memory is read
_SAMPLE_PAUSE = 0.005  # seconds between two reads, however much it writes


class RunningProcess(ABC):
    """The process of a running command, started or adopted, watched by the event loop.

    Attributes:
        started_at: when it was started, by time.monotonic(), which is the loop's clock.
        tree: it, and all that it started.
    """

    def __init__(self, started_at: float, tree: ProcessTree) -> None:
        self.started_at = started_at
        self.tree = tree
        self._pidfd: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while it watches the pidfd
        self._waiter: asyncio.Future[None] | None = None

    def watch(self) -> None:
        """Watch the process in the event loop, until it ends or `close` is called.

        Raises:
            OSError: the event loop cannot add the file.
        """
        if self._pidfd is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._pidfd, self._end)
            self._loop = loop

    async def wait(self, until: float) -> bool:
        """Wait until it ends (return True), or until the time or `wake` (return False)."""
        if self._loop is not None:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(until, self.wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        return self._loop is None

    def wake(self) -> None:
        """End a `wait` early."""
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
        """Close the files of the process."""
        self._unwatch()
        if self._pidfd is not None:
            os.close(self._pidfd)

    def signal(self, number: int) -> None:
        """Signal all its processes."""
        self.tree.signal(number)

    def kill(self) -> None:
        """Kill all its processes, also those that fork meanwhile."""
        self.tree.kill()

    @abstractmethod
    def reap(self) -> tuple[int | None, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory.

        The exit code is None where it is unknown: only a parent gets it.
        """

    async def end_rest(self, grace: float) -> bool:
        """End the processes that it left; return whether there were any."""
        return await self.tree.end(grace)

    def leave_rest(self) -> None:
        """Leave the processes that it left, for good."""
        self.tree.leave()

    @abstractmethod
    async def outputs(self) -> tuple[Output, Output]:
        """Return its stdout and stderr."""


class Process(RunningProcess):
    """A started process. With a `spool` folder it writes there, and does not need the agent."""

    def __init__(
        self,
        command: Command,
        variables: Mapping[str, str],
        output_limit: int,
        spool: Path | None,
        on_long_run: Callable[[str], object],
        on_output: Callable[[str, bytes], object] | None = None,
        user: UserAccount | None = None,
    ) -> None:
        """Start the process; can be called in any thread.

        Args:
            command: the command to start.
            variables: its environment.
            output_limit: bytes kept of each of stdout and stderr.
            spool: the folder for its output; None for pipes.
            on_long_run: is called with its identity once it has run for a while.
            on_output: is called with the name of a stream and the bytes read from its pipe.
            user: the account under which it runs, if not the agent's own.

        Raises:
            CannotStart: there is no such program or folder, or it may not be run.
            OSError: the limit of open files or processes is reached.
        """
        self._agent_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._on_long_run = on_long_run
        self._leaves_processes = command.leaves_processes
        self._limit = output_limit
        self._spool = spool
        with ExitStack() as ours, ExitStack() as theirs:
            pipes, write_ends = _open_output(spool, ours, theirs)
            if user is not None:
                for write_end in write_ends:  # the command can open its /dev/stdout
                    os.fchown(write_end, user.uid, user.gid)
            tree = OwnProcessTree(variables[WORKSTATION_VARIABLE], variables[JOB_VARIABLE])
            if command.survives_agent:
                tree.leave()  # the agent's end must not end it
            self._own_tree = tree
            super().__init__(time.monotonic(), tree)  # it can have ended when Popen returns
            ours.callback(tree.close)
            self._popen = start(command, user, variables, write_ends, tree)
            self._files = ours.pop_all()
        self._pid = self._popen.pid
        self._pidfd = self._open_pidfd()
        self._sampled_at = self.started_at
        self._peak = 0
        stdout, stderr = (on_output and partial(on_output, stream) for stream in STREAMS)
        self._captures = Capture(output_limit, stdout), Capture(output_limit, stderr)
        self._readers = [
            PipeReader(pipe, capture, self._sample_again)
            for pipe, capture in zip(pipes, self._captures, strict=False)
        ]
        self._timer: asyncio.TimerHandle | None = None

    def _open_pidfd(self) -> int:
        try:
            return os.pidfd_open(self._pid)
        except OSError as error:  # no file left; it runs already, so it must not be started again
            self.kill()
            self._popen.wait()
            self._files.close()
            text = "it was killed after its start: the agent had no file descriptor left for it"
            raise CannotStart(text) from error

    def watch(self) -> None:
        """Watch the process; its pipes, and in a cgroup, only if it does not end within 5 ms."""
        super().watch()
        if self._leaves_processes:  # only its first process tells whether it ended by itself
            self._record_identity()
        self._schedule_sample(0)

    def _unwatch(self) -> None:
        super()._unwatch()
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """Close the files of the process."""
        super().close()
        for reader in self._readers:
            reader.close()
        self._readers.clear()  # they refer to this object
        self._files.close()

    async def outputs(self) -> tuple[Output, Output]:
        """Return its stdout and stderr."""
        if self._spool is not None:
            return await spooled(self._spool, self._limit)
        for reader in self._readers:
            reader.drain()  # a process that was left can still hold the pipe: it is not waited for
        stdout, stderr = self._captures
        return stdout.output(), stderr.output()

    def _schedule_sample(self, number: int) -> None:
        if self._loop is not None:
            at = self.started_at + _SAMPLES[number]
            self._timer = self._loop.call_at(at, self._sample, number)

    def _sample(self, number: int) -> None:
        if number == 0:
            self._own_tree.enclose()
            for reader in self._readers:
                reader.open()
        if number + 1 < len(_SAMPLES):
            self._schedule_sample(number + 1)
        else:
            self._record_identity()
        self._sample_again()

    def _record_identity(self) -> None:
        self._on_long_run(process_identity(self._pid))

    def _sample_again(self) -> None:
        """Read its peak memory, at most once in `_SAMPLE_PAUSE`."""
        now = time.monotonic()
        if self._loop is not None and now >= self._sampled_at + _SAMPLE_PAUSE:
            self._sampled_at = now
            self._peak = max(self._peak, _peak_memory(self._pid))

    def reap(self) -> tuple[int, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory."""
        _, status, usage = os.wait4(self._pid, 0)
        code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        # The kernel counts the agent's own size in, from before the exec. Up to that, the samples
        # are more precise (0 if the process ended before the first one).
        peak = usage.ru_maxrss * 1024
        return code, peak if peak > self._agent_peak else self._peak

    async def end_rest(self, grace: float) -> bool:
        """End the processes that it left; return whether there were any."""
        if not self.tree.may_be_alive():
            return False
        for reader in self._readers:  # not open if the process ended within 5 ms
            reader.open()
        return await super().end_rest(grace)


class AdoptedProcess(RunningProcess):
    """A process that an earlier run of the agent started, and that survived it."""

    def __init__(self, orphan: OrphanedProcess, age: float, spool: Path, output_limit: int) -> None:
        """Open a pidfd of the process.

        Raises:
            OSError: the limit of open files is reached.
        """
        super().__init__(time.monotonic() - age, orphan.tree)
        self._pidfd = orphan.open_pidfd()
        self._spool = spool
        self._limit = output_limit

    def reap(self) -> tuple[None, int]:
        """Return None: its exit code is unknown."""
        return None, 0

    async def outputs(self) -> tuple[Output, Output]:
        """Return its stdout and stderr."""
        return await spooled(self._spool, self._limit)


def _open_output(
    spool: Path | None, ours: ExitStack, theirs: ExitStack
) -> tuple[list[int], list[int]]:
    """Return the read ends (none with a spool folder) and the write ends of stdout and stderr."""
    if spool is not None:
        write_ends = open_spool(spool)
        for write_end in write_ends:
            theirs.callback(os.close, write_end)
        return [], write_ends
    pipes: list[int] = []
    write_ends = []
    for _ in STREAMS:
        read_end, write_end = os.pipe()
        ours.callback(os.close, read_end)
        theirs.callback(os.close, write_end)
        pipes.append(read_end)
        write_ends.append(write_end)
    return pipes, write_ends


def _peak_memory(pid: int) -> int:
    """Return the peak memory of a process so far, in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - faster
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
