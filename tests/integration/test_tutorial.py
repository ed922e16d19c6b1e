"""The tutorials: their commands work in their order, and print what they show."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import BIN, ROOT
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT

_BLOCK = re.compile(r"^```sh\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
_END = "--- end of block {} ---"


@pytest.fixture
def node(node: Broker) -> Iterator[Broker]:
    """A virtual host in which there is no other workstation."""
    with node.own_virtual_host(f"tutorial-{os.getpid()}") as made:
        yield made


def _blocks(document: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = _BLOCK.findall((ROOT / "docs" / document).read_text())
    return found


def _as_pattern(shown: str) -> str:
    """Return a pattern of shown output, in which ... is anything."""
    return re.escape(shown.strip()).replace(r"\.\.\.", ".*")


@pytest.mark.full
@pytest.mark.parametrize("document", ["tutorial.md", "howto/packages.md"])
def test_a_tutorial_does_what_it_says(node: Broker, tmp_path: Path, document: str) -> None:
    blocks = _blocks(document)
    ends = [_END.format(number) for number in range(len(blocks))]
    commands = (f"{block}echo '{end}'\n" for (block, _), end in zip(blocks, ends, strict=True))
    log = tmp_path / "output"
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", "".join(commands)],
            env={
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "PCM_AMQP_URL": node.url,
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        status = shell.wait(LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait(LIMIT)
    text = log.read_text()
    assert status == 0, text
    for (_, shown), end in zip(blocks, ends, strict=True):
        printed, _, text = text.partition(end + "\n")
        if shown:
            assert re.search(_as_pattern(shown), printed, re.DOTALL), printed
