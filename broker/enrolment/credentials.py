"""What an enrolled agent is told: the settings with which `pcm-agent` runs as it is meant to."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from yarl import URL

from broker.amqp.topology import AgentKind
from broker.enrolment.rights import AgentLogin

_URL = "PCM_AMQP_URL"


def settings_of(agent: AgentLogin, urls: str, groups: Iterable[str]) -> dict[str, str]:
    """Return an agent's settings; `urls` hold its login."""
    return {
        _URL: urls,
        "PCM_WORKSTATION": agent.workstation,
        **({"PCM_USER": agent.user} if agent.kind is AgentKind.INTERACTIVE else {}),
        "PCM_GROUPS": ",".join(groups),
        "PCM_ENROLLED": "true",
    }


def urls_of(agent: AgentLogin, password: str, brokers: Sequence[str]) -> str:
    """Return the broker's URLs with an agent's login, parted by commas."""
    found = (URL(broker).with_user(agent.login).with_password(password) for broker in brokers)
    return ",".join(map(str, found))


def text_of(settings: dict[str, str]) -> str:
    """Return settings as a file has them: a .env file, or one that systemd or Docker reads."""
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def urls_in(path: Path, agent: AgentLogin) -> str | None:
    """Return the URLs in a file of an agent's settings; None if it is none of this agent's."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        name, _, value = line.partition("=")
        with suppress(ValueError):
            if name == _URL and URL(value.partition(",")[0]).user == agent.login:
                return value
    return None


class SecretFile:
    """A file that only its owner may read; it is there as a whole, or as it was before."""

    def __init__(self, path: Path, text: str) -> None:
        """Write the text beside the file: what cannot be written shows before anything is done.

        Raises:
            OSError: it cannot be written.
        """
        self.path = path
        self._new = path.with_name(f".{path.name}.{os.getpid()}.new")
        # Never through a link, and never into what others can read already.
        self._new.unlink(missing_ok=True)
        file = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w") as new:
            new.write(text)
            new.flush()
            os.fsync(new.fileno())

    def put(self) -> None:
        """Put it in its place."""
        self._new.replace(self.path)

    def drop(self) -> None:
        """Leave its place as it was."""
        self._new.unlink(missing_ok=True)
