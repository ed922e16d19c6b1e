"""A real nginx serves packages: throttled, and ended in the middle of a download."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.nginx import needs_nginx, nginx
from tests.support.points import PointFolder, noise
from tests.unit.content.test_fetcher import fetching

pytestmark = [needs_nginx, pytest.mark.full]


async def test_a_download_goes_on_at_another_server_where_one_ended(tmp_path: Path) -> None:
    point = PointFolder(tmp_path / "point")
    demo = point.publish({"data": noise(3_000_000)})
    with ExitStack() as first, nginx(tmp_path / "second", point.folder) as second_url:
        slow = "limit_rate 500k;"
        first_url = first.enter_context(nginx(tmp_path / "first", point.folder, slow))
        async with fetching(tmp_path, first_url, second_url) as one:
            job = one.want(demo)
            await one.until(lambda: any(path.stat().st_size for path in one.kept(".part")))
            first.close()
            await one.until_ready(job)
        log = (tmp_path / "second" / "access.log").read_text()
        (line,) = [line for line in log.splitlines() if "/sha256/" in line]
        assert " 206 " in line
    (archive,) = one.kept(".archive")
    assert archive.read_bytes() == demo.archive.read_bytes()
