"""Makes a run by its options and prints the result. Exit status 1: something forbidden happened."""

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tests.chaos
from broker.log import silence_amqp_libraries
from tests.chaos.plan import draw
from tests.chaos.run import Run
from tests.chaos.story import story, table, tell
from tests.chaos.verdict import Finding, judge
from tests.support.rabbitmq import Broker, Node

_MAX_STORIES = 20


def chaos(
    seed: int,
    seconds: float,
    workstations: int,
    jobs: int,
    given: Broker | None = None,
) -> list[Finding]:
    """Make one run, print its result, and return the findings."""
    tell(f"seed {seed}: {seconds:.0f} s, {workstations} workstations, {jobs} jobs")
    plan = draw(seed, seconds, workstations, jobs, given=given is not None)
    with _folder() as folder, _broker(given) as node:
        run = Run(plan, node, folder, seed)
        try:
            asyncio.run(run.work(seconds))
            if given is not None:
                asyncio.run(run.forget())
            findings = judge(run.evidence)
        except BaseException:
            (folder / "keep").touch()
            raise
        tell(table(run, findings))
        for finding in findings[:_MAX_STORIES]:
            tell(story(run, finding))
        if findings:
            (folder / "keep").touch()
            tell(f"seed {seed}: {len(findings)} findings")
        return findings


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder, and remove it unless it is marked to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="pcm-chaos-"))
    try:
        yield folder
    finally:
        if (folder / "keep").exists():
            tell(f"the agents' logs and ledgers are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _broker(given: Broker | None) -> Iterator[Broker]:
    if given is not None:
        yield given
    else:
        with Node() as node:
            yield node


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=tests.chaos.__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="how long faults strike")
    parser.add_argument("--seed", type=int, help="what is planned; default: any")
    parser.add_argument("--workstations", type=int, default=4)
    parser.add_argument("--jobs", type=int, help="default: 120 a minute")
    parser.add_argument("--url", help="another broker than one of its own")
    parser.add_argument("--ctl", default="rabbitmqctl", help="the command that administers it")
    words = parser.parse_args()
    silence_amqp_libraries()
    seed = secrets.randbelow(10**6) if words.seed is None else words.seed
    given = Broker(words.url, "", words.ctl.split(), dict(os.environ)) if words.url else None
    jobs = round(words.minutes * 120) if words.jobs is None else words.jobs
    sys.exit(bool(chaos(seed, words.minutes * 60, words.workstations, jobs, given)))


if __name__ == "__main__":
    main()
