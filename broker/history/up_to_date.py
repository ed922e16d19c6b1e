"""How a program that asks the history has it up to date first."""

import asyncio

from sqlalchemy import Engine

from broker.history.position import is_collected
from broker.settings import HistorySettings


async def bring_up_to_date(settings: HistorySettings, engine: Engine) -> None:
    """Read what is new in the stream into the history, unless a collector does.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
        HistoryError: the database cannot be used.
    """
    if await asyncio.to_thread(is_collected, engine):
        return
    from broker.history.collector import catch_up  # it takes long to import

    await catch_up(settings, engine)
