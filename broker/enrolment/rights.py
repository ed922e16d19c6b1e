"""The permissions of an enrolled agent: read its own queue, and report in its own name.

RabbitMQ's patterns are regular expressions, and match anywhere in a name unless they are anchored.
A topic permission is matched against the text of a binding key, including its wildcards. Without a
topic permission on an exchange, a user can use every key there.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from broker.amqp import topology
from broker.amqp.topology import AgentIdentity, AgentKind
from schemas.names import user_of_word, user_word

NOTHING = r"^\z"  # not $, which in RabbitMQ also matches before a line end


@dataclass(frozen=True)
class AgentLogin:
    """An agent with a broker user of its own, or one that is to get it.

    Attributes:
        kind: its kind.
        workstation: its workstation.
        user: its user's login name; a name that is too long is shortened, as in the broker.
    """

    kind: AgentKind
    workstation: str
    user: str = ""

    @classmethod
    def of_login(cls, login: str, workstation: str) -> Self | None:
        """Return the agent of a workstation with a login; None if the login is not one's."""
        identity = topology.agent_of_login(login)
        matches = identity is not None and identity.workstation == workstation
        return cls.of(identity) if identity and matches else None

    @classmethod
    def of_queue(cls, queue: str) -> Self | None:
        """Return the agent of a queue; None if it is not an agent's queue."""
        identity = topology.agent_of_queue(queue)
        return cls.of(identity) if identity else None

    @classmethod
    def of(cls, identity: AgentIdentity) -> Self:
        """Return the agent of an identity."""
        kind, _, user = identity.agent.partition("-")
        return cls(AgentKind(kind), identity.workstation, user)

    @property
    def option(self) -> str:
        """The option that names its user in a command of `pcm`; empty for the service agent."""
        return f" --user {shlex.quote(self.user)}" if self.user else ""

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


def agents_of(workstation: str, users: Iterable[str]) -> list[AgentLogin]:
    """Return the agents of a workstation: the service agent, and one for each user."""
    interactive = (
        AgentLogin(AgentKind.INTERACTIVE, workstation, user_of_word(user_word(user)) or user)
        for user in users
    )
    return [AgentLogin(AgentKind.SERVICE, workstation), *interactive]


def unique_sorted(agents: Iterable[AgentLogin]) -> list[AgentLogin]:
    """Return each agent once: the service agent first, then the users' agents by name."""
    return sorted(set(agents), key=lambda agent: (agent.kind is not AgentKind.SERVICE, agent.user))


def permissions(agent: AgentLogin) -> dict[str, str]:
    """Return the patterns of the names that an agent may configure, write and read."""
    return {
        "configure": NOTHING,
        "write": _only(topology.REPORTS),
        "read": _only(agent.queue),
    }


def topic_permissions(agent: AgentLogin, groups: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the patterns of the keys that an agent may write and read, by topic exchange.

    Its permissions already forbid reading pcm.jobs; this is a second barrier.
    """
    own = topology.report_key("", agent.workstation, agent.name)
    keys = topology.binding_keys(agent.kind, agent.workstation, groups)
    return {
        topology.REPORTS: {"write": rf"^[a-z_]+{re.escape(own)}\z", "read": NOTHING},
        topology.JOBS: {"write": NOTHING, "read": _only(*keys)},
    }


def _only(*names: str) -> str:
    """Return the pattern that matches only these names."""
    escaped = "|".join(map(re.escape, names))
    return rf"^({escaped})\z" if len(names) > 1 else rf"^{escaped}\z"
