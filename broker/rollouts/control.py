"""Rollouts as scripts and commands plan, start, pause, resume and abort them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

from sqlalchemy import Engine

from broker.client.dispatcher import Dispatcher
from broker.history.schema import open_history
from broker.rollouts.progress import RolloutProgress, course, find, recorded
from broker.rollouts.runner import Driver, refresh
from broker.rollouts.state import RolloutState
from broker.rollouts.waves import Item, WrongWaves, cut, mixed, read_waves
from broker.settings import HistorySettings, load
from broker.signing.resign_policy import check_resignable
from schemas import Job, Rollout, RolloutOrder, workstation
from schemas.errors import PcmError
from schemas.job import new_job_id
from schemas.message import BODY_LIMIT

OnState = Callable[[RolloutState], None]


class RolloutError(PcmError):
    """What is asked of a rollout does not go with its state; the text says why."""


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
        job: the job; its targets do not count.
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
    waves: str | Sequence[Item],
    *,
    max_failures: str = "0",
    pause: timedelta = timedelta(0),
    wave_limit: timedelta | None = None,
) -> Rollout:
    """Return the plan by which a job goes out in waves; nothing is sent.

    Args:
        job: what each wave is; its targets do not count.
        workstations: their names, all of them; they are mixed, each rollout in its own way. Those
            that a job's targets reach are `history.fleet.reached(job)`.
        waves: how many workstations it has reached after each wave, as counts or parts of all,
            such as "1,10%,50%,100%". The last is all.
        max_failures: how many failures are borne: a count, or a part such as "5%" of the
            workstations sent to so far.
        pause: between a wave's end and the next.
        wave_limit: what has not ended after so long counts as failed; default: it is waited for.

    Raises:
        WrongWaves: the waves are no such text, do not rise, leave some out, or make a message
            over the size limit.
    """
    names = list(workstations)
    items = read_waves(waves) if isinstance(waves, str) else waves
    rollout_id = new_job_id()
    plan = Rollout(
        id=rollout_id,
        job=job,
        waves=cut(mixed(names, rollout_id), items),
        max_failures=max_failures,
        pause=pause,
        wave_limit=wave_limit,
    )
    numbers = range(1, len(plan.waves) + 1)
    bodies = (plan.body(), *(plan.wave(number).body() for number in numbers))
    if (size := max(map(len, bodies))) > BODY_LIMIT:
        raise WrongWaves(
            f"{len(names)} workstations make a message of {size} bytes, over the limit of"
            f" {BODY_LIMIT}: send it to fewer at once, such as one group after another"
        )
    return plan


async def start_rollout(
    dispatcher: Dispatcher,
    plan: Rollout,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Begin a rollout and drive it until it has ended, or does not go on; return its state then.

    Where the caller ends before, `resume_rollout` goes on, from anywhere.

    Args:
        dispatcher: sends the waves.
        plan: made by `plan_rollout`.
        on_state: is called with the state about once a second.
        settings: where the history is; default: from the environment, at the dispatcher's broker.

    Raises:
        BrokerError: the broker could not be reached in time, or does not let us.
        HistoryError: the database cannot be used.
    """
    async with _opened(dispatcher, settings) as (engine, known):
        driver = Driver(dispatcher, known, engine, plan, on_state or _nothing)
        await driver.begin()
        return await driver.drive()


async def resume_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    max_failures: str | None = None,
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """Drive on a rollout that was paused, that failures stopped, or that nothing drives any more.

    What was sent is not sent again. One that has finished stays so.

    Args:
        dispatcher: sends the waves.
        rollout_id: its id, or the beginning.
        max_failures: how many failures are borne from now on; default: as before.
        on_state: is called with the state about once a second.
        settings: where the history is; default: from the environment, at the dispatcher's broker.

    Raises:
        UnknownRollout: there is none of this id, or several begin so.
        RolloutError: it was aborted or has expired; or there were too many failures, and
            `max_failures` is not given.
        SigningRefused: its waves would be signed here, and no trusted key has signed its plan.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _found(dispatcher, rollout_id, settings, on_state) as (engine, driver, found):
        await asyncio.to_thread(check_plan_vouched, engine, found.plan, driver.settings)
        if found.standing.state == "finished":
            return found.standing
        await driver.order(resume_order(found, max_failures))
        return await driver.drive()


async def pause_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    reason: str = "",
    settings: HistorySettings | None = None,
) -> None:
    """Hold a rollout: what was sent goes on, no further wave is sent until it is resumed.

    Args:
        dispatcher: records it.
        rollout_id: its id, or the beginning.
        reason: shown with its state.
        settings: where the history is; default: from the environment, at the dispatcher's broker.

    Raises:
        UnknownRollout: there is none of this id, or several begin so.
        RolloutError: it was aborted, or has finished.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _found(dispatcher, rollout_id, settings) as (_, driver, found):
        await driver.order(stop_order(found, "pause", reason))


