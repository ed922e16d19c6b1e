"""Find the version of a package that a job means, with all that it requires."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypedDict, Unpack

from broker.packages.channels import read_channel
from broker.packages.points.point import Point, PointError, open_point
from broker.packages.publishing import (
    NotPublished,
    PublishedPackage,
    published_versions,
    read_published,
)
from broker.settings import DispatcherSettings, load
from broker.signing.resign_policy import keyring_of
from schemas import (
    ChannelList,
    Command,
    Job,
    PackageReference,
    PackageSpec,
    RequiredPackage,
    Target,
    WallClock,
)
from schemas.errors import PcmError
from schemas.names import check_name
from schemas.orders.package import MAX_REQUIRED
from schemas.text import did_you_mean, nearest
from schemas.text import listed as listed_names
from schemas.versions import check_version, version_key

if TYPE_CHECKING:
    from broker.signing.trusted_keys import Keyring

_SHOWN = 5
_WISH = re.compile(r"([^@]*)(?:@(.*))?", re.DOTALL)


class CannotResolve(PcmError):
    """No version of a package fits what was asked, or what packages require."""


class JobFields(TypedDict, total=False):
    """Fields of a job besides its command, its package and its targets."""

    name: str
    comment: str
    excluded: tuple[Target, ...]
    offer_at: datetime | WallClock
    mandatory_at: datetime | WallClock
    expires_at: datetime | WallClock
    respects_windows: bool
    supersedes: str
    max_postponements: int
    min_interval: timedelta
    created_at: datetime


@dataclass(frozen=True)
class ResolvedPackage:
    """The package of a job: its reference and its command, and what is installed before it."""

    reference: PackageReference
    command: Command
    package: PublishedPackage
    required: Sequence[PublishedPackage] = ()


def resolve_package(
    text: str, command: str, points: Sequence[Point], keyring: "Keyring | None" = None
) -> ResolvedPackage:
    """Find the package of a job.

    Args:
        text: NAME for the highest version, NAME@VERSION, or NAME@CHANNEL.
        command: the name of its command, such as install.
        points: the distribution points; the first that has a version serves it.
        keyring: the trusted keys, if there are any.

    Raises:
        CannotResolve: no version fits.
        NotPublished: no point has it.
        NotTrusted: its manifest is not signed by a trusted key that may publish it.
        WrongChannel: the channel's list cannot be used.
        PointError: a point cannot be used.
    """
    finder, chosen = _find(text, points, keyring)
    if command not in chosen.manifest.commands:
        known = ", ".join(sorted(chosen.manifest.commands))
        raise CannotResolve(f"{chosen}: has no command {command}; it has {known}")
    if chosen.manifest.needs_required(command):
        finder.add_required(chosen)
    required = finder.found
    _check_conflicts([*required, chosen])
    reference = PackageReference(
        name=chosen.manifest.name,
        version=chosen.manifest.version,
        manifest=chosen.digest,
        command=command,
        requires=tuple(_reference(package) for package in required),
        channel=finder.channel.name if finder.channel else None,
        channel_serial=finder.channel.serial if finder.channel else None,
    )
    return ResolvedPackage(reference, chosen.manifest.command(command), chosen, required)


def package_job(
    text: str,
    targets: Iterable[Target],
    command: str = "install",
    settings: DispatcherSettings | None = None,
    **fields: Unpack[JobFields],
) -> Job:
    """Return a job that runs a command of a package; the version is found now.

    Args:
        text: NAME for the highest version, NAME@VERSION, or NAME@CHANNEL.
        targets: the job's targets.
        command: the name of the package's command.
        settings: the points and the trusted keys; default: from the environment.
        fields: further fields of the job, such as `mandatory_at`.

    Raises:
        CannotResolve, NotPublished, NotTrusted, WrongChannel, PointError: as `resolve_package`.
        WrongSetting: the folder of trusted keys cannot be used.
    """
    settings = settings or load(DispatcherSettings)
    points, keyring = map(open_point, settings.points), keyring_of(settings.trusted_keys)
    found = resolve_package(text, command, tuple(points), keyring)
    return Job(command=found.command, package=found.reference, targets=tuple(targets), **fields)


def find_package(
    text: str, points: Sequence[Point], keyring: "Keyring | None" = None
) -> PublishedPackage:
    """Return the version that NAME, NAME@VERSION or NAME@CHANNEL means.

    Raises:
        CannotResolve, NotPublished, NotTrusted, WrongChannel, PointError: as `resolve_package`.
    """
    return _find(text, points, keyring)[1]


def _find(
    text: str, points: Sequence[Point], keyring: "Keyring | None"
) -> "tuple[_Finder, PublishedPackage]":
    if not points:
        raise PointError("PCM_POINTS: is not set: name a distribution point of packages")
    name, version, channel = _read_wish(text)
    finder = _Finder(points, keyring, read_channel(points, channel, keyring) if channel else None)
    if channel:
        version = finder.of_channel(name)
    if version:
        return finder, finder.read(name, version)
    return finder, finder.highest(PackageSpec(name=name))


def _read_wish(text: str) -> tuple[str, str, str]:
    """Return the name, and the version or the channel, of which one is empty."""
    match = _WISH.fullmatch(text)
    name, wish = match.groups() if match else (text, None)
    try:
        name = check_name(name)
        if wish is None:
            return name, "", ""
        if wish[:1].isdigit():
            return name, check_version(wish), ""
        return name, "", check_name(wish)
    except ValueError as error:
        raise CannotResolve(
            f"{text[:100]}: {error}; write NAME, NAME@VERSION or NAME@CHANNEL"
        ) from None


def _reference(package: PublishedPackage) -> RequiredPackage:
    manifest = package.manifest
    return RequiredPackage(name=manifest.name, version=manifest.version, manifest=package.digest)


@dataclass
class _Finder:
    points: Sequence[Point]
    keyring: "Keyring | None"
    channel: ChannelList | None
    found: list[PublishedPackage] = field(default_factory=list)
    """The required packages, in the order of installation."""
    _under_way: list[str] = field(default_factory=list)
    _versions: list[dict[str, list[str]]] | None = None

    def of_channel(self, name: str) -> str:
        assert self.channel is not None  # noqa: S101 - there is one
        entry = self.channel.find(name)
        if entry is None:
            known = [package.name for package in self.channel.packages]
            raise CannotResolve(
                f"{name}@{self.channel.name}: the channel does not name the package"
                + did_you_mean(nearest(name, known))
            )
        return entry.version

    def read(self, name: str, version: str) -> PublishedPackage:
        package = read_published(self.points, name, version, self.keyring)
        listed = self.channel.find(name) if self.channel else None
        if listed and listed.version == version and listed.manifest != package.digest:
            raise CannotResolve(
                f"{package}: {package.point.url} has another manifest than the channel names"
            )
        return package

    def highest(self, spec: PackageSpec) -> PublishedPackage:
        """Return the highest version that fits; of a channel that names the package, its own."""
        listed = self.channel.find(spec.name) if self.channel else None
        if listed:
            if not spec.allows(listed.version):
                raise CannotResolve(f"{spec}: the channel names {listed}")
            return self.read(listed.name, listed.version)
        known = self._known(spec.name)
        fitting = [version for version in known if spec.allows(version)]
        if not fitting:
            there = (
                f"there are {listed_names(known, _SHOWN)}" if known else self._nearest(spec.name)
            )
            raise CannotResolve(f"{spec}: no such version is published; {there}")
        return self.read(spec.name, fitting[0])

    def _known(self, name: str) -> list[str]:
        found = {version for point in self._published() for version in point.get(name, ())}
        return sorted(found, key=version_key, reverse=True)

    def _published(self) -> list[dict[str, list[str]]]:
        if self._versions is None:
            self._versions = [published_versions(point) for point in self.points]
        return self._versions

    def _nearest(self, name: str) -> str:
        near = nearest(name, {known for point in self._published() for known in point})
        return "no point has the package" + did_you_mean(near)

    def add_required(self, package: PublishedPackage) -> None:
        """Find what a package requires, and all that this requires, in order."""
        name = package.manifest.name
        self._under_way.append(name)
        for spec in package.manifest.requires:
            if spec.name in self._under_way:
                way = " requires ".join([*self._under_way, spec.name])
                raise CannotResolve(f"{way}: packages cannot require each other")
            there = next((one for one in self.found if one.manifest.name == spec.name), None)
            if there is not None:
                if not spec.allows(there.manifest.version):
                    raise CannotResolve(
                        f"{package} requires {spec}, and {there} is required by another package"
                    )
                continue
            try:
                required = self.highest(spec)
            except (CannotResolve, NotPublished) as error:
                raise CannotResolve(f"{package} requires {spec}: {error}") from error
            self.add_required(required)
            self.found.append(required)
            if len(self.found) > MAX_REQUIRED:
                raise CannotResolve(f"{package}: more than {MAX_REQUIRED} packages are required")
        self._under_way.pop()


def _check_conflicts(packages: Sequence[PublishedPackage]) -> None:
    versions = {package.manifest.name: package.manifest.version for package in packages}
    for package in packages:
        for spec in package.manifest.conflicts:
            version = versions.get(spec.name)
            if version is not None and spec.allows(version):
                raise CannotResolve(f"{package} conflicts with {spec}, and {version} is required")
