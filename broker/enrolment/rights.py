"""What an enrolled agent may do at the broker: read its own queue, report in its own name.

RabbitMQ's patterns are regular expressions, and match anywhere unless they are anchored. That of
a topic permission is matched against the very text of a binding key, wildcards and all; where an
exchange has no row for a user, the user may do everything there that its permissions allow.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from broker.amqp import topology
from broker.amqp.topology import AgentIdentity, AgentKind

NOTHING = "^$"


@dataclass(frozen=True)
class AgentLogin:
    """An agent that is, or is to be, enrolled."""

    kind: AgentKind
    workstation: str
    user: str = ""

    @classmethod
    def of_login(cls, login: str, workstation: str) -> Self | None:
        """Return the agent of a workstation that logs in so; None if none does."""
        bearer = topology.agent_of_login(login)
        return cls.of(bearer) if bearer and bearer.workstation == workstation else None

    @classmethod
    def of_queue(cls, queue: str) -> Self | None:
        """Return the agent whose queue has a name; None where it is no agent's."""
        owner = topology.agent_of_queue(queue)
        return cls.of(owner) if owner else None

    @classmethod
    def of(cls, bearer: AgentIdentity) -> Self:
        """Return the agent that a login or a queue is for."""
        kind, _, user = bearer.agent.partition("-")
        return cls(AgentKind(kind), bearer.workstation, user)

    @property
    def name(self) -> str:
        """Its name on its workstation."""
        return topology.agent_name(self.kind, self.user)

    @property
    def login(self) -> str:
        """The name of its broker user."""
        return topology.login(self.kind, self.workstation, self.user)

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return topology.queue_name(self.kind, self.workstation, self.user)


def agents(workstation: str, users: Iterable[str]) -> list[AgentLogin]:
    """Return the agents of a workstation: its service, and one for each user."""
    interactive = (AgentLogin(AgentKind.INTERACTIVE, workstation, user) for user in users)
    return [AgentLogin(AgentKind.SERVICE, workstation), *interactive]


def in_order(found: Iterable[AgentLogin]) -> list[AgentLogin]:
    """Return agents once each: the service, then those of users by name."""
    return sorted(set(found), key=lambda agent: (agent.kind is not AgentKind.SERVICE, agent.user))


def permissions(agent: AgentLogin) -> dict[str, str]:
    """Return what an agent may configure, write and read: of all names, two."""
    return {
        "configure": NOTHING,
        "write": _only(topology.REPORTS),
        "read": _only(agent.queue),
    }


def topic_permissions(agent: AgentLogin, groups: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return under which keys an agent may write and read, by exchange: all topic exchanges.

    Reading pcm.jobs is forbidden by its permissions already. This is the second wall.
    """
    own = topology.report_key("", agent.workstation, agent.name)
    keys = topology.binding_keys(agent.kind, agent.workstation, groups)
    return {
        topology.REPORTS: {"write": f"^[a-z_]+{re.escape(own)}$", "read": NOTHING},
        topology.JOBS: {"write": NOTHING, "read": _only(*keys)},
    }


def _only(*names: str) -> str:
    """Return the pattern of some names and no others."""
    escaped = "|".join(map(re.escape, names))
    return f"^({escaped})$" if len(names) > 1 else f"^{escaped}$"
