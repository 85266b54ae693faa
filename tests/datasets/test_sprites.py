import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from svae.datasets import Sprites
from svae.datasets.sprites import DISC_OFF_AXIS, DISC_RADIUS, MASS_BELOW, SHAPES, draw_sprites
from svae.geometry import pixel_grid, pixel_size, remove_pose

PIXEL = pixel_size(64, 64)
#: At scale 1, in units of the image's side; the heart's is that of dSprites.
AREAS = {"square": 0.3**2, "ellipse": math.pi * 0.2 * 0.1125, "heart": 225 / 64**2}


def draw(shape, scale=1.0, theta=0.0, shift_px=(0.0, 0.0), size=64):
    """One sprite (H, W)."""
    shift = torch.tensor([shift_px]) * pixel_size(size, size)
    return draw_sprites(shape, torch.tensor([scale]), torch.tensor([theta]), shift, size)[0, 0]


def moments(image):
    """Mass, centre (x, y) in pixels from the middle, y up, and the angle of the longest axis."""
    xy = pixel_grid(*image.shape).reshape(*image.shape, 2) / pixel_size(*image.shape)
    mass = image.double().sum()
    centre = (image.unsqueeze(-1) * xy).sum((0, 1)) / mass
    x, y = (xy - centre).unbind(-1)
    xx, yy, xy = ((image * product).sum() / mass for product in (x * x, y * y, x * y))
    return mass, centre, 0.5 * torch.atan2(2 * xy, xx - yy)


def splits(**options):
    data = Sprites(**({"train_images": 60, "val_images": 20, "test_images": 30} | options))
    data.setup()
    return data.splits


def inside(shape, x, y):
    """Whether points at scale 1, in units of the image's side, are in an upright shape."""
    if shape == "square":
        return (x.abs() < 0.15) & (y.abs() < 0.15)
    if shape == "ellipse":
        return (x / 0.2).square() + (y / 0.1125).square() < 1
    # Two discs, and what is between their centres, where tangents touch them, and the tip.
    x, y, r, a = x.abs(), y - MASS_BELOW, DISC_RADIUS, DISC_OFF_AXIS
    between = (y < 0) & (x + y < a) & (x - y < a + math.sqrt(2) * r)
    return between | ((x - a).square() + y.square() < r**2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "theta"), [(1.0, 0.0), (0.5, 0.6), (0.8, -2.0)])
def test_pixels_hold_the_part_of_them_that_is_covered(shape, scale, theta):
    fine = 8
    grid = (torch.arange(64 * fine) + 0.5) / fine - 32
    x, y = (grid - 3.3).expand(64 * fine, -1), (-grid - 5.1).unsqueeze(1)
    cos, sin = math.cos(theta), math.sin(theta)
    unit = 64 * scale
    covered = inside(shape, (cos * x + sin * y) / unit, (cos * y - sin * x) / unit).float()
    expected = covered.reshape(64, fine, 64, fine).mean((1, 3))
    image = draw(shape, scale, theta, (3.3, 5.1))
    # Corners and slanting edges are not covered exactly as their distance says.
    assert (image - expected).abs().max() < 0.3
    assert (image - expected).abs().sum() < 0.02 * expected.sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_areas_and_centres_of_mass(shape, scale):
    for theta, shift_px in ((0.0, (0.0, 0.0)), (0.7, (-6.4, 3.2)), (-2.5, (9.1, -12.7))):
        mass, centre, axis = moments(draw(shape, scale, theta, shift_px))
        assert mass.item() == pytest.approx(AREAS[shape] * (64 * scale) ** 2, rel=0.02)
        assert_close(centre, torch.tensor(shift_px).double(), atol=0.05, rtol=0)
        if shape == "ellipse":
            assert math.sin(axis - theta) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_angles_are_counter_clockwise(shape):
    """As numpy's and torch's quarter turns are."""
    for theta in (0.0, 0.4, 2.9):
        turned = torch.rot90(draw(shape, 0.9, theta))
        assert_close(draw(shape, 0.9, theta + math.pi / 2), turned, atol=1e-4, rtol=0)


def test_an_upright_heart_has_its_notch_up_and_an_ellipse_lies():
    heart = draw("heart")
    rows = (heart > 0.5).nonzero()[:, 0]
    top, bottom = heart[rows.min() + 1], heart[rows.max() - 1]
    assert top[31:33].max() < 0.5 < 0.9 < top.max()
    assert bottom[31:33].min() > 0.5 > bottom[:30].max()
    assert_close(heart, heart.flip(1), atol=1e-5, rtol=0)
    assert moments(draw("ellipse"))[2].abs() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_symmetry_is_that_of_the_shape(shape):
    upright = draw(shape, theta=0.3, shift_px=(4.2, -3.9))

    def difference(turn):
        return (draw(shape, theta=0.3 + turn, shift_px=(4.2, -3.9)) - upright).abs().sum()

    symmetry = SHAPES[shape].symmetry
    assert difference(2 * math.pi / symmetry) < 0.01
    for parts in range(2, 9):
        if symmetry % parts:
            assert difference(2 * math.pi / parts) > 10


