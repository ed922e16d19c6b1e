"""Packages on workstations, by the last inventories of their agents."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from broker.history.chunks import chunks
from broker.history.schema import contents, packages, workstations
from schemas import PackageCondition, PackageReference
from schemas.versions import version_key


@dataclass(frozen=True)
class PackageRow:
    """A package that an agent of a workstation ran. Times are seconds since the epoch.

    Attributes:
        command: the command that ran last.
        state: how it ended.
        installed: whether the package counts as installed.
        present: what detection said last; None if the package has none.
        checked_at: when detection ran.
    """

    workstation: str
    agent: str
    name: str
    version: str
    manifest: str
    command: str
    state: str
    installed: bool
    present: bool | None
    ran_at: float
    checked_at: float | None


@dataclass(frozen=True)
class PackageCount:
    """A version of a package, and on how many workstations it is, or is no longer."""

    name: str
    version: str
    installed: int
    absent: int


@dataclass(frozen=True)
class ContentRow:
    """Content that an open job needs, at an agent; sizes in bytes, the rate a second."""

    workstation: str
    agent: str
    manifest: str
    name: str
    version: str
    state: str
    received: int
    size: int
    rate: int
    reason: str
    at: float

    @property
    def percent(self) -> int:
        """The received part, from 0 to 100."""
        return min(100, self.received * 100 // self.size) if self.size else 0


class PackageQueries:
    """Query the packages of workstations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, name: str | None = None, *, installed: bool = False) -> list[PackageRow]:
        """Return the packages of all agents, in order of name, workstation and agent.

        Args:
            name: only this package.
            installed: only where it counts as installed.
        """
        query = select(packages).order_by(packages.c.name, packages.c.workstation, packages.c.agent)
        if name is not None:
            query = query.where(packages.c.name == name)
        if installed:
            query = query.where(packages.c.installed.is_(True))
        return [PackageRow(**row._asdict()) for row in self._connection.execute(query)]

    def counts(self, name: str | None = None, *, installed: bool = False) -> list[PackageCount]:
        """Return how many workstations have each version; the highest version of each first."""
        there: Counter[tuple[str, str]] = Counter()
        gone: Counter[tuple[str, str]] = Counter()
        best: dict[tuple[str, str, str], bool] = {}  # several agents of a workstation count once
        for row in self.rows(name, installed=installed):
            key = (row.name, row.version, row.workstation)
            best[key] = best.get(key, False) or row.installed
        for (package, version, _), is_there in best.items():
            (there if is_there else gone)[package, version] += 1
        keys = sorted(there.keys() | gone.keys(), key=lambda key: version_key(key[1]), reverse=True)
        return [
            PackageCount(*key, there[key], gone[key])
            for key in sorted(keys, key=lambda key: key[0])
        ]

    def names(self) -> set[str]:
        """Return the names of all packages that some agent ran."""
        return set(self._connection.scalars(select(packages.c.name).distinct()))

    def matching(self, condition: PackageCondition) -> list[str]:
        """Return the known workstations on which a condition holds, in order of name."""
        rows = self.rows(condition.spec.name, installed=True)
        have = {row.workstation for row in rows if condition.spec.allows(row.version)}
        known = set(self._connection.scalars(select(workstations.c.name)))
        return sorted(known & have if condition.scope == "installed" else known - have)

    def contents(self, package: PackageReference) -> list[ContentRow]:
        """Return the content of a job's package and of those it requires, at all agents."""
        manifests = [package.manifest, *(required.manifest for required in package.requires)]
        return self._contents(manifests)

    def _contents(self, manifests: Iterable[str]) -> list[ContentRow]:
        return [
            ContentRow(**row._asdict())
            for some in chunks(list(manifests))
            for row in self._connection.execute(
                select(contents)
                .where(contents.c.manifest.in_(some))
                .order_by(contents.c.workstation, contents.c.agent, contents.c.name)
            )
        ]
