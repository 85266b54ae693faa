"""What `svae.encode` writes of particles: poses, classes, averages, and whose they are."""

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from tests.blobs import correlation, image_of, relion_aligned
from tests.helpers import run_command

import svae
import svae.encode
import svae.train
from svae.ctf import CTF
from svae.datasets.particle_pixels import Preparation
from svae.encoders import GroupConv
from svae.formats.cryosparc import CsTable, read_cs
from svae.formats.mrc import write_stack
from svae.formats.particles import ParticleReader, read_particles
from svae.formats.poses import to_relion
from svae.formats.star import read_star, write_star
from svae.gallery import Gallery
from svae.geometry import pixel_size
from svae.inferred import Inferred, infer_batch
from svae.latents import Latents
from svae.particle_outputs import (
    Averages,
    Found,
    Groups,
    ParticleOutputs,
    align,
    cs_table,
    squared_ctf,
    star_table,
)
from svae.particle_outputs.relion import tell_relion
from svae.posteriors import Attention
from svae.posteriors.sampling import Truncated
from svae.priors import Gaussian, GaussianShift, UniformAngle

APIX = 1.7
COUNT = 12
OPENINGS = (0.0, 0.25)


def poses(size, count=COUNT):
    """Angles, shifts of up to 6 px in grid units, and which of two conformations."""
    random = np.random.default_rng(3)
    theta = random.uniform(-math.pi, math.pi, count)
    shift = random.uniform(-1, 1, (count, 2)) * 0.1 * size * pixel_size(size, size)
    return theta, shift, np.arange(count) % 2


def write_known(folder, size, seen, *, style="3.1", sizes=(5, 7), noise=0.0):
    """Stacks of particles whose pose in images cropped to `seen` is known; what lists them."""
    theta, shift, kind = poses(seen)
    images = [
        image_of(size, theta[i], shift[i], seen, OPENINGS[kind[i]]).astype(np.float32)
        for i in range(COUNT)
    ]
    random = np.random.default_rng(7)
    images = [image + noise * random.standard_normal(image.shape, "f4") for image in images]
    folder.mkdir(parents=True, exist_ok=True)
    names, start = [], 0
    for number, count in enumerate(sizes):
        stack = folder / f"stack{number}.mrcs"
        write_stack(stack, images[start : start + count], count, size, size, APIX)
        names += [f"{i + 1:06d}@{stack.name}" for i in range(count)]
        start += count
    # In another order than in the stacks.
    order = np.random.default_rng(5).permutation(COUNT)
    old = "" if style == "3.0" else "Angst"
    columns = ["rlnImageName", "rlnMicrographName", f"rlnOriginX{old}", f"rlnOriginY{old}"]
    rows = [[names[i], f"m{i}.mrc", "77.5", "-3.25"] for i in order]
    text = ""
    if style == "3.1":
        columns.append("rlnOpticsGroup")
        rows = [[*row, "1"] for row in rows]
        text = (
            "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n"
            f"_rlnImageSize #3\n1 {APIX} {size}\n\n# version 30001\n\ndata_particles\n"
        )
    else:
        text = "data_images\n"
    text += "\nloop_\n" + "".join(f"_{name} #{i + 1}\n" for i, name in enumerate(columns))
    text += "".join(" ".join(row) + "\n" for row in rows)
    (folder / "in.star").write_text(text)
    return folder / "in.star", order


def write_outputs(
    make_model, folder, star, order, size, seen, chosen=slice(None), index=None, **options
):
    """What is written of the exact poses, for some of the particles."""
    theta, shift, kind = (values[order][chosen] for values in poses(seen))
    latents = Latents(
        torch.from_numpy(kind).float().unsqueeze(1),
        torch.from_numpy(theta).float(),
        torch.from_numpy(shift).float(),
    )
    particles = star if not hasattr(star, "suffix") else read_particles(star)
    prepare = Preparation(None if seen == size else seen, "none", invert=False)
    index = torch.arange(len(particles)) if index is None else torch.from_numpy(index)
    images = prepare(ParticleReader(particles)[index]).unsqueeze(1)
    inferred = Inferred(index, latents, torch.zeros(len(images)))
    model = make_model((1, seen, seen), z_dim=1)
    outputs = ParticleOutputs(
        Gallery(model), particles, APIX * size / seen, **({"classes": 2} | options)
    )
    (folder / "figures").mkdir(parents=True)
    tensors = {"image": images, "index": index}
    batches = [{name: t[i : i + 5] for name, t in tensors.items()} for i in range(0, COUNT, 5)]

    class Source:
        def __getitem__(self, rows):
            return {name: t[rows] for name, t in tensors.items()}

    std = latents.map(torch.ones_like)
    groups = outputs.groups(latents.z, seed=1)
    outputs.write(folder, inferred, std, Source(), lambda: batches, groups)


def columns_of(path, block="particles"):
    """The columns of a star, read by gemmi."""
    table = gemmi.cif.read(str(path)).find_block(block)
    loop = next(item.loop for item in table if item.loop is not None)
    return {tag[1:]: list(table.find_values(tag)) for tag in loop.tags}


# ---- the proof


