"""The layer curve by itself: an SVG file, a PNG (needs matplotlib), and plain text for a terminal."""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

from ..errors import MissingExtra, RecipeError
from ..records import Candidate, DirectionMeta, LayerQuality
from .charts import KINDS, layer_curve
from .html import chart_styles
from .text import number, spans, visible

PAPER = {
    "paper": "#ffffff", "ink": "#1f1d1a", "quiet": "#6a655c", "rule": "#e4ded3", "soft": "#d9d1c3", "ink-wash": "#ece8e0",
    "warm": "#ad4a1c", "cool": "#1f5f86",
    "sans": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif",
}  # fmt: skip
_BLOCKS = " ▁▂▃▄▅▆▇█"


def _quality(meta: DirectionMeta) -> list[LayerQuality]:
    quality = sorted(meta.quality, key=lambda q: q.layer)
    if not quality:
        raise RecipeError("the direction has no quality figures to draw", where=visible(meta.feature),
                          hint="a combination of directions has none; find the feature itself")  # fmt: skip
    return quality


def _lowest(values: list[float]) -> float:
    return min((v for v in values if math.isfinite(v)), default=1.0)


def _chosen(meta: DirectionMeta) -> list[Candidate]:
    return sorted((c for k in KINDS if (c := meta.best(k)) is not None), key=lambda c: c.source)


def layer_curve_svg(meta: DirectionMeta) -> str:
    """The layer curve as an SVG file on white, with its own colours, so that any viewer or model card can show it.

    Raises:
        RecipeError: the direction has no quality figures.
    """
    _quality(meta)
    drawing = layer_curve(meta, 760, "layers", 'xmlns="http://www.w3.org/2000/svg" ')
    # viewers outside browsers know no custom properties, so the colours are written out
    style = re.sub(r"var\(--([\w-]+)\)", lambda m: PAPER[m.group(1)], chart_styles())
    style = style.replace("{display:block;width:100%;height:auto;", "{")
    width, height = (float(v) for v in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0])
    drawing = re.sub(r'viewBox="[^"]*" width="[^"]*" height="[^"]*"',
                     f'viewBox="-20 -16 {width + 40:g} {height + 32:g}" width="{width + 40:g}" height="{height + 32:g}"',
                     drawing, count=1)  # fmt: skip
    paper = f'<rect x="-20" y="-16" width="{width + 40:g}" height="{height + 32:g}" fill="{PAPER["paper"]}"/>'
    return drawing.replace("</desc>", f"</desc><style>{style}</style>{paper}", 1) + "\n"


def _axes(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold", color=PAPER["ink"])
    axis.grid(axis="y", color=PAPER["rule"], linewidth=0.8)
    axis.tick_params(colors=PAPER["quiet"], labelsize=9, length=3)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(PAPER["quiet"])


def layer_curve_png(meta: DirectionMeta) -> bytes:
    """The layer curve as PNG bytes.

    Raises:
        MissingExtra: matplotlib is not installed.
        RecipeError: the direction has no quality figures.
    """
    quality = _quality(meta)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("a PNG needs matplotlib", hint="pip install 'weightsmith[plot]'") from error
    # a Figure of its own instead of pyplot: no window system, no state shared with the caller's plots
    figure = Figure(figsize=(7.6, 5.6), dpi=160, facecolor=PAPER["paper"], layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1.1, 1.1])
    layers = [q.layer for q in quality]
    low, high = [q.auroc_low for q in quality], [q.auroc_high for q in quality]
    top.fill_between(layers, low, high, color=PAPER["ink"], alpha=0.12, linewidth=0)
    top.plot(layers, [q.auroc for q in quality], color=PAPER["ink"], marker=".", linewidth=1.4)
    top.axhline(0.5, color=PAPER["quiet"], linewidth=0.8, linestyle=":")
    middle.plot(layers, [q.split_half for q in quality], color=PAPER["cool"], marker=".", linewidth=1.4)
    bottom.plot(layers, [q.relative_norm for q in quality], color=PAPER["warm"], marker=".", linewidth=1.4)
    middle.set_ylim(min(0.0, *(q.split_half for q in quality)), 1.02)
    bottom.set_ylim(bottom=0)
    _axes(top, "AUROC on held-out prompts, with its 95% band")
    _axes(middle, "Split-half cosine of the direction")
    _axes(bottom, "Length relative to the residual stream")
    bottom.set_xlabel("layer", color=PAPER["quiet"], fontsize=9)
    for i, c in enumerate(_chosen(meta)):
        tone = PAPER[KINDS[c.kind][0]]
        for axis in (top, middle, bottom):
            axis.axvline(c.source, color=tone, linewidth=1.1, linestyle="-" if c.kind == "add" else "--", alpha=0.8)
        last = c.source > layers[0] + 0.72 * (layers[-1] - layers[0])
        # a white box keeps the words apart from the lines that they would lie on
        top.annotate(
            f"layer {c.source} to {c.kind}",
            (c.source, 0),
            (-6 if last else 6, 8 + 15 * i),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if last else "left",
            color=tone,
            fontsize=9,
            fontweight="bold",
            bbox={"facecolor": PAPER["paper"], "edgecolor": "none", "pad": 1.5},
            zorder=5,
        )
    # dollar signs would start a formula
    name = f"{visible(meta.feature)} in {visible(meta.model.ref)}".replace("$", r"\$")
    figure.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold", color=PAPER["ink"])
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # names in scripts that matplotlib's font lacks are drawn as boxes; that needs no warning to the caller
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _column(value: float, low: float, high: float, rows: int) -> list[str]:
    """One bar, top row first, in eighths of a row. A value at or under the floor keeps a thin foot, so it is seen."""
    if not math.isfinite(value):
        return [" "] * (rows - 1) + ["·"]
    eighths = max(1, round((min(max(value, low), high) - low) / (high - low) * rows * 8))
    return [_BLOCKS[min(8, max(0, eighths - 8 * row))] for row in range(rows - 1, -1, -1)]


