"""Shell completion: bash and fish really complete, and all shells accept the scripts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker.cli.main import COMMANDS
from broker.completion import SHELLS
from tests.support import programs
from tests.support.waiting import LIMIT

_ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
_COMPLETE = """
source "$1"; shift
function=$(complete -p "$1"); function=${function##*-F }; function=${function%% *}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$function" "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def _script(program: str, shell: str) -> str:
    done = programs.run(program, ["completion", shell], _ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _output(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for program in ("pcm", "pcm-agent"):
        for shell in SHELLS:
            (folder / f"{program}.{shell}").write_text(_script(program, shell))
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("program", ["pcm", "pcm-agent"])
def test_the_shell_accepts_the_script(scripts: Path, program: str, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert _output(shell, "-n", scripts / f"{program}.{shell}") == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["pcm", ""], set(COMMANDS)),
        (["pcm", "sh"], {"show"}),
        (["pcm", "rollout", ""], {"list", "show", "pause", "resume", "abort"}),
        (["pcm", "topology", ""], {"show", "apply"}),
        (["pcm", "jobs", "--sta"], {"--state"}),
        (["pcm", "send", "--to", "all", "--wait", "--succ"], {"--success-exit"}),
        (["pcm", "enrol", "--group", "lab", "--queue-type", ""], {"quorum", "classic"}),
        (["pcm", "check", "FOLDER/pcm.b"], {"FOLDER/pcm.bash"}),
        (["pcm-agent", "po"], {"postpone"}),
        (["pcm-agent", "postpone", "JOB", "--unt"], {"--until"}),
        (["pcm-agent", "completion", ""], set(SHELLS)),
    ],
)
def test_bash_completes(scripts: Path, line: list[str], words: set[str]) -> None:
    line = [word.replace("FOLDER", str(scripts)) for word in line]
    found = _output("bash", "-c", _COMPLETE, "bash", scripts / f"{line[0]}.bash", *line)
    assert set(found.split()) == {word.replace("FOLDER", str(scripts)) for word in words}


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_with_short_descriptions(scripts: Path) -> None:
    complete = f"source {scripts}/pcm.fish; complete -C 'pcm sho'; complete -C 'pcm rollout ab'"
    found = _output("fish", "--no-config", "-c", complete)
    assert found.splitlines() == [
        "show\tshow a job and its state on each workstation",
        "abort\tsend no further wave, and cancel its jobs",
    ]


def test_other_commands_do_not_load_the_generator() -> None:
    code = (
        "import sys; from broker.cli import main; main.run_pcm(['topology', 'show']);"
        " sys.exit('shtab' in sys.modules)"
    )
    _output(sys.executable, "-c", code)


def test_an_unknown_shell_is_wrong_usage() -> None:
    done = programs.run("pcm", ["completion", "csh"], _ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr.startswith("pcm completion: bash|zsh|fish: invalid choice: 'csh'")
