"""Clusters: their means and members, and the labels in them."""

import numpy as np
import pytest
import torch
from tests.figures.pictures import check_page, flat, picture_of, shown_title, texts_of, tick_texts
from torch import Tensor

from svae.figures import aligned_figure, clusters_of, confusion_figure
from svae.figures.clusters import Cluster
from svae.metrics import matching

SIZE = 20


def labelled(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Labels and clusters, from how many images of each label are in each cluster."""
    cells = [(i, j) for i, row in enumerate(rows) for j, n in enumerate(row) for _ in range(n)]
    labels, clusters = torch.tensor(cells).T
    return labels, clusters


# ---- clusters and their labels


def test_clusters_are_in_the_order_of_their_labels() -> None:
    labels, clusters = labelled([[1, 2, 9], [6, 0, 0], [3, 7, 8]])
    assert clusters_of(clusters + 10, labels) == [
        Cluster(12, 17, 0, 9 / 17),
        Cluster(10, 10, 1, 6 / 10),
        Cluster(11, 9, 2, 7 / 9),
    ]


def test_clusters_without_a_label_come_last() -> None:
    labels, clusters = labelled([[5, 1, 0], [4, 0, 3]])
    assert clusters_of(clusters, labels) == [
        Cluster(0, 9, 0, 5 / 9),
        Cluster(2, 3, 1, 1.0),
        Cluster(1, 1),
    ]


def test_without_labels_clusters_are_in_their_own_order() -> None:
    clusters = torch.tensor([4, 2, 4, 4])
    assert clusters_of(clusters) == [Cluster(2, 1), Cluster(4, 3)]


# ---- labels against clusters


def test_what_is_matched_is_on_the_diagonal_in_per_cent() -> None:
    labels, clusters = labelled([[0, 10, 90], [30, 10, 0], [1, 150, 49]])
    figure = confusion_figure(labels, clusters, ["a", "b", "c$"])
    axes = figure.axes[0]
    expected = np.array([[90, 0, 10], [0, 75, 25], [24.5, 0.5, 75]])
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(expected)
    assert tick_texts(figure, "x") == ["2", "0", "1"]
    assert tick_texts(figure, "y") == ["a", "b", "c$"]
    written = {t.get_position(): t.get_text() for t in axes.texts if t.get_text() != "images"}
    sizes = {row: text for (column, row), text in written.items() if column > 2}
    assert sizes == {0: "100", 1: "40", 2: "200"}
    cells = {place: int(text) for place, text in written.items() if place[0] <= 2}
    assert cells == {(j, i): round(v) for (i, j), v in np.ndenumerate(expected) if v >= 0.5}
    # 90 of 100, 30 of 40 and 150 of 200.
    assert "340 images: accuracy 0.794" in shown_title(figure)
    frames = [p.get_xy() for p in axes.patches if p.get_width() == 1]
    assert frames == [(i - 0.5, i - 0.5) for i in range(3)]
    check_page(figure)


@pytest.mark.parametrize("shape", [(1, 1), (2, 6), (7, 2), (20, 20), (26, 10), (60, 60)])
def test_confusion_of_any_size_fits_on_its_page(shape: tuple[int, int]) -> None:
    labels, clusters = labelled(np.random.default_rng(0).integers(0, 9, shape).tolist() or [[1]])
    figure = confusion_figure(labels, clusters, ["a very long name of a kind of galaxy"])
    assert f"accuracy {matching(labels, clusters).accuracy:.3f}" in shown_title(figure)
    # Where there is no room for numbers, a bar tells what colours mean.
    assert len(figure.axes) == (1 if max(shape) <= 20 else 2)
    check_page(figure)


def test_labels_and_clusters_are_checked() -> None:
    labels = torch.arange(4)
    with pytest.raises(ValueError, match="labels, clusters: expected as many, got 4 and 3"):
        confusion_figure(labels, labels[:3])
    with pytest.raises(ValueError, match=r"clusters: expected whole numbers .* got float32"):
        clusters_of(labels.float())


# ---- means and members


def test_a_row_for_each_cluster_with_its_mean_first() -> None:
    clusters = [Cluster(3, 1200, 7, 0.876), Cluster(0, 5)]
    members = [flat(torch.tensor([0.0, 0.5, 1.0]), 1, SIZE), flat(torch.tensor([0.25]), 1, SIZE)]
    means = flat(torch.tensor([4.0, 8.0]), 1, SIZE)
    figure = aligned_figure(clusters, means, members)
    picture = picture_of(figure)
    middle, step, begin = SIZE // 2, SIZE + 1, SIZE + 3
    assert picture.shape == (2 * step - 1, begin + 3 * step - 1, 3)
    # The means have a scale of their own.
    assert picture[[middle, middle + step], middle, 0] == pytest.approx([0, 1], abs=0.01)
    drawn = picture[middle::step, begin + middle :: step, 0]
    assert drawn == pytest.approx(np.array([[0, 0.5, 1], [0.25, 1, 1]]), abs=0.01)
    assert tick_texts(figure, "y") == [
        "cluster 3, label 7\n88 % of 1,200 images",
        "cluster 0\n5 images",
    ]
    assert "the label it is matched with" in shown_title(figure)
    check_page(figure)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 20])
def test_one_and_many_clusters_fit_on_their_page(channels: int, count: int) -> None:
    names = [f"a long name of a kind: $ {i}" for i in range(count)]
    clusters = [Cluster(i, 100_000 + i, i, 0.5) for i in range(count)]
    means = torch.rand(count, channels, 8, 12)
    members = [torch.rand(1 + i % 10, channels, 8, 12) for i in range(count)]
    figure = aligned_figure(clusters, means, members, names)
    check_page(figure)
    assert any("kind: $ 0" in text for text in texts_of(figure))
    unlabelled = aligned_figure([Cluster(0, 3)], means[:1], members[:1])
    assert "label" not in "".join(texts_of(unlabelled))


def test_the_title_says_when_there_are_more_clusters() -> None:
    images = torch.rand(2, 1, 8, 8)
    clusters = [Cluster(0, 2), Cluster(1, 2)]
    for total, words in (
        (None, "Clusters of"),
        (2, "Clusters of"),
        (7, "The first 2 of 7 clusters of"),
    ):
        figure = aligned_figure(clusters, images, [images, images], total=total)
        assert shown_title(figure).startswith(f"{words} images with their pose removed")
        check_page(figure)


def test_rows_of_clusters_are_checked() -> None:
    images = torch.rand(2, 1, 8, 8)
    clusters = [Cluster(0, 2), Cluster(1, 2)]
    with pytest.raises(ValueError, match="expected as many of each, got 2, 2 and 1"):
        aligned_figure(clusters, images, [images])
    with pytest.raises(ValueError, match=r"members: expected images with shape \(1, 8, 8\)"):
        aligned_figure(clusters, images, [images, torch.rand(2, 1, 8, 9)])
