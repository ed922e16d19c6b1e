"""Measure sides alternately, print a table, and store the raw data.

A comparison is one run on one machine: its ratios are meaningful, its absolute times are not.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

KEPT = Path(__file__).parent.parent / "docs" / "performance"
"""The folder of the stored comparisons, a JSON file and a chart each."""
ROUNDS = int(os.environ.get("ROUNDS", "5"))


def this_machine() -> str:
    """Return a description of this machine."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    rabbitmq = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.partition("-")[0]
    return (
        f"{os.cpu_count()} cores ({model or platform.machine()}), {memory:.0f} GiB,"
        f" Linux {platform.release()}, Python {platform.python_version()}"
        + (f", RabbitMQ {rabbitmq} on the same machine" if rabbitmq else "")
    )


@dataclass(frozen=True)
class Series:
    """The figures of one side.

    Attributes:
        name: the name of the side.
        figures: one figure for each round.
        about: versions, durability and settings.
        at: its position on the horizontal axis, such as the number of workstations.
    """

    name: str
    figures: list[float]
    about: str = ""
    at: float | None = None

    @property
    def median(self) -> float:
        """The median of its figures."""
        return statistics.median(self.figures)


@dataclass(frozen=True)
class Comparison:
    """Sides measured in one run.

    Attributes:
        name: the name of its files.
        title: a sentence about the measurement.
        unit: the unit of the figures.
        series: the sides.
        baseline: the side with which the others are compared; "" for none.
        more_is_better: whether a higher figure is better.
        axis: the unit of `Series.at`.
    """

    name: str
    title: str
    unit: str
    series: list[Series]
    baseline: str = ""
    more_is_better: bool = True
    axis: str = ""
    measured: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    machine: str = field(default_factory=this_machine)

    def ratio(self, series: Series) -> float | None:
        """Return the factor by which the baseline is better; the median of the rounds."""
        base = next(
            (one for one in self.series if one.name == self.baseline and one.at == series.at), None
        )
        if base is None or base is series:
            return None
        pairs = zip(base.figures, series.figures, strict=True)
        return statistics.median(
            ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs
        )

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return for each side: name, median, spread, ratio and settings."""
        return [
            (
                one.name if one.at is None else f"{one.name}, {one.at:,.0f} {self.axis}",
                plain(one.median),
                f"{plain(min(one.figures))} to {plain(max(one.figures))}",
                "" if (ratio := self.ratio(one)) is None else f"{ratio:.2f}",
                one.about,
            )
            for one in self.series
        ]

    def keep(self) -> None:
        """Print the table, and write the raw data."""
        print(f"\n{self.title} ({self.unit}; medians of {len(self.series[0].figures)})")
        for name, median, spread, ratio, _ in self.rows():
            print(f"  {name:<58}{median:>10}   {spread:<22}{ratio and f'x {ratio}'}", flush=True)
        KEPT.mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (KEPT / f"{self.name}.json").write_text(f"{text}\n")


def kept() -> Iterable[Comparison]:
    """Yield the stored comparisons."""
    for path in sorted(KEPT.glob("*.json")):
        fields = json.loads(path.read_text())
        fields["series"] = [Series(**series) for series in fields["series"]]
        yield Comparison(**fields)


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Measure each side once a round; each round starts with another side."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figures[name].append(ways[name]())
    return figures


def plain(figure: float) -> str:
    """Return a figure with three significant digits."""
    if figure >= 100:  # noqa: PLR2004 - three digits
        return f"{figure:,.0f}"
    return f"{figure:.3g}"
