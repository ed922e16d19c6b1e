"""The document of the architecture names existing files; no folder is too full, no name double."""

import ast
import re
from collections import Counter

from tests.support.programs import ROOT

_NAMED = re.compile(r"`((?:agents|broker|schemas)/[\w/]+(?:\.py)?)`")


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
