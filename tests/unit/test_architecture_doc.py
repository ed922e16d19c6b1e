"""The architecture document names existing files; folders are small; names are used once."""

import ast
import re
from collections import Counter, defaultdict

from tests.support.programs import ROOT

_NAMED = re.compile(r"`((?:agents|broker|schemas)/[\w/]+(?:\.py)?)`")

# The names of public functions that several modules may have, each with the reason.
_REPEATED = {
    "add_to": "adds a command to `pcm`; `broker/cli/main.py` calls it by the name of the module",
    "main": "runs a program",
}


def test_each_file_that_it_names_is_there() -> None:
    named = _NAMED.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for package in ("agents", "broker", "schemas")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_public_function_name_is_used_twice() -> None:
    modules = defaultdict(list)
    for package in ("agents", "broker", "schemas"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    modules[node.name].append(str(path.relative_to(ROOT)))
    repeated = {name for name, places in modules.items() if len(places) > 1 and name[0] != "_"}
    assert repeated == set(_REPEATED), {name: modules[name] for name in repeated - set(_REPEATED)}


def test_no_folder_has_more_than_one_looks_through() -> None:
    folders = {
        path.parent
        for name in ("agents", "broker", "schemas")
        for path in (ROOT / name).rglob("*.py")
    }
    counts = {
        str(folder.relative_to(ROOT)): sum(
            path.name != "__init__.py" for path in folder.glob("*.py")
        )
        for folder in folders
    }
    del counts["agents/window"]  # one part of the program, whose files nothing else imports
    assert {folder: count for folder, count in counts.items() if count > 12} == {}
