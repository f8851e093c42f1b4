"""Pictures of the results, for `python -m perf --out DIR`. The only module that needs matplotlib.

Every system has one colour in all pictures; mpsteps has the strong ones. Legends stand beside the axes, in the order
of what they show, with the figure that matters: nothing is hidden, and a picture can be read without its table.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence, Tuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perf._harness import Result, brief, brief_time
from perf._summary import text_of

STRONG = {
    "mpsteps protocol, engine only": "#b0172b",
    "mpsteps.StepPool": "#e8590c",
    "mpsteps.StepPool, shared_array": "#f2a65a",
    "mpsteps protocol, whole run": "#d98c97",
}
QUIET = {
    "plain loop, one process": "#555555",
    "bare processes": "#555555",
    "the interpreter alone": "#555555",
    "ThreadPoolExecutor": "#9a9a9a",
    "ProcessPoolExecutor": "#1f5fa8",
    "multiprocessing.Pool": "#3fa7d6",
    "loky": "#2a7f62",
    "joblib": "#7fb069",
    "pebble": "#6a4c93",
    "mpire": "#b08bd0",
    "dask.distributed": "#a0793d",
    "ray": "#6b705c",
    "Scipion ThreadStepExecutor": "#000000",
}
MARKERS = "osD^vP<>X*hd"
DPI = 110


def draw_all(folder: str, results: List[Result], machine: Dict[str, Any]) -> None:
    """A picture for each kind of question that was asked."""
    by: Dict[str, List[Result]] = {}
    for result in results:
        by.setdefault(result["question"].partition(",")[0], []).append(result)
    foot = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; medians"
    bars = {
        "rates": by.get("wide", []) + by.get("chain", []) + by.get("stencil", []),
        "arrays": by.get("arrays", []),
        "programs": by.get("coldstart", []) + by.get("real", []),
    }
    for name, some in bars.items():
        if some:
            _save(_draw_bars(some), foot, folder, name)
    if "metg" in by:
        _save(_draw_metg(by["metg"][0]), foot, folder, "metg")
    if "speedup" in by:
        _save(_draw_speedup(by["speedup"]), foot, folder, "speedup")
    if "million" in by:
        _save(_draw_million(by["million"]), foot, folder, "million")


def _draw_bars(results: Sequence[Result]) -> Figure:
    """One panel for each table: a bar for each system, best on top, with its value."""
    rows = [len(r["values"]) for r in results]
    figure = Figure(figsize=(10, 1.2 + 0.27 * sum(rows) + 0.9 * len(rows)), constrained_layout=True)
    panels = figure.subplots(len(results), 1, squeeze=False, gridspec_kw={"height_ratios": [r + 2 for r in rows]})
    for panel, result in zip(panels[:, 0], results):
        values = sorted(result["values"].items(), key=lambda item: item[1], reverse=result["unit"] == "s")
        names, numbers = [v[0] for v in values], [v[1] for v in values]
        places = range(len(values))
        panel.barh(places, numbers, color=[_colour(n) for n in names], height=0.72)
        logarithmic = max(numbers) > 20 * min(numbers)
        panel.set_xscale("log" if logarithmic else "linear")
        # Room for the texts behind the bars.
        panel.set_xlim(min(numbers) / 2 if logarithmic else 0, max(numbers) * (6 if logarithmic else 1.2))
        panel.set_yticks(list(places), names)
        for place, name, number in zip(places, names, numbers):
            panel.annotate(
                _bar_text(result, name), (number, place), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
        for label in panel.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().startswith("mpsteps") else "normal")
        panel.set_title(result["title"], fontsize=11, loc="left")
        panel.set_xlabel(_bar_axis(result["unit"], logarithmic), fontsize=9)
        _quiet_frame(panel, "x")
    return figure


def _bar_text(result: Result, title: str) -> str:
    memory = result.get("peak_pss", {}).get(title)
    return text_of(result["values"][title], result["unit"]) + (f"   ({memory / 1e6:,.0f} MB)" if memory else "")


def _bar_axis(unit: str, logarithmic: bool) -> str:
    what = {"s": "seconds", "MB/s": "MB/s, in parentheses the peak of memory"}.get(unit, unit)
    better = "shorter is better" if unit == "s" else "longer is better"
    return f"{what} ({'logarithmic; ' if logarithmic else ''}{better})"


def _draw_metg(result: Result) -> Figure:
    """Efficiency against the length of the steps: a line for each system."""
    figure = Figure(figsize=(11, 6.2), constrained_layout=True)
    axes = figure.subplots()
    values = result["values"]
    for title in sorted(result["curves"], key=lambda t: values[t] or float("inf")):
        label = f"{brief_time(values[title]) if values[title] else 'none':>8}  {title}"
        _line(axes, title, result["curves"][title], label)
    axes.axhline(0.5, color="#333333", linewidth=1, linestyle=(0, (4, 3)))
    axes.text(0.995, 0.505, "50%", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief_time(value)))
    axes.set_ylim(0, max(1.02, *(1.03 * y for curve in result["curves"].values() for _, y in curve)))
    axes.set_xlabel("length of a step (logarithmic)")
    axes.set_ylabel("efficiency: sequential time / workers / wall time")
    axes.set_title("How short may steps be? Task Bench's stencil, 4 wide", loc="left", fontsize=12)
    _legend_beside(axes, "METG(50%)")
    _quiet_frame(axes, "both")
    return figure


def _draw_speedup(results: Sequence[Result]) -> Figure:
    """The share of the bare processes' speed-up against the length of the steps, a panel for each number of workers."""
    figure = Figure(figsize=(4.6 * len(results) + 3, 4.6), constrained_layout=True)
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for panel, result in zip(panels, results):
        for title, curve in sorted(result["curves"].items(), key=lambda item: -item[1][-1][1]):
            _line(panel, title, curve, title)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief_time(value)))
        panel.axhline(result["workers"], color="#333333", linewidth=1, linestyle=(0, (4, 3)))
        panel.set_title(f"{result['workers']} worker{'s' * (result['workers'] > 1)}", loc="left", fontsize=11)
        panel.set_xlabel("length of a step (logarithmic)")
        panel.set_ylim(0, 1.08 * max(r["workers"] for r in results))
        _quiet_frame(panel, "both")
    panels[0].set_ylabel("speed-up over a plain loop (dashed: ideal)")
    _legend_beside(panels[-1], "")
    return figure


