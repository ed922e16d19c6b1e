"""The file of definitions that `pcm enrol` writes, or adds to."""

import json
from pathlib import Path

from broker.cli.command_line import Wrong, WrongUse
from broker.enrolment.credentials import SecretFile
from broker.enrolment.definitions import SECTIONS, Definitions, merged
from broker.enrolment.rights import AgentLogin


class DefinitionsFile:
    """A file of RabbitMQ's definitions that is added to."""

    def __init__(self, path: Path) -> None:
        """Read the file, if it is there.

        Raises:
            Wrong: that is not possible, or it is something else.
        """
        self._path = path
        try:
            self.found: Definitions = json.loads(path.read_text()) if path.exists() else {}
        except OSError as error:
            raise Wrong(f"--definitions: {path}: {error.strerror}") from error
        except ValueError as error:
            raise WrongUse(f"--definitions: {path} is no JSON: {error}") from error
        if not isinstance(self.found, dict) or not all(map(self._is_section, SECTIONS)):
            raise WrongUse(f"--definitions: {path} holds something else than definitions")

    def _is_section(self, name: str) -> bool:
        entries = self.found.get(name, [])
        return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)

    def agents(self, workstation: str) -> list[AgentLogin]:
        """Return the agents of a workstation that it holds."""
        names = (str(user.get("name")) for user in self.found.get("users", []))
        return [agent for name in names if (agent := AgentLogin.of_login(name, workstation))]

    def add(self, *parts: Definitions) -> None:
        """Write the file with more in it."""
        text = json.dumps(merged(*parts), indent=2) + "\n"
        try:
            SecretFile(self._path, text).put()
        except OSError as error:
            raise Wrong(f"--definitions: {self._path}: {error.strerror}") from error
