import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from svae.datasets import PosedImages, RotDigits
from svae.geometry import pixel_grid, pixel_size, remove_pose, transform_image


class Dots(PosedImages):
    """A dot two pixels right of the centre of a 9x9 object."""

    def objects(self):
        objects = torch.zeros(600, 1, 9, 9)
        objects[:, 0, 4, 6] = 1
        order = torch.arange(600)
        rows = {"train": order[:400], "val": order[400:500], "test": order[500:]}
        return objects, order % 3, rows


class Blobs(PosedImages):
    """A smooth spot off the centre of a 21x21 object, so that resampling costs little."""

    def objects(self):
        middle = torch.tensor([0.3, 0.1])
        spot = torch.exp(-8 * (pixel_grid(21, 21).float() - middle).square().sum(-1))
        order = torch.arange(30)
        rows = {"train": order[:10], "val": order[10:20], "test": order[20:]}
        return spot.reshape(1, 1, 21, 21).repeat(30, 1, 1, 1), order % 3, rows


def splits(kind=Dots, **options):
    data = kind(**options)
    data.setup()
    return data.splits


def test_the_truth_is_the_pose_of_the_image():
    train = splits(image_size=21)["train"]
    upright = torch.zeros(400, 1, 21, 21)
    upright[:, 0, 10, 12] = 1
    expected = transform_image(upright, train["theta"], train["shift"])
    assert_close(train["image"], expected, atol=1e-4, rtol=0)
    # The dot's centre of mass is where the docstring of the frame says.
    mass = train["image"][:, 0]
    step = pixel_size(21, 21)
    x = (mass.sum(1) * (torch.arange(21) - 10)).sum(1) / mass.sum((1, 2)) * step
    expected_x = 2 * step * torch.cos(train["theta"]) + train["shift"][:, 0]
    assert_close(x, expected_x, atol=0.02, rtol=0)  # a fifth of a pixel, for the resampling


@pytest.mark.parametrize("copies", [1, 3])
def test_no_object_is_in_two_splits_and_no_index_twice(copies):
    data = splits(RotDigits, train_copies=copies, eval_copies=2)
    objects = {name: set((split["index"] % 1797).tolist()) for name, split in data.items()}
    assert not objects["train"] & objects["val"]
    assert not objects["train"] & objects["test"]
    assert not objects["val"] & objects["test"]
    assert len(set.union(*objects.values())) == 1797
    index = torch.cat([split["index"] for split in data.values()])
    assert len(index.unique()) == len(index)
    assert len(data["train"]["index"]) == copies * len(objects["train"])


def test_poses_have_the_widths_that_were_asked_for():
    train = splits(image_size=28, theta_std_deg=30.0, shift_std_px=2.0, train_copies=50)["train"]
    theta_deg = torch.rad2deg(train["theta"]).double()
    shift_px = train["shift"].flatten().double() / pixel_size(28, 28)
    assert stats.kstest(theta_deg / 30, "norm").pvalue > 1e-3
    assert stats.kstest(shift_px / 2, "norm").pvalue > 1e-3


def test_uniform_angles_cover_the_circle():
    train = splits(image_size=28, theta_distribution="uniform", train_copies=50)["train"]
    position = (train["theta"].double() / math.pi + 1) / 2
    assert stats.kstest(position, "uniform").pvalue > 1e-3


def test_copies_of_an_object_have_different_poses():
    train = splits(image_size=28, train_copies=2)["train"]
    assert not torch.isclose(train["theta"][:400], train["theta"][400:]).any()


def test_the_seed_decides_everything():
    one, same, other = (splits(RotDigits, seed=seed)["test"] for seed in (1, 1, 2))
    for name in one:
        assert torch.equal(one[name], same[name])
    assert not torch.equal(one["theta"], other["theta"])


def test_a_pose_that_nobody_varied_is_no_truth():
    still = splits(image_size=9, theta_std_deg=0.0, shift_std_px=0.0)["train"]
    assert {"theta", "shift"}.isdisjoint(still)
    assert still["image"][0, 0, 4, 6] == 1
    assert "untransformed" not in splits(image_size=9, theta_std_deg=0.0, shift_std_px=0.0)["test"]
    assert "shift" not in splits(image_size=9, shift_std_px=0.0)["train"]


def test_sizes_are_drawn_beside_the_same_poses():
    """Objects are resized first; the truth is a factor, and off by default."""
    plain = splits(image_size=28, train_copies=10)["train"]
    sized = splits(image_size=28, train_copies=10, scale_std=0.3)["train"]
    assert "scale" not in plain
    assert plain.keys() | {"scale"} == sized.keys()
    assert torch.equal(plain["theta"], sized["theta"])
    assert torch.equal(plain["shift"], sized["shift"])
    assert stats.kstest(sized["scale"].double().log() / 0.3, "norm").pvalue > 1e-3
    alone = splits(RotDigits, theta_std_deg=0.0, shift_std_px=0.0, scale_std=0.3, train_copies=1)[
        "test"
    ]
    assert {"theta", "shift"}.isdisjoint(alone)
    mass = alone["image"].sum((1, 2, 3)) / alone["untransformed"].sum((1, 2, 3))
    small = alone["scale"] < 1.1  # others leave the image
    assert_close(mass[small].sqrt(), alone["scale"][small], rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"theta_distribution": "uniform", "shift_std_px": 0.0},
        {"theta_std_deg": 0.0},
        {"scale_std": 0.2},
        {"theta_std_deg": 0.0, "shift_std_px": 0.0, "scale_std": 0.2},
    ],
)
def test_the_test_split_holds_the_objects_untransformed(options):
    data = Blobs(image_size=41, eval_copies=2, **options)
    data.setup()
    test = data.splits["test"]
    still = {"theta": torch.zeros(20), "shift": torch.zeros(20, 2)} | test
    pose = still["theta"], still["shift"], still.get("scale", torch.ones(20)).log()
    assert_close(transform_image(test["untransformed"], *pose), test["image"], atol=1e-5, rtol=0)
    assert_close(remove_pose(test["image"], *pose), test["untransformed"], atol=0.1, rtol=0)
    assert "untransformed" not in {*data.splits["train"], *data.splits["val"]}
    assert "untransformed" not in data.everything()[torch.arange(5)]


def test_each_image_has_its_own_object_untransformed():
    one, two = (splits(RotDigits, eval_copies=copies)["test"] for copies in (1, 2))
    assert_close(one["untransformed"].repeat(2, 1, 1, 1), two["untransformed"])
    back = remove_pose(two["image"], two["theta"], two["shift"])
    error = (back - two["untransformed"]).square().mean((1, 2, 3))
    other = (back - two["untransformed"].roll(1, 0)).square().mean((1, 2, 3))
    assert (error < 0.2 * other).float().mean() > 0.97


def test_pixels_stay_within_zero_and_one():
    for split in splits(RotDigits).values():
        assert split["image"].min() >= 0
        assert split["image"].max() <= 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"image_size": 1}, "image_size"),
        ({"theta_std_deg": -1.0}, "theta_std_deg"),
        ({"shift_std_px": float("inf")}, "shift_std_px"),
        ({"scale_std": -0.1}, "scale_std"),
        ({"theta_distribution": "cauchy"}, "normal, uniform"),
        ({"train_copies": 0}, "train_copies"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_values_out_of_range_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        Dots(**options)


def test_objects_larger_than_the_image_are_refused():
    with pytest.raises(ValueError, match=r"image_size.*9 pixels"):
        splits(image_size=8)
