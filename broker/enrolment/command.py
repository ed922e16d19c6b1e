"""`pcm enrol`, `pcm rotate` and `pcm revoke`: logins and queues of agents."""

import argparse
import json
from pathlib import Path

from broker.cli.command_line import DONE, FAILED, CommandError, Parser, UsageError
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import name, user, valid_text
from broker.enrolment.definitions_file import WrongDefinitions
from broker.enrolment.delivery import brokers_of, delivered, management_errors
from broker.enrolment.workstation import agents_with_login, enrol, revoke_agents, rotate


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    enrol = commands.add_parser(
        "enrol",
        description="Creates a broker user, a queue and its bindings for the service agent of a"
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
    enrol.set_defaults(run=_enrol)
    rotate = commands.add_parser(
        "rotate",
        description="Sets new passwords for the enrolled agents of a workstation, prints their"
        " settings, and closes the connections made with the old passwords. Queued jobs stay, and"
        " running jobs continue. Restart the agents with the new settings.",
    )
    rotate.set_defaults(run=_rotate)
    revoke = commands.add_parser(
        "revoke",
        description="Deletes the broker users of a workstation's agents, closes their"
        " connections, and deletes their queues with the queued jobs. The history still lists the"
        " workstation, as revoked: pcm forget removes it.",
    )
    revoke.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    revoke.set_defaults(run=_revoke)
    for command, text in (
        (enrol, "a user with an interactive agent; repeat for more"),
        (rotate, "only this user's interactive agent; repeat for more"),
        (revoke, "only this user's interactive agent; repeat for more"),
    ):
        command.add_argument("workstation", metavar="WORKSTATION", type=name)
        command.add_argument(
            "--user",
            metavar="U",
            action="append",
            default=[],
            type=user if command is enrol else valid_text,
            help=text,
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (enrol, rotate):
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
    try:
        with delivered(arguments) as prepare:
            enrol(
                arguments.workstation,
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
        raise CommandError(f"--definitions: {arguments.definitions}: {error.strerror}") from error
    return DONE


def _rotate(arguments: argparse.Namespace) -> int:
    with delivered(arguments) as prepare:
        rotate(
            arguments.workstation, arguments.user, brokers=brokers_of(arguments), prepare=prepare
        )
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        require_terminal("revoke")
    with management_errors():
        agents = agents_with_login(arguments.workstation, arguments.user)
    logins = [agent.login for agent in agents]
    if not arguments.yes and not confirm(f"revoke {', '.join(logins)}, and the queued jobs?"):
        return FAILED
    with management_errors():
        revoke_agents(agents)
    if arguments.json:
        print(json.dumps({"workstation": arguments.workstation, "revoked": logins}))
    else:
        print(f"{', '.join(logins)}: revoked")
    return DONE
