"""Fetching from servers that work, and from servers that do not: real sockets, a real disk."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from agents.content.cache import Cache
from agents.content.fetcher import Fetcher, spread
from agents.settings import AgentSettings
from agents.store.state_folder import CONTENT, PACKAGES, content_directories
from agents.store.transaction import JobRecord
from agents.tasks import BackgroundTasks
from schemas import Command, Job, everyone
from schemas.orders.package import PackageReference
from tests.support.points import Asked, PointFolder, Published, noise, serving
from tests.support.waiting import LIMIT

SIZE = 300_000


class Fetching:
    """A fetcher, its cache, and what it says."""

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        state_dir.mkdir(exist_ok=True)
        content_directories(state_dir)
        self.folder = state_dir / CONTENT / PACKAGES
        self.settings = AgentSettings(state_dir=state_dir, workstation="ws", **settings)
        self.tasks = BackgroundTasks()
        self.objection = ""
        self.cache = Cache(state_dir, self.settings.cache_size)
        self.ready: set[str] = set()
        self._changed = asyncio.Event()
        self.fetcher = Fetcher(
            self.settings,
            self.cache,
            lambda _: self.objection,
            self.tasks,
            self.ready.update,
            self._changed.set,
        )

    def want(self, published: Published, **fields: Any) -> Job:
        package = PackageReference(**published.required.model_dump())
        job = Job(
            command=Command(argv=("true",), background=True),
            package=package,
            targets=(everyone,),
            **fields,
        )
        self.fetcher.want(JobRecord(job, time.time()))
        return job

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_ready(self, job: Job) -> None:
        await self.until(lambda: job.id in self.ready)
        assert self.fetcher.waits(job) == ""

    async def until_waits(self, job: Job, *words: str) -> str:
        await self.until(lambda: all(word in self.fetcher.waits(job) for word in words))
        return self.fetcher.waits(job)

    async def until_fetched(self, job: Job) -> None:
        await self.until(lambda: self.fetcher.waits(job) == "")

    def kept(self, suffix: str) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.suffix == suffix]


@asynccontextmanager
async def fetching(folder: Path, *points: object, **settings: Any) -> AsyncIterator[Fetching]:
    """Run a fetcher."""
    given = ",".join(map(str, points))
    one = Fetching(folder / "state", points=given, **settings)
    async with one.tasks.group as group:
        running = group.create_task(one.fetcher.run())
        try:
            yield one
        finally:
            running.cancel()
            one.tasks.cancel()


@pytest.fixture
def point(tmp_path: Path) -> PointFolder:
    return PointFolder(tmp_path / "point")


@pytest.fixture
def demo(point: PointFolder) -> Published:
    return point.publish({"data": noise(SIZE)})


async def test_fails_over_to_the_next_point(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    with_gap = tmp_path / "empty"
    closed = "http://127.0.0.1:9"
    async with (
        serving(point.folder) as server,
        fetching(tmp_path, closed, with_gap, server.url) as one,
    ):
        await one.until_ready(one.want(demo))
    assert len(server.archives()) == 1
    (archive,) = one.kept(".archive")
    assert archive.read_bytes() == demo.archive.read_bytes()
    assert archive.stat().st_mode & 0o777 == 0o644


async def test_a_point_for_a_group_comes_first(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    async with serving(point.folder) as far, serving(point.folder) as near:
        points = (far.url, f"berlin={near.url}", "paris=http://127.0.0.1:9")
        async with fetching(tmp_path, *points, groups=("berlin",)) as one:
            await one.until_ready(one.want(demo))
    assert (len(near.archives()), len(far.archives())) == (1, 0)


async def test_a_cut_download_is_resumed(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        is_first = asked.is_archive and len(server.archives()) == 1
        server.reply(asked, writer, cut=100_000 if is_first else None)

    async with serving(point.folder, answer) as server, fetching(tmp_path, server.url) as one:
        job = one.want(demo)
        await one.until_waits(job, "too early")
        await one.until_ready(job)
    first, second = server.archives()
    assert (first.offset, second.offset) == (0, 100_000)
    assert "if-range" in second.headers
    assert not one.kept(".part") + one.kept(".etag")


async def test_another_etag_begins_anew(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        number = len(server.archives())
        is_first = asked.is_archive and number == 1
        etag = {"ETag": f'"{number}"'}
        server.reply(asked, writer, cut=100_000 if is_first else None, headers=etag)

    async with serving(point.folder, answer) as server, fetching(tmp_path, server.url) as one:
        await one.until_ready(one.want(demo))
    assert [asked.offset for asked in server.archives()] == [0, 100_000]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"length": SIZE * 9}, "bytes for an archive of"),
    ({"length": 10}, "has 10 bytes for an archive of"),
    ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "a page in HTML"),
    ({"headers": {"Content-Encoding": "gzip"}}, "is encoded"),
    ({"status": "404 Not Found"}, "404"),
    ({"status": "302 Found", "headers": {"Location": "file:///etc/passwd"}}, "redirects to"),
    ({"status": "302 Found", "headers": {"Location": "http://127.0.0.2/x"}}, "redirects to"),
    ({"status": "302 Found", "headers": {"Location": "http://[x/"}}, "points"),
    ({"status": "307 Moved", "headers": {"Location": "?again"}}, "loop"),
    ({"status": "503 Busy", "headers": {"Retry-After": "99999999"}}, "wait for 86,400 s"),
    ({"status": "429 Slow down", "headers": {"Retry-After": "x"}}, "429"),
    ({"status": "abc"}, "does not speak HTTP"),
]


@pytest.mark.parametrize(("differences", "reason"), WRONG[:7] + WRONG[8:])
async def test_a_wrong_answer_is_never_taken(
    tmp_path: Path,
    point: PointFolder,
    demo: Published,
    differences: dict[str, Any],
    reason: str,
) -> None:
    """It is told, and the next point serves the archive."""

    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        server.reply(asked, writer, **(differences if "sha256" in asked.path else {}))

    async with serving(point.folder, answer) as server:
        async with fetching(tmp_path, server.url) as one:
            job = one.want(demo)
            await one.until_waits(job, reason)
            assert not one.kept(".archive")
        async with fetching(tmp_path, server.url, point.folder) as one:
            await one.until_ready(one.want(demo))


async def test_a_changed_archive_is_never_taken(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    data = bytearray(demo.archive.read_bytes())
    data[1000] ^= 1
    bad = PointFolder(tmp_path / "bad")
    for path in point.folder.rglob("*.manifest"):
        bad.write(str(path.relative_to(point.folder)), path.read_bytes())
    bad.write(str(demo.archive.relative_to(point.folder)), bytes(data))
    async with serving(bad.folder) as server, fetching(tmp_path, server.url) as one:
        await one.until_waits(one.want(demo), "SHA-256 of the archive is not the manifest's")
        assert not one.kept(".archive") + one.kept(".part")


async def test_what_a_bad_point_sent_does_not_spoil_what_a_good_one_sends(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    """The bad one is the first at each attempt: the others must make good for it at once."""

    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        server.reply(asked, writer, cut=0 if asked.is_archive else None)
        if asked.is_archive:
            writer.write(b"wrong")

    async with (
        serving(point.folder, answer) as server,
        fetching(tmp_path, server.url, point.folder) as one,
    ):
        await one.until_ready(one.want(demo))
    assert len(server.archives()) == 1


async def test_another_manifest_under_the_same_version_is_never_taken(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    point.publish({"data": b"other"})
    async with serving(point.folder) as server, fetching(tmp_path, server.url) as one:
        await one.until_waits(one.want(demo), "its SHA-256 is not the job's")
        assert not server.archives()


async def test_signatures_that_do_not_count_are_told(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    async with serving(point.folder) as server, fetching(tmp_path, server.url) as one:
        one.objection = "it is not signed"
        await one.until_waits(one.want(demo), "manifest: it is not signed")
        assert not server.archives()


async def test_retry_after_is_heeded(tmp_path: Path, point: PointFolder, demo: Published) -> None:
    times: list[float] = []

    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        busy: dict[str, Any] = {"status": "503 Busy", "headers": {"Retry-After": "7"}}
        server.reply(asked, writer, **(busy if len(times) == 1 else {}))

    async with serving(point.folder, answer) as server, fetching(tmp_path, server.url) as one:
        await one.until_ready(one.want(demo))
    assert times[1] - times[0] >= 7


@pytest.mark.full
@pytest.mark.parametrize("place", ["head", "body"])
async def test_a_server_that_trickles_is_left(
    tmp_path: Path, point: PointFolder, demo: Published, place: str
) -> None:
    """One byte at a time resets any limit of the socket; what counts is progress."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if not asked.is_archive:
            server.reply(asked, writer)
            return
        if place == "body":
            server.reply(asked, writer, cut=0)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)

    async with (
        serving(point.folder, answer) as server,
        fetching(tmp_path, server.url, point.folder) as one,
    ):
        await one.until_ready(one.want(demo))


