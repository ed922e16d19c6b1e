"""Runs one command as an agent does, in a process of its own, and prints its outcome as JSON.

    python -m tests.support.one_command JOB OPTIONS SCRIPT

OPTIONS is a JSON object of the command's fields. SIGTERM cancels the command; SIGUSR1 kills it, as
an agent's second SIGTERM does.
"""

import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path

from agents.execution.command_run import CommandRun
from agents.execution.environment import command_environment, set_up_process
from schemas import Command, State


async def main(job_id: str, options: str, script: str) -> None:
    """Run the command."""
    command = Command(argv=(script,), shell=True, **json.loads(options))
    environment = command_environment(session=False)
    spool = Path(tempfile.mkdtemp()) / "spool"
    run = CommandRun(command, job_id, "ws-1", 65536, 0.3, environment, spool)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, run.stop, State.CANCELLED, "not wanted")

    def kill() -> None:
        run.quit("stopped")
        run.kill()

    loop.add_signal_handler(signal.SIGUSR1, kill)
    outcome = await run.complete()
    json.dump({"state": outcome.state, "reason": outcome.reason}, sys.stdout)


if __name__ == "__main__":
    set_up_process(1)
    asyncio.run(main(*sys.argv[1:]))
