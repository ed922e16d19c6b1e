"""Clean up temporary files on every workstation, at 02:00 local time.

    python docs/examples/cleanup.py --to all [--folder FOLDER]

The job is a mandatory background job. It runs at its time whether or not a user is logged on. A
machine that starts after 06:00 does not run it.
"""

import sys
from datetime import datetime, time, timedelta

from pydantic import ValidationError

from broker import BrokerError, send
from broker.cli.command_line import Parser
from schemas import Command, Job, Target, WallClock, explain


def make_job(targets: list[str], folder: str, tonight: datetime) -> Job:
    """Return the job."""
    return Job(
        name="nightly clean-up",
        command=Command(
            argv=("find", folder, "-xdev", "-type", "f", "-atime", "+10", "-print", "-delete"),
            background=True,
            timeout=timedelta(minutes=30),
            success_exit_codes=frozenset({0, 1}),  # 1: a file was removed meanwhile
            platforms=frozenset({"linux"}),
        ),
        targets=tuple(map(Target.parse, targets)),
        mandatory_at=WallClock(local=tonight),
        expires_at=WallClock(local=tonight.replace(hour=6)),
    )


def main() -> int:
    """Send the job, and print when it runs."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--to",
        metavar="TARGET",
        action="append",
        required=True,
        help="all, group:NAME or workstation:NAME; can be repeated",
    )
    parser.add_argument(
        "--folder", default="/tmp", help="the folder to clean, an absolute path (default: /tmp)"
    )
    arguments = parser.parse_args()
    if not arguments.folder.startswith("/"):
        parser.error(f"--folder: {arguments.folder!r} must begin with /")
    today = datetime.now().astimezone().date()
    tonight = datetime.combine(today + timedelta(days=1), time(hour=2))
    try:
        job = make_job(arguments.to, arguments.folder, tonight)
        send(job)
    except BrokerError as error:
        print(f"cleanup: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        parser.error(explain(error))
    except ValueError as error:  # such as a wrong setting
        parser.error(str(error))
    print(f"{job.id}: cleans {arguments.folder} at {tonight:%Y-%m-%d %H:%M} local time there")
    print(f"watch it with: pcm watch {job.id}; cancel it with: pcm cancel {job.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
