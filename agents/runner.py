"""Runs one command: exactly the program named, in a process group of its own, to its end.

A thread runs a command, waiting in one `poll` for its output, its end (a pidfd) and a request to
stop it; threads start processes faster than asyncio does. Linux, for pidfd and /proc.
"""

import os
import resource
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas import Command, Output, Result, State

JOB_VARIABLE = "PCM_JOB_ID"
"""The environment variable that tells a command which job it belongs to."""

_CHUNK = 256 * 1024
_GROUP_POLL = 0.02
_KILL_WAIT = 2.0
_LOOKS = (0.005, 0.05, 0.5)  # seconds after the start at which its memory is looked at


class CannotStart(Exception):
    """The command cannot be started; the text says why."""


@dataclass(frozen=True)
class Ended:
    """How a command ended; without a result where it was stopped before it began."""

    state: State
    result: Result | None
    reason: str = ""


@dataclass(frozen=True)
class _Stop:
    state: State
    reason: str


@dataclass(eq=False)
class Run:
    """One run of a command: `complete` runs it, in a thread; `stop` may come from another."""

    command: Command
    job_id: str
    output_limit: int
    stop_grace: float
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        self._stop: _Stop | None = None
        self._waker: int | None = None
        self._process: _Process | None = None
        self._lock = threading.Lock()

    def stop(self, state: State, reason: str) -> None:
        """End the command: SIGTERM to its group, SIGKILL after the grace period."""
        with self._lock:
            if self._stop is None:
                self._stop = _Stop(state, reason)
                if self._waker is not None:
                    os.write(self._waker, b"\0")

    def kill(self) -> None:
        """End the command at once, with SIGKILL."""
        with self._lock:
            if self._process is not None:
                self._process.signal(signal.SIGKILL)

    def complete(self) -> Ended:
        """Run the command to its end.

        Raises:
            CannotStart: there is no such program or folder, or it may not be run.
        """
        with self._lock:
            if self._stop is not None:
                return Ended(self._stop.state, None, self._stop.reason)
            woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with _Process(self.command, self._variables(), self.output_limit) as process:
                self._process = process
                return self._wait(process, woken)
        finally:
            with self._lock:
                self._process = None
                os.close(woken)
                os.close(self._waker)
                self._waker = None

    def _wait(self, process: "_Process", woken: int) -> Ended:
        began = time.monotonic()
        limit = self.command.timeout.total_seconds()
        stop: _Stop | None = None
        if not process.wait(began + limit, woken):
            stop = self._stop or _Stop(State.TIMED_OUT, f"ran longer than {limit:g} s")
            process.signal(signal.SIGTERM)
            if not process.wait(time.monotonic() + self.stop_grace):
                process.signal(signal.SIGKILL)
                process.wait(float("inf"))
        duration = time.monotonic() - began
        code, peak = process.reap()
        if code < 0:  # it may have been ended before this thread heard of the stop
            stop = stop or self._stop
        left_behind = process.end_group(self.stop_grace)
        result = Result(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            duration=timedelta(seconds=duration),
            max_memory=peak,
            restart_required=code in self.command.restart_exit_codes,
            stdout=process.stdout.output(),
            stderr=process.stderr.output(),
        )
        if stop:
            return Ended(stop.state, result, stop.reason)
        state, reason = self._judge(code)
        if left_behind:
            reason = "; ".join(filter(None, [reason, "processes it left behind were ended"]))
        return Ended(state, result, reason)

    def _judge(self, code: int) -> tuple[State, str]:
        if code in self.command.success_exit_codes or code in self.command.restart_exit_codes:
            return State.SUCCEEDED, ""
        if code < 0:
            return State.FAILED, f"ended by {_signal_name(-code)}"
        return State.FAILED, f"exit code {code}"

    def _variables(self) -> dict[str, str]:
        return {**self.environment, **self.command.environment, JOB_VARIABLE: self.job_id}