def _bins(quality: list[LayerQuality], room: int) -> tuple[list[list[LayerQuality]], int]:
    """Layers in the columns that fit: two cells for each layer if possible, else one, else several layers a column."""
    for cell in (2, 1):
        if len(quality) * cell <= room:
            return [[q] for q in quality], cell
    each = math.ceil(len(quality) / room)
    return [quality[i : i + each] for i in range(0, len(quality), each)], 1


def _plot(values: list[float], low: float, high: float, rows: int, cell: int) -> list[str]:
    bars = [_column(v, low, high, rows) for v in values]
    lines = []
    for row in range(rows):
        at = high if row == 0 else low if row == rows - 1 else None
        label = f"{number(at, 2):>5} ┤" if at is not None else "      │"
        # a gap between two-cell bars lets single layers be counted
        body = "".join(b[row] + (" " if cell == 2 else "") for b in bars)
        lines.append((label + body).rstrip())
    return lines


def _ruler(bins: list[list[LayerQuality]], cell: int) -> list[str]:
    axis = "      └" + "".join(("┬" if b[0].layer % 5 == 0 else "─") + "─" * (cell - 1) for b in bins)
    words = [" "] * (len(axis) + 4)
    free = 0
    for i, b in enumerate(bins):
        at, name = 7 + i * cell, str(b[0].layer)
        if b[0].layer % 5 == 0 and at >= free:
            words[at : at + len(name)] = name
            free = at + len(name) + 1
    return [axis, "".join(words).rstrip()]


def _pointers(chosen: list[Candidate], bins: list[list[LayerQuality]], cell: int, width: int) -> list[str]:
    """Marks under the columns of the chosen layers, and a line of words for each."""
    signs = {c.source: "▲" if c.kind == "add" else "▼" for c in chosen}
    if len(signs) < len(chosen):
        # one layer chosen for both
        signs = dict.fromkeys(signs, "◆")
    marks = ["".join(next((signs[q.layer] for q in b if q.layer in signs), " ").ljust(cell) for b in bins).rstrip()]
    lines = [" " * 7 + marks[0]] if marks[0] else []
    for c in chosen:
        quality = next((q for b in bins for q in b if q.layer == c.source), None)
        words = f"{signs[c.source]} layer {c.source} to {c.kind}, applied at {spans(c.layers)}"
        words += f", AUROC {number(quality.auroc, 2)}" if quality is not None else ""
        lines.append(" " * 7 + (words if len(words) <= width - 7 else words[: width - 8] + "…"))
    return lines


def layer_curve_text(meta: DirectionMeta, width: int) -> str:
    """AUROC and split-half cosine per layer as block characters in at most ``width`` columns, chosen layers marked.

    Where a column has to stand for several layers it shows the best of them.

    Raises:
        RecipeError: the direction has no quality figures.
    """
    quality = _quality(meta)
    width = max(32, width)
    bins, cell = _bins(quality, width - 8)
    auroc = [max(q.auroc for q in b) for b in bins]
    halves = [max(q.split_half for q in b) for b in bins]
    floor = 0.5 if _lowest(auroc) >= 0.45 else 0.0
    lines = ["AUROC, held out (0.5 is chance)"]
    lines += _plot(auroc, floor, 1.0, 6, cell)
    lines += ["", "split-half cosine"]
    lines += _plot(halves, -1.0 if _lowest(halves) < 0 else 0.0, 1.0, 4, cell)
    lines += _ruler(bins, cell)
    lines += _pointers(_chosen(meta), bins, cell, width)
    return "\n".join(lines)
