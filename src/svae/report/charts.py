"""Training curves as inline SVG, with the numbers that the page's script reads out."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

from svae.curves import LARGEST, LATENT_NAMES, robust_range
from svae.report.contents import Row

__all__ = ["charts", "nice_ticks"]

# In the units of the drawing, which are about pixels.
WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 8, 40
#: Room around the axes for the dots on their ends.
MARGIN = 6
#: As many as the style sheet has.
COLOURS = 5
#: More points than this in a line cannot be told apart on a screen.
MOST_POINTS = 500
#: Up to here every point of a line has a dot.
MOST_DOTS = 40
#: Ends of an axis that differ by no more than this part of them are one value.
ONE_VALUE = 1e-12

SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Chart:
    """What a chart shows: its title, the unit of its values, and what they mean."""

    title: str
    unit: str
    about: str
    from_zero: bool = False


@dataclass(frozen=True)
class Series:
    """A line: a column of `metrics.csv`, its name for a person, and how it looks."""

    column: str
    name: str
    colour: int = 0
    dashed: bool = False

    @property
    def look(self) -> str:
        return f"c{self.colour % COLOURS}" + " dashed" * self.dashed


ELBO = Chart(
    "ELBO",
    "nats per image",
    "How well the model explains an image, less the price of its latents: what training makes as "
    "large as possible. A validation curve that falls while training rises is overfitting.",
)
LOG_LIKELIHOOD = Chart(
    "Log-likelihood",
    "nats per image",
    "How well the reconstructions fit the pixels. Higher is better.",
)
DIVERGENCE = Chart(
    "KL divergence of each latent",
    "nats per image",
    "How much the model says about an image by its content, its angle and its shift. A latent "
    "that stays at 0 is not used.",
    from_zero=True,
)
LEARNING_RATE = Chart(
    "Learning rate",
    "",
    "The step size of the optimiser, as the schedule sets it.",
    from_zero=True,
)


def charts(rows: Sequence[Row]) -> list[str]:
    """Every chart for which there is a number, as HTML.

    Arguments:
        rows: The rows of `metrics.csv`, each without its empty cells.
    """
    columns = {column for row in rows for column in row}
    latents = sorted(
        {column.partition("/")[2] for column in columns if "/kl_" in column},
        key=lambda name: ([*LATENT_NAMES, name].index(name), name),
    )
    divergences = [
        Series(f"{split}/{name}", f"{LATENT_NAMES.get(name, name)}, {word}", i, split == "val")
        for i, name in enumerate(latents)
        for split, word in SPLITS.items()
    ]
    made = [
        _chart(ELBO, rows, _both("elbo")),
        _chart(LOG_LIKELIHOOD, rows, _both("log_likelihood")),
        _chart(DIVERGENCE, rows, divergences),
        _chart(LEARNING_RATE, rows, [Series("train/learning_rate", "learning rate")]),
    ]
    return [chart for chart in made if chart]


def nice_ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten within [low, high].

    Arguments:
        low: The lower end.
        high: The upper end, above `low`.
        count: How many ticks there should be.
        whole: Whether only whole numbers will do.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    # The last is there for a rounded logarithm.
    step = next(step for step in (1, 2, 5, 10, 20) if step * power >= rough) * power
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _both(name: str) -> list[Series]:
    return [
        Series(f"{split}/{name}", word, colour, split == "val")
        for colour, (split, word) in enumerate(SPLITS.items())
    ]


def _drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) < LARGEST


def _chart(chart: Chart, rows: Sequence[Row], candidates: Sequence[Series]) -> str:
    """A chart with its legend; nothing where no value can be drawn."""
    series = [s for s in candidates if any(_drawable(row.get(s.column)) for row in rows)]
    if not series:
        return ""
    numbered = [
        row if _drawable(row.get("epoch")) else row | {"epoch": float(i)}
        for i, row in enumerate(rows)
    ]
    shown = _thinned(numbered, series)
    values = [row[s.column] for row in rows for s in series if _drawable(row.get(s.column))]
    low, high = robust_range(values)
    cut = sum(not low <= value <= high for value in values)
    about = chart.about + (
        f" The axis leaves out {cut} extreme of {len(values)} values." if cut else ""
    )
    epochs = [row["epoch"] for row in shown]
    x_axis = _Axis(min(epochs), max(epochs), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(min(low, 0.0) if chart.from_zero else low, high, HEIGHT - BOTTOM, TOP)

    # Without a pointer, the legend tells the last epoch at which most was measured.
    rest = max(range(len(shown)), key=lambda i: (sum(s.column in shown[i] for s in series), i))
    columns = [[row.get(s.column) for row in shown] for s in series]
    data = {
        "x": [x_axis(epoch) for epoch in epochs],
        "label": [_where(row) for row in shown],
        "rest": rest,
        "series": [
            {
                "look": s.look,
                "text": [_number(cell) for cell in column],
                "y": [y_axis(cell) if _drawable(cell) else None for cell in column],
            }
            for s, column in zip(series, columns, strict=True)
        ],
    }
    legend = "".join(
        f'<li><svg class="swatch" viewBox="0 0 24 6" aria-hidden="true">'
        f'<path class="line {s.look}" d="M0 3H24"/></svg> {escape(s.name)} '
        f"<b>{_number(column[rest])}</b></li>"
        for s, column in zip(series, columns, strict=True)
    )
    lines = "".join(
        _line(s.look, [
            (x_axis(epoch), y_axis(cell)) if _drawable(cell) else None
            for epoch, cell in zip(epochs, column, strict=True)
            if cell is not None
        ])
        for s, column in zip(series, columns, strict=True)
    )  # fmt: skip
    unit = f" <small>{escape(chart.unit)}</small>" if chart.unit else ""
    left, top = LEFT - MARGIN, TOP - MARGIN
    width, height = WIDTH - RIGHT + MARGIN - left, HEIGHT - BOTTOM + MARGIN - top
    return f"""<figure class="chart">
