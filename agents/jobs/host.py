"""The workstation of this agent: its platforms, targets and maintenance windows."""

import os

from agents import facts, platforms
from agents.settings import AgentSettings
from schemas import Target, everyone, group, workstation
from schemas.policy import Host


def targets(settings: AgentSettings) -> frozenset[Target]:
    """Return all targets that include this workstation."""
    groups = map(group, (*settings.groups, *facts.gather_facts().groups))
    return frozenset({everyone, workstation(settings.workstation), *groups})


def this_host(settings: AgentSettings) -> Host:
    """Return this workstation as the policy sees it."""
    return Host(platforms.platform_names(), targets(settings), settings.windows, os.geteuid() == 0)