def _draw_million(results: Sequence[Result]) -> Figure:
    """Rate against the number of steps, a panel for each kind of graph."""
    figure = Figure(figsize=(4.6 * len(results) + 3, 4.6), constrained_layout=True)
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for panel, result in zip(panels, results):
        for title, curve in sorted(result["curves"].items(), key=lambda item: -item[1][-1][1]):
            _line(panel, title, curve, title)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
        panel.set_title(result["title"].partition(", ")[0], loc="left", fontsize=11)
        panel.set_xlabel("steps in the run")
        _quiet_frame(panel, "both")
    panels[0].set_ylabel("steps/s")
    _legend_beside(panels[-1], "")
    return figure


def _line(axes: Axes, title: str, curve: Sequence[Tuple[float, float]], label: str) -> None:
    """One system's curve, mpsteps' on top and thicker."""
    ours = title in STRONG
    axes.plot(
        [x for x, _ in curve], [y for _, y in curve], label=label, color=_colour(title), zorder=3 if ours else 2,
        marker=_marker(title), markersize=6 if ours else 4.5, linewidth=2.6 if ours else 1.4,
    )  # fmt: skip


def _colour(title: str) -> str:
    return STRONG.get(title) or QUIET.get(title, "#888888")


def _marker(title: str) -> str:
    names = [*STRONG, *QUIET]
    return MARKERS[names.index(title) % len(MARKERS)] if title in names else "."


def _legend_beside(axes: Axes, title: str) -> None:
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, title=title, alignment="left", borderaxespad=0
    )


def _quiet_frame(axes: Axes, grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, foot: str, folder: str, name: str) -> None:
    figure.supxlabel(foot, fontsize=8, color="#555555")
    FigureCanvasAgg(figure)
    path = os.path.join(folder, f"{name}.png")
    figure.savefig(path, dpi=DPI)
    print(f"wrote {path}")
