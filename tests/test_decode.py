"""`python -m svae.decode`, in this process, on small runs that are trained once."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import run_command, write_pictures

import svae
import svae.decode
import svae.train
from svae.decode import MAKERS
from svae.geometry import remove_pose
from svae.run import prepared_data, read_config

TINY = [
    "model.encoder.hidden=16",
    "model.generator.hidden=16",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "dataset.batch_size=5",
    "trainer.enable_progress_bar=false",
    "~callbacks.figures",
    "test=false",
]
SMALL = ["manifold_side=5", "steps=4", "frames=6"]
SIZE = 16


def train(folder, *overrides):
    pictures = folder.parent / "pictures"
    if not pictures.exists():
        write_pictures(pictures, count=40, size=SIZE, labels=2)
    options = ["dataset=images", f"dataset.path={pictures}", "dataset.test_fraction=0.4"]
    run_command(svae.train.main, f"hydra.run.dir={folder}", *TINY, *options, *overrides)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def decode(tmp_path):
    """Decode; returns the names of all that was written, and the folder."""

    def run(run, *overrides, name="decoded"):
        folder = tmp_path / name
        run_command(svae.decode.main, f"hydra.run.dir={folder}", f"run={run}", *SMALL, *overrides)
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        return {str(f) for f in files if f.suffix in (".png", ".gif", ".npz")}, folder

    return run


@pytest.fixture
def refusal(tmp_path, capfd):
    """The one line that ends a command before it writes anything."""

    def run(*overrides):
        folder = tmp_path / "refused"
        capfd.readouterr()
        with pytest.raises(SystemExit):
            run_command(svae.decode.main, f"hydra.run.dir={folder}", *overrides)
        captured = capfd.readouterr()
        lines = [line for line in (captured.out + captured.err).splitlines() if line.strip()]
        assert len(lines) == 1, captured
        assert not list(folder.rglob("*.npz")) + list(folder.rglob("*.png"))
        return lines[0]

    return run


def arrays_of(folder, name):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def shapes_of(folder, name):
    return {key: array.shape for key, array in arrays_of(folder, name).items()}


def files_of(name):
    moving = name in ("interpolations", "rotations")
    return {f"{name}.npz", f"figures/{name}.png"} | ({f"figures/{name}.gif"} if moving else set())


@pytest.mark.parametrize("name", list(MAKERS))
def test_each_alone(trained, decode, name):
    written, folder = decode(trained, f"what={name}")
    assert written == files_of(name)
    with Image.open(folder / "figures" / f"{name}.png") as image:
        assert min(image.size) > 100
    values = arrays_of(folder, name)
    assert all(np.isfinite(array).all() for array in values.values())


@pytest.fixture(scope="module")
def everything(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("all") / "decoded"
    run_command(svae.decode.main, f"hydra.run.dir={folder}", f"run={trained}", *SMALL)
    return folder


def test_all_by_default(everything):
    written = {str(p.relative_to(everything)) for p in everything.rglob("*.???")}
    assert {file for name in MAKERS for file in files_of(name)} <= written
    image = (1, SIZE, SIZE)
    assert shapes_of(everything, "manifold") == {"z": (25, 2), "images": (25, *image)}
    assert shapes_of(everything, "traversals") == {"z": (8, 2), "images": (8, *image)}
    assert shapes_of(everything, "samples") == {"z": (144, 2), "images": (144, *image)}
    assert shapes_of(everything, "interpolations") == {
        "index": (4, 2),
        "ends": (4, 2, *image),
        "z": (4, 2, 2),
        "images": (4, 6, *image),
    }
    assert shapes_of(everything, "pose_removed") == {
        "index": (12,),
        "inputs": (12, *image),
        "aligned": (12, *image),
        "generated": (12, *image),
    }
    assert shapes_of(everything, "rotations") == {
        "index": (4,),
        "z": (4, 2),
        "images": (4, 6, *image),
    }


def test_the_arrays_are_what_the_model_makes(trained, everything):
    model, data = svae.load(trained), prepared_data(read_config(trained))
    images = data.everything()

    def upright(z):
        z = torch.from_numpy(z)
        return model.decode(svae.Latents(z, torch.zeros(len(z)), torch.zeros(len(z), 2))).numpy()

    for name in ("manifold", "traversals", "samples"):
        arrays = arrays_of(everything, name)
        np.testing.assert_allclose(arrays["images"], upright(arrays["z"]), atol=1e-5)
    removed = arrays_of(everything, "pose_removed")
    index = torch.from_numpy(removed["index"])
    assert set(index.tolist()) <= set(data.splits["test"]["index"].tolist())
    batch = images[index]["image"]  # nothing was skipped, so that an index is a row
    latents = model.encode(batch)
    np.testing.assert_array_equal(removed["inputs"], batch)
    expected = remove_pose(batch, latents.theta, latents.shift)
    np.testing.assert_allclose(removed["aligned"], expected, atol=1e-5)
    np.testing.assert_allclose(removed["generated"], upright(latents.z.numpy()), atol=1e-5)

    between = arrays_of(everything, "interpolations")
    ends = images[torch.from_numpy(between["index"]).flatten()]["image"]
    np.testing.assert_array_equal(between["ends"].reshape(ends.shape), ends)
    z = between["z"]
    np.testing.assert_allclose(z.reshape(-1, 2), model.encode(ends).z, atol=1e-5)
    for step in range(6):
        on_the_way = z[:, 0] + (z[:, 1] - z[:, 0]) * step / 5
        np.testing.assert_allclose(between["images"][:, step], upright(on_the_way), atol=1e-5)

    turned = arrays_of(everything, "rotations")
    z = torch.from_numpy(turned["z"])
    for step in range(6):
        theta = torch.full((4,), step * torch.pi / 3)
        expected = model.decode(svae.Latents(z, theta, torch.zeros(4, 2))).numpy()
        np.testing.assert_allclose(turned["images"][:, step], expected, atol=1e-5)


def frames_in(path):
    with Image.open(path) as image:
        # Frames that look alike become one that is shown for longer.
        total = 0
        for frame in range(image.n_frames):
            image.seek(frame)
            total += image.info["duration"]
        return total // 80, image.info["loop"]


def test_animations_have_their_frames_and_run_for_ever(everything):
    assert frames_in(everything / "figures" / "rotations.gif") == (6, 0)
    # There and back, neither end twice.
    assert frames_in(everything / "figures" / "interpolations.gif") == (10, 0)


def test_the_manifold_needs_no_data(tmp_path, decode, refusal):
    run = train(tmp_path / "moved" / "run")
    shutil.rmtree(tmp_path / "moved" / "pictures")
    names = ["manifold", "traversals", "samples"]
    written, _ = decode(run, f"what=[{','.join(names)}]")
    assert written == set.union(*map(files_of, names))
    line = refusal(f"run={run}")
    assert f"{tmp_path / 'moved' / 'pictures'} does not exist" in line


def test_images_and_pairs_are_chosen_by_index(trained, decode):
    chosen = ["what=[traversals,pose_removed,rotations,interpolations,rotations]"]
    chosen += ["images=[7,3,30]", "pairs=[[3,8],[39,0],[8,3]]", "dims=[1]"]
    _, folder = decode(trained, *chosen)
    assert arrays_of(folder, "pose_removed")["index"].tolist() == [7, 3, 30]
    assert arrays_of(folder, "rotations")["index"].tolist() == [7, 3, 30]
    between = arrays_of(folder, "interpolations")
    assert between["index"].tolist() == [[3, 8], [39, 0], [8, 3]]
    back = between["images"][2][::-1]
    np.testing.assert_allclose(between["images"][0], back, atol=1e-6)
    z = arrays_of(folder, "traversals")["z"]
    assert (z[:, 0] == 0).all()
    assert len(set(z[:, 1])) == 4


def test_other_images(trained, decode, tmp_path):
    write_pictures(tmp_path / "others", count=3, size=30)
    _, folder = decode(
        trained,
        "dataset=images",
        f"dataset.path={tmp_path / 'others'}",
        f"dataset.resize={SIZE}",
        "what=[pose_removed,interpolations]",
    )
    assert arrays_of(folder, "pose_removed")["index"].tolist() == [0, 1, 2]
    assert arrays_of(folder, "interpolations")["index"].tolist() == [[0, 1]]


def test_one_image_is_enough_for_what_shows_one(trained, decode, capfd):
    written, _ = decode(trained, "images=[4]")
    assert "interpolations is left out: it needs two images" in capfd.readouterr().out
    assert written == set.union(*(files_of(n) for n in MAKERS if n != "interpolations"))


def test_the_seed_decides_the_samples(trained, everything, decode):
    _, one = decode(trained, "what=samples", name="one")
    np.testing.assert_array_equal(
        arrays_of(one, "samples")["z"], arrays_of(everything, "samples")["z"]
    )
    _, two = decode(trained, "what=samples", "seed=2", name="two")
    assert (arrays_of(two, "samples")["z"] != arrays_of(one, "samples")["z"]).all()


@pytest.mark.parametrize(
    ("model", "left_out"),
    [
        (
            ["model=vanilla_vae"],
            {"pose_removed": "infers no pose", "rotations": "no coordinates to turn"},
        ),
        (["model=spatial_vae_fixed_pose"], {"pose_removed": "infers no pose"}),
        (
            ["model.z_dim=0"],
            dict.fromkeys(set(MAKERS) - {"pose_removed"}, "no content (z_dim 0)"),
        ),
        (["model.z_dim=3", "model.infer_shift=false"], {}),
    ],
)
def test_what_a_model_cannot_do_is_left_out(tmp_path, decode, capfd, model, left_out):
    run = train(tmp_path / "run", *model)
    capfd.readouterr()
    written, folder = decode(run)
    printed = capfd.readouterr().out
    lines = [line for line in printed.splitlines() if "left out" in line]
    assert len(lines) == len(left_out)
    for name, why in left_out.items():
        (line,) = [line for line in lines if f"{name} is left out" in line]
        assert why in line
    assert written == set.union(*(files_of(n) for n in MAKERS if n not in left_out))
    what, where = printed.splitlines()[-2:]
    assert what.endswith("decoded: " + ", ".join(n for n in MAKERS if n not in left_out))
    assert str(folder / "figures") in where


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["what=dreams"], "what: expected one of manifold, traversals, .* got 'dreams'"),
        (["what=[manifold,dreams]"], "what: expected one of .* got 'dreams'"),
        (["what=[]"], "what: expected one of .* got None"),
        (["what=5"], "what: expected one of .* got 5"),
        (["what=null"], "what: expected one of .* got None"),
        (["images=[3,40]"], "images: expected indices of images, 0 to 39, got 40"),
        (["images=[]"], r"images: expected a list of indices such as \[3, 8\], got \[\]"),
        (["images=3"], r"images: expected a list of indices such as \[3, 8\], got 3"),
        (["images=[a]"], r"images: expected a list of indices .* got \['a'\]"),
        (["pairs=[[3,99]]"], "pairs: expected indices of images, 0 to 39, got 99"),
        (["pairs=[3,8]"], r"pairs: expected pairs .* \[\[3, 8\]\], got \[3, 8\]"),
        (["pairs=[[3,8,9]]"], "pairs: expected pairs"),
        (["pairs=[]"], "pairs: expected pairs"),
        (["pairs=3"], "pairs: expected pairs of indices .* got 3"),
        (["pairs=[[3,b]]"], "pairs: expected a list of indices"),
        (["dims=[2]"], r"dims: expected numbers from 0 to 1, got \[2\]"),
        (["dims=1"], r"dims: expected a list of numbers such as \[0, 1\], got 1"),
        (["steps=1"], "steps: expected a whole number of at least 2, got 1"),
        (["frames=1"], "frames: expected a whole number of at least 2, got 1"),
        (["manifold_side=x"], "manifold_side: expected a whole number of at least 2, got 'x'"),
        (["checkpoint=newest"], "newest.ckpt does not exist; there is best, last"),
    ],
)
def test_wrong_settings(trained, refusal, overrides, message):
    line = refusal(f"run={trained}", *overrides)
    assert re.search(message, line), line


def test_a_folder_that_is_no_run(refusal, tmp_path):
    assert f"run: {tmp_path} is not a run directory" in refusal(f"run={tmp_path}")


def test_images_of_another_size(trained, refusal, tmp_path):
    write_pictures(tmp_path / "others", count=3, size=30)
    line = refusal(f"run={trained}", "dataset=images", f"dataset.path={tmp_path / 'others'}")
    assert "got (1, 30, 30); dataset.resize=16 may help" in line
