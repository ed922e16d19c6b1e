"""Why a job is where it is on a workstation, in every circumstance."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from schemas import State
from tests.support.told import Told

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


async def test_pcm_why_answers_from_the_history(told: Told) -> None:
    job = told.job("a", "b", background=True, mandatory_at=datetime.now(UTC) + 2 * HOUR)
    await told.tell(
        told.check_in("a"), told.check_in("c"), job, told.report(job, "a", State.RECEIVED)
    )
    done = told.pcm("why", job.id[:20], told.name("a"))
    assert (done.returncode, done.stderr) == (0, "")
    why, following = done.stdout.splitlines()
    assert "waits for its mandatory time" in why
    assert following == "The service agent starts it then."
    found = json.loads(told.pcm("why", job.id, told.name("a"), "--json").stdout)
    assert found["state"] == "received"
    assert found["why"].split(" (in ")[0] == why.split(" (in ")[0]  # a minute may have passed
    assert datetime.fromisoformat(found["next_at"]) == job.mandatory_at
    assert "never checked in" in told.pcm("why", job.id, told.name("b")).stdout
    assert json.loads(told.pcm("why", job.id, told.name("c"), "--json").stdout)["state"] == (
        "not_addressed"
    )


async def test_pcm_why_names_what_is_wrong(told: Told) -> None:
    await told.tell(told.job("a"))
    unknown = told.pcm("why", "no-such-job", "ws-1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("pcm: no-such-job: no such job was sent")
    wrong = told.pcm("why", "job", "a.b")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "WORKSTATION" in wrong.stderr
