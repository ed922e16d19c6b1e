"""`pcm schedule`, run as an administrator runs it."""

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker import Dispatcher
from broker.history.engine import open_history
from broker.schedules.scheduler import ScheduleRunner
from broker.settings import HistorySettings
from schemas import Schedule
from tests.support import programs
from tests.support.collected import collected
from tests.support.programs import BIN
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation

NOWHERE = "amqp://nobody:secret@127.0.0.1:1/"
Done = subprocess.CompletedProcess[str]


class Administrator:
    """Runs `pcm schedule` with a history of its own, and schedules of names that are its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/history.db"
        self.name = f"c-{os.getpid()}-{folder.name}"[:60].replace("_", "-").lower()
        self._environment = {
            "PATH": os.environ["PATH"],
            "PCM_AMQP_URL": url,
            "PCM_HISTORY_URL": self.url,
            "PCM_PATIENCE": "1s",
        }

    def __call__(self, *words: str) -> Done:
        return programs.run("pcm", ("schedule", *words), self._environment)

    def add(self, *words: str, repeat: str = "0 2 * * 0", command: str = "true") -> Done:
        to = () if "--to" in words else ("--to", "all")
        return self("add", self.name, "--repeat", repeat, *to, *words, "--", command)

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def row(self) -> Any:
        (row,) = [row for row in self.json("list") if row["schedule"] == self.name]
        return row


@pytest.fixture
def pcm(node: Broker, tmp_path: Path) -> Any:
    collected(node.url, tmp_path / "history.db")
    administrator = Administrator(node.url, tmp_path)
    yield administrator
    administrator("remove", administrator.name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["add", "x", "--to", "all", "--", "true"], "--repeat"),
        (["add", "a.b", "--repeat", "* * * * *", "--", "true"], "NAME"),
        (["add", "x", "--repeat", "* * * *", "--to", "all", "--", "true"], "--repeat"),
        (["add", "x", "--repeat", "0 0 31 2 *", "--to", "all", "--", "true"], "--repeat"),
        (["add", "x", "--repeat", "* * * * *"], "command after --"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--zone", "Berlin", "--", "true"], "--zone"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--zone", "UTC", "--workstation-clock", "--", "x"],
         "--workstation-clock"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--missed", "all", "--", "true"], "--missed"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--mandatory-after", "5", "--", "true"],
         "--mandatory-after"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--mandatory-after", "2h", "--expires-after", "1h",
          "--", "true"], "--expires-after"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--offer-at", "+1h", "--", "true"], "--offer-at"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--file", "x", "--", "true"], "--file"),
        (["add", "x", "--repeat", "* * * * *", "--to", "grup:x", "--", "true"], "--to"),
        (["add", "x", "--repeat", "* * * * *", "--to", "all", "--timeout", "5", "--", "true"], "--timeout"),
        (["next", "--count", "0"], "--count"),
        (["next", "--count", "x"], "--count"),
        (["show"], "NAME"),
        (["list", "--", "true"], "accepts no command"),
        (["frobnicate"], "frobnicate"),
        ([], "add|list|show|next|remove|run"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_it(words: list[str], named: str, tmp_path: Path) -> None:
    done = Administrator(NOWHERE, tmp_path)(*words)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert done.stdout == ""


def test_a_job_does_not_repeat_by_itself() -> None:
    done = subprocess.run(
        [BIN / "pcm", "send", "--repeat", "* * * * *", "--", "true"],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "--repeat" in done.stderr


def test_without_a_broker_nothing_is_added(tmp_path: Path) -> None:
    done = Administrator(NOWHERE, tmp_path).add()
    assert (done.returncode, done.stdout) == (3, "")
    assert "the broker is unreachable" in done.stderr
    assert "secret" not in done.stderr


def test_a_schedule_from_its_addition_to_its_removal(pcm: Administrator) -> None:
    added = pcm.add("--zone", "Europe/Berlin", "--mandatory-after", "0s", "--expires-after", "20h")
    assert added.returncode == 0, added
    assert added.stdout.startswith(f"{pcm.name}: At 02:00 on Sunday, Europe/Berlin; first on 20")
    row = pcm.row()
    assert (row["repeat"], row["zone"], row["last"]) == ("0 2 * * 0", "Europe/Berlin", None)
    text = pcm("show", pcm.name).stdout
    for told in (
        "0 2 * * 0: At 02:00 on Sunday",
        "mandatory after  0s after",
        "expires after    20h",
    ):
        assert told in text
    shown = pcm.json("show", pcm.name)
    assert shown["next"][0]["job"] == row["next"]["job"]
    assert Schedule.read(
        json.dumps({key: shown[key] for key in shown if key not in {"description", "sent", "next"}})
    )
    misspelt = pcm("show", f"{pcm.name}x")
    assert misspelt.stderr.endswith(f"there is no such schedule; did you mean {pcm.name}?\n")
    removed = pcm("remove", pcm.name)
    assert (removed.returncode, removed.stdout) == (0, f"{pcm.name}: removed\n")
    for words in (["remove"], ["show"], ["next"]):
        done = pcm(*words, pcm.name)
        told = f"pcm: {pcm.name}: there is no such schedule\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    assert pcm.name not in pcm("list").stdout


def test_a_name_is_taken_once_unless_it_is_replaced(pcm: Administrator) -> None:
    assert pcm.add().returncode == 0
    again = pcm.add(repeat="0 3 * * *")
    assert (again.returncode, again.stdout) == (2, "")
    assert "--replace" in again.stderr
    assert pcm.row()["repeat"] == "0 2 * * 0"
    assert pcm.add("--replace", repeat="0 3 * * *").returncode == 0
    assert pcm.row()["repeat"] == "0 3 * * *"


def test_the_coming_occurrences_with_their_instants(pcm: Administrator) -> None:
    pcm.add("--zone", "Asia/Kathmandu", repeat="0 2 * * *")
    coming = pcm.json("next", pcm.name, "--count", "3")
    instants = [datetime.fromisoformat(each["instant"]) for each in coming]
    assert [f"{each:%H:%M}" for each in instants] == ["20:15"] * 3
    assert min(instants) > datetime.now(UTC)
    assert (instants[2] - instants[0]).days == 2
    assert coming[0]["local"].endswith("T02:00:00")
    lines = pcm("next", pcm.name, "--count", "1").stdout.splitlines()
    assert f"{instants[0]:%Y-%m-%d %H:%M} UTC" in lines[1]
    everything = pcm.json("next", "--count", "200")
    assert coming[0] in everything
    pcm.add("--replace", repeat="0 2 * * *")
    (local,) = pcm.json("next", pcm.name, "--count", "1")
    assert (local["zone"], local["instant"]) == (None, None)
    sent = datetime.fromisoformat(local["send_at"])
    assert (sent.hour, sent > datetime.now(UTC)) == (11, True)


@pytest.mark.full
async def test_the_last_occurrence_and_its_tally(
    pcm: Administrator, ws: Workstation, node: Broker
) -> None:
    ws.start("service")
    pcm.add("--zone", "UTC", "--background", "--to", str(ws.target), repeat="* * * * *")
    (first,) = pcm.json("next", pcm.name, "--count", "1")
    settings = HistorySettings(amqp_url=(node.url,), history_url=pcm.url)
    engine = open_history(pcm.url)
    await ScheduleRunner(settings, engine).send_due(datetime.fromisoformat(first["instant"]))
    engine.dispose()
    last = pcm.row()["last"]
    assert (last["job"], last["counts"].keys() <= {"received", "queued"}) == (first["job"], True)
    assert last["time"] == f"{first['local'][:16].replace('T', ' ')} UTC"
    async with Dispatcher.connect(settings) as dispatcher:
        async for _ in dispatcher.follow(first["job"]):
            pass
    assert pcm.row()["last"]["counts"] == {"succeeded": 1}
    assert f"{first['job']}  1 succeeded" in pcm("show", pcm.name).stdout


async def test_what_is_under_way_is_reported_when_its_schedule_ends(
    pcm: Administrator, ws: Workstation, node: Broker
) -> None:
    ws.start("service")
    now = datetime.now(UTC)
    local = now + timedelta(hours=15)  # so long before it is sent
    schedule = Schedule(
        name=pcm.name,
        repeat=f"{local.minute} {local.hour} * * *",
        job=ws.job("true", background=True),
        created_at=now - timedelta(hours=1),
    )
    settings = HistorySettings(amqp_url=(node.url,), history_url=pcm.url)
    async with Dispatcher.connect(settings) as dispatcher:
        await dispatcher.record(schedule)
    engine = open_history(pcm.url)
    await ScheduleRunner(settings, engine).send_due(now)
    engine.dispose()
    (coming,) = pcm.json("next", pcm.name, "--count", "1")
    removed = pcm("remove", pcm.name)
    assert (removed.returncode, removed.stdout) == (0, f"{pcm.name}: removed\n")
    told = f"pcm: {coming['job']} of {local:%Y-%m-%d %H:%M} local was sent already"
    assert removed.stderr.startswith(told)
