"""Sends the occurrences of schedules as they come due.

A scheduler keeps nothing of its own: schedules, and what was sent, are in the history, and the id
of an occurrence's job follows from its schedule and its time. So any number of them may run, and
any of them may be killed: what two of them send is one job.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from broker.amqp.connection import Backoff, BrokerError, Refused, Unreachable, Unroutable
from broker.client.dispatcher import Dispatcher
from broker.history.collector import refresh
from broker.history.position import is_collected
from broker.history.schema import HistoryError, UnusableHistory, engine_of, prepare
from broker.log import get_logger
from broker.schedules.queries import Said, in_force, sent
from broker.settings import HistorySettings, WrongSetting, load
from broker.signing.resign_policy import ResignPolicy
from schemas import Schedule
from schemas.schedule import Occurrence

TOLERANCE = timedelta(minutes=5)
"""How late an occurrence may be sent and is not missed: a restart of broker or scheduler."""

OLDEST = timedelta(days=30)
"""How old a missed occurrence may be: less than agents remember jobs, and the stream keeps them."""

_WINDOWS = (timedelta(hours=2), timedelta(days=1), OLDEST)
_MINUTE = 60.0
_LATER = 0.05  # so that a timer that is early does not wake us before the minute
_log = get_logger()


async def run_scheduler(settings: HistorySettings | None = None) -> None:
    """Send the due jobs of all schedules until cancelled, as `pcm schedule run` does.

    It retries while the broker or the database is unreachable. `run_collector` does the same.
    Several may run: no job is sent twice.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        UnusableHistory: this program cannot use the database.
        WrongSetting: a setting is wrong.
    """
    settings = settings or load(HistorySettings)
    engine = engine_of(settings.history_url)
    try:
        await Scheduler(settings, engine).run()
    finally:
        engine.dispose()


class Scheduler:
    """Sends what is due of all schedules.

    Args:
        settings: how to reach the broker.
        engine: the history.
        collected: whether it is left to a collector to keep the history up to date.

    Raises:
        WrongSetting: the key that it is to sign with, or those that it trusts, cannot be read.
    """

    def __init__(
        self, settings: HistorySettings, engine: Engine, *, collected: bool = False
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._collected = collected
        self._settled: set[str] = set()
        self._state = ""
        self._resign_policy = ResignPolicy.from_settings(settings)
        self._not_heeded: set[int] = set()

    async def run(self) -> None:
        """Send what comes due until cancelled, whatever of broker and database is away.

        Raises:
            UnusableHistory: the database is none that this program can use.
        """
        backoff = Backoff()
        while True:
            try:
                await self.send_due(datetime.now(UTC))
            except UnusableHistory:
                raise
            except (BrokerError, HistoryError, WrongSetting) as failure:
                self._tell("scheduler.waits", str(failure))
                await asyncio.sleep(backoff.failed())
            else:
                self._tell("scheduler.keeps_up")
                backoff.reset()
                await asyncio.sleep(_MINUTE - time.time() % _MINUTE + _LATER)

    async def send_due(self, now: datetime) -> None:
        """Send what is due at an instant and was not sent.

        Raises:
            BrokerError: the broker cannot be reached, or does not let us.
            HistoryError: the database cannot be used.
        """
        if not self._collected:  # tables made by another would hide from it that they are empty
            await asyncio.to_thread(prepare, self._engine)
        if self._collected and not await asyncio.to_thread(is_collected, self._engine):
            raise Unreachable("the collector has not caught up")
        await refresh(self._settings, self._engine)  # another's collector may be of another broker
        if due := await asyncio.to_thread(self._due, now):
            async with Dispatcher.connect(self._settings) as dispatcher:
                for occurrence in due:
                    await self._send(dispatcher, occurrence, now)

    def _due(self, now: datetime) -> list[Occurrence]:
        oldest = min(OLDEST, self._settings.history_keep)
        self._resign_policy = ResignPolicy.from_settings(self._settings)  # keys can change
        found = {
            occurrence.id: occurrence
            for schedule in in_force(self._engine, self._heeds).values()
            for occurrence in wanted(schedule, now, oldest)
        }
        self._settled &= found.keys()
        done = self._settled | sent(self._engine, found.keys())
        return [occurrence for job_id, occurrence in found.items() if job_id not in done]

    def _heeds(self, said: Said) -> bool:
        """Whether we may sign what a schedule orders, or its removal counts."""
        record, entry = said
        reason = self._resign_policy.refusal_reason(record, entry.body, entry.signatures)
        if reason and entry.offset not in self._not_heeded:
            self._not_heeded.add(entry.offset)
            _log.warning("schedule.untrusted", schedule=record.name, reason=reason)
        return not reason

    async def _send(self, dispatcher: Dispatcher, occurrence: Occurrence, now: datetime) -> None:
        log = _log.bind(schedule=occurrence.schedule.name, job=occurrence.id)
        if occurrence.ends_at is not None and occurrence.ends_at <= now:
            log.info("occurrence.skipped", reason="its expiry has passed")
        else:
            try:
                lost = await dispatcher.dispatch_occurrence(occurrence.job())
            except (Unroutable, Refused, ValueError) as error:
                log.warning("occurrence.failed", reason=str(error))
            else:
                late = round((now - occurrence.send_at).total_seconds())
                nobody = ", ".join(map(str, lost)) or None
                log.info("occurrence.sent", late=late if late >= _MINUTE else None, nobody=nobody)
        self._settled.add(occurrence.id)

    def _tell(self, state: str, reason: str | None = None) -> None:
        """Say how it stands, once until that changes."""
        if self._state != state:
            self._state = state
            _log.info(state, reason=reason)


def wanted(schedule: Schedule, now: datetime, oldest: timedelta = OLDEST) -> list[Occurrence]:
    """Return the occurrences that should have been sent by now, those long since sent left out.

    They are all that are not missed, and of a schedule that makes up for missed ones the last, if
    no later one has begun. An occurrence is missed when it begins, by the first clock that shows
    it, and so much as the tolerance later nobody has sent it.
    """
    for window in _WINDOWS:
        start = max(schedule.created_at, now - min(window, oldest))
        found = list(schedule.times(start, now))
        begun = [occurrence for occurrence in found if occurrence.begins_at <= now]
        if begun or start == schedule.created_at:
            break
    missed = now - TOLERANCE
    in_time = [occurrence for occurrence in found if occurrence.begins_at > missed]
    if schedule.missed == "once" and begun and begun[-1].begins_at <= missed:
        return [begun[-1], *in_time]
    return in_time