def test_the_truth_is_that_of_the_images():
    test = splits()["test"]
    back = remove_pose(test["image"], test["theta"], test["shift"])
    error = (back - test["untransformed"]).square().sum((1, 2, 3))
    assert (error < 0.03 * test["untransformed"].square().sum((1, 2, 3))).all()
    for shape, symmetry, scale, shift, image in zip(
        *(test[name] for name in ("label", "symmetry", "scale", "shift", "image")), strict=True
    ):
        name = list(SHAPES)[shape]
        mass, centre, _ = moments(image[0])
        assert symmetry == SHAPES[name].symmetry
        assert mass.item() == pytest.approx(AREAS[name] * (64 * scale.item()) ** 2, rel=0.02)
        assert_close(centre * PIXEL, shift.double(), atol=0.1 * PIXEL, rtol=0)


def test_an_image_is_a_function_of_the_seed_and_its_index():
    one, same, other = splits(), splits(train_images=30, val_images=50), splits(seed=2)
    everything = {n: torch.cat([one[s][n] for s in one]) for n in one["train"]}
    for split in same.values():
        for name in everything:
            assert torch.equal(split[name], everything[name][split["index"]])
    assert not torch.isclose(one["train"]["theta"], other["train"]["theta"]).any()


def test_no_image_is_in_two_splits():
    found = splits()
    index = torch.cat([split["index"] for split in found.values()])
    assert index.tolist() == list(range(110))
    images = torch.cat([split["image"] for split in found.values()]).flatten(1)
    assert len(images.unique(dim=0)) == 110
    assert "untransformed" not in {*found["train"], *found["val"]}


def test_poses_sizes_and_shapes_are_spread_as_was_asked_for():
    train = splits(train_images=3000, image_size=16, shift_max_px=2.0, scales=3)["train"]
    assert stats.kstest((train["theta"].double() / math.pi + 1) / 2, "uniform").pvalue > 1e-3
    shift_px = train["shift"].double() / pixel_size(16, 16)
    for axis in (0, 1):
        assert stats.kstest((shift_px[:, axis] + 2) / 4, "uniform").pvalue > 1e-3
    for name, values in (("scale", [0.5, 0.75, 1.0]), ("label", [0, 1, 2])):
        found, counts = train[name].unique(return_counts=True)
        assert found.tolist() == values
        assert stats.chisquare(counts).pvalue > 1e-3
    assert train["image"].min() == 0
    assert train["image"].max() == 1
    free = splits(train_images=3000, image_size=16, scales=None, scale_min=0.2)["train"]["scale"]
    assert stats.kstest((free.double() - 0.2) / 0.8, "uniform").pvalue > 1e-3


def test_what_does_not_vary_is_no_truth():
    still = {"theta_distribution": "normal", "theta_std_deg": 0.0, "shift_max_px": 0.0}
    test = splits(**still)["test"]
    assert {"theta", "shift", "untransformed"}.isdisjoint(test)
    assert_close(test["image"][0, 0], draw(list(SHAPES)[test["label"][0]], test["scale"][0]))
    hearts = Sprites(shapes=["heart"], train_images=2, val_images=1, test_images=1)
    hearts.setup()
    assert "label" not in hearts.splits["train"]
    assert hearts.num_labels is None
    two = Sprites(shapes=["heart", "square"], train_images=9, val_images=1, test_images=1)
    two.setup()
    assert (two.num_labels, two.label_names) == (2, ["heart", "square"])
    train = two.splits["train"]
    assert torch.equal(train["symmetry"], torch.tensor([1, 4])[train["label"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": []}, "shapes: expected a list of different ones"),
        ({"shapes": "heart"}, "shapes: expected a list of different ones"),
        ({"shapes": ["heart", "heart"]}, "shapes: expected a list of different ones"),
        ({"shapes": ["circle"]}, "shapes: expected one of square, ellipse, heart, got 'circle'"),
        ({"scale_min": 0.0}, "scale_min"),
        ({"scale_max": 0.4}, r"scale_max: expected at least scale_min \(0.5\), got 0.4"),
        ({"scales": 0}, "scales"),
        ({"image_size": 1}, "image_size"),
        ({"theta_distribution": "flat"}, "theta_distribution: expected one of normal, uniform"),
        ({"shift_max_px": -1.0}, "shift_max_px"),
        ({"test_images": 0}, "test_images"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sprites(**options)