<figcaption>
<h3>{escape(chart.title)}{unit}</h3>
<p class="about">{escape(about)}</p>
<p class="legend"><span class="where">{escape(_where(shown[rest]))}</span></p>
<ul class="legend">{legend}</ul>
</figcaption>
<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" \
aria-label="{escape(chart.title)} by epoch">
{_grid(x_axis, y_axis)}
<svg x="{left}" y="{top}" width="{width}" height="{height}" \
viewBox="{left} {top} {width} {height}">{lines}<g class="cursor"></g></svg>
</svg>
<script type="application/json">{json.dumps(data, allow_nan=False)}</script>
</figure>"""


class _Axis:
    """From values to places in the drawing.

    Arguments:
        low: The lowest value.
        high: The highest value; the same as `low` where there is but one.
        start: The place of the lowest.
        end: The place of the highest.
    """

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high - low <= ONE_VALUE * max(abs(low), abs(high), ONE_VALUE):
            room = 0.1 * abs(low) or 0.5
            low, high = low - room, high + room
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        place = self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)
        # Far outside, only the direction of the line matters.
        return round(min(max(place, -9.0 * WIDTH), 9.0 * WIDTH), 1)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    """The axes with ticks and grid lines."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    ticks = nice_ticks(y_axis.low, y_axis.high, 5)
    for tick, label in zip(ticks, _tick_labels(ticks), strict=True):
        y = y_axis(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    ticks = nice_ticks(x_axis.low, x_axis.high, 6, whole=True)
    for tick, label in zip(ticks, _tick_labels(ticks), strict=True):
        x = x_axis(tick)
        parts.append(f'<path class="axis" d="M{x} {bottom}v5"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>')
    return "".join(parts)


def _line(look: str, points: Sequence[tuple[float, float] | None]) -> str:
    """The points joined, with a gap at each None, and with dots where they are few."""
    path, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            path.append(f"{pen}{point[0]} {point[1]}")
            pen = "L"
    dots = [point for point in points if point] if len(points) <= MOST_DOTS else []
    circles = "".join(f'<circle class="dot {look}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots)
    return f'<path class="line {look}" d="{"".join(path)}"/>{circles}'


def _thinned(rows: Sequence[Row], series: Sequence[Series]) -> list[Row]:
    """The rows that have a value, and of a long training evenly many of each line's."""
    kept: set[int] = set()
    for s in series:
        own = [i for i, row in enumerate(rows) if s.column in row]
        kept |= {*own[:: math.ceil(len(own) / MOST_POINTS)], own[-1]}
    return [rows[i] for i in sorted(kept)]


def _where(row: Row) -> str:
    step = f", step {row['step']:.0f}" if "step" in row else ""
    return f"epoch {row['epoch']:.0f}{step}"


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    largest = max((abs(tick) for tick in ticks), default=0.0)
    write: Callable[[float], str]
    if largest < 1e-3 or largest >= 1e6:
        digits = max(0, math.floor(math.log10(largest or 1.0)) - math.floor(math.log10(step)))
        write = lambda tick: f"{tick:.{digits}e}" if tick else "0"  # noqa: E731
    else:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        write = lambda tick: f"{tick:.{decimals}f}"  # noqa: E731
    return [write(tick + 0.0).replace("-", "−").replace("e−0", "e−") for tick in ticks]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:#.5g}".rstrip(".").replace("-", "−")