def inherited_environment() -> dict[str, str]:
    """Return what commands get of the agent's own environment.

    The agent's settings hold its password: no command gets to see them.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PCM_")}


class _Process:
    """A started process and its group, and what it wrote."""

    def __init__(self, command: Command, variables: dict[str, str], output_limit: int) -> None:
        self._own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._popen = _start(command, variables)
        self._pid = self._popen.pid
        self._pidfd = os.pidfd_open(self._pid)
        self._peak = _peak_memory(self._pid)
        began = time.monotonic()
        self._looks = deque(began + after for after in _LOOKS)
        self.stdout, self.stderr = Capture(output_limit), Capture(output_limit)
        self._selector = selectors.PollSelector()
        self._selector.register(self._pidfd, selectors.EVENT_READ)
        for pipe, capture in (
            (self._popen.stdout, self.stdout),
            (self._popen.stderr, self.stderr),
        ):
            assert pipe is not None  # noqa: S101 - asked for as a pipe
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe.fileno(), selectors.EVENT_READ, capture)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._selector.close()
        os.close(self._pidfd)
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def wait(self, until: float, woken: int | None = None) -> bool:
        """Take its output until it ends (True), or the time comes or `woken` is written to."""
        if woken is not None:
            self._selector.register(woken, selectors.EVENT_READ)
        try:
            while True:
                look = self._looks[0] if self._looks else until
                ready = self._read(min(look, until) - time.monotonic())
                if self._pidfd in ready:
                    return True
                if woken in ready or time.monotonic() >= until:
                    return False
                if time.monotonic() >= look:
                    self._looks.popleft()
                self._peak = max(self._peak, _peak_memory(self._pid))
        finally:
            if woken is not None:
                self._selector.unregister(woken)

    def signal(self, number: int) -> bool:
        """Signal the group; return whether anybody is in it."""
        return _signal(self._pid, number)

    def reap(self) -> tuple[int, int]:
        """Return its exit code (negative: the signal that ended it) and its peak memory."""
        _, status, usage = os.wait4(self._pid, 0)
        code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._selector.unregister(self._pidfd)
        # A new process starts with the size of the one that started it: below that, what was
        # seen while it ran is nearer to the truth.
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
        while _alive(self._pid):
            self._read(_GROUP_POLL)
            if time.monotonic() >= deadline:
                if killed:
                    break  # in the kernel, and does not come out
                killed = True
                self.signal(signal.SIGKILL)
                deadline = time.monotonic() + _KILL_WAIT
        while self._selector.get_map() and self._read(0):
            pass
        return left_behind

    def _read(self, limit: float) -> set[int]:
        """Read what there is, for at most so many seconds; return the files that were ready."""
        ready = set()
        for key, _ in self._selector.select(min(max(limit, 0), 3600)):
            ready.add(key.fd)
            if isinstance(key.data, Capture):
                data = os.read(key.fd, _CHUNK)
                key.data.write(data)
                if not data:
                    self._selector.unregister(key.fd)
        return ready


class Capture:
    """Keeps the beginning and the end of what is written to it, each half of the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._half = limit // 2
        self._head = bytearray()
        self._rest = bytearray()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take in what was written."""
        self._size += len(data)
        room = self._limit - len(self._head)
        self._head += data[:room]
        self._rest += data[room:]
        if len(self._rest) > 8 * self._limit:
            del self._rest[: len(self._rest) - self._limit]

    def output(self) -> Output:
        """Return what was kept; cut between characters, so that text stays text."""
        if self._size <= self._limit:
            return Output(head=bytes(self._head))
        head = bytes(self._head[: self._half])
        kept = bytes(self._head[self._half :] + self._rest)
        tail = kept[len(kept) - self._half :]
        for _ in range(3):
            if head and not _decodes(head):
                head = head[:-1]
            if tail and not _decodes(tail):
                tail = tail[1:]
        return Output(head=head, dropped=self._size - len(head) - len(tail), tail=tail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _start(command: Command, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    if command.cwd is not None and not os.path.isdir(command.cwd):  # noqa: PTH112 - Path's fails where it may not look
        raise CannotStart(f"cwd: {command.cwd} is not a folder here")
    argv = ("/bin/sh", "-c", *command.argv) if command.shell else command.argv
    program = _program(argv[0], variables)
    try:
        return subprocess.Popen(  # noqa: S603 - to run it is what we are here for
            argv,
            executable=program,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=command.cwd,
            env=variables,
            process_group=0,
            bufsize=0,
        )
    except OSError as error:
        raise CannotStart(f"{argv[0]}: {error.strerror}") from error


def _program(name: str, variables: Mapping[str, str]) -> str:
    """Return the program's file: as named, or from the absolute folders of PATH.

    An empty or relative folder in PATH would mean whatever lies in the working directory.
    """
    if "/" in name:
        return name
    folders = variables.get("PATH", os.defpath).split(os.pathsep)
    absolute = os.pathsep.join(folder for folder in folders if folder.startswith("/"))
    found = shutil.which(name, path=absolute)
    if found is None:
        raise CannotStart(f"{name}: no such program in {absolute}")
    return found


def _peak_memory(pid: int) -> int:
    """Return the most memory that a process held so far, in bytes; 0 if it has ended."""
    try:
        with Path(f"/proc/{pid}/status").open("rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def end_remains(job_id: str, grace: float) -> bool:
    """End what still runs of a job that a former agent started; return whether anything did.

    A process is known by the job's id in its environment.
    """
    mark = f"{JOB_VARIABLE}={job_id}".encode()
    groups = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and mark in (process / "environ").read_bytes().split(b"\0"):
                groups.add(os.getpgid(int(process.name)))
        except OSError:
            continue
    groups.discard(os.getpgrp())
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_WAIT)):
        deadline = time.monotonic() + wait
        for group in groups:
            _signal(group, number)
        while any(map(_alive, groups)) and time.monotonic() < deadline:
            time.sleep(_GROUP_POLL)
    return bool(groups)


def _alive(group: int) -> bool:
    """Whether a process of the group lives; one that only waits to be reaped does not."""
    if not _signal(group, 0):
        return False
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal():
                state, _, pgrp = (process / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgrp) == group and state not in "ZX":
                    return True
        except OSError:
            continue
    return False


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone, or another user's by now
        return False
    return True
