"""Enrols agents, gives them new passwords, and takes all that from them, at a live broker."""

from collections.abc import Iterable, Mapping

from broker.amqp import topology
from broker.amqp.management import Management
from broker.amqp.topology import QueueType
from broker.enrolment.definitions import Definitions, central, hashed, merged, of_agents
from broker.enrolment.rights import AgentLogin, in_order

_PAGE = 500


class Enrolment:
    """The enrolled agents of one virtual host. Each call may raise what `Management` does."""

    def __init__(self, management: Management, virtual_host: str) -> None:
        self._management = management
        self._virtual_host = virtual_host

    def agents(self, workstation: str) -> list[AgentLogin]:
        """Return the agents of a workstation that have users."""
        query = {"name": f"@{workstation}$", "use_regex": "true"}
        found = self._management.get("users", page=1, page_size=_PAGE, **query)
        # RabbitMQ 3.10 lists all users, whatever it is asked.
        users = found["items"] if isinstance(found, dict) else found
        agents = (AgentLogin.of_login(user["name"], workstation) for user in users)
        return in_order(agent for agent in agents if agent)

    def enrolled(self, workstation: str) -> list[AgentLogin]:
        """Return those of them that may do something: the enrolment of others was cut off."""
        return [
            agent
            for agent in self.agents(workstation)
            if self._management.get("users", agent.login, "permissions")
        ]

    def enrol(
        self,
        agents: Iterable[AgentLogin],
        groups: Iterable[str],
        passwords: Mapping[str, str],
        queue_type: QueueType,
    ) -> None:
        """Give agents of one workstation their users, rights, queues and bindings; again is safe.

        A queue that is there stays as it is, with its jobs; what it is bound by and should not
        be, it is unbound from.

        Args:
            agents: which.
            groups: the groups that the workstation is in.
            passwords: those that are new, by login; the other agents keep theirs.
            queue_type: of queues that are made.
        """
        agents = list(agents)
        wanted = of_agents(self._virtual_host, agents, groups, passwords, queue_type)
        self._management.post("definitions", body=merged(central(self._virtual_host), wanted))
        for agent in agents:
            self._unbind(agent, wanted)

    def groups(self, agent: AgentLogin) -> list[str]:
        """Return the groups by which an agent's queue is bound."""
        path = ("queues", self._virtual_host, agent.queue, "bindings")
        keys = [str(binding["routing_key"]) for binding in self._management.get(*path) or []]
        return topology.groups_in(keys)

    def _unbind(self, agent: AgentLogin, wanted: Definitions) -> None:
        keys = {
            binding["routing_key"]
            for binding in wanted["bindings"]
            if binding["destination"] == agent.queue
        }
        host = self._virtual_host
        for binding in self._management.get("queues", host, agent.queue, "bindings") or []:
            source, key = binding["source"], binding["routing_key"]
            if source and (source != topology.JOBS or key not in keys or binding["arguments"]):
                place = ("bindings", host, "e", source, "q", agent.queue)
                self._management.delete(*place, binding["properties_key"])

    def rotate(self, passwords: Mapping[str, str]) -> None:
        """Give logins new passwords, and close their connections; queues are not touched."""
        for login, password in passwords.items():
            self._management.put("users", login, body={"tags": "", **hashed(password)})
            self._close_connections(login)

    def revoke(self, agents: Iterable[AgentLogin]) -> None:
        """Delete the users of agents and their queues, with what waits in them."""
        for agent in agents:
            if self._management.get("users", agent.login) is not None:
                # First, that nobody comes in meanwhile; a deleted user's could not be closed.
                shut = {"tags": "", "password_hash": ""}
                self._management.put("users", agent.login, body=shut)
                self._close_connections(agent.login)
                self._management.delete("users", agent.login)
            self._management.delete("queues", self._virtual_host, agent.queue)

    def _close_connections(self, login: str) -> None:
        self._management.delete("connections", "username", login)
