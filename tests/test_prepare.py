import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from tests.helpers import run_command, write_particles

import svae.prepare
from svae.datasets import Particles
from svae.datasets.particle_pixels import Preparation, fourier_crop
from svae.directories import lock, release
from svae.formats.cryosparc import CsTable, read_cs, write_cs
from svae.formats.mrc import write_stack
from svae.formats.particles import ParticleReader, read_particles
from svae.formats.star import read_star, write_star
from svae.prepare.stack import GrowingStack

REAL = Path(os.environ.get("SVAE_DATA_DIR", "")) / "particles"

#: Twelve parts of two images each.
COUNT, SIDE = 24, 16
PART = 2 * SIDE**2


@pytest.fixture(autouse=True)
def in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(svae.prepare, "AT_ONCE", PART)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def star(tmp_path):
    return write_particles(tmp_path / "in", COUNT, SIDE)


def prepare(path, *overrides, output="out"):
    path = f"dataset.path={path}"
    run_command(svae.prepare.main, path, f"output={output}", "progress_bar=false", *overrides)
    return Path(output)


@pytest.fixture
def refused(capfd):
    """The one line that ends a preparation."""

    def run(path, *overrides, output="out"):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            prepare(path, *overrides, output=output)
        captured = capfd.readouterr()
        printed = captured.out + captured.err
        if isinstance(stopped.value.code, str):
            printed += stopped.value.code
        assert stopped.value.code not in (None, 0)
        told = [line for line in printed.splitlines() if line.strip() and "invert=" not in line]
        assert len(told) == 1, printed
        return told[0]

    return run


def contents(folder):
    """Every file below a folder, by its name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def pixels(path):
    particles = read_particles(path)
    return ParticleReader(particles)[np.arange(len(particles))]


# ---- what is written


OPTIONS = {
    "dataset.size": 10,
    "dataset.normalize": "dataset",
    "dataset.mean": 0.25,
    "dataset.std": 1.5,
    "dataset.invert": "true",
    "dataset.mask_radius": 0.9,
    "dataset.mask_edge": 1.5,
}


@pytest.mark.parametrize(
    "options",
    [OPTIONS, {"dataset.invert": "false", "dataset.ramp": "true"}, {"dataset.invert": "true"}],
    ids=["all", "background", "inverted"],
)
def test_the_pixels_are_those_of_the_same_options_on_the_fly(star, options):
    out = prepare(star, *(f"{key}={value}" for key, value in options.items()))
    wanted = {key.removeprefix("dataset."): value for key, value in options.items()}
    for key, value in wanted.items():
        wanted[key] = {"true": True, "false": False}.get(value, value)
    flying = Particles(str(star), **wanted, workers=0).everything()
    found = pixels(out / "particles.star")
    assert torch.equal(found, flying[torch.arange(COUNT)]["image"][:, 0])
    assert found.shape == (COUNT, *2 * [wanted.get("size", SIDE)])


def test_what_is_found_from_the_images_is_noted(star, capfd):
    out = prepare(star, "dataset.normalize=dataset", "dataset.size=8")
    small = fourier_crop(pixels(star), 8)
    decided = json.loads((out / "prepare.json").read_text())["decided"]
    assert decided["invert"] is False
    assert decided["mean"] == pytest.approx(small.mean().item(), rel=1e-4)
    assert decided["std"] == pytest.approx(small.std(correction=0).item(), rel=1e-4)
    assert torch.allclose(pixels(out / "particles.star"), (small - small.mean()) / decided["std"])
    assert "particles are brighter than the background" in capfd.readouterr().out


def test_a_star_of_relion_31_keeps_every_column(star):
    out = prepare(star, "dataset.size=10")
    before, after = read_star(star), read_star(out / "particles.star")
    assert [loop.comment for loop in after.loops] == [loop.comment for loop in before.loops]
    for optics, changed in (
        (True, {"rlnImagePixelSize", "rlnImageSize"}),
        (False, {"rlnImageName"}),
    ):
        number = before.optics if optics else before.particles
        old, new = before.loops[number].columns, after.loops[number].columns
        assert list(old) == list(new)
        for tag in old:
            assert (old[tag].tolist() == new[tag].tolist()) is (tag not in changed), tag
    assert after.column("rlnImagePixelSize", optics=True).tolist() == [b"3.200000"]
    assert after.column("rlnImageSize", optics=True).tolist() == [b"10"]
    assert after.column("rlnImageName")[[0, 23]].tolist() == [
        b"000001@out/particles.mrcs",
        b"000024@out/particles.mrcs",
    ]
    assert read_particles(out / "particles.star").pixel_size.tolist() == [3.2] * COUNT
    with mrcfile.open(out / "particles.mrcs") as stack:
        assert stack.is_image_stack()
        assert stack.voxel_size.x == pytest.approx(3.2)
        data = stack.data
        assert stack.header.dmin == data.min()
        assert stack.header.dmax == data.max()
        assert stack.header.dmean == pytest.approx(data.mean(dtype=float), rel=1e-6)
        assert stack.header.rms == pytest.approx(data.std(dtype=float), rel=1e-6)
    assert mrcfile.validate(out / "particles.mrcs")


def test_the_paths_in_the_table_begin_where_those_of_the_user_do(star, tmp_path):
    """RELION's are relative to the project, in which it and this are started."""
    out = prepare(star, output=tmp_path / "Extract" / "job7")
    name = read_star(out / "particles.star").column("rlnImageName")[0].decode()
    assert name == f"000001@{tmp_path}/Extract/job7/particles.mrcs"
    out = prepare(star, output="Extract/a name")
    name = read_star(out / "particles.star").column("rlnImageName")[0].decode()
    assert name.strip("'\"") == "000001@Extract/a name/particles.mrcs"
    assert len(read_particles(out / "particles.star")) == COUNT


