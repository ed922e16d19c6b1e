"""Run one command to its end and return the outcome.

It runs in the event loop's thread: in another thread each system call would wait for the GIL.
"""

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from agents.execution.environment import UserAccount, command_environment
from agents.execution.live_output import LiveOutput
from agents.execution.process import AdoptedProcess, Process, RunningProcess
from agents.execution.processes.orphans import OrphanedProcess
from agents.execution.spawn import JOB_VARIABLE, WORKSTATION_VARIABLE, may_block, user_of
from agents.execution.spool import is_spooled
from schemas import Command, Result, State
from schemas.errors import PcmError


class LeftRunning(PcmError):
    """The agent ends, and the command continues because its job says `survives_agent`."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `result` is None where it was stopped before it started."""

    state: State
    result: Result | None
    reason: str = ""


@dataclass(frozen=True)
class _StopRequest:
    state: State
    reason: str


@dataclass(frozen=True)
class Placed:
    """A command with its files in place, and the variables that name them."""

    command: Command
    variables: Mapping[str, str] = field(default_factory=dict)


Place = Callable[[Command, UserAccount | None], Placed]
"""Puts a command's files into place for a user; None: the agent's own. Runs in a thread."""

_LEAVE_RUNNING = _StopRequest(State.INTERRUPTED, "")


@dataclass(eq=False)
class CommandRun:
    """One run of a command: `complete` runs it; `stop` can be called meanwhile.

    Attributes:
        command: the command.
        job_id: the job of the command.
        workstation: the workstation's name, passed to the command as a variable.
        output_limit: bytes kept of each of stdout and stderr.
        stop_grace: seconds between SIGTERM and SIGKILL.
        environment: the environment to which the command's own variables are added.
        spool: the folder for output that is written without the agent, too.
        on_long_run: is called with the process identity once the command has run for a while.
        adopt: the process that an earlier run of the agent left, and its age in seconds.
        live: receives the output while the command runs.
        open_secrets: returns the command's secret variables.
        in_thread: runs a start that can block in another thread.
        place: puts the command's files into place; None: it has none.
    """

    command: Command
    job_id: str
    workstation: str
    output_limit: int
    stop_grace: float
    environment: Mapping[str, str]
    spool: Path
    on_long_run: Callable[[str], object] = lambda _: None
    adopt: tuple[OrphanedProcess, float] | None = None
    live: LiveOutput | None = None
    open_secrets: Callable[[], Mapping[str, str]] = dict
    in_thread: Callable[[Callable[[], Process]], Awaitable[Process]] = asyncio.to_thread
    place: Place | None = None

    def __post_init__(self) -> None:
        self._stop: _StopRequest | None = None
        self._process: RunningProcess | None = None
        self.started_at = time.time() - (self.adopt[1] if self.adopt else 0)
        """When the command was started, or is about to be started."""

    @property
    def stopped(self) -> tuple[State, str] | None:
        """The state and the reason of a requested stop; None if none is requested."""
        return None if self._stop is None else (self._stop.state, self._stop.reason)

    def stop(self, state: State, reason: str) -> None:
        """End the command: SIGTERM to all its processes, SIGKILL after the grace period."""
        self._request_stop(_StopRequest(state, reason))

    def quit(self, reason: str) -> None:
        """End the command because its agent ends; leave it running if it survives its agent."""
        survives = self.command.survives_agent
        self._request_stop(_LEAVE_RUNNING if survives else _StopRequest(State.INTERRUPTED, reason))

    def _request_stop(self, stop: _StopRequest) -> None:
        if self._stop is None:
            self._stop = stop
            if self._process is not None:
                self._process.wake()

    def kill(self) -> None:
        """End the command immediately, with SIGKILL; not one that survives its agent."""
        if self._process is not None and not self.command.survives_agent:
            self._process.kill()

    async def complete(self) -> Outcome:
        """Run the command to its end; kill it if this call is cancelled.

        Raises:
            CannotStart: there is no such program or folder, or it may not be run.
            CannotOpen: its secrets cannot be opened.
            LeftRunning: it was left running.
            OSError: the limit of open files or processes is reached; nothing was started.
        """
        if self._stop is not None and self.adopt is None:
            return Outcome(self._stop.state, None, self._stop.reason)
        with closing(await self._start_or_adopt()) as process:
            self._process = process
            try:
                return await self._run_to_end(process)
            except OSError as error:
                if self.adopt is not None:
                    raise  # the executor tries again
                process.kill()
                text = f"its end could not be observed: {error.strerror}"
                return Outcome(State.FAILED, None, text)
            except asyncio.CancelledError:
                self.kill()
                raise
            finally:
                self._process = None

    async def _start_or_adopt(self) -> RunningProcess:
        if self.adopt is not None:
            return AdoptedProcess(*self.adopt, self.spool, self.output_limit)
        own = {**self.command.environment, **self.open_secrets()}
        if self.place is None and not may_block(self.command, own):
            return self._start(own)
        starting = asyncio.ensure_future(self.in_thread(partial(self._start, own)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._discard)
            raise

    def _start(self, own: Mapping[str, str]) -> Process:
        user = user_of(self.command)
        base = self.environment
        if user is not None:
            base = command_environment(session=False, other=user)
        placed = self.place(self.command, user) if self.place else Placed(self.command)
        job_variables = {JOB_VARIABLE: self.job_id, WORKSTATION_VARIABLE: self.workstation}
        variables = {**base, **own, **placed.variables, **job_variables}
        spool = self.spool if is_spooled(self.command) else None
        on_output = self.live.write if self.live else None
        return Process(
            placed.command, variables, self.output_limit, spool, self.on_long_run, on_output, user
        )

    def _discard(self, starting: "asyncio.Future[Process]") -> None:
        """End a process whose start completed after the run was cancelled."""
        if not starting.cancelled() and not starting.exception():
            with closing(starting.result()) as process:
                if not self.command.survives_agent:
                    process.kill()

    async def _run_to_end(self, process: RunningProcess) -> Outcome:
        process.watch()
        limit = self.command.timeout.total_seconds()
        stop: _StopRequest | None = None
        # A stop that was requested after the end of the process changes nothing.
        if not await process.wait(process.started_at + limit if self._stop is None else 0):
            timed_out = _StopRequest(State.TIMED_OUT, f"ran longer than {limit:g} s")
            stop = self._stop = self._stop or timed_out
            if stop is _LEAVE_RUNNING:
                raise LeftRunning
            process.signal(signal.SIGTERM)
            if not await process.wait(time.monotonic() + self.stop_grace):
                process.kill()
                await process.wait(math.inf)
        duration = time.monotonic() - process.started_at
        code, peak = process.reap()
        if code is None or code < 0:  # the stop may have ended it before `wait` saw the request
            stop = stop or self._stop
        if self.command.leaves_processes and not stop:
            process.leave_rest()
            self._process = None  # nothing kills it any more
            left_behind = False
        else:
            left_behind = await process.end_rest(self.stop_grace)
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
        state, reason = self._state_of(code)
        if left_behind:
            reason = "; ".join(filter(None, [reason, "the processes it left behind were ended"]))
        return Outcome(state, result, reason)

    def _state_of(self, code: int | None) -> tuple[State, str]:
        if code is None:
            text = "its agent ended while it ran; it ended later, and its exit code is not known"
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
