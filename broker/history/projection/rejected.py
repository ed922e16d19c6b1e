"""Entries that are not by whom they speak of: noted as they are read, told to the administrators.

They count nowhere. Whoever has read to the stream's end puts a copy of each to the dead letters,
and puts into the stream that this was done: so it is done once, however many histories there are
and however often they are made anew. Two that do it at once make two copies of one letter.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from broker.amqp import topology
from broker.amqp.publisher import Publisher
from broker.history.schema import forgeries, jobs
from broker.log import get_logger
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import RejectedRecord
from schemas.message import BODY_LIMIT

KIND = "forgery"
"""The kind of the letters."""
_AT_ONCE = 20  # each is up to a mebibyte
_NOBODY = "unknown"
_log = get_logger()


def note(connection: Connection, entry: StreamEntry, reason: str) -> None:
    """Note a forged entry; one that is noted as told already is not told again."""
    digest = entry.digest
    told = select(exists().where(forgeries.c.digest == digest, forgeries.c.told))
    again = bool(connection.scalar(told))
    connection.execute(delete(forgeries).where(forgeries.c.offset == entry.offset))
    connection.execute(
        insert(forgeries).values(
            offset=entry.offset,
            digest=digest,
            told=again,
            login=entry.user_id,
            kind=_plain(entry.kind),
            routing_key=_plain(entry.routing_key),
            reason=_plain(reason),
            body=None if again else entry.body[:BODY_LIMIT],
        )
    )


def _plain(text: str) -> str:
    return text.replace("\0", "?")  # PostgreSQL has none in texts


def was_told(connection: Connection, digests: Sequence[str]) -> None:
    """Note that entries were put to the dead letters."""
    connection.execute(
        update(forgeries).where(forgeries.c.digest.in_(digests)).values(told=True, body=None)
    )


def untold(connection: Connection) -> Sequence[Row[tuple[object, ...]]]:
    """Return some forged entries that nobody has put to the dead letters; equal ones, one."""
    first = (
        select(func.min(forgeries.c.offset))
        .where(forgeries.c.told.is_(False))
        .group_by(forgeries.c.digest)
        .order_by(func.min(forgeries.c.offset))
        .limit(_AT_ONCE)
    )
    query = select(forgeries).where(forgeries.c.offset.in_(connection.scalars(first).all()))
    return connection.execute(query.order_by(forgeries.c.offset)).all()


def forget(connection: Connection) -> None:
    """Drop what is older than all jobs that are kept."""
    oldest = select(func.min(jobs.c.offset)).scalar_subquery()
    connection.execute(delete(forgeries).where(forgeries.c.told, forgeries.c.offset < oldest))


async def tell(publisher: Publisher, found: Sequence[Row[tuple[object, ...]]], base: int) -> None:
    """Put forged entries to the dead letters, and into the stream that this was done.

    Args:
        publisher: to the broker.
        found: which.
        base: what this history adds to the stream's offsets.

    Raises:
        BrokerError: not all may be there; tell them again.
    """
    await asyncio.gather(*(_bury(publisher, row, base) for row in found))
    body = b"\n".join(RejectedRecord(digest=row.digest).body() for row in found)
    await stream.append(publisher, f"{KIND}.{found[0].digest}", body, kind=KIND)


async def _bury(publisher: Publisher, row: Row[tuple[object, ...]], base: int) -> None:
    bearer = topology.agent_of_login(row.login)
    workstation, agent = bearer or (_NOBODY, _NOBODY)
    reason = f"forged: {row.reason}; it counts nowhere"
    _log.warning("history.forged", offset=row.offset, reason=row.reason)
    await stream.append(
        publisher,
        topology.report_key("dead", workstation, agent),
        row.body,
        kind=KIND,
        message_id=row.digest,
        headers={
            "reason": reason,
            "routing-key": row.routing_key,
            "workstation": workstation if bearer else "",
            "agent": agent if bearer else "",
            "login": row.login,
            "forged-kind": row.kind,
            "offset": row.offset - base,
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        },
        content_type="application/octet-stream",
    )
