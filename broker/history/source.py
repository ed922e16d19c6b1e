"""Which broker and virtual host a history was read of."""

from typing import Any, NamedTuple

from aio_pika.abc import AbstractConnection
from sqlalchemy import Connection, select, update

from broker.history.address import shown
from broker.history.schema import WrongHistory, reading


class Source(NamedTuple):
    """A virtual host of a broker; the broker by its cluster's name, which all its nodes tell."""

    cluster: str
    virtual_host: str

    def __str__(self) -> str:
        return f"virtual host {self.virtual_host} of {self.cluster or 'a broker without a name'}"


def source_of(connection: AbstractConnection) -> Source:
    """Return where a connection leads to, as the broker says."""
    transport: Any = connection.transport
    underlay = transport.connection
    return Source(str(underlay.server_properties.get("cluster_name", "")), str(underlay.vhost))


def known_source(connection: Connection) -> Source | None:
    """Return what the history was read of; None where that is not noted."""
    found = Source(*connection.execute(select(reading.c.cluster, reading.c.virtual_host)).one())
    return found if found.virtual_host else None


def check_source(connection: Connection, source: Source) -> None:
    """Refuse a history that was read of another broker or virtual host.

    Raises:
        WrongHistory: it was.
    """
    known = known_source(connection)
    if known not in {None, source}:
        raise WrongHistory(
            f"PCM_HISTORY_URL: {shown(connection.engine.url)} was read of {known}, and PCM_AMQP_URL"
            f" leads to {source}: set another PCM_HISTORY_URL"
        )


def note_source(connection: Connection, source: Source) -> None:
    """Note what the history is read of, where that is not noted.

    Raises:
        WrongHistory: it was read of another one.
    """
    values = source._asdict()
    connection.execute(update(reading).where(reading.c.virtual_host == "").values(values))
    check_source(connection, source)
