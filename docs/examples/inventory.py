"""Collect an inventory from every workstation: kernel, disk and memory, as a table.

    python docs/examples/inventory.py --to all

The job is a background job: the service agents run it immediately, and no user sees it.
"""

import json
import sys
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from broker import BrokerError, Progress, send_and_wait
from broker.cli.command_line import Parser
from schemas import Command, Job, State, Target, explain

# Print one line of JSON, with programs that every Linux machine has.
SCRIPT = r"""
set -e
kernel=$(uname -r)
disk=$(df -Pk / | awk 'NR == 2 { print $4 }')
memory=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
printf '{"kernel": "%s", "disk_free": %s, "memory": %s}\n' "$kernel" "$disk" "$memory"
"""


def make_job(targets: list[str]) -> Job:
    """Return the job."""
    return Job(
        name="inventory",
        command=Command(argv=(SCRIPT,), shell=True, background=True, timeout=timedelta(seconds=30)),
        targets=tuple(map(Target.parse, targets)),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )


def show(progress: Progress) -> None:
    """Print the table."""
    print(f"{'WORKSTATION':<20} {'KERNEL':<28} {'DISK FREE':>10} {'MEMORY':>10}")
    for name, report in sorted(progress.workstations.items()):
        if report.state is State.SUCCEEDED and report.result is not None:
            values = json.loads(report.result.stdout.head)
            disk, memory = (values[key] / 1024**2 for key in ("disk_free", "memory"))
            print(f"{name:<20} {values['kernel']:<28} {disk:>6.1f} GiB {memory:>6.1f} GiB")
        else:
            print(f"{name:<20} {report.state}: {report.reason}")


def main() -> int:
    """Send the job, wait for the results, and print them."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--to",
        metavar="TARGET",
        action="append",
        required=True,
        help="all, group:NAME or workstation:NAME; can be repeated",
    )
    arguments = parser.parse_args()
    try:
        progress = send_and_wait(make_job(arguments.to))
    except BrokerError as error:
        print(f"inventory: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        parser.error(explain(error))
    except ValueError as error:  # such as a wrong setting
        parser.error(str(error))
    show(progress)
    return 0 if progress.succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
