"""The images reconstructed worst."""

import numpy as np
import pytest
import torch
from tests.figures.pictures import bar_of, check_page, flat, picture_of, shown_title, texts_of

from svae.figures import worst_figure

SIZE, STEP = 20, 21


@pytest.mark.parametrize("channels", [1, 3])
def test_the_worst_comes_first_with_its_name(channels: int) -> None:
    nats = torch.tensor([-10.0, -1234.56, -30.0])
    images = flat(torch.tensor([0.2, 0.4, 0.8]), channels, SIZE)
    rebuilt = flat(torch.tensor([0.3, 0.4, 0.6]), channels, SIZE)
    figure = worst_figure(images, rebuilt, nats, ["a.png", "b.png", "c/d.png"])
    picture = picture_of(figure)
    assert picture.shape == (3 * STEP - 1, 3 * STEP - 1, 3)
    drawn = picture[SIZE // 2 :: STEP, SIZE // 2 :: STEP]
    values = np.array([[0.4, 0.8, 0.2], [0.4, 0.6, 0.3]])
    expected = values if channels == 3 else (values - 0.2) / 0.6
    assert drawn[:2, :, 0] == pytest.approx(expected, abs=0.01)

    # No difference is white, a brighter input red, a darker one blue.
    none, brighter, darker = drawn[2]
    assert none.min() > 0.95
    assert brighter[0] > 2 * brighter[2]
    assert darker[2] > 1.1 * darker[0]
    low, high, label = bar_of(figure, channels == 1)
    assert (low, high, label) == (pytest.approx(-0.2), pytest.approx(0.2), "difference")
    assert len(figure.axes) == (3 if channels == 1 else 2)

    places = {t.get_text(): t.xy[0] for t in figure.axes[0].texts}
    columns = [["b", "−1234.6"], ["d", "−30.0"], ["a", "−10.0"]]
    for column, texts in enumerate(columns):
        assert [places[text] for text in texts] == [(SIZE - 1) / 2 + column * STEP] * 2
    assert "nats" in shown_title(figure)
    check_page(figure)


@pytest.mark.parametrize("count", [1, 12, 30])
def test_at_most_12_are_drawn(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 9, 7, generator=random)
    names = [f"a_very_long_name_of_a_series_{i:05d}.tif" for i in range(count)]
    nats = torch.randn(count, generator=random)
    figure = worst_figure(images, images.flip(0), nats, names)
    shown = min(count, 12)
    assert picture_of(figure).shape == (29, 8 * shown - 1, 3)
    wanted = nats.argsort()[:shown].tolist()
    ends = [text[-5:] for text in texts_of(figure) if text[-5:].isdigit()]
    assert ends == [f"{i:05d}" for i in wanted]
    check_page(figure)


def test_what_is_not_a_number_is_worst() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rebuilt = images.clone()
    rebuilt[1] = torch.nan
    figure = worst_figure(images, rebuilt, torch.tensor([-5.0, torch.nan, -9.0]))
    texts = [text for text in texts_of(figure) if text in ("nan", "−5.0", "−9.0")]
    assert texts == ["nan", "−9.0", "−5.0"]
    orange = (picture_of(figure) == torch.tensor([0.84, 0.37, 0.0]).numpy()).all(axis=-1)
    assert orange[9:17, :8].all()
    assert orange[18:, :8].all()
    assert orange.sum() == 2 * 64
    assert "orange: not finite" in shown_title(figure)
    check_page(figure)


def test_worst_arguments_are_checked() -> None:
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"log_likelihood: expected shape \(3,\), got \(2,\)"):
        worst_figure(images, images, torch.zeros(2))
    with pytest.raises(ValueError, match="names: expected 3 like images, got 1"):
        worst_figure(images, images, torch.zeros(3), ["a"])
    with pytest.raises(ValueError, match=r"reconstructions: expected shape \(3, 1, 8, 8\)"):
        worst_figure(images, images[:2], torch.zeros(3))
