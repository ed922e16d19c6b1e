"""`make fuzz`: hostile bytes for each reader, for the given time."""

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.entrances import ENTRANCES, Entrance
from tests.fuzz.mutation import mutated

_FOLDER = Path(".fuzz")
_INPUT_LIMIT = 20_000  # bytes
_SLOWEST = 20  # seconds for one input
_MEMORY = 2048  # MB
_AT_ONCE = 500


def main() -> int:
    """Run; return the exit status: 1 where a defect was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--again", type=Path, metavar="FILE", help="enter with what was found")
    arguments = parser.parse_args()
    if arguments.again:
        return _again(arguments.again)
    if importlib.util.find_spec("atheris"):
        return _guided(arguments.minutes * 60, arguments.seed)
    print("fuzz: atheris is not there for this Python; bytes are chosen at random (Hypothesis)")
    return _random(arguments.minutes * 60, arguments.seed)


def _guided(seconds: float, first_seed: int) -> int:
    """Let a process on each processor find ways into the code; they share what they found."""
    corpus = _FOLDER / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, entrance in enumerate(ENTRANCES):
        for place, good in enumerate(entrance.seeds):
            (corpus / f"{number}-{place}").write_bytes(bytes([number]) + good)
    words = [
        *(sys.executable, "-m", "tests.fuzz.guided", str(corpus)),
        *(f"-max_total_time={seconds:.0f}", f"-max_len={_INPUT_LIMIT}", f"-timeout={_SLOWEST}"),
        *(f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={_FOLDER}/", "-print_final_stats=1"),
        "-reload=10",
    ]
    count = os.cpu_count() or 1
    print(f"fuzz: {len(ENTRANCES)} entrances, {count} processes, {seconds:.0f} s each", flush=True)
    logs = [_FOLDER / f"{number}.log" for number in range(count)]
    processes = []
    for number, log in enumerate(logs):
        with log.open("wb") as output:
            command = [*words, f"-seed={first_seed + number}"]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output))
    status = 0
    for process, log in zip(processes, logs, strict=True):
        if process.wait() != 0:
            status = 1
            print(f"fuzz: a defect ({log}):\n{log.read_text(errors='replace')[-3000:]}")
            print("fuzz: again: python -m tests.fuzz --again FILE, which the last lines name")
        else:
            print(f"fuzz: {_sum(log)}")
    return status


def _sum(log: Path) -> str:
    """Return how many inputs there were, and how far they came, by libFuzzer's own last words."""
    lines = log.read_text(errors="replace").splitlines()
    counts = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
    reached = [line.partition("cov:")[2].split()[0] for line in lines if "cov:" in line]
    return f"{counts[-1]} inputs, {reached[-1]} places in the code reached, no defect"


def _random(seconds: float, first_seed: int) -> int:
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:

        @settings(
            max_examples=_AT_ONCE,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )
        @seed(first_seed + tried)
        @given(st.sampled_from(ENTRANCES), st.integers(0, 2**32), st.binary(max_size=300))
        def enter(entrance: Entrance, choice: int, data: bytes) -> None:
            source = random.Random(choice)
            entrance.takes(mutated(source.choice((*entrance.seeds, data)), source))

        enter()
        tried += _AT_ONCE
    print(f"fuzz: {tried} inputs, no defect")
    return 0


def _again(file: Path) -> int:
    data = file.read_bytes()
    entrance = ENTRANCES[data[0] % len(ENTRANCES)]
    print(f"fuzz: {entrance.name}: {data[1:]!r}")
    print("fuzz: it is taken" if entrance.takes(data[1:]) else "fuzz: it is refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
