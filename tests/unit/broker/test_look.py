"""`pcm jobs`, `show` and `output` on a history."""

import pytest

from tests.support.programs import pcm


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["jobs", "--state", "lost"], "--state"),
        (["jobs", "--since", "yesterday"], "--since"),
        (["jobs", "--since", "2026-11-30T02:00"], "--since"),
        (["jobs", "--limit", "0"], "--limit"),
        (["jobs", "x"], "x"),
        (["show"], "JOB"),
        (["show", "a.b"], "JOB"),
        (["show", "x", "--state", "lost"], "--state"),
        (["show", "x", "--workstation", "a.b"], "--workstation"),
        (["output", "x", "--stdout", "--stderr"], "--stderr"),
        (["output", "x", "a.b"], "WORKSTATION"),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: list[str], named: str) -> None:
    done = pcm(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr
