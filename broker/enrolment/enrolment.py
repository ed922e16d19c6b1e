"""Create, change and delete the users, rights and queues of agents at a broker."""

from collections.abc import Iterable, Mapping

from broker.amqp import topology
from broker.amqp.management import Management
from broker.amqp.topology import QueueType
from broker.enrolment.definitions import Definitions, central, hashed, merged, of_agents
from broker.enrolment.rights import AgentLogin, unique_sorted

_PAGE_SIZE = 500


class Enrolment:
    """The enrolled agents of one virtual host. Each call can raise the errors of `Management`."""

    def __init__(self, management: Management, virtual_host: str) -> None:
        self._management = management
        self._virtual_host = virtual_host

    def agents(self, workstation: str) -> list[AgentLogin]:
        """Return the agents of a workstation that have a broker user."""
        query = {"name": f"@{workstation}$", "use_regex": "true"}
        response = self._management.get("users", page=1, page_size=_PAGE_SIZE, **query)
        # RabbitMQ 3.10 ignores the query and lists all users.
        users = response["items"] if isinstance(response, dict) else response
        agents = (AgentLogin.of_login(user["name"], workstation) for user in users)
        return unique_sorted(agent for agent in agents if agent)

    def enrolled(self, workstation: str) -> list[AgentLogin]:
        """Return the agents of a workstation that also have permissions.

        The enrolment of the others was interrupted.
        """
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
        """Create users, rights, queues and bindings for agents of one workstation.

        It can be repeated. Existing queues keep their type and their jobs; bindings that they
        should not have are removed.

        Args:
            agents: the agents.
            groups: the groups of the workstation.
            passwords: new passwords, by login; the other agents keep theirs.
            queue_type: the type of new queues.
        """
        agents = list(agents)
        wanted = of_agents(self._virtual_host, agents, groups, passwords, queue_type)
        self._management.post("definitions", body=merged(central(self._virtual_host), wanted))
        for agent in agents:
            self._unbind(agent, wanted)

    def groups(self, agent: AgentLogin) -> list[str]:
        """Return the groups in the bindings of an agent's queue."""
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
                path = ("bindings", host, "e", source, "q", agent.queue)
                self._management.delete(*path, binding["properties_key"])

    def rotate(self, passwords: Mapping[str, str]) -> None:
        """Set new passwords of logins, and close their connections."""
        for login, password in passwords.items():
            self._management.put("users", login, body={"tags": "", **hashed(password)})
            self._close_connections(login)

    def revoke(self, agents: Iterable[AgentLogin]) -> None:
        """Delete the users of agents, and their queues with the queued jobs."""
        for agent in agents:
            if self._management.get("users", agent.login) is not None:
                # Lock the login first, so that it cannot reconnect. The connections of a deleted
                # user could not be closed.
                locked = {"tags": "", "password_hash": ""}
                self._management.put("users", agent.login, body=locked)
                self._close_connections(agent.login)
                self._management.delete("users", agent.login)
            self._management.delete("queues", self._virtual_host, agent.queue)

    def _close_connections(self, login: str) -> None:
        self._management.delete("connections", "username", login)
