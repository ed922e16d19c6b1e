"""Compile and run the C programs that measure the machine's limits."""

import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).parent


def compiled(name: str, folder: Path, *libraries: str) -> Path | None:
    """Compile NAME.c beside this file into a folder; if that fails, print why and return None."""
    compiler = shutil.which("cc")
    if compiler is None:
        print(f"without {name}.c: there is no cc")
        return None
    program = folder / name
    done = subprocess.run(
        [compiler, "-O2", "-o", program, _HERE / f"{name}.c", *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = ("fatal error", "cannot find", "error")
        lines = done.stderr.splitlines()
        wrong = next((line for word in words for line in lines if word in line), done.stderr)
        print(f"without {name}.c: {wrong}")
        return None
    return program


def rate(*words: str | Path) -> float:
    """Run a program, for at most 2 minutes; return the number that it prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return float(done.stdout)
