"""The documents: links resolve, generated pages are current, and the top level stays small."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import reference
from tests.support.programs import ROOT

_FENCED = re.compile(r"^(```.*?^```$|(?: {4}.*\n)+)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_DOCUMENT_NAME = re.compile(r"\bdocs/[\w/-]+\.(?:md|py|svg)\b")
_LONGEST_README = 150
_MOST_ENTRIES = 15


def _tracked() -> list[Path]:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("this is not a clone")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    names = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text))
    return {name.replace(" ", "-") for name in names}


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCED.sub("", document.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_documents_that_other_files_name_exist() -> None:
    missing = {
        (str(path.relative_to(ROOT)), name)
        for path in _tracked()
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".sh", ""}
        and path.name != "CHANGELOG.md"  # which names former places
        for name in _DOCUMENT_NAME.findall(path.read_text(errors="replace"))
        if not (ROOT / name).exists() and not name.endswith("NAME.svg")
    }
    assert missing == set()


@pytest.mark.parametrize("name", reference.pages())
def test_the_reference_is_current(name: str) -> None:
    """`make reference` writes it."""
    assert (reference.FOLDER / name).read_text() == reference.pages()[name]


def test_every_how_to_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {"README.md"} - set(_LINK.findall(index)) == set()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= _LONGEST_README


def test_the_top_level_has_few_entries() -> None:
    entries = {path.relative_to(ROOT).parts[0] for path in _tracked()}
    assert len({name for name in entries if not name.startswith(".")}) <= _MOST_ENTRIES
