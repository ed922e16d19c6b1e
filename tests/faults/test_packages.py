"""Agents that fetch packages are killed at each step, and their disk is full: nothing is lost."""

from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.disk import Disk, NoDisk
from tests.support.points import PointFolder, noise
from tests.support.workstation import Workstation, final, follow, sabotaged

BEFORE_START = (State.SUCCEEDED, ["x"])
POINTS = [
    ("manifest stored", BEFORE_START),
    ("archive received", BEFORE_START),
    ("archive stored", BEFORE_START),
    # The start is on record; whether the command ran cannot be told.
    ("unpacked", (State.INTERRUPTED, [])),
]


@pytest.mark.full
@pytest.mark.parametrize(("step", "expected"), POINTS)
async def test_a_job_survives_its_agent(
    ws: Workstation,
    dispatcher: Dispatcher,
    tmp_path: Path,
    step: str,
    expected: tuple[State, list[str]],
) -> None:
    """It runs once at most, from whole files; nothing incomplete has a name in the cache."""
    ran = tmp_path / "ran"
    ran.touch()
    script = f"#!/bin/sh\necho x >> {ran}\n".encode()
    point = PointFolder(tmp_path / "point")
    command = {"argv": ["./run"], "background": True}
    demo = point.publish({"run": script, "data": noise(500_000)}, commands={"install": command})
    service = ws.start("service", program=sabotaged(step), points=str(point.folder))
    job = await dispatcher.dispatch(demo.job(ws))
    assert service.end(0) == -9
    ws.start("service", points=str(point.folder))
    ended = final(await follow(dispatcher, job))
    assert (ended.state, ran.read_text().split()) == expected, ended.reason
    other = await dispatcher.dispatch(demo.job(ws))
    assert final(await follow(dispatcher, other)).state is State.SUCCEEDED
    ws.agents[-1].end()
    content = ws.state_dir / "content"
    assert {path.suffix for path in (content / "packages").iterdir()} == {".manifest", ".archive"}
    assert not list((content / "copies").iterdir())


@pytest.mark.full
async def test_a_full_disk_is_told_and_the_package_fetched_when_there_is_room(
    ws: Workstation, dispatcher: Dispatcher, tmp_path: Path
) -> None:
    point = PointFolder(tmp_path / "point")
    command = {"argv": ["true"], "background": True}
    demo = point.publish({"data": noise(600_000)}, commands={"install": command})
    try:
        disk = Disk(tmp_path / "state")
    except NoDisk as error:
        pytest.skip(str(error))
    with disk:
        service = ws.start("service", program=disk.program, points=str(point.folder))
        ballast = disk.inside / "half"
        ballast.write_bytes(bytes(1_300_000))  # the ledger has room, the archive has not
        job = await dispatcher.dispatch(demo.job(ws))
        service.wait_for("content.waiting")
        reason = service.events("content.waiting")[0]["reason"]
        assert "the disk has" in reason or "No space left" in reason
        ballast.unlink()
        assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
        service.end()
