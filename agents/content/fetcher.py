"""Fetch the packages that open jobs need: before they are due, and again until they are there."""

import asyncio
import hashlib
import random
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from agents import facts
from agents.content.cache import SIGNED_LIMIT, Cache, NoRoom, VerifiedManifest, read_package
from agents.content.download import (
    Attempt,
    Meter,
    RateLimit,
    fetch,
    read_small,
    reasons,
    tls_context,
)
from agents.content.transport import Request, Unavailable
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from agents.tasks import BackgroundTasks
from broker.amqp.timeouts import timeout
from broker.content.archive import WrongContent, check_archive
from broker.log import get_logger
from schemas import Context, Job
from schemas.orders.package import RequiredPackage
from schemas.packages.paths import archive_path, manifest_path
from schemas.points import AgentPoint, points_for
from schemas.reports.packages import MAX_CONTENTS, ContentProgress, ContentState
from schemas.times import NEVER

_log = get_logger()
_AT_ONCE = 2  # downloads
_LOOK = 10.0  # seconds; a change of the clock is noticed within this time
_FIRST_RETRY, _LAST_RETRY = 5.0, 900.0
_SAMPLE = 1.0
_RECHECK = 60.0
_SPREAD = 0.9  # of the time until it is due: the rest is for the download
_T = TypeVar("_T")
_NOT_READY = "waits for content"

Objection = Callable[[VerifiedManifest], str]
"""Returns why a manifest's signatures do not count; "" if they do."""


