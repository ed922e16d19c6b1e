"""`pcm check`, and the files of `pcm send`."""

import json
from pathlib import Path

import pytest

from broker import Dispatcher, Progress
from schemas import group, workstation
from tests.support.programs import pcm
from tests.support.workstation import Workstation

GOOD = """\
- name: Office update
  command: {argv: [/opt/update], background: true}
  targets: [all, "group:lab"]
  excluded: ["workstation:ws-1"]
  mandatory_at: +1h
- command: {argv: [echo, "it's"]}
  targets: ["workstation:ws-2"]
"""
WRONG = """\
- command: {argv: [a], timeout: long}
  targets: [al]
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A file of two jobs."""
    (tmp_path / "good.yaml").write_text(GOOD)
    return str(tmp_path / "good.yaml")


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    """A file with two errors."""
    (tmp_path / "wrong.yaml").write_text(WRONG)
    return str(tmp_path / "wrong.yaml")


def test_what_a_file_holds_needs_no_broker(good: str) -> None:
    done = pcm("check", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{good}: 2 jobs",
        "  background.mandatory  Office update  to all, group:lab, not to workstation:ws-1",
        """  foreground.optional   echo 'it'"'"'s'  to workstation:ws-2""",
    ]


def test_all_errors_of_all_files_are_reported(good: str, wrong: str) -> None:
    done = pcm("check", wrong, good, "/no/such/file", "-", given="{")
    assert done.returncode == 2
    assert done.stdout.startswith(f"{good}: 2 jobs\n")
    first, second, absent, stdin = done.stderr.splitlines()
    assert first.startswith(f"{wrong}:1: [0].command.timeout: 'long' is not a duration: write 30s")
    assert second.startswith(f"{wrong}:2: [0].targets[0]: 'al' is not a target: use all")
    assert absent == "/no/such/file: No such file or directory"
    assert stdin.startswith("stdin:1: is not valid JSON")


def test_what_no_system_takes_is_reported_here_and_not_by_each_workstation() -> None:
    jobs = [
        {"command": command, "targets": ["all"]}
        for command in (
            {"argv": ["true", "x" * 131_072]},
            {"argv": ["true"], "environment": {"A": "x" * 131_072}},
            {"argv": ["true"], "success_exit_codes": [0, 256]},
        )
    ]
    for words in (("check", "-"), ("send", "--file", "-")):
        done = pcm(*words, given=json.dumps(jobs))
        assert done.returncode == 2
        argument, variable, code = done.stderr.splitlines()
        assert "[0].command.argv: argument 1 has 131072 bytes; a system takes" in argument
        assert "[1].command.environment: A has 131074 bytes; a system takes" in variable
        assert "[2].command.success_exit_codes: 256 cannot occur" in code


def test_as_json(good: str, wrong: str) -> None:
    done = pcm("check", "--json", good, wrong)
    assert (done.returncode, done.stderr) == (2, "")
    right, bad = map(json.loads, done.stdout.splitlines())
    assert (right["file"], right["errors"], bad["jobs"]) == (good, [], [])
    assert right["jobs"][0] == {
        "title": "Office update",
        "context": "background",
        "requirement": "mandatory",
        "targets": ["all", "group:lab"],
        "excluded": ["workstation:ws-1"],
    }
    assert [(error["line"], error["field"]) for error in bad["errors"]] == [
        (1, "[0].command.timeout"),
        (2, "[0].targets[0]"),
    ]


def jobs_for(ws: Workstation, *scripts: str) -> str:
    """Return a file of jobs, each a script."""
    command = {"shell": True, "background": True}
    return json.dumps(
        [
            {"command": {**command, "argv": [script]}, "targets": [str(ws.target)]}
            for script in scripts
        ]
    )


