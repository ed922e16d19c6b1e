"""Windows see what an interactive agent does, as it happens, and hold up nothing."""

import json
import subprocess
import sys
from pathlib import Path

from broker.log import configure


def test_a_log_of_its_own_is_closed_to_others_and_does_not_grow(tmp_path: Path) -> None:
    script = (
        "import asyncio, logging, pathlib, sys, warnings\n"
        f"from broker.log import get_logger, {configure.__name__}\n"
        f"configure(file=pathlib.Path(sys.argv[1]), agent='interactive-ada')\n"
        "log = get_logger()\n"
        "for number in range(3000): log.info('event', number=number, text='x' * 1000)\n"
        "logging.getLogger('asyncio').error('a library')\n"
        "warnings.warn('a warning')\n"
    )
    file = tmp_path / "agent.log"
    done = subprocess.run(
        [sys.executable, "-c", script, file], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")
    files = sorted(tmp_path.iterdir())
    assert files == [file, tmp_path / "agent.log.1"]
    for found in files:
        assert found.stat().st_mode & 0o777 == 0o600
        assert found.stat().st_size < 1.01 * 1024 * 1024
    lines = file.read_text().splitlines()
    assert any("a library" in line for line in lines)
    assert any("a warning" in line for line in lines)
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events[-1]["number"] == 2999
    assert events[-1]["agent"] == "interactive-ada"
