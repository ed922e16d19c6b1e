"""Why a job is where it is on a workstation, in every circumstance."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.counted import now
from tests.support.simulated_fleet import SimulatedFleet
from tests.support.window import seen
from tests.support.workstation import Workstation, checked_in

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


async def test_pcm_why_answers_from_the_history(fleet: SimulatedFleet) -> None:
    job = fleet.job("a", "b", background=True, mandatory_at=datetime.now(UTC) + 2 * HOUR)
    await fleet.append(
        fleet.check_in("a"), fleet.check_in("c"), job, fleet.report(job, "a", State.RECEIVED)
    )
    done = fleet.pcm("why", job.id[:20], fleet.name("a"))
    assert (done.returncode, done.stderr) == (0, "")
    why, following = done.stdout.splitlines()
    assert "its mandatory time is" in why
    assert following == "The service agent starts it then."
    found = json.loads(fleet.pcm("why", job.id, fleet.name("a"), "--json").stdout)
    assert found["state"] == "received"
    assert found["why"].split(" (in ")[0] == why.split(" (in ")[0]  # a minute may have passed
    assert datetime.fromisoformat(found["next_at"]) == job.mandatory_at
    assert "never checked in" in fleet.pcm("why", job.id, fleet.name("b")).stdout
    assert json.loads(fleet.pcm("why", job.id, fleet.name("c"), "--json").stdout)["state"] == (
        "not_addressed"
    )


async def test_pcm_why_names_what_is_wrong(fleet: SimulatedFleet) -> None:
    await fleet.append(fleet.job("a"))
    unknown = fleet.pcm("why", "no-such-job", "ws-1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("pcm: no-such-job: no such job was sent")
    wrong = fleet.pcm("why", "job", "a.b")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "WORKSTATION" in wrong.stderr


async def test_pcm_why_names_the_minute_that_the_user_s_agent_keeps(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    ws.environment["TZ"] = "UTC"
    ws.start("service")
    ws.start("interactive", countdown="30m")
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=now(minutes=5)))
    deadline = seen(ws, job, countdown=True)["deadline"]
    assert time.time() + 29 * 60 < deadline <= time.time() + 30 * 60
    await checked_in(settings, ws, 2)
    found = json.loads(ws.run("pcm", "why", job.id, ws.name, "--json").stdout)
    assert found["state"] == "offered"
    assert datetime.fromisoformat(found["next_at"]).timestamp() == pytest.approx(deadline, abs=1e-5)
    assert found["why"].endswith(", who has not decided, and its countdown runs.")
    minute = datetime.fromtimestamp(deadline, UTC).strftime("%Y-%m-%d %H:%M UTC")
    assert found["next"].startswith(f"At {minute} (in ")
    assert found["next"].endswith(" it runs, with or without ada's consent.")


async def test_pcm_why_names_the_minute_of_the_service_s_take_over(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings
) -> None:
    service = ws.start("service", takeover_grace="30m", windows="daily 00:00-24:00")
    due = now(minutes=5)
    job = await dispatcher.dispatch(ws.job("true", mandatory_at=due, respects_windows=True))
    service.wait_for("job.received")
    await checked_in(settings, ws)
    found = json.loads(ws.run("pcm", "why", job.id, ws.name, "--json").stdout)
    assert found["state"] == "received"
    assert datetime.fromisoformat(found["next_at"]) == due + 30 * MINUTE
