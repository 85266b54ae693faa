import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageOps
from torch.testing import assert_close
from torch.utils.data import DataLoader

from svae.datasets import Images
from svae.datasets.base import SPLITS, InMemory
from svae.datasets.picture_files import PictureFiles
from svae.distributed import Place
from svae.run import images_to_encode

random = np.random.default_rng(0)
U8 = random.integers(0, 256, (6, 8, 10), dtype=np.uint8)
U16 = random.integers(0, 2**16, (6, 8, 10), dtype=np.uint16)
RGB = random.integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(
            path, image, photometric="rgb" if image.shape[-1] == 3 else "minisblack", **options
        )
    else:
        Image.fromarray(image).save(path, **options)


def folder_of(folder, images, pattern="{}.png", **options):
    for i, image in enumerate(images):
        save(folder / pattern.format(i), image, **options)
    return str(folder)


def array_of(path, *arrays, **named):
    np.savez(path, *arrays, **named) if path.suffix == ".npz" else np.save(path, arrays[0])
    return str(path)


def pixels(data):
    """All images (N, C, H, W), in the order of their index."""
    dataset = data.everything()
    return dataset[torch.arange(len(dataset))]["image"]


def raw(path, **options):
    return pixels(Images(str(path), normalize="none", **options))


def channels_first(images):
    images = torch.from_numpy(np.asarray(images).astype(np.float32))
    return images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)


# ---- values


@pytest.mark.parametrize(
    ("pattern", "images", "options"),
    [
        ("{}.png", U8, {}),
        ("{}.PNG", RGB, {}),
        ("{}.png", U16, {}),
        ("{}.tif", U8, {}),
        ("{}.tif", RGB, {"planarconfig": "contig"}),
        ("{}.tif", U16, {"compression": "lzw"}),
        ("{}.tif", U16, {"bigtiff": True, "byteorder": ">"}),
        ("{}.tif", U16.astype(np.int16), {}),
        ("{}.tif", U16.astype(np.uint32) * 200, {"compression": "zlib", "predictor": True}),
        ("{}.tif", U16.astype(np.int32) - 40_000, {"rowsperstrip": 3}),
        ("{}.tif", U16.astype(np.float16) / 7, {}),
        ("{}.tif", U16 / np.float32(7), {"compression": "lzw", "predictor": True}),
        ("{}.tif", U16 / 7, {"tile": (16, 16)}),
        ("{}.tif", RGB.astype(np.uint16) * 257, {"compression": "lzw"}),
        ("{}.tif", RGB / np.float32(255), {}),
    ],
)
def test_files_keep_their_values(tmp_path, pattern, images, options):
    found = raw(folder_of(tmp_path, images, pattern, **options))
    assert torch.equal(found, channels_first(images))


def test_16_bit_colours_of_a_png_are_not_cut_to_8(tmp_path):
    import imagecodecs

    images = random.integers(0, 2**16, (3, 8, 10, 3), dtype=np.uint16)
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(imagecodecs.png_encode(image))
    assert torch.equal(raw(tmp_path), channels_first(images))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "images",
    [
        U8,
        U8 > 100,
        U16.astype(np.int16),
        U16.astype(np.int64) - 5,
        U16.astype(">u2"),
        np.asfortranarray(U16),
        U16 / 7,
        RGB,
        U8[..., np.newaxis],
    ],
)
def test_arrays_keep_their_values(tmp_path, images, suffix):
    found = raw(array_of(tmp_path / f"a{suffix}", images))
    assert torch.equal(found, channels_first(images))


def test_channels_may_come_first_and_an_npz_may_be_compressed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", RGB.transpose(0, 3, 1, 2))
    assert torch.equal(raw(tmp_path / "a.npz"), channels_first(RGB))
    grey = array_of(tmp_path / "b.npy", U8[:, np.newaxis])
    assert torch.equal(raw(grey), channels_first(U8))


SLICES = {"imagej": True, "metadata": {"axes": "ZYX"}}


@pytest.mark.parametrize("options", [{}, SLICES, SLICES | {"truncate": True}])
def test_each_page_of_a_stack_is_an_image(tmp_path, options):
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, U16, photometric="minisblack", **options)
    data = Images(str(stack), normalize="none")
    assert torch.equal(pixels(data), channels_first(U16))
    assert data.file_names == [f"stack.tif[{i}]" for i in range(6)]
    # In a folder, beside a file with one page.
    save(tmp_path / "alone.tif", U16[0])
    data = Images(str(tmp_path), normalize="none")
    assert torch.equal(pixels(data)[1:], channels_first(U16))
    assert data.file_names[:2] == ["alone.tif", "stack.tif[0]"]


def several_channels(axes, **options):
    """How a TIFF of these axes is written."""
    return {"photometric": "minisblack", "metadata": {"axes": axes}} | options


