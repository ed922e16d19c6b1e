"""A folder of a package, a distribution point, and `pcm` in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.cli.main import command
from tests.support.packages import source_folder

Pcm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package's folder."""
    return source_folder(tmp_path / "demo")


@pytest.fixture
def point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty distribution point, which the settings name."""
    made = tmp_path / "point"
    made.mkdir()
    monkeypatch.setenv("PCM_POINTS", str(made))
    return made


@pytest.fixture
def pcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pcm:
    """Runs `pcm` in an empty folder; returns its status, and what it printed."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = command(list(map(str, words)))
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
