"""Say what happens next to jobs that users decide on."""

import sys
from typing import TYPE_CHECKING

from schemas import Context, Requirement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas import Job


def print_offer_hint(jobs: "Sequence[Job]", mandatory: str) -> None:
    """Print on stderr that jobs are offers, which do not run by themselves.

    `mandatory`: the option that makes them mandatory.
    """
    if hint := offer_hint(jobs, mandatory):
        print(f"pcm: {hint}", file=sys.stderr)


def offer_hint(jobs: "Sequence[Job]", mandatory: str) -> str:
    """Return what happens to the jobs that are offers, and other options; empty without offers."""
    offers = [
        job
        for job in jobs
        if (job.context, job.requirement) == (Context.FOREGROUND, Requirement.OPTIONAL)
    ]
    if not offers:
        return ""
    which = "this is an offer" if len(jobs) == 1 else f"{len(offers)} of {len(jobs)} are offers"
    text = f"{which} to users: without a user who accepts it, nothing runs."
    if not all(job.command.user_input_required for job in offers):
        text += " To run it without users, give --background."
    return f"{text} To offer it, and then run it in any case, give {mandatory}"