#: Of each kind the axes in the order that they are written in: two channels, three slices.
CHANNELS = {
    "imagej": several_channels("CYX", imagej=True),
    "imagej slices": several_channels("ZCYX", imagej=True),
    "imagej in one page": several_channels("ZCYX", imagej=True, truncate=True),
    "ome": several_channels("CYX", ome=True),
    "ome slices": several_channels("CZYX", ome=True, compression="lzw"),
    "ome time": several_channels("TCYX", ome=True),
    "tifffile": several_channels("CYX"),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_one_channel_of_several_is_read(tmp_path, kind):
    axes = CHANNELS[kind]["metadata"]["axes"]
    shape = [2 if axis == "C" else 3 for axis in axes[:-2]]
    cells = random.integers(0, 2**16, (4, *shape, 8, 10), dtype=np.uint16)
    for i, cell in enumerate(cells):
        tifffile.imwrite(tmp_path / f"cell{i}.tif", cell, **CHANNELS[kind])
    message = r"dataset\.channel: cell0\.tif has 2 channels; expected 0 to 1, or all .*, got "
    for wrong, got in ((None, "null"), (2, "2")):
        with pytest.raises(ValueError, match=f"{message}{got}$"):
            Images(str(tmp_path), channel=wrong).setup()
    for channel in (0, 1):
        data = Images(str(tmp_path), channel=channel, normalize="none")
        one = cells.take(channel, 1 + axes.index("C"))
        assert torch.equal(pixels(data), channels_first(one.reshape(-1, 8, 10)))
        assert data.file_names[0] == ("cell0.tif" if axes == "CYX" else "cell0.tif[0]")
    assert torch.equal(raw(tmp_path, channel="all"), channels_first(cells.reshape(-1, 8, 10)))


def test_one_channel_of_what_has_them_in_one_page(tmp_path):
    pair = RGB[..., :2]
    for i in range(3):
        save(tmp_path / f"rgb/{i}.png", RGB[i])
        path = tmp_path / f"pair/{i}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, pair[i], photometric="minisblack", planarconfig="contig")
    array = array_of(tmp_path / "a.npy", RGB)
    for channel in (0, 1):
        expected = channels_first(RGB[..., channel])
        assert torch.equal(raw(tmp_path / "rgb", channel=channel), expected[:3])
        assert torch.equal(raw(tmp_path / "pair", channel=channel), expected[:3])
        assert torch.equal(raw(array, channel=channel), expected)
    assert torch.equal(raw(array, channel="all"), channels_first(RGB))
    grey = folder_of(tmp_path / "grey", U8)
    assert torch.equal(raw(grey, channel=0), channels_first(U8))
    message = r"dataset\.channel: 0\.png has 1 channel; expected a number below 1, or null, got 1"
    with pytest.raises(ValueError, match=message):
        Images(grey, channel=1, skip_unusable=True).setup()


def test_other_pictures_are_encoded_by_the_channel_that_was_trained_on(tmp_path):
    (tmp_path / "new").mkdir()
    for i in range(3):
        tifffile.imwrite(tmp_path / f"new/{i}.tif", U8[:2], **CHANNELS["imagej"])
    node = {"_target_": "svae.datasets.Images", "path": str(tmp_path / "new")}
    run = {"dataset": node | {"channel": 1}, "model": {"image_shape": [1, 8, 10]}}
    OmegaConf.save(OmegaConf.create(run), tmp_path / "config.yaml")
    other = {"run": str(tmp_path), "dataset": node | {"channel": None}}
    _, images = images_to_encode(OmegaConf.create(other), given=set())
    expected = channels_first(U8[[1] * 3]) / 255
    assert torch.equal(images[torch.arange(3)]["image"], expected)


def test_thumbnails_in_a_tiff_do_not_count(tmp_path):
    for i in range(3):
        with tifffile.TiffWriter(tmp_path / f"{i}.tif") as tiff:
            tiff.write(U8[i], photometric="minisblack")
            tiff.write(U8[i, ::2, ::2], photometric="minisblack", subfiletype=1)
    assert torch.equal(raw(tmp_path), channels_first(U8[:3]))


def test_row_0_is_the_top_whatever_the_camera_noted(tmp_path):
    upright = np.zeros((8, 10), np.uint8)
    upright[0, 2:4] = 200
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        # Pillow's own transposition is the reference.
        stored = Image.fromarray(upright)
        stored.save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        tiff = tmp_path / "b.tif"
        extra = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tiff, upright, photometric="minisblack", extratags=extra)
        for page in raw(tmp_path):
            assert np.array_equal(page[0], expected), orientation
    (tmp_path / "b.tif").unlink()
    Image.fromarray(upright).save(tmp_path / "a.png")
    assert raw(tmp_path)[0, 0, 0, 2] == 200


def test_transparent_pixels_are_laid_over_black(tmp_path):
    rgba = np.concatenate([RGB[0], np.full((8, 10, 1), 255, np.uint8)], axis=2)
    half = rgba.copy()
    half[..., 3] = 51  # a fifth
    save(tmp_path / "0.png", rgba)
    save(tmp_path / "1.png", half)
    tifffile.imwrite(tmp_path / "2.tif", half, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "3.tif", half, photometric="rgb", extrasamples=["assocalpha"])
    opaque, png, tiff, premultiplied = raw(tmp_path)
    expected = channels_first(RGB[:1])[0]
    assert torch.equal(opaque, expected)
    assert_close(png, expected / 5, atol=0.5, rtol=0)
    assert torch.equal(tiff, png)
    assert torch.equal(premultiplied, expected)


def test_palettes_are_expanded(tmp_path):
    image = Image.fromarray(U8[0] % 4, mode=None)
    paletted = Image.new("P", image.size)
    paletted.putdata(list((U8[0] % 4).ravel()))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], np.uint8)
    paletted.putpalette(colours.ravel().tolist())
    paletted.save(tmp_path / "0.png")
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, :4] = colours.T.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "1.tif", U8[0] % 4, photometric="palette", colormap=colormap)
    expected = channels_first(colours[U8[0] % 4][np.newaxis])[0]
    for found in raw(tmp_path):
        assert torch.equal(found, expected)


def test_few_bits_and_white_zeros_in_a_tiff(tmp_path):
    black = U8[0] > 100
    tifffile.imwrite(tmp_path / "0.tif", black, photometric="minisblack")
    tifffile.imwrite(tmp_path / "1.tif", ~black, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "2.tif", 255 - U8[0], photometric="miniswhite")
    bits, white_bits, grey = raw(tmp_path)
    assert torch.equal(bits, channels_first(black[np.newaxis])[0] * 255)
    assert torch.equal(white_bits, bits)
    assert torch.equal(grey, channels_first(U8[:1])[0])


def test_jpegs_are_read(tmp_path):
    smooth = np.linspace(0, 255, 80).reshape(8, 10).astype(np.uint8)
    save(tmp_path / "a.jpeg", smooth, quality=95)
    save(tmp_path / "b.JPG", smooth, quality=95)
    assert_close(raw(tmp_path)[0, 0], torch.from_numpy(smooth).float(), atol=4, rtol=0)


