"""A job's report: the page as a browser shows it, the sheet, and how files are written."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import pytest

from schemas import Job, State, group
from tests.integration.broker.test_look import in_every_state
from tests.support.simulated_fleet import SimulatedFleet, result
from tests.support.waiting import LIMIT

S = State
NOW = datetime.now(UTC)
NASTY = "</script><script>document.title='owned'</script><img src=x onerror=\"alert(1)\">&\x07"


def shown(page: Path) -> str:
    """Return the page's document as a real browser has it after its script has run."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
            f"--user-data-dir={page.parent}/profile", "--dump-dom", f"file://{page}",
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(page.parent)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )  # fmt: skip
    return done.stdout


def words_of(document: str) -> str:
    """Return what a reader sees of a document."""
    body = re.sub(r"(?s)<(script|style).*?</\1>|<title>.*?</title>", "", document)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rows_of(document: str) -> list[list[str]]:
    """Return the rows of the table of workstations."""
    table = document.split('<table class="sorted">')[1]
    rows = re.findall(r"(?s)<tr>(.*?)</tr>", table.split("<tbody>")[1])
    return [
        [words_of(cell) for cell in re.findall(r"(?s)<td[^>]*>(.*?)</td>", row)] for row in rows
    ]


def written(fleet: SimulatedFleet, job: Job, page: Path) -> str:
    """Have the page written, and return it."""
    done = fleet.pcm("report", job.id, "--html", str(page))
    assert (done.returncode, done.stdout) == (0, "")
    return page.read_text()


async def test_a_browser_shows_all_of_it(fleet: SimulatedFleet, tmp_path: Path) -> None:
    job = await in_every_state(fleet)
    page = tmp_path / "job.html"
    written(fleet, job, page)
    document = shown(page)
    words = words_of(document)
    for text in (
        "Office update", job.id, "ada@hq", "apt-get upgrade",
        "total 18 succeeded 1 failures 7 other 4 running 1 waiting 5",
        "failed 3 (16.7 %)", "2 failed 7 no disk", "no such program: apt-get", "Ends over time",
    ):  # fmt: skip
        assert text in words, text
    rows = rows_of(document)
    assert len(rows) == 18
    states = {row[0].removeprefix(fleet.prefix + "-"): row[1].replace(" ", "_") for row in rows}
    assert states == {name: name.rstrip("23") for name in states}
    assert document.count('class="label end"') >= 15 + 6 + 4
    assert document.count("<button") == 7  # the script has run: the table can be sorted


async def test_the_page_needs_no_script_and_no_network(
    fleet: SimulatedFleet, tmp_path: Path
) -> None:
    job = await in_every_state(fleet)
    page = tmp_path / "job.html"
    body = written(fleet, job, page)
    assert not re.search(r"(?i)(src|href)\s*=|url\(|@import|https?:", body)
    assert "default-src 'none'" in body
    page.write_text(re.sub(r"script-src '[^']*'", "script-src 'none'", body))
    without = shown(page)
    assert "<button" not in without
    assert len(rows_of(without)) == 18
    assert "2 failed 7 no disk" in words_of(without)


async def test_text_from_agents_runs_no_script_in_a_browser(
    fleet: SimulatedFleet, tmp_path: Path
) -> None:
    job = fleet.job("a", argv=("echo", NASTY), name="x" + NASTY, sender=NASTY)
    failed = fleet.report(job, "a", S.FAILED, reason=NASTY, result=result(1, stderr=NASTY))
    await fleet.append(fleet.check_in("a"), job, failed)
    page = tmp_path / "job.html"
    body = written(fleet, job, page)
    assert body.count("<script>") == body.count("</script>") == 1
    assert "<img" not in body
    assert "\x07" not in body
    document = shown(page)
    assert "<title>owned" not in document
    assert "<img" not in document
    assert words_of(document).count("document.title='owned'") >= 5


async def test_the_table_is_sorted_by_a_click(fleet: SimulatedFleet, tmp_path: Path) -> None:
    job = fleet.job("a", "b", "c", "d")
    times = {"a": 9.0, "b": 100.0, "c": 20.0}
    await fleet.append(
        *(fleet.check_in(word) for word in "abcd"),
        job,
        *(
            fleet.report(job, word, S.SUCCEEDED, result=result(duration=timedelta(seconds=took)))
            for word, took in times.items()
        ),
    )
    page = tmp_path / "job.html"
    body = written(fleet, job, page)
    # Our click comes from a second script, which the page as it is written would not run.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    for clicks, order in ((1, "acbd"), (2, "bcad")):
        click = "document.querySelectorAll('th button')[5].click();" * clicks
        clicked = tmp_path / f"clicked{clicks}.html"
        clicked.write_text(
            policy.sub("", body).replace("</body>", f"<script>{click}</script></body>")
        )
        names = [row[0] for row in rows_of(shown(clicked)) if len(row) == 7]
        assert [name[-1] for name in names] == list(order)


