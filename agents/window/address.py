"""Where the window is served to browsers."""

import ipaddress
from dataclasses import dataclass

_MOST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine's users can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read(text: str) -> Address:
    """Read HOST:PORT; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is something else.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    whole = bare and (":" not in bare or bare != host) and bare.isascii() and bare.isprintable()
    if not (whole and " " not in bare and port.isascii() and port.isdecimal()):
        raise ValueError(f"{text!r} is no HOST:PORT: write such as localhost:8000")
    if int(port) > _MOST_PORT:
        raise ValueError(f"{text!r}: a port is a number up to {_MOST_PORT}")
    return Address(bare, int(port))