@dataclass(eq=False)
class Wanted:
    """A package that open jobs need.

    Attributes:
        package: the package.
        jobs: when each job wants it to be fetched, in seconds since the epoch, and whether users'
            agents need it, by job id.
        state: how far it is.
        reason: why it waits.
        size: the archive's size in bytes, once that is known.
        archive: the archive's sum, once that is known.
        meter: what was received.
        rate: bytes a second.
        attempts: failed attempts since the last success.
        retry_at: when to try again, by time.monotonic().
        has_looked: whether the cache was looked into.
    """

    package: RequiredPackage
    jobs: dict[str, tuple[float, bool]] = field(default_factory=dict)
    state: ContentState = ContentState.WAITING
    reason: str = ""
    size: int = 0
    archive: str = ""
    meter: Meter = field(default_factory=Meter)
    rate: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    has_looked: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it is in the cache."""
        return self.state is ContentState.READY

    @property
    def is_for_users(self) -> bool:
        """Whether a foreground job needs it."""
        return any(foreground for _, foreground in self.jobs.values())

    @property
    def at(self) -> float:
        """When it is to be fetched, in seconds since the epoch."""
        return min((at for at, _ in self.jobs.values()), default=NEVER)

    def is_due(self, now: float) -> bool:
        """Whether to fetch it now, or to look whether it is there."""
        if self.is_ready or time.monotonic() < self.retry_at:
            return False
        return not self.has_looked or self.at <= now

    def progress(self) -> ContentProgress:
        """Return how far it is, for check-ins and windows."""
        return ContentProgress(
            package=RequiredPackage(
                name=self.package.name,
                version=self.package.version,
                manifest=self.package.manifest,
            ),
            state=self.state,
            received=self.size if self.is_ready else self.meter.received,
            size=self.size,
            rate=self.rate if self.state is ContentState.FETCHING else 0,
            reason=self.reason,
        )


def packages_of(job: Job) -> list[RequiredPackage]:
    """Return the packages that a job needs, in the order of installation; its own is the last."""
    return [] if job.package is None else [*job.package.requires, job.package]


def spread(record: JobRecord, workstation: str, now: float) -> float:
    """Return when to fetch a job's packages: at random between its offer and its start.

    The moment is the same after a restart: it follows from the job and the workstation.
    """
    begin = record.received_at
    due = record.mandatory_at
    if due is None:
        due = record.offer_at
    elif begin < record.offer_at < due:
        begin = record.offer_at
    if due <= now or due <= begin:
        return now
    digest = hashlib.sha256(f"{record.job.id}\0{workstation}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return begin + share * _SPREAD * (due - begin)


class Fetcher:
    """Fetches packages into the service agent's cache."""

    packages_of = staticmethod(packages_of)

    def __init__(
        self,
        settings: AgentSettings,
        cache: Cache,
        objection: Objection,
        tasks: BackgroundTasks,
        on_ready: Callable[[Iterable[str]], None],
        on_change: Callable[[], None],
    ) -> None:
        """Create a fetcher.

        Args:
            settings: the agent's settings.
            cache: the cache.
            objection: whether a manifest's signatures count.
            tasks: the background tasks that fetch.
            on_ready: is called with the jobs whose packages are there.
            on_change: is called when a package's state has changed.
        """
        self._settings = settings
        self._cache = cache
        self._objection = objection
        self._tasks = tasks
        self._on_ready = on_ready
        self._on_change = on_change
        self._wanted: dict[str, Wanted] = {}
        self._active: dict[str, Wanted] = {}
        self._requests: dict[str, Request] = {}
        self._changed = asyncio.Event()
        self._limit = RateLimit(settings.fetch_rate)
        self._not_before: dict[AgentPoint, float] = {}  # monotonic time
        self._stuck: dict[AgentPoint, Attempt] = {}
        self._rechecked_at: dict[str, float] = {}  # monotonic time, by manifest

    def want(self, record: JobRecord) -> None:
        """Fetch the packages of an open job at their time."""
        job = record.job
        at = spread(record, self._settings.workstation, time.time())
        for package in packages_of(job):
            wanted = self._wanted.setdefault(package.manifest, Wanted(package))
            wanted.jobs[job.id] = (at, job.context is Context.FOREGROUND)
            if wanted.is_ready and wanted.is_for_users:
                wanted.state, wanted.has_looked = ContentState.WAITING, False  # to be shared
        self._changed.set()

    def hurry(self, job_id: str) -> None:
        """Fetch a job's packages now, but not before a time that a point asked for."""
        for wanted in self._wanted.values():
            if job_id in wanted.jobs:
                wanted.jobs[job_id] = (0.0, wanted.jobs[job_id][1])
        self._changed.set()

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        for digest, wanted in list(self._wanted.items()):
            if wanted.jobs.pop(job_id, None) is None:
                continue
            if not wanted.jobs:
                del self._wanted[digest]
                self._cache.end_progress(digest)
                if request := self._requests.get(digest):
                    request.abort("no job needs it any more")
        self._on_change()

    def waits(self, job: Job) -> str:
        """Return what a job waits for; "" if its packages are there."""
        for package in packages_of(job):
            wanted = self._wanted.get(package.manifest)
            if wanted is None or not wanted.is_ready:
                return f"{_NOT_READY}: {describe(wanted.progress()) if wanted else package}"
        return ""

    def progress(self) -> list[ContentProgress]:
        """Return how far the packages are, those that are not there first."""
        found = [wanted.progress() for wanted in self._wanted.values()]
        return sorted(found, key=lambda one: one.state is ContentState.READY)[:MAX_CONTENTS]

    def reject(self, digest: str, reason: str) -> None:
        """Fetch a package again, since the one in the cache is wrong."""
        _log.error("content.wrong", manifest=digest, reason=reason)
        if wanted := self._wanted.get(digest):
            wanted.state = ContentState.WAITING
            wanted.reason = f"what was in the cache is wrong ({reason}); it is fetched again"
            wanted.jobs = {job_id: (0.0, users) for job_id, (_, users) in wanted.jobs.items()}
            self._changed.set()
            self._on_change()

    def find(self, package: RequiredPackage) -> tuple[VerifiedManifest, Path]:
        """Return a package in the cache, and its archive; note that it is used.

        Raises:
            WrongContent: the manifest is another one.
            OSError: it is not there.
        """
        found = self._cache.package(package.manifest)
        if found is None:
            raise FileNotFoundError(2, "is not in the cache any more")
        self._cache.touch(found)
        return found, self._cache.archive_path(found.manifest)

    def recheck(self, job_id: str) -> None:
        """Verify a job's packages in the cache again, since a user's agent finds one wrong."""
        now = time.monotonic()
        for digest, wanted in self._wanted.items():
            if job_id in wanted.jobs and now >= self._rechecked_at.get(digest, 0.0) + _RECHECK:
                self._rechecked_at[digest] = now
                wanted.state = ContentState.WAITING
                wanted.jobs[job_id] = (0.0, wanted.jobs[job_id][1])
        self._changed.set()

    async def run(self) -> None:
        """Fetch until cancelled."""
        while True:
            self._changed.clear()
            now = time.time()
            waiting = [wanted for wanted in self._wanted.values() if not wanted.is_ready]
            for wanted in waiting:
                digest = wanted.package.manifest
                if digest in self._active or not wanted.is_due(now):
                    continue
                if len(self._active) >= _AT_ONCE:
                    break
                self._active[digest] = wanted
                self._tasks.start(self._work(wanted))
            # Nothing to wait for: it sleeps until a job comes.
            limit = min([_LOOK, *self._pauses(waiting, now)]) if waiting else None
            with suppress(TimeoutError):
                async with timeout(limit):
                    await self._changed.wait()

    def _pauses(self, waiting: list[Wanted], now: float) -> Iterable[float]:
        """Yield the seconds until each package is due."""
        for wanted in waiting:
            if wanted.package.manifest not in self._active and wanted.jobs:
                yield max(0.05, wanted.at - now, wanted.retry_at - time.monotonic())

    async def _work(self, wanted: Wanted) -> None:
        digest = wanted.package.manifest
        try:
            failure = await self._try(wanted)
        except Unavailable as error:
            failure = str(error)
        except (WrongContent, NoRoom) as error:
            failure = str(error)
        except OSError as error:
            failure = f"{error.strerror or error}: {error.filename or 'the cache'}"
        finally:
            del self._active[digest]
            self._changed.set()
        if wanted.is_ready:
            wanted.reason, wanted.attempts = "", 0
            _log.info("content.ready", package=str(wanted.package), bytes=wanted.size)
            self._on_ready(wanted.jobs)
        elif failure:
            self._failed(wanted, failure)
        self._tell(wanted)

    def _failed(self, wanted: Wanted, failure: str) -> None:
        wanted.state, wanted.reason = ContentState.WAITING, failure
        pause = min(_LAST_RETRY, _FIRST_RETRY * 2**wanted.attempts)
        wanted.attempts = min(wanted.attempts + 1, 20)
        pause *= random.uniform(0.5, 1)  # noqa: S311 - so that a fleet does not come at once
        now = time.monotonic()
        points = self._points()
        if points and all(self._not_before.get(point, 0.0) > now for point in points):
            pause = max(pause, min(self._not_before[point] for point in points) - now)
        wanted.retry_at = now + pause
        _log.warning(
            "content.waiting",
            package=str(wanted.package),
            reason=failure,
            again_in=round(pause, 1),
        )

    async def _try(self, wanted: Wanted) -> str:
        """Bring a package into the cache if it is due; return why it waits."""
        digest = wanted.package.manifest
        is_first, wanted.has_looked = not wanted.has_looked, True
        package = await asyncio.to_thread(self._look, digest)
        is_due = wanted.is_due(time.time())
        if package is None:
            if not is_due:
                return ""
            package = await self._fetch_manifest(wanted)
        wanted.size = package.manifest.archive.size
        wanted.archive = package.manifest.archive.sha256
        try:
            self._check_trust(package)
        except WrongContent:
            self._cache.discard_manifest(digest)  # the next one may have other signatures
            raise
        if not await asyncio.to_thread(self._has_archive, package, checks=not is_first):
            if not is_due:
                return ""
            if reason := self._window_objection(package):
                wanted.state, wanted.reason = ContentState.WAITING, reason
                wanted.retry_at = time.monotonic() + _LOOK
                return ""
            await self._fetch_archive(wanted, package)
        if wanted.is_for_users:
            self._cache.share(package)
        wanted.state = ContentState.READY
        return ""

    def _check_trust(self, package: VerifiedManifest) -> None:
        if reason := self._objection(package):
            raise WrongContent(f"manifest: {reason}")

    def _look(self, digest: str) -> VerifiedManifest | None:
        """Return a package whose manifest is in the cache; one that is wrong is removed."""
        try:
            return self._cache.package(digest)
        except WrongContent as error:
            _log.error("content.wrong", manifest=digest, reason=str(error))
            self._cache.discard_manifest(digest)
            return None

    def _has_archive(self, package: VerifiedManifest, *, checks: bool) -> bool:
        """Whether the archive is there; with `checks`, whether it is the manifest's."""
        if not self._cache.has_archive(package.manifest):
            return False
        if not checks:
            return True  # it is verified before each command
        try:
            with self._cache.archive_path(package.manifest).open("rb") as archive:
                check_archive(package.manifest, archive)
        except WrongContent as error:
            _log.error("content.wrong", manifest=package.digest, reason=str(error))
            self._cache.discard(package)
            return False
        return True

    def _window_objection(self, package: VerifiedManifest) -> str:
        """Return for which window a large download waits; "" if it can go on."""
        windows, size = self._settings.fetch_windows, package.manifest.archive.size
        if size <= self._settings.large_download or not windows:
            return ""
        now = time.time()
        return "" if windows.start(now, 0) <= now else f"for the window {windows}"

    async def _fetch_manifest(self, wanted: Wanted) -> VerifiedManifest:
        package = wanted.package
        path = manifest_path(package.name, package.version)

        def read(request: Request) -> VerifiedManifest:
            body = read_small(request, SIGNED_LIMIT, Meter())
            try:
                found = read_package(body, package.manifest)
                self._check_trust(found)
            except WrongContent as error:
                raise Unavailable(f"{request.point}: {error}") from None
            self._cache.store_manifest(package.manifest, body)
            return found

        return await self._from_points(wanted, path, read, Meter())

    async def _fetch_archive(self, wanted: Wanted, package: VerifiedManifest) -> None:
        part = self._cache.part(package.manifest)
        # Its own part counts as free: it is part of the size.
        self._cache.make_room(part, self._needed())
        wanted.meter = meter = Meter()
        wanted.state, wanted.reason = ContentState.FETCHING, ""
        _log.info("content.fetching", package=str(wanted.package), bytes=part.size)
        self._tell(wanted)
        sampler = asyncio.ensure_future(self._sample(wanted, package))
        try:
            work = partial(fetch, part=part, limit=self._limit, meter=meter)
            await self._from_points(wanted, archive_path(part.sha256), work, meter)
        finally:
            sampler.cancel()
        await asyncio.to_thread(self._cache.store_archive, part)

    def _needed(self) -> set[str]:
        """Return the names of the files that open jobs need."""
        return set(self._wanted) | {wanted.archive for wanted in self._wanted.values()}

    async def _from_points(
        self, wanted: Wanted, path: str, work: Callable[[Request], _T], meter: Meter
    ) -> _T:
        """Do something with a file of the first point that serves it.

        Raises:
            Unavailable: none does; the text has the reasons.
        """
        failures: dict[str, str] = {}
        digest = wanted.package.manifest
        for point in self._points():
            if (left := self._not_before.get(point, 0.0) - time.monotonic()) > 0:
                failures[str(point)] = f"{point}: asks to wait for {left:,.0f} s more"
                continue
            if (stuck := self._stuck.get(point)) and stuck.is_stuck:
                failures[str(point)] = f"{point}: does not answer"
                continue
            if not wanted.jobs:
                break
            request = Request(point, path, lambda: self._tls)
            self._requests[digest] = request
            attempt = Attempt(request, meter)
            try:
                return await attempt.run(partial(work, request))
            except Unavailable as error:
                failures[str(point)] = str(error)
                if error.retry_after:
                    self._not_before[point] = time.monotonic() + error.retry_after
                if attempt.is_stuck:
                    self._stuck[point] = attempt
            finally:
                self._requests.pop(digest, None)
        raise Unavailable(reasons(failures))

    def _points(self) -> list[AgentPoint]:
        return points_for(self._settings.points, facts.groups(self._settings))

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._settings.points_ca)

    async def _sample(self, wanted: Wanted, package: VerifiedManifest) -> None:
        """Compute the rate, and end a large download with its window."""
        before = wanted.meter.received
        while True:
            await asyncio.sleep(_SAMPLE)
            now = wanted.meter.received
            wanted.rate = int((wanted.rate + max(0, now - before)) / (2 if wanted.rate else 1))
            before = now
            request = self._requests.get(wanted.package.manifest)
            if request and (reason := self._window_objection(package)):
                request.abort(reason)
            self._tell(wanted)

    def _tell(self, wanted: Wanted) -> None:
        if wanted.is_for_users:
            with suppress(OSError):  # the disk is full, for example: it is only shown
                body = wanted.progress().model_dump_json().encode()
                self._cache.share_progress(wanted.package.manifest, body)
        self._on_change()


def describe(progress: ContentProgress) -> str:
    """Return what a job waits for, for people."""
    package = f"{progress.package}"
    match progress.state:
        case ContentState.READY:
            return f"{package}: ready"
        case ContentState.FETCHING:
            rate = f", {progress.rate / 1e6:,.1f} MB/s" if progress.rate else ""
            return f"{package}: fetching, {progress.percent} %{rate}"
    return f"{package}: {progress.reason or 'its time to be fetched has not come'}"
