"""Connect to the broker, and map the library's errors to ours."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection, UnderlayConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ConnectionClosed,
    DeliveryError,
)
from aiormq.exceptions import ConnectionNotAllowed
from yarl import URL

from broker import tls
from broker.amqp.channel import Channel
from broker.amqp.connect_errors import failure_reason, refusal_reason
from broker.amqp.frame_reader import Transport
from broker.amqp.timeouts import timeout
from broker.settings import BrokerSettings
from schemas.errors import PcmError

CALL_LIMIT = 10.0
"""Time limit of one call to the broker, in seconds; the library itself has none."""


class BrokerError(PcmError):
    """A call to the broker failed."""


class Unreachable(BrokerError):
    """The broker is unreachable."""


class Blocked(Unreachable):
    """The broker accepts no messages: its disk space or memory is low."""


class LoginRefused(Unreachable):
    """The broker refused the login."""


class Refused(BrokerError):
    """The broker refused a call: no permission, or other arguments than those declared before."""


class Unroutable(BrokerError):
    """A message reached no queue."""


class Backoff:
    """Random pauses between attempts; their maximum doubles with each failure.

    Attributes:
        failures: the number of failed attempts in a row.
    """

    def __init__(self, longest: float = 60.0) -> None:
        self.failures = 0
        self._longest = longest

    def reset(self, failures: int = 0) -> None:
        """Record a success; at most `failures` earlier failures still count."""
        self.failures = min(self.failures, failures)

    def failed(self) -> float:
        """Record a failure; return the seconds to wait before the next attempt."""
        limit = min(self._longest, 0.5 * 2 ** min(self.failures, 10))
        self.failures += 1
        return random.uniform(0, limit)  # noqa: S311 - no secret


@contextmanager
def map_errors(doing: str) -> Iterator[None]:
    """Map the library's errors to `BrokerError` and its subclasses.

    Args:
        doing: the call, for the message.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        # The library cancels the calls on a connection that it drops.
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise Unreachable(f"{doing}: the connection was lost") from error
    except ConnectionNotAllowed as error:
        raise LoginRefused(f"{doing}: {_text(error)}") from error
    except ChannelNotFoundEntity as error:
        # The queue's node is starting; or it was deleted, and connecting declares it again.
        raise Unreachable(f"{doing}: {_text(error)}") from error
    except ChannelClosed as error:
        raise Refused(f"{doing}: {_text(error)}") from error
    except DeliveryError as error:
        raise Unreachable(f"{doing}: the broker did not store the message") from error
    except Exception as error:
        # The library ends the calls on a connection that we close by a bare Exception.
        if type(error) is not Exception and not isinstance(error, CONNECTION_EXCEPTIONS):
            raise
        raise Unreachable(f"{doing}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {CALL_LIMIT:.0f} s"
    if type(error) is Exception:
        return "the connection was closed"
    if isinstance(error, (ChannelClosed, ConnectionClosed)) and len(error.args) > 1:
        return str(error.args[1])
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class OurConnection(aio_pika.Connection):
    """A connection over our `Transport`, with our channels."""

    CHANNEL_CLASS = Channel

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the library's signature
        """Connect to the broker."""
        self.transport = await Transport.connect(
            self.url, self._on_connection_close, timeout=timeout, **self.kwargs
        )
        await self._on_connected()


@asynccontextmanager
async def connect(
    settings: BrokerSettings, name: str, last: str = ""
) -> AsyncIterator[AbstractConnection]:
    """Connect to the first broker that answers; try each URL once.

    The connection is not a robust one: when it is lost, each call on it raises an error, and the
    caller connects again.

    Args:
        settings: the brokers' URLs.
        name: the connection's name, for the broker's list.
        last: the address of a broker that failed, and is tried after the others. A node that is
            partitioned from its cluster can accept connections and answer nothing.

    Raises:
        LoginRefused: a broker refused the login, and none accepted it.
        Unreachable: no broker answered.
    """
    failures: list[Unreachable] = []
    for text in sorted(settings.amqp_url, key=lambda text: _address(URL(text)) == last):
        url = URL(text)
        if "heartbeat" not in url.query:
            url = url.update_query(heartbeat=10)
        if external := tls.is_external(url, has_certificate=settings.tls_cert is not None):
            url = url.update_query(auth="external")
        connection = OurConnection(
            url,
            ssl_context=_ssl_context(url, settings),
            client_properties={"connection_name": name},
        )
        try:
            try:
                with map_errors(_who(url)):
                    async with timeout(CALL_LIMIT):
                        await _open(connection, url, settings, external=external)
            except Unreachable as failure:
                failures.append(failure)
                continue
            yield connection
        finally:
            await _close(connection)
        return
    is_refused = any(isinstance(failure, LoginRefused) for failure in failures)
    kind = LoginRefused if is_refused else Unreachable
    raise kind("; ".join(map(str, failures)))


def _ssl_context(url: URL, settings: BrokerSettings) -> ssl.SSLContext | None:
    """Return the TLS context; the files are read each time, as certificates are renewed."""
    if url.scheme != "amqps":
        return None
    try:
        return tls.context(settings.tls_ca, settings.tls_cert, settings.tls_key)
    except ValueError as error:
        field, _, text = str(error).partition(":")
        raise Unreachable(f"PCM_{field.upper()}:{text}") from None


async def _open(
    connection: AbstractConnection, url: URL, settings: BrokerSettings, *, external: bool
) -> None:
    try:
        await connection.connect()
    except (*CONNECTION_EXCEPTIONS, AuthenticationError) as error:
        if why := refusal_reason(error, url, external=external):
            raise LoginRefused(f"{_who(url)}: {why}") from error
        has_certificate = settings.tls_cert is not None
        if why := failure_reason(error, url, has_certificate=has_certificate):
            raise Unreachable(f"{_who(url)}: {why}") from error
        raise


def _who(url: URL) -> str:
    """Return the broker's address and the login, for messages."""
    return f"{_address(url)} as {url.user or 'guest'}"


def address_of(connection: AbstractConnection) -> str:
    """Return the address of a connection's broker."""
    return _address(connection.url)  # type: ignore[attr-defined]


def _address(url: URL) -> str:
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"


async def _close(connection: AbstractConnection) -> None:
    try:
        async with timeout(2):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError):
        # The connection is lost. Close it again, for the library: else it starts a close when the
        # object is deleted, and Python warns of a coroutine that is not awaited.
        await connection.close()


async def raise_when_lost(connection: AbstractConnection) -> None:
    """Wait until a connection is lost.

    Raises:
        Unreachable: it was lost.
    """
    await connection.closed()
    raise Unreachable("the connection was lost")


def local_address_of(connection: AbstractConnection) -> str:
    """Return this machine's address on a connection; an empty text if it is lost."""
    transport: Any = connection.transport
    return transport.connection.local_address if transport else ""


def heartbeat_of(connection: AbstractConnection) -> float:
    """Return the seconds between two heartbeats, as agreed with the broker; 0: there are none."""
    tune: Any = underlay(connection).connection.connection_tune
    return float(tune.heartbeat)


async def blocked(connection: AbstractConnection) -> bool:
    """Whether the broker has blocked the connection (`connection.blocked`)."""
    try:
        async with timeout(0):
            await underlay(connection).ready()
    except TimeoutError:
        return True
    return False


def underlay(connection: AbstractConnection) -> UnderlayConnection:
    """Return the transport of a connection.

    Raises:
        Unreachable: the connection was lost.
    """
    transport = connection.transport
    if transport is None:
        raise Unreachable("the connection was lost")
    return transport
