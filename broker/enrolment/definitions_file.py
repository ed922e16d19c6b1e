"""The file of definitions that `pcm enrol` writes or extends."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from broker.amqp.topology import QueueType
from broker.enrolment.credentials import SecretFile
from broker.enrolment.definitions import (
    SECTIONS,
    Definitions,
    central,
    merged,
    of_agents,
    without_bindings,
)
from broker.enrolment.rights import AgentLogin
from schemas.errors import PcmError


class WrongDefinitions(PcmError):
    """A file holds something other than RabbitMQ definitions."""


class DefinitionsFile:
    """A file of RabbitMQ definitions for one virtual host."""

    def __init__(self, path: Path, virtual_host: str) -> None:
        """Read the file, if it exists.

        Raises:
            WrongDefinitions: it holds something else.
            OSError: it cannot be read.
        """
        self._path = path
        self._virtual_host = virtual_host
        try:
            self._content: Definitions = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise WrongDefinitions(f"{path} is not valid JSON: {error}") from error
        if not isinstance(self._content, dict) or not all(map(self._is_section, SECTIONS)):
            raise WrongDefinitions(f"{path} holds something other than definitions")

    def _is_section(self, name: str) -> bool:
        entries = self._content.get(name, [])
        return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)

    def enrolled(self, workstation: str) -> list[AgentLogin]:
        """Return the agents of a workstation in the file."""
        names = (str(user.get("name")) for user in self._content.get("users", []))
        return [agent for name in names if (agent := AgentLogin.of_login(name, workstation))]

    def enrol(
        self,
        agents: Iterable[AgentLogin],
        groups: Iterable[str],
        passwords: Mapping[str, str],
        queue_type: QueueType,
    ) -> None:
        """Add agents to the file; see `Enrolment.enrol`.

        Raises:
            OSError: the file cannot be written.
        """
        agents, host = list(agents), self._virtual_host
        content = merged(
            without_bindings(self._content, host, agents),
            {"vhosts": [{"name": host}]},
            central(host),
            of_agents(host, agents, groups, passwords, queue_type),
        )
        SecretFile(self._path, json.dumps(content, indent=2) + "\n").replace()
