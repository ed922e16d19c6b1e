"""`pcm doctor`: check the broker and this machine."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from broker.amqp.connection import BrokerError
from broker.cli.command_line import DONE, FAILED, Parser
from broker.cli.session import as_command_error
from broker.cli.terminal import printable
from broker.doctor.checks import CHECKS, diagnose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.doctor.finding import Finding


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    doctor = commands.add_parser(
        "doctor",
        description="Checks the running broker and this machine, changes nothing, and prints what"
        " is unsafe, what will break, and hints, each with its remedy. Most checks need"
        " RabbitMQ's management API (PCM_MANAGEMENT_URL), and a login with the tag"
        " administrator; checks that are not possible are listed. It also checks an agent's"
        " PCM_STATE_DIR and PCM_TRUSTED_KEYS on this machine. The exit status is 1 if there are"
        " findings.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    try:
        findings = diagnose()
    except BrokerError as error:
        raise as_command_error(error) from error
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
    summary = ", ".join(f"{severity}: {count}" for severity, count in counts.items())
    print(f"{summary or 'no findings'} ({checks} checks)")