OLD = """
data_images

loop_
_rlnImageName #1
_rlnMagnification #2
_rlnDetectorPixelSize #3
_rlnOriginX #4
_rlnOriginYPrior #5
_rlnMicrographName #6
1@in/stack0.mrcs 50000.0 10.0 1.6 -3.20 'a b.mrc'
3@in/stack0.mrcs 50000.0 10.0 -4.0 0 c.mrc
"""


def test_a_star_of_relion_30_has_its_offsets_in_new_pixels(star, tmp_path):
    (tmp_path / "old.star").write_text(OLD)
    out = prepare("old.star", "dataset.size=8")
    after = read_star(out / "particles.star")
    text = (out / "particles.star").read_text()
    assert "data_images" in text
    assert "000001@out/particles.mrcs 50000.0 20.000000 0.800000 -1.600000 'a b.mrc'" in text
    assert after.column("rlnOriginX").astype(float).tolist() == [0.8, -2.0]
    assert read_particles(out / "particles.star").pixel_size.tolist() == [4.0, 4.0]
    # What is not cropped is not written anew.
    same = prepare("old.star", output="same") / "particles.star"
    assert "000001@same/particles.mrcs 50000.0 10.0 1.6 -3.20 'a b.mrc'" in same.read_text()


def test_a_given_pixel_size_is_what_the_new_star_says(star, tmp_path):
    out = prepare(star, "dataset.size=8", "dataset.pixel_size=1.25")
    assert read_particles(out / "particles.star").pixel_size.tolist() == [2.5] * COUNT
    (tmp_path / "old.star").write_text(OLD)
    out = prepare("old.star", "dataset.size=8", "dataset.pixel_size=1.25", output="old")
    assert read_particles(out / "particles.star").pixel_size.tolist() == [2.5, 2.5]


@pytest.mark.parametrize("kind", ["mrcs", "mrc", "npy"])
def test_a_stack_without_a_star_gets_one(tmp_path, kind, capfd):
    images = np.random.default_rng(0).standard_normal((5, 12, 12)).astype(np.float32)
    path = tmp_path / f"in.{kind}"
    if kind == "npy":
        np.save(path, images)
    else:
        write_stack(path, images, 5, 12, 12, pixel_size=1.5)
    out = prepare(path, "dataset.size=6", "dataset.invert=false")
    written = read_particles(out / "particles.star")
    expected = Preparation(6, invert=False)(torch.from_numpy(images))
    assert torch.equal(ParticleReader(written)[np.arange(5)], expected)
    if kind == "npy":
        assert written.pixel_size is None
        assert "without a pixel size: give dataset.pixel_size" in capfd.readouterr().out
        assert read_star(out / "particles.star").optics is None
    else:
        assert written.pixel_size.tolist() == [3.0] * 5
        told = capfd.readouterr().out
        assert "for RELION: out/particles.star" in told
        assert "no measurements: rlnVoltage 300" in told
        table = read_star(out / "particles.star")
        assert table.column("rlnImageSize", optics=True).tolist() == [b"6"]
        assert table.column("rlnVoltage", optics=True).tolist() == [b"300.000000"]
        assert table.column("rlnSphericalAberration", optics=True).tolist() == [b"2.700000"]


