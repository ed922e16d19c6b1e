"""docs/howto/scripts.md: every script in it works, and prints the documented output."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.settings import BrokerSettings
from tests.support.documents import DOCUMENT, Block, files, scripts
from tests.support.programs import pcm
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, checked_in


@pytest.fixture
def node(node: Broker) -> Iterator[Broker]:
    """A virtual host in which there is no other workstation."""
    with node.own_virtual_host(f"scripts-{os.getpid()}") as made:
        yield made


@pytest.fixture
def ws(node: Broker, tmp_path: Path) -> Workstation:
    """The workstation of the document."""
    return Workstation("ws-042", node.url, tmp_path)


async def _spoil(settings: BrokerSettings, ws: Workstation) -> None:
    """Have a message in pcm.dead: one that the workstation's agent could not read."""
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        key = f"background.optional.workstation.{ws.name}"
        await publisher.publish(topology.JOBS, key, b"no job", kind="job")
    ws.agents[-1].wait_for("message.refused")


def test_there_is_something_to_run() -> None:
    assert len(scripts()) >= 8
    assert [block.file for block in files()] == ["jobs.yaml", "jobs.toml"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("script", "shown"),
    scripts(),
    ids=[f"{number} {script.section}" for number, (script, _) in enumerate(scripts(), 1)],
)
def test_a_script_does_what_it_says(
    node: Broker, ws: Workstation, script: Block, shown: str | None
) -> None:
    for block in files():
        (ws.folder / block.file).write_text(block.text)
    try:
        started = datetime.now(UTC)
        ws.start("service", groups="lab")
        settings = BrokerSettings(amqp_url=(node.url,))
        asyncio.run(checked_in(settings, ws, since=started))
        if script.section == "Dead letters":
            asyncio.run(_spoil(settings, ws))
        done = subprocess.run(
            [sys.executable, "-c", script.text],
            env={
                **ws.environment,
                "PCM_SETTLE": "500ms",
                "PCM_MANAGEMENT_URL": node.management_url,
            },
            cwd=ws.folder,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    finally:
        ws.stop()
    assert (done.returncode, done.stderr) == (0, "")
    if shown is not None:
        assert done.stdout == shown


def test_the_files_are_the_same_jobs(tmp_path: Path) -> None:
    outputs = []
    for block in files():
        (tmp_path / block.file).write_text(block.text)
        done = pcm("check", str(tmp_path / block.file))
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines()[1:])
    assert outputs[0] == outputs[1]


def test_errors_look_as_shown(tmp_path: Path) -> None:
    text = files()[0].text.replace("30m", "half an hour").replace('"workstation:ws-042"', "ws-042")
    (tmp_path / "jobs.yaml").write_text(text)
    outputs = pcm("check", str(tmp_path / "jobs.yaml")).stderr.replace(f"{tmp_path}/", "    ")
    assert outputs in DOCUMENT
    assert len(outputs.splitlines()) == 2
