"""The broker and virtual host that a history is read from."""

from typing import Any, NamedTuple

from aio_pika.abc import AbstractConnection
from sqlalchemy import Connection, select, update

from broker.history.address import shown
from broker.history.engine import WrongHistory
from broker.history.schema import reading


class Source(NamedTuple):
    """A virtual host of a broker, which is identified by its cluster name."""

    cluster: str
    virtual_host: str

    def __str__(self) -> str:
        return f"virtual host {self.virtual_host} of {self.cluster or 'a broker without a name'}"


def source_of(connection: AbstractConnection) -> Source:
    """Return the source that a connection leads to."""
    transport: Any = connection.transport
    underlay = transport.connection
    return Source(str(underlay.server_properties.get("cluster_name", "")), str(underlay.vhost))


def known_source(connection: Connection) -> Source | None:
    """Return the source that the history was read from; None if it is not recorded."""
    source = Source(*connection.execute(select(reading.c.cluster, reading.c.virtual_host)).one())
    return source if source.virtual_host else None


def check_source(connection: Connection, source: Source) -> None:
    """Check that the history was not read from another broker or virtual host.

    Raises:
        WrongHistory: it was.
    """
    known = known_source(connection)
    if known not in {None, source}:
        raise WrongHistory(
            f"PCM_HISTORY_URL: {shown(connection.engine.url)} was read from {known}, and"
            f" PCM_AMQP_URL leads to {source}: set another PCM_HISTORY_URL"
        )


def check_virtual_host(connection: Connection, virtual_host: str) -> None:
    """Check what is known without the broker: that the history is of this virtual host.

    Raises:
        WrongHistory: it was read from another one.
    """
    known = known_source(connection)
    if known is not None and known.virtual_host != virtual_host:
        raise WrongHistory(
            f"PCM_HISTORY_URL: {shown(connection.engine.url)} was read from {known}, and"
            f" PCM_AMQP_URL names the virtual host {virtual_host}: set another PCM_HISTORY_URL"
        )


def record_source(connection: Connection, source: Source) -> None:
    """Record the source of the history, if none is recorded.

    Raises:
        WrongHistory: the history was read from another source.
    """
    values = source._asdict()
    connection.execute(update(reading).where(reading.c.virtual_host == "").values(values))
    check_source(connection, source)
