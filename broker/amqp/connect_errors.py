"""Explain why a connection to the broker cannot be opened, and name the setting to change."""

import errno
import socket

from aio_pika.exceptions import AuthenticationError, ProbableAuthenticationError
from aiormq.exceptions import ConnectionNotAllowed
from yarl import URL

from broker import tls

_SETTING = "PCM_AMQP_URL says where it is"


def refusal_reason(error: BaseException, url: URL, *, external: bool) -> str:
    """Explain an error by which the broker refuses the login or its virtual host; else empty."""
    if isinstance(error, ConnectionNotAllowed):
        return _virtual_host_reason(str(error.args[-1]), url)
    if isinstance(error, ProbableAuthenticationError):
        if external:
            return (
                "the broker refused the login by certificate: it has no user of the name in"
                " PCM_TLS_CERT"
            )
        return "the broker refused the login: check the user and the password in PCM_AMQP_URL"
    if isinstance(error, AuthenticationError):
        if external:
            return (
                "the broker supports no login by certificate: enable the plugin"
                " rabbitmq_auth_mechanism_ssl, and list EXTERNAL in auth_mechanisms; or write a"
                " password in PCM_AMQP_URL"
            )
        return "the broker supports no login by password: its auth_mechanisms have no PLAIN"
    return ""


def _virtual_host_reason(text: str, url: URL) -> str:
    user, name = url.user or "guest", url.path.removeprefix("/") or "/"
    where = f"the broker refused the virtual host {name!r}"
    if "not found" in text:
        return (
            f"{where}: it has none of this name, in which upper and lower case differ; it stands"
            " after the host in PCM_AMQP_URL"
        )
    if text.endswith(f"refused for user '{user}'"):
        return (
            f"{where}: the user {user} has no permission there (rabbitmqctl set_permissions -p"
            f" {name} {user} ...); it stands after the host in PCM_AMQP_URL"
        )
    return f"{where}: {text.removeprefix('NOT_ALLOWED - ')}"


def failure_reason(error: BaseException, url: URL, *, has_certificate: bool) -> str:
    """Explain why the broker did not answer, or not by AMQP; empty if that is not known."""
    if why := tls.explain_failure(error, url, has_certificate=has_certificate):
        return why
    text = str(error)
    if isinstance(error, socket.gaierror) or isinstance(error.__cause__, socket.gaierror):
        return f"the name of the host is not known; {_SETTING}"
    if _has_number(error, errno.ECONNREFUSED) or "[Errno 111]" in text:
        return f"connection refused: no broker listens there; {_SETTING}"
    if any(_has_number(error, number) for number in (errno.EHOSTUNREACH, errno.ENETUNREACH)):
        return f"no route to the host; {_SETTING}"
    if isinstance(error, TimeoutError):
        return f"no answer; {_SETTING}"
    return ""


def _has_number(error: BaseException, number: int) -> bool:
    return isinstance(error, OSError) and error.errno == number
