"""A way to the broker that does on demand what a network does unasked."""

import selectors
import socket
import struct
import sys
import termios
import threading
import time
from fcntl import ioctl
from typing import Self

from yarl import URL

_LOOK_EVERY = 0.02
_CHUNK = 65536
_SEND_LIMIT = 10.0
_HALF_FRAME_READ = 0.02
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards a port of its own to another one on this machine; can stall and cut connections."""

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """How many connections were made."""
        self.cuts = 0
        """How often `cut_after` came to its end."""
        self._frozen = False
        self._is_still = threading.Event()
        self._far: set[socket.socket] = set()
        self._holds_answers = False
        self._left: int | None = None
        self._ended = False
        self._peers: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset all connections, and listen no more."""
        self._ended = True
        self._thread.join()
        self._reset_all()
        self._selector.close()
        self._listener.close()

    def url(self, user: str = "guest", password: str = "guest", **query: object) -> str:
        """Return the broker's URL by this way."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/" + (f"?{words}" if words else "")

    def by(self, url: str) -> str:
        """Return a broker's URL, led by this way."""
        return str(URL(url).with_host("127.0.0.1").with_port(self.port))

    @property
    def cutting(self) -> bool:
        """Whether a cut is still to come."""
        return self._left is not None

    def cut_after(self, count: int | None) -> None:
        """Reset all connections in the middle of a frame, once so many more bytes went through.

        None: not at all.
        """
        self._left = count

    def freeze(self) -> None:
        """Forward nothing more, and close nothing; new connections are made, and get no answer."""
        self._is_still.clear()
        self._frozen = True
        self._is_still.wait(_SEND_LIMIT)

    def thaw(self) -> None:
        """Forward again."""
        self._frozen = self._holds_answers = False

    def hold_answers(self) -> None:
        """Forward what goes to the broker, and nothing that comes from it, until `thaw`."""
        self._holds_answers = True

    def held(self) -> int:
        """Return how many bytes have come that are not forwarded."""
        found = 0
        for source in list(self._peers):
            found += int.from_bytes(ioctl(source, termios.FIONREAD, bytes(4)), sys.byteorder)
        return found

    def _run(self) -> None:
        while not self._ended:
            if self._frozen:
                self._is_still.set()
                time.sleep(_LOOK_EVERY)
                continue
            for key, _ in self._selector.select(_LOOK_EVERY):
                if key.fileobj is self._listener:
                    self._accept()
                elif self._holds_answers and key.fileobj in self._far:
                    time.sleep(_LOOK_EVERY)
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._peers:
                    self._forward(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        self.accepted += 1
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=_SEND_LIMIT)
        except OSError:
            near.close()
            return
        near.settimeout(_SEND_LIMIT)
        self._far.add(far)
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK)
            if not data:
                self._part(source, reset=False)
            elif (left := self._left) is None or len(data) < left:
                self._peers[source].sendall(data)
                if left is not None:
                    self._left = left - len(data)
            else:
                # What is written at once ends with a frame: without its end it is half of one.
                self._peers[source].sendall(data[: min(left, len(data) - 1)])
                time.sleep(_HALF_FRAME_READ)
                self._left = None
                self._reset_all()
                self.cuts += 1
        except OSError:
            self._part(source, reset=True)

    def _reset_all(self) -> None:
        for source in list(self._peers):
            self._part(source, reset=True)

    def _part(self, source: socket.socket, *, reset: bool) -> None:
        other = self._peers.get(source)
        for end in (source, other):
            if end is not None and self._peers.pop(end, None) is not None:
                self._selector.unregister(end)
                self._far.discard(end)
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                end.close()
