"""Plan, start, pause, resume and abort rollouts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Engine

from broker.client.dispatcher import Dispatcher
from broker.history.engine import open_history
from broker.rollouts.progress import RolloutProgress, find_plan, load_progress, recorded_plan
from broker.rollouts.runner import RolloutRunner, refresh_patiently
from broker.rollouts.state import RolloutState
from broker.rollouts.waves import WaveSize, WrongWaves, divide, read_waves, shuffled
from broker.settings import HistorySettings, load
from schemas import Job, Rollout, RolloutOrder, workstation
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.orders.job import new_job_id

OnState = Callable[[RolloutState], None]


class RolloutError(PcmError):
    """The rollout's state does not allow the order; the message says why."""


class BoundWorkstations(NamedTuple):
    """The workstations that have a queue for a job, and those that have none."""

    bound: list[str]
    unbound: list[str]


async def bound_workstations(
    dispatcher: Dispatcher, job: Job, workstations: Iterable[str]
) -> BoundWorkstations:
    """Return which workstations have a queue for a job; send nothing.

    Args:
        dispatcher: asks the broker.
        job: the job; its targets are not used.
        workstations: their names.

    Raises:
        Unroutable: none of them has a queue.
        Unreachable: the broker could not be reached in time.
    """
    targets = tuple(map(workstation, workstations))
    addressed = job.model_copy(update={"targets": targets, "excluded": ()})
    found, unbound = await dispatcher.only_bound(addressed)
    return BoundWorkstations(
        [str(target.name) for target in found.targets], [str(target.name) for target in unbound]
    )


def plan_rollout(
    job: Job,
    workstations: Iterable[str],
    waves: str | Sequence[WaveSize],
    *,
    max_failures: str = "0",
    pause: timedelta = timedelta(0),
    wave_limit: timedelta | None = None,
) -> Rollout:
    """Return a plan to send a job in waves; send nothing.

    Args:
        job: the job of each wave; its targets are not used.
        workstations: the names of all workstations; their order is changed. The workstations that
            a job's targets reach are `history.fleet.reached(job)`.
        waves: how many workstations the job has reached after each wave, as counts or percentages,
            such as "1,10%,50%,100%". The last wave must reach all.
        max_failures: the maximum number of failures: a count, or a percentage such as "5%" of the
            workstations sent to so far.
        pause: the time between a wave's end and the next wave.
        wave_limit: a workstation that has not ended after this time counts as failed; default: no
            limit.

    Raises:
        WrongWaves: the waves are invalid, do not increase, leave workstations out, or make a
            message over the size limit.
    """
    names = list(workstations)
    sizes = read_waves(waves) if isinstance(waves, str) else waves
    rollout_id = new_job_id()
    plan = Rollout(
        id=rollout_id,
        job=job,
        waves=divide(shuffled(names, rollout_id), sizes),
        max_failures=max_failures,
        pause=pause,
        wave_limit=wave_limit,
    )
    numbers = range(1, len(plan.waves) + 1)
    bodies = (plan.body(), *(plan.wave(number).body() for number in numbers))
    if (size := max(map(len, bodies))) > BODY_LIMIT:
        raise WrongWaves(
            f"{len(names)} workstations make a message of {size} bytes, over the limit of"
            f" {BODY_LIMIT}: send it to fewer workstations, such as one group after another"
        )
    return plan


