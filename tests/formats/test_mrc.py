import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from svae.formats.mrc import MODES, read_header, stack_header, write_stack

TYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def pixels(count: int = 3, height: int = 4, width: int = 6) -> np.ndarray:
    """Whole numbers, no two alike, which every mode can hold."""
    return np.arange(count * height * width, dtype=np.float32).reshape(count, height, width)


def by_hand(path: Path, images: np.ndarray, mode: int, order: str, extended: bytes = b"") -> None:
    """A stack whose header is packed number by number, in either byte order."""
    count, height, width = images.shape
    header = bytearray(1024)
    struct.pack_into(
        f"{order}10i", header, 0, width, height, count, mode, 0, 0, 0, width, height, 1
    )
    struct.pack_into(f"{order}3f", header, 40, 1.5 * width, 1.5 * height, 1.5)
    struct.pack_into(f"{order}i", header, 92, len(extended))
    header[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    body = images.astype(np.dtype(TYPES[mode]).newbyteorder(order)).tobytes()
    path.write_bytes(bytes(header) + extended + body)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_either_byte_order_is_read(tmp_path: Path, mode: int, order: str):
    path = tmp_path / "stack.mrcs"
    by_hand(path, pixels(), mode, order, extended=b"x" * 80)

    header = read_header(path)

    assert (header.count, header.height, header.width) == (3, 4, 6)
    assert header.pixel_size == pytest.approx(1.5)
    np.testing.assert_array_equal(header.map().astype(np.float32), pixels())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", [0, 2])
def test_the_byte_order_is_found_without_a_machine_stamp_or_despite_it(
    tmp_path: Path, mode: int, order: str
):
    path = tmp_path / "stack.mrcs"
    by_hand(path, pixels(), mode, order)
    content = bytearray(path.read_bytes())
    for stamp in (b"\0\0\0\0\0\0\0\0", b"MAP " + (b"\x11\x11" if order == "<" else b"\x44\x44")):
        content[208 : 208 + len(stamp)] = stamp
        path.write_bytes(content)
        np.testing.assert_array_equal(read_header(path).map().astype(np.float32), pixels())


def test_bytes_are_signed_unless_imod_says_otherwise(tmp_path: Path):
    path = tmp_path / "stack.mrcs"
    by_hand(path, pixels() - 3, 0, "<")
    content = bytearray(path.read_bytes())
    assert read_header(path).map().min() == -3

    for flags, smallest in ((1, -3), (0, 0)):
        struct.pack_into("<2i", content, 152, 1146047817, flags)
        path.write_bytes(content)
        assert read_header(path).map().min() == smallest


@pytest.mark.parametrize("mode", MODES)
def test_what_is_written_is_a_valid_image_stack(tmp_path: Path, mode: int):
    path = tmp_path / "new" / "stack.mrcs"
    images = pixels()
    write_stack(path, iter([images[0], images[1:]]), 3, 4, 6, pixel_size=2.5, mode=mode)

    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        assert file.voxel_size.x == pytest.approx(2.5)
        assert file.header.mode == mode
        np.testing.assert_array_equal(file.data.astype(np.float32), images)
        assert file.header.dmean == pytest.approx(images.mean())
        assert file.header.rms == pytest.approx(images.std(), rel=1e-5)
    assert mrcfile.validate(path)
    assert read_header(path).pixel_size == pytest.approx(2.5)
    np.testing.assert_array_equal(read_header(path).map().astype(np.float32), images)
    assert [file.name for file in path.parent.iterdir()] == ["stack.mrcs"]


def test_whole_numbers_are_the_nearest(tmp_path: Path):
    write_stack(tmp_path / "a.mrcs", [np.array([[1.6, -1.6]])], 1, 1, 2, mode=1)
    assert read_header(tmp_path / "a.mrcs").map().tolist() == [[[2, -2]]]


def test_stacks_of_one_image_and_volumes_are_stacks(tmp_path: Path):
    one, volume = tmp_path / "one.mrc", tmp_path / "volume.mrcs"
    with mrcfile.new(one) as file:
        file.set_data(pixels()[0])
    with mrcfile.new(volume) as file:
        file.set_data(pixels())

    np.testing.assert_array_equal(read_header(one).map(), pixels()[:1])
    np.testing.assert_array_equal(read_header(volume).map(), pixels())
    assert read_header(one).pixel_size is None


def test_a_pixel_size_of_exactly_one_is_not_believed(tmp_path: Path):
    path = tmp_path / "stack.mrcs"
    write_stack(path, [pixels()], 3, 4, 6, pixel_size=1.0)
    assert read_header(path).pixel_size is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it holds nothing"),
        (b"x" * 100, "it holds only 100 bytes"),
        (b"\xff" * 2000, "no MRC file, or damaged: of mode -1; expected mode 0, 1, 2, 6, 12"),
        (b"<html>" * 400, "no MRC file"),
        (b"BZh91AY" + bytes(2000), "it is compressed; bunzip2 it first"),
        (stack_header(3, 4, 6) + bytes(2 * 96 + 95), "truncated: .* 3 images of 4x6, .* holds 2"),
        (stack_header(0, 4, 6), "promises 0 images"),
        (
            stack_header(3, 4, 6)[:12] + struct.pack("i", 4) + bytes(2000),
            "an MRC file of mode 4; exp",
        ),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "stack.mrcs"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"stack.mrcs.*{message}") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (pixels(2), {}, "expected 3 images, got 2"),
        (pixels(4), {}, "expected 3 images, got 4"),
        (pixels(3, 4, 5), {}, "expected images of 4x6"),
        (np.where(pixels() == 40, np.nan, pixels()), {}, "nan"),
        (pixels() + 100, {"mode": 0}, "do not fit into int8"),
        (pixels() * 1e6, {"mode": 12}, "do not fit into float16"),
        (pixels(), {"mode": 4}, "mode: expected one of"),
    ],
)
def test_a_stack_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, images: np.ndarray, options: dict[str, int], message: str
):
    path = tmp_path / "stack.mrcs"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        write_stack(path, iter(images), 3, 4, 6, **options)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
