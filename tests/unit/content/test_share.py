"""A service agent serves its cache to neighbours: archives by their sums, and nothing else."""

import asyncio
from pathlib import Path

from agents.content.share import Sharing
from tests.support.points import PointFolder, noise
from tests.unit.content.test_fetcher import fetching


async def _ask(port: int, request: str) -> bytes:
    for _ in range(100):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer
    raise AssertionError("it does not listen")


async def test_a_neighbour_gets_archives_and_nothing_else(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    point = PointFolder(tmp_path / "point")
    demo = point.publish({"data": noise(300_000)})
    sha256 = demo.manifest.archive.sha256
    (tmp_path / "near").mkdir()
    async with fetching(tmp_path, point.folder) as one:
        await one.until_ready(one.want(demo))
        sharing = asyncio.ensure_future(
            Sharing(("127.0.0.1", unused_tcp_port), one.settings.state_dir).run()
        )
        path = f"/sha256/{sha256[:2]}/{sha256[2:]}"
        whole = await _ask(unused_tcp_port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert whole.endswith(demo.archive.read_bytes())
        head = "HTTP/1.1\r\nHost: x\r\nRange: bytes=299990-\r\n\r\n"
        part = await _ask(unused_tcp_port, f"GET {path} {head}")
        assert part.startswith(b"HTTP/1.1 206")
        assert part.endswith(demo.archive.read_bytes()[299_990:])
        for wrong in (
            f"GET /packages/demo/1.0.manifest {head}",
            f"GET /sha256/{sha256[:2]}/../{sha256[2:]} {head}",
            f"PUT {path} {head}",
            f"GET /sha256/00/{'0' * 62} {head}",
            "\r\n\r\n",
        ):
            assert (await _ask(unused_tcp_port, wrong)).startswith(b"HTTP/1.1 404")
        demo.archive.unlink()  # the point has the manifest only
        neighbour = f"http://127.0.0.1:{unused_tcp_port}"
        async with fetching(tmp_path / "near", neighbour, point.folder) as other:
            await other.until_ready(other.want(demo))
        sharing.cancel()
        await asyncio.gather(sharing, return_exceptions=True)
