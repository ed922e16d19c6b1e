"""`pcm enrol`, `pcm rotate` and `pcm revoke`: who may be an agent, at the broker."""

import argparse
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broker.command_line import DONE, FAILED, OutOfReach, Parser, Wrong, WrongUse
from broker.commands.asking import agreed, check_askable
from broker.commands.session import name

if TYPE_CHECKING:
    from broker.enrolling.definitions import Definitions
    from broker.enrolling.enrolment import Enrolment
    from broker.enrolling.rights import Agent
    from broker.settings import ManagementSettings


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    enrol = commands.add_parser(
        "enrol",
        help="give a workstation's agents logins and queues of their own",
        description="Makes a broker user, a queue and its bindings for the service agent of a"
        " workstation and for the interactive agent of each user named, and prints with which"
        " settings the agents run. Such an agent reads its own queue and reports in its own name;"
        " it may declare, bind and unbind nothing. Again is safe: who is enrolled keeps the"
        " password and the queue with its jobs, and the groups are those named now, for users"
        " not named as well. The login needs the tag administrator (PCM_MANAGEMENT_URL).",
    )
    enrol.add_argument(
        "--group",
        metavar="G",
        action="append",
        default=[],
        type=name,
        help="a group that it is in; also os-linux and the like, which are not found out here",
    )
    enrol.add_argument(
        "--definitions",
        metavar="FILE",
        type=Path,
        help="change nothing at the broker: write, or add to, a file that its administrators"
        " import (rabbitmqctl import_definitions); passwords are in it as hashes",
    )
    enrol.add_argument(
        "--queue-type",
        choices=["quorum", "classic"],
        default="quorum",
        help="of queues that are made; classic for very large fleets (default: quorum)",
    )
    enrol.set_defaults(run=_enrol)
    rotate = commands.add_parser(
        "rotate",
        help="give a workstation's agents new passwords",
        description="Gives the agents of a workstation that are enrolled new passwords, prints"
        " the settings, and closes the connections made with the old ones. What waits, waits;"
        " what runs, runs on. Start the agents again with the new settings.",
    )
    rotate.set_defaults(run=_rotate)
    revoke = commands.add_parser(
        "revoke",
        help="take a workstation's agents their logins and queues",
        description="Deletes the broker users of a workstation's agents, closes their"
        " connections, and deletes their queues with the jobs that wait there. The history goes"
        " on listing the workstation: pcm forget removes it there.",
    )
    revoke.add_argument("--yes", action="store_true", help="do not ask back")
    revoke.set_defaults(run=_revoke)
    for command, whom in (
        (enrol, "a user who has an interactive agent there, too"),
        (rotate, "only this user's interactive agent"),
        (revoke, "only this user's interactive agent"),
    ):
        command.add_argument("workstation", metavar="WORKSTATION", type=name)
        command.add_argument(
            "--user", metavar="U", action="append", default=[], type=name, help=whom
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (enrol, rotate):
        command.add_argument(
            "--credentials",
            metavar="DIR|FILE",
            help="write the settings, one file an agent, that only you may read, instead of"
            " printing them",
        )
        command.add_argument(
            "--broker",
            metavar="URL",
            help="where agents find the broker, without a login; several are parted by commas"
            " (default: as in PCM_AMQP_URL)",
        )


def _enrol(arguments: argparse.Namespace) -> int:
    from broker.enrolling import definitions
    from broker.enrolling.rights import agents

    settings = _settings()
    groups = list(dict.fromkeys(arguments.group))
    named = agents(arguments.workstation, arguments.user)
    if arguments.definitions:
        file = _Definitions(arguments.definitions)
        enrolled = file.agents(arguments.workstation)
    else:
        enrolment = _enrolment(settings)
        with _told():
            enrolled = enrolment.enrolled(arguments.workstation)
    all_agents = sorted({*named, *enrolled})
    passwords = _passwords(agent for agent in all_agents if agent not in enrolled)
    with _handed_out(arguments, settings, all_agents, groups, passwords):
        if arguments.definitions:
            host = settings.virtual_host
            file.add(
                definitions.unbound(file.found, host, all_agents),
                {"vhosts": [{"name": host}]},
                definitions.central(host),
                definitions.of_agents(host, all_agents, groups, passwords, arguments.queue_type),
            )
        else:
            enrolment.enrol(all_agents, groups, passwords, arguments.queue_type)
    return DONE


def _rotate(arguments: argparse.Namespace) -> int:
    settings = _settings()
    enrolment = _enrolment(settings)
    with _told():
        agents = _chosen(enrolment.enrolled(arguments.workstation), arguments)
        groups = enrolment.groups(agents[0])
    passwords = _passwords(agents)
    with _handed_out(arguments, settings, agents, groups, passwords):
        enrolment.rotate(passwords)
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        check_askable("revoke")
    enrolment = _enrolment(_settings())
    with _told():
        agents = _chosen(enrolment.agents(arguments.workstation), arguments)
    logins = [agent.login for agent in agents]
    if not arguments.yes and not agreed(f"revoke {', '.join(logins)}, and the jobs that wait?"):
        return FAILED
    with _told():
        enrolment.revoke(agents)
    if arguments.json:
        print(json.dumps({"workstation": arguments.workstation, "revoked": logins}))
    else:
        print(f"{', '.join(logins)}: revoked")
    return DONE


def _settings() -> "ManagementSettings":
    from broker.settings import ManagementSettings, load

    return load(ManagementSettings)


def _enrolment(settings: "ManagementSettings") -> "Enrolment":
    from broker.enrolling.enrolment import Enrolment
    from broker.management import Management

    return Enrolment(Management.of(settings), settings.virtual_host)


@contextmanager
def _told() -> Iterator[None]:
    """Tell what went wrong with the management API in one line."""
    from broker.connection import BrokerError, Unreachable

    try:
        yield
    except Unreachable as error:
        raise OutOfReach(str(error)) from error
    except BrokerError as error:
        raise Wrong(str(error)) from error


def _passwords(agents: "Iterable[Agent]") -> dict[str, str]:
    return {agent.login: secrets.token_urlsafe(32) for agent in agents}


def _chosen(agents: "Sequence[Agent]", arguments: argparse.Namespace) -> "list[Agent]":
    """Return the agents that are meant: those of the users named, or all."""
    chosen = [agent for agent in agents if not arguments.user or agent.user in arguments.user]
    missing = set(arguments.user) - {agent.user for agent in chosen}
    if missing or not chosen:
        whom = "".join(f" --user {user}" for user in sorted(missing))
        raise Wrong(f"not enrolled: {arguments.workstation}{whom}; nothing was done")
    return chosen


class _Definitions:
    """A file of RabbitMQ's definitions that is added to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.found: Definitions = json.loads(path.read_text()) if path.exists() else {}
        except OSError as error:
            raise Wrong(f"--definitions: {path}: {error.strerror}") from error
        except ValueError as error:
            raise WrongUse(f"--definitions: {path} is no JSON: {error}") from error
        sections = self.found.values() if isinstance(self.found, dict) else [None]
        lists = [section for section in sections if isinstance(section, list)]
        if not isinstance(self.found, dict) or not all(
            isinstance(entry, dict) for entries in lists for entry in entries
        ):
            raise WrongUse(f"--definitions: {path} holds something else than definitions")

    def agents(self, workstation: str) -> "list[Agent]":
        """Return the agents of a workstation that it holds."""
        from broker.enrolling.rights import Agent

        names = (str(user.get("name")) for user in self.found.get("users", []))
        return [agent for name in names if (agent := Agent.of_login(name, workstation))]

    def add(self, *parts: "Definitions") -> None:
        """Write the file with more in it."""
        from broker.enrolling.credentials import SecretFile
        from broker.enrolling.definitions import merged

        text = json.dumps(merged(*parts), indent=2) + "\n"
        try:
            SecretFile(self._path, text).put()
        except OSError as error:
            raise Wrong(f"--definitions: {self._path}: {error.strerror}") from error


@contextmanager
def _handed_out(
    arguments: argparse.Namespace,
    settings: "ManagementSettings",
    agents: "Sequence[Agent]",
    groups: Sequence[str],
    passwords: dict[str, str],
) -> Iterator[None]:
    """Have the broker know the agents meanwhile; then hand out their settings.

    Files are written before: where that is not possible, nothing is done.
    """
    from broker.enrolling.credentials import SecretFile, settings_of, text_of, urls_in, urls_of

    brokers = _brokers(arguments, settings)
    given: list[tuple[Agent, dict[str, str] | None, Path | None]] = []
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
        with _told():
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


def _place(credentials: str | None, agent: "Agent", *, alone: bool) -> Path | None:
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
    given: "Sequence[tuple[Agent, dict[str, str] | None, Path | None]]",
    passwords: dict[str, str],
) -> None:
    from broker.enrolling.credentials import text_of

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
