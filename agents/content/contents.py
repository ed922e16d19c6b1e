"""The packages of an agent's open jobs.

The service agent fetches them into its cache. An interactive agent reads those of foreground jobs
there, and verifies them for itself. What this needs is loaded with the first job that has a
package.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from agents.tasks import BackgroundTasks
from schemas import Job
from schemas.errors import PcmError

if TYPE_CHECKING:
    from agents.content.cache import VerifiedManifest
    from agents.content.fetcher import Fetcher
    from agents.content.package_copy import PackageCopies
    from agents.content.shared import SharedPackages
    from schemas.orders.package import RequiredPackage
    from schemas.reports.packages import ContentProgress


RETRY = 2.0
"""Seconds after which to ask again whether a job's packages are there."""


class NotReady(PcmError):
    """A job's packages cannot be used now; the text says why."""


class Contents:
    """The packages of an agent's open jobs: fetched by the service agent, or read from it."""

    def __init__(
        self,
        settings: AgentSettings,
        copies: Path,
        objection: "Callable[[VerifiedManifest], str]",
        tasks: BackgroundTasks,
        on_ready: Callable[[Iterable[str]], None],
        on_change: Callable[[], None],
        *,
        is_service: bool,
    ) -> None:
        """Create the object; nothing is loaded.

        Args:
            settings: the agent's settings.
            copies: the folder for private copies.
            objection: returns why a manifest's signatures do not count; "" if they do.
            tasks: the background tasks that fetch.
            on_ready: is called with the jobs whose packages are there.
            on_change: is called when a package's state has changed.
            is_service: whether this is the service agent.
        """
        self._settings = settings
        self._copies = copies
        self._objection = objection
        self._tasks = tasks
        self._on_ready = on_ready
        self._on_change = on_change
        self._is_service = is_service
        self._is_used = False
        self._notes: dict[str, str] = {}
        self._held: dict[str, tuple[float, str]] = {}  # until when by the monotonic clock, and why

    def want(self, record: JobRecord) -> None:
        """Have the packages of an open job fetched at their time."""
        if record.job.package is not None:
            self._is_used = True
            self._source.want(record)

    def forget(self, record: JobRecord) -> None:
        """Forget a job that has ended."""
        if record.job.package is not None:
            self._source.forget(record.job.id)
            self._notes.pop(record.job.id, None)
            self._held.pop(record.job.id, None)

    def hurry(self, job_id: str) -> None:
        """Have a job's packages fetched now."""
        if self._is_used:
            self._source.hurry(job_id)

    def recheck(self, job_id: str) -> None:
        """Have a job's packages verified again, since another agent finds one wrong."""
        if self._is_used:
            self._source.recheck(job_id)

    def waits(self, job: Job) -> str:
        """Return what a job waits for; "" if its packages are there, or it needs none."""
        if job.package is None:
            return ""
        until, reason = self._held.get(job.id, (0.0, ""))
        if time.monotonic() < until:
            return f"waits for content: {reason}"
        return self._source.waits(job)

    def progress(self) -> "tuple[ContentProgress, ...] | None":
        """Return how far the packages of open jobs are; None if no job needs any."""
        return (tuple(self._source.progress()) or None) if self._is_used else None

    def note(self, job_id: str) -> str:
        """Return what was found wrong with a job's packages before they could be used."""
        return self._notes.get(job_id, "")

    def prepare(self, job: Job) -> "list[PackageCopies]":
        """Return the verified packages of a job; its own is the last. Called in any thread.

        Raises:
            NotReady: they are not there, or one is wrong; then it is fetched again.
        """
        from broker.content.archive import WrongContent

        found = []
        for wanted in self._source.packages_of(job):
            try:
                found.append(self._open(job, wanted))
            except WrongContent as error:
                raise _Rejected(wanted, str(error)) from None
            except OSError as error:
                raise NotReady(f"{wanted}: {error.strerror or error}") from error
        return found

    def find(self, package: "RequiredPackage", folder: str) -> "PackageCopies":
        """Return a package that ran earlier, if it is still there. Called in any thread.

        Raises:
            PcmError: it is not what its sum says, or its signatures do not count any more.
            OSError: it is not there.
        """
        from agents.content.package_copy import PackageCopies

        found, archive = self._source.find(package)
        if reason := self._objection(found):
            raise NotReady(f"{package}: {reason}")
        copies = PackageCopies(found, archive, self._copies / folder)
        copies.check()
        return copies

    def _open(self, job: Job, wanted: "RequiredPackage") -> "PackageCopies":
        from agents.content.package_copy import PackageCopies
        from broker.content.archive import WrongContent

        package, archive = self._source.find(wanted)
        if reason := self._refusal(job, wanted, package):
            raise WrongContent(f"manifest: {reason}")
        copies = PackageCopies(package, archive, self._copies / job.id)
        copies.check()
        return copies

    def reject(self, job_id: str, error: NotReady) -> None:
        """Have what was found wrong fetched again; try a job again later."""
        self._held[job_id] = time.monotonic() + RETRY, str(error)
        if isinstance(error, _Rejected):
            self._notes[job_id] = f"{error}; fetched again"
            self._source.reject(error.package.manifest, str(error))

    def _refusal(self, job: Job, wanted: "RequiredPackage", package: "VerifiedManifest") -> str:
        if reason := self._objection(package):
            return reason
        manifest = package.manifest
        if job.package is not None and wanted is job.package:
            return manifest.objection(job, job.package)
        if (wanted.name, wanted.version) != (manifest.name, manifest.version):
            return f"is of {manifest.name}@{manifest.version}"
        return ""

    def remove_copies(self, job_id: str) -> None:
        """Remove a job's private copies. Called in any thread."""
        remove_tree(self._copies / job_id)

    def remove_old_copies(self, still_open: set[str]) -> None:
        """Remove the copies of jobs that are not open."""
        with suppress(FileNotFoundError):
            for folder in self._copies.iterdir():
                if folder.name not in still_open:
                    self.remove_copies(folder.name)

    @cached_property
    def _source(self) -> "Fetcher | SharedPackages":
        if not self._is_service:
            from agents.content.shared import SharedPackages

            return SharedPackages(self._settings.state_dir)
        from agents.content.cache import Cache
        from agents.content.fetcher import Fetcher

        cache = Cache(self._settings.state_dir, self._settings.cache_size)
        fetcher = Fetcher(
            self._settings,
            cache,
            self._objection,
            self._tasks,
            self._on_ready,
            self._on_change,
        )
        self._tasks.start(fetcher.run())
        return fetcher


def remove_tree(path: Path) -> None:
    """Remove a folder, also one in which commands have changed modes."""
    for folder, _, _ in os.walk(path):
        with suppress(OSError):
            os.chmod(folder, 0o700)  # noqa: PTH101 - `walk` yields no links
    shutil.rmtree(path, ignore_errors=True)


class _Rejected(NotReady):
    """A package is not what its sum says."""

    def __init__(self, package: "RequiredPackage", reason: str) -> None:
        super().__init__(f"{package}: {reason}")
        self.package = package
