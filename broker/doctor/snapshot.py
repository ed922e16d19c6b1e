"""What the checks look at: gathered once, judged afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from broker.history.workstations import WorkstationRow

Row = Mapping[str, Any]
"""One thing as the management API tells it."""


@dataclass(frozen=True)
class Unseen:
    """What could not be looked at, and why."""

    what: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Managed:
    """What the management API tells of the broker and of one virtual host."""

    url: URL
    overview: Row
    nodes: Sequence[Row]
    virtual_host: Row
    flags: Sequence[Row]
    exchanges: Sequence[Row]
    queues: Sequence[Row]
    bindings: Sequence[Row]
    policies: Sequence[Row]
    connections: Sequence[Row]
    users: Sequence[Row] | None
    permissions: Sequence[Row]
    topic_permissions: Sequence[Row]

    @property
    def has_statistics(self) -> bool:
        """Whether the broker counts what goes on in it."""
        return "listeners" in self.overview


@dataclass(frozen=True)
class Surroundings:
    """A file or folder of this machine."""

    path: str
    mode: int
    owner: int
    is_folder: bool

    @property
    def open_to(self) -> str:
        """Whom else its mode lets write: `everybody`, `its group`, or nobody."""
        return "everybody" if self.mode & 0o002 else "its group" if self.mode & 0o020 else ""


@dataclass(frozen=True)
class Machine:
    """What is on this machine: an agent's folders, its keys, our own settings.

    Attributes:
        user: whose process this is.
        shared: the folders that all agents of the workstation may write to.
        private: what one agent alone may read and write.
        keys: the folder of trusted keys, and what is in it.
        settings: the file of settings in the folder where we are.
    """

    user: int
    shared: Sequence[Surroundings] = ()
    private: Sequence[Surroundings] = ()
    keys: Sequence[Surroundings] = ()
    settings: Sequence[Surroundings] = ()


@dataclass(frozen=True)
class BrokerSnapshot:
    """All that was found.

    Attributes:
        now: when, in seconds since the epoch, by this machine's clock.
        urls: where the broker is, with the login that looks.
        virtual_host: which of its virtual hosts.
        version: the broker's.
        ahead: seconds that its clock is ahead of ours; None: not known.
        missing: what of the topology is not there.
        letters: how many dead letters wait; None: not known.
        managed: what the management API tells; None: nothing.
        fleet: the workstations that the history knows; None: not known.
        machine: what is on this machine.
        unseen: what could not be looked at.
    """

    now: float
    urls: Sequence[URL]
    virtual_host: str
    version: tuple[int, ...]
    ahead: float | None
    missing: Sequence[str]
    letters: int | None
    managed: Managed | None
    fleet: Sequence[WorkstationRow] | None
    machine: Machine
    unseen: Sequence[Unseen] = field(default=())

    @property
    def version_text(self) -> str:
        """The version for people."""
        return ".".join(map(str, self.version))
