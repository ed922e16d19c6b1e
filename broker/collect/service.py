"""Run the collector, and with it the scheduler."""

import asyncio

from broker.history.collector import Collector
from broker.history.engine import engine_of
from broker.schedules.scheduler import ScheduleRunner
from broker.settings import HistorySettings, load


async def run_collector(settings: HistorySettings | None = None) -> None:
    """Keep the history up to date and send the due jobs of schedules, until cancelled.

    It retries while the broker or the database is unreachable. Of several collectors one is
    active; the others are on standby.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        UnusableHistory: this program cannot use the database.
        WrongSetting: a setting is wrong.
    """
    settings = settings or load(HistorySettings)
    engine = engine_of(settings.history_url)
    collector = Collector(settings, engine)
    scheduler = ScheduleRunner(settings, engine, collected=True)
    try:
        await asyncio.gather(collector.run(), scheduler.run())
    finally:
        await collector.release_lease()
        engine.dispose()
