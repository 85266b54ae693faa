"""The scatter of the content."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from tests.figures.pictures import check_page, shown_title, texts_of
from torch import Tensor

from svae.figures import latent_figure


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def points_of(figure: Figure) -> np.ndarray:
    """Where the points of the scatter are, in any order."""
    clouds = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return np.concatenate([np.asarray(cloud.get_offsets()) for cloud in clouds])


def cells_of(figure: Figure) -> PolyCollection:
    (cells,) = (c for c in figure.axes[0].collections if isinstance(c, PolyCollection))
    return cells


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("labels", [None, torch.arange(300) % 13])
def test_two_components_are_drawn_as_they_are(labels: Tensor | None) -> None:
    z = normal(300, 2)
    figure = latent_figure(z, labels)
    assert in_order(points_of(figure)) == pytest.approx(in_order(z.double().numpy()))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_0$", "$z_1$")
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert "300 images" in shown_title(figure)
    check_page(figure)


def test_classes_have_their_own_looks_and_names() -> None:
    labels = torch.arange(400) % 20
    names = ["cat", "a$b", "日本", "a name that is much too long for a legend"]
    figure = latent_figure(normal(400, 2), labels, names)
    assert legend_of(figure)[:3] == ["cat", "a$b", "□□"]
    assert "…" in legend_of(figure)[3]
    assert legend_of(figure)[4:] == [str(i) for i in range(4, 20)]
    handles = figure.axes[0].get_legend().legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 20
    check_page(figure)


def test_points_have_the_colour_of_their_label() -> None:
    labels = torch.tensor([5, 3, 5, -1])
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    figure = latent_figure(z, labels)
    cloud = next(c for c in figure.axes[0].collections if len(c.get_offsets()))
    order = np.argsort(np.asarray(cloud.get_offsets())[:, 0])
    first, second, third, fourth = cloud.get_facecolors()[order, :3].tolist()
    assert first == third
    assert len({tuple(colour) for colour in (first, second, fourth)}) == 3
    assert legend_of(figure) == ["-1", "3", "5"]


def test_of_many_components_the_principal_ones_are_drawn() -> None:
    scale = torch.tensor([0.1, 3.0, 0.1, 1.0])
    z = normal(500, 4) * scale + 7
    figure = latent_figure(z)
    axes = figure.axes[0]
    variance = z.var(dim=0)
    for label, order, dim in (
        (axes.get_xlabel(), "first", 1),
        (axes.get_ylabel(), "second", 3),
    ):
        assert label.startswith(f"{order} principal component of $z$")
        share = float(label.split("(")[1].split(" %")[0])
        assert share == pytest.approx(100 * (variance[dim] / variance.sum()).item(), abs=1.5)
    x = np.sort(points_of(figure)[:, 0])
    expected = np.sort((z[:, 1] - z[:, 1].mean()).numpy())
    assert x == pytest.approx(expected, abs=0.3)
    assert np.corrcoef(x, expected)[0, 1] > 0.99
    check_page(figure)


def test_many_labels_become_a_density() -> None:
    z, labels = normal(3000, 2), torch.arange(3000) % 21
    figure = latent_figure(z, labels)
    assert np.asarray(cells_of(figure).get_array()).sum() == 3000
    assert "21 labels" in shown_title(figure)
    assert figure.axes[1].get_ylabel() == "images per cell"
    assert figure.axes[1].get_ylim() == cells_of(figure).get_clim()
    check_page(figure)


def test_100000_images_are_thinned_the_same_way_each_time() -> None:
    z, labels = normal(100_000, 2), torch.arange(100_000) % 5
    figure = latent_figure(z, labels)
    drawn = points_of(figure)
    assert len(drawn) == 20_000
    assert (drawn == points_of(latent_figure(z, labels))).all()
    assert "20,000 of them drawn" in texts_of(figure)
    assert all(cloud.get_rasterized() for cloud in figure.axes[0].collections)
    check_page(figure)
    density = latent_figure(z)
    assert np.asarray(cells_of(density).get_array()).sum() == 100_000
    check_page(density)


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("labelled", [True, False])
def test_one_component_is_a_histogram(count: int, labelled: bool) -> None:
    z = normal(count, 1)
    labels = torch.arange(count) % 3 if labelled else None
    figure = latent_figure(z, labels, ["a", "b", "c"])
    rows = min(count, 3) if labelled else 1
    assert len(figure.axes) == rows
    if labelled:
        assert [axes.get_ylabel() for axes in figure.axes] == ["a", "b", "c"][:rows]
    assert figure.axes[-1].get_xlabel().startswith("$z_0$")
    heights = [sum(p.get_height() for p in axes.patches) for axes in figure.axes]
    assert sum(heights) == count
    check_page(figure)


@pytest.mark.parametrize("z_dim", [1, 2, 5])
@pytest.mark.parametrize("labels", [None, torch.zeros(4, dtype=torch.int64)])
def test_collapsed_content_can_be_drawn(z_dim: int, labels: Tensor | None) -> None:
    check_page(latent_figure(torch.full((4, z_dim), 1.5), labels))
    check_page(latent_figure(1e3 + 1e-13 * normal(4, z_dim).double(), labels))


@pytest.mark.parametrize("z_dim", [1, 2, 5])
def test_what_is_not_finite_is_left_out(z_dim: int) -> None:
    z = normal(20, z_dim)
    z[3, 0], z[7, -1] = torch.nan, torch.inf
    figure = latent_figure(z, torch.arange(20) % 2)
    assert "18 images (2 not finite, left out)" in shown_title(figure)
    check_page(figure)
    with pytest.raises(ValueError, match="z: expected finite values, got none in 20 images"):
        latent_figure(z * torch.nan)


def test_latent_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"z: expected shape \(N, D\)"):
        latent_figure(torch.zeros(3))
    with pytest.raises(ValueError, match=r"z: expected shape \(N, D\)"):
        latent_figure(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"labels: expected shape \(3,\) like z, got \(2,\)"):
        latent_figure(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="labels: expected whole numbers, got float32"):
        latent_figure(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize("seed", range(8))
def test_principal_components_point_along_their_largest_entry(seed: int) -> None:
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(seed))
    z[:, 2] = (3 * z[:, 2]).exp().clamp(max=50)  # all of the variance, with a long upper tail
    x = points_of(latent_figure(z))[:, 0]
    assert x.max() > -2 * x.min()
