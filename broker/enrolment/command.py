"""`pcm enrol`, `pcm rotate` and `pcm revoke`: who may be an agent, at the broker."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, Parser, Wrong
from broker.cli.confirm import agreed, check_askable
from broker.cli.session import name
from broker.enrolment.handing_out import handed_out, management_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.enrolment.enrolment import Enrolment
    from broker.enrolment.rights import AgentLogin
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
        help="take logins and queues from a workstation's agents",
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
    from broker.enrolment import definitions
    from broker.enrolment.definitions_file import DefinitionsFile
    from broker.enrolment.rights import agents, in_order
    from broker.enrolment.workstation import new_passwords

    settings = _settings()
    groups = list(dict.fromkeys(arguments.group))
    named = agents(arguments.workstation, arguments.user)
    if arguments.definitions:
        file = DefinitionsFile(arguments.definitions)
        enrolled = file.agents(arguments.workstation)
    else:
        enrolment = _enrolment(settings)
        with management_errors():
            enrolled = enrolment.enrolled(arguments.workstation)
    all_agents = in_order([*named, *enrolled])
    passwords = new_passwords(agent for agent in all_agents if agent not in enrolled)
    with handed_out(arguments, settings, all_agents, groups, passwords):
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
    from broker.enrolment.workstation import new_passwords

    settings = _settings()
    enrolment = _enrolment(settings)
    with management_errors():
        agents = _chosen(enrolment.enrolled(arguments.workstation), arguments)
        groups = enrolment.groups(agents[0])
    passwords = new_passwords(agents)
    with handed_out(arguments, settings, agents, groups, passwords):
        enrolment.rotate(passwords)
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        check_askable("revoke")
    enrolment = _enrolment(_settings())
    with management_errors():
        agents = _chosen(enrolment.agents(arguments.workstation), arguments)
    logins = [agent.login for agent in agents]
    if not arguments.yes and not agreed(f"revoke {', '.join(logins)}, and the jobs that wait?"):
        return FAILED
    with management_errors():
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
    from broker.amqp.management import Management
    from broker.enrolment.enrolment import Enrolment

    return Enrolment(Management.of(settings), settings.virtual_host)


def _chosen(agents: "Sequence[AgentLogin]", arguments: argparse.Namespace) -> "list[AgentLogin]":
    """Return the agents that are meant: those of the users named, or all."""
    from broker.enrolment.workstation import NotEnrolled, chosen

    try:
        return chosen(agents, arguments.workstation, arguments.user)
    except NotEnrolled as error:
        raise Wrong(str(error)) from error
