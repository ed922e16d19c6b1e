"""Offer the users of a group something that they may run when it suits them, and see who did.

    python docs/examples/ask_users.py GROUP -- COMMAND [ARG]...

An optional foreground job: the interactive agents offer it for a day, nothing runs unless a user
says so (`pcm-agent run JOB`), and this script tells of each decision as it is made.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from broker import BrokerError, Dispatcher
from broker.cli.command_line import Parser
from schemas import Command, Job, State, explain, group

TOLD = {
    State.OFFERED: "is offered it",
    State.POSTPONED: "wants to be asked again later",
    State.DECLINED: "does not want it",
    State.ACCEPTED: "said yes",
    State.SUCCEEDED: "has run it",
    State.FAILED: "ran it, and it failed",
    State.EXPIRED: "let the day go by",
}


async def offer(job: Job) -> None:
    """Send the job and tell what the users do."""
    async with Dispatcher.connect() as dispatcher:
        await dispatcher.dispatch(job)
        print(f"{job.id}: offered until {job.expires_at}")
        async for report in dispatcher.follow(job.id):
            if text := TOLD.get(report.state):
                who = report.agent.removeprefix("interactive-")
                print(f"{report.workstation}: {who} {text} {report.reason}".rstrip())


def main() -> int:
    """Read the arguments and offer the command."""
    parser = Parser(description=__doc__, usage="ask_users.py GROUP -- COMMAND [ARG]...")
    parser.add_argument("group", metavar="GROUP", help="whose users are asked")
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="what they may run")
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
        pass  # the offer stands; only the watching ends
    return 0


if __name__ == "__main__":
    sys.exit(main())
