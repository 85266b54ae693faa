import math
import zipfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from svae.datasets import DSprites, dsprites
from svae.datasets.dsprites import FILE_NAME
from svae.datasets.sprites import SHAPES, draw_sprites
from svae.geometry import pixel_size, remove_pose

ORIENTATIONS, POSITIONS = np.linspace(0, 2 * math.pi, 8), np.linspace(0, 1, 4)
#: What the file of the tests holds, in the published order.
LATENTS = np.stack(
    [
        latent.ravel()
        for latent in np.meshgrid(
            [1.0], [1.0, 2.0, 3.0], [0.5, 1.0], ORIENTATIONS, POSITIONS, POSITIONS, indexing="ij"
        )
    ],
    axis=1,
)
DIFFERENT = 3 * 2 * 7 * 16


def draw():
    """The images of `LATENTS`, by what was measured on the published ones."""
    orientation, x, y = LATENTS[:, 3:].T
    columns, rows = 15.5 + 32 * x, 15.5 + 32 * y
    centres = np.stack([columns - 31.5, 31.5 - rows], axis=1) * 2 / 63
    pose = torch.from_numpy(orientation), torch.from_numpy(centres)
    images = np.empty((len(LATENTS), 64, 64), np.uint8)
    for number, shape in enumerate(SHAPES, start=1):
        of = LATENTS[:, 1] == number
        scale = torch.from_numpy(LATENTS[of, 2])
        drawn = draw_sprites(shape, scale, *(part[torch.from_numpy(of)] for part in pose), 64)
        images[of] = drawn[:, 0] > 0.5
    return images


@pytest.fixture(scope="module")
def images():
    return draw()


def write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


@pytest.fixture
def folder(tmp_path, images):
    write(tmp_path / "dsprites" / FILE_NAME, imgs=images, latents_values=LATENTS)
    return tmp_path


def dataset(folder, **options):
    counts = {"train_images": 400, "val_images": 50, "test_images": 100}
    return DSprites(str(folder), **(counts | options))


def splits(folder, **options):
    data = dataset(folder, **options)
    data.setup()
    return data.splits


@pytest.mark.parametrize("block", [7, 4096])
def test_rows_are_those_of_the_file(folder, images, monkeypatch, block):
    monkeypatch.setattr(dsprites, "BLOCK", block)
    found = splits(folder)
    assert {name: len(split["index"]) for name, split in found.items()} == {
        "train": 400,
        "val": 50,
        "test": 100,
    }
    for split in found.values():
        index = split["index"].numpy()
        assert torch.equal(split["image"], torch.from_numpy(images[index]).unsqueeze(1).float())
        assert split["label"].tolist() == (LATENTS[index, 1] - 1).tolist()
        assert_close(split["scale"].double(), torch.from_numpy(LATENTS[index, 2]))
        assert split["symmetry"].tolist() == [[4, 2, 1][label] for label in split["label"]]


def test_no_image_twice_not_even_under_another_orientation(folder):
    found = splits(folder, train_images=DIFFERENT - 20, val_images=10, test_images=10)
    index = torch.cat([split["index"] for split in found.values()])
    assert len(index.unique()) == DIFFERENT
    # The last orientation is the first once more.
    assert LATENTS[index, 3].max() < ORIENTATIONS[-2] + 1e-6
    with pytest.raises(ValueError, match=rf"at most the {DIFFERENT} .*got {DIFFERENT + 1}"):
        splits(folder, train_images=DIFFERENT - 19, val_images=10, test_images=10)


def test_the_seed_decides_what_is_drawn(folder):
    one, same, other = (splits(folder, seed=seed) for seed in (1, 1, 2))
    for name in one["test"]:
        assert torch.equal(one["test"][name], same["test"][name])
    assert not torch.equal(one["test"]["index"], other["test"]["index"])