# ---- order, labels, splits


def test_the_order_is_natural_and_other_files_do_not_count(tmp_path):
    names = ["a/img10.png", "a/img2.png", "B/x.png", "a/IMG1.tif", "img3.png", "a10/0.png"]
    for name in [*names, ".hidden.png", ".git/a.png"]:
        save(tmp_path / name, U8[0])
    for name in ("Thumbs.db", ".DS_Store", "a/notes.txt", "labels.csv"):
        (tmp_path / name).write_text("no picture")
    data = Images(str(tmp_path))
    data.setup()
    expected = ["a/IMG1.tif", "a/img2.png", "a/img10.png", "a10/0.png", "B/x.png", "img3.png"]
    assert data.file_names == expected
    assert data.num_labels is None  # one file lies in no sub-folder


def test_sub_folders_are_labels(tmp_path):
    for i, folder in enumerate(["10", "2/deep", "2", "cat"]):
        folder_of(tmp_path / folder, U8[i : i + 2])
    data = Images(str(tmp_path))
    batch = data.everything()[torch.arange(8)]
    assert data.label_names == ["2", "10", "cat"]
    assert data.num_labels == 3
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert "label" not in Images(str(tmp_path), labels="none").everything()[torch.arange(2)]
    # What all images share tells nothing.
    assert "label" not in Images(str(tmp_path / "2")).everything()[torch.arange(2)]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([7, 3, 3, 7, 10, 3], ["3", "7", "10"], [1, 0, 0, 1, 2, 0]),
        (["b", "a10", "a2", "b", "b", "a2"], ["a2", "a10", "b"], [2, 1, 0, 2, 2, 0]),
    ],
)
def test_labels_of_arrays_and_files(tmp_path, labels, names, numbers):
    npz = array_of(tmp_path / "a.npz", images=U8, labels=np.array(labels))
    array_of(tmp_path / "labels.npy", np.array(labels))
    array_of(tmp_path / "labels.npz", y=np.array(labels))
    (tmp_path / "one.csv").write_text("\n".join(map(str, ["label", *labels])))
    folder = folder_of(tmp_path / "pictures", U8)
    lines = [f"{i}.png;{label}" for i, label in reversed(list(enumerate(labels)))]
    (tmp_path / "two.csv").write_text(
        "\n".join(["file;label", *lines, "other.png;9", ""]), encoding="utf-8-sig"
    )
    files = ("labels.npy", "labels.npz", "one.csv", "two.csv")
    for data in [
        Images(npz),
        *(Images(folder, labels=str(tmp_path / name)) for name in files),
    ]:
        data.setup()
        assert data.label_names == names
        for split in data.splits.values():
            assert split["label"].tolist() == [numbers[i] for i in split["index"]]


def test_splits_depend_on_the_images_and_the_seed_alone(tmp_path):
    images = random.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    path = array_of(tmp_path / "a.npy", images)

    def splits(**options):
        data = Images(path, **options)
        data.setup()
        return {name: split["index"].tolist() for name, split in data.splits.items()}

    one = splits(val_fraction=0.2)
    assert {name: len(rows) for name, rows in one.items()} == {"train": 28, "val": 8, "test": 4}
    assert sorted(row for rows in one.values() for row in rows) == list(range(40))
    assert one == splits(val_fraction=0.2, resize=4, normalize="standard")
    assert one != splits(val_fraction=0.2, seed=2)


def splits_by_file(tmp_path, pages, caplog, **options):
    """The images of a folder of stacks with so many pages, and the files in each split."""
    for i, count in enumerate(pages):
        stack = random.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{i}.tif", stack, photometric="minisblack")
    data = Images(str(tmp_path), **options)
    with caplog.at_level(logging.INFO, "svae.datasets.images"):
        data.setup()
    index = torch.cat([split["index"] for split in data.splits.values()])
    assert index.sort().values.tolist() == list(range(sum(pages)))
    known = data.everything().tensors["split"]
    for number, split in enumerate(data.splits.values()):
        assert (known[split["index"]] == number).all()
    files = {
        name: {data.file_names[i].partition("[")[0] for i in split["index"].tolist()}
        for name, split in data.splits.items()
    }
    return data, files


def test_the_pages_of_a_file_are_in_one_split(tmp_path, caplog):
    data, files = splits_by_file(tmp_path, [5] * 18 + [30, 1], caplog, in_memory=False)
    assert not caplog.messages
    assert not files["train"] & (files["val"] | files["test"])
    assert not files["val"] & files["test"]
    assert "18.tif" in files["train"]  # it is more than is held back
    for name in ("val", "test"):
        assert 5 <= len(data.splits[name]["index"]) <= 12
    # Another seed, other files.
    other = Images(str(tmp_path), seed=2)
    other.setup()
    assert not torch.equal(other.splits["val"]["index"], data.splits["val"]["index"])


@pytest.mark.parametrize(
    ("pages", "message"), [([20], "the pages of 0.tif are"), ([20] * 3, "0.tif and 2 more are")]
)
def test_of_few_large_stacks_it_is_told_that_pages_are_in_all_splits(
    tmp_path, caplog, pages, message
):
    data, _ = splits_by_file(tmp_path, pages, caplog)
    assert [len(split["index"]) for split in data.splits.values()] == [
        sum(pages) * 8 // 10,
        sum(pages) // 10,
        sum(pages) // 10,
    ]
    assert message in caplog.text
    assert len(caplog.messages) == 1


# ---- crop, resize, colour


def test_crop_is_central(tmp_path):
    found = raw(folder_of(tmp_path, U8), crop=6)
    assert torch.equal(found, channels_first(U8[:, 1:7, 2:8]))


