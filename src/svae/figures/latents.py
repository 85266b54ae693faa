"""Where images lie in the space of their content."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from svae.figures.mosaic import Array
from svae.figures.style import (
    CLASS_COLOURS,
    DENSITY,
    LABEL_SIZE,
    LINE_COLOURS,
    SMALL_SIZE,
    add_bar,
    axes_at,
    label_of,
    new_page,
    padded_limits,
    point_look,
    shortened,
    some_of,
    text_inches,
)

__all__ = ["latent_figure"]

# More classes than this cannot be told apart by colour and form; more points than that overlap.
MOST_CLASSES, MOST_PLAIN_POINTS = 20, 2000
# The second ten classes have the colours of the first, and another form.
FORMS = ("o", "^")
# Of the names of classes: the longest anywhere, and the longest that is put among the points.
NAME_INCHES, SHORT_INCHES = 1.0, 0.5
# In inches.
LEFT, BOTTOM, SIDE, TOP, BESIDE = 0.72, 0.55, 4.6, 0.05, 1.5


def latent_figure(
    z: Array,
    labels: Array | None = None,
    label_names: Sequence[str] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Inferred content, one point for each image.

    Two components are drawn as they are; of more, the two principal components, with their share
    of the variance on the axes; one is drawn as a histogram for each label. Up to 20 labels have
    colours (of more than 20,000 images, some are drawn, chosen at random); with more, or with
    none and many images, the number of images in each cell is shown.

    Images whose z is not finite are left out, and the title says how many.

    Arguments:
        z: The inferred content, with shape (N, D), N and D at least 1.
        labels: Integer labels, with shape (N,).
        label_names: The names of labels 0, 1, ...; others are shown as numbers.
        title: Instead of 'Content z of N images'.
    """
    points = torch.as_tensor(z).detach().cpu().double().numpy()
    if points.ndim != 2 or not points.size:
        raise ValueError(
            f"z: expected shape (N, D), N and D at least 1, got {tuple(points.shape)}"
        )
    classes = None if labels is None else torch.as_tensor(labels).detach().cpu().numpy()
    if classes is not None and classes.shape != points.shape[:1]:
        raise ValueError(
            f"labels: expected shape {points.shape[:1]} like z, got {tuple(classes.shape)}"
        )
    if classes is not None and not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"labels: expected whole numbers, got {classes.dtype}")
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        raise ValueError(f"z: expected finite values, got none in {len(points)} images")
    left_out = len(points) - int(finite.sum())
    points = points[finite]
    classes = None if classes is None else classes[finite]
    names = [] if classes is None else np.unique(classes).tolist()
    if len(names) > MOST_CLASSES:
        classes = None

    if title is None:
        title = f"Content z of {len(points):,} images" if len(points) > 1 else "Content z"
        title += f", {len(names)} labels" if len(names) > MOST_CLASSES else ""
    title += f" ({left_out:,} not finite, left out)" if left_out else ""
    if points.shape[1] == 1:
        return _histograms(points[:, 0], classes, label_names, title)
    plane, x_label, y_label = _plane(points)
    if classes is None and len(plane) > MOST_PLAIN_POINTS:
        figure, axes = _square(title, beside=0.9)
        _density(figure, axes, plane)
    else:
        figure, axes = _square(title, beside=0.25 if classes is None else BESIDE)
        _scatter(axes, plane, classes, label_names)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure


