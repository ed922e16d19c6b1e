"""The data of all checks, gathered once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from broker.history.queries.workstations import WorkstationRow

Row = Mapping[str, Any]
"""An object of the management API."""


@dataclass(frozen=True)
class Unchecked:
    """What could not be checked, and why."""

    what: str
    why: str
    remedy: str


@dataclass(frozen=True)
class ManagementData:
    """The management API's data of the broker and of one virtual host."""

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
        """Whether the broker collects statistics."""
        return "listeners" in self.overview


@dataclass(frozen=True)
class FileInfo:
    """A file or folder of this machine."""

    path: str
    mode: int
    owner: int
    is_folder: bool

    @property
    def open_to(self) -> str:
        """Who else can write to it: `everybody`, `its group`, or empty."""
        return "everybody" if self.mode & 0o002 else "its group" if self.mode & 0o020 else ""


@dataclass(frozen=True)
class LocalFiles:
    """An agent's folders and keys on this machine, and our own settings.

    Attributes:
        user: the user id of this process.
        shared: the folders that all agents of the workstation can write to.
        private: the files and folders of one agent.
        keys: the folder of trusted keys, and its files.
        settings: the file of settings in the current folder.
    """

    user: int
    shared: Sequence[FileInfo] = ()
    private: Sequence[FileInfo] = ()
    keys: Sequence[FileInfo] = ()
    settings: Sequence[FileInfo] = ()


@dataclass(frozen=True)
class BrokerSnapshot:
    """The data of all checks.

    Attributes:
        now: this machine's time, in seconds since the epoch.
        urls: the broker's URLs, with our login.
        virtual_host: the virtual host.
        version: the broker's version.
        clock_offset: seconds that the broker's clock is ahead of ours; None: unknown.
        missing: the missing exchanges and queues of the topology.
        dead_letters: the number of dead letters; None: unknown.
        managed: the management API's data; None: not available.
        fleet: the workstations in the history; None: not available.
        machine: the files of this machine.
        unchecked: what could not be checked.
    """

    now: float
    urls: Sequence[URL]
    virtual_host: str
    version: tuple[int, ...]
    clock_offset: float | None
    missing: Sequence[str]
    dead_letters: int | None
    managed: ManagementData | None
    fleet: Sequence[WorkstationRow] | None
    local_files: LocalFiles
    unchecked: Sequence[Unchecked] = field(default=())

    @property
    def version_text(self) -> str:
        """The version as text."""
        return ".".join(map(str, self.version))
