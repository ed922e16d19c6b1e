"""Help texts of both programs, and the messages for wrong command lines."""

import os
import re
import subprocess
from importlib.metadata import version

import pytest

from broker.cli.main import COMMANDS
from tests.support import programs
from tests.support.programs import BIN, NOWHERE, ROOT, pcm
from tests.support.terminal import OnTerminal
from tests.support.waiting import LIMIT

ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
_WITH_ANOTHER = {"groups", "pause", "resume", "forget", "rotate", "revoke", "collect", "schema"}
"""Their help is that of another command, more or less."""
HELPS = [
    ("pcm",),
    ("pcm-agent",),
    ("pcm-agent", "interactive"),
    *(("pcm", name) for name in COMMANDS if name not in _WITH_ANOTHER),
    ("pcm", "forget"),
    ("pcm", "schedule", "add"),
    ("pcm", "rollout", "abort"),
]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_as_wide_as_the_terminal(words: tuple[str, ...], columns: int) -> None:
    program, *others = words
    done = programs.run(program, [*others, "--help"], ENVIRONMENT | {"COLUMNS": str(columns)})
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if len(line) > columns] == []


def test_settings_are_a_table() -> None:
    terminal = OnTerminal([BIN / "pcm-agent", "--help"], ENVIRONMENT, 80, 24)
    assert terminal.end() == 0
    lines = terminal.screen.shown
    at = next(at for at, line in enumerate(lines) if line.startswith("  PCM_QUEUE_EXPIRES "))
    assert lines[at + 1].startswith(" " * 24 + "agent (default: 30d)")


@pytest.mark.parametrize("program", ["pcm", "pcm-agent"])
def test_the_reference_has_each_setting_of_the_help(program: str) -> None:
    settings = (ROOT / "docs" / "reference" / "settings.md").read_text()
    both, agents, administrators = re.findall(r"(?:^\|.*\n)+", settings, re.MULTILINE)
    table = both + (administrators if program == "pcm" else agents)
    done = subprocess.run(
        [BIN / program, "--help"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    listed = set(re.findall(r"^  (PCM_\w+) ", done.stdout, re.MULTILINE))
    assert listed <= set(re.findall(r"`(PCM_\w+)`", table))
    assert "None" not in done.stdout
    assert done.stdout.count("(default:") == len(listed)


@pytest.mark.parametrize("program", ["pcm", "pcm-agent"])
def test_the_version_is_reported(program: str) -> None:
    done = subprocess.run(
        [BIN / program, "--version"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert done.stdout == f"{program} {version('package-command-manager')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["send", "echo", "hi"], "send: echo hi: put -- before the command: -- echo hi"),
        (["send", "--to", "all", "ls", "-l"], "send: ls -l: put -- before the command: -- ls -l"),
        (["send", "--nonsense"], "send: unrecognized arguments: --nonsense"),
        (["jobs", "x"], "jobs: unrecognized arguments: x"),
        (
            ["send", "--to", "all", "--give-up-after", "3s", "--", "x"],
            "--give-up-after: needs --wait",
        ),
        (
            ["rerun", "x", "--give-up-after", "3s"],
            "--give-up-after: needs --wait",
        ),
        (
            ["send", "--to", "all", "--expires-at", "-1h", "--", "x"],
            "--expires-at: '-1h' is not a time: write 2026-11-30T02:00Z, +10m, now, or '2026-11-30T02:00 local'",
        ),
        (
            ["send", "--to", "all", "--mandatory-at", "2040-01-01T00:00 local", "--expires-at",
             "2040-01-02T00:00Z", "--", "x"],
            "--mandatory-at, --expires-at: all must be instants, or all wall-clock times",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_in_the_words_of_the_command_line(
    words: list[str], message: str
) -> None:
    done = pcm(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"pcm: {message}\n")


def test_topology_says_what_it_wants() -> None:
    done = pcm("topology")
    assert done.returncode == 2
    assert done.stderr.endswith("required: show|apply\n")


def test_one_field_is_one_field() -> None:
    done = pcm("schedule", "add", "x", "--to", "all", "--repeat", "x", "--", "true", url=NOWHERE)
    assert "has 1 field, not 5" in done.stderr
