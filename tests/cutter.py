"""A way to the broker that breaks: connections are cut after so many bytes, amid a frame."""

import asyncio
import random

_CHUNK = 65536


class Cutter:
    """Passes connections on to an address; while `cutting`, most of them end too early."""

    def __init__(self, host: str, port: int, drawn: random.Random) -> None:
        self._address = (host, port)
        self._drawn = drawn
        self._server: asyncio.Server | None = None
        self._left: dict[int, int] = {}
        self.cutting = True
        self.cuts = 0

    async def start(self) -> int:
        """Listen on a port of its own on loopback, and return it."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = id(writer)
        # The login alone takes some 1,500 bytes.
        self._left[number] = int(10 ** self._drawn.uniform(3, 5.5))
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._address)
            writers.append(far_writer)
            pumps = [
                asyncio.create_task(self._pump(number, reader, far_writer)),
                asyncio.create_task(self._pump(number, far_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the broker is not there: neither is this way to it
        finally:
            del self._left[number]
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_CHUNK):
            left = self._left[number]
            self._left[number] -= len(data)
            if self.cutting and left < len(data):
                writer.write(data[: max(left, 0)])
                self.cuts += 1
                return
            writer.write(data)
            await writer.drain()
