"""The program `pcm`, run as an administrator runs it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from schemas import Job
from tests.support.programs import BIN, NOWHERE, pcm
from tests.support.rabbitmq import Broker
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["send"], "COMMAND|command"),
        (["send", "--to", "grup:x", "--", "true"], "--to"),
        (["send", "--to", "all"], "COMMAND|command"),
        (["send", "--to", "group:a.b", "--", "true"], "--to"),
        (["send", "--background", "--user-input-required", "--", "true"], "--user-input-required"),
        (["send", "--mandatory-at", "tomorrow", "--", "true"], "--mandatory-at"),
        (["send", "--mandatory-at", "2026-11-30T02:00", "--", "true"], "--mandatory-at"),
        (["send", "--expires-at", "2020-01-01T00:00Z", "--", "true"], "--expires-at"),
        (["send", "--offer-at", "+2h", "--mandatory-at", "+1h", "--", "true"], "--mandatory-at"),
        (["send", "--timeout", "5", "--", "true"], "--timeout"),
        (["send", "--success-exit", "0,x", "--", "true"], "--success-exit"),
        (["send", "--success-exit", "256", "--", "true"], "--success-exit"),
        (["send", "--restart-exit", "3010", "--", "true"], "--restart-exit"),
        (["send", "--env", f"A={'x' * 131_069}ü", "--", "true"], "--env"),
        (["send", "--platform", "linus", "--", "true"], "--platform"),
        (["send", "--env", "A", "--", "true"], "--env"),
        (["send", "--cwd", "tmp", "--", "true"], "--cwd"),
        (["send", "--nonsense", "--", "true"], "--nonsense"),
        (["send", "--to", "all", "--", ""], "COMMAND"),
        (["send", "--file", "/no/such/file"], "--file"),
        (["send", "--file", "-", "--background"], "--background"),
        (["send", "--file", "-", "--", "true"], "COMMAND"),
        (["watch"], "JOB"),
        (["watch", "x", "--give-up-after", "soon"], "--give-up-after"),
        (["frobnicate"], "COMMAND"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: list[str], named: str) -> None:
    if words[:1] == ["send"] and not {"--to", "--file"} & set(words):
        words = ["send", "--to", "all", *words[1:]]
    done = pcm(*words)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert any(name in done.stderr for name in named.split("|")), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no job", "stdin:1: is not a job"),
        ("{", "stdin:1: is not valid JSON"),
        ("[]", "stdin: has no jobs"),
        ('{"command": {"argv": ["x"]}}', "targets"),
        ('{"command": {"argv": ["x"], "backgruond": true}, "targets": ["all"]}', "backgruond"),
        ('{"command": {"argv": ["x"]}, "targets": ["all"], "version": "2.0"}', "version"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_field(text: str, named: str) -> None:
    done = pcm("send", "--file", "-", given=text)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [("PCM_AMQP_URL", "http://x"), ("PCM_AMQP_URL", ""), ("PCM_PATIENCE", "long")],
)
def test_a_wrong_setting_is_named(setting: str, value: str) -> None:
    done = subprocess.run(
        [BIN / "pcm", "send", "--to", "all", "--", "true"],
        env={"PATH": "/usr/bin:/bin", setting: value},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"pcm: {setting}: ")
    assert len(done.stderr.splitlines()) == 1


def test_settings_come_from_a_file_of_ones_own(tmp_path: Path) -> None:
    """Not from a file that others may write to."""
    file = tmp_path / ".env"
    file.write_text(f"PCM_AMQP_URL={NOWHERE}\nPCM_PATIENCE=nonsense\n")
    for mode, named in ((0o600, "PCM_PATIENCE"), (0o666, "PCM_AMQP_URL")):
        file.chmod(mode)
        done = subprocess.run(
            [BIN / "pcm", "send", "--to", "all", "--", "true"],
            env={"PATH": "/usr/bin:/bin", "PCM_AMQP_URL": "nonsense" * (mode == 0o666) or NOWHERE},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        last = done.stderr.splitlines()[-1]
        assert (done.returncode, last.split(":")[1]) == (2, f" {named}")


def _with_settings(folder: Path, mode: int = 0o600, **variables: str) -> list[str]:
    """Return the stderr of `pcm topology show` in a folder with a `.env` file."""
    (folder / ".env").chmod(mode)
    done = subprocess.run(
        [BIN / "pcm", "topology", "show"],
        env={"PATH": "/usr/bin:/bin", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0
    return done.stderr.splitlines()


def test_a_setting_without_effect_is_reported_in_one_line(tmp_path: Path) -> None:
    """A wrong name with the nearest right one; a file that is not read, or read by others."""
    file = tmp_path / ".env"
    file.write_text(f"PCM_AMQP_URL={NOWHERE}\nPCM_WORKSTATON=ws-1\n")
    wrong_name = (
        "pcm: PCM_WORKSTATON: unknown setting in .env, ignored; did you mean PCM_WORKSTATION?"
    )
    assert _with_settings(tmp_path) == [wrong_name]
    assert _with_settings(
        tmp_path, pcm_groupz="lab", PCM_TEST_AMQP_URL="", PCM_JOB_ID="1", PCM_COUNTDOWN="5m"
    ) == [
        "pcm: pcm_groupz: unknown setting in the environment, ignored; did you mean PCM_GROUPS?",
        wrong_name,
    ]
    assert _with_settings(tmp_path, 0o644) == [
        wrong_name,
        "pcm: .env: everybody can read the password in PCM_AMQP_URL: chmod go= .env",
    ]
    assert _with_settings(tmp_path, 0o666) == [
        "pcm: .env: is not read: others can write to it: chmod go-w .env"
    ]
    file.write_text("SECRET_KEY=of another program\n")
    assert _with_settings(tmp_path, 0o666) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_a_file_of_settings_of_another_user_is_reported(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"PCM_AMQP_URL={NOWHERE}\n")
    os.chown(file, 1, -1)
    assert _with_settings(tmp_path) == [
        "pcm: .env: is not read: it belongs to user 1 and must be yours: chown 0 .env"
    ]


def test_no_broker_is_exit_status_3_and_tells_no_password() -> None:
    done = pcm("send", "--to", "all", "--", "true")
    assert done.returncode == 3
    first, last = done.stderr.splitlines()
    assert "retrying" in first
    assert "the broker is unreachable: 127.0.0.1:1 as nobody: " in last
    assert "secret" not in done.stderr


def test_a_wrong_password_is_reported_at_once(node: Broker) -> None:
    """Q230242: and is not tried again and again."""
    done = pcm(
        "send", "--to", "all", "--", "true", url=node.url.replace("guest:guest", "guest:wrong")
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "the broker refused the login" in done.stderr
    assert "unreachable" not in done.stderr
    assert "wrong" not in done.stderr


def test_an_unknown_target_is_named(node: Broker) -> None:
    done = pcm("send", "--to", "workstation:nowhere", "--", "true", url=node.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "workstation:nowhere" in done.stderr


def test_a_job_too_large(node: Broker) -> None:
    body = Job.model_validate(
        {"command": {"argv": ["echo", *["x" * 100_000] * 11]}, "targets": ["all"]}
    ).body()
    done = pcm("send", "--file", "-", url=node.url, given=body.decode())
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "1048576" in done.stderr


def test_send_wait_tells_what_came_of_it(ws: Workstation) -> None:
    ws.start("service")
    to = ["--to", str(ws.target), "--background", "--wait"]
    good = ws.run("pcm", "send", *to, "--", "sh", "-c", "echo out; echo --wait")
    assert good.returncode == 0, good
    job_id = good.stdout.splitlines()[0]
    assert good.stdout.endswith(f"{job_id}: 1 succeeded\n")
    assert "exit 0" in good.stdout
    assert ws.run("pcm", "watch", job_id).returncode == 0
    bad = ws.run("pcm", "send", *to, "--shell", "--", "echo problem >&2;", "exit 7")
    assert bad.returncode == 1
    assert "exit 7" in bad.stdout
    assert "problem" in bad.stdout
    lines = ws.run("pcm", "send", *to, "--json", "--", "true").stdout.splitlines()
    sent, *reports = map(json.loads, lines)
    assert sent["routing_keys"] == [f"background.optional.workstation.{ws.name}"]
    assert [report["state"] for report in reports] == ["received", "started", "succeeded"]


def test_every_option_reaches_the_command(ws: Workstation, tmp_path: Path) -> None:
    ws.start("service")
    done = ws.run(
        "pcm", "send", "--to", str(ws.target), "--background", "--wait", "--json",
        "--env", "A=1", "--env", "B=x=y", "--cwd", str(tmp_path), "--timeout", "20s",
        "--success-exit", "0,9", "--platform", "linux", "--name", "a name",
        "--offer-at", "now", "--mandatory-at", "+500ms", "--expires-at", "+1h",
        "--shell", "--", 'echo "$A $B $(pwd)"; exit 9',
    )  # fmt: skip
    final = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, final["state"]) == (0, "succeeded")
    assert final["result"]["stdout"]["head"] == f"1 x=y {tmp_path}\n"


def test_giving_up(ws: Workstation) -> None:
    ws.start("service")
    done = ws.run(
        "pcm", "send", "--to", str(ws.target), "--background", "--mandatory-at", "+1h", "--wait",
        "--give-up-after", "1s", "--", "true",
    )  # fmt: skip
    assert done.returncode == 1
    assert f"gave up waiting for {ws.name}" in done.stdout
    cancelled = ws.run("pcm", "cancel", done.stdout.splitlines()[0])
    assert (cancelled.returncode, cancelled.stderr) == (0, "")


def test_cancel_and_watch_of_an_unknown_job(node: Broker) -> None:
    for command in ("cancel", "watch"):
        done = pcm(command, "no-such-job", url=node.url)
        assert (done.returncode, done.stderr) == (
            1,
            "pcm: no-such-job: no such job was sent\n",
        )


def test_topology_and_schema(node: Broker) -> None:
    shown = pcm("topology", "show").stdout
    assert "background.mandatory.*  service\n" in shown
    assert "foreground.optional.*   interactive, service\n" in shown
    rows = json.loads(pcm("topology", "show", "--json").stdout)
    assert [row["bound"] for row in rows] == [["service"]] * 2 + [["interactive", "service"]] * 2
    assert pcm("topology", "apply", url=node.url).returncode == 0
    assert pcm("topology", "apply").returncode == 3
    schema = json.loads(pcm("schema").stdout)
    assert {"Job", "Cancellation", "Report"} <= schema["$defs"].keys()


@pytest.mark.parametrize("program", ["pcm", "pcm-agent"])
def test_help_names_every_setting(program: str) -> None:
    done = subprocess.run(
        [BIN / program, "--help"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert "PCM_AMQP_URL" in done.stdout
    if program == "pcm-agent":
        for name in ("WORKSTATION", "GROUPS", "STATE_DIR", "CONCURRENCY", "OUTPUT_LIMIT"):
            assert f"PCM_{name}" in done.stdout
