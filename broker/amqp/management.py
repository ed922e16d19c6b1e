"""RabbitMQ's management API: what cannot be asked by AMQP, such as users and their permissions."""

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

_LIMIT = 30.0  # seconds between two signs of life
_WRONG_LOGIN = {"Not_Authorized", "Login failed"}  # else a right one may not do it


class Management:
    """Speaks to the management API, as one login. It blocks, 30 s at most without an answer.

    Names are given as they are: they are quoted here. Each call may raise:
        Unreachable: there is no answer, or none of the management API's.
        LoginRefused: the login is wrong.
        Refused: the login may not do that, or the broker does not take it.
    """

    def __init__(
        self, url: str, user: str, password: str, verified: ssl.SSLContext | None = None
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: such as https://HOST:15671; a login in it does not count.
            user: the login's name.
            password: its password; it is shown nowhere.
            verified: how its certificate is; default: by the system's authorities.
        """
        self._verified = verified
        self._url = URL(url)
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        self._as = f"{self._url.host}:{self._url.port} as {user}"

    @classmethod
    def of(cls, settings: ManagementSettings) -> Self:
        """Return the one that settings lead to: by default, the first broker's own."""
        broker = URL(settings.amqp_url[0])
        if not settings.management_url:
            secure = broker.scheme == "amqps"
            scheme, port = ("https", 15671) if secure else ("http", 15672)
            url = URL.build(scheme=scheme, host=broker.host or "", port=port)
        else:
            url = URL(settings.management_url)
        # Not one's name with another's password.
        login = url if url.user else broker
        user, password = login.user or "guest", login.password or ""
        if not login.user:
            password = "guest"  # noqa: S105 - RabbitMQ's own default, on loopback only
        verified = None
        if url.scheme == "https":
            verified = tls.context(settings.tls_ca, settings.tls_cert, settings.tls_key)
        return cls(str(url.with_user(None)), user, password, verified)

    def get(self, *path: str, **query: str | int) -> Any:
        """Return what is there; None if nothing is."""
        return self._ask("GET", path, query)

    def put(self, *path: str, body: object) -> None:
        """Make something, or change it."""
        self._ask("PUT", path, body=body)

    def post(self, *path: str, body: object) -> Any:
        """Have something done; return the answer."""
        return self._ask("POST", path, body=body)

    def delete(self, *path: str) -> bool:
        """Delete something; return whether it was there."""
        return self._ask("DELETE", path) is not None

    def _ask(
        self,
        method: str,
        path: tuple[str, ...],
        query: dict[str, str | int] | None = None,
        body: object = None,
    ) -> Any:
        """Return the answer, an empty dictionary where it has no text; None where nothing is."""
        target = "/".join(
            ["", *self._url.raw_parts[1:], "api", *(quote(part, "") for part in path)]
        )
        target = target.replace("//", "/") + (f"?{urlencode(query)}" if query else "")
        doing = f"{method} /api/{'/'.join(path)} at {self._as}"
        text = None if body is None else json.dumps(body)
        connection = self._connection()
        try:
            connection.request(method, target, text, self._headers)
            answer = connection.getresponse()
            found = answer.read()
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"{doing}: its certificate: {error.verify_message}") from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            raise Unreachable(f"{doing}: TLS: {reason}") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise Unreachable(f"{doing}: {why}; PCM_MANAGEMENT_URL says where") from error
        except HTTPException as error:
            raise Unreachable(f"{doing}: no management API is there") from error
        finally:
            connection.close()
        return _read(doing, method, answer.status, found)

    def _connection(self) -> HTTPConnection:
        host, port = self._url.host or "", self._url.port
        if self._url.scheme == "https":
            verified = self._verified or ssl.create_default_context()
            return HTTPSConnection(host, port, timeout=_LIMIT, context=verified)
        return HTTPConnection(host, port, timeout=_LIMIT)


def _read(doing: str, method: str, status: int, text: bytes) -> Any:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise Unreachable(f"{doing}: no management API is there") from error
    told = found if isinstance(found, dict) else {}
    reason = told.get("reason") or told.get("error") or f"HTTP status {status}"
    if status == HTTPStatus.UNAUTHORIZED and reason in _WRONG_LOGIN:
        raise LoginRefused(f"{doing}: the broker refused the login")
    if status == HTTPStatus.NOT_FOUND and method in {"GET", "DELETE"}:
        return None
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unreachable(f"{doing}: {reason}")
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise Refused(f"{doing}: {reason}")
    return found