def _plane(points: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Two coordinates of each point, and their names."""
    if points.shape[1] == 2:
        return points, "$z_0$", "$z_1$"
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    total = values.sum()
    axes = vectors[:, [-1, -2]]
    # An eigenvector has no sign: let the largest entry be positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    shares = values[[-1, -2]] / total if total > 0 else (0.0, 0.0)
    first, second = (
        f"{order} principal component of $z$ ({100 * share:.0f} % of the variance)"
        for order, share in zip(("first", "second"), shares, strict=True)
    )
    return centred @ axes, first, second


def _square(title: str, beside: float) -> tuple[Figure, Axes]:
    """A page with square axes, and room on their right."""
    figure = new_page(LEFT + SIDE + beside, BOTTOM + SIDE + TOP, title)
    axes = axes_at(figure, LEFT, BOTTOM, SIDE, SIDE)
    return figure, axes


def _same_scale(axes: Axes, plane: np.ndarray) -> None:
    """Limits that hold all points; a distance is the same along both axes."""
    x, y = (padded_limits(plane[:, i]) for i in (0, 1))
    reach = max(x[1] - x[0], y[1] - y[0]) / 2
    axes.set_xlim(sum(x) / 2 - reach, sum(x) / 2 + reach)
    axes.set_ylim(sum(y) / 2 - reach, sum(y) / 2 + reach)


def _density(figure: Figure, axes: Axes, plane: np.ndarray) -> None:
    _same_scale(axes, plane)
    extent = (*axes.get_xlim(), *axes.get_ylim())
    cells = axes.hexbin(*plane.T, gridsize=48, extent=extent, mincnt=1, cmap=DENSITY)
    cells.set_rasterized(True)
    counts = np.asarray(cells.get_array())
    bar = axes_at(figure, LEFT + SIDE + 0.12, BOTTOM, 0.12, SIDE)
    cells.set_clim(0, counts.max())
    add_bar(bar, "images per cell", 0, counts.max(), DENSITY, whole=True)


def _scatter(
    axes: Axes,
    plane: np.ndarray,
    classes: np.ndarray | None,
    label_names: Sequence[str] | None,
) -> None:
    _same_scale(axes, plane)
    drawn = some_of(len(plane))
    look = point_look(len(drawn), SIDE)
    if classes is None:
        axes.scatter(*plane[drawn].T, color=LINE_COLOURS[0], **look)
        return
    names, numbers = np.unique(classes, return_inverse=True)
    styles = [_style(number) for number in range(len(names))]
    colours = np.array([to_rgba(colour) for colour, _ in styles])
    for form in FORMS:
        own = np.array([style[1] == form for style in styles])
        some = drawn[own[numbers[drawn]]]
        axes.scatter(*plane[some].T, color=colours[numbers[some]], marker=form, **look)
    handles = [
        Line2D([], [], ls="", marker=form, ms=5, color=colour, label=_name(label, label_names))
        for label, (colour, form) in zip(names.tolist(), styles, strict=True)
    ]
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.01),
        frameon=False,
        fontsize=SMALL_SIZE,
        handletextpad=0.2,
        title="label",
        title_fontsize=LABEL_SIZE,
        alignment="left",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    for number, label in enumerate(names.tolist()):
        _write_at(axes, _name(label, label_names), np.median(plane[numbers == number], axis=0))
    if len(drawn) < len(plane):
        axes.text(
            0.99,
            0.01,
            f"{len(drawn):,} of them drawn",
            transform=axes.transAxes,
            ha="right",
            fontsize=SMALL_SIZE,
        )


def _write_at(axes: Axes, name: str, place: np.ndarray) -> None:
    """A short name in the middle of its class, for readers who do not tell the colours apart."""
    if text_inches(name, LABEL_SIZE) > SHORT_INCHES:
        return
    x, y = place.tolist()
    text = axes.text(x, y, name, fontsize=LABEL_SIZE, fontweight="bold", parse_math=False)
    text.set(ha="center", va="center")
    text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _histograms(
    values: np.ndarray,
    classes: np.ndarray | None,
    label_names: Sequence[str] | None,
    title: str,
) -> Figure:
    """One histogram for each label, below each other; all have the same bins."""
    found: list[Any] = [None] if classes is None else np.unique(classes).tolist()
    rows = len(found)
    row = 2.6 if rows == 1 else max(0.34, min(0.7, 6.0 / rows))
    names = [] if classes is None else [_name(label, label_names) for label in found]
    left = max((text_inches(name, SMALL_SIZE) + 0.3 for name in names), default=LEFT)
    figure = new_page(left + SIDE + 0.15, BOTTOM + rows * row + TOP, title)
    limits = padded_limits(values)
    bins = np.linspace(*limits, int(np.clip(np.sqrt(len(values)), 12, 60)) + 1).tolist()
    for number, label in enumerate(found):
        axes = axes_at(figure, left, BOTTOM + (rows - 1 - number) * row, SIDE, row)
        chosen = values if label is None else values[classes == label]
        colour = LINE_COLOURS[0] if label is None else _style(number)[0]
        counts, _, _ = axes.hist(chosen, bins, color=colour, edgecolor=colour, linewidth=0.4)
        axes.set_ylim(0, 1.08 * np.max(counts))
        axes.set_xlim(limits)
        if label is not None:
            axes.set_ylabel(
                names[number],
                rotation=0,
                ha="right",
                va="center",
                parse_math=False,
                fontsize=SMALL_SIZE,
            )
            axes.set_yticks([])
            axes.spines[["top", "left", "right"]].set_visible(False)
            # Rows touch: the background of one would hide the line of the next.
            axes.patch.set_visible(False)
            last = number == rows - 1
            axes.tick_params(bottom=last, labelbottom=last)
        else:
            axes.set_ylabel("images per bin")
    axes.set_xlabel("$z_0$" if classes is None else "$z_0$ (heights: images, each row by itself)")
    return figure


def _style(number: int) -> tuple[str, str]:
    """Colour and form of a class."""
    colours = len(CLASS_COLOURS)
    return CLASS_COLOURS[number % colours], FORMS[number // colours]


def _name(label: int, names: Sequence[str] | None) -> str:
    return shortened(label_of(label, names), NAME_INCHES, SMALL_SIZE)
