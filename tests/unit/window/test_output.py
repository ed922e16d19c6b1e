"""A command's output: bounded, in order, and as plain text."""

from pathlib import Path

from agents.window.output import MAX_LINES, LineBuffer, OutputView
from tests.support.looking import Clock, looking
from tests.support.standin import StandIn, running, snapshot


def _shown(lines: LineBuffer) -> list[tuple[str, str]]:
    return [(lines[n].stream, lines[n].displayed()) for n in range(len(lines))]


def test_parts_of_lines_are_joined_by_stream() -> None:
    lines = LineBuffer()
    lines.add("stdout", "one t")
    lines.add("stderr", "bad\n")
    lines.add("stdout", "wo\nthree")
    assert _shown(lines) == [("stdout", "one two"), ("stderr", "bad"), ("stdout", "three")]


def test_a_line_that_is_written_over_shows_what_was_written_last() -> None:
    lines = LineBuffer()
    lines.add("stdout", "10 %\r50 %\r")
    lines.add("stdout", "100 %\r\n")
    assert _shown(lines) == [("stdout", "100 %")]


def test_orders_to_the_terminal_are_left_out_though_they_come_in_parts() -> None:
    lines = LineBuffer()
    for part in ("\x1b", "[3", "1mred\x1b[0m \x1b]0;ti", "tle\x07\x1bcend\x08\u202e\n"):
        lines.add("stdout", part)
    assert _shown(lines) == [("stdout", "red end\u2408\ufffd")]


def test_a_line_without_an_end_takes_no_more_memory_than_its_beginning() -> None:
    lines = LineBuffer()
    for _ in range(1000):
        lines.add("stdout", "x" * 1000)
    assert len(lines) == 1
    assert len(lines[0].text) < 10_000
    assert len(lines[0].displayed()) == 4096


def test_only_the_last_lines_are_kept() -> None:
    lines = LineBuffer(max_lines=3)
    for number in range(5000):
        lines.add("stdout", f"{number}\n")
    assert len(lines) <= 3 + 2000
    assert lines[len(lines) - 1].displayed() == "4999"
    assert lines.dropped == 5000 - len(lines)


async def test_of_very_much_output_the_end_is_kept(tmp_path: Path) -> None:
    agent = StandIn()
    agent.snapshot = snapshot(running=[running("a", "Writer")])
    text = "".join(f"line {n}\n" for n in range(100))
    agent.output = {"a": [{"stream": "stdout", "text": text}] * 500}
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.until("Running (1)")
        await window.press("2")
        view = window.app.query_one(OutputView)
        await window.until(lambda: len(view.lines) + view.lines.dropped == 50_000)
        await window.until("line 99")
        assert len(view.lines) <= MAX_LINES + 2000


async def test_who_reads_further_up_stays_there(tmp_path: Path) -> None:
    agent = StandIn()
    agent.snapshot = snapshot(running=[running("a", "Writer")])
    text = "".join(f"line {n};\n" for n in range(200))
    agent.output = {"a": [{"stream": "stdout", "text": text}]}
    async with agent.serving(tmp_path), looking(tmp_path, clock=Clock()) as window:
        await window.press("2")
        await window.until("line 199;")
        view = window.app.query_one(OutputView)
        view.focus()
        await window.press("home")
        await window.until("line 0;")
        view.feed("stdout", "more\n" * 100)
        await window.until(lambda: view.virtual_size.height == 300)
        assert "line 0;" in window.text
        await window.press("end")
        await window.until("more")
