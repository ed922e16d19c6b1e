"""The distribution points of an agent: the setting, and the points for this workstation in order.

This module is loaded with the settings, so it loads nothing else.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BeforeValidator

from schemas.names import check_name

_FOR_GROUP = re.compile(r"([A-Za-z0-9_-]{1,63})=(.+)")
_LAST_PORT = 65535
_SCHEMES = ("https", "http", "file")
_EXAMPLE = "use https://HOST/PATH, http://HOST/PATH or a folder; GROUP=https://... for a group"


@dataclass(frozen=True)
class AgentPoint:
    """A distribution point.

    Attributes:
        scheme: https, http or file.
        host: the server's name or address.
        port: the server's port.
        path: the folder, without a slash at its end; of a URL, as it stands in requests.
        login: user and password, if the URL has them.
        group: only workstations in this group use the point, before the others.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    login: tuple[str, str] | None = None
    group: str = ""

    def __str__(self) -> str:
        """Return the point's URL without its password."""
        if self.scheme == "file":
            return f"file://{self.path}"
        default = 443 if self.scheme == "https" else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == default else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    def __repr__(self) -> str:
        return f"AgentPoint({self})"


def parse_point(text: str) -> AgentPoint:
    """Return the point of a text such as `https://HOST/PATH` or `GROUP=https://HOST/PATH`.

    Raises:
        ValueError: it is none; the text does not repeat a password.
    """
    group = ""
    if match := _FOR_GROUP.fullmatch(text):
        group, text = check_name(match[1]), match[2]
    if text.startswith("/"):
        text = f"file://{quote(text)}"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError(f"a point is not a URL: {_EXAMPLE}") from None
    scheme, host = url.scheme.lower(), url.hostname or ""
    if scheme not in _SCHEMES:
        raise ValueError(f"{scheme or text.partition('@')[2] or text!r} is no point: {_EXAMPLE}")
    if url.query or url.fragment or (scheme == "file") == bool(host):
        raise ValueError(f"a {scheme} point has a host or a part that does not fit: {_EXAMPLE}")
    path = url.path.rstrip("/")
    if scheme == "file":
        return AgentPoint("file", path=str(Path(unquote(path) or "/")), group=group)
    login = (unquote(url.username), unquote(url.password or "")) if url.username else None
    path = quote(path, safe="/%:@!$&'()*+,;=~")
    return AgentPoint(scheme, host, port or (443 if scheme == "https" else 80), path, login, group)


def _parse_points(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(map(parse_point, value.replace(",", " ").split())))


PointsSetting = Annotated[tuple[AgentPoint, ...], BeforeValidator(_parse_points)]
"""The type of a setting with points."""


def _parse_address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value:
        return None
    host, colon, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and 0 <= int(port) <= _LAST_PORT):
        raise ValueError(f"{value[:80]!r} is not HOST:PORT, such as 0.0.0.0:8642")
    return host, int(port)


AddressSetting = Annotated[tuple[str, int] | None, BeforeValidator(_parse_address)]
"""The type of a setting with an address to listen at."""


def points_for(points: Collection[AgentPoint], groups: Collection[str]) -> list[AgentPoint]:
    """Return the points for a workstation in these groups: the groups' own first."""
    near = [point for point in points if point.group and point.group in groups]
    return near + [point for point in points if not point.group]
