"""Checks locked versions for known vulnerabilities; skips if the service is unreachable."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_LIMIT = 20  # seconds
_LOCKED = ("requirements.lock", "tests/requirements.lock")
_PROGRAM = Path(sys.executable).with_name("pip-audit")


def main() -> int:
    """Return the exit status: 1 if a vulnerability is known."""
    words = ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    # The locked versions as they stand, hashes and all: nothing is resolved, or installed.
    words += ["--disable-pip", "--require-hashes"]
    words += [word for file in _LOCKED for word in ("--requirement", file)]
    try:
        done = subprocess.run(
            [_PROGRAM, *words], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return _skip(f"no answer in {_LIMIT} s")
    found: Any = None
    with suppress(ValueError):
        found = json.loads(done.stdout)
    if not isinstance(found, dict):  # it is as silent on a wrong file as without a network
        return _skip((done.stderr.strip().splitlines() or ["no answer"])[-1][:200])
    known = [package for package in found["dependencies"] if "skip_reason" not in package]
    if not known:  # some mirrors answer, and know nothing
        return _skip("none of our packages is in it")
    return _tell(known, len(found["dependencies"]))


def _skip(why: str) -> int:
    print(f"audit: skipped: the database of known holes cannot be reached ({why})")
    return 0


def _tell(packages: list[dict[str, Any]], locked: int) -> int:
    holes = 0
    for package in packages:
        for hole in package.get("vulns", ()):
            holes += 1
            fixed = ", ".join(hole["fix_versions"]) or "no version yet"
            print(f"audit: {package['name']} {package['version']}: {hole['id']}; fixed in {fixed}")
    print(f"audit: {holes} known holes in {len(packages)} of {locked} locked packages")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
