import copy
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svae.formats.cryosparc import CsTable, write_cs
from svae.formats.mrc import write_stack
from svae.formats.particles import ParticleReader, ParticleSet, read_particles
from svae.formats.star import Loop, StarTable, new_star, write_star

HEIGHT, WIDTH = 4, 6


def images(stack: int, count: int) -> np.ndarray:
    """Images whose pixels say which they are: 100 x stack + place, and a fraction per pixel."""
    inside = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / 100
    return (100 * stack + np.arange(count)[:, None, None] + inside).astype(np.float32)


def project(folder: Path, count: int = 5) -> Path:
    """The folder of a project with two stacks, `jobs/a.mrcs` and `jobs/b.mrcs`."""
    for number, name in enumerate("ab"):
        path = folder / "jobs" / f"{name}.mrcs"
        write_stack(path, [images(number, count)], count, HEIGHT, WIDTH, pixel_size=1.25)
    return folder


def columns(**changed: Any) -> dict[str, Any]:
    """Five particles of both stacks, in no order."""
    return {
        "rlnImageName": [
            f"{name[1:]:0>6}@jobs/{name[0]}.mrcs" for name in ["b3", "a1", "a5", "b2", "b4"]
        ],
        "rlnDefocusU": np.array([1.1e4, 1.2e4, 1.3e4, 1.4e4, 1.5e4]),
        "rlnDefocusV": np.array([1.0e4, 1.1e4, 1.2e4, 1.3e4, 1.4e4]),
        "rlnDefocusAngle": np.array([10.0, -20, 30, 40, 50]),
        "rlnOpticsGroup": np.array([2, 1, 1, 2, 2]),
        **changed,
    }


def optics(**changed: Any) -> dict[str, Any]:
    return {
        "rlnOpticsGroup": np.array([1, 2]),
        "rlnVoltage": np.array([300.0, 200.0]),
        "rlnSphericalAberration": np.array([2.7, 0.01]),
        "rlnAmplitudeContrast": np.array([0.1, 0.07]),
        "rlnImagePixelSize": np.array([1.5, 2.5]),
        **changed,
    }


def without(table: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values for name, values in table.items() if name not in names}


def first_pixels(particles: ParticleSet) -> list[float]:
    """Which images the particles have, by their first pixel."""
    return ParticleReader(particles)[np.arange(len(particles))][:, 0, 0].tolist()


ALL = [102.0, 0.0, 4.0, 101.0, 103.0]


@pytest.fixture
def star(tmp_path: Path) -> Callable[..., Path]:
    """Writes a star of RELION 3.1 into a project's job."""
    project(tmp_path)

    def write(
        particles: dict[str, Any] | None = None, groups: dict[str, Any] | None = None
    ) -> Path:
        path = tmp_path / "refine" / "job1" / "data.star"
        table = new_star(particles or columns(), groups or optics())
        write_star(path, table)
        return path

    return write


# ---- what is read


def test_a_star_of_relion_31_is_joined_with_its_optics_groups(star, tmp_path: Path):
    particles = read_particles(star(columns(rlnPhaseShift=np.array([0, 90.0, 0, 0, 0]))))

    assert len(particles) == 5
    assert (particles.height, particles.width) == (HEIGHT, WIDTH)
    assert first_pixels(particles) == ALL
    assert particles.name(0) == "000003@b.mrcs"
    assert particles.stacks == [tmp_path / "jobs" / "b.mrcs", tmp_path / "jobs" / "a.mrcs"]
    assert particles.pixel_size.tolist() == [2.5, 1.5, 1.5, 2.5, 2.5]
    assert {name: values[1] for name, values in particles.ctf.items()} == {
        "defocus_u_A": 12000,
        "defocus_v_A": 11000,
        "astigmatism_deg": -20,
        "voltage_kV": 300,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift_deg": 90,
        "b_factor_A2": 0,
    }
    assert particles.ctf["voltage_kV"].tolist() == [200, 300, 300, 200, 200]
    assert particles.applied.tolist() == [0] * 5
    assert particles.rows.tolist() == [0, 1, 2, 3, 4]


