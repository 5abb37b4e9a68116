"""One picture of several reports: ``python -m benchmarks.plot REPORT... --out docs/benchmarks.svg``.

Bars for each report of `benchmarks.engine`, a line for each of `benchmarks.prompts`, the job's course for each of
`benchmarks.scale`, side by side. Needs matplotlib (``pip install -e ".[dev]"``). The same reports give the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # draws without a screen
from matplotlib import pyplot as plt

_COLOURS = {"reference": "#9aa5b1", "ray_data": "#c3cad2", "single": "#5b9bd5", "batched": "#1f5f99"}
_LABELS = {
    "reference": "reference,\none by one",
    "ray_data": "reference,\nRay Data",
    "single": "this package,\none by one",
    "batched": "this package,\nbatched",
}
_STYLE = {
    "svg.hashsalt": "benchmarks",  # ids of elements, else random
    "svg.fonttype": "none",  # text stays text, so that the bytes do not depend on the fonts of a machine
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_PANEL = (4.6, 3.6)  # inches


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the reports into one file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="One picture of several reports.")
    parser.add_argument("reports", type=Path, nargs="+", help="JSON of benchmarks.engine, .prompts and .scale")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.svg"))
    options = parser.parse_args(arguments)
    found = [json.loads(path.read_text()) for path in options.reports]
    unknown = [report.get("kind") for report in found if report.get("kind") not in PANELS]
    if unknown:
        parser.error(f"there is no picture of a report of kind {unknown[0]!r}, only of {' and '.join(PANELS)}")
    draw(found, options.out)
    return 0


def draw(reports: Sequence[dict[str, Any]], out: Path) -> None:
    """A panel per report, in their order, as SVG."""
    with plt.rc_context(_STYLE):
        width, height = _PANEL
        figure, axes = plt.subplots(1, len(reports), figsize=(width * len(reports), height), squeeze=False)
        for panel, report in zip(axes[0], reports, strict=True):
            PANELS[report["kind"]](panel, report)
        figure.tight_layout()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)


def bars(panel: plt.Axes, report: dict[str, Any]) -> None:
    """Audio seconds per second of every contender, with its factor over the reference."""
    names = [name for name in _LABELS if name in report["contenders"]]
    figures = [report["contenders"][name] for name in names]
    speeds = [each["audio_seconds_per_second"]["median"] for each in figures]
    drawn = panel.bar([_LABELS[name] for name in names], speeds, color=[_COLOURS[name] for name in names])
    texts = [_bar_text(speed, each["times_reference"]) for speed, each in zip(speeds, figures, strict=True)]
    panel.bar_label(drawn, texts, fontsize=8)
    panel.margins(y=0.2)
    panel.tick_params(axis="x", labelsize=7)
    panel.set_ylabel("audio seconds per second")
    panel.set_title(_title(report), fontsize=8)


def _bar_text(speed: float, times: dict[str, float] | None) -> str:
    return f"{speed:.3g}" if times is None else f"{speed:.3g}\n{times['median']:.3g} ×"


def line(panel: plt.Axes, report: dict[str, Any]) -> None:
    """Audio seconds per second against the prompt's length."""
    lengths = [each["prompt_seconds"] for each in report["prompts"]]
    panel.plot(
        lengths,
        [each["audio_seconds_per_second"]["median"] for each in report["prompts"]],
        marker="o",
        color=_COLOURS["batched"],
    )
    panel.set_ylim(bottom=0)
    panel.set_xticks(lengths)
    panel.set_xlabel("prompt, seconds")
    panel.set_ylabel("audio seconds per second")
    panel.set_title(_title(report), fontsize=8)


def course(panel: plt.Axes, report: dict[str, Any]) -> None:
    """How many workers did work that counted, and how many shards were done, over the hours of a simulated job."""
    hours, shares, done = zip(*report["run"]["curve"], strict=True)
    panel.plot(hours, [100 * share for share in shares], color=_COLOURS["single"], label="workers at work that counts")
    panel.plot(
        hours, [100 * count / report["job"]["shards"] for count in done], color=_COLOURS["batched"], label="shards done"
    )
    panel.set_ylim(0, 105)
    panel.set_xlabel("hours, simulated")
    panel.set_ylabel("%")
    panel.legend(fontsize=7, loc="lower right")
    job, workers = report["job"], report["options"]["workers"]
    panel.set_title(f"{job['shards']:,} shards, {workers:,} workers, {report['run']['deaths']} deaths", fontsize=8)


PANELS: dict[str, Callable[[plt.Axes, dict[str, Any]], None]] = {"engine": bars, "prompts": line, "scale": course}


def _title(report: dict[str, Any]) -> str:
    machine, options = report["machine"], report["options"]
    where = machine.get("gpu", f"{machine['threads']} threads of {machine['cpu']}")
    variant = ", mean-flow" if options["meanflow"] else ""
    return f"{where}\n{options['dtype']}{variant}, {machine['date'][:10]}"


if __name__ == "__main__":
    sys.exit(main())
