"""The packages that an agent has run, and what their detection says now."""

import asyncio
from collections.abc import Callable
from functools import partial

from agents.store.ledger import Ledger
from agents.store.transaction import Transaction
from schemas.reports.packages import MAX_PACKAGES, InstalledPackage


class Inventory:
    """The packages that an agent has run, by name; kept in its ledger."""

    def __init__(self, ledger: Ledger, on_change: Callable[[], None]) -> None:
        self._ledger = ledger
        self._on_change = on_change
        self._packages: dict[str, InstalledPackage] = {}
        self._number = 0
        self._reported = 0
        self.changed = asyncio.Event()
        """Is set when a package was added or has changed."""

    async def restore(self) -> None:
        """Read the ledger."""
        found = await self._ledger.commit(Transaction.packages)
        self._packages = {package.name: package for package in found}
        self._number += bool(found)
        self.changed.set()

    def all(self) -> list[InstalledPackage]:
        """Return all packages."""
        return list(self._packages.values())

    def get(self, name: str) -> InstalledPackage | None:
        """Return a package; None if it never ran."""
        return self._packages.get(name)

    def installed(self) -> dict[str, str]:
        """Return the versions of the installed packages, by name."""
        return {
            name: package.version for name, package in self._packages.items() if package.installed
        }

    def save(self, package: InstalledPackage) -> "asyncio.Future[None]":
        """Store a package; the future resolves once it is on the disk."""
        former = self._packages.get(package.name)
        self._packages[package.name] = package
        self._number += 1
        self.changed.set()
        if former is None or _visible(former) != _visible(package):
            self._on_change()
        return self._ledger.commit(partial(Transaction.save_package, package=package))

    def to_report(self) -> tuple[int, tuple[InstalledPackage, ...] | None]:
        """Return what a check-in says: nothing, if the last one said the same; see `reported`."""
        if self._number == self._reported:
            return self._number, None
        latest = sorted(self._packages.values(), key=lambda package: package.ran_at, reverse=True)
        return self._number, tuple(latest[:MAX_PACKAGES])

    def reported(self, number: int) -> None:
        """Note that a check-in with this state was confirmed."""
        self._reported = max(self._reported, number)


def _visible(package: InstalledPackage) -> tuple[object, ...]:
    return (package.manifest, package.command, package.state, package.installed)
