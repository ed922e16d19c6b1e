"""The command lines in the documents are ones that pcm takes."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from broker.cli import main as cli
from broker.jobs.files.signed_file import write_signed
from broker.packages.building.package_file import build_package
from broker.packages.channels import promote_package
from broker.packages.points.point import open_point
from broker.packages.publishing import publish_package, read_published
from broker.signing.signer import make_key
from schemas import Command, Job, SignedJob, everyone
from tests.support.packages import source_folder
from tests.support.programs import ROOT

_LINE = re.compile(r"^    (pcm (?:.*\\\n)*.*)$", re.MULTILINE)
_JOBS = "targets: [all]\ncommand: {argv: [df]}\n"
_NEVER_ENDS = ("collect", "run")


def _commands() -> list[list[str]]:
    """Return the words of each command; without comments, and what a shell would take."""
    found = []
    documents = (ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md")))
    for text in _LINE.findall("".join(document.read_text() for document in documents)):
        words = shlex.split(text.replace("\\\n", " "), comments=True)
        words = words[: words.index(">")] if ">" in words else words
        shortened = any("|" in word or word == "..." for word in words[:4])
        if not shortened and words[1:] not in found:
            found.append(words[1:])
    return found


_COMMANDS = _commands()


def _publish_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the packages that the documents name, and write their script."""
    (folder / "point").mkdir()
    (folder / "cleanup.sh").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PCM_POINTS", f"{folder}/point")
    monkeypatch.setenv("XDG_STATE_HOME", f"{folder}/state")
    point = open_point(f"{folder}/point")
    repair = "[commands.repair]\nargv = ['true']\n"
    for version in ("1.0", "2.1"):
        source = source_folder(folder / "demo", version=version, tables=repair)
        publish_package(build_package(source, folder), point)
    promote_package(point, read_published([point], "demo", "2.1"), "production")


def test_they_are_found() -> None:
    assert len(_COMMANDS) > 50
    assert ["jobs", "--state", "failures", "--since", "2d"] in _COMMANDS


@pytest.mark.parametrize("words", _COMMANDS, ids=shlex.join)
def test_what_the_documents_show_is_no_wrong_use(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """There is no broker here, and nothing in the history; but what was asked was understood."""
    if words[-1] in _NEVER_ENDS:
        words = [*words, "--help"]
    if words[0] in ("forget", "approve", "revoke"):
        words = [*words, "--yes"]  # there is no terminal to confirm on
    (tmp_path / "jobs.yaml").write_text(_JOBS)
    (tmp_path / "lab.txt").write_text("ws-3\n")
    job = Job(command=Command(argv=("df",)), targets=(everyone,))
    if "--save" not in words:  # which refuses to write over a file
        write_signed(tmp_path / "job.json", SignedJob(text=job.body().decode()), new=True)
    make_key("bob", tmp_path / "bob.key")
    _publish_packages(tmp_path, monkeypatch)
    monkeypatch.setenv("PCM_SIGNING_KEY", "bob.key")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PCM_AMQP_URL", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("PCM_PATIENCE", "0s")
    monkeypatch.setattr(sys, "argv", ["pcm", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capfd.readouterr().err
    assert ended.value.code in (0, 1, 3) or "that the history knows" in errors, errors
