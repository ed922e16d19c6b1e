"""Publish packages on a distribution point, list and verify what it has, and tidy it up."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from broker.content.archive import Progress, WrongContent, check_archive
from broker.packages.building.package_file import BuiltPackage, check_package, read_signed_manifest
from broker.packages.points.point import CannotList, NotThere, Point, PointError, read_file
from broker.packages.trust import NotTrusted, signers
from schemas import InvalidMessage, Manifest, SignedText
from schemas.errors import PcmError
from schemas.names import check_name
from schemas.packages.manifest import MANIFEST_LIMIT, manifest_digest
from schemas.packages.paths import archive_path, manifest_path
from schemas.versions import check_version, version_key

if TYPE_CHECKING:
    from broker.signing.trusted_keys import Keyring

_INDEX = "index.json"
_INDEX_LIMIT = 16 * 1024 * 1024
_SUFFIX = ".manifest"
MIN_GARBAGE_AGE = 3600.0
"""Seconds for which a file without a manifest is kept: it may be being published."""


class NotPublished(PcmError):
    """A package cannot be published, or is not published; the text says why."""


@dataclass(frozen=True)
class PublishedPackage:
    """A version of a package on a distribution point."""

    manifest: Manifest
    signed: SignedText
    point: Point
    signers: Sequence[str] = ()
    """The owners of the trusted keys that signed it; none where no key is trusted."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest's text, by which jobs name the package."""
        return manifest_digest(self.signed.content)

    def __str__(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"


def publish_package(
    package: BuiltPackage, point: Point, *, progress: Progress | None = None
) -> bool:
    """Publish a package; return whether it was not there before.

    Its archive comes first, so that no reader sees a manifest without an archive.

    Raises:
        WrongContent: the file is damaged.
        NotPublished: the point has other content under this version.
        PointError: the point cannot be used.
    """
    check_package(package)
    manifest, path = (
        package.manifest,
        manifest_path(package.manifest.name, package.manifest.version),
    )
    body = package.signed.body()
    with suppress(NotThere):
        there = read_signed_manifest(read_file(point, path, 2 * MANIFEST_LIMIT), path)[1]
        if there.content != package.signed.content:
            raise NotPublished(
                f"{point.url}: has other content as {manifest.name}@{manifest.version}; give it"
                " another version"
            )
        if there.signatures == package.signed.signatures and _has_archive(point, manifest):
            return False
    if not _has_archive(point, manifest):
        with package.open_archive() as archive:
            size = manifest.archive.size
            point.write(archive_path(manifest.archive.sha256), archive, size, progress)
    point.write(path, BytesIO(body), len(body))
    _write_index(point, added=(manifest.name, manifest.version))
    return True


def _has_archive(point: Point, manifest: Manifest) -> bool:
    return point.size(archive_path(manifest.archive.sha256)) == manifest.archive.size


def published_versions(point: Point) -> dict[str, list[str]]:
    """Return the versions of each package on a point, the newest first; see `read_published`.

    Raises:
        PointError: the point cannot be used.
    """
    try:
        found = _walk_versions(point)
    except CannotList:
        found = _read_index(point)
    return {
        name: sorted(versions, key=lambda text: (version_key(text), text), reverse=True)
        for name, versions in sorted(found.items())
        if versions
    }


def _walk_versions(point: Point) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in point.walk("packages"):
        _, _, rest = file.path.partition("/")
        name, _, version = rest.removesuffix(_SUFFIX).partition("/")
        if rest.endswith(_SUFFIX) and _is_valid(name, version):
            found.setdefault(name, set()).add(version)
    return found


def _read_index(point: Point) -> dict[str, set[str]]:
    """Return the versions that a point's index names; it is only a hint, and not signed."""
    try:
        body = read_file(point, _INDEX, _INDEX_LIMIT)
    except NotThere:
        return {}
    try:
        packages = json.loads(body)["packages"].items()
        return {
            name: {version for version in versions if _is_valid(name, version)}
            for name, versions in packages
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise PointError(f"{point.url}: {_INDEX}: is not an index of packages") from None


def _is_valid(name: object, version: object) -> bool:
    try:
        return check_name(str(name)) == name and check_version(str(version)) == version
    except ValueError:
        return False


def _write_index(
    point: Point, added: tuple[str, str] | None = None, removed: tuple[str, str] | None = None
) -> None:
    """Write the index, for readers of a web server."""
    try:
        found = _walk_versions(point)
    except CannotList:
        found = _read_index(point)
        if added:
            found.setdefault(added[0], set()).add(added[1])
        if removed:
            found.get(removed[0], set()).discard(removed[1])
    packages = {name: sorted(versions) for name, versions in sorted(found.items()) if versions}
    body = json.dumps({"format": 1, "packages": packages}, indent=1).encode()
    point.write(_INDEX, BytesIO(body), len(body))


def read_published(
    points: Iterable[Point], name: str, version: str, keyring: "Keyring | None" = None
) -> PublishedPackage:
    """Return a version of a package from the first point that has it.

    Raises:
        NotPublished: no point has it, as far as they can be asked.
        NotTrusted: there are trusted keys, and none that may publish it has signed it.
    """
    problems = []
    for point in points:
        try:
            return _read(point, name, version, keyring)
        except NotThere:
            problems.append(f"{point.url} does not have it")
        except (PointError, WrongContent) as error:
            problems.append(str(error))
    raise NotPublished(f"{name}@{version}: {'; '.join(problems) or 'there is no point'}")


def _read(point: Point, name: str, version: str, keyring: "Keyring | None") -> PublishedPackage:
    path = manifest_path(name, version)
    body = read_file(point, path, 2 * MANIFEST_LIMIT)
    manifest, signed = read_signed_manifest(body, f"{point.url}: {path}")
    if (manifest.name, manifest.version) != (name, version):
        raise WrongContent(f"{point.url}: {path}: is of {manifest.name}@{manifest.version}")
    try:
        return PublishedPackage(manifest, signed, point, signers(manifest, signed, keyring))
    except NotTrusted as error:
        raise NotTrusted(f"{point.url}: {name}@{version}: {error}") from None


@dataclass(frozen=True)
class CheckedFile:
    """A file of a point, and what is wrong with it; "" if nothing is."""

    name: str
    size: int
    problem: str = ""


def verify_point(
    point: Point, keyring: "Keyring | None" = None, *, progress: Progress | None = None
) -> Iterator[CheckedFile]:
    """Read every manifest and every archive of a point, and check their sums and signatures.

    Raises:
        PointError: the point cannot be used.
    """
    checked: dict[str, str] = {}
    for name, versions in published_versions(point).items():
        for version in versions:
            shown = f"{name}@{version}"
            try:
                package = _read(point, name, version, keyring)
                archive = package.manifest.archive
                if archive.sha256 not in checked:
                    checked[archive.sha256] = _problem_of_archive(point, package.manifest, progress)
                yield CheckedFile(shown, archive.size, checked[archive.sha256])
            except (PointError, WrongContent, NotTrusted, InvalidMessage) as error:
                yield CheckedFile(shown, 0, str(error))


def _problem_of_archive(point: Point, manifest: Manifest, progress: Progress | None) -> str:
    try:
        with point.open(archive_path(manifest.archive.sha256)) as archive:
            check_archive(manifest, archive, progress=progress)
    except (PointError, WrongContent) as error:
        return str(error)
    return ""


def remove_package(point: Point, name: str, version: str) -> None:
    """Remove a version of a package; its archive stays until `collect_garbage`.

    Raises:
        NotPublished: the point does not have it, or a channel names it.
        PointError: the point cannot be used.
    """
    from broker.packages.channels import channels_of

    path = manifest_path(name, version)
    if point.size(path) is None:
        raise NotPublished(f"{name}@{version}: {point.url} does not have it")
    if named := channels_of(point, name, version):
        raise NotPublished(
            f"{name}@{version}: the channel {named[0]} names it; promote another version first"
        )
    point.remove(path)
    _write_index(point, removed=(name, version))


def collect_garbage(
    point: Point, min_age: float = MIN_GARBAGE_AGE, *, dry_run: bool = False
) -> list[CheckedFile]:
    """Remove the archives that no manifest names; return them.

    Args:
        point: a folder or a bucket.
        min_age: seconds for which a file is kept in any case.
        dry_run: remove nothing.

    Raises:
        CannotList: the point is a web server.
        WrongContent: a manifest cannot be read: its archive is not known.
        PointError: the point cannot be used.
    """
    now = time.time()
    found = list(point.walk("sha256"))
    named = set()
    for name, versions in _walk_versions(point).items():
        for version in versions:
            with suppress(NotThere):  # removed meanwhile
                named.add(archive_path(_read(point, name, version, None).manifest.archive.sha256))
    removed = []
    for file in found:
        if file.path not in named and now - file.written_at >= min_age:
            if not dry_run:
                point.remove(file.path)
            removed.append(CheckedFile(file.path, file.size))
    return removed