@pytest.mark.full
async def test_a_page_of_ten_thousand_workstations_is_shown(
    fleet: SimulatedFleet, tmp_path: Path
) -> None:
    words = [f"{number:05}" for number in range(10_000)]
    everyone = group(fleet.name("all"))
    made = fleet.job("x", created_at=NOW - timedelta(hours=2), name="All of them")
    job = Job.model_validate({**made.model_dump(), "targets": [everyone]})
    await fleet.append(*(fleet.check_in(word, groups=(everyone.name,)) for word in words))
    await fleet.append(job)
    good, bad = result(0), result(5, stderr="E: locked\n")
    await fleet.append(
        *(
            fleet.report(
                job, word, S.FAILED if place % 50 == 0 else S.SUCCEEDED,
                at=NOW - timedelta(seconds=place / 2), result=good if place % 50 else bad,
            )
            for place, word in enumerate(words[:9_900])
        )
    )  # fmt: skip
    page, sheet = tmp_path / "job.html", tmp_path / "job.csv"
    done = fleet.pcm("report", job.id, "--html", str(page), "--csv", str(sheet), "--json")
    assert json.loads(done.stdout) == {"job": job.id, "html": str(page), "csv": str(sheet)}
    assert page.stat().st_size < 5_000_000
    document = shown(page)
    assert "total 10,000 succeeded 9,702 failures 198 other 0 running 0 waiting 100" in words_of(
        document
    )
    assert len(rows_of(document)) == 10_000
    (area,) = re.findall(r'<path class="area succeeded" d="([^"]*)"', document)
    assert 100 < area.count("H") < 300
    assert len(rows_in(sheet)) == 10_000


async def test_the_sheet_has_a_row_a_workstation_and_no_formulas(
    fleet: SimulatedFleet, tmp_path: Path
) -> None:
    job = await in_every_state(fleet)
    done = fleet.pcm_bytes("report", job.id, "--csv", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert len(rows) == 18
    by_name = {row["workstation"].removeprefix(fleet.prefix + "-"): row for row in rows}
    assert {name: row["state"] for name, row in by_name.items()} == {
        name: name.rstrip("23") for name in by_name
    }
    failed = by_name["failed"]
    assert (failed["exit_code"], failed["duration"], failed["line"]) == ("7", "2.0", "no disk")
    assert datetime.fromisoformat(failed["at"]).utcoffset() == timedelta(0)
    formula = fleet.job(*"abcdefgh")
    texts = ("=1+1", "+1", "-1", "@x", 'fine, "quoted"', "x;=H(A1)", "a\tb\t-1;c", "a - b\n=1")
    starts = dict(zip("abcdefgh", texts, strict=True))
    await fleet.append(
        formula,
        *(fleet.report(formula, word, S.REFUSED, reason=text) for word, text in starts.items()),
    )
    file = tmp_path / "sheet.csv"
    fleet.pcm("report", formula.id, "--csv", str(file))
    assert [row["reason"] for row in rows_in(file)] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@x",
        'fine, "quoted"',
        "x;'=H(A1)",
        "a\tb\t'-1;c",
        "a - b\n'=1",
    ]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def rows_in(sheet: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet.read_bytes().decode(), newline="")))


async def test_files_are_written_whole_or_not_at_all(fleet: SimulatedFleet, tmp_path: Path) -> None:
    job = fleet.job("a")
    await fleet.append(fleet.check_in("a"), job)
    folder = tmp_path / "reports"
    folder.mkdir()
    page, sheet = folder / "job.html", folder / "job.csv"
    page.write_text("old")
    page.chmod(0o640)
    unknown = fleet.pcm("report", "no-such-job", "--html", str(page))
    assert (unknown.returncode, page.read_text()) == (1, "old")
    both = fleet.pcm("report", job.id, "--html", str(page), "--csv", str(sheet))
    assert both.returncode == 0
    assert page.stat().st_mode & 0o777 == 0o640
    assert names_in(folder) == ["job.csv", "job.html"]
    link = tmp_path / "link.html"
    link.symlink_to(page)
    page.write_text("old")
    assert fleet.pcm("report", job.id, "--html", str(link)).returncode == 0
    assert link.is_symlink()
    assert page.read_text().startswith("<!DOCTYPE html>")
