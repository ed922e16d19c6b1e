"""Maintenance windows: on the workstation's clock, over midnight and over clock changes."""

import json
from datetime import datetime, timedelta

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.workstation import Workstation, final, follow


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Sun", "'Sun' is not a maintenance window"),
        ("Sun 2:00-6:00", "'Sun 2:00-6:00' is not a maintenance window"),
        ("Sonntag 02:00-06:00", "is not a maintenance window"),
        ("Sun 02:00-06:00,", "'' is not a maintenance window"),
        ("Sun 02:00-06:60", "06:60 is not a time of day"),
        ("Sun 25:00-26:00", "25:00 is not a time of day"),
        ("Sun 02:00-02:00", "is empty"),
        ("Sun 24:00-02:00", "is empty"),
    ],
)
def test_a_wrong_window_is_an_error_that_says_what_would_be_right(
    ws: Workstation, text: str, problem: str
) -> None:
    done = ws.run("pcm-agent", "service", windows=text)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pcm-agent: PCM_WINDOWS: ")
    assert problem in line
    assert "write such as Sun 02:00-06:00" in line


def opening(after: timedelta) -> tuple[str, datetime]:
    """Return a daily window of an hour, and its opening: some whole minutes from now."""
    begin = (datetime.now().astimezone() + after).replace(second=0, microsecond=0)
    return f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}", begin


async def test_jobs_wait_for_the_window_of_their_workstation(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    later, opens_at = opening(timedelta(minutes=30))
    ws.start("service", windows=later)
    ws.start("interactive", windows=later)
    fields = {"respects_windows": True, "timeout": timedelta(minutes=1)}
    waiting = await dispatcher.dispatch(ws.job("true", background=True, **fields))
    offer = await dispatcher.dispatch(ws.job("true", **fields))
    free = await dispatcher.dispatch(ws.job("true", background=True))
    long = await dispatcher.dispatch(
        ws.job("true", background=True, respects_windows=True, timeout=timedelta(hours=2))
    )
    assert final(await follow(dispatcher, free)).state is State.SUCCEEDED
    ended = final(await follow(dispatcher, long))
    assert (ended.state, ended.agent) == (State.NOT_APPLICABLE, "service")
    assert "fits in no maintenance window" in ended.reason
    ws.agents[1].wait_for("job.offered")
    said = ws.run("pcm-agent", "run", offer.id)
    assert "runs in the maintenance window of" in said.stdout
    rows = json.loads(ws.run("pcm-agent", "pending", "--json").stdout)
    begins = {row["starts_at"] for row in rows if row["starts_at"]}
    assert {datetime.fromisoformat(text) for text in begins} == {opens_at}
    shown = ws.run("pcm-agent", "pending").stdout
    assert f"{opens_at:%Y-%m-%d %H:%M:%S}" in shown
    for agent in ws.agents:
        assert not {waiting.id, offer.id} & {event["job"] for event in agent.events("job.started")}
        assert agent.end() == 0
    # The same jobs, found in the ledgers, with a window that is open.
    already, _ = opening(timedelta(minutes=-5))
    ws.start("service", windows=already)
    ws.start("interactive", windows=already)
    for job, name in ((waiting, "service"), (offer, "interactive-ada")):
        done = final(await follow(dispatcher, job))
        assert (done.state, done.agent) == (State.SUCCEEDED, name)
