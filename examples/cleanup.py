"""Clean up temporary files on every workstation, at two in the morning of its own clock.

    python examples/cleanup.py [FOLDER]          (default: /tmp)

A mandatory background job: it runs at its time whether or not anybody is logged on, and is not
run any more where a machine comes up only after six.
"""

import sys
from datetime import datetime, time, timedelta

from broker import BrokerError, send
from schemas import Command, Job, WallClock, everyone


def main() -> int:
    """Send the job and say when it runs."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "/tmp"
    today = datetime.now().astimezone().date()
    tonight = datetime.combine(today + timedelta(days=1), time(hour=2))
    job = Job(
        name="nightly clean-up",
        command=Command(
            argv=("find", folder, "-xdev", "-type", "f", "-atime", "+10", "-print", "-delete"),
            background=True,
            timeout=timedelta(minutes=30),
            success_exit_codes=frozenset({0, 1}),  # 1: a file that was gone meanwhile
            platforms=frozenset({"linux"}),
        ),
        targets=(everyone,),
        mandatory_at=WallClock(local=tonight),
        expires_at=WallClock(local=tonight.replace(hour=6)),
    )
    try:
        send(job)
    except (BrokerError, ValueError) as error:
        print(f"cleanup: {error}", file=sys.stderr)
        return 1
    print(f"{job.id}: cleans {folder} at {tonight:%Y-%m-%d %H:%M} of each workstation's clock")
    print(f"look at it with: pcm watch {job.id}; take it back with: pcm cancel {job.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
