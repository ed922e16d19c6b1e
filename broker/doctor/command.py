"""`pcm doctor`: what of the broker and of this machine is unsafe, or will break."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, BrokerUnreachable, CommandError, Parser
from broker.cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.doctor.finding import Finding


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    doctor = commands.add_parser(
        "doctor",
        help="what is unsafe, or will break",
        description="Looks at the live broker and at this machine, changes nothing, and says what"
        " is unsafe, what will break, and what is worth a look; each with its remedy. Most of it"
        " is told by RabbitMQ's management API (PCM_MANAGEMENT_URL), to a login with the tag"
        " administrator; where it does not tell, that is said. Of an agent here it looks at"
        " PCM_STATE_DIR and PCM_TRUSTED_KEYS. Exit status 1 says that something was found.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from broker.amqp.connection import BrokerError, Unreachable
    from broker.doctor.checks import CHECKS, diagnose

    try:
        findings = diagnose()
    except Unreachable as error:
        raise BrokerUnreachable(str(error)) from error
    except BrokerError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        rows = [asdict(finding) for finding in findings]
        print(json.dumps({"findings": rows, "checks": len(CHECKS)}, indent=2))
    else:
        _print(findings, len(CHECKS))
    return FAILED if findings else DONE


def _print(findings: "Sequence[Finding]", checks: int) -> None:
    for finding in findings:
        print(f"{finding.severity.upper()}: {printable(finding.text)}")
        print(f"    {printable(finding.remedy)}")
    counts = Counter(finding.severity for finding in findings)
    told = ", ".join(f"{severity}: {count}" for severity, count in counts.items())
    print(f"{told or 'nothing found'} ({checks} checks)")