@pytest.mark.parametrize(
    ("size", "seen", "style"),
    [(64, 64, "3.1"), (65, 65, "3.0"), (64, 41, "3.1"), (65, 40, "3.1"), (64, 40, "3.0")],
)
def test_relion_aligns_the_particles_by_what_is_written(tmp_path, make_model, size, seen, style):
    star, order = write_known(tmp_path / "in", size, seen, style=style)
    before = star.read_bytes()
    write_outputs(make_model, tmp_path / "out", star, order, size, seen, aligned=True)

    block = "particles" if style == "3.1" else "images"
    written = columns_of(tmp_path / "out" / "particles.star", block)
    unit = APIX if style == "3.1" else 1.0
    old = "Angst" if style == "3.1" else ""
    origin = [np.array(written[f"rlnOrigin{a}{old}"], float) / unit for a in "XY"]
    psi = np.array(written["rlnAnglePsi"], float)
    kind = poses(seen)[2][order]
    references = [image_of(size, cropped_to=seen, opening=opening) for opening in OPENINGS]
    assert correlation(*references) < 0.98
    for row, name in enumerate(written["rlnImageName"]):
        place, stack = name.split("@")
        with mrcfile.open(star.parent / stack) as file:
            particle = file.data[int(place) - 1].astype(float)
        aligned = relion_aligned(particle, psi[row], (origin[0][row], origin[1][row]))
        assert correlation(aligned, references[kind[row]]) > 0.999
    assert written["rlnClassNumber"] == [str(k + 1) for k in kind]
    # Everything that was there is there, as it was.
    own = columns_of(star, block)
    for name in ("rlnImageName", "rlnMicrographName"):
        assert written[name] == own[name]
    assert star.read_bytes() == before

    # The images that the model sees, aligned, and their averages.
    upright = [image_of(seen, opening=opening) for opening in OPENINGS]
    with mrcfile.open(tmp_path / "out" / "aligned.mrcs") as file:
        assert file.is_image_stack()
        assert file.voxel_size.x == pytest.approx(APIX * size / seen)
        assert file.data.dtype == np.float32
        for image, number in zip(file.data, kind, strict=True):
            assert correlation(image, upright[number]) > 0.999
    with mrcfile.open(tmp_path / "out" / "class_averages.mrcs") as file:
        assert file.is_image_stack()
        assert file.voxel_size.x == pytest.approx(APIX * size / seen)
        for image, reference in zip(file.data, upright, strict=True):
            assert correlation(image, reference) > 0.999
    averages = columns_of(tmp_path / "out" / "model_classes.star", "model_classes")
    assert averages["rlnReferenceImage"] == [f"00000{i}@class_averages.mrcs" for i in (1, 2)]
    assert averages["svaeParticles"] == ["6", "6"]
    for number in (1, 2):
        part = columns_of(tmp_path / "out" / "classes" / f"class_00{number}.star", block)
        assert set(part["rlnClassNumber"]) == {str(number)}
        rows = np.load(tmp_path / "out" / "classes" / f"class_00{number}.npy")
        assert part["rlnImageName"] == [own["rlnImageName"][row] for row in rows]


def test_every_figure_and_movie_is_there(tmp_path, make_model):
    star, order = write_known(tmp_path / "in", 20, 20)
    write_outputs(make_model, tmp_path / "out", star, order, 20, 20, frames=5)
    there = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    names = ["class_averages.png", "conformation_z0.gif", "particles.png"]
    assert there == [*names, "pose_histogram.png", "slices.png"]
    with mrcfile.open(tmp_path / "out" / "conformation_z0.mrcs") as file:
        assert file.is_image_stack()
        assert file.data.shape == (5, 20, 20)
    assert not (tmp_path / "out" / "aligned.mrcs").exists()


