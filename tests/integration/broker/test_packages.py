"""What agents report of packages: counts, filters, targets, downloads, and what uninstalls."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from broker.packages.building.package_file import build_package
from broker.packages.points.point import open_point
from broker.packages.publishing import publish_package
from broker.packages.resolve import resolve_package
from schemas import Job, State
from tests.support.packages import source_folder
from tests.support.told import NOW, Told, result


def _publish(folder: Path, name: str, version: str) -> str:
    """Publish a version of a package; return the sum of its manifest."""
    (folder / "point").mkdir(exist_ok=True)
    point = open_point(f"{folder}/point")
    package = build_package(source_folder(folder / name, version=version), folder)
    publish_package(package, point)
    return package.digest


def _installed(name: str, version: str, manifest: str, **fields: Any) -> dict[str, Any]:
    given = {"name": name, "version": version, "manifest": manifest, "command": "install"}
    return {**given, "state": State.SUCCEEDED, "ran_at": NOW, "present": True, **fields}


async def test_packages_of_a_fleet(told: Told, tmp_path: Path) -> None:
    name = told.name("tool")
    sums = {version: _publish(tmp_path, name, version) for version in ("1.0", "2.0")}
    points = {"PCM_POINTS": f"{tmp_path}/point", "PCM_SETTLE": "100ms"}
    old, new = (_installed(name, version, sums[version]) for version in ("1.0", "2.0"))
    await told.tell(
        told.check_in("a", packages=[new]),
        told.check_in("b", packages=[old]),
        told.check_in("c", packages=[{**old, "present": False}]),
        told.check_in("d"),
    )
    a, b, c, d = map(told.name, "abcd")

    def asked(*words: str) -> Any:
        done = told.pcm(*words, "--json", **points)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    counts = [count for count in asked("packages") if count["name"] == name]
    assert [(one["version"], one["installed"], one["absent"]) for one in counts] == [
        ("2.0", 1, 0),
        ("1.0", 1, 1),
    ]
    rows = asked("packages", "--package", name, "--installed")
    assert [(row["workstation"], row["version"]) for row in rows] == [(a, "2.0"), (b, "1.0")]
    found = asked("workstations", "--package", f"installed:{name}<2")
    assert [row["workstation"] for row in found] == [b]
    missing = {row["workstation"] for row in asked("workstations", "--package", f"missing:{name}")}
    assert {c, d} <= missing
    assert not {a, b} & missing

    done = told.pcm("packages", "--package", f"{name}x", **points)
    assert done.returncode == 1
    assert f"no workstation has reported {name}x; did you mean" in done.stderr
    done = told.pcm("workstations", "--package", name, **points)
    assert done.returncode == 2

    # The next check-in says nothing of packages, and nothing is forgotten.
    await told.tell(told.check_in("b"))
    assert len(asked("packages", "--package", name, "--installed")) == 2

    sent = told.pcm("send", "--package", name, "--to", f"installed:{name}<2", "--dry-run", **points)
    assert f"pcm: installed:{name}<2 means {b}\n" in sent.stderr
    assert f"{name}@2.0 install: would reach 1 workstation" in sent.stdout
    none = told.pcm("send", "--package", name, "--to", f"installed:{name}>2", **points)
    assert none.returncode == 2
    assert "holds on no workstation that the history knows" in none.stderr

    dry = told.pcm("uninstall", name, "--dry-run", **points)
    assert dry.returncode == 0
    assert f"pcm: {name}@1.0 uninstall: 1 workstation: {b}\n" in dry.stderr
    assert f"pcm: {name}@2.0 uninstall: 1 workstation: {a}\n" in dry.stderr
    only = told.pcm("uninstall", f"{name}<2", "--to", a, "--dry-run", **points)
    assert only.returncode == 1
    assert "is installed on no workstation" in only.stderr


async def test_downloads_of_a_job(told: Told, tmp_path: Path) -> None:
    name = told.name("tool")
    _publish(tmp_path, name, "1.0")
    found = resolve_package(name, "install", [open_point(f"{tmp_path}/point")])
    job = told.job("a", "b", "c")
    job = Job.model_validate(
        {**job.model_dump(), "command": found.command, "package": found.reference}
    )
    package = {"name": name, "version": "1.0", "manifest": found.reference.manifest}
    fetching = {"state": "fetching", "received": 250, "size": 1000, "rate": 2_000_000}
    waiting = {"state": "waiting", "reason": "no point has it"}
    await told.tell(
        job,
        told.check_in("a", contents=[{"package": package, **fetching}]),
        told.check_in("b", contents=[{"package": package, **waiting}]),
        told.check_in("c", contents=[{"package": package, "state": "ready"}]),
        *(told.report(job, word, State.RECEIVED) for word in "abc"),
    )
    shown = told.pcm("show", job.id).stdout
    assert "Downloads: 1 waiting, 1 fetching, 1 ready, 2.0 MB/s in all\n" in shown
    assert f"package       {name}@1.0, install\n" in shown
    assert "no point has it" in shown
    downloads = json.loads(told.pcm("show", job.id, "--json").stdout)["downloads"]
    assert [row["percent"] for row in downloads] == [25, 0, 0]
    why = told.pcm("why", job.id, told.name("b")).stdout
    assert f"the content of {name}@1.0 is not there yet: no point has it" in why
    assert "When its content is there" in why

    # What is no longer needed is no longer named.
    ended = result(0, already_present=True)
    await told.tell(
        told.check_in("a"),
        told.check_in("b", at=NOW + timedelta(seconds=1)),
        told.report(job, "a", State.SUCCEEDED, result=ended),
    )
    shown = told.pcm("show", job.id).stdout
    assert "succeeded, was there" in shown
    assert "Downloads: 1 ready\n" in shown
