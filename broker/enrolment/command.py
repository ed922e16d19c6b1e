"""`pcm enrol`, `pcm rotate` and `pcm revoke`: logins and queues of agents."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from broker.cli.command_line import DONE, FAILED, CommandError, Parser, UsageError
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import name, user, valid_text
from broker.cli.targets import read_workstations
from broker.enrolment.definitions_file import WrongDefinitions
from broker.enrolment.delivery import brokers_of, delivered, management_errors
from broker.enrolment.workstation import Prepare, agents_with_login, enrol, revoke_agents, rotate

_ONE_USER = "only this user's interactive agent; repeat for more"


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    _add_enrol(commands)
    _add_rotate(commands)
    _add_revoke(commands)


def _add_enrol(commands: "argparse._SubParsersAction[Parser]") -> None:
    enrol = commands.add_parser(
        "enrol",
        description="Creates a broker user, a queue and its bindings for the service agent of each"
        " workstation and for the interactive agent of each named user, and prints the settings"
        " of the agents. Such an agent can read its own queue and report in its own name; it"
        " cannot declare, bind or unbind. The command can be repeated: enrolled agents keep their"
        " passwords and their queues with the jobs, and all agents get the groups named now."
        " The login needs the tag administrator (PCM_MANAGEMENT_URL).",
    )
    enrol.add_argument(
        "--group",
        metavar="G",
        action="append",
        default=[],
        type=name,
        help="a group of the workstation; name automatic groups such as os-linux, too",
    )
    enrol.add_argument(
        "--definitions",
        metavar="FILE",
        type=Path,
        help="do not change the broker: write, or extend, a file that its administrators import"
        " (rabbitmqctl import_definitions); it contains hashes of the passwords",
    )
    enrol.add_argument(
        "--queue-type",
        choices=["quorum", "classic"],
        default="quorum",
        help="of new queues; classic for very large fleets (default: quorum)",
    )
    _add_agents(enrol, user, "a user with an interactive agent; repeat for more")
    _add_brokers(enrol)
    enrol.set_defaults(run=_enrol)


def _add_rotate(commands: "argparse._SubParsersAction[Parser]") -> None:
    rotate = commands.add_parser(
        "rotate",
        description="Sets new passwords for the enrolled agents of workstations, prints their"
        " settings, and closes the connections made with the old passwords. Queued jobs stay, and"
        " running jobs continue. Restart the agents with the new settings.",
    )
    _add_agents(rotate, valid_text, _ONE_USER)
    _add_brokers(rotate)
    rotate.set_defaults(run=_rotate)


def _add_revoke(commands: "argparse._SubParsersAction[Parser]") -> None:
    revoke = commands.add_parser(
        "revoke",
        description="Deletes the broker users of workstations' agents, closes their"
        " connections, and deletes their queues with the queued jobs. The history still lists the"
        " workstations, as revoked: pcm forget removes them.",
    )
    revoke.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    _add_agents(revoke, valid_text, _ONE_USER)
    revoke.set_defaults(run=_revoke)


def _add_agents(command: Parser, read_user: Callable[[str], str], user_help: str) -> None:
    """Add the options that name workstations and users, and the output format."""
    command.add_argument(
        "workstation",
        metavar="WORKSTATION",
        nargs="+",
        help="a name, a list such as A,B, a file of names as @FILE, group:NAME, or a glob such"
        " as 'lab-*' for those in the history",
    )
    command.add_argument(
        "--user", metavar="U", action="append", default=[], type=read_user, help=user_help
    )
    command.add_argument("--json", action="store_true", help="print JSON, a line a workstation")


def _add_brokers(command: Parser) -> None:
    command.add_argument(
        "--credentials",
        metavar="DIR|FILE",
        help="write the settings to a file for each agent, which only you can read, instead"
        " of printing them",
    )
    command.add_argument(
        "--broker",
        metavar="URL",
        help="the broker's URL for the agents, without a login; several are comma-separated"
        " (default: PCM_AMQP_URL)",
    )


def _enrol(arguments: argparse.Namespace) -> int:
    def work(workstation: str, prepare: Prepare) -> None:
        try:
            enrol(
                workstation,
                arguments.user,
                arguments.group,
                queue_type=arguments.queue_type,
                definitions=arguments.definitions,
                brokers=brokers_of(arguments),
                prepare=prepare,
            )
        except WrongDefinitions as error:
            raise UsageError(f"--definitions: {error}") from error
        except OSError as error:
            if arguments.definitions is None:
                raise
            reason = f"--definitions: {arguments.definitions}: {error.strerror}"
            raise CommandError(reason) from error

    return _deliver_each(arguments, work)


def _rotate(arguments: argparse.Namespace) -> int:
    def work(workstation: str, prepare: Prepare) -> None:
        rotate(workstation, arguments.user, brokers=brokers_of(arguments), prepare=prepare)

    return _deliver_each(arguments, work)


def _deliver_each(arguments: argparse.Namespace, work: Callable[[str, Prepare], None]) -> int:
    """Work for each workstation, and deliver its settings before the next one is changed."""
    names = read_workstations(arguments.command, arguments.workstation)
    for done, workstation in enumerate(names):
        try:
            with delivered(arguments, workstation, alone=len(names) == 1) as prepare:
                work(workstation, prepare)
        except CommandError:
            if done:
                text = f"{done} of {len(names)} workstations are done; {workstation} is the next"
                print(f"pcm: {text}", file=sys.stderr)
            raise
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        require_terminal("revoke")
    names = read_workstations("revoke", arguments.workstation)
    with management_errors():
        agents = {name: agents_with_login(name, arguments.user) for name in names}
    logins = {name: [agent.login for agent in found] for name, found in agents.items()}
    every = [login for found in logins.values() for login in found]
    if not arguments.yes and not confirm(f"revoke {', '.join(every)}, and the queued jobs?"):
        return FAILED
    for workstation in names:
        with management_errors():
            revoke_agents(agents[workstation])
        if arguments.json:
            fields = {"workstation": workstation, "revoked": logins[workstation]}
            print(json.dumps(fields), flush=True)
        else:
            print(f"{', '.join(logins[workstation])}: revoked", flush=True)
    return DONE
