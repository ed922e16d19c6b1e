"""A job's report: the page as a browser shows it, the sheet, and how files are written."""

import subprocess
import sys
from pathlib import Path

import pytest

from broker.results.query_session import shares
from tests.support.programs import pcm


def test_where_one_cannot_be_written_none_is(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from broker.results.report.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically({Path("small"): b"x" * 900, Path("large"): b"x" * 1100})
except OSError as error:
    print(error.filename, error.strerror)
"""
    for name in ("small", "large"):
        (tmp_path / name).write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "large File too large\n"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "small": "old",
        "large": "old",
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--html"),
        (["--html", "-"], "--html"),
        (["--html", ""], "--html"),
        (["--html", "/no/such/folder/x"], "--html"),
        (["--csv", "/dev/null"], "--csv"),
        (["--csv", "/tmp"], "--csv"),
        (["--csv", "same", "--html", "same"], "--csv"),
        (["--csv", "-", "--json"], "--json"),
        (["--pdf", "x"], "--pdf"),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: list[str], named: str) -> None:
    done = pcm("report", "job", *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [9999, 1], [0, 3], [333, 333, 334], [7] * 13])
def test_percentages_add_up(counts: list[int]) -> None:
    assert round(sum(map(float, shares(counts))), 6) == 100
