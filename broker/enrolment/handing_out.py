"""How agents' credentials reach those who set the agents up: once, on paper or in files."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import OutOfReach, Wrong, WrongUse

if TYPE_CHECKING:
    from broker.enrolment.rights import AgentLogin
    from broker.settings import ManagementSettings


@contextmanager
def management_errors() -> Iterator[None]:
    """Tell what went wrong with the management API in one line."""
    from broker.amqp.connection import BrokerError, Unreachable

    try:
        yield
    except Unreachable as error:
        raise OutOfReach(str(error)) from error
    except BrokerError as error:
        raise Wrong(str(error)) from error


@contextmanager
def handed_out(
    arguments: argparse.Namespace,
    settings: "ManagementSettings",
    agents: "Sequence[AgentLogin]",
    groups: Sequence[str],
    passwords: dict[str, str],
) -> Iterator[None]:
    """Have the broker know the agents meanwhile; then hand out their settings.

    Files are written before: where that is not possible, nothing is done.
    """
    from broker.enrolment.credentials import SecretFile, settings_of, text_of, urls_in, urls_of

    brokers = _brokers(arguments, settings)
    given: list[tuple[AgentLogin, dict[str, str] | None, Path | None]] = []
    files: list[SecretFile] = []
    try:
        for agent in agents:
            path = _place(arguments.credentials, agent, alone=len(agents) == 1)
            password = passwords.get(agent.login)
            urls = urls_of(agent, password, brokers) if password else path and urls_in(path, agent)
            told = settings_of(agent, urls, groups) if urls else None
            given.append((agent, told, path))
            if told and path:
                try:
                    files.append(SecretFile(path, text_of(told)))
                except OSError as error:
                    raise Wrong(f"--credentials: {path}: {error.strerror}") from error
        with management_errors():
            yield
    except BaseException:
        for file in files:
            file.drop()
        raise
    for file in files:
        file.put()
    _show(arguments, groups, given, passwords)


def _brokers(arguments: argparse.Namespace, settings: "ManagementSettings") -> tuple[str, ...]:
    """Return the URLs by which agents reach the broker; their logins do not count."""
    from pydantic import ValidationError

    from broker.settings import BrokerSettings
    from schemas import explain

    if arguments.broker is None:
        return settings.amqp_url
    try:
        return BrokerSettings(amqp_url=arguments.broker).amqp_url
    except ValidationError as error:
        raise WrongUse(f"--broker:{explain(error).partition(':')[2]}") from error


def _place(credentials: str | None, agent: "AgentLogin", *, alone: bool) -> Path | None:
    """Return where an agent's settings are written; None if they are printed."""
    if credentials is None:
        return None
    path = Path(credentials)
    if path.is_dir() or credentials.endswith("/"):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Wrong(f"--credentials: {path}: {error.strerror}") from error
        return path / f"{agent.login}.env"
    if not alone:
        raise WrongUse(f"--credentials: {path} is no folder, and there are several agents")
    return path


def _show(
    arguments: argparse.Namespace,
    groups: Sequence[str],
    given: "Sequence[tuple[AgentLogin, dict[str, str] | None, Path | None]]",
    passwords: dict[str, str],
) -> None:
    from broker.enrolment.credentials import text_of

    if arguments.json:
        rows: list[dict[str, Any]] = [
            {
                "agent": agent.name,
                "login": agent.login,
                "queue": agent.queue,
                "password": "new" if agent.login in passwords else "kept",
                "file": str(path) if path and told else None,
                "settings": None if path else told,
            }
            for agent, told, path in given
        ]
        found = {"workstation": arguments.workstation, "groups": groups, "agents": rows}
        print(json.dumps(found, indent=2))
        return
    for agent, told, path in given:
        whose = f"{agent.login}: " + ("new" if agent.login in passwords else "keeps its password")
        if told and path:
            print(f"{whose}; its settings are in {path}")
        elif told:
            print(f"# {agent.login}\n{text_of(told)}")
        else:
            user = f" --user {agent.user}" if agent.user else ""
            print(
                f"# {whose}; its groups are PCM_GROUPS={','.join(groups)} now"
                f" (a new password: pcm rotate {agent.workstation}{user})"
            )
