"""The output of commands that do not need their agent: kept on the disk, within limits."""

import asyncio
import os
import subprocess
from pathlib import Path

from agents.execution.live_output import LiveOutput
from agents.execution.output import STREAMS
from agents.execution.spool import open_spool, read_spool, spool_end, spooled
from schemas import Output

KEPT = 64 * 1024
LINES = 1_500_000


def run(folder: Path, script: str) -> tuple[Output, Output]:
    """Run a script to its end; return what is kept of its stdout and stderr."""
    stdout, stderr = open_spool(folder)
    subprocess.run(["sh", "-c", script], stdout=stdout, stderr=stderr, check=True)
    for pipe in (stdout, stderr):
        os.close(pipe)
    return asyncio.run(spooled(folder, KEPT))


def test_all_of_a_short_output_is_kept(tmp_path: Path) -> None:
    """The command ends before its writer begins."""
    folder = tmp_path / "runs" / "job"
    assert run(folder, "echo out; echo err >&2") == (Output(head=b"out\n"), Output(head=b"err\n"))
    assert run(folder, "echo again") == (Output(head=b"again\n"), Output(head=b""))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_head_and_tail_of_a_long_output_are_kept(tmp_path: Path) -> None:
    whole = b"".join(b"%d\n" % number for number in range(1, LINES + 1))
    output, _ = run(tmp_path / "job", f"seq {LINES}")
    assert output.head == whole[: KEPT // 2]
    assert output.tail == whole[-KEPT // 2 :]
    assert output.dropped == len(whole) - KEPT
    assert spool_end(tmp_path / "job", "stdout") == len(whole) > 10 * 1024 * 1024
    assert sum(file.stat().st_size for file in (tmp_path / "job").iterdir()) < 4 * 1024 * 1024
    begin, data = read_spool(tmp_path / "job", "stdout", 5 * 1024 * 1024, KEPT)
    assert begin > 5 * 1024 * 1024  # what lay there is gone
    assert whole[begin : begin + KEPT] == data


def test_a_window_gets_the_end_of_a_long_output(tmp_path: Path) -> None:
    whole = b"".join(b"%d\n" % number for number in range(1, LINES + 1))
    run(tmp_path / "job", f"seq {LINES}; echo wrong >&2")
    live = LiveOutput(tmp_path / "job")
    live.close()
    texts = dict.fromkeys(STREAMS, b"")
    end = dropped = 0
    while not (part := live.read(end)).complete or part.pieces:
        dropped += part.dropped
        for stream, data in part.pieces:
            texts[stream] += data
        end = part.end
    assert texts["stderr"] == b"wrong\n"
    assert whole.endswith(texts["stdout"])
    assert dropped + len(texts["stdout"]) == len(whole)
