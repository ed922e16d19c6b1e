"""The address at which the window is served to browsers."""

import ipaddress
from dataclasses import dataclass

_MAX_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Return whether only this machine's users can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Parse HOST:PORT; an IPv6 address is in brackets.

    Raises:
        ValueError: the text is not HOST:PORT.
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    valid = bare and (":" not in bare or bare != host) and bare.isascii() and bare.isprintable()
    if not (valid and " " not in bare and port.isascii() and port.isdecimal()):
        raise ValueError(f"{text!r} must be HOST:PORT, such as localhost:8000")
    if int(port) > _MAX_PORT:
        raise ValueError(f"{text!r}: the port must be at most {_MAX_PORT}")
    return Address(bare, int(port))
