"""Commands of packages are run by real agents, from a point that is a folder."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import connect
from broker.stream import stream
from schemas import CheckIn, Report, State
from schemas.reports.packages import InstalledPackage
from tests.support.points import PointFolder, Published
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, final, follow

TOOL = b"""#!/bin/sh
# tool COMMAND FILE: what a package does to a workstation, written down
echo "$1 $PCM_PACKAGE_NAME $PCM_PACKAGE_VERSION" >> "$2.log"
case $1 in
install) touch "$2.$PCM_PACKAGE_NAME" ;;
uninstall) rm -f "$2.$PCM_PACKAGE_NAME" ;;
detect) test -e "$2.$PCM_PACKAGE_NAME" ;;
broken) exit 3 ;;
esac
"""


@pytest.fixture
def point(tmp_path: Path) -> PointFolder:
    return PointFolder(tmp_path / "point")


class Tool:
    """Packages whose commands write down what they do."""

    def __init__(self, point: PointFolder, folder: Path) -> None:
        self._point = point
        self.place = folder / "tool"

    def command(self, word: str, **fields: Any) -> dict[str, Any]:
        return {"argv": ["./tool", word, str(self.place)], "background": True, **fields}

    def publish(self, name: str = "demo", **fields: Any) -> Published:
        commands = {word: self.command(word) for word in ("install", "uninstall")}
        given = {"name": name, "commands": commands, "detect": self.command("detect")}
        return self._point.publish({"tool": TOOL, "name": name.encode()}, **{**given, **fields})

    @property
    def log(self) -> list[str]:
        path = self.place.with_suffix(".log")
        return path.read_text().splitlines() if path.exists() else []

    def there(self, name: str = "demo") -> bool:
        return self.place.with_suffix(f".{name}").exists()


@pytest.fixture
def tool(point: PointFolder, tmp_path: Path) -> Tool:
    return Tool(point, tmp_path)


async def ended(dispatcher: Dispatcher, job: Any) -> Report:
    return final(await follow(dispatcher, await dispatcher.dispatch(job)))


async def inventory(
    settings: DispatcherSettings, ws: Workstation, condition: Any
) -> dict[str, InstalledPackage]:
    """Wait for a check-in of a workstation with packages for which a condition holds."""
    import asyncio

    async with (
        asyncio.timeout(LIMIT),
        connect(settings, "test") as connection,
        stream.read(connection, None) as entries,
    ):
        async for entry in entries:
            for record in entry.records():
                if isinstance(record, CheckIn) and record.workstation == ws.name:
                    found = {package.name: package for package in record.packages or ()}
                    if found and condition(found):
                        return found
    raise AssertionError("the stream ended")


async def test_a_command_runs_in_the_packages_folder(
    ws: Workstation, dispatcher: Dispatcher, point: PointFolder
) -> None:
    script = b'#!/bin/sh\ncat data/text; pwd; echo "$PCM_PACKAGE_DIR"; echo changed > data/text\n'
    demo = point.publish(
        {"run": script, "data/text": b"hello\n"},
        commands={"install": {"argv": ["./run"], "background": True}},
    )
    service = ws.start("service", points=str(point.folder))
    for count in (1, 2):  # what a command changes is not there for the next
        end = await ended(dispatcher, demo.job(ws))
        assert end.state is State.SUCCEEDED, end.reason
        assert end.result is not None
        text, folder, variable = str(end.result.stdout).split()
        assert (text, folder) == ("hello", variable)
        service.wait_for("job.ended", count)
    service.end()
    assert not list((ws.state_dir / "content" / "copies").iterdir())


async def test_the_life_of_a_package(
    ws: Workstation, dispatcher: Dispatcher, settings: DispatcherSettings, tool: Tool
) -> None:
    """Installed, found to be there, uninstalled, found to be gone; and the inventory has it."""
    demo = tool.publish(verify=tool.command("detect"))
    ws.start("service", points=str(tool.place.parent / "point"))
    expected = [("install", None), ("install", True), ("uninstall", None), ("uninstall", False)]
    for command, present in expected:
        end = await ended(dispatcher, demo.job(ws, command))
        assert end.state is State.SUCCEEDED, end.reason
        assert end.result is not None
        assert end.result.already_present is present
        assert tool.there() is (command == "install")
    runs = [line.split()[0] for line in tool.log]
    once = ["detect", "install", "detect", "detect"]  # verified, and detected for the inventory
    assert runs == [*once, "detect", "detect", "uninstall", "detect", "detect"]
    found = await inventory(settings, ws, lambda found: found["demo"].command == "uninstall")
    assert (found["demo"].present, found["demo"].installed) == (False, False)


async def test_what_verification_finds_wrong_is_undone(
    ws: Workstation, dispatcher: Dispatcher, tool: Tool
) -> None:
    demo = tool.publish(verify=tool.command("broken"), on_failed_verify="uninstall")
    ws.start("service", points=str(tool.place.parent / "point"))
    end = await ended(dispatcher, demo.job(ws))
    assert end.state is State.FAILED
    assert "verify did not: exit code 3; uninstalled" in end.reason
    assert not tool.there()


async def test_required_packages_are_installed_first_and_once(
    ws: Workstation, dispatcher: Dispatcher, tool: Tool
) -> None:
    """Two jobs at once that require the same package install it once."""
    base = tool.publish("base")
    more = tool.publish("more", requires=["base"])
    demos = [tool.publish(name, requires=["base", "more"]) for name in ("one", "two")]
    ws.start("service", points=str(tool.place.parent / "point"))
    jobs = [await dispatcher.dispatch(demo.job(ws, requires=(base, more))) for demo in demos]
    for job in jobs:
        end = final(await follow(dispatcher, job))
        assert end.state is State.SUCCEEDED, end.reason
    installs = [line.split()[1] for line in tool.log if line.startswith("install")]
    assert installs[:2] == ["base", "more"]
    assert sorted(installs[2:]) == ["one", "two"]


async def test_conflicts_and_conditions_are_not_applicable(
    ws: Workstation, dispatcher: Dispatcher, tool: Tool
) -> None:
    old = tool.publish("old", version="1.5")
    new = tool.publish("new", conflicts=["old<2"])
    ws.start("service", points=str(tool.place.parent / "point"))
    assert (await ended(dispatcher, old.job(ws))).state is State.SUCCEEDED
    end = await ended(dispatcher, new.job(ws))
    assert end.state is State.NOT_APPLICABLE
    assert end.reason == "new conflicts with old@1.5, which is installed"
    for condition, state in (
        ("missing:old", State.NOT_APPLICABLE),
        ("installed:old>=2", State.NOT_APPLICABLE),
        ("installed:old<2", State.SUCCEEDED),
    ):
        job = ws.job("true", background=True, only_if=(condition,))
        assert (await ended(dispatcher, job)).state is state
    other = tool.publish("other", platforms=["windows"])
    assert (await ended(dispatcher, other.job(ws))).state is State.NOT_APPLICABLE


async def test_an_outdated_list_of_a_channel_is_refused(
    ws: Workstation, dispatcher: Dispatcher, tool: Tool
) -> None:
    demo = tool.publish()
    ws.start("service", points=str(tool.place.parent / "point"))
    for serial, state in ((5, State.SUCCEEDED), (4, State.REFUSED), (5, State.SUCCEEDED)):
        job = demo.job(ws, channel="production", channel_serial=serial)
        assert (await ended(dispatcher, job)).state is state


async def test_a_script_that_comes_with_a_job_runs_from_a_private_folder(
    ws: Workstation, dispatcher: Dispatcher
) -> None:
    ws.start("service")
    script = b'#!/bin/sh\necho "$0 $1"; stat -c %a "$0" "$(dirname "$0")"\n'
    end = await ended(dispatcher, ws.job("hello.sh", "a b", script=script, background=True))
    assert end.state is State.SUCCEEDED, end.reason
    assert end.result is not None
    path, *rest = str(end.result.stdout).replace("\n", " ").split()
    assert (Path(path).name, rest) == ("hello.sh", ["a", "b", "700", "700"])
    ws.agents[0].end()
    assert not list((ws.state_dir / "content" / "copies").iterdir())


async def test_a_users_agent_reads_the_services_cache(
    ws: Workstation, dispatcher: Dispatcher, tool: Tool
) -> None:
    """It verifies for itself, and runs as its user; the service does not run it."""
    demo = tool.publish(
        commands={"install": {"argv": ["./tool", "install", str(tool.place)]}}, detect=None
    )
    ws.start("service", points=str(tool.place.parent / "point"), takeover_grace="1h")
    ws.start("interactive", accept_offers="true")
    later = datetime.now(UTC) + timedelta(days=1)
    end = await ended(dispatcher, demo.job(ws, mandatory_at=later))  # fetched as the user wants it
    assert (end.state, end.agent) == (State.SUCCEEDED, "interactive-ada"), end.reason
    assert tool.there()