async def test_tls_is_verified(tmp_path: Path, point: PointFolder, demo: Published) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted, untrusted = tmp_path / "trusted.pem", tmp_path / "untrusted.pem"
    authority.cert_pem.write_to_path(trusted)
    stranger.cert_pem.write_to_path(untrusted)
    async with serving(point.folder, tls=context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        for file, folder in ((untrusted, "one"), (trusted, "two")):
            (tmp_path / folder).mkdir()
            async with fetching(tmp_path / folder, url, points_ca=file) as one:
                job = one.want(demo)
                if file == untrusted:
                    await one.until_waits(job, "certificate is not trusted", "PCM_POINTS_CA")
                else:
                    await one.until_ready(job)


async def test_a_limit_of_the_rate_holds(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    began = time.monotonic()
    async with (
        serving(point.folder) as server,
        fetching(tmp_path, server.url, fetch_rate=SIZE // 2) as one,
    ):
        await one.until_ready(one.want(demo))
    assert time.monotonic() - began > 1


async def test_a_large_download_waits_for_its_window(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    day = time.strftime("%a", time.localtime(time.time() + 3 * 86400))
    settings = {"fetch_windows": f"{day} 02:00-06:00"}
    async with serving(point.folder) as server:
        async with fetching(tmp_path, server.url, large_download=1000, **settings) as one:
            await one.until_waits(one.want(demo), "for the window", day)
            assert not server.archives()
        async with fetching(tmp_path, server.url, large_download=SIZE * 2, **settings) as one:
            await one.until_ready(one.want(demo))


async def test_the_least_recently_used_is_removed_but_nothing_in_use(
    tmp_path: Path, point: PointFolder
) -> None:
    size = 400_000
    packages = [
        point.publish({"data": noise(size, name)}, name=name) for name in ("a", "b", "c", "d")
    ]
    async with fetching(tmp_path, point.folder, cache_size=1024 * 1024) as one:
        jobs = []
        for package in packages[:2]:
            jobs.append(one.want(package))
            await one.until_ready(jobs[-1])
        third = one.want(packages[2])
        await one.until_waits(third, "PCM_CACHE_SIZE")  # both are in use
        one.fetcher.forget(jobs[0].id)
        await one.until_ready(third)
        assert {path.stem for path in one.kept(".archive")} == {
            package.manifest.archive.sha256 for package in packages[1:3]
        }


async def test_a_package_over_the_limit_is_told(tmp_path: Path, point: PointFolder) -> None:
    large = point.publish({"data": noise(1_100_000)})
    async with fetching(tmp_path, point.folder, cache_size=1024 * 1024) as one:
        await one.until_waits(one.want(large), "over the limit of 1,048,576", "PCM_CACHE_SIZE")


async def test_what_is_in_the_cache_is_not_fetched_again(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    async with serving(point.folder) as server:
        for _ in range(2):  # also after a restart, and by a job for tomorrow
            async with fetching(tmp_path, server.url) as one:
                await one.until_ready(one.want(demo))
                later = one.want(demo, mandatory_at=datetime.now(UTC) + timedelta(days=1))
                await one.until_fetched(later)
    assert len(server.asked) == 2


async def test_what_was_changed_in_the_cache_is_fetched_again(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    async with serving(point.folder) as server, fetching(tmp_path, server.url) as one:
        job = one.want(demo)
        await one.until_ready(job)
        (archive,) = one.kept(".archive")
        archive.write_bytes(bytes(archive.stat().st_size))
        one.ready.clear()
        one.fetcher.reject(demo.digest, "its SHA-256 is another")
        assert "is fetched again" in one.fetcher.waits(job)
        await one.until_ready(job)
        assert archive.read_bytes() == demo.archive.read_bytes()


async def test_a_pipe_or_a_folder_on_a_point_is_not_waited_for(
    tmp_path: Path, point: PointFolder, demo: Published
) -> None:
    demo.archive.unlink()
    os.mkfifo(demo.archive)
    async with fetching(tmp_path, point.folder) as one:
        await one.until_waits(one.want(demo), "is not a regular file")


def test_a_fleet_fetches_at_moments_spread_between_offer_and_start() -> None:
    """No second has more than three times the mean, and a restart changes no moment."""
    package = PackageReference(name="demo", version="1.0", manifest="0" * 64)
    offer = datetime.now(UTC) + timedelta(seconds=100)
    job = Job(
        command=Command(argv=("true",), background=True),
        package=package,
        targets=(everyone,),
        offer_at=offer,
        mandatory_at=offer + timedelta(seconds=1000),
    )
    now = time.time()
    record = JobRecord(job, now)
    moments = [spread(record, f"ws-{number}", now) for number in range(9000)]
    assert moments == [spread(record, f"ws-{number}", now + 50) for number in range(9000)]
    begin = record.offer_at
    seconds = [0] * 900
    for moment in moments:
        seconds[int(moment - begin)] += 1
    assert max(seconds) <= 30
    assert min(moments) >= begin
    assert max(moments) <= begin + 900
