"""Another project, which has us from the wheel, is given real types by every public name."""

import inspect
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import broker
import schemas
from tests.support.documents import scripts

pytestmark = pytest.mark.full  # a type checker without a cache takes its time

_ROOT = Path(__file__).parents[2]
_PACKAGES = (broker, schemas)
_REVEALED = re.compile(r'^(\w+)\.py:(\d+): note: Revealed type is "(.*)"$', re.MULTILINE)
_ANY = re.compile(r"\bAny\b")
_EXPECTED_ANY = re.compile(r"Coroutine\[Any, Any, |\*\*values: Any")
"""What every coroutine has, and settings, which are read from text."""
_WRONG = """\
from broker import NoSuchName, SyncDispatcher
from schemas import NoSuchMessage

with SyncDispatcher() as dispatcher:
    dispatcher.wait(5)
    dispatcher.wait("a-job").ended.no_such_attribute
"""
_WRONG_LINES = {1, 2, 5, 6}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of ours, with an environment in which we are installed from the wheel."""
    folder = tmp_path_factory.mktemp("project")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    _run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, _ROOT)
    _run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    (wheel,) = folder.glob("*.whl")
    _run(*pip, "--python", _python(folder), "install", *offline, wheel)
    # What we build on is taken from here. We are not: a .pth file found there is not heeded.
    packages = Path(sysconfig.get_path("purelib"))
    here = folder / "venv" / packages.relative_to(sys.prefix)
    (here / "environment.pth").write_text(f"{packages}\n")
    return folder


def _python(folder: Path) -> Path:
    return folder / "venv" / "bin" / "python"


def _run(*words: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _mypy(project: Path, *files: str) -> "CompletedProcess[str]":
    cache = project / "cache"
    words: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    words += ["--hide-error-context", "--python-executable", _python(project)]
    words += ["--cache-dir", cache, "--no-pretty", *files]
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=project,
        check=False,
    )


def _public() -> list[str]:
    """Return expressions of all public names, and of what the classes among them have."""
    found = []
    for package in _PACKAGES:
        for name in package.__all__:
            found.append(f"{package.__name__}.{name}")
            value = getattr(package, name)
            if inspect.isclass(value) and not issubclass(value, BaseException):
                found += [
                    f"{package.__name__}.{name}.{attribute}"
                    for attribute, of_class in vars(value).items()
                    if not attribute.startswith(("_", "model_"))
                    and (callable(getattr(value, attribute)) or isinstance(of_class, property))
                ]
    return found


def test_no_public_name_is_of_any_type(project: Path) -> None:
    names = [f"from {one.__name__} import {name}" for one in _PACKAGES for name in one.__all__]
    lines = [*names, "import broker", "import schemas"]
    expressions = _public()
    first = len(lines) + 1
    lines += [f"reveal_type({expression})" for expression in expressions]
    (project / "uses.py").write_text("\n".join([*lines, ""]))
    done = _mypy(project, "uses.py")
    assert done.returncode == 0, done.stdout
    revealed = {int(line): text for _, line, text in _REVEALED.findall(done.stdout)}
    assert revealed.keys() == set(range(first, len(lines) + 1))
    vague = {
        expressions[line - first]: text
        for line, text in revealed.items()
        if _ANY.search(_EXPECTED_ANY.sub("", text))
    }
    assert vague == {}


def test_what_is_wrong_is_an_error(project: Path) -> None:
    (project / "wrong.py").write_text(_WRONG)
    done = _mypy(project, "wrong.py")
    assert {
        int(line) for line in re.findall(r"^wrong\.py:(\d+): error", done.stdout, re.MULTILINE)
    } == _WRONG_LINES


def test_the_documented_scripts_have_no_type_errors(project: Path) -> None:
    files = []
    for number, (script, _) in enumerate(scripts(), 1):
        files.append(f"example_{number}.py")
        (project / files[-1]).write_text(script.text)
    done = _mypy(project, "--scripts-are-modules", *files)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_wheel_is_what_is_imported(project: Path) -> None:
    names = "\n".join(
        f"from {one.__name__} import {name}" for one in _PACKAGES for name in one.__all__
    )
    script = f"{names}\nimport agents, broker, schemas\n"
    script += "for one in (agents, broker, schemas): print(one.__file__)\n"
    done = subprocess.run(
        [_python(project), "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=project,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith(str(project)) for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 3