def test_resize_crops_or_pads(tmp_path):
    wide = random.integers(0, 256, (3, 4, 8), dtype=np.uint8)
    path = folder_of(tmp_path, wide)
    # Sides that fit already are not resampled.
    assert torch.equal(raw(path, resize=4), channels_first(wide[:, :, 2:6]))
    padded = raw(path, resize=8, fit="pad")
    assert torch.equal(padded[:, :, 2:6], channels_first(wide))
    for image, made in zip(wide, padded, strict=True):
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (made[0, [0, 1, 6, 7]] == float(np.median(border))).all()
    assert raw(path, resize=6, fit="pad").shape == (3, 1, 6, 6)


def test_resizing_keeps_the_mean_of_what_is_finer_than_a_pixel(tmp_path):
    fine = np.indices((3, 64, 64)).sum(0) % 2 * 200
    found = raw(folder_of(tmp_path, fine.astype(np.uint8)), resize=8)
    assert_close(found[:, :, 2:-2, 2:-2], torch.full((3, 1, 4, 4), 100.0), atol=2, rtol=0)


def test_images_of_all_sizes_are_resized_to_one(tmp_path):
    for i, shape in enumerate([(20, 10), (10, 20), (16, 16), (9, 33)]):
        save(tmp_path / f"{i}.png", random.integers(0, 256, shape, dtype=np.uint8))
    for fit in ("crop", "pad"):
        data = Images(str(tmp_path), resize=16, fit=fit)
        data.setup()
        assert data.image_shape == (1, 16, 16)
        # Antialiasing may not leave the range, which a Bernoulli likelihood would refuse.
        for split in data.splits.values():
            assert split["image"].min() >= 0
            assert split["image"].max() <= 1


def test_colours_are_converted(tmp_path):
    save(tmp_path / "0.png", RGB[0])
    save(tmp_path / "1.png", U8[0])
    expected = channels_first(RGB[:1]) * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = raw(tmp_path, color="grey")
    assert_close(grey[:1], expected.sum(1, keepdim=True))
    assert torch.equal(grey[1:], channels_first(U8[:1]))
    rgb = raw(tmp_path, color="rgb")
    assert torch.equal(rgb[:1], channels_first(RGB[:1]))
    assert torch.equal(rgb[1:], channels_first(U8[:1]).repeat(1, 3, 1, 1))


# ---- normalisation

MANY = random.integers(1000, 5000, (20, 8, 8), dtype=np.uint16)


def train_of(data):
    data.setup()
    return data.splits["train"]["image"]


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (U8, "depth"),
        (U8 > 100, "depth"),
        (U8 / np.float32(255), "none"),
        (U8.astype(np.float32), "range"),
        (U8 / 255 - 0.1, "range"),
        (U16, "range"),
        (U16.astype(np.int16), "range"),
        (U8.view(np.int8), "range"),
    ],
)
def test_auto(tmp_path, images, kind):
    path = array_of(tmp_path / "a.npy", images)
    data = Images(path)
    found = pixels(data)
    assert data.found()["normalize"] == kind
    assert found.min() >= 0
    assert found.max() <= 1
    if kind == "depth":
        assert torch.equal(found, channels_first(images) / (255 if images.dtype != bool else 1))


def test_depth_divides_by_the_largest_value_of_the_type(tmp_path):
    path = array_of(tmp_path / "a.npy", U16)
    assert torch.equal(pixels(Images(path, normalize="depth")), channels_first(U16) / 65535)


def test_range_is_that_of_the_training_images_without_hot_pixels(tmp_path):
    images = random.integers(1000, 5000, (200, 8, 8), dtype=np.uint16)
    images[::50, 3, 3] = 65535
    data = Images(array_of(tmp_path / "a.npy", images), normalize="range")
    train = train_of(data)
    rows = data.splits["train"]["index"]
    low, high = np.quantile(images[rows], (0.001, 0.999))
    assert high < 6000
    expected = (channels_first(images)[rows] - low) / (high - low)
    assert_close(train, expected.clamp(0, 1).float())
    assert train.min() == 0
    assert train.max() == 1


def test_range_of_a_few_bright_pixels_on_black(tmp_path):
    images = np.zeros((10, 100, 100), np.uint16)
    images[:, 50, 50] = 400
    for normalize in ("range", "image_range"):
        found = pixels(Images(array_of(tmp_path / "a.npy", images), normalize=normalize))
        assert torch.equal(found, channels_first(images) / 400)


def test_a_sample_of_the_pixels_decides_where_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("svae.datasets.images.SAMPLE", 4000)
    images = random.normal(50, 10, (40, 64, 64)).astype(np.float32)
    path = array_of(tmp_path / "a.npy", images)
    one, again = Images(path, normalize="standard"), Images(path, normalize="standard")
    one.setup()
    again.setup()
    assert one.found() == again.found()
    assert one.found()["offset"] == pytest.approx(50, abs=1)
    assert one.found()["offset"] != pytest.approx(images.mean(), abs=1e-6)
    assert one.found()["scale"] == pytest.approx(10, abs=1)