def write_records(path, csdat=False, **more):
    """A `.cs` of five images of two stacks, in no order."""
    records = np.zeros(
        5,
        [
            ("uid", "<u8"),
            ("blob/path", "S40"),
            ("blob/idx", "<u4"),
            ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"),
            ("blob/sign", "<f4"),
            ("alignments2D/shift", "<f4", (2,)),
            *((name.replace("__", "/"), "<f4") for name in more),
        ],
    )
    records["uid"] = [90, 20, 70, 10, 50]
    records["blob/path"] = [b"in/stack0.mrcs", b">in/stack1.mrcs"] * 2 + [b"in/stack0.mrcs"]
    records["blob/idx"] = [3, 0, 1, 9, 10]
    records["blob/shape"] = SIDE
    records["blob/psize_A"] = 1.5
    records["blob/sign"] = -1
    records["alignments2D/shift"] = [1.6, -0.8]
    for name, value in more.items():
        records[name.replace("__", "/")] = value
    write_cs(path, CsTable(records, csdat))
    return records


@pytest.mark.parametrize("csdat", [False, True])
def test_a_cs_is_written_as_one(star, tmp_path, csdat):
    if csdat:
        pytest.importorskip("cryosparc.dataset")
    before = write_records(tmp_path / "in.cs", csdat)
    out = prepare("in.cs", "dataset.size=8", "dataset.invert=true")
    after = read_cs(out / "particles.cs")
    assert after.csdat is csdat
    assert list(after.records.dtype.names) == list(before.dtype.names)
    assert after.column("uid").tolist() == before["uid"].tolist()
    assert set(after.column("blob/path").tolist()) == {b"out/particles.mrcs"}
    assert after.column("blob/idx").tolist() == [0, 1, 2, 3, 4]
    assert after.column("blob/shape").tolist() == [[8, 8]] * 5
    assert after.column("blob/psize_A").tolist() == [3.0] * 5
    assert after.column("blob/sign").tolist() == [1.0] * 5
    assert np.allclose(after.column("alignments2D/shift"), [[0.8, -0.4]] * 5)
    assert torch.equal(
        pixels(out / "particles.cs"), Preparation(8, invert=True)(pixels(tmp_path / "in.cs"))
    )
    assert not (out / "particles.star").exists()


def test_shifts_of_a_cs_that_say_their_own_pixel_size_stay(star, tmp_path):
    write_records(tmp_path / "in.cs", alignments2D__psize_A=1.5)
    out = prepare("in.cs", "dataset.size=8")
    shift = read_cs(out / "particles.cs").column("alignments2D/shift")
    assert np.allclose(shift, [[1.6, -0.8]] * 5)


def test_half_the_size(star):
    out = prepare(star, "dtype=float16", "dataset.invert=false")
    with mrcfile.open(out / "particles.mrcs") as stack:
        assert stack.data.dtype == np.float16
        expected = Preparation(invert=False)(pixels(star)).half()
        assert np.array_equal(stack.data, expected.numpy())
    assert torch.equal(pixels(out / "particles.star"), expected.float())


def test_the_number_of_workers_changes_no_byte(star):
    for workers in (1, 5):
        prepare(star, "dataset.size=9", f"workers={workers}", output=f"out/{workers}")
    one, five = (contents(f"out/{workers}") for workers in (1, 5))
    assert one["particles.mrcs"] == five["particles.mrcs"]


def test_a_selection_in_its_own_order(star, tmp_path):
    chosen = np.array([17, 2, 9])
    np.save(tmp_path / "chosen.npy", chosen)
    out = prepare(star, "dataset.select=chosen.npy", "dataset.invert=false")
    assert torch.equal(
        pixels(out / "particles.star"), Preparation(invert=False)(pixels(star)[chosen])
    )
    defocus = read_star(out / "particles.star").column("rlnDefocusU")
    assert defocus.tolist() == read_star(star).column("rlnDefocusU")[chosen].tolist()


