"""A proxy to the broker that counts bytes and notices the first consumer."""

import socket
import threading
from contextlib import suppress
from typing import Self

_CHUNK = 65536
_CONSUME_OK = b"\x00\x3c\x00\x15"  # the method's class and number


class Tap:
    """Forwards a new port to the broker's."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"amqp://guest:guest@127.0.0.1:{self._listener.getsockname()[1]}/"
        self.up = 0
        """Bytes sent to the broker."""
        self.down = 0
        """Bytes received from the broker."""
        self.consuming = threading.Event()
        """Whether the broker has confirmed a consumer."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._send_up, args=(near, far), daemon=True).start()
                threading.Thread(target=self._send_down, args=(far, near), daemon=True).start()

    def _send_up(self, near: socket.socket, far: socket.socket) -> None:
        with near, suppress(OSError):
            while data := near.recv(_CHUNK):
                self.up += len(data)
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _send_down(self, far: socket.socket, near: socket.socket) -> None:
        last = b""
        with far, suppress(OSError):
            while data := far.recv(_CHUNK):
                self.down += len(data)
                if _CONSUME_OK in last + data:
                    self.consuming.set()
                last = data[-3:]
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)
