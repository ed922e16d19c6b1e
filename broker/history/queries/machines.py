"""The machines behind the name of a workstation, by their agents' check-ins."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

from sqlalchemy import Connection, select

from broker.history.schema import machines

_RECENT = 7 * 86400  # seconds; older check-ins of another machine are ignored


@dataclass(frozen=True)
class MachineRow:
    """A machine on which an agent checked in. Times are seconds since the epoch.

    Attributes:
        machine: a hash of the machine's id.
        boot: a hash of its boot's id; clones of a disk differ in it.
        standby: whether the agent receives nothing, since another machine has its queue.
        first_offset: the stream's offset of its first check-in.
        last_offset: of its last one.
    """

    workstation: str
    agent: str
    machine: str
    boot: str
    standby: bool
    host: str
    address: str
    first_offset: int
    last_offset: int
    at: int
    interval: int
    up: bool

    def __str__(self) -> str:
        return f"{self.host} ({self.address}, machine {self.machine[:12]})"


def current(rows: Iterable[MachineRow], now: float, missed: float) -> list[MachineRow]:
    """Return the machine of each agent of a workstation, and others that have its name.

    The one that receives the agent's jobs is the first of its agent. Another one shares the name if
    it waits for the queue, or if it had the queue in between. One that checked in before the first
    check-in of its successor was replaced.

    Args:
        rows: the workstation's.
        now: seconds since the epoch.
        missed: the intervals without a check-in after which an agent is missing.
    """
    found: list[MachineRow] = []
    for _, group in groupby(sorted(rows, key=attrgetter("agent")), attrgetter("agent")):
        of_agent = [row for row in group if now - row.at <= _RECENT]
        holders = [row for row in of_agent if not row.standby]
        holder = max(holders, key=attrgetter("last_offset"), default=None)
        if holder is not None:
            found += [holder, *_overlapping(holder, holders)]
        found += [
            row
            for row in of_agent
            if row.standby
            and row.up
            and now - row.at <= missed * row.interval
            and not _received_later(row, holders)
        ]
    return found


def former_names(rows: Iterable[MachineRow]) -> dict[str, list[str]]:
    """Return the former names of workstations that were renamed, and still have their old name.

    A name that another machine has now is not one.
    """
    holders = sorted((row for row in rows if not row.standby), key=attrgetter("last_offset"))
    machine_of = {row.workstation: row.machine for row in holders}  # the last one
    spans: dict[str, dict[str, tuple[int, int]]] = {}  # of each machine under each name
    for row in holders:
        names = spans.setdefault(row.machine, {})
        first, _ = names.get(row.workstation, (row.first_offset, 0))
        names[row.workstation] = (min(first, row.first_offset), row.last_offset)
    found: dict[str, set[str]] = {}
    for machine, names in spans.items():
        *former, (newest, (first, _)) = sorted(names.items(), key=lambda item: item[1][1])
        for name, (_, last) in former:
            if last < first and machine_of[name] == machine:
                found.setdefault(newest, set()).add(name)
    return {name: sorted(names) for name, names in found.items()}


def duplicated(rows: Sequence[MachineRow]) -> list[str]:
    """Return the agents that several machines have."""
    agents = [row.agent for row in rows]
    return sorted({agent for agent in agents if agents.count(agent) > 1})


def _overlapping(holder: MachineRow, holders: Sequence[MachineRow]) -> list[MachineRow]:
    """Return the other machines that had the queue while this one had it, too.

    Boots of one machine are one, unless they overlap: then it is a clone.
    """
    same = [row for row in holders if row.machine == holder.machine]
    clones = [row for row in same if row.boot != holder.boot and _overlap(row, holder)]
    whole = replace(holder, first_offset=min(row.first_offset for row in same))
    others = [row for row in holders if row.machine != holder.machine and _overlap(row, whole)]
    newest: dict[tuple[str, str], MachineRow] = {}
    for row in sorted((*clones, *others), key=attrgetter("last_offset")):
        newest[row.machine, row.boot if row in clones else ""] = row
    return list(newest.values())


def _overlap(one: MachineRow, other: MachineRow) -> bool:
    return one.first_offset < other.last_offset and other.first_offset < one.last_offset


def _received_later(waiting: MachineRow, holders: Iterable[MachineRow]) -> bool:
    return any(
        (row.machine, row.boot) == (waiting.machine, waiting.boot)
        and row.last_offset > waiting.last_offset
        for row in holders
    )


def read_machines(connection: Connection) -> dict[str, list[MachineRow]]:
    """Return all machines by their workstations' names."""
    rows: dict[str, list[MachineRow]] = {}
    for row in connection.execute(select(machines)):
        rows.setdefault(row.workstation, []).append(MachineRow(**row._asdict()))
    return rows