# ---- nothing is lost, and nothing touched


def test_the_input_is_not_touched(star):
    before = contents(star.parent)
    times = {path: path.stat().st_mtime_ns for path in star.parent.iterdir()}
    prepare(star, "dataset.size=8")
    assert contents(star.parent) == before
    assert {path: path.stat().st_mtime_ns for path in star.parent.iterdir()} == times


KILLED = """
import os, signal, sys
import svae.prepare
from svae.prepare.stack import GrowingStack

svae.prepare.AT_ONCE = {part}
add = GrowingStack.add

def until(self, images, unusable):
    if self.written == 14:
        self._file.write(b"half of a part")
        self._file.flush()
        self._lines.write('{{"images": 16, "low')
        self._lines.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, images, unusable)

GrowingStack.add = until
sys.argv = ["svae", "dataset.path=in/particles.star", "output=out", "dataset.size=10"]
svae.prepare.main()
"""


def test_after_a_kill_it_goes_on_where_it_was(star, monkeypatch, capfd):
    environment = os.environ | {"PYTHONPATH": str(Path(svae.prepare.__file__).parents[2])}
    died = subprocess.run(
        [sys.executable, "-c", KILLED.format(part=PART)], env=environment, capture_output=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not Path("out/particles.mrcs").exists()
    assert not Path("out/particles.star").exists()
    with stopped(5, Stop()), pytest.raises(Stop):  # three parts later
        prepare(star, "dataset.size=10")
    assert "going on after 14 images" in capfd.readouterr().out
    added = []
    add = GrowingStack.add

    def counted(self, images, unusable):
        added.append(len(images))
        add(self, images, unusable)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingStack, "add", counted)
        prepare(star, "dataset.size=10")
    assert sum(added) == COUNT - 20
    whole = prepare(star, "dataset.size=10", output="whole")
    same = contents("out"), contents(whole)
    assert same[0].pop("particles.star") != same[1].pop("particles.star")  # it names the folder
    assert same[0] == same[1]
    star_of = [Path(name, "particles.star").read_text() for name in ("out", "whole")]
    assert star_of[0] == star_of[1].replace("@whole/", "@out/")


class Stop(BaseException):
    """As sudden as a power cut."""


@contextmanager
def stopped(at, error):
    """An error at the given one of all the moments in which something reaches the disk."""
    moments, real = 0, os.fsync

    def fsync(descriptor):
        nonlocal moments
        moments += 1
        if moments == at:
            raise error
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_wherever_it_is_stopped_it_ends_with_the_same_bytes(star):
    expected = contents(prepare(star, "dataset.size=10"))
    for at in (1, 2, 8, 14, 15, 16):
        shutil.rmtree("out")
        with stopped(at, Stop()), pytest.raises(Stop):
            prepare(star, "dataset.size=10")
        prepare(star, "dataset.size=10")
        assert contents("out") == expected, at


def test_no_line_promises_what_is_not_on_the_disk(tmp_path, monkeypatch):
    progress = tmp_path / ".a.mrcs.progress"
    promised = []
    with GrowingStack(tmp_path / "a.mrcs", 6, 4, 4) as stack:
        monkeypatch.setattr(os, "fsync", lambda _: promised.append(progress.read_text()))
        for _ in range(3):
            stack.add(np.ones((2, 4, 4), np.float32), {})
    # The first line is of no images.
    assert [len(said.splitlines()) for said in promised] == [1, 2, 3]


def test_ctrl_c_ends_it_between_two_parts(star, refused, monkeypatch):
    add = GrowingStack.add

    def pressed(self, images, unusable):
        if self.written == 4:
            signal.raise_signal(signal.SIGINT)
        add(self, images, unusable)

    with monkeypatch.context() as patch:
        patch.setattr(GrowingStack, "add", pressed)
        patch.setattr(os, "write", lambda *_: None)  # what is said at once
        message = refused(star)
    assert message == "interrupted after 6 of 24 images; the same command goes on"
    assert contents(prepare(star))["particles.mrcs"]