def test_a_star_of_relion_30_has_everything_in_one_block(star, tmp_path: Path):
    table = without(columns(), "rlnOpticsGroup") | {
        "rlnVoltage": np.full(5, 300.0),
        "rlnSphericalAberration": np.full(5, 2.7),
        "rlnAmplitudeContrast": np.full(5, 0.1),
        "rlnMagnification": np.full(5, 40000.0),
        "rlnDetectorPixelSize": np.full(5, 5.0),
        "rlnCtfBfactor": np.full(5, 30.0),
        "rlnCtfDataArePhaseFlipped": np.array([1, 0, 1, 0, 0]),
    }
    loop = Loop("", "", new_star(table, {}).loops[1].columns)
    path = tmp_path / "old.star"
    write_star(path, StarTable([loop], 0))
    particles = read_particles(path)

    assert first_pixels(particles) == ALL
    assert particles.pixel_size.tolist() == [1.25] * 5
    assert particles.ctf["b_factor_A2"].tolist() == [30] * 5
    assert particles.applied.tolist() == [1, 0, 1, 0, 0]


def test_what_was_done_about_the_ctf_is_said_by_the_optics_group(star):
    path = star(groups=optics(rlnCtfDataAreCtfPremultiplied=np.array([1, 0])))
    assert read_particles(path).applied.tolist() == [0, 2, 2, 0, 0]


def test_images_without_a_number_are_files_of_one(star, tmp_path: Path):
    write_stack(tmp_path / "jobs" / "one.mrc", [images(7, 1)], 1, HEIGHT, WIDTH)
    names = ["jobs/one.mrc", *columns()["rlnImageName"][1:]]
    assert first_pixels(read_particles(star(columns(rlnImageName=names)))) == [700.0, *ALL[1:]]


@pytest.mark.parametrize("csdat", [False, True])
def test_a_cs_has_radians_and_counts_from_0(tmp_path: Path, csdat: bool):
    if csdat:
        pytest.importorskip("cryosparc")
    records = cs_records()
    write_cs(project(tmp_path) / "J5" / "in.cs", CsTable(records, csdat))
    particles = read_particles(tmp_path / "J5" / "in.cs")

    assert first_pixels(particles) == [2.0, 103.0, 0.0]
    assert particles.ctf["astigmatism_deg"].tolist() == pytest.approx([90, 0, -45])
    assert particles.ctf["phase_shift_deg"].tolist() == pytest.approx([0, 0, 180])
    assert particles.ctf["voltage_kV"].tolist() == [300] * 3
    assert particles.pixel_size.tolist() == [1.5] * 3
    assert isinstance(particles.table, CsTable)


