"""Make the jobs that uninstall a package where it is."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Unpack

from broker.packages.publishing import read_published
from broker.packages.resolve import JobFields
from schemas import Job, PackageCondition, PackageReference, PackageSpec, workstation
from schemas.errors import PcmError
from schemas.packages.manifest import UNINSTALL
from schemas.text import listed

if TYPE_CHECKING:
    from broker.history.queries.packages import PackageQueries
    from broker.packages.points.point import Point
    from broker.signing.trusted_keys import Keyring

_SHOWN = 10


class NotUninstallable(PcmError):
    """A package is nowhere, or cannot be uninstalled; the text says why."""


def uninstall_jobs(
    packages: "PackageQueries",
    spec: PackageSpec,
    points: "Sequence[Point]",
    keyring: "Keyring | None" = None,
    *,
    workstations: Collection[str] | None = None,
    **fields: Unpack[JobFields],
) -> list[Job]:
    """Return a job for each version that is installed, for the workstations that have it.

    Each checks again that it has that version; send them by `Dispatcher.dispatch`.

    Args:
        packages: the history's queries (`History.packages`).
        spec: the package, and which of its versions.
        points: the distribution points: the uninstalled version must still be published.
        keyring: the trusted keys, if there are any.
        workstations: only these; default: all that have it.
        fields: further fields of the jobs, such as `mandatory_at`.

    Raises:
        NotUninstallable: it is installed nowhere, a version has no command `uninstall`, or the
            published version is another one than what is installed.
        NotPublished: no point has a version.
        NotTrusted: its manifest is not signed by a trusted key that may publish it.
    """
    names: dict[tuple[str, str], set[str]] = {}
    for row in packages.rows(spec.name, installed=True):
        is_wanted = workstations is None or row.workstation in workstations
        if is_wanted and spec.allows(row.version):
            names.setdefault((row.version, row.manifest), set()).add(row.workstation)
    if not names:
        raise NotUninstallable(f"{spec}: is installed on no workstation that the history knows")
    return [
        _job(spec.name, version, manifest, sorted(on), points, keyring, fields)
        for (version, manifest), on in sorted(names.items())
    ]


def _job(
    name: str,
    version: str,
    manifest: str,
    names: list[str],
    points: "Sequence[Point]",
    keyring: "Keyring | None",
    fields: JobFields,
) -> Job:
    package = read_published(points, name, version, keyring)
    if package.digest != manifest:
        raise NotUninstallable(
            f"{package}: {package.point.url} has another content than what is on"
            f" {listed(names, _SHOWN)}"
        )
    if UNINSTALL not in package.manifest.commands:
        raise NotUninstallable(f"{package}: has no command {UNINSTALL}")
    return Job(
        command=package.manifest.command(UNINSTALL),
        package=PackageReference(name=name, version=version, manifest=manifest, command=UNINSTALL),
        only_if=(PackageCondition.parse(f"installed:{name}={version}"),),
        targets=tuple(map(workstation, names)),
        **fields,
    )
