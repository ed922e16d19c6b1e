"""Decides whether a job can start, once it is due: its packages, and its conditions on others."""

from typing import TYPE_CHECKING

from agents.content.contents import Contents, NotReady
from agents.packages.inventory import Inventory
from agents.store.threads import ThreadPool
from agents.store.transaction import JobRecord
from broker.log import get_logger
from schemas import State
from schemas.text import listed

if TYPE_CHECKING:
    from agents.content.package_copy import PackageCopies
    from agents.packages.package_run import PackageRun

_log = get_logger()
_SHOWN = 3


def condition_objection(record: JobRecord, inventory: Inventory) -> str:
    """Return why a job's conditions on packages do not hold here; "" if they do."""
    conditions = record.job.only_if
    installed = inventory.installed()
    if conditions is None or any(condition.holds(installed) for condition in conditions):
        return ""
    return f"is only for {listed([str(condition) for condition in conditions], _SHOWN)}"


def conflict_objection(copies: "list[PackageCopies]", inventory: Inventory) -> str:
    """Return with which installed package a job's packages conflict; "" if with none."""
    installed = inventory.installed()
    for one in copies:
        manifest = one.package.manifest
        for spec in manifest.conflicts:
            version = installed.get(spec.name)
            if version is not None and spec.allows(version):
                return f"{manifest.name} conflicts with {spec.name}@{version}, which is installed"
    return ""


async def prepare(
    record: JobRecord,
    run: "PackageRun",
    contents: Contents,
    inventory: Inventory,
    threads: ThreadPool,
) -> tuple[State, str] | None:
    """Verify the packages of a due job for its run.

    Returns:
        None if it can start; else a final state and the reason, or RECEIVED: it waits again.
    """
    try:
        run.copies = await threads.submit(lambda: contents.prepare(record.job))
    except NotReady as error:
        _log.warning("content.not_ready", job=record.job.id, reason=str(error))
        contents.reject(record.job.id, error)
        return State.RECEIVED, str(error)
    # What is installed is removed also where it conflicts with something.
    reference = record.job.package
    if reference is None or reference.command == "uninstall":
        return None
    reason = conflict_objection(run.copies, inventory)
    return (State.NOT_APPLICABLE, reason) if reason else None