def send(ws: Workstation, text: str, *options: str, status: int = 0) -> tuple[list[str], list[str]]:
    """Send a file; return the lines of its output and of its errors."""
    done = pcm("send", "--file", "-", *options, url=ws.environment["PCM_AMQP_URL"], given=text)
    assert done.returncode == status, done
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_all_jobs_of_a_file_are_sent_and_watched(ws: Workstation) -> None:
    ws.start("service")
    ids, _ = send(ws, jobs_for(ws, "true", "true", "true"))
    assert len(set(ids)) == 3
    for job_id in ids:
        assert ws.run("pcm", "watch", job_id).returncode == 0
    lines, _ = send(ws, jobs_for(ws, "true", "exit 3", "true"), "--wait", status=1)
    ids, problem = lines[:3], lines[3:]
    assert [line for line in problem if line.startswith(tuple(ids))] == [
        f"{ids[0]}: 1 succeeded",
        f"{ids[1]}: 1 failed",
        f"{ids[2]}: 1 succeeded",
    ]
    lines, _ = send(ws, jobs_for(ws, "true", "true"), "--json")
    assert all(json.loads(line)["routing_keys"] for line in lines)
    assert len(lines) == 2


def test_nothing_is_sent_where_one_is_wrong(ws: Workstation) -> None:
    ran = ws.folder / "ran"
    ws.start("service")
    jobs = json.loads(jobs_for(ws, f"echo x >> {ran}", "true", "true"))
    jobs[1]["command"]["timeout"] = "long"
    jobs[2]["target"] = ["all"]
    ids, errors = send(ws, json.dumps(jobs, indent=1), status=2)
    assert ids == []
    assert [error.split(": ")[:3] for error in errors] == [
        ["pcm", "stdin:21", "[1].command.timeout"],
        ["pcm", "stdin:38", "[2].target"],
    ]
    send(ws, jobs_for(ws, "true"), "--wait")  # behind what would have been sent before
    assert not ran.exists()


def test_an_unroutable_job_does_not_hold_back_others(ws: Workstation) -> None:
    ws.start("service")
    jobs = json.loads(jobs_for(ws, "true", "true", "true"))
    jobs[1] |= {"targets": ["workstation:nowhere"], "name": "lost"}
    lines, errors = send(ws, json.dumps(jobs), "--wait", status=1)
    assert len([line for line in lines if line.endswith(": 1 succeeded")]) == 2
    lost = "pcm: lost: targets: no workstation is bound to workstation:nowhere"
    assert errors[0].startswith(lost)  # a busy agent is waited for, which is said as well


def test_giving_up_is_of_all_together(ws: Workstation) -> None:
    ws.start("service")
    text = jobs_for(ws, "sleep 600", "sleep 600", "sleep 600")
    lines, _ = send(ws, text, "--wait", "--give-up-after", "1s", status=1)
    assert len([line for line in lines if line.startswith("gave up waiting")]) == 3
    for job_id in lines[:3]:
        ws.run("pcm", "cancel", job_id)


@pytest.mark.parametrize(
    "option", [["--to", "all"], ["--not-to", "group:x"], ["--respects-windows"]]
)
def test_a_file_says_it_all(good: str, option: list[str]) -> None:
    done = pcm("send", "--file", good, *option)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"{option[0]}: not with --file" in done.stderr


async def test_options_of_whom_and_when_reach_the_job(
    dispatcher: Dispatcher, ws: Workstation
) -> None:
    ws.start("service")
    done = ws.run(
        "pcm", "send", "--to", str(ws.target), "--not-to", "group:x", "--not-to", "workstation:y",
        "--respects-windows", "--background", "--", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    progress = Progress(done.stdout.strip())
    assert [report async for report in dispatcher.follow(progress.job_id, progress)]
    assert progress.job is not None
    assert progress.job.excluded == (group("x"), workstation("y"))
    assert progress.job.respects_windows
    for target, problem in (
        ("all", "--not-to: all: the job would have no target left"),
        ("x!", "--not-to: 'x!' is"),
    ):
        wrong = pcm("send", "--to", "all", "--not-to", target, "--", "true")
        assert (wrong.returncode, wrong.stderr.startswith(f"pcm: {problem}")) == (2, True)
