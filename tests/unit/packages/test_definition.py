"""`pcm package check` names the line and the field of what is wrong."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.packages.building.definition import WrongPackage, read_source
from tests.support.packages import source_folder
from tests.unit.packages.conftest import Pcm


def test_new_writes_a_package_that_builds(pcm: Pcm) -> None:
    assert pcm("package", "new", "tool")[0] == 0
    assert pcm("package", "check", "tool")[1] == "tool@0.1: 1 file, 233 bytes: install, uninstall\n"
    status, printed, _ = pcm("package", "build", "tool")
    assert status == 0
    assert printed.startswith("tool_0.1.pcmpkg: tool@0.1, 233 bytes in ")
    assert Path("tool_0.1.pcmpkg").is_file()


def test_new_overwrites_nothing(pcm: Pcm) -> None:
    pcm("package", "new", "tool")
    status, _, errors = pcm("package", "new", "tool")
    assert (status, errors) == (2, "pcm: DIR: tool: is not empty\n")
    status, _, errors = pcm("package", "new", "tool.v2")
    assert status == 2
    assert "is not a name" in errors
    assert not Path("tool.v2").exists()


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (('name = "demo"', 'name = "de mo"'), 1, "name: 'de mo' is not a name"),
        (('version = "1.0"', 'version = "latest"'), 2, "version: 'latest' is not a version"),
        (('version = "1.0"', ""), 1, "version: is missing"),
        (("comment", "coment"), 3, "coment: no such field; did you mean comment?"),
        (('"for tests"', "7"), 3, "comment: 7 is not a string"),
        (("argv = [", "arg = ["), 5, "commands.install.argv: is missing"),
        (("./setup.sh", "./nothing"), 6, "commands.install.argv: './nothing' is not a file"),
        (
            ("./setup.sh", "./data/file"),
            6,
            "commands.install.argv: './data/file' is not executable",
        ),
        (
            ("background = true", "background = true\ncwd = '/tmp'"),
            8,
            "commands.install.cwd: a package's command runs in the package's folder",
        ),
        (("background = true", "run_as = 'ada'"), 7, "commands.install.run_as: a foreground"),
        (("[commands.install]", "[commands.'a b']"), 5, "commands.a b: 'a b' is not a name"),
        (("[commands.", "[comands."), 5, "comands: no such field; did you mean commands?"),
        (("[commands.install]", "[commands.install"), 5, "is not valid TOML"),
        (('comment = "for tests"', "format = 2"), 3, "format: 2 is newer than this program reads"),
        (
            ('comment = "for tests"', 'on_failed_verify = "uninstall"'),
            3,
            "on_failed_verify: needs verify",
        ),
        (('comment = "for tests"', 'requires = ["demo"]'), 3, "requires: names the package itself"),
        (('comment = "for tests"', 'requires = ["a <"]'), 3, "requires[0]: '<' is not a limit"),
        (('comment = "for tests"', 'requires = ["a<x"]'), 3, "requires[0]: 'x' is not a version"),
        (
            ('comment = "for tests"', 'platforms = ["dos"]'),
            3,
            "platforms[0]: 'dos' is not",
        ),
    ],
)
def test_what_is_wrong_in_the_definition(
    folder: Path, pcm: Pcm, change: tuple[str, str], line: int | None, problem: str
) -> None:
    file = folder / "package.toml"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(change[0], change[1], 1))
    status, printed, errors = pcm("package", "check", folder)
    place = f"{file}:{line}" if line else str(file)
    first = errors.splitlines()[0]
    assert (status, printed) == (2, "")
    assert first.startswith(f"pcm: {place}: {problem}"), first
    assert pcm("package", "build", folder)[0] == 2
    assert list(Path().iterdir()) == []


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))


_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda folder: os.mkfifo(folder / "p"), "p: is neither a file, a folder nor"),
    "socket": (_socket, "s: is neither a file, a folder nor"),
    "setuid": (lambda folder: (folder / "setup.sh").chmod(0o4755), "setup.sh: has setuid"),
    "link out": (
        lambda folder: (folder / "l").symlink_to("/etc/passwd"),
        "links: 'l': its target '/etc/passwd' is not a file or folder of the package",
    ),
    "link up": (
        lambda folder: (folder / "data/l").symlink_to("../../x"),
        "links: 'data/l': its target '../../x' is not",
    ),
    "case": (lambda folder: (folder / "Setup.sh").touch(), "differs from"),
    "not UTF-8": (lambda folder: os.close(os.open(os.fsencode(folder) + b"/\xff", os.O_CREAT)), ""),
    "newline": (lambda folder: (folder / "a\nb").touch(), "has a backslash or a control character"),
    "backslash": (lambda folder: (folder / "a\\b").touch(), "has a backslash"),
    "deep": (lambda folder: folder.joinpath(*"x" * 40).mkdir(parents=True), "levels deep"),
    "no definition": (lambda folder: (folder / "package.toml").unlink(), "No such file"),
}


@pytest.mark.parametrize("kind", _FILES)
def test_files_that_a_package_cannot_have(folder: Path, pcm: Pcm, kind: str) -> None:
    change, problem = _FILES[kind]
    change(folder)
    status, _, errors = pcm("package", "check", folder)
    assert status == 2
    assert problem in errors
    assert all(line.isprintable() for line in errors.splitlines())


def test_every_error_is_named_at_once(tmp_path: Path) -> None:
    folder = source_folder(tmp_path / "demo", more='publisher = 1\nplatforms = ["dos"]')
    with pytest.raises(WrongPackage) as wrong:
        read_source(folder)
    assert [problem.field for problem in wrong.value.problems] == ["publisher", "platforms[0]"]


def test_a_git_folder_and_the_definition_are_left_out(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").touch()
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("data/file")
    source = read_source(folder)
    assert sorted(file.path for file in source.files) == ["data/file", "setup.sh"]
    assert [link.path for link in source.links] == ["link"]
    assert source.folders == ["empty"]
