"""The settings of an enrolled agent, as `pcm-agent` reads them."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from yarl import URL

from broker.enrolment.rights import AgentLogin

_URL = "PCM_AMQP_URL"
_PLAIN = re.compile(r"[\w.@+-]+")


def settings_of(agent: AgentLogin, urls: str, groups: Iterable[str]) -> dict[str, str]:
    """Return an agent's settings; `urls` contain its login.

    Without PCM_USER, an agent's user is the login name: systemd, Docker and the shell read
    special characters in different ways, and a shortened name is not known.
    """
    return {
        _URL: urls,
        "PCM_WORKSTATION": agent.workstation,
        **({"PCM_USER": agent.user} if _PLAIN.fullmatch(agent.user) else {}),
        "PCM_GROUPS": ",".join(groups),
        "PCM_ENROLLED": "true",
    }


def urls_of(agent: AgentLogin, password: str, brokers: Sequence[str]) -> str:
    """Return the broker's URLs with an agent's login, comma-separated."""
    urls = (URL(broker).with_user(agent.login).with_password(password) for broker in brokers)
    return ",".join(map(str, urls))


def format_settings(settings: dict[str, str]) -> str:
    """Return settings as the text of a .env file, which systemd and Docker read, too."""
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def urls_in(path: Path, agent: AgentLogin) -> str | None:
    """Return the URLs in an agent's file of settings; None if the file is not this agent's."""
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
    """A file that only its owner can read, replaced atomically."""

    def __init__(self, path: Path, text: str) -> None:
        """Write the text to a temporary file in the same folder.

        Raises:
            OSError: it cannot be written.
        """
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        # Never follow a link, or write to a file that others can read.
        self._temporary.unlink(missing_ok=True)
        file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())

    def replace(self) -> None:
        """Replace the file by the temporary file."""
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Delete the temporary file; the file is unchanged."""
        self._temporary.unlink(missing_ok=True)
