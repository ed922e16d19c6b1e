"""The workstation that this agent is on: its platforms, its groups, its maintenance windows."""

import os

from agents import facts, platforms
from agents.settings import AgentSettings
from schemas import Target, everyone, group, workstation
from schemas.policy import Host


def targets(settings: AgentSettings) -> frozenset[Target]:
    """Return all targets that mean this workstation."""
    groups = map(group, (*settings.groups, *facts.gather().groups))
    return frozenset({everyone, workstation(settings.workstation), *groups})


def here(settings: AgentSettings) -> Host:
    """Return this workstation."""
    return Host(platforms.here(), targets(settings), settings.windows, os.geteuid() == 0)