def cs_records() -> np.ndarray:
    names = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast")
    floats = [(f"ctf/{name}", "<f4") for name in (*names, "phase_shift_rad")]
    kinds = [("uid", "<u8"), ("blob/path", "S12"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]
    records = np.zeros(3, kinds + floats)
    records["uid"] = [11, 12, 13]
    records["blob/path"] = [b">jobs/a.mrcs", b"jobs/b.mrcs", b">jobs/a.mrcs"]
    records["blob/idx"] = [2, 3, 0]
    records["blob/psize_A"] = 1.5
    for name, value in zip(names, (1e4, 9e3, 0, 300, 2.7, 0.1), strict=True):
        records[f"ctf/{name}"] = value
    records["ctf/df_angle_rad"] = [np.pi / 2, 0, -np.pi / 4]
    records["ctf/phase_shift_rad"] = [0, 0, np.pi]
    return records


def test_a_ctf_that_nobody_uses_is_kept_as_the_cs_has_it(tmp_path: Path):
    records = cs_records()
    records["ctf/df1_A"] = [1e4, 0, 1e9]
    path = project(tmp_path) / "in.cs"
    write_cs(path, CsTable(records))
    with pytest.raises(ValueError, match=r"ctf/df1_A of 000004@b.mrcs: .*got 0"):
        read_particles(path)
    known = read_particles(path, bad_ctf=None)
    assert known.ctf["defocus_u_A"].tolist() == [1e4, 0, 1e9]
    assert known.ctf["astigmatism_deg"].tolist() == pytest.approx([90, 0, -45])

    fewer = [name for name in records.dtype.names if name != "ctf/accel_kv"]
    write_cs(path, CsTable(np.asarray(records[fewer].copy())))
    with pytest.raises(ValueError, match=r"the CTF of a particle needs ctf/accel_kv, which is"):
        read_particles(path)
    assert "voltage_kV" not in read_particles(path, bad_ctf=None).ctf


def test_a_passthrough_cs_is_joined_on_uid(tmp_path: Path):
    records = cs_records()
    blobs = [name for name in records.dtype.names if not name.startswith("ctf")]
    ctf = ["uid", *(name for name in records.dtype.names if name.startswith("ctf"))]
    folder = project(tmp_path)
    write_cs(folder / "main.cs", CsTable(np.asarray(records[ctf].copy())))
    write_cs(folder / "passthrough.cs", CsTable(np.asarray(records[blobs][[2, 0, 1]].copy())))

    with pytest.raises(ValueError, match=r"main.cs: no blob/path.*\(passthrough.cs\)"):
        read_particles(folder / "main.cs")
    particles = read_particles(folder / "main.cs", passthrough=folder / "passthrough.cs")
    assert first_pixels(particles) == [2.0, 103.0, 0.0]
    assert particles.ctf["astigmatism_deg"].tolist() == pytest.approx([90, 0, -45])

    write_cs(folder / "short.cs", CsTable(np.asarray(records[blobs][:2].copy())))
    with pytest.raises(ValueError, match=r"short.cs: 1 of the 3 .* such as uid 13"):
        read_particles(folder / "main.cs", passthrough=folder / "short.cs")


def test_a_csg_is_the_cs_files_that_it_lists(tmp_path: Path):
    records = cs_records()
    folder = project(tmp_path)
    write_cs(folder / "J9_particles.cs", CsTable(np.asarray(records[["uid"]].copy())))
    write_cs(folder / "J7_passthrough_particles.cs", CsTable(records[[2, 0, 1]]))
    metafiles = {
        "location": ">J9_particles.cs",
        "blob": ">J7_passthrough_particles.cs",
        "ctf": ">J7_passthrough_particles.cs",
    }

    def group() -> Path:
        results = [f"  {k}:\n    metafile: '{v}'\n" for k, v in metafiles.items()]
        path = folder / "J7.csg"
        path.write_text("\n".join(["group: {name: particles}", "results:", *results]))
        return path

    particles = read_particles(group())
    assert first_pixels(particles) == [2.0, 103.0, 0.0]
    assert particles.ctf["voltage_kV"].tolist() == [300] * 3
    assert particles.source == folder / "J9_particles.cs"

    metafiles["ctf"] = ">J6_ctf.cs"
    with pytest.raises(ValueError, match=r"J7.csg: .* found 3 \(J6_ctf.cs, J9_part"):
        read_particles(group())
    with pytest.raises(FileNotFoundError, match=r"J8.csg: there is no such file"):
        read_particles(folder / "J8.csg")

    metafiles["ctf"] = ">J9_particles.cs"
    path = group()
    (folder / "J7_passthrough_particles.cs").unlink()
    with pytest.raises(FileNotFoundError, match=r"J7.csg: it lists J7_pass.*, and there is no"):
        read_particles(path)


def test_pixels_of_several_sizes_are_told(star, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert read_particles(star()).one_pixel_size is None
    assert "pixels of 1.5 to 2.5 Å" in caplog.text
    caplog.clear()
    sizes = np.array([1.5, 1.501])
    assert read_particles(star(groups=optics(rlnImagePixelSize=sizes))).one_pixel_size == 1.501
    assert not caplog.text


def test_stacks_arrays_and_lists_of_stacks_are_read(tmp_path: Path):
    project(tmp_path, count=3)
    np.save(tmp_path / "c.npy", np.asfortranarray(images(2, 2)))
    (tmp_path / "all.txt").write_text("jobs/b.mrcs\n\njobs/a.mrcs\nc.npy\n")

    one = read_particles(tmp_path / "jobs" / "a.mrcs")
    assert first_pixels(one) == [0, 1, 2]
    assert one.pixel_size.tolist() == [1.25] * 3
    assert one.ctf is None
    assert one.table is None
    assert first_pixels(read_particles(tmp_path / "c.npy")) == [200, 201]
    every = read_particles(tmp_path / "all.txt")
    assert first_pixels(every) == [100, 101, 102, 0, 1, 2, 200, 201]
    assert every.pixel_size is None  # the array does not say
    assert read_particles(tmp_path / "all.txt", pixel_size=3).pixel_size.tolist() == [3.0] * 8
    assert every.rows.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("name", "count", "side", "pixel_size", "defocus"),
    [
        ("relion31.star", 5, 256, 2.806, 13108.082418),
        ("sample_relion_data.star", 17, 200, 1.338, 21186.804688),
        ("empiar_10076_7.star", 7, 320, 1.31, 15301.1),
    ],
)
def test_real_particles_are_read(name, count, side, pixel_size, defocus):
    path = Path(os.environ.get("SVAE_DATA_DIR", "")) / "particles" / name
    if not path.is_file():
        pytest.skip(f"SVAE_DATA_DIR has no {name}")
    particles = read_particles(path)
    assert (len(particles), particles.height, particles.width) == (count, side, side)
    assert particles.pixel_size[0] == pytest.approx(pixel_size, abs=1e-4)
    assert particles.ctf["defocus_u_A"][0] == pytest.approx(defocus)
    assert ParticleReader(particles)[torch.tensor([1, 0])].shape == (2, side, side)


# ---- where stacks are looked for


def test_stacks_are_found_in_datadir_first_and_by_name_last(star, tmp_path: Path):
    path = star()
    other = project(tmp_path / "elsewhere")
    assert read_particles(path).stacks[0].parent == tmp_path / "jobs"
    assert read_particles(path, datadir=other).stacks[0] == other / "jobs" / "b.mrcs"
    moved = tmp_path / "flat"
    (tmp_path / "jobs").rename(moved)
    assert read_particles(path, datadir=str(moved)).stacks[0] == moved / "b.mrcs"
    with pytest.raises(FileNotFoundError, match=r"of its 2 stacks 2 .* set dataset.datadir to"):
        read_particles(path)


# ---- which particles


def test_a_selection_is_kept_in_its_order(star, tmp_path: Path):
    np.save(tmp_path / "chosen.npy", np.array([4, 0, 2]))
    groups = optics(rlnCtfDataArePhaseFlipped=np.array([1, 0]))
    particles = read_particles(star(groups=groups), select=tmp_path / "chosen.npy")

    assert particles.applied.tolist() == [0, 0, 1]
    assert particles.rows.tolist() == [4, 0, 2]
    assert first_pixels(particles) == [103, 102, 4]
    assert particles.ctf["defocus_u_A"].tolist() == [1.5e4, 1.1e4, 1.3e4]
    again = particles.select([2, 1])
    assert first_pixels(again) == [4, 102]
    assert again.rows.tolist() == [2, 0]
    assert again.pixel_size.tolist() == [1.5, 2.5]
    assert again.applied.tolist() == [1, 0]
    assert again.ctf["defocus_u_A"].tolist() == [1.3e4, 1.1e4]


@pytest.mark.parametrize("moved", [False, True])
def test_another_star_selects_by_image_name(star, tmp_path: Path, moved: bool):
    folder = "other/job" if moved else "jobs"
    chosen = new_star({"rlnImageName": [f"5@{folder}/a.mrcs", f"0003@{folder}/b.mrcs"]}, {})
    write_star(tmp_path / "chosen.star", StarTable(chosen.loops[1:], 0))
    assert read_particles(star(), select=tmp_path / "chosen.star").rows.tolist() == [2, 0]

    missing = new_star({"rlnImageName": ["5@jobs/a.mrcs", "9@jobs/b.mrcs"]}, {})
    write_star(tmp_path / "missing.star", StarTable(missing.loops[1:], 0))
    with pytest.raises(ValueError, match=r"1 of its 2 particles .* 000009@"):
        read_particles(star(), select=tmp_path / "missing.star")


@pytest.mark.parametrize("listed", ["txt", "cs"])
def test_a_star_that_names_links_selects_their_stacks(tmp_path: Path, listed: str):
    project(tmp_path)
    (tmp_path / "out" / "stacks").mkdir(parents=True)
    names = []
    for name in "ab":
        stack = (tmp_path / "jobs" / f"{name}.mrcs").rename(tmp_path / "jobs" / f"{name}.mrc")
        link = tmp_path / "out" / "stacks" / f"{name}.mrcs"
        link.symlink_to(stack)
        names.append(f"000003@{link}")
    write_star(tmp_path / "chosen.star", StarTable(new_star({"rlnImageName": names}, {}).loops, 1))
    path = tmp_path / f"in.{listed}"
    if listed == "cs":
        records = cs_records()
        records["blob/path"] = [b">jobs/a.mrc", b"jobs/b.mrc", b">jobs/a.mrc"]
        records["blob/idx"] = [2, 2, 0]
        write_cs(path, CsTable(records))
    else:
        path.write_text("jobs/a.mrc\njobs/b.mrc\n")
    chosen = read_particles(path, select=tmp_path / "chosen.star")
    assert first_pixels(chosen) == [2.0, 102.0]
    again = read_particles(tmp_path / "chosen.star")
    assert first_pixels(again) == [2.0, 102.0]


def test_another_cs_selects_by_uid(tmp_path: Path):
    write_cs(project(tmp_path) / "in.cs", CsTable(cs_records()))
    write_cs(tmp_path / "chosen.cs", CsTable(np.asarray(cs_records()[["uid"]][[2, 1]].copy())))
    particles = read_particles(tmp_path / "in.cs", select=tmp_path / "chosen.cs")
    assert particles.rows.tolist() == [2, 1]


# ---- the reader


def test_images_come_in_the_order_that_they_are_asked_for(star):
    reader = ParticleReader(read_particles(star()))
    for rows in ([4, 0, 2, 1, 3], [2, 2, 0], [1], []):
        batch = reader[torch.tensor(rows, dtype=torch.int64)]
        assert batch.dtype == torch.float32
        assert batch.shape == (len(rows), HEIGHT, WIDTH)
        expected = [images(0, 5)[0] + ALL[row] for row in rows]
        for image, truth in zip(batch.numpy(), expected, strict=True):
            np.testing.assert_allclose(image, truth, atol=1e-4)
    batch += 1  # a batch is its own, and no view of a file that cannot be written


def test_nothing_is_copied_with_a_reader(tmp_path: Path):
    write_stack(tmp_path / "a.mrcs", [np.zeros((50, 64, 64))], 50, 64, 64)
    reader = ParticleReader(read_particles(tmp_path / "a.mrcs"))
    before = reader[np.arange(50)]
    content = pickle.dumps(reader)
    assert len(content) < 5000
    for copied in (pickle.loads(content), copy.deepcopy(reader)):
        assert not copied._maps
        assert torch.equal(copied[np.arange(50)], before)


def test_more_stacks_are_read_than_may_be_open(star, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("svae.formats.particles._OPEN_STACKS", 1)
    reader = ParticleReader(read_particles(star()))
    assert reader[np.arange(5)][:, 0, 0].tolist() == ALL
    assert len(reader._maps) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, bad: float):
    pixels = images(0, 9)
    pixels[[3, 7], 2, 2] = bad
    np.save(tmp_path / "a.npy", pixels)
    reader = ParticleReader(read_particles(tmp_path / "a.npy"))
    assert reader[np.array([0, 1])].isfinite().all()
    with pytest.raises(ValueError, match=r"a.npy: image 8 has .*\(2 of the 3 in this batch\)"):
        reader[np.array([7, 1, 3])]


def test_large_pixels_are_no_mistake(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.full((2, 8, 8), 3e38, np.float32))
    assert ParticleReader(read_particles(tmp_path / "a.npy"))[np.arange(2)].max() > 2e38


# ---- mistakes, each told in one line before a pixel is read


def told(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("particles", "groups", "message"),
    [
        (
            columns(rlnDefocusU=np.array([1e4, 0, 1e4, 1e6, 1e4])),
            optics(),
            r"rlnDefocusU of 000001@a.mrcs: .* from 1 to 200000, got 0 \(2 of 5 particles",
        ),
        (columns(rlnDefocusV=np.array([1e6] * 5)), optics(), "rlnDefocusV .* got 1e"),
        (columns(rlnDefocusU=["1e4", "nan"] + ["1e4"] * 3), optics(), "rlnDefocusU.* got nan"),
        (
            columns(rlnDefocusU=["1e4", "?"] + ["1e4"] * 3),
            optics(),
            r"numbers, got '\?' \(row 2\)",
        ),
        (columns(), optics(rlnVoltage=np.array([300.0, 3e5])), "rlnVoltage .* got 300000"),
        (columns(), optics(rlnAmplitudeContrast=np.array([7.0, 0.1])), "rlnAmplitudeContrast"),
        (without(columns(), "rlnDefocusAngle"), optics(), "needs rlnDefocusAngle, which is not"),
        (
            without(columns(), "rlnDefocusU"),
            without(optics(), "rlnVoltage"),
            "needs rlnDefocusU, rlnVoltage, which are not there; dataset.ctf=none",
        ),
        (columns(), optics(rlnOpticsGroup=np.array([1, 3])), "rlnOpticsGroup 2 .*3 of 5"),
        (without(columns(), "rlnOpticsGroup"), optics(), "2 optics groups, and no rlnOpticsGroup"),
        (columns(), optics(rlnImagePixelSize=np.array([0, 1.5])), "pixel size of 0 .*2 of 5"),
        (columns(rlnImageName=["6@jobs/a.mrcs"] * 5), optics(), "image 6 .* it has 5 .5 of 5"),
        (columns(rlnImageName=["0@jobs/a.mrcs"] * 5), optics(), "image 0 of"),
        (columns(rlnImageName=["x@jobs/a.mrcs"] * 5), optics(), "expected NUMBER@STACK, got 'x@"),
        (columns(rlnImageName=["1@jobs"] * 5), optics(), "expected a stack, found a folder"),
    ],
)
def test_a_star_with_a_mistake_is_told(star, particles, groups, message: str):
    path = star(particles, groups)
    with pytest.raises(ValueError, match=message) as caught:
        read_particles(path)
    assert str(path.parents[2]) in told(caught)


def test_particles_with_an_absurd_ctf_can_be_dropped_or_the_ctf_of_all(
    star, caplog: pytest.LogCaptureFixture
):
    path = star(columns(rlnDefocusU=np.array([1e4, 0, 1e4, 1e6, 1e4])))
    with caplog.at_level(logging.WARNING):
        kept = read_particles(path, bad_ctf="drop")
    assert kept.rows.tolist() == [0, 2, 4]
    assert "2 of 5 particles" in caplog.text
    assert first_pixels(kept) == [102, 4, 103]

    unreadable = star(without(columns(rlnDefocusU=["?"] * 5), "rlnDefocusV"))
    every = read_particles(unreadable, bad_ctf=None)
    assert len(every) == 5
    assert every.ctf is None
    with pytest.raises(ValueError, match="bad_ctf: expected one of error, drop, got"):
        read_particles(path, bad_ctf="no")


def test_of_a_hundred_thousand_particles_the_bad_one_is_named(tmp_path: Path):
    many = 100_000
    table = CsTable(np.tile(cs_records(), many // 3 + 1)[:many])
    table.records["blob/idx"] = np.arange(many)
    table.records["ctf/df1_A"][77_777] = 0
    np.save(tmp_path / "a.npy", np.zeros((many, 1, 1), np.int8))
    table = table.with_columns({"blob/path": np.full(many, b"a.npy")})
    write_cs(tmp_path / "in.cs", table)
    with pytest.raises(ValueError, match=r"077778@a.npy.* got 0 \(1 of 100000 particles"):
        read_particles(tmp_path / "in.cs")
    table.records["blob/idx"][5] = many
    write_cs(tmp_path / "in.cs", table)
    with pytest.raises(ValueError, match=r"image 100001 .*a.npy is not there.*\(1 of 100000"):
        read_particles(tmp_path / "in.cs")


def test_particles_listed_twice_are_counted(star, caplog: pytest.LogCaptureFixture):
    names = ["1@jobs/a.mrcs", "1@jobs/a.mrcs", "1@jobs/b.mrcs", "2@jobs/a.mrcs", "01@jobs/a.mrcs"]
    with caplog.at_level(logging.WARNING):
        assert len(read_particles(star(columns(rlnImageName=names)))) == 5
    assert "1 particles are listed more than once, such as 000001@a.mrcs" in caplog.text


def test_stacks_of_both_contrasts_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    records = CsTable(cs_records()).with_columns({"blob/sign": np.array([1, -1, 1], np.float32)})
    write_cs(project(tmp_path) / "in.cs", records)
    with caplog.at_level(logging.WARNING):
        read_particles(tmp_path / "in.cs")
    assert "blob/sign is negative for 1 of 3 particles" in caplog.text


def test_bad_stacks_are_named_and_counted(star, tmp_path: Path):
    path = star()
    a, b = tmp_path / "jobs" / "a.mrcs", tmp_path / "jobs" / "b.mrcs"
    content = b.read_bytes()
    b.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"b.mrcs: truncated: .* 5 images .* it holds 4$"):
        read_particles(path)
    a.write_bytes(b"")
    with pytest.raises(ValueError, match=r"b.mrcs: truncated.*\(2 of the 2 stacks are bad\)"):
        read_particles(path)
    b.unlink()
    with pytest.raises(FileNotFoundError, match=r"of its 2 stacks 1 cannot .*jobs/b.mrcs"):
        read_particles(path)


def test_images_of_different_sizes_are_told(star, tmp_path: Path):
    path = star()
    write_stack(tmp_path / "jobs" / "a.mrcs", [np.zeros((5, 8, 8))], 5, 8, 8)
    message = r"b.mrcs has 4x6, .*a.mrcs has 8x8 \(2 of 5 particles"
    with pytest.raises(ValueError, match=message):
        read_particles(path)


@pytest.mark.parametrize("forbidden", ["data.star", "a.mrcs", "jobs"])
def test_what_may_not_be_read_is_named(star, monkeypatch: pytest.MonkeyPatch, forbidden: str):
    path = star()
    really = {"open": Path.open, "stat": Path.stat}

    def refuse(name: str) -> None:
        def refused(self: Path, *args: Any, **options: Any) -> Any:
            if forbidden in (self.name, self.parent.name if name == "stat" else ""):
                raise PermissionError(13, "Permission denied", str(self))
            return really[name](self, *args, **options)

        monkeypatch.setattr(Path, name, refused)

    refuse("stat" if forbidden == "jobs" else "open")
    with pytest.raises(PermissionError, match=f"{forbidden}.*: no permission to read it") as error:
        read_particles(path)
    told(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", "no whole .npy"),
        ("a.npy", b"", "no whole .npy"),
        ("a.jpg", b"x", "one of .mrcs, .mrc, .npy, .txt, .star, .cs, .csg, got '.jpg'"),
        ("a", b"x", "got 'no suffix'"),
        ("a.txt", b"\n", "lists no particles"),
        ("a.mrcs.gz", b"\x1f\x8b\x08 and so on", "a.mrcs.gz: it is compressed; gunzip it first"),
        ("a.csg", b"results: {a: 1}", "no .csg file"),
        ("a.csg", b"\xff", "no .csg file"),
        ("a.csg", b"results: {}", "one or two .cs files in it, found 0; .*dataset.passthrough"),
        ("a.txt", b"b.mrcs", "of its 1 stacks 1 cannot be found, such as b.mrcs"),
        ("a.star", b"data_\nloop_\n_rlnImageName\n", "lists no particles"),
    ],
)
def test_other_files_are_told(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        read_particles(tmp_path / name)
    assert name in told(caught)


@pytest.mark.parametrize("shape", [(3, 4, 5, 1), (5,), (0, 4, 4)])
def test_arrays_of_another_shape_are_told(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"a.npy: expected images"):
        read_particles(tmp_path / "a.npy")


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"a.star: there is no such file"):
        read_particles(tmp_path / "a.star")
    with pytest.raises(
        FileNotFoundError, match=rf"dataset\.datadir: there is no folder {tmp_path}/x"
    ):
        read_particles(tmp_path / "a.star", datadir=tmp_path / "x")
    with pytest.raises(ValueError, match=r"dataset\.pixel_size: expected a number above 0"):
        read_particles(tmp_path / "a.star", pixel_size=0)
