"""Tells the interactive agents of a workstation in whose session a mandatory job is to run.

A user who accepts it runs it. At the mandatory time it runs in the session of a user who answered,
else in that of the user at the screen, else in that of the user who was shown it first.

Each agent has a file among the claims, which it locks until its process ends, with the standing of
each job that its user was shown. A file only makes another agent leave the claim for some seconds:
the claim alone decides who runs the job.
"""

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from agents.claims.claim_file import OPEN_FLAGS, check_regular
from agents.claims.service_liveness import lock_exclusively
from agents.identity import Identity
from agents.store.state_folder import claims_directory
from broker.amqp.topology import AgentKind, agent_word
from broker.log import get_logger

_log = get_logger()
PREFIX = ".standing."
_READ_LIMIT = 256 * 1024
_UNREADABLE = (ValueError, TypeError, LookupError, RecursionError, OverflowError)
_LOGIND_USERS = Path("/run/systemd/users")


@dataclass(frozen=True)
class Standing:
    """A mandatory job in a user's session. Times are seconds since the epoch.

    Attributes:
        due_at: when it runs there.
        accepted: whether the user said run.
        answered: whether the user accepted or ever postponed it.
        shown_at: when the user was shown it.
    """

    due_at: float
    accepted: bool
    answered: bool
    shown_at: float

    def rank(self, user_id: int) -> tuple[bool, bool, bool, float]:
        """Return the sort key of sessions: the job runs in the one with the greatest."""
        return (self.accepted, self.answered, is_at_screen(user_id), -self.shown_at)


class Standings:
    """The standings of an agent's jobs, and of the other users' agents; a service has none."""

    def __init__(self, state_dir: Path, identity: Identity) -> None:
        self._directory = claims_directory(state_dir)
        self._path = self._directory / f"{PREFIX}{os.geteuid()}.{agent_word(identity.name)}"
        self._own: dict[str, Standing] = {}
        self._file = self._open() if identity.kind is AgentKind.INTERACTIVE else None

    def _open(self) -> int | None:
        """Open and lock this agent's file; without it, the others do not consider this agent."""
        try:
            with suppress(FileExistsError):
                flags = os.O_RDWR | OPEN_FLAGS | os.O_CREAT | os.O_EXCL
                os.close(os.open(self._path, flags, 0o644))
            file = check_regular(os.open(self._path, os.O_RDWR | OPEN_FLAGS))
            if lock_exclusively(file):
                os.fchmod(file, 0o644)  # independent of the umask
                return file
            os.close(file)
        except OSError as error:
            _log.warning("standings.unpublished", path=str(self._path), reason=error.strerror)
        return None

    def publish(self, standings: dict[str, Standing]) -> None:
        """Write this agent's standings by job id, if they have changed."""
        if standings == self._own:
            return
        self._own = standings
        if self._file is None:
            return
        text = json.dumps({job_id: astuple(own) for job_id, own in standings.items()}).encode()
        with suppress(OSError):  # the disk is full: the claim alone decides
            os.pwrite(self._file, text.ljust(os.fstat(self._file).st_size), 0)

    def prefers_other(self, job_id: str, now: float) -> bool:
        """Whether the job is due in a session that comes before this agent's."""
        own = self._own.get(job_id)
        if own is None or own.accepted:
            return False
        rank = own.rank(os.geteuid())
        return any(
            other.due_at <= now and other.rank(user_id) > rank
            for user_id, other in self.others(job_id)
        )

    def others(self, job_id: str) -> list[tuple[int, Standing]]:
        """Return the other running agents' standings of a job, with their users' ids."""
        found = []
        with suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.startswith(PREFIX) and entry.name != self._path.name:
                    with suppress(OSError, *_UNREADABLE):
                        found.append(_read(entry.path, job_id))
        return found

    def close(self) -> None:
        """Unlock this agent's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read(path: str, job_id: str) -> tuple[int, Standing]:
    """Return the user's id and the standing of a job in an agent's file.

    Raises:
        LookupError: its agent does not run, was not shown the job, or is not the file's owner's.
    """
    file = check_regular(os.open(path, os.O_RDONLY | OPEN_FLAGS))
    try:
        user_id = os.fstat(file).st_uid
        if not Path(path).name.startswith(f"{PREFIX}{user_id}."):
            raise LookupError(path)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise LookupError(path)  # its agent has ended
        due_at, accepted, answered, shown_at = json.loads(os.pread(file, _READ_LIMIT, 0))[job_id]
        return user_id, Standing(float(due_at), accepted is True, answered is True, float(shown_at))
    finally:
        os.close(file)


def is_at_screen(user_id: int) -> bool:
    """Whether a user's session is the active one of a seat, according to logind."""
    try:
        lines = (_LOGIND_USERS / str(user_id)).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("ACTIVE_SEATS=") and line != "ACTIVE_SEATS=" for line in lines)
