"""Runs one command to its end, and says how it ended.

In the event loop's thread: in another one, each of its system calls would wait for that.
"""

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from agents.execution import environment as surroundings
from agents.execution.live_output import LiveOutput
from agents.execution.orphans import JOB_VARIABLE, WORKSTATION_VARIABLE, OrphanedProcess
from agents.execution.process import Adopted, Process, RunningProcess
from agents.execution.spawn import may_block, user_of
from schemas import Command, Result, State
from schemas.errors import PcmError


class LeftRunning(PcmError):
    """The command was left running, as its job wants it when its agent ends."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended; without a result where it was stopped before it began."""

    state: State
    result: Result | None
    reason: str = ""


@dataclass(frozen=True)
class _Stop:
    state: State
    reason: str


_LEAVE = _Stop(State.INTERRUPTED, "")


@dataclass(eq=False)
class CommandRun:
    """One run of a command: `complete` runs it; `stop` may come meanwhile.

    Attributes:
        command: what is run.
        job_id: for which job.
        workstation: on which workstation, as the command is told.
        output_limit: bytes kept of each of stdout and stderr.
        stop_grace: seconds between SIGTERM and SIGKILL.
        environment: what the command gets besides its own variables.
        spool: where a command that survives its agent writes to.
        lasting: is called with the process's mark once it has run for a while.
        adopt: what a former agent left of the command, and for how many seconds it had run.
        live: gets what the command writes, for those who look on.
        unsealed: opens the command's secret variables.
        in_thread: has a start done elsewhere that may keep the event loop waiting.
    """

    command: Command
    job_id: str
    workstation: str
    output_limit: int
    stop_grace: float
    environment: Mapping[str, str]
    spool: Path
    lasting: Callable[[str], object] = lambda _: None
    adopt: tuple[OrphanedProcess, float] | None = None
    live: LiveOutput | None = None
    unsealed: Callable[[], Mapping[str, str]] = dict
    in_thread: Callable[[Callable[[], Process]], Awaitable[Process]] = asyncio.to_thread

    def __post_init__(self) -> None:
        self._stop: _Stop | None = None
        self._process: RunningProcess | None = None
        self.started_at = time.time() - (self.adopt[1] if self.adopt else 0)
        """When the command was started, or is about to be."""

    def stop(self, state: State, reason: str) -> None:
        """End the command: SIGTERM to its group, SIGKILL after the grace period."""
        self._tell(_Stop(state, reason))

    def quit(self, reason: str) -> None:
        """End the command, or leave it if its job wants that: its agent ends."""
        self._tell(_LEAVE if self.command.survives_agent else _Stop(State.INTERRUPTED, reason))

    def _tell(self, stop: _Stop) -> None:
        if self._stop is None:
            self._stop = stop
            if self._process is not None:
                self._process.wake()

    def kill(self) -> None:
        """End the command at once, with SIGKILL; not one that survives its agent."""
        if self._process is not None and not self.command.survives_agent:
            self._process.signal(signal.SIGKILL)

    async def complete(self) -> Outcome:
        """CommandRun the command to its end; one that is cancelled meanwhile is killed.

        Raises:
            CannotStart: there is no such program or folder, or it may not be run.
            CannotOpen: its secrets cannot be opened.
            LeftRunning: it was left running.
            OSError: there are no files or processes left, and nothing was started.
        """
        if self._stop is not None and self.adopt is None:
            return Outcome(self._stop.state, None, self._stop.reason)
        with closing(await self._started()) as process:
            self._process = process
            try:
                return await self._see_through(process)
            except OSError as error:
                if self.adopt is not None:
                    raise  # it is looked for again
                process.signal(signal.SIGKILL)
                text = f"how it ended could not be seen: {error.strerror}"
                return Outcome(State.FAILED, None, text)
            except asyncio.CancelledError:
                self.kill()
                raise
            finally:
                self._process = None

    async def _started(self) -> RunningProcess:
        if self.adopt is not None:
            return Adopted(*self.adopt, self.spool, self.output_limit)
        own = {**self.command.environment, **self.unsealed()}
        if not may_block(self.command, own):
            return self._start(own)
        starting = asyncio.ensure_future(self.in_thread(partial(self._start, own)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._abandon)
            raise

    def _start(self, own: Mapping[str, str]) -> Process:
        user = user_of(self.command)
        given = self.environment
        if user is not None:
            given = surroundings.environment(session=False, other=user)
        ours = {JOB_VARIABLE: self.job_id, WORKSTATION_VARIABLE: self.workstation}
        variables = {**given, **own, **ours}
        spool = self.spool if self.command.survives_agent else None
        heard = self.live.write if self.live else None
        return Process(self.command, variables, self.output_limit, spool, self.lasting, heard, user)

    def _abandon(self, starting: "asyncio.Future[Process]") -> None:
        """End what was started when nobody waited for that any more."""
        if not starting.cancelled() and not starting.exception():
            with closing(starting.result()) as process:
                if not self.command.survives_agent:
                    process.signal(signal.SIGKILL)

    async def _see_through(self, process: RunningProcess) -> Outcome:
        process.watch()
        limit = self.command.timeout.total_seconds()
        stop: _Stop | None = None
        # One that has ended has ended, also where it is to be stopped.
        if not await process.wait(process.began + limit if self._stop is None else 0):
            stop = self._stop = self._stop or _Stop(State.TIMED_OUT, f"ran longer than {limit:g} s")
            if stop is _LEAVE:
                raise LeftRunning
            process.signal(signal.SIGTERM)
            if not await process.wait(time.monotonic() + self.stop_grace):
                process.signal(signal.SIGKILL)
                await process.wait(math.inf)
        duration = time.monotonic() - process.began
        code, peak = process.reap()
        if code is None or code < 0:  # it may have been ended before the stop was heard of
            stop = stop or self._stop
        left_behind = await process.end_group(self.stop_grace)
        stdout, stderr = await process.outputs()
        result = Result(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            duration=timedelta(seconds=duration),
            max_memory=peak,
            restart_required=code in self.command.restart_exit_codes,
            stdout=stdout,
            stderr=stderr,
        )
        if stop:
            return Outcome(stop.state, result, stop.reason)
        state, reason = self._judge(code)
        if left_behind:
            reason = "; ".join(filter(None, [reason, "processes it left behind were ended"]))
        return Outcome(state, result, reason)

    def _judge(self, code: int | None) -> tuple[State, str]:
        if code is None:
            text = "its agent ended while it ran; it went on to its end, and how is not known"
            return State.INTERRUPTED, text
        if code in self.command.success_exit_codes or code in self.command.restart_exit_codes:
            return State.SUCCEEDED, ""
        if code < 0:
            return State.FAILED, f"ended by {_signal_name(-code)}"
        return State.FAILED, f"exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        return f"signal {number}"
