"""Commands of packages are run by real agents, from a point that is a folder."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker import Dispatcher
from schemas import State
from tests.support.points import SAY, PointFolder, Published
from tests.support.workstation import Workstation, final, follow


@pytest.fixture
def point(tmp_path: Path) -> PointFolder:
    return PointFolder(tmp_path / "point")


async def test_a_command_runs_in_the_packages_folder(
    ws: Workstation, dispatcher: Dispatcher, point: PointFolder
) -> None:
    script = b'#!/bin/sh\ncat data/text; pwd; echo "$PCM_PACKAGE_DIR"; echo changed > data/text\n'
    demo = point.publish(
        {"run": script, "data/text": b"hello\n"},
        commands={"install": {"argv": ["./run"], "background": True}},
    )
    service = ws.start("service", points=str(point.folder))
    for _ in range(2):  # what a command changes is not there for the next
        job = await dispatcher.dispatch(demo.job(ws))
        ended = final(await follow(dispatcher, job))
        assert ended.state is State.SUCCEEDED, ended.reason
        assert ended.result is not None
        text, folder, variable = str(ended.result.stdout).split()
        assert (text, folder) == ("hello", variable)
        service.wait_for("job.ended")
    assert not list((ws.state_dir / "content" / "copies").iterdir())
