"""A virtual host of a managed broker, where workstations are enrolled as an administrator would."""

import json
import os
from pathlib import Path
from typing import Any

from yarl import URL

from broker.amqp.management import Management
from broker.settings import ManagementSettings
from tests.support import programs
from tests.support.rabbitmq import Broker
from tests.support.workstation import Workstation

Settings = dict[str, str]


class Site:
    """One virtual host, and its administrator."""

    def __init__(self, broker: Broker, virtual_host: str, folder: Path) -> None:
        self.broker = broker
        self.virtual_host = virtual_host
        self.url = str(URL(broker.url).with_path(f"/{virtual_host}"))
        self._folder = folder
        self.settings = ManagementSettings(
            amqp_url=(self.url,), management_url=broker.management_url
        )
        self.management = Management.of(self.settings)
        self.management.put("vhosts", virtual_host, body={})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.management.put("permissions", virtual_host, "guest", body=everything)

    def remove(self) -> None:
        """Delete the virtual host, and the users that were enrolled there."""
        for row in self.management.get("vhosts", self.virtual_host, "permissions"):
            if "@" in row["user"]:
                self.management.delete("users", row["user"])
        self.management.delete("vhosts", self.virtual_host)

    def pcm(self, *words: str, url: str = "") -> programs.Done:
        """Run pcm as the administrator."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PCM_AMQP_URL": url or self.url,
            "PCM_MANAGEMENT_URL": self.broker.management_url,
            "PCM_HISTORY_URL": f"sqlite:///{self._folder}/history.db",
        }
        return programs.run("pcm", words, environment)

    def asked(self, *words: str) -> Any:
        """Run pcm; return what it prints as JSON."""
        done = self.pcm(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def enrol(self, name: str, *words: str) -> dict[str, Settings]:
        """Enrol a workstation; return the settings of those agents that are new, by agent."""
        agents = self.asked("enrol", name, *words)["agents"]
        return {agent["agent"]: agent["settings"] for agent in agents if agent["settings"]}


def settle(workstation: Workstation, settings: Settings) -> None:
    """Have a workstation's agents run with settings that were handed out, and no others."""
    del workstation.environment["PCM_USER"]
    workstation.environment |= settings
