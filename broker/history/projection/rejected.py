"""Record rejected entries of the stream, and publish each once as a dead letter.

They count nowhere. A reader that has caught up with the stream publishes a copy of each to the dead
letters, and then appends a record of that to the stream. So one letter is published, however many
histories exist and however often they are rebuilt. Two readers at the same time publish two copies
of one letter.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from broker.amqp import topology
from broker.amqp.publisher import Publisher
from broker.history.schema import jobs, rejected_entries
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import RejectedRecord
from schemas.message import BODY_LIMIT

KIND = "forgery"
"""The kind of the letters, and of the records in the stream."""
_BATCH = 20  # an entry has up to 1 MiB
_UNKNOWN = "unknown"


def record_rejected(connection: Connection, entry: StreamEntry, reason: str) -> None:
    """Record a rejected entry; a copy of a published one is not published again."""
    digest = entry.digest
    is_copy = select(
        exists().where(rejected_entries.c.digest == digest, rejected_entries.c.published)
    )
    published = bool(connection.scalar(is_copy))
    connection.execute(delete(rejected_entries).where(rejected_entries.c.offset == entry.offset))
    connection.execute(
        insert(rejected_entries).values(
            offset=entry.offset,
            digest=digest,
            published=published,
            login=entry.user_id,
            kind=_without_nul(entry.kind),
            routing_key=_without_nul(entry.routing_key),
            reason=_without_nul(reason),
            body=None if published else entry.body[:BODY_LIMIT],
        )
    )


def _without_nul(text: str) -> str:
    return text.replace("\0", "?")  # PostgreSQL cannot store it in text


def mark_published(connection: Connection, digests: Sequence[str]) -> None:
    """Record that entries were published as dead letters."""
    connection.execute(
        update(rejected_entries)
        .where(rejected_entries.c.digest.in_(digests))
        .values(published=True, body=None)
    )


def unpublished(connection: Connection) -> Sequence[Row[tuple[object, ...]]]:
    """Return the next rejected entries to publish as dead letters; of copies, the first."""
    first = (
        select(func.min(rejected_entries.c.offset))
        .where(rejected_entries.c.published.is_(False))
        .group_by(rejected_entries.c.digest)
        .order_by(func.min(rejected_entries.c.offset))
        .limit(_BATCH)
    )
    offsets = connection.scalars(first).all()
    query = select(rejected_entries).where(rejected_entries.c.offset.in_(offsets))
    return connection.execute(query.order_by(rejected_entries.c.offset)).all()


def delete_old(connection: Connection) -> None:
    """Delete published entries that are older than all jobs."""
    oldest = select(func.min(jobs.c.offset)).scalar_subquery()
    connection.execute(
        delete(rejected_entries).where(
            rejected_entries.c.published, rejected_entries.c.offset < oldest
        )
    )


async def publish_rejected(
    publisher: Publisher, rows: Sequence[Row[tuple[object, ...]]], base: int
) -> None:
    """Publish rejected entries as dead letters, and append a record of that to the stream.

    Args:
        publisher: the publisher.
        rows: the rejected entries.
        base: what this history adds to the stream's offsets.

    Raises:
        BrokerError: some may not have been published; publish all of them again.
    """
    await asyncio.gather(*(_publish(publisher, row, base) for row in rows))
    body = b"\n".join(RejectedRecord(digest=row.digest).body() for row in rows)
    await stream.append(publisher, f"{KIND}.{rows[0].digest}", body, kind=KIND)


async def _publish(publisher: Publisher, row: Row[tuple[object, ...]], base: int) -> None:
    sender = topology.agent_of_login(row.login)
    workstation, agent = sender or (_UNKNOWN, _UNKNOWN)
    await stream.append(
        publisher,
        topology.report_key("dead", workstation, agent),
        row.body,
        kind=KIND,
        message_id=row.digest,
        headers={
            "reason": f"rejected by the history: {row.reason}",
            "routing-key": row.routing_key,
            "workstation": workstation if sender else "",
            "agent": agent if sender else "",
            "login": row.login,
            "original-kind": row.kind,
            "offset": row.offset - base,
            "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        },
        content_type="application/octet-stream",
    )