def test_without_classes_there_are_poses_alone(tmp_path, make_model):
    star, order = write_known(tmp_path / "in", 20, 20)
    write_outputs(make_model, tmp_path / "out", star, order, 20, 20, classes=0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figures", "particles.star"]
    written = columns_of(tmp_path / "out" / "particles.star")
    assert "rlnClassNumber" not in written
    assert "rlnAnglePsi" in written


# ---- other inputs


@pytest.mark.parametrize("apix", [APIX, None])
def test_a_stack_without_a_table_gets_a_star(tmp_path, make_model, apix, caplog):
    caplog.set_level(logging.INFO)
    write_known(tmp_path / "in", 20, 20, sizes=(12,))
    stack = tmp_path / "in" / "stack0.mrcs"
    if apix is None:
        with mrcfile.open(stack) as file:
            np.save(tmp_path / "in" / "stack0.npy", file.data)
        stack = stack.with_suffix(".npy")
    write_outputs(make_model, tmp_path / "out", stack, np.arange(COUNT), 20, 20)
    path = tmp_path / "out" / "particles.star"
    if apix is None:
        assert "for RELION" not in caplog.text
        assert f"particles: {path} (RELION reads no .npy: python -m svae.prepare" in caplog.text
    else:
        relion_reads(path)
        assert f"for RELION: {path}" in caplog.text
        assert (
            "placeholders, which RELION needs to read it, and no measurements: rlnVoltage 300, "
            "rlnSphericalAberration 2.7, rlnAmplitudeContrast 0.1"
        ) in caplog.text
    written = columns_of(path, "images" if apix is None else "particles")
    assert written["rlnImageName"] == [f"{i + 1:06d}@{stack}" for i in range(COUNT)]
    psi, offset = to_relion(*poses(20)[:2], 20, 20)
    np.testing.assert_allclose(np.array(written["rlnAnglePsi"], float), psi, atol=1e-4)
    tag, unit = ("rlnOriginX", 1) if apix is None else ("rlnOriginXAngst", apix)
    np.testing.assert_allclose(np.array(written[tag], float), offset[:, 0] * unit, atol=1e-4)
    if apix is not None:
        assert float(columns_of(path, "optics")["rlnImagePixelSize"][0]) == pytest.approx(apix)
        again = read_particles(path)
        assert len(again) == COUNT
        assert again.pixel_size[0] == pytest.approx(apix)


def test_a_cs_comes_back_as_one(tmp_path, make_model):
    write_known(tmp_path / "in", 20, 20, sizes=(12,))
    fields = [("uid", "u8"), ("blob/path", "S64"), ("blob/idx", "u4"), ("blob/psize_A", "f4")]
    records = np.zeros(COUNT, [*fields, ("alignments2D/pose", "f4"), ("other/field", "f4", (2,))])
    order = np.random.default_rng(5).permutation(COUNT)
    records["uid"] = order + 1000
    records["blob/path"] = b"stack0.mrcs"
    records["blob/idx"], records["blob/psize_A"] = order, APIX
    records["other/field"] = np.random.default_rng(0).normal(size=(COUNT, 2))
    with (tmp_path / "in" / "in.cs").open("wb") as file:
        np.save(file, records)
    write_outputs(make_model, tmp_path / "out", tmp_path / "in" / "in.cs", order, 20, 20)
    found = read_cs(tmp_path / "out" / "particles.cs").records
    assert not any("scale" in name for name in found.dtype.names)
    for name in ("uid", "blob/path", "blob/idx", "other/field"):
        np.testing.assert_array_equal(found[name], records[name])
    psi, offset = to_relion(*(values[order] for values in poses(20)[:2]), 20, 20)
    np.testing.assert_allclose(found["alignments2D/pose"], np.deg2rad(psi), atol=1e-5)
    np.testing.assert_allclose(found["alignments2D/shift"], offset, atol=1e-5)
    np.testing.assert_array_equal(found["alignments2D/class"], poses(20)[2][order])
    part = read_cs(tmp_path / "out" / "classes" / "class_002.cs").records
    assert part["uid"].tolist() == [uid for uid in records["uid"].tolist() if uid % 2]
    # And a star, whose images are the same.
    star = read_particles(tmp_path / "out" / "particles.star")
    assert star.place.tolist() == order.tolist()


def write_cs_of(path, order, **changed):
    """A `.cs` of the particles of `stack0.mrcs`, with their CTF."""
    fields = {"df1_A": 1.2e4, "df2_A": 1.1e4, "df_angle_rad": np.pi / 6, "accel_kv": 200}
    fields |= {"cs_mm": 2.0, "amp_contrast": 0.07, "phase_shift_rad": np.pi / 2} | changed
    known = {f"ctf/{name}": value for name, value in fields.items() if value is not None}
    kinds = [("uid", "u8"), ("blob/path", "S64"), ("blob/idx", "u4")]
    records = np.zeros(COUNT, kinds + [(name, "f4") for name in known])
    records["uid"], records["blob/path"], records["blob/idx"] = order, b"stack0.mrcs", order
    for name, value in known.items():
        records[name] = value
    with path.open("wb") as file:
        np.save(file, records)
    return path


def nothing_found(count=COUNT, **found):
    """Particles of which nothing is known, or their pose."""
    nothing = np.zeros((count, 0))
    return Found(
        **{"psi_deg": None, "offset_px": None, "classes": None, "peak": None}
        | found
        | {"z": nothing, "z_std": nothing}
    )


OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


def test_the_ctf_of_a_cs_is_in_its_star_whether_it_is_used_or_not(tmp_path):
    write_known(tmp_path, 20, 20, sizes=(12,))
    defocus = np.full(COUNT, 1.2e4)
    defocus[3] = 0  # absurd, which a model that does not use it does not mind
    path = write_cs_of(tmp_path / "in.cs", np.arange(COUNT), df1_A=defocus)
    write_star(
        tmp_path / "out.star", star_table(read_particles(path, bad_ctf=None), nothing_found())
    )
    optics, particles = (
        columns_of(tmp_path / "out.star", name) for name in ("optics", "particles")
    )
    assert [float(optics[tag][0]) for tag in OPTICS] == pytest.approx([200, 2.0, 0.07])
    assert [float(value) for value in particles["rlnDefocusU"]] == defocus.tolist()
    wanted = {"rlnDefocusV": 1.1e4, "rlnDefocusAngle": 30, "rlnPhaseShift": 90}
    for tag, value in wanted.items():
        assert float(particles[tag][5]) == pytest.approx(value, abs=1e-3)
    rest = np.setdiff1d(np.arange(COUNT), 3)
    known = read_particles(path, bad_ctf="drop").ctf
    for name, values in read_particles(tmp_path / "out.star", bad_ctf="drop").ctf.items():
        np.testing.assert_allclose(values, known[name], rtol=1e-5, err_msg=name)
        assert len(values) == len(rest)


def test_half_a_ctf_is_none(tmp_path, caplog):
    """Defoci without the voltage would be read with a voltage that nobody measured."""
    write_known(tmp_path, 20, 20, sizes=(12,))
    path = write_cs_of(tmp_path / "in.cs", np.arange(COUNT), accel_kv=None)
    particles = read_particles(path, bad_ctf=None)
    write_star(tmp_path / "out.star", star_table(particles, nothing_found()))
    optics = columns_of(tmp_path / "out.star", "optics")
    assert [float(optics[tag][0]) for tag in OPTICS] == pytest.approx([300, 2.0, 0.07])
    assert "rlnDefocusU" not in columns_of(tmp_path / "out.star")
    with caplog.at_level(logging.INFO):
        tell_relion(tmp_path / "out.star", particles, particles.stacks)
    assert caplog.messages[-1].endswith("no measurements: rlnVoltage 300")


def test_without_a_pixel_size_the_ctf_is_that_of_relion_30(tmp_path, caplog):
    write_known(tmp_path, 20, 20, sizes=(12,))
    particles = read_particles(write_cs_of(tmp_path / "in.cs", np.arange(COUNT)))
    particles.pixel_size = None
    write_star(tmp_path / "out.star", star_table(particles, nothing_found()))
    written = columns_of(tmp_path / "out.star", "images")
    for tag, value in zip((*OPTICS, "rlnDefocusU"), (200, 2.0, 0.07, 1.2e4), strict=True):
        assert float(written[tag][0]) == pytest.approx(value)
    with caplog.at_level(logging.INFO):
        tell_relion(tmp_path / "out.star", particles, particles.stacks)
    assert "for RELION" not in caplog.text
    assert "no star without a pixel size: give dataset.pixel_size" in caplog.text


# ---- what RELION reads


def relion_reads(star):
    """What RELION 3.1 and later ask of a star of 2D particles before they read an image."""
    optics, particles = (columns_of(star, name) for name in ("optics", "particles"))
    assert optics.keys() >= {"rlnImagePixelSize", "rlnVoltage", "rlnSphericalAberration"}
    assert optics.keys() >= {"rlnOpticsGroup", "rlnImageSize", "rlnImageDimensionality"}
    assert {*particles["rlnOpticsGroup"]} <= {*optics["rlnOpticsGroup"]}
    for name in particles["rlnImageName"]:
        place, stack = name.strip("'\"").split("@")
        assert stack.endswith(".mrcs")  # a .mrc is a 3D map
        with mrcfile.open(stack, permissive=True) as file:
            assert 1 <= int(place) <= len(file.data)


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_names(folder):
    """A list of three stacks of one name in three folders, and of one that has that of a link."""
    images = np.random.default_rng(0).normal(size=(COUNT, 20, 20)).astype(np.float32)
    names = ["a/x.mrc", "b/x.mrc", "c d/X.mrc", "a/x_2.mrc", "a/y.mrcs"]
    for name, own in zip(names, np.split(images, [3, 5, 7, 10]), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_stack(folder / name, [own], len(own), 20, 20, APIX)
    (folder / "all.txt").write_text("\n".join(names))
    return folder / "all.txt", images


def test_stacks_get_names_that_relion_reads(tmp_path, make_model, caplog):
    caplog.set_level(logging.INFO)
    path, images = same_names(tmp_path / "in")
    before = files_in(tmp_path / "in")
    out = tmp_path / "out"
    write_outputs(make_model, out, path, np.arange(COUNT), 20, 20)
    for star in (out / "particles.star", *sorted((out / "classes").glob("*.star"))):
        relion_reads(star)
    assert f"for RELION: {out / 'particles.star'}" in caplog.text
    assert files_in(tmp_path / "in") == before
    links = sorted((out / "stacks").iterdir())
    assert len(links) == len({link.resolve() for link in links}) == 4
    assert len({link.name.casefold() for link in links}) == 4
    assert all(link.is_symlink() and link.readlink().is_absolute() for link in links)
    again = read_particles(out / "particles.star")
    np.testing.assert_array_equal(ParticleReader(again)[np.arange(COUNT)].numpy(), images)
    # The particles of the star are those of the list.
    part = read_particles(path, select=out / "classes" / "class_002.star")
    assert part.rows.tolist() == np.load(out / "classes" / "class_002.npy").tolist()


def test_without_links_it_is_told_what_to_do(tmp_path, make_model, caplog, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path, images = same_names(tmp_path / "in")
    out = tmp_path / "out"
    write_outputs(make_model, out, path, np.arange(COUNT), 20, 20)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line.startswith(f"{out / 'particles.star'}: RELION takes a .mrc for a 3D map")
    assert "rename the stacks to .mrcs, or let python -m svae.prepare" in line
    assert "for RELION" not in caplog.text
    again = read_particles(out / "particles.star")
    assert again.stacks[0] == tmp_path / "in" / "a" / "x.mrc"
    np.testing.assert_array_equal(ParticleReader(again)[np.arange(COUNT)].numpy(), images)


POSED = {"psi_deg": np.full(COUNT, 20.0), "offset_px": np.tile([2.0, -3.0], (COUNT, 1))}


@pytest.mark.parametrize("style", ["3.1", "3.1 without", "3.0"])
def test_a_given_pixel_size_is_what_the_star_says(tmp_path, style):
    """RELION divides offsets in Å by what the star says of pixels."""
    star, _ = write_known(tmp_path, 20, 20, style=style[:3])
    if style == "3.1 without":
        star.write_text(star.read_text().replace("rlnImagePixelSize", "rlnOther"))
    write_star(
        tmp_path / "out.star",
        star_table(read_particles(star, pixel_size=2.5), nothing_found(**POSED)),
    )
    again = read_particles(tmp_path / "out.star")
    assert again.pixel_size.tolist() == [2.5] * COUNT
    if style == "3.0":
        assert float(again.table.column("rlnOriginX")[0]) == 2
    else:
        assert float(again.table.column("rlnOriginXAngst")[0]) / again.pixel_size[0] == 2
    # Without it, what was there stays as it was written.
    same = star_table(read_particles(star), nothing_found(**POSED))
    assert same.column("rlnDetectorPixelSize") is None
    if style == "3.1":
        assert same.column("rlnImagePixelSize", optics=True).tolist() == [str(APIX).encode()]


def test_a_given_pixel_size_is_what_the_cs_says(tmp_path):
    write_known(tmp_path, 20, 20, sizes=(12,))
    particles = read_particles(write_cs_of(tmp_path / "in.cs", np.arange(COUNT)), pixel_size=2.5)
    found = cs_table(particles, nothing_found(**POSED))
    assert found.column("blob/psize_A").tolist() == [2.5] * COUNT
    assert found.column("alignments2D/psize_A").tolist() == [2.5] * COUNT
    known = read_particles(tmp_path / "in.cs")
    assert cs_table(known, nothing_found(**POSED)).column("blob/psize_A") is None


def refined(tmp_path, tilt):
    """The star of a 3D refinement."""
    star, _ = write_known(tmp_path / "in", 20, 20)
    lines = {"rlnAngleRot": 0.0, "rlnAngleTilt": tilt, "rlnAngleTiltPrior": 90.0}
    priors = ["rlnAnglePsiPrior", "rlnOriginXPriorAngst", "rlnOriginYPriorAngst"]
    priors += ["rlnOriginXPrior", "rlnOriginYPrior", "rlnOriginX"]
    columns = {tag: np.broadcast_to(value, COUNT).astype(float) for tag, value in lines.items()}
    columns |= {tag: np.full(COUNT, 55.5) for tag in priors}
    write_star(star, read_star(star).with_columns(columns))
    return star, priors


def test_priors_of_the_old_pose_are_left_out(tmp_path):
    star, priors = refined(tmp_path, 0.0)
    particles = read_particles(star)
    table = star_table(particles, nothing_found(**POSED))
    assert [tag for tag in priors if table.column(tag) is not None] == []
    # What was not replaced is kept, and so is all of it where nothing was.
    assert table.column("rlnAngleTiltPrior") is not None
    assert table.column("rlnMicrographName") is not None
    whole = star_table(particles, nothing_found())
    assert all(whole.column(tag) is not None for tag in priors)


def test_views_of_a_3d_refinement_are_warned_of(tmp_path, make_model, caplog):
    model = Gallery(make_model((1, 20, 20)))
    tilt = np.zeros(COUNT)
    star, _ = refined(tmp_path, tilt)
    ParticleOutputs(model, read_particles(star), None)
    assert not caplog.messages
    tilt[[2, 5]] = 31.5
    star, _ = refined(tmp_path, tilt)
    ParticleOutputs(model, read_particles(star).select([5, 2, 0]), None)
    (line,) = caplog.messages
    assert line.startswith(f"{star}: rlnAngleRot or rlnAngleTilt is not 0 for 2 of 3 particles")
    assert line.endswith("for 2D work only")
    caplog.clear()
    # A model without poses leaves those that were there.
    unposed = make_model((1, 20, 20), infer_theta=False, infer_shift=False)
    ParticleOutputs(Gallery(unposed), read_particles(star), None)
    assert not caplog.messages
    write_star(star, read_star(star).with_columns({"rlnAngleRot": ["?"] * COUNT}))
    with pytest.raises(ValueError, match=r"in.star: rlnAngleRot: expected numbers, got '\?'"):
        ParticleOutputs(model, read_particles(star), None)


# ---- identity


@pytest.mark.parametrize("skipped", [False, True])
def test_particles_keep_their_rows_when_selected_or_skipped(tmp_path, make_model, skipped):
    star, order = write_known(tmp_path / "in", 20, 20)
    chosen = np.array([7, 2, 11, 0, 5])
    np.save(tmp_path / "chosen.npy", chosen)
    particles = read_particles(star, select=None if skipped else tmp_path / "chosen.npy")
    rows = chosen if skipped else particles.rows
    # Of what is not skipped, `index` says which of the particles it is.
    index = chosen if skipped else np.arange(len(chosen))
    write_outputs(make_model, tmp_path / "out", particles, order, 20, 20, rows, index)
    written = columns_of(tmp_path / "out" / "particles.star")
    own = columns_of(star)
    assert written["rlnMicrographName"] == [own["rlnMicrographName"][row] for row in rows]
    psi = to_relion(*poses(20)[:2], 20, 20)[0]
    expected = [psi[int(name[1:-4])] for name in written["rlnMicrographName"]]
    np.testing.assert_allclose(np.array(written["rlnAnglePsi"], float), expected, atol=1e-4)
    kept = [np.load(tmp_path / "out" / "classes" / f"class_00{i}.npy") for i in (1, 2)]
    assert sorted(np.concatenate(kept).tolist()) == sorted(chosen.tolist())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on particles that are cropped as they are read, and their star."""
    folder = tmp_path_factory.mktemp("trained")
    star, _ = write_known(folder / "in", 24, 16, noise=0.2)
    run_command(
        svae.train.main,
        f"hydra.run.dir={folder / 'run'}",
        *("dataset=particles", f"dataset.path={star}", "dataset.size=16", "dataset.batch_size=5"),
        *("model.encoder.hidden=8", "model.generator.hidden=8", "model.pixels_per_image=40"),
        *("trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
        *("callbacks.figures.every_n_epochs=0", "evaluation.iwae_samples=2"),
        *("model.pose_candidates=1", "callbacks.figures.manifold_side=2"),
    )
    return folder / "run", star


def test_a_training_ends_with_averages(trained):
    run, _ = trained
    there = {path.stem for path in (run / "figures").iterdir()}
    assert {"class_averages", "slices", "particles", "pose_histogram"} <= there
    report = (run / "report.html").read_text()
    assert "Means of the aligned particles whose content is alike" in report


def test_encode_writes_of_each_particle_what_the_model_infers_from_it(trained, tmp_path):
    run, star = trained
    options = ["precision=32-true", "progress_bar=false", "classes=3", "batch_size=5"]
    run_command(svae.encode.main, f"hydra.run.dir={tmp_path / 'out'}", f"run={run}", *options)
    written = columns_of(tmp_path / "out" / "particles.star")
    model = svae.load(run)
    prepare = Preparation(16, invert=False)
    for row, name in enumerate(written["rlnImageName"]):
        place, stack = name.split("@")
        with mrcfile.open(star.parent / stack) as file:
            image = torch.from_numpy(file.data[int(place) - 1 : int(place)].copy())
        latents = model.encode(prepare(image).unsqueeze(1))
        psi, offset = to_relion(
            latents.theta.double().numpy(), latents.shift.double().numpy(), 16, 16, 24 / 16
        )
        wanted = {
            "svaeZ0": latents.z[0, 0],
            "svaeZ1": latents.z[0, 1],
            "rlnAnglePsi": psi[0],
            "rlnOriginXAngst": offset[0, 0] * APIX,
            "rlnOriginYAngst": offset[0, 1] * APIX,
        }
        for column, value in wanted.items():
            assert float(written[column][row]) == pytest.approx(float(value), abs=2e-3), column
    assert len({*written["svaeZ0"]}) == COUNT
    assert {*written["rlnClassNumber"]} == {"1", "2", "3"}
    assert "rlnMaxValueProbDistribution" not in written

    chosen = tmp_path / "out" / "classes" / "class_002.npy"
    again = [f"hydra.run.dir={tmp_path / 'two'}", f"run={run}", "dataset=particles", "classes=0"]
    more = [f"dataset.path={star}", f"dataset.select={chosen}"]
    run_command(svae.encode.main, *again, *more, *options[:2])
    two = columns_of(tmp_path / "two" / "particles.star")
    part = columns_of(tmp_path / "out" / "classes" / "class_002.star")
    assert two["rlnImageName"] == part["rlnImageName"]
    np.testing.assert_allclose(
        np.array(two["svaeZ0"], float), np.array(part["svaeZ0"], float), atol=1e-3
    )


def test_encode_writes_the_ctf_of_a_cs_without_using_it(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_known(tmp_path, 24, 16, sizes=(12,))
    (tmp_path / "stack0.mrcs").rename(tmp_path / "stack0.mrc")
    records = np.load(write_cs_of(tmp_path / "in.cs", np.arange(COUNT), df1_A=-5.0))
    records["blob/path"] = b"stack0.mrc"
    with (tmp_path / "in.cs").open("wb") as file:
        np.save(file, records)
    options = ["dataset=particles", "dataset.path=in.cs", "classes=0", "progress_bar=false"]
    run_command(svae.encode.main, "hydra.run.dir=out", f"run={trained[0]}", *options)
    relion_reads(tmp_path / "out" / "particles.star")
    written = columns_of(tmp_path / "out" / "particles.star")
    assert {*written["rlnDefocusU"]} == {"-5.000000"}
    assert written["rlnImageName"][0] == f"000001@{tmp_path}/out/stacks/stack0.mrcs"
    log = (tmp_path / "out" / "encode.log").read_text()
    assert f"for RELION: {tmp_path}/out/particles.star" in log
    assert "placeholders" not in log


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("classes=-1", "classes: expected a whole number of at least 0, got -1"),
        ("frames=1", "frames: expected a whole number of at least 2, got 1"),
        ("aligned=7", "aligned: expected true or false, got 7"),
        ("averages_snr=0", "snr: expected a number above 0, got 0"),
    ],
)
def test_a_wrong_option_ends_in_one_line(trained, tmp_path, option, message, capfd):
    with pytest.raises(SystemExit):
        run_command(
            svae.encode.main, f"hydra.run.dir={tmp_path / 'out'}", f"run={trained[0]}", option
        )
    captured = capfd.readouterr()
    assert message in captured.out + captured.err
    assert not (tmp_path / "out" / "latents.csv").exists()


def test_offsets_in_angstrom_need_a_pixel_size(tmp_path, make_model):
    star, _ = write_known(tmp_path / "in", 20, 20)
    particles = read_particles(star)
    particles.pixel_size = None
    with pytest.raises(ValueError, match=r"in.star: expected a pixel size.*dataset.pixel_size"):
        ParticleOutputs(Gallery(make_model((1, 20, 20))), particles, None)
    with pytest.raises(ValueError, match=r"square images to align.*got 3 channels of 8x8"):
        ParticleOutputs(Gallery(make_model((3, 8, 8))), None, None)


def test_a_lattice_has_a_most_probable_pose(tmp_path, make_model):
    shape = (1, 9, 9)
    model = make_model(
        image_shape=shape,
        encoder=partial(GroupConv, group_order=4, channels=4, kernel_size=5, padding=1),
        posterior=partial(Attention, sampling=Truncated(3)),
        prior={"z": Gaussian(2), "theta": UniformAngle(), "shift": GaussianShift(1.4, shape)},
    ).eval()
    batch = {"image": torch.rand(3, *shape), "index": torch.arange(3)}
    inferred, _ = infer_batch(model, batch)
    weights = model.infer(batch["image"]).weights
    torch.testing.assert_close(inferred.peak, weights.flatten(1).amax(1).detach())
    write_known(tmp_path, 20, 20, sizes=(12,))
    particles = read_particles(tmp_path / "stack0.mrcs").select([4, 1, 6])
    nothing = np.zeros((3, 0))
    found = Found(None, None, None, inferred.peak.numpy(), nothing, nothing)
    column = star_table(particles, found).column("rlnMaxValueProbDistribution")
    np.testing.assert_allclose(column.astype(float), inferred.peak, atol=1e-5)
    assert star_table(particles, found).column("rlnAnglePsi") is None


# ---- aligning and averaging


def test_right_angles_move_pixels_and_noise_stays_what_it_is():
    noise = torch.randn(40, 33, 33)
    for turns in range(4):
        psi = torch.full((40,), 90.0 * turns)
        whole = align(noise, psi, torch.zeros(40, 2))
        torch.testing.assert_close(whole, noise.rot90(-turns, (1, 2)), atol=1e-5, rtol=0)
    turned = align(noise, torch.linspace(-170, 170, 40), torch.rand(40, 2) * 4 - 2)
    inner = turned[:, 10:-10, 10:-10]
    assert inner.var() == pytest.approx(1, abs=0.06)
    neighbours = (inner[:, :, 1:] * inner[:, :, :-1]).mean()
    assert abs(neighbours) < 0.03


@pytest.mark.parametrize("size", [40, 41])
def test_sizes_are_removed_with_the_pose(size):
    """In the end, about the middle of the image: RELION's angle and offset stay what they are."""
    theta, shift, _ = poses(size)
    log_scale = np.linspace(-0.3, 0.3, COUNT)
    images = [
        image_of(size, *pose[:2], log_scale=pose[2])
        for pose in zip(theta, shift, log_scale, strict=True)
    ]
    images = torch.from_numpy(np.stack(images)).float()
    psi, offset = (torch.from_numpy(v) for v in to_relion(theta, shift, size, size))
    aligned = align(images, psi, offset, torch.from_numpy(log_scale))
    unsized = align(images, psi, offset)
    for image, other, s in zip(aligned, unsized, log_scale, strict=True):
        assert correlation(image, image_of(size)) > 0.999
        assert correlation(other, image_of(size, log_scale=s)) > 0.999
        assert image.std() == pytest.approx(image_of(size).std(), rel=0.02)
    torch.testing.assert_close(align(images, psi, offset, torch.zeros(COUNT)), unsized)
    noise = torch.randn(40, size, size)
    still = torch.zeros(40), torch.zeros(40, 2)
    inner = align(noise, *still, torch.linspace(-0.3, 0.3, 40))[:, 8:-8, 8:-8]
    assert inner.var() == pytest.approx(1, abs=0.06)


def test_what_comes_from_outside_is_the_mean_of_the_rim():
    for size in (12, 17):
        images = torch.full((2, size, size), 5.0)
        sized = torch.tensor([0.3, -0.3])
        found = align(images, torch.tensor([30.0, -70.0]), torch.ones(2, 2), sized)
        torch.testing.assert_close(found, images)
    images = torch.full((1, 12, 12), 5.0)
    torch.testing.assert_close(align(images, torch.tensor([30.0]), torch.ones(1, 2)), images)
    with pytest.raises(ValueError, match=r"square images.*got \(1, 12, 10\)"):
        align(images[:, :, :10], torch.zeros(1), torch.zeros(1, 2))


def test_a_known_ctf_is_taken_out_of_averages():
    size, count = 48, 60
    random = np.random.default_rng(1)
    theta = random.uniform(-math.pi, math.pi, count)
    images = np.stack([image_of(size, angle) for angle in theta])
    params = np.tile([12000.0, 12000, 0, 300, 2.7, 0.1, 0, 3.0, 0], (count, 1))
    params[:, 0] += random.uniform(-4000, 8000, count)
    params[:, 1] = params[:, 0] - 3000
    params[:, 2] = random.uniform(0, 180, count)
    known = CTF(torch.from_numpy(params).float(), torch.zeros(count, dtype=torch.long))
    seen = known.filtered(torch.from_numpy(images).float().unsqueeze(1))
    psi, offset = (torch.from_numpy(v) for v in to_relion(theta, np.zeros((count, 2)), size, size))
    members = torch.zeros(count, 1, dtype=torch.long)
    plain, filtered = Averages(1, size), Averages(1, size, snr=10.0)
    plain.add(align(seen[:, 0], psi, offset), members)
    squared = squared_ctf(known, psi, size)
    filtered.add(align(known.filtered(seen)[:, 0], psi, offset), members, squared)
    reference = image_of(size)
    assert correlation(plain.means()[0], reference) < 0.9
    assert correlation(filtered.means()[0], reference) > 0.99


def test_a_ctf_turns_with_its_image():
    size, psi = 64, torch.tensor([30.0])
    params = torch.tensor([[9000.0, 5000, 20, 300, 2.7, 0.1, 0, 6.0, 200]])
    known = CTF(params, torch.zeros(1, dtype=torch.long))
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    turned = align(known.filtered(point)[:, 0], psi, torch.zeros(1, 2))
    power = torch.fft.rfft2(turned).abs().square()[..., : size // 3]
    assert correlation(power, squared_ctf(known, psi, size)[..., : size // 3]) > 0.95
    assert correlation(power, squared_ctf(known, -psi, size)[..., : size // 3]) < 0.8


@pytest.mark.parametrize("log_scale", [0.2, -0.2])
def test_a_ctf_is_resized_with_its_image(log_scale):
    size, still, scale = 65, (torch.zeros(1), torch.zeros(1, 2)), torch.tensor([log_scale])
    params = torch.tensor([[9000.0, 5000, 20, 300, 2.7, 0.1, 0, 6.0, 200]])
    known = CTF(params, torch.zeros(1, dtype=torch.long))
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    resized = align(known.filtered(point)[:, 0], *still, scale)
    # Frequencies that are in the image before and after.
    low = (torch.fft.fftfreq(size).abs() < 0.3)[:, None] & (torch.fft.rfftfreq(size) < 0.3)
    # A point of the image is smaller than one of the object, and fainter, where that is larger.
    power = torch.fft.rfft2(resized).abs().square()[:, low] * math.exp(4 * log_scale)

    def error(*sizes):
        return (power - squared_ctf(known, still[0], size, *sizes)[:, low]).square().mean()

    assert error(scale) < 0.1 * error()
    assert error(scale) < 0.1 * error(-scale)


def test_sizes_have_columns_of_their_own(tmp_path, make_model):
    star, _ = write_known(tmp_path / "in", 20, 20)
    model = make_model((1, 20, 20), z_dim=1, infer_scale=True)
    particles = read_particles(star)
    latents = Latents(
        torch.zeros(COUNT, 1),
        torch.zeros(COUNT),
        torch.zeros(COUNT, 2),
        torch.linspace(-0.3, 0.3, COUNT),
    )
    inferred = Inferred(torch.arange(COUNT), latents, torch.zeros(COUNT))
    std = latents.map(lambda value: torch.full_like(value, 0.1))
    found = ParticleOutputs(Gallery(model), particles, APIX).found(particles, inferred, std, None)
    rows = np.array([3, 1])
    table = star_table(particles.select(rows), found[rows])
    expected = latents.log_scale.exp()[rows]
    np.testing.assert_allclose(table.column("svaeScale").astype(float), expected, atol=1e-5)
    np.testing.assert_allclose(
        table.column("svaeScaleStd").astype(float), 0.1 * expected, atol=1e-5
    )
    table = CsTable(np.array([(1, 2.0)] * COUNT, [("uid", "u8"), ("blob/psize_A", "f4")]))
    of_cs = cs_table(replace(particles, table=table), found).records
    np.testing.assert_allclose(of_cs["svae/scale"], latents.log_scale.exp(), atol=1e-5)
    np.testing.assert_allclose(of_cs["svae/scale_std"], 0.1 * of_cs["svae/scale"], atol=1e-5)
    without = Gallery(make_model((1, 20, 20), z_dim=1))
    found = ParticleOutputs(without, particles, APIX).found(particles, inferred, std, None)
    assert star_table(particles, found).column("svaeScale") is None


# ---- classes and slices


def test_classes_are_numbered_along_the_content():
    means = torch.tensor([[3.0, 0.1], [-3, 0], [0, 0.2], [6, -0.1]])
    z = (means + 0.1 * torch.randn(25, 4, 2)).flatten(0, 1)
    groups = Groups.of(z, 4, seed=1)
    assert groups.classes[:4].tolist() == [2, 0, 1, 3]
    assert groups.of_classes(groups.counts).tolist() == [25] * 4
    assert groups.axes == [0, 1]
    slices = groups.of_slices(groups.counts)
    assert slices.shape == (2, 7)
    assert slices.sum(1).tolist() == [100, 100]
    assert slices.max() - slices.min() <= 1
    values = groups.of_slices(groups.z)[0, :, 0]
    assert (values.diff() > 0).all()
    lowest = z[groups.slices[:, 0] == 0]
    assert lowest[:, 0].max() <= z[groups.slices[:, 0] != 0][:, 0].min()
    assert values[0] == pytest.approx(lowest[:, 0].mean().item(), abs=1e-5)


def test_few_particles_and_no_content_have_classes_too():
    groups = Groups.of(torch.randn(3, 2), 10, seed=1)
    assert groups.num_classes == 3
    assert groups.num_slices == 3
    groups = Groups.of(torch.zeros(5, 0), 10, seed=1)
    assert groups.classes.tolist() == [0] * 5
    assert groups.axes == []
    assert groups.members.tolist() == [[0]] * 5
    # Content that collapsed onto a point has one class.
    assert Groups.of(torch.ones(6, 1), 3, seed=1).num_classes == 1


def test_only_axes_along_which_particles_differ_most_are_shown():
    z = torch.randn(50, 12) * torch.linspace(0.1, 2, 12)
    assert Groups.of(z, 2, seed=1).axes == list(range(4, 12))