async def start_rollout(
    dispatcher: Dispatcher,
    plan: Rollout,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Start a rollout and run it until it has ended or has stopped; return its state.

    If the caller ends before, `resume_rollout` continues it.

    Args:
        dispatcher: sends the waves.
        plan: made by `plan_rollout`.
        on_state: is called with the state about once a second.
        settings: the history's settings; default: from the environment, with the dispatcher's
            broker.

    Raises:
        BrokerError: the broker could not be reached in time, or refuses.
        HistoryError: the database cannot be used.
    """
    async with _open_history(dispatcher, settings) as (engine, loaded):  # else nothing is recorded
        await dispatcher.record(plan)
        runner = RolloutRunner(dispatcher, loaded, engine, plan, on_state or _ignore)
        return await runner.run()


async def run_rollout(
    dispatcher: Dispatcher,
    plan: Rollout,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Run a rollout whose plan is recorded; see `start_rollout`."""
    async with _open_history(dispatcher, settings) as (engine, loaded):
        runner = RolloutRunner(dispatcher, loaded, engine, plan, on_state or _ignore)
        return await runner.run()


async def resume_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    max_failures: str | None = None,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Continue a rollout that is paused, that failures have stopped, or that no program runs.

    Waves that were sent are not sent again. A finished rollout stays finished.

    Args:
        dispatcher: sends the waves.
        rollout_id: its id, or the beginning of its id.
        max_failures: the maximum number of failures from now on; default: unchanged.
        on_state: is called with the state about once a second.
        settings: the history's settings; default: from the environment, with the dispatcher's
            broker.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
        RolloutError: it was aborted or has expired; or there were too many failures, and
            `max_failures` is not given.
        SigningRefused: its waves would be signed here, but the keys that signed its plan may not
            order them now.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _find(dispatcher, rollout_id, settings, on_state) as (engine, runner, progress):
        runner.recorded = await asyncio.to_thread(recorded_plan, engine, progress.plan)
        await asyncio.to_thread(runner.check_resignable, _rest(progress))
        if progress.state.state == "finished":
            return progress.state
        await runner.order(_resume_order(progress, max_failures))
        return await runner.run()


async def follow_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Follow a rollout that another program runs, until it has ended or has stopped.

    Args:
        dispatcher: is connected to the rollout's broker.
        rollout_id: its id, or the beginning of its id.
        on_state: is called with the state about once a second.
        settings: the history's settings; default: from the environment, with the dispatcher's
            broker.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _find(dispatcher, rollout_id, settings, on_state) as (_, runner, _progress):
        return await runner.run(acts=False)


async def pause_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    reason: str = "",
    settings: HistorySettings | None = None,
) -> None:
    """Pause a rollout: no further wave is sent until it is resumed; jobs already sent continue.

    Args:
        dispatcher: records the order.
        rollout_id: its id, or the beginning of its id.
        reason: shown with its state.
        settings: the history's settings; default: from the environment, with the dispatcher's
            broker.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
        RolloutError: it was aborted, or has finished.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _find(dispatcher, rollout_id, settings) as (_, runner, progress):
        await runner.order(_stop_order(progress, "pause", reason))


async def abort_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    reason: str = "",
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Abort a rollout: no further wave is sent, and its jobs are cancelled where they are not over.

    Args:
        dispatcher: records the order, and cancels the jobs.
        rollout_id: its id, or the beginning of its id.
        reason: shown with its state and on the workstations.
        on_state: is called with the state about once a second.
        settings: the history's settings; default: from the environment, with the dispatcher's
            broker.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
        RolloutError: it was aborted already, or has finished.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _find(dispatcher, rollout_id, settings, on_state) as (_, runner, progress):
        await runner.order(_stop_order(progress, "abort", reason))
        return await runner.run()


def _rest(progress: RolloutProgress) -> Job:
    """Return the job of all waves that were not sent, as if it were one wave."""
    plan = progress.plan
    names = [name for wave in plan.waves[progress.state.wave :] for name in wave]
    targets = tuple(map(workstation, names))
    return plan.job.model_copy(update={"targets": targets, "excluded": (), "rollout": plan.id})


def _resume_order(progress: RolloutProgress, max_failures: str | None) -> RolloutOrder:
    """Return the order to resume a rollout.

    Raises:
        RolloutError: as `resume_rollout` does.
    """
    state = progress.state
    if state.state in {"aborted", "expired"}:
        raise RolloutError(f"it is {state.state}: there is nothing to resume")
    if state.state == "stopped" and max_failures is None:
        raise RolloutError(f"{state.reason}: give a higher limit (--max-failures)")
    return RolloutOrder(rollout_id=progress.plan.id, action="resume", max_failures=max_failures)


def _stop_order(
    progress: RolloutProgress, action: Literal["pause", "abort"], reason: str
) -> RolloutOrder:
    """Return the order to pause or abort a rollout.

    Raises:
        RolloutError: it was aborted or has finished; but an incomplete abort can be repeated.
    """
    state = progress.state
    has_open_jobs = action == "abort" and (state.cancel or state.open)
    if state.state in {"aborted", "finished"} and not has_open_jobs:
        raise RolloutError(f"it is {state.state} already")
    return RolloutOrder(rollout_id=progress.plan.id, action=action, reason=reason)


@asynccontextmanager
async def _open_history(
    dispatcher: Dispatcher, settings: HistorySettings | None
) -> AsyncIterator[tuple[Engine, HistorySettings]]:
    """Open the refreshed history; the dispatcher's settings take precedence.

    Raises:
        WrongHistory: it was read from another broker.
    """
    settings = settings or load(HistorySettings, **dispatcher.settings.model_dump())
    engine = await asyncio.to_thread(open_history, settings.history_url)
    try:
        await refresh_patiently(settings, engine)
        yield engine, settings
    finally:
        engine.dispose()


@asynccontextmanager
async def _find(
    dispatcher: Dispatcher,
    rollout_id: str,
    settings: HistorySettings | None,
    on_state: OnState | None = None,
) -> AsyncIterator[tuple[Engine, RolloutRunner, RolloutProgress]]:
    """Read a rollout from the history."""
    async with _open_history(dispatcher, settings) as (engine, loaded):
        plan = await asyncio.to_thread(find_plan, engine, rollout_id)
        runner = RolloutRunner(dispatcher, loaded, engine, plan, on_state or _ignore)
        yield engine, runner, await asyncio.to_thread(load_progress, engine, plan)


def _ignore(_: RolloutState) -> None:
    """Do nothing with a state."""
