"""What a job finds on this workstation: its platforms, its groups, its maintenance windows."""

import os
from dataclasses import dataclass

from agents import facts, platforms
from agents.settings import AgentSettings
from schemas import Job, Target, everyone, group, workstation
from schemas.maintenance_windows import NO_WINDOWS, Windows
from schemas.times import NEVER, duration_text


@dataclass(frozen=True)
class Host:
    """A workstation, as far as it decides whether and when a job starts.

    Attributes:
        platforms: what its commands can be made for.
        targets: all targets that mean it.
        windows: its maintenance windows.
        as_others: whether commands can be run as another user.
    """

    platforms: frozenset[str]
    targets: frozenset[Target] = frozenset()
    windows: Windows = NO_WINDOWS
    as_others: bool = True

    def unfit(self, job: Job, now: float) -> str:
        """Return why a job cannot be run here, whatever the time; nothing if it can."""
        wanted = job.command.platforms
        if wanted and not wanted & self.platforms:
            return f"runs on {', '.join(sorted(wanted))}; this is {max(self.platforms, key=len)}"
        if job.command.run_as and not self.as_others:
            return (
                f"run_as: {job.command.run_as}: this agent does not run as root, so it cannot run"
                " a command as another user"
            )
        if left_out := self.targets.intersection(job.excluded):
            return f"left out: {', '.join(sorted(map(str, left_out)))}"
        if self.start(job, now, now) == NEVER:
            timeout = duration_text(job.command.timeout)
            return f"its timeout of {timeout} fits in no maintenance window: {self.windows}"
        return ""

    def start(self, job: Job, at: float, now: float) -> float:
        """Return when a job that is due at a time may start: then, or in a later window."""
        if not job.respects_windows or at == NEVER:
            return at
        due = max(at, now)
        start = self.windows.start(due, job.command.timeout.total_seconds())
        return at if start == due else start


def targets(settings: AgentSettings) -> frozenset[Target]:
    """Return all targets that mean this workstation."""
    groups = map(group, (*settings.groups, *facts.gather().groups))
    return frozenset({everyone, workstation(settings.workstation), *groups})


def here(settings: AgentSettings) -> Host:
    """Return this workstation."""
    return Host(platforms.here(), targets(settings), settings.windows, os.geteuid() == 0)
