"""The packages of foreground jobs, as a user's agent finds them in the service agent's cache."""

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from agents.content.cache import VerifiedManifest, read_shared, shared_archive, shared_progress
from agents.content.fetcher import describe, packages_of
from agents.store.transaction import JobRecord
from broker.content.archive import WrongContent
from schemas import Job
from schemas.orders.package import RequiredPackage
from schemas.reports.packages import ContentProgress, ContentState


class SharedPackages:
    """Reads the packages that the service agent has for foreground jobs."""

    packages_of = staticmethod(packages_of)

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._jobs: dict[str, Job] = {}
        self._archives: dict[str, tuple[Path, int]] = {}  # and its size, by manifest

    def want(self, record: JobRecord) -> None:
        """Note an open job; the service agent fetches for it, too."""
        self._jobs[record.job.id] = record.job

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        if job := self._jobs.pop(job_id, None):
            for package in packages_of(job):
                self._archives.pop(package.manifest, None)

    def hurry(self, job_id: str) -> None:
        """Do nothing: the service agent is asked."""

    def recheck(self, job_id: str) -> None:
        """Do nothing: the service agent verifies."""

    def reject(self, digest: str, _reason: str) -> None:
        """Forget what is known of a package; `waits` says what the service agent does."""
        self._archives.pop(digest, None)

    def waits(self, job: Job) -> str:
        """Return what a job waits for; "" if its packages are there."""
        for package in packages_of(job):
            progress = self._progress(package)
            if progress.state is not ContentState.READY:
                return f"waits for content: {describe(progress)}"
        return ""

    def progress(self) -> list[ContentProgress]:
        """Return nothing: the service agent reports the packages of the workstation."""
        return []

    def find(self, package: RequiredPackage) -> tuple[VerifiedManifest, Path]:
        """Return a package and its archive.

        Raises:
            WrongContent: the manifest is another one.
            OSError: it is not there.
        """
        found = read_shared(self._state_dir, package.manifest)
        if found is None:
            raise FileNotFoundError(2, "the service agent does not have it any more")
        return found, shared_archive(self._state_dir, found.manifest)

    def _progress(self, package: RequiredPackage) -> ContentProgress:
        plain = RequiredPackage.model_validate(package.model_dump(include=_FIELDS))
        state, reason = ContentState.WAITING, ""
        with suppress(OSError, WrongContent):
            path, size = self._archive(package.manifest)
            if path.stat().st_size == size:
                return ContentProgress(package=plain, state=ContentState.READY, size=size)
        with suppress(OSError, ValidationError):
            if body := shared_progress(self._state_dir, package.manifest):
                shown = ContentProgress.model_validate_json(body)
                if shown.package == plain and shown.state is not ContentState.READY:
                    return shown
        reason = "the service agent has not fetched it"
        return ContentProgress(package=plain, state=state, reason=reason)

    def _archive(self, digest: str) -> tuple[Path, int]:
        """Return a package's archive and its size.

        Raises:
            WrongContent: the manifest is another one.
            FileNotFoundError: it is not there.
        """
        if digest not in self._archives:
            package = read_shared(self._state_dir, digest)
            if package is None:
                raise FileNotFoundError(digest)
            manifest = package.manifest
            archive = shared_archive(self._state_dir, manifest)
            self._archives[digest] = archive, manifest.archive.size
        return self._archives[digest]


_FIELDS = set(RequiredPackage.model_fields)
