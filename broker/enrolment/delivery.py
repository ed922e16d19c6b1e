"""Deliver the agents' settings: print them, or write them to files."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from broker.amqp.connection import BrokerError
from broker.cli.command_line import CommandError, UsageError
from broker.cli.session import as_command_error
from broker.cli.targets import suggestions, workstation_targets
from broker.enrolment.credentials import SecretFile, settings_of, text_of, urls_in
from broker.enrolment.workstation import NotEnrolled
from broker.settings import BrokerSettings
from schemas import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.enrolment.rights import AgentLogin
    from broker.enrolment.workstation import Credentials


class _Delivery(NamedTuple):
    """The credentials of an agent, the settings to deliver, and their file."""

    credentials: "Credentials"
    settings: dict[str, str] | None
    path: Path | None


@contextmanager
def management_errors() -> Iterator[None]:
    """Map errors of the management API to one-line messages."""
    try:
        yield
    except BrokerError as error:
        raise as_command_error(error) from error
    except NotEnrolled as error:
        near = suggestions(workstation_targets([error.workstation]))
        raise CommandError(f"{error}{near}") from error


@contextmanager
def delivered(
    arguments: argparse.Namespace, workstation: str, *, alone: bool
) -> "Iterator[Callable[[Sequence[Credentials]], None]]":
    """Yield a function that prepares a workstation's delivery; deliver at the end of the block.

    It writes temporary files: if they cannot be written, the broker is not changed. `alone`:
    whether it is the command's only workstation.
    """
    deliveries: list[_Delivery] = []
    files: list[SecretFile] = []

    def prepare(all_credentials: "Sequence[Credentials]") -> None:
        for credentials in all_credentials:
            one_file = alone and len(all_credentials) == 1
            path = _path(arguments.credentials, credentials.agent, alone=one_file)
            settings = _settings(credentials, path)
            deliveries.append(_Delivery(credentials, settings, path))
            if settings and path:
                try:
                    files.append(SecretFile(path, text_of(settings)))
                except OSError as error:
                    raise CommandError(f"--credentials: {path}: {error.strerror}") from error

    try:
        with management_errors():
            yield prepare
    except BaseException:
        for file in files:
            file.discard()
        raise
    for file in files:
        file.replace()
    _print(workstation, deliveries, as_json=arguments.json)


def _settings(credentials: "Credentials", path: Path | None) -> dict[str, str] | None:
    """Return the settings of an agent; with an unchanged password, that of the existing file."""
    if credentials.settings is not None:
        return dict(credentials.settings)
    urls = path and urls_in(path, credentials.agent)
    return settings_of(credentials.agent, urls, credentials.groups) if urls else None


def brokers_of(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the broker's URLs for the agents, without logins; None without --broker."""
    if arguments.broker is None:
        return None
    try:
        return BrokerSettings(amqp_url=arguments.broker).amqp_url
    except ValidationError as error:
        raise UsageError(f"--broker:{explain(error).partition(':')[2]}") from error


def _path(credentials: str | None, agent: "AgentLogin", *, alone: bool) -> Path | None:
    """Return the file of an agent's settings; None if they are printed."""
    if credentials is None:
        return None
    path = Path(credentials)
    if path.is_dir() or credentials.endswith("/"):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--credentials: {path}: {error.strerror}") from error
        return path / f"{agent.login}.env"
    if not alone:
        raise UsageError(f"--credentials: {path} is not a folder, and there are several agents")
    return path


def _print(workstation: str, deliveries: "Sequence[_Delivery]", *, as_json: bool) -> None:
    if as_json:
        fields = {
            "workstation": workstation,
            "groups": deliveries[0].credentials.groups,
            "agents": list(map(_as_json, deliveries)),
        }
        print(json.dumps(fields), flush=True)
        return
    for delivery in deliveries:
        _print_one(delivery)


def _as_json(delivery: _Delivery) -> dict[str, Any]:
    (agent, settings, _), path = delivery.credentials, delivery.path
    return {
        "agent": agent.name,
        "login": agent.login,
        "queue": agent.queue,
        "password": "kept" if settings is None else "new",
        "file": str(path) if path and delivery.settings else None,
        "settings": None if path else delivery.settings,
    }


def _print_one(delivery: _Delivery) -> None:
    agent, settings, groups = delivery.credentials
    status = f"{agent.login}: " + ("keeps its password" if settings is None else "new")
    if delivery.settings and delivery.path:
        print(f"{status}; its settings are in {delivery.path}")
    elif delivery.settings:
        print(f"# {agent.login}\n{text_of(delivery.settings)}")
    else:
        print(
            f"# {status}; its groups are PCM_GROUPS={','.join(groups)} now"
            f" (for a new password: pcm rotate {agent.workstation}{agent.option})"
        )
