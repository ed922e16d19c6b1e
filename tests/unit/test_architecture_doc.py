"""The document of the architecture names files and folders that are there."""

import re

from tests.support.programs import ROOT

_NAMED = re.compile(r"`((?:agents|broker|schemas)/[\w/]+(?:\.py)?)`")


def test_each_file_that_it_names_is_there() -> None:
    named = _NAMED.findall((ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


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
