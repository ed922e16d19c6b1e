"""Build and verify a package of 10,000 files, beside tar with zstd and sha256sum.

    python -m benchmarks.packages

Both build an archive of the same files at zstd's level 3. tar's side has no sums of files; ours has
a sum of each, and of the archive. sha256sum checks the content only; we check names, modes and
kinds, too. All sides run alternately, on the files in the page cache.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measured import Comparison, Series, in_turns
from broker.content.archive import unpack
from broker.content.folder import verify_folder
from broker.packages.building.package_file import build_package
from schemas import Manifest

FILES = 10_000
_WORDS = 4000


def make_folder(folder: Path) -> int:
    """Make a package's folder; return the size of its files in bytes.

    The files are as those of a program: most are small, and the text is of words.
    """
    chance = random.Random(6)
    words = [chance.randbytes(chance.randint(2, 9)).hex() for _ in range(_WORDS)]
    size = 0
    folder.mkdir()
    (folder / "package.toml").write_text(
        'name = "large"\nversion = "1.0"\n[commands.install]\nargv = ["true"]\n'
    )
    for number in range(FILES):
        file = folder / f"part-{number % 100}" / f"file-{number}"
        file.parent.mkdir(exist_ok=True)
        text = " ".join(chance.choices(words, k=int(chance.lognormvariate(6, 1.2))))
        size += file.write_text(text)
    return size


def timed(work: Callable[[], object]) -> float:
    """Return how many files a second some work takes in."""
    start = time.perf_counter()
    work()
    return FILES / (time.perf_counter() - start)


def shell(command: str, folder: Path) -> Callable[[], object]:
    """Return the work of a command line in a folder."""
    return lambda: subprocess.run(["bash", "-ec", command], cwd=folder, check=True)


def child(folder: Path, manifest: Path) -> Callable[[], object]:
    """Return our verification as a process of its own, with the start of Python."""
    words = [sys.executable, "-m", "benchmarks.packages", str(folder), str(manifest)]
    return lambda: subprocess.run(words, check=True)


def compare(folder: Path) -> None:
    """Measure all sides."""
    source, unpacked, output = folder / "large", folder / "unpacked", folder / "out"
    output.mkdir()
    unpacked.mkdir()
    megabytes = make_folder(source) / 1e6
    built = build_package(source, output)
    with built.open_archive() as archive:
        unpack(built.manifest, archive, unpacked)
    manifest = output / "manifest"
    manifest.write_bytes(built.manifest.body())
    shell("find . -type f -print0 | xargs -0 sha256sum > ../out/sums", unpacked)()
    sides: dict[str, dict[str, Callable[[], object]]] = {
        "build": {
            "pcm package build": lambda: build_package(source, output),
            "tar --zstd": shell("tar -c --zstd -f ../out/t.tar.zst .", source),
            "tar --zstd, sha256sum of each file": shell(
                "tar -c --zstd -f ../out/t.tar.zst .; sha256sum ../out/t.tar.zst > ../out/s;"
                " find . -type f -print0 | xargs -0 sha256sum >> ../out/s",
                source,
            ),
        },
        "verify": {
            "verify_folder": lambda: verify_folder(built.manifest, unpacked),
            "verify_folder, a process": child(unpacked, manifest),
            "sha256sum --check": shell("sha256sum --quiet --check ../out/sums", unpacked),
        },
    }
    for name, ways in sides.items():
        figures = in_turns({side: partial(timed, work) for side, work in ways.items()})
        series = [Series(side, figures[side]) for side in ways]
        title = f"{name} a package of {FILES:,} files, {megabytes:.0f} MB"
        baseline = "tar --zstd" if name == "build" else "sha256sum --check"
        Comparison(f"packages-{name}", title, "files a second", series, baseline).keep()


def main() -> None:
    """Measure, or be the process that verifies."""
    if len(sys.argv) > 1:
        folder, manifest = map(Path, sys.argv[1:])
        verify_folder(Manifest.read(manifest.read_bytes()), folder)
        return
    with tempfile.TemporaryDirectory() as place:
        compare(Path(place))


if __name__ == "__main__":
    main()
