"""RabbitMQ's management API, for what AMQP cannot do: users, permissions, policies."""

import base64
import json
import ssl
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Self
from urllib.parse import quote, urlencode

from yarl import URL

from broker import tls
from broker.amqp.connection import LoginRefused, Refused, Unreachable
from broker.settings import ManagementSettings

_LIMIT = 30.0  # seconds, of each socket operation
_WRONG_LOGIN = {"Not_Authorized", "Login failed"}  # else the login is right, and lacks a permission


class Management:
    """A blocking client of the management API, with one login and a time limit of 30 s.

    Names are quoted here. Each call can raise:
        Unreachable: there is no answer, or not from a management API.
        LoginRefused: the login is wrong.
        Refused: the login has no permission, or the request is invalid.
    """

    def __init__(
        self, url: str, user: str, password: str, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        """Prepare the client, without a request.

        Args:
            url: such as https://HOST:15671; a login in it is ignored.
            user: the login's name.
            password: its password; never shown.
            ssl_context: verifies the certificate; default: by the system's authorities.
        """
        self._ssl_context = ssl_context
        self._url = URL(url)
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        self._address = f"{self._url.host}:{self._url.port} as {user}"

    @classmethod
    def of(cls, settings: ManagementSettings) -> Self:
        """Return the client for the settings; default: the API of the first broker."""
        broker = URL(settings.amqp_url[0])
        if not settings.management_url:
            secure = broker.scheme == "amqps"
            scheme, port = ("https", 15671) if secure else ("http", 15672)
            url = URL.build(scheme=scheme, host=broker.host or "", port=port)
        else:
            url = URL(settings.management_url)
        # The user and the password of the same URL.
        login = url if url.user else broker
        user, password = login.user or "guest", login.password or ""
        if not login.user:
            password = "guest"  # noqa: S105 - RabbitMQ's own default, on loopback only
        ssl_context = None
        if url.scheme == "https":
            ssl_context = tls.context(settings.tls_ca, settings.tls_cert, settings.tls_key)
        return cls(str(url.with_user(None)), user, password, ssl_context)

    def get(self, *path: str, **query: str | int) -> Any:
        """Return a resource; None if it does not exist."""
        return self._request("GET", path, query)

    def put(self, *path: str, body: object) -> None:
        """Create or replace a resource."""
        self._request("PUT", path, body=body)

    def post(self, *path: str, body: object) -> Any:
        """Send a command; return the answer."""
        return self._request("POST", path, body=body)

    def delete(self, *path: str) -> bool:
        """Delete a resource; return whether it existed."""
        return self._request("DELETE", path) is not None

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, str | int] | None = None,
        body: object = None,
    ) -> Any:
        """Return the answer, {} if it has no body; None if the resource does not exist."""
        target = "/".join(
            ["", *self._url.raw_parts[1:], "api", *(quote(part, "") for part in path)]
        )
        target = target.replace("//", "/") + (f"?{urlencode(query)}" if query else "")
        doing = f"{method} /api/{'/'.join(path)} at {self._address}"
        text = None if body is None else json.dumps(body)
        connection = self._connection()
        try:
            connection.request(method, target, text, self._headers)
            response = connection.getresponse()
            content = response.read()
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"{doing}: its certificate: {error.verify_message}") from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            raise Unreachable(f"{doing}: TLS: {reason}") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise Unreachable(f"{doing}: {why}; check PCM_MANAGEMENT_URL") from error
        except HTTPException as error:
            raise Unreachable(f"{doing}: there is no management API") from error
        finally:
            connection.close()
        return _parse(doing, method, response.status, content)

    def _connection(self) -> HTTPConnection:
        host, port = self._url.host or "", self._url.port
        if self._url.scheme == "https":
            context = self._ssl_context or ssl.create_default_context()
            return HTTPSConnection(host, port, timeout=_LIMIT, context=context)
        return HTTPConnection(host, port, timeout=_LIMIT)


def _parse(doing: str, method: str, status: int, text: bytes) -> Any:
    try:
        content = json.loads(text) if text else {}
    except ValueError as error:
        raise Unreachable(f"{doing}: there is no management API") from error
    problem = content if isinstance(content, dict) else {}
    reason = problem.get("reason") or problem.get("error") or f"HTTP status {status}"
    if status == HTTPStatus.UNAUTHORIZED and reason in _WRONG_LOGIN:
        raise LoginRefused(f"{doing}: the broker refused the login")
    if status == HTTPStatus.NOT_FOUND and method in {"GET", "DELETE"}:
        return None
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unreachable(f"{doing}: {reason}")
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise Refused(f"{doing}: {reason}")
    return content
