"""Offer an optional command to the users of a group, and print their decisions.

    python docs/examples/ask_users.py GROUP -- COMMAND [ARG]...

The job is an optional foreground job. The interactive agents offer it for a day, and a command
runs only if its user starts it (`pcm-agent run JOB`).
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from broker import BrokerError, Dispatcher
from broker.cli.command_line import Parser
from schemas import Command, Job, State, explain, group

TEXTS = {
    State.OFFERED: "was offered it",
    State.POSTPONED: "postponed it",
    State.DECLINED: "declined it",
    State.ACCEPTED: "accepted it",
    State.SUCCEEDED: "ran it successfully",
    State.FAILED: "ran it, and it failed",
    State.EXPIRED: "did not run it before it expired",
}


async def offer(job: Job) -> None:
    """Send the job, and print the users' decisions."""
    async with Dispatcher.connect() as dispatcher:
        await dispatcher.dispatch(job)
        print(f"{job.id}: offered until {job.expires_at}")
        async for report in dispatcher.follow(job.id):
            if text := TEXTS.get(report.state):
                user = report.agent.removeprefix("interactive-")
                print(f"{report.workstation}: {user} {text} {report.reason}".rstrip())


def main() -> int:
    """Read the arguments and offer the command."""
    parser = Parser(description=__doc__, usage="ask_users.py GROUP -- COMMAND [ARG]...")
    parser.add_argument("group", metavar="GROUP", help="the group of workstations")
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="the command to offer")
    arguments = parser.parse_args()
    try:
        job = Job(
            command=Command(argv=tuple(arguments.command)),
            targets=(group(arguments.group),),
            expires_at=datetime.now(UTC) + timedelta(days=1),
        )
        asyncio.run(offer(job))
    except BrokerError as error:
        print(f"ask_users: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        parser.error(explain(error))
    except ValueError as error:  # such as a wrong setting
        parser.error(str(error))
    except KeyboardInterrupt:
        pass  # the offer remains; only this script ends
    return 0


if __name__ == "__main__":
    sys.exit(main())
