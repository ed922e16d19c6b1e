"""How the broker is reached, and what can go wrong on the way, in our own words."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aio_pika
from aio_pika.abc import AbstractConnection, UnderlayConnection
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ConnectionClosed,
    DeliveryError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ConnectionNotAllowed
from yarl import URL

from broker import tls
from broker.amqp.frame_reader import Transport
from broker.amqp.timeouts import timeout
from broker.settings import BrokerSettings
from schemas.errors import PcmError

CALL_LIMIT = 10.0
"""Seconds that one call to the broker may take: where it is stuck, the library waits for ever."""


class BrokerError(PcmError):
    """The broker could not do what it was asked."""


class Unreachable(BrokerError):
    """The broker is out of reach."""


class Blocked(Unreachable):
    """The broker is there, but takes no messages: its disk or memory is low."""


class LoginRefused(Unreachable):
    """The broker refused the login."""


class Refused(BrokerError):
    """The broker refused what was asked, by permission or because it is set up otherwise."""


class Unroutable(BrokerError):
    """A message reached no queue."""


class Backoff:
    """Pauses between attempts: random, and up to twice as long after each failure.

    Attributes:
        failures: how many attempts failed in a row.
    """

    def __init__(self, longest: float = 60.0) -> None:
        self.failures = 0
        self._longest = longest

    def reset(self, failures: int = 0) -> None:
        """Note a success; not more than so many failures before it still count."""
        self.failures = min(self.failures, failures)

    def failed(self) -> float:
        """Note a failure; return the seconds to wait before the next attempt."""
        most = min(self._longest, 0.5 * 2 ** min(self.failures, 10))
        self.failures += 1
        return random.uniform(0, most)  # noqa: S311 - no secret


@contextmanager
def translated(doing: str, *, external: bool = False) -> Iterator[None]:
    """Raise the library's errors as ours.

    Args:
        doing: what was asked, for the message.
        external: whether a login is by certificate.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        # The library cancels what waits on a stuck connection that it drops.
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise Unreachable(f"{doing}: the connection was lost") from error
    except (ProbableAuthenticationError, AuthenticationError, ConnectionNotAllowed) as error:
        raise LoginRefused(f"{doing}: the broker {_refusal(error, external=external)}") from error
    except ChannelNotFoundEntity as error:
        # A queue whose node just starts; or it was deleted, and connecting makes it again.
        raise Unreachable(f"{doing}: {_text(error)}") from error
    except ChannelClosed as error:
        raise Refused(f"{doing}: {_text(error)}") from error
    except DeliveryError as error:
        raise Unreachable(f"{doing}: the broker did not take the message") from error
    except Exception as error:
        # One of no kind: so the library may end what waits on a connection that we close.
        if type(error) is not Exception and not isinstance(error, CONNECTION_EXCEPTIONS):
            raise
        raise Unreachable(f"{doing}: {_text(error)}") from error


def _refusal(error: BaseException, *, external: bool) -> str:
    if isinstance(error, AuthenticationError):
        if external:
            return (
                "takes no login by certificate: enable its plugin rabbitmq_auth_mechanism_ssl, and"
                " list EXTERNAL in auth_mechanisms; or write a password in PCM_AMQP_URL"
            )
        return "takes no login by password: it has no PLAIN in auth_mechanisms"
    if external:
        return "refused the login by certificate: it has no user that PCM_TLS_CERT names"
    return "refused the login"


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
    """The library's connection, over a transport of ours."""

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - theirs
        """Connect to the broker."""
        self.transport = await Transport.connect(
            self.url, self._on_connection_close, timeout=timeout, **self.kwargs
        )
        await self._on_connected()


@asynccontextmanager
async def connect(
    settings: BrokerSettings, name: str, last: str = ""
) -> AsyncIterator[AbstractConnection]:
    """Connect to the first broker that answers, each URL tried once in turn.

    The connection is a plain one: when it is lost, everything on it ends with an error, and
    whoever holds it connects again.

    Args:
        settings: say where the brokers are.
        name: is shown in the broker's list of connections.
        last: the address of a broker that is tried after the others, since it failed. A node that
            is cut off from its cluster may take connections and answer nothing on them.

    Raises:
        LoginRefused: the last one that answered refused the login.
        Unreachable: none answered.
    """
    failures: list[Unreachable] = []
    for text in sorted(settings.amqp_url, key=lambda text: _address(URL(text)) == last):
        url = URL(text)
        if "heartbeat" not in url.query:
            url = url.update_query(heartbeat=10)
        if external := tls.is_external(url, has_certificate=settings.tls_cert is not None):
            url = url.update_query(auth="external")
        connection = OurConnection(
            url, ssl_context=_context(url, settings), client_properties={"connection_name": name}
        )
        try:
            try:
                with translated(f"{_address(url)} as {url.user or 'guest'}", external=external):
                    async with timeout(CALL_LIMIT):
                        await _open(connection, url, settings)
            except Unreachable as failure:
                failures.append(failure)
                continue
            yield connection
        finally:
            await _close(connection)
        return
    refused = [failure for failure in failures if isinstance(failure, LoginRefused)]
    kind = LoginRefused if refused else Unreachable
    raise kind("; ".join(map(str, failures)))


def _context(url: URL, settings: BrokerSettings) -> ssl.SSLContext | None:
    """Return how TLS is spoken, with the files as they are now: certificates are renewed."""
    if url.scheme != "amqps":
        return None
    try:
        return tls.context(settings.tls_ca, settings.tls_cert, settings.tls_key)
    except ValueError as error:
        field, _, text = str(error).partition(":")
        raise Unreachable(f"PCM_{field.upper()}:{text}") from None


async def _open(connection: AbstractConnection, url: URL, settings: BrokerSettings) -> None:
    try:
        await connection.connect()
    except (*CONNECTION_EXCEPTIONS, AuthenticationError) as error:
        has_certificate = settings.tls_cert is not None
        if why := tls.trouble(error, url, has_certificate=has_certificate):
            raise Unreachable(f"{_address(url)}: {why}") from error
        raise


def where(connection: AbstractConnection) -> str:
    """Return the address of the broker that a connection leads to."""
    return _address(connection.url)  # type: ignore[attr-defined]


def _address(url: URL) -> str:
    return f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"


async def _close(connection: AbstractConnection) -> None:
    try:
        async with timeout(2):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError):
        # It is gone, which is what was wanted. Said once more, for the library: where it knows
        # of no end, it begins one when the object is deleted, and warns that nobody waits.
        await connection.close()


async def blocked(connection: AbstractConnection) -> bool:
    """Whether the broker said that it takes no messages now."""
    try:
        async with timeout(0):
            await underlay(connection).ready()
    except TimeoutError:
        return True
    return False


def underlay(connection: AbstractConnection) -> UnderlayConnection:
    """Return the layer beneath a connection.

    Raises:
        Unreachable: the connection was lost.
    """
    transport = connection.transport
    if transport is None:
        raise Unreachable("the connection was lost")
    return transport