async def abort_rollout(
    dispatcher: Dispatcher,
    rollout_id: str,
    reason: str = "",
    on_state: OnState | None = None,
    settings: HistorySettings | None = None,
) -> RolloutState:
    """End a rollout: no further wave is sent, and its jobs are cancelled where they have not ended.

    Args:
        dispatcher: records it, and cancels.
        rollout_id: its id, or the beginning.
        reason: shown with its state, and to the workstations.
        on_state: is called with the state about once a second.
        settings: where the history is; default: from the environment, at the dispatcher's broker.

    Raises:
        UnknownRollout: there is none of this id, or several begin so.
        RolloutError: it was aborted already, or has finished.
        BrokerError, HistoryError: as `start_rollout` does.
    """
    async with _found(dispatcher, rollout_id, settings, on_state) as (_, driver, found):
        await driver.order(stop_order(found, "abort", reason))
        return await driver.drive()


def check_plan_vouched(
    engine: Engine, plan: Rollout, settings: HistorySettings | None = None
) -> None:
    """Refuse to sign the waves of a plan that no trusted key has signed; see `check_resignable`."""
    body, signatures = recorded(engine, plan)
    check_resignable(plan, body, signatures, settings or load(HistorySettings))


def resume_order(found: RolloutProgress, max_failures: str | None) -> RolloutOrder:
    """Return the order that a rollout goes on.

    Raises:
        RolloutError: as `resume_rollout` does.
    """
    standing = found.standing
    if standing.state in {"aborted", "expired"}:
        raise RolloutError(f"it is {standing.state}: there is nothing to resume")
    if standing.state == "stopped" and max_failures is None:
        raise RolloutError(f"{standing.reason}: say how many are borne, by --max-failures")
    return RolloutOrder(rollout_id=found.plan.id, action="resume", max_failures=max_failures)


def stop_order(
    found: RolloutProgress, action: Literal["pause", "abort"], reason: str
) -> RolloutOrder:
    """Return the order that a rollout is paused or aborted.

    Raises:
        RolloutError: it was aborted, or has finished; an abort that did not cancel all is repeated.
    """
    standing = found.standing
    aborts_open = action == "abort" and (standing.cancel or standing.open)
    if standing.state in {"aborted", "finished"} and not aborts_open:
        raise RolloutError(f"it is {standing.state} already")
    return RolloutOrder(rollout_id=found.plan.id, action=action, reason=reason)


@asynccontextmanager
async def _opened(
    dispatcher: Dispatcher, settings: HistorySettings | None
) -> AsyncIterator[tuple[Engine, HistorySettings]]:
    # One history, one broker: what the dispatcher was given comes before the environment.
    settings = settings or load(HistorySettings, **dispatcher.settings.model_dump())
    engine = await asyncio.to_thread(open_history, settings.history_url)
    try:
        yield engine, settings
    finally:
        engine.dispose()


@asynccontextmanager
async def _found(
    dispatcher: Dispatcher,
    rollout_id: str,
    settings: HistorySettings | None,
    on_state: OnState | None = None,
) -> AsyncIterator[tuple[Engine, Driver, RolloutProgress]]:
    """Open the history, up to date, and find a rollout there, as it goes now."""
    async with _opened(dispatcher, settings) as (engine, known):
        await refresh(known, engine)
        plan = await asyncio.to_thread(find, engine, rollout_id)
        driver = Driver(dispatcher, known, engine, plan, on_state or _nothing)
        yield engine, driver, await asyncio.to_thread(course, engine, plan)


def _nothing(_: RolloutState) -> None:
    """Show nothing."""
