"""Draw the chart of each stored comparison, and put its table into docs/performance.md.

    .bench/bin/python -m benchmarks.charts

A table is between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.measured import KEPT, Comparison, kept

_PAGE = KEPT.parent / "performance.md"
_OURS, _THEIRS, _LIMIT = "#0b6e99", "#b8bfc6", "#7a5195"
_WIDTH = 8.0
_FAR_APART = 50  # the ratio from which the scale is logarithmic


def _bars(axes: Axes, comparison: Comparison) -> None:
    """Draw a bar for each side, with its spread."""
    for place, series in enumerate(reversed(comparison.series)):
        colour = _OURS if series.name.startswith("ours") else _THEIRS
        colour = _LIMIT if series.name.startswith("limit") else colour
        spread = [
            [series.median - min(series.figures)],
            [max(series.figures) - series.median],
        ]
        axes.barh(place, series.median, 0.7, color=colour, xerr=spread, ecolor="#444", capsize=2)
    axes.set_yticks(
        range(len(comparison.series)), [one.name for one in reversed(comparison.series)]
    )
    axes.set_xlabel(comparison.unit)


def _lines(axes: Axes, comparison: Comparison) -> None:
    """Draw a line for each side, over `Series.at`."""
    for name in dict.fromkeys(one.name for one in comparison.series):
        sides = sorted(
            (one for one in comparison.series if one.name == name), key=lambda one: one.at or 0
        )
        at = [one.at or 0 for one in sides]
        axes.plot(at, [one.median for one in sides], "o-", label=name, markersize=4)
        axes.fill_between(
            at, [min(one.figures) for one in sides], [max(one.figures) for one in sides], alpha=0.15
        )
    figures = [figure for one in comparison.series for figure in one.figures]
    if max(figures) > _FAR_APART * min(figures):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(comparison.axis)
    axes.set_ylabel(comparison.unit)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def draw(comparison: Comparison) -> None:
    """Write a comparison's chart beside its data."""
    over = any(one.at is not None for one in comparison.series)
    height = 4.0 if over else 1.2 + 0.3 * len(comparison.series)
    figure, axes = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
    (_lines if over else _bars)(axes, comparison)
    axes.set_title(comparison.title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(KEPT / f"{comparison.name}.svg", metadata={"Date": None})
    plt.close(figure)


def table(comparison: Comparison) -> str:
    """Return a comparison's chart and table, in Markdown."""
    rounds = len(comparison.series[0].figures)
    measured = f"Measured {comparison.measured} on {comparison.machine}."
    lines = [
        f"![{comparison.title}](performance/{comparison.name}.svg)",
        "",
        f"{comparison.title}: {comparison.unit}, medians of {rounds}. {measured}",
        "",
        "| | median | spread | ours, times better | settings |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in comparison.rows()]
    return "\n".join(lines)


def main() -> None:
    """Draw all charts, and update the page."""
    mpl.use("svg")
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcm", "font.size": 9})
    page = _PAGE.read_text()
    for comparison in kept():
        draw(comparison)
        begin, end = f"<!-- {comparison.name} -->", f"<!-- end of {comparison.name} -->"
        place = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if not place.search(page):
            raise SystemExit(f"{_PAGE.name}: there is no place for {comparison.name}: {begin}{end}")
        text = f"{begin}\n{table(comparison)}\n{end}"
        page = place.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    Path(_PAGE).write_text(page)


if __name__ == "__main__":
    main()