def test_poses_have_our_signs_and_units(folder):
    """Places in the file are from the left and from the top, over half the image."""
    train = splits(folder, train_images=DIFFERENT - 20, val_images=10, test_images=10)["train"]
    latents = torch.from_numpy(LATENTS[train["index"]])
    shift_px = train["shift"].double() / pixel_size(64, 64)
    assert_close(shift_px[:, 0], 32 * latents[:, 4] - 16, atol=1e-4, rtol=0)
    assert_close(shift_px[:, 1], 16 - 32 * latents[:, 5], atol=1e-4, rtol=0)
    theta = train["theta"].double()
    assert (theta >= -math.pi).all()
    assert (theta < math.pi).all()
    assert_close(torch.cos(theta - latents[:, 3]), torch.ones(len(theta)).double())
    # And they are where the pixels are.
    columns = torch.arange(64) - 31.5
    mass = train["image"].sum((1, 2, 3))
    x = (train["image"][:, 0].sum(1) * columns).sum(1) / mass
    y = -(train["image"][:, 0].sum(2) * columns).sum(1) / mass
    assert_close(torch.stack((x, y), 1).double(), shift_px, atol=0.5, rtol=0)


def test_the_test_split_holds_the_images_upright_near_the_centre(folder, images):
    found = splits(folder)
    test = found["test"]
    for index, upright in zip(test["index"].tolist(), test["untransformed"], strict=True):
        _, shape, scale, *_ = LATENTS[index]
        same = (LATENTS[:, 1:4] == (shape, scale, 0)).all(1)
        nearest = same & (np.abs(LATENTS[:, 4:] - 0.5).max(1) < 0.2)
        assert any(np.array_equal(upright[0], image) for image in images[nearest])
    back = remove_pose(test["image"], test["theta"], test["shift"])
    # The nearest place of this small file is 5.3 pixels from the centre along each axis.
    near = max(
        (back.roll((rows, columns), (2, 3)) * test["untransformed"]).sum()
        for rows in (-5, 5)
        for columns in (-5, 5)
    )
    assert near > 0.9 * test["untransformed"].sum()
    assert "untransformed" not in {*found["train"], *found["val"]}


def test_the_file_may_lie_in_the_data_folder_itself(folder, monkeypatch):
    (folder / "dsprites" / FILE_NAME).rename(folder / FILE_NAME)
    monkeypatch.setenv("SVAE_DATA_DIR", str(folder))
    data = DSprites(train_images=3, val_images=2, test_images=1)
    data.setup()
    assert data.image_shape == (1, 64, 64)
    assert (data.num_labels, data.label_names) == (3, ["square", "ellipse", "heart"])


def test_a_missing_file_is_named_with_the_place_and_a_way_on(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        dataset(tmp_path).setup()
    message = str(error.value)
    for part in (
        FILE_NAME,
        str(tmp_path / "dsprites"),
        "github.com/google-deepmind/dsprites-dataset",
        "dataset=sprites",
    ):
        assert part in message
    assert "\n" not in message


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def with_other_bytes(path):
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("imgs.npy")
    content = bytearray(path.read_bytes())
    middle = member.header_offset + member.compress_size // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_short, with_other_bytes, empty])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / "dsprites" / FILE_NAME
    damage(path)
    with pytest.raises(ValueError, match=FILE_NAME) as error:
        dataset(folder).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, r"expected imgs \(N, H, H\) in uint8.*got latents_values"),
        ({"latents_values": None}, r"expected imgs .* and latents_values \(N, 6\)"),
        ({"latents_values": LATENTS[:-1]}, "expected imgs .* and latents_values"),
        ({"latents_values": LATENTS.astype("U8")}, "got .*words"),
        ({"latents_values": LATENTS + 0.5}, "expected shapes 1, 2 and 3"),
        ({"latents_values": LATENTS * np.nan}, "expected shapes 1, 2 and 3"),
        ({"imgs": np.full((len(LATENTS), 8, 8), 255, np.uint8)}, "expected 0 and 1, got 255"),
        ({"imgs": np.ones((len(LATENTS), 8, 8))}, "in uint8"),
        ({"imgs": np.ones((len(LATENTS), 8, 9), np.uint8)}, r"\(N, H, H\)"),
    ],
)
def test_another_file_of_this_name_is_refused(tmp_path, changes, message):
    arrays = {"imgs": np.ones((len(LATENTS), 8, 8), np.uint8), "latents_values": LATENTS}
    arrays = {name: a for name, a in (arrays | changes).items() if a is not None}
    write(tmp_path / FILE_NAME, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        dataset(tmp_path).setup()
    assert FILE_NAME in str(error.value)