def test_what_is_done_is_not_done_again(star, monkeypatch, capfd):
    out = prepare(star)
    before = contents(out)
    assert set(before) == {"particles.mrcs", "particles.star", "prepare.json"}
    monkeypatch.setattr(svae.prepare, "GrowingStack", None)
    prepare(star, "workers=1", "skip_unusable=true")
    assert contents(out) == before
    assert "out: all of it is there already" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.size=8"], "dataset.size is null there and 8 here"),
        (["dtype=float16"], 'dtype is "float32" there and "float16" here'),
        (["dataset.select=some.txt"], "or other particles are selected"),
    ],
)
@pytest.mark.parametrize("part", [False, True], ids=["whole", "in part"])
def test_the_folder_of_another_preparation_is_left_alone(star, refused, part, options, message):
    Path("some.txt").write_text("3\n1\n")
    if part:
        with stopped(5, Stop()), pytest.raises(Stop):
            prepare(star)
    else:
        prepare(star)
    before = contents("out")
    told = refused(star, *options)
    assert told.startswith("output: out holds another preparation: ")
    assert message in told
    assert contents("out") == before


def test_a_source_that_has_changed_is_another(star, refused):
    with stopped(5, Stop()), pytest.raises(Stop):
        prepare(star)
    os.utime(star.parent / "stack1.mrcs", ns=(0, 0))
    assert "particles.star or its stacks have changed since" in refused(star)
    other = write_particles(star.parents[1] / "other", COUNT, SIDE)
    assert f"of {star}, and not of {other}" in refused(other)


def test_a_folder_with_something_in_it_is_left_alone(star, refused):
    before = contents("in")
    assert "output: in is not empty (it holds particles.star)" in refused(star, output="in")
    assert contents("in") == before
    Path("file").write_text("")
    assert "output: file cannot be made: File exists" in refused(star, output="file")


def test_two_at_once_in_one_folder(star, refused):
    Path("out").mkdir()
    assert lock("out")
    try:
        assert refused(star) == "output: out is in use by another process"
    finally:
        release()


def test_what_was_removed_afterwards_is_missed(star, refused):
    Path(prepare(star), "particles.star").unlink()
    assert "output: particles.star is not in out any more; name another" in refused(star)


@contextmanager
def no_file_above(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_without_room_is_told_before_the_work(star, refused, monkeypatch):
    with no_file_above(COUNT * SIDE**2 * 2), monkeypatch.context() as patch:
        patch.setattr(GrowingStack, "add", None)
        message = refused(star)
    assert "out/particles.mrcs: file too large: it takes 2.56e-05 GB; 0 of its 24" in message
    assert Path("out/.particles.mrcs.part").stat().st_size == 0

    def half(descriptor, start, size):
        os.ftruncate(descriptor, size // 2)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", half)
        assert "out/particles.mrcs: no space left on device" in refused(star)
    assert Path("out/.particles.mrcs.part").stat().st_size == 0
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))
        assert "out/particles.mrcs: no space left on device" in refused(star)
    prepare(star)


def test_a_disk_that_fills_up_in_the_middle_is_told(star, refused):
    whole = contents(prepare(star, output="whole"))
    with stopped(6, OSError(28, "No space left on device")):
        message = refused(star)
    assert "no space left on device" in message
    assert "6 of its 24 images are written; make room, and the same command goes on" in message
    assert contents(prepare(star))["particles.mrcs"] == whole["particles.mrcs"]


# ---- what cannot be prepared


def spoil(star, place, value):
    """Change one image of the first stack."""
    path = star.parent / "stack0.mrcs"
    with mrcfile.mmap(path, "r+") as stack:
        stack.data[place] = value


def test_images_that_cannot_be_used_are_counted_at_the_end(star, refused, capfd):
    spoil(star, 3, np.nan)
    spoil(star, 7, 5.0)
    message = refused(star, "dataset.size=8")
    assert message == (
        f"{star}: 2 of 24 images cannot be used, the first of them 000004@stack0.mrcs: 256 of its "
        "256 pixels are NaN or infinite; all others are ready, and the same command with "
        "skip_unusable=true leaves these out"
    )
    assert not Path("out/particles.star").exists()
    out = prepare(star, "dataset.size=8", "skip_unusable=true")
    assert "2 of 24 images cannot be used" in capfd.readouterr().out
    kept = np.setdiff1d(np.arange(COUNT), [6, 14])
    found = pixels(out / "particles.star")
    assert torch.equal(found, Preparation(8, invert=False)(raw(star)[kept]))
    defocus = read_star(out / "particles.star").column("rlnDefocusU")
    assert defocus.tolist() == read_star(star).column("rlnDefocusU")[kept].tolist()
    record = json.loads((out / "prepare.json").read_text())
    assert record["left_out"]["000008@stack0.mrcs"] == "it is constant: every pixel is 5"


