"""Training curves."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.figures.pictures import check_page, shown_title, texts_of

from svae.figures import curves_figure


def rows(count: int) -> list[dict[str, Any]]:
    """A training whose validation ELBO is best in the last but one epoch that was validated."""
    made: list[dict[str, Any]] = []
    for epoch in range(count):
        row = {"epoch": epoch, "step": 10 * epoch, "train/learning_rate": 1e-3 / (epoch + 1)}
        for split, every in (("train", 1), ("val", 2)):
            there = epoch % every == 0
            elbo = -100.0 - 50 / (epoch + 1) - 7 * (split == "val" and epoch == count - 1)
            row |= {f"{split}/elbo": elbo if there else ""}
            row |= {f"{split}/log_likelihood": elbo + 10 if there else ""}
            for latent, value in (("z", 3.0), ("theta", 2.0), ("shift", 1.0), ("lattice", 0.5)):
                row |= {f"{split}/kl_{latent}": value + 0.01 * epoch if there else ""}
        made.append(row)
    return made


def panels_of(figure: Figure) -> dict[str, Axes]:
    """The axes by their headings."""
    return {axes.texts[0].get_text(): axes for axes in figure.axes}


def lines_of(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def legend_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_quantity_has_its_panel_and_unit() -> None:
    table = rows(9)
    figure = curves_figure(table)
    panels = panels_of(figure)
    kl = "KL divergence (dashed: validation)"
    assert list(panels) == ["ELBO", "Log-likelihood", kl, "Learning rate"]
    for heading in ("ELBO", "Log-likelihood", kl):
        assert panels[heading].get_ylabel() == "nats per image"
        assert panels[heading].get_xlabel() == "epoch"
    train, val, _ = lines_of(panels["ELBO"])
    assert train == (list(range(9)), [row["train/elbo"] for row in table])
    assert val == ([0, 2, 4, 6, 8], [row["val/elbo"] for row in table[::2]])
    assert legend_of(panels[kl]) == ["content z", "angle θ", "shift", "lattice"]
    styles = [line.get_linestyle() for line in panels[kl].lines]
    assert styles == ["-", "--"] * 4
    assert shown_title(figure) == "Training curves"
    check_page(figure)


def test_the_best_validation_epoch_has_a_star() -> None:
    axes = panels_of(curves_figure(rows(9)))["ELBO"]
    *_, star = axes.lines
    assert star.get_marker() == "*"
    assert lines_of(axes)[-1] == ([6], [-100 - 50 / 7])
    assert legend_of(axes)[-1] == "best: −107.1 (epoch 6)"


def test_text_as_in_a_csv_file_gives_the_same_curves() -> None:
    table = rows(5)
    text = [{name: str(value) for name, value in row.items()} for row in table]
    for one, other in zip(curves_figure(table).axes, curves_figure(text).axes, strict=True):
        assert lines_of(one) == lines_of(other)


def test_missing_columns_leave_out_their_panels() -> None:
    figure = curves_figure([{"epoch": 3, "train/elbo": -5.0}, {"epoch": 4, "train/elbo": -4.0}])
    assert list(panels_of(figure)) == ["ELBO"]
    assert legend_of(figure.axes[0]) == ["training"]
    assert lines_of(figure.axes[0]) == [([3, 4], [-5, -4])]
    check_page(figure)
    partly = curves_figure([{"val/kl_z": 1.0}, {"val/kl_theta": 2.0}])
    assert len(panels_of(partly)) == 2
    assert lines_of(partly.axes[1]) == [([0], [1.0]), ([1], [2.0])]


@pytest.mark.parametrize(
    "table", [[], [{"epoch": 0}], [{"epoch": 0, "train/elbo": math.nan, "val/elbo": math.inf}]]
)
def test_nothing_to_draw_is_said(table: list) -> None:
    figure = curves_figure(table)
    assert "no finite value yet" in texts_of(figure)
    check_page(figure)


def test_values_that_are_not_finite_are_left_out() -> None:
    table = rows(8)
    table[2]["train/elbo"], table[3]["train/elbo"] = math.nan, -math.inf
    table[4]["val/elbo"], table[5]["epoch"] = "nan", ""
    train, val, _ = lines_of(panels_of(curves_figure(table))["ELBO"])
    assert train[0] == [0, 1, 4, 5, 6, 7]
    assert val[0] == [0, 2, 6]


@pytest.mark.parametrize("huge", [-1e9, -1e300])
def test_the_first_epochs_do_not_own_the_axis(huge: float) -> None:
    table = rows(30)
    table[0]["train/elbo"], table[1]["train/elbo"] = huge, huge / 1000
    figure = curves_figure(table)
    low, high = panels_of(figure)["ELBO"].get_ylim()
    assert -300 < low < -105
    assert high > -105
    *curves, (_, best) = lines_of(figure.axes[0])
    shown = [value for _, values in curves for value in values]
    outside = sum(not low <= value <= high for value in shown)
    assert 0 < outside <= 0.1 * len(shown)
    assert f"{outside} of {len(shown)} values outside" in texts_of(figure)
    assert low <= best[0] <= high
    check_page(figure)


def test_curves_without_extremes_are_drawn_whole() -> None:
    values = np.linspace(-200, -100, 40)
    figure = curves_figure([{"epoch": i, "val/elbo": v} for i, v in enumerate(values)])
    low, high = figure.axes[0].get_ylim()
    assert low < -200
    assert high > -100
    assert not any("outside" in text for text in texts_of(figure))


def test_one_epoch_is_a_point_at_its_number() -> None:
    figure = curves_figure(rows(1))
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert all(line.get_marker() not in ("", "None") for line in axes.lines)
        low, high = axes.get_xlim()
        figure.canvas.draw()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks == [0]
    check_page(figure)