def test_standard(tmp_path):
    path = array_of(tmp_path / "a.npy", MANY)
    train = train_of(Images(path, normalize="standard"))
    assert_close(train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(train.std(correction=0), torch.tensor(1.0))


def test_each_image_by_itself(tmp_path):
    images = np.stack([np.float32(10) ** i * (U8[i] + np.float32(3)) for i in range(6)])
    path = array_of(tmp_path / "a.npy", images)
    found = pixels(Images(path, normalize="image_range"))
    assert_close(found.amin((1, 2, 3)), torch.zeros(6))
    assert_close(found.amax((1, 2, 3)), torch.ones(6))
    found = pixels(Images(path, normalize="image_standard"))
    assert_close(found.mean((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    assert_close(found.std((1, 2, 3), correction=0), torch.ones(6))


@pytest.mark.parametrize("normalize", ["depth", "range", "image_range", "none", "standard"])
def test_invert(tmp_path, normalize):
    path = array_of(tmp_path / "a.npy", MANY)
    plain = pixels(Images(path, normalize=normalize))
    inverted = pixels(Images(path, normalize=normalize, invert=True))
    assert torch.equal(inverted, -plain if normalize == "standard" else 1 - plain)


@pytest.mark.parametrize(
    ("images", "normalize"),
    [(MANY, "auto"), (MANY, "standard"), (U8, "auto"), (U8 / 255, "auto"), (MANY, "image_range")],
)
def test_what_was_found_reads_the_same_images_alike(tmp_path, images, normalize):
    path = array_of(tmp_path / "a.npy", images)
    first = Images(path, normalize=normalize)
    first.setup()
    found = first.found()
    again = Images(**found)
    again.setup()
    assert again.found() == found
    for name in SPLITS:
        assert torch.equal(first.splits[name]["image"], again.splits[name]["image"])
    # Of other images, nothing is looked at.
    others = {"path": array_of(tmp_path / "b.npy", images[:2]), "contents": None}
    other = Images(**found | others)
    assert torch.equal(pixels(other), pixels(first)[:2])


def test_paths_are_found_from_elsewhere(tmp_path, monkeypatch):
    folder_of(tmp_path / "pictures", U8)
    (tmp_path / "labels.csv").write_text("\n".join("ababab"))
    monkeypatch.chdir(tmp_path)
    data = Images("pictures", labels="labels.csv")
    assert data.found() == {}
    data.setup()
    monkeypatch.chdir("/")
    Images(**data.found()).setup()
    monkeypatch.setenv("HOME", str(tmp_path))
    Images("~/pictures", labels="~/labels.csv").setup()


# ---- everything


@pytest.fixture(params=["folder", "stack", "npy", "npz", "compressed"])
def source(request, tmp_path):
    images = random.integers(0, 2**16, (30, 8, 10), dtype=np.uint16)
    labels = np.arange(30) % 3
    if request.param == "folder":
        for i, image in enumerate(images):
            save(tmp_path / f"pictures/{i % 3}/{i}.png", image)
        return str(tmp_path / "pictures")
    if request.param == "stack":
        tifffile.imwrite(tmp_path / "a.tif", images, photometric="minisblack")
        return str(tmp_path / "a.tif")
    if request.param == "npy":
        return array_of(tmp_path / "a.npy", images)
    write = np.savez if request.param == "npz" else np.savez_compressed
    write(tmp_path / "a.npz", images=images, labels=labels)
    return str(tmp_path / "a.npz")


@pytest.mark.parametrize("after_setup", [False, True])
def test_everything_is_what_was_read(source, after_setup):
    trained = Images(source, resize=6)
    trained.setup()
    data = trained if after_setup else Images(source, resize=6)
    dataset = data.everything()
    assert len(dataset) == 30
    assert data.found() == trained.found()
    assert data.image_shape == trained.image_shape == (1, 6, 6)
    for number, split in enumerate(trained.splits.values()):
        batch = dataset[split["index"]]
        assert (batch.pop("split") == number).all()
        assert batch.keys() == split.keys()
        for name in split:
            assert torch.equal(batch[name], split[name])


def test_everything_goes_to_other_processes_without_its_pixels(source):
    dataset = Images(source).everything()
    packed = pickle.dumps(dataset)
    assert len(packed) < 6000
    rows = torch.arange(30)
    assert torch.equal(pickle.loads(packed)[rows]["image"], dataset[rows]["image"])


def test_everything_is_read_in_workers(tmp_path):
    dataset = Images(folder_of(tmp_path, U8)).everything()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=[torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])],
        num_workers=1,
        multiprocessing_context="spawn",
    )
    batches = [batch["image"] for batch in loader]
    assert torch.equal(torch.cat(batches), channels_first(U8) / 255)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    folder_of(tmp_path, U8)
    read, original = [], PictureFiles.read
    monkeypatch.setattr(
        PictureFiles, "read", lambda self, row: read.append(row) or original(self, row)
    )
    dataset = Images(str(tmp_path)).everything()
    assert read == [0]  # its shape and type
    batch = dataset[torch.tensor([4, 2])]
    assert sorted(read[1:]) == [2, 4]
    assert batch["index"].tolist() == [4, 2]
    assert torch.equal(batch["image"], channels_first(U8[[4, 2]]) / 255)
    # Where the pixels decide about their normalization, all are looked at once.
    read.clear()
    Images(str(tmp_path), normalize="range").everything()
    assert sorted(set(read)) == list(range(6))


def test_arrays_are_mapped(tmp_path):
    for suffix in (".npy", ".npz"):
        data = Images(array_of(tmp_path / f"a{suffix}", U8))
        data.everything()
        assert isinstance(data._opened().source._pixels, np.memmap)


# ---- in memory or not


@pytest.mark.parametrize("normalize", ["depth", "range", "image_standard"])
def test_a_training_sees_the_same_images_wherever_they_are(source, normalize):
    options = {"resize": 6, "normalize": normalize, "batch_size": 7}
    held = Images(source, in_memory=True, **options)
    read = Images(source, in_memory=False, **options)
    for data in (held, read):
        data.setup()
    assert held.found() == read.found()
    assert held.splits.keys() == read.splits.keys()
    for split, of_read in read.splits.items():
        assert held.splits[split].keys() == of_read.keys() | {"image"}
        both = list(zip(held.loader(split), read.loader(split), strict=True))
        assert sum(len(a["index"]) for a, _ in both) == len(of_read["index"]) > 0
        for a, b in both:
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_images_are_held_if_they_take_little_of_the_memory(tmp_path, monkeypatch, caplog):
    path = folder_of(tmp_path, U8)
    needed = 6 * 8 * 10 * 4

    def held(memory, processes=1, **options):
        here = Place(1, processes, "127.0.0.1", 0) if processes > 1 else None
        monkeypatch.setattr("svae.datasets.images.memory_at_hand", lambda accelerator: memory)
        monkeypatch.setattr("svae.datasets.images.place", lambda: here)
        data = Images(path, **options)
        data.setup()
        return isinstance(data.sources["train"], InMemory)

    with caplog.at_level(logging.INFO):
        assert held(4 * needed)
        assert not caplog.messages
        assert not held(4 * needed - 1)
        assert "the 6 images in" in caplog.text
    assert held(8 * needed, processes=2)
    assert not held(8 * needed - 1, processes=2)
    assert held(needed, in_memory=True)
    assert not held(2**40, in_memory=False)
    with pytest.raises(ValueError, match=r"dataset.in_memory: the 6 images in .* expected auto"):
        held(needed - 1, in_memory=True)


def test_of_several_processes_the_first_looks_at_all(tmp_path, monkeypatch):
    images = U8.copy()
    images[3] = 5
    data = Images(folder_of(tmp_path, images), in_memory=False)
    monkeypatch.setattr("svae.datasets.images.following", lambda: True)
    data.setup()
    monkeypatch.setattr("svae.datasets.images.following", lambda: False)
    with pytest.raises(ValueError, match=r"^3\.png: it is constant"):
        Images(str(tmp_path), in_memory=False).setup()


def test_fewer_images_than_splits_can_be_encoded(tmp_path):
    batch = Images(folder_of(tmp_path, U8[:1])).everything()[torch.arange(1)]
    assert batch.keys() == {"image", "index"}


# ---- bad input


def write_mixed_sizes(folder):
    save(folder / "4.png", U8[0, :5])


def write_mixed_colours(folder):
    save(folder / "4.png", RGB[0])


def write_mixed_types(folder):
    save(folder / "4.png", U16[0])


def write_corrupt(folder):
    content = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(content[: len(content) // 2])


def write_two_corrupt(folder):
    write_corrupt(folder)
    (folder / "5.png").write_bytes(b"")


def write_no_picture(folder):
    (folder / "4.png").write_text("a web page that says 404")


def write_nan(folder):
    image = U8[0].astype(np.float32)
    image[2, 3] = np.nan
    image[0, 0] = np.inf
    save(folder / "4.tif", image)


def write_constant(folder):
    save(folder / "4.png", np.full((8, 10), 12, np.uint8))


def write_channels(folder):
    tifffile.imwrite(
        folder / "4.tif", np.zeros((8, 10, 2), np.uint8), photometric="minisblack",
        planarconfig="contig",
    )  # fmt: skip


def write_volume(folder):
    volume = np.zeros((16, 16, 16), np.uint8)
    tifffile.imwrite(folder / "4.tif", volume, photometric="minisblack", volumetric=True)


def write_truncated_stack(folder):
    tifffile.imwrite(folder / "4.tif", U8, photometric="minisblack", compression="lzw")
    content = (folder / "4.tif").read_bytes()
    (folder / "4.tif").write_bytes(content[: int(0.7 * len(content))])


#: Only who looks at all images can count them.
TWO = r".*\(1 other image is unusable as well\)"

UNUSABLE = {
    write_corrupt: r"^4\.png: it cannot be read \(.*truncated.*mend or remove it.*"
    r"dataset\.skip_unusable=true$",
    write_two_corrupt: r"^4\.png: it cannot be read" + TWO,
    write_no_picture: r"^4\.png: it cannot be read \(cannot identify image file\)",
    write_nan: r"^4\.tif: 2 of its 80 pixels are NaN or infinite",
    write_constant: r"^4\.png: it is constant: every pixel is 12",
    write_channels: r"^4\.tif: expected 1 or 3 channels, got 2",
    write_volume: r"^4\.tif: expected a flat picture, got one of shape \(16, 16, 16\)",
    write_truncated_stack: r"^4\.tif(\[\d\])?: the file is damaged or truncated",
}
MIXED = {
    write_mixed_sizes: r"^0\.png is 10 x 8 and 4\.png 10 x 5 pixels.*dataset\.resize=64",
    write_mixed_colours: r"^0\.png is grey and 4\.png RGB; .*dataset\.color=grey",
    write_mixed_types: r"^0\.png is uint8 and 4\.png uint16, .*dataset\.normalize=image_range",
}


@pytest.mark.parametrize("write", [*UNUSABLE, *MIXED])
def test_one_bad_image_among_many(tmp_path, write):
    folder_of(tmp_path, U8)
    write(tmp_path)
    message = (UNUSABLE | MIXED)[write]
    with pytest.raises(ValueError, match=message) as error:
        Images(str(tmp_path)).setup()
    assert "\n" not in str(error.value)
    data = Images(str(tmp_path)).everything()
    with pytest.raises(ValueError, match=message.removesuffix(TWO)):
        data[torch.arange(len(data))]


@pytest.mark.parametrize("write", MIXED)
def test_images_that_do_not_fit_are_not_skipped(tmp_path, write):
    folder_of(tmp_path, U8)
    write(tmp_path)
    with pytest.raises(ValueError, match=MIXED[write]):
        Images(str(tmp_path), skip_unusable=True).setup()


@pytest.mark.parametrize("write", UNUSABLE)
def test_unusable_images_are_skipped_on_request(tmp_path, write, caplog):
    path = folder_of(tmp_path, U8)
    write(tmp_path)
    with caplog.at_level(logging.WARNING, "svae.datasets.images"):
        data = Images(path, skip_unusable=True, normalize="image_range")
        data.setup()
    left_out = [record.getMessage().split(" is left out: ")[0] for record in caplog.records]
    assert left_out
    assert all(name.startswith(("4.", "5.")) for name in left_out)
    index = sorted(torch.cat([split["index"] for split in data.splits.values()]).tolist())
    files = [data.file_names[i] for i in index]
    assert sorted(files + left_out) == sorted(data.file_names)
    fresh = Images(path, skip_unusable=True, normalize="image_range").everything()
    assert fresh.tensors["index"].tolist() == index
    batch = fresh[torch.arange(len(fresh))]
    for number, split in enumerate(data.splits.values()):
        for row, image in zip(split["index"], split["image"], strict=True):
            place = index.index(row)
            assert torch.equal(batch["image"][place], image)
            assert batch["split"][place] == number


def test_the_first_image_may_be_the_bad_one(tmp_path):
    folder_of(tmp_path, U8)
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^0\.png: the file is empty"):
        Images(str(tmp_path)).setup()
    with pytest.raises(ValueError, match=r"^0\.png: the file is empty"):
        Images(str(tmp_path)).everything()
    assert len(Images(str(tmp_path), skip_unusable=True).everything()) == 5


def test_no_readable_image(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"nothing")
    for skip in (False, True):
        message = r"none of the 3 images in .* can be used; 0\.jpg: it cannot be read"
        with pytest.raises(ValueError, match=message):
            Images(str(tmp_path), skip_unusable=skip).setup()


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    folder_of(tmp_path, U8)

    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    # The tests may run as root, who may read everything.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(ValueError, match=r"can be used; 0\.png: no permission to read it"):
            Images(str(tmp_path)).setup()
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied", path))
        )
        with pytest.raises(PermissionError, match=f"{tmp_path} cannot be read"):
            Images(str(tmp_path)).setup()


def wrong_path(tmp_path, what):
    """A path that no images can be read from."""
    (tmp_path / "empty").mkdir()
    save(tmp_path / "one.png", U8[0])
    (tmp_path / "cells.czi").write_bytes(b"x")
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.npz").write_text("text")
    np.save(tmp_path / "half.npy", U8)
    content = (tmp_path / "half.npy").read_bytes()
    (tmp_path / "half.npy").write_bytes(content[: len(content) // 2])
    large = random.integers(0, 256, (3, 300, 300), dtype=np.uint8)
    np.savez_compressed(tmp_path / "damaged.npz", images=large)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[200_000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(content)
    folder_of(tmp_path / "two", U8[:2])
    return str(tmp_path / what)


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("nowhere", FileNotFoundError, "dataset.path: .*nowhere does not exist"),
        ("empty", ValueError, r"no picture in .*empty .*\.png, \.jpg, \.jpeg, \.tif, \.tiff"),
        ("one.png", ValueError, "one.png is a single picture; expected a folder"),
        ("cells.czi", ValueError, r"another kind \(\.czi\); expected a folder"),
        ("text.npy", ValueError, "text.npy: not a whole .npy file"),
        ("text.npz", ValueError, "text.npz: not a whole .npz file"),
        ("half.npy", ValueError, "half.npy: it is damaged"),
        ("damaged.npz", ValueError, "damaged.npz: its array 'images' is damaged"),
        ("two", ValueError, "two: expected at least 3 images, .*got 2"),
    ],
)
def test_paths_without_images(tmp_path, what, kind, message):
    with pytest.raises(kind, match=message) as error:
        Images(wrong_path(tmp_path, what)).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((6, 64)), r"expected the shape \(N, H, W\).*got \(6, 64\)"),
        (np.zeros((6, 2, 8, 8, 3)), r"expected the shape .*got \(6, 2, 8, 8, 3\)"),
        (np.zeros((6, 8, 8, 4)), r"expected 1 or 3 channels.*got \(6, 8, 8, 4\)"),
        (np.zeros((6, 3, 3, 3)), r"the second or the last axis may be .*PNG or TIFF"),
        (np.zeros((64, 64, 3)), "looks like a single picture"),
        (np.zeros((0, 8, 8)), "expected images, got the shape"),
        (np.zeros((6, 8, 8), complex), "integers or floats, got complex numbers"),
        (np.zeros((6, 8, 8), "U3"), "integers or floats, got words"),
        (np.empty((6, 8, 8), object), "integers or floats, got Python objects"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    for name in ("a.npy", "a.npz"):
        path = tmp_path / name
        np.save(path, array) if name == "a.npy" else np.savez(path, array)
        with pytest.raises(ValueError, match=message) as error:
            Images(str(path)).setup()
        assert str(path) in str(error.value)


def test_the_array_of_an_npz(tmp_path):
    several = tmp_path / "several.npz"
    np.savez(several, a=U8, b=U16, names=np.array(list("abcdef")))
    with pytest.raises(ValueError, match=r"a \(uint8 of shape \(6, 8, 10\)\), b .*dataset.array"):
        Images(str(several)).setup()
    assert torch.equal(raw(several, array="b"), channels_first(U16))
    with pytest.raises(ValueError, match=r"has no 'c'; it has a .*, b "):
        Images(str(several), array="c").setup()
    with pytest.raises(ValueError, match=r"dataset\.array=null"):
        Images(folder_of(tmp_path / "pictures", U8), array="c").setup()
    np.savez(several, a=U8, x=U16, names=np.array(list("abcdef")))
    assert torch.equal(raw(several), channels_first(U16))
    np.savez(several, a=U8, x=np.arange(6))
    assert torch.equal(raw(several), channels_first(U8))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "absent.csv does not exist"),
        ("l.txt", "a", "expected auto, none, or a .csv"),
        ("l.csv", "a\nb\nc", "l.csv has 3 labels for 6 images"),
        ("l.csv", "0.png,a\n2.png,b", r"no label for 1\.png and 3 other images"),
        ("l.csv", "0.png,a,b\n", "got lines of 3 columns"),
        ("l.csv", "", "got lines of no columns"),
        ("l.csv", "0.png,a\n1.png,\n", r"l.csv, line 2: the label of 1\.png is empty"),
        ("l.csv", "\n0.png,a\n\n1.png, \n", r"l.csv, line 4: the label of 1\.png is empty"),
        ("l.csv", "label\na\n\nb\nc\nd\ne\n", r"l.csv, line 3: the label is empty"),
        ("l.csv", "0.png,a\n1.png,b\n0.png,b", r"l.csv, line 3: 0\.png is b, and a before"),
        ("l.npy", np.arange(5), "l.npy has 5 labels for 6 images"),
        ("l.npy", np.zeros((6, 2), int), r"words of shape \(N,\), got int64 of shape \(6, 2\)"),
        ("l.npy", np.zeros(6), r"got float64 of shape \(6,\)"),
        ("l.npy", np.empty(6, object), "got Python objects"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"dataset.labels: .*{message}"):
        Images(folder_of(tmp_path / "pictures", U8), labels=str(path)).setup()


def test_a_file_may_be_named_twice_with_one_label_and_others_with_none(tmp_path):
    lines = [f"{i}.png,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "l.csv").write_text("\n".join([*lines, lines[0], "other.png,", "", ",", ""]))
    data = Images(folder_of(tmp_path / "pictures", U8), labels=str(tmp_path / "l.csv"))
    assert data.everything().tensors["label"].tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("names", [["img1", "img2", "img10"], ["b/0", "a/0", "A/1"]])
def test_labels_without_names_of_files_in_no_plain_order(tmp_path, names):
    for i, name in enumerate(names):
        save(tmp_path / f"pictures/{name}.png", U8[i])
    (tmp_path / "one.csv").write_text("a\nb\nc\n")
    np.save(tmp_path / "l.npy", np.arange(3))
    first, plain = ("img2", "img10") if "img2" in names else ("a/0", "A/1")
    for name in ("one.csv", "l.npy"):
        message = (
            f"dataset.labels: .*{name} does not say which picture each label is of, and "
            rf"{first}.png .* {plain}.png .*; expected a .csv with two columns, name and label$"
        )
        with pytest.raises(ValueError, match=message):
            Images(str(tmp_path / "pictures"), labels=str(tmp_path / name)).setup()
    (tmp_path / "two.csv").write_text("".join(f"{name}.png,{name}\n" for name in names))
    data = Images(str(tmp_path / "pictures"), labels=str(tmp_path / "two.csv"))
    numbers = data.everything().tensors["label"]
    assert [f"{data.label_names[i]}.png" for i in numbers] == data.file_names


def test_labels_of_the_pages_of_one_stack_need_no_names(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate([U8] * 2), photometric="minisblack")
    np.save(tmp_path / "l.npy", np.arange(12))
    data = Images(str(tmp_path / "a.tif"), labels=str(tmp_path / "l.npy"))
    assert data.everything().tensors["label"].tolist() == list(range(12))


def test_labels_that_are_no_text(tmp_path):
    path = tmp_path / "l.csv"
    path.write_bytes("0.png,µ".encode("latin-1"))
    with pytest.raises(ValueError, match=r"l\.csv is not UTF-8 text"):
        Images(folder_of(tmp_path / "pictures", U8), labels=str(path)).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "write dataset.path=FOLDER"),
        ({"channel": -1}, "channel: expected a whole number of at least 0, got -1"),
        ({"channel": "green"}, "channel: expected a number from 0, all or null, got 'green'"),
        ({"crop": 1}, "crop: expected a whole number of at least 2"),
        ({"resize": 0}, "resize: expected a whole number of at least 2"),
        ({"fit": "stretch"}, "fit: expected one of crop, pad, got 'stretch'"),
        ({"color": "blue"}, "color: expected one of keep, grey, rgb"),
        ({"normalize": "max"}, "normalize: expected one of auto, depth, range"),
        ({"offset": 1.0}, "offset, scale: expected both or none, got 1.0 and None"),
        ({"offset": 0.0, "scale": 0.0, "normalize": "range"}, "scale: expected a number above 0"),
        ({"offset": float("nan"), "scale": 1.0, "normalize": "range"}, "offset: expected a num"),
        ({"offset": 0.0, "scale": 1.0}, "expected one of depth, range, standard .*got 'auto'"),
        ({"val_fraction": 0.0}, "val_fraction: expected a fraction"),
        ({"test_fraction": 0.95}, "expected less than 1 together"),
        ({"batch_size": 0}, "batch_size"),
        ({"in_memory": "yes"}, "in_memory: expected auto, true or false, got 'yes'"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Images(**{"path": "anywhere"} | options)


def test_options_that_do_not_fit_the_images(tmp_path):
    path = folder_of(tmp_path / "pictures", U8)
    with pytest.raises(ValueError, match=r"dataset.crop: .* the 8 pixels of 0.png.*, got 9"):
        Images(path, crop=9).setup()
    floats = array_of(tmp_path / "a.npy", U8 / 255)
    with pytest.raises(ValueError, match=r"depth divides integers .* a.npy\[0\] holds float64"):
        Images(floats, normalize="depth").setup()
    negative = array_of(tmp_path / "b.npy", U8.astype(np.int16) - 5)
    with pytest.raises(ValueError, match=r"depth expects pixels from 0 to 32767, got -"):
        Images(negative, normalize="depth").setup()


def test_what_is_constant_only_in_its_middle(tmp_path):
    images = U8.copy()
    images[2, 2:6, 3:7] = 9
    with pytest.raises(ValueError, match=r"^2\.png: it is constant"):
        Images(folder_of(tmp_path, images), crop=4, normalize="image_range").setup()


# ---- real ones


def test_galaxies():
    path = Path(os.environ.get("SVAE_DATA_DIR", "")) / "galaxies" / "galaxy_zooniverse_128.npz"
    if not path.is_file():
        pytest.skip("SVAE_DATA_DIR has no galaxies")
    data = Images(str(path), resize=64)
    data.setup()
    assert data.image_shape == (3, 64, 64)
    assert sum(len(split["index"]) for split in data.splits.values()) == 392
    assert data.found()["normalize"] == "depth"
    with np.load(path) as archive:
        mean = archive["images"].mean() / 255
    assert data.splits["train"]["image"].mean().item() == pytest.approx(mean, rel=0.05)