def raw(star):
    particles = read_particles(star)
    return ParticleReader(particles, check=False)[np.arange(len(particles))]


def test_nothing_is_left_if_no_image_can_be_used(star, refused):
    for place in range(12):
        spoil(star, place, 1.0)
    Path("some.txt").write_text("\n".join(map(str, range(0, COUNT, 2))))
    options = "dataset.select=some.txt", "skip_unusable=true"
    assert "none of the images that were looked at can be used" in refused(star, *options)
    options += ("dataset.invert=false",)
    assert "12 of 12 images cannot be used" in refused(star, *options, output="none")


def test_values_that_half_the_size_does_not_hold(star, refused):
    spoil(star, 0, np.linspace(0, 1e6, SIDE**2).reshape(SIDE, SIDE))
    message = refused(star, "dtype=float16", "dataset.normalize=none", "dataset.invert=false")
    assert "1 of 24 images" in message
    assert "000001@stack0.mrcs: its values are too large for float16" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.size=17"], "dataset.size: expected at most the 16 pixels of the images"),
        (["dataset.normalize=std"], "dataset.normalize: expected one of background, image"),
        (["dtype=int8"], "dtype: expected one of float32, float16, got 'int8'"),
        (["workers=0"], "workers: expected a whole number of at least 1, got 0"),
        (["dataset.background_radius=2"], "dataset.background_radius: expected pixels beyond it"),
        (["dataset.szie=8"], "Could not override 'dataset.szie'"),
        (["dataset.path=nowhere.star"], "nowhere.star: there is no such file"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(star, refused, options, message):
    assert message in refused(star, *options)
    assert not Path("out").exists()


def test_what_must_be_given(refused, star, capfd):
    for given in ([f"dataset.path={star}"], ["output=out"]):
        with pytest.raises(SystemExit):
            run_command(svae.prepare.main, *given)
    printed = capfd.readouterr().out
    assert "Missing mandatory value: output" in printed
    assert "full_key: dataset.path" in printed


def test_an_offset_that_is_no_number(star, tmp_path, refused):
    (tmp_path / "old.star").write_text(OLD.replace("-4.0", "west"))
    assert "old.star: rlnOriginX: expected numbers" in refused("old.star", "dataset.size=8")
    assert not Path("out").exists()


def test_a_record_that_is_none(star, refused):
    Path(prepare(star), "prepare.json").write_text("{}")
    assert "out/prepare.json: expected the record of a preparation" in refused(star)


# ---- real particles


@pytest.mark.parametrize(
    ("name", "side", "size", "pixel_size"),
    [
        ("relion31.star", 256, 64, 5.612 * 2),
        ("sample_relion_data.star", 200, 50, None),
        ("empiar_10076_7.star", 320, 80, None),
        ("sample.mrcs", 200, 50, None),
    ],
)
def test_real_particles(name, side, size, pixel_size):
    if not (REAL / name).exists():
        pytest.skip(f"SVAE_DATA_DIR has no {name}")
    before = read_particles(REAL / name)
    out = prepare(REAL / name, f"dataset.size={size}")
    after = read_particles(out / "particles.star")
    assert (before.width, after.width, len(after)) == (side, size, len(before))
    if before.pixel_size is not None:
        assert np.allclose(after.pixel_size, before.pixel_size * side / size, rtol=1e-6)
    if pixel_size is not None:
        assert np.allclose(after.pixel_size, pixel_size)
    if before.ctf is not None:
        for key, values in before.ctf.items():
            assert np.array_equal(after.ctf[key], values)
    images = pixels(out / "particles.star")
    assert images.isfinite().all()
    write_star(Path("again.star"), read_star(out / "particles.star"))
    assert Path("again.star").read_bytes() == (out / "particles.star").read_bytes()
