"""What is handed to the figures; the figures themselves are tested in `tests/figures`."""

from functools import partial

import pytest
import torch
from matplotlib.figure import Figure
from torch.testing import assert_close

from svae import figures
from svae.gallery import Gallery, couples, spread
from svae.generators import PixelMLP
from svae.geometry import remove_pose
from svae.inferred import infer_batch
from svae.latents import Latents
from svae.likelihoods import Bernoulli, Gaussian
from svae.priors import Gaussian as GaussianPrior
from svae.priors import GaussianAngle, GaussianShift


@pytest.fixture
def shown(monkeypatch):
    """The arguments of every figure that is drawn, by the function's name."""
    seen = {}

    def watched(name, function):
        def draw(*args, **options):
            seen[name] = (args, options)
            return function(*args, **options)

        return draw

    for name in figures.__all__:
        if name.endswith("_figure"):
            monkeypatch.setattr(figures, name, watched(name, getattr(figures, name)))
    return seen


def batch_of(model, count=6, **truth):
    torch.manual_seed(1)
    image = torch.rand(count, *model.image_shape)
    return {"image": image, "index": torch.arange(count), **truth}


def drawn_by(gallery, batch):
    found, _ = infer_batch(gallery.model, batch)
    everything = dict(gallery.of_content())
    everything |= dict(gallery.of_images(batch["image"], found, found))
    everything["worst"] = gallery.worst(batch["image"], found, list("abcdef"))
    everything["pose_removed"] = gallery.pose_removed(batch["image"], found.latents)[0]
    if gallery.model.z_dim:
        z = found.latents.z
        pairs = couples(len(z))
        everything["samples"] = gallery.samples(batch["image"])[0]
        everything["interpolations"] = gallery.interpolations(batch["image"][pairs], z[pairs])
        everything["rotations"] = gallery.rotations(z)[0]
    return everything


@pytest.mark.parametrize(
    "shape", [(1, 9, 9), (3, 9, 9), (5, 9, 9), (2, 7, 10)], ids=["grey", "rgb", "five", "two"]
)
@pytest.mark.parametrize("z_dim", [0, 1, 2, 3])
def test_every_figure_of_every_kind_of_image(make_model, tmp_path, shape, z_dim):
    model = make_model(shape, z_dim).eval()
    drawn = drawn_by(Gallery(model, 3, 4, 3), batch_of(model))
    expected = {"reconstructions", "pose_histogram", "worst", "pose_removed"}
    if z_dim:
        expected |= {"latents", "samples", "interpolations", "rotations"}
        expected |= {"manifold"} if z_dim < 3 else {"traversals"}
    assert drawn.keys() == expected
    assert all(isinstance(figure, Figure) for figure in drawn.values())
    drawn["reconstructions"].savefig(tmp_path / "a.png")


def test_of_many_channels_the_first_is_drawn_and_all_are_kept(make_model, shown):
    model = make_model((5, 9, 9)).eval()
    gallery = Gallery(model, 3, 4, 3)
    batch = batch_of(model)
    found, _ = infer_batch(model, batch)
    _, aligned, generated = gallery.pose_removed(batch["image"], found.latents)
    assert aligned.shape == generated.shape == (6, 5, 9, 9)
    drawn = shown["reconstruction_figure"][0]
    assert_close(drawn[0], batch["image"][:, :1])
    assert_close(drawn[1], aligned[:, :1])
    assert_close(drawn[2], generated[:, :1])
    _, _, images = gallery.manifold()
    assert images.shape == (16, 5, 9, 9)
    assert_close(shown["manifold_figure"][0][0], images[:, :1])
    _, turned = gallery.rotations(found.latents.z, 8)
    assert turned.shape == (4, 8, 5, 9, 9)
    assert_close(shown["rotation_figure"][0][0], turned[:, :, :1])


def test_the_three_rows_and_the_pose_in_degrees_and_pixels(make_model, shown):
    model = make_model().eval()
    gallery = Gallery(model)
    batch = batch_of(model)
    latents = infer_batch(model, batch)[0].latents
    gallery.reconstructions(batch["image"], latents)
    (images, rebuilt, upright, theta_deg, shift_px), options = shown["reconstruction_figure"]
    assert_close(images, batch["image"])
    assert_close(rebuilt, model.decode(latents))
    at_rest = Latents(latents.z, torch.zeros(6), torch.zeros(6, 2))
    assert_close(upright, model.decode(at_rest))
    assert_close(theta_deg, latents.theta * 180 / torch.pi)
    assert_close(shift_px, latents.shift * 4)  # nine pixels, eight steps from -1 to 1
    assert options["scored"].all()

    _, aligned, generated = gallery.pose_removed(batch["image"], latents)
    assert_close(aligned, remove_pose(batch["image"], latents.theta, latents.shift))
    assert_close(generated, upright)


def test_pixels_that_are_not_scored_are_told_to_the_figure(make_model, shown):
    model = make_model(likelihood=partial(Bernoulli, mask_radius_px=2)).eval()
    batch = batch_of(model)
    found, _ = infer_batch(model, batch)
    Gallery(model).reconstructions(batch["image"], found.latents)
    scored = shown["reconstruction_figure"][1]["scored"]
    assert scored.sum() == 13
    assert scored[2, 4]
    assert scored[4, 2]
    assert not scored[2, 2]


@pytest.mark.parametrize("std", [1.0, 2.5])
def test_content_comes_from_the_prior(make_model, std):
    shape = (1, 9, 9)
    prior = {"theta": GaussianAngle(45.0), "shift": GaussianShift(1.4, shape)}
    model = make_model(prior=prior | {"z": GaussianPrior(2, std=std)}).eval()
    gallery = Gallery(model, 12, 8, 5, seed=3)
    _, z, _ = gallery.samples()
    assert z.shape == (144, 2)
    assert z.std().item() == pytest.approx(std, rel=0.15)
    _, z, _ = gallery.manifold()
    assert_close(z[:, 0].max(), torch.tensor(std) * torch.special.ndtri(torch.tensor(15 / 16)))
    _, z, _ = gallery.traversals()
    assert_close(z.max(), torch.tensor(std) * torch.special.ndtri(torch.tensor(0.98)))
    assert (Gallery(model, seed=3).samples()[1] == gallery.samples()[1]).all()
    assert (Gallery(model, seed=4).samples()[1] != gallery.samples()[1]).all()


def test_at_most_sixteen_components_are_traversed(make_model):
    gallery = Gallery(make_model(z_dim=18).eval(), steps=3)
    _, z, images = gallery.traversals()
    assert len(z) == len(images) == 48
    assert (z[:, 16:] == 0).all()
    assert len(gallery.traversals([17])[1]) == 3


def test_the_way_between_two_contents_is_straight_and_ends_there(make_model):
    model = make_model().eval()
    gallery = Gallery(model)
    z = torch.randn(2, 2, 2)
    images = gallery.path(z, 5)
    assert images.shape == (2, 5, 1, 9, 9)
    assert_close(images[:, 0], gallery.upright(z[:, 0]))
    assert_close(images[:, 4], gallery.upright(z[:, 1]))
    assert_close(images[:, 1], gallery.upright(z[:, 0] * 0.75 + z[:, 1] * 0.25))


def test_objects_turn_counter_clockwise_all_around(make_model):
    model = make_model((1, 21, 21)).eval()
    # An object that is bright on the right of its centre.
    model.generator.pixels = lambda coords, z: 10 * coords[..., :1]
    _, images = Gallery(model).rotations(torch.zeros(1, 2), 4)
    assert images.shape == (1, 4, 1, 21, 21)
    right, up, left, down = images[0, :, 0]
    assert right[10, 20] > 0.9 > 0.1 > right[10, 0]
    assert up[0, 10] > 0.9 > 0.1 > up[20, 10]
    assert left[10, 0] > 0.9
    assert down[20, 10] > 0.9


def test_the_true_pose_where_it_is_known(make_model, shown):
    model = make_model().eval()
    truth = {"theta": torch.randn(6), "shift": torch.randn(6, 2)}
    found, _ = infer_batch(model, batch_of(model, **truth))
    name, _ = Gallery(model).pose(found)
    assert name == "pose"
    theta, true_theta, shift, true_shift, step = shown["pose_figure"][0]
    assert_close(theta, found.latents.theta)
    assert_close(true_theta, truth["theta"])
    assert_close(shift, found.latents.shift)
    assert_close(true_shift, truth["shift"])
    assert step == pytest.approx(2 / 8)


def test_a_model_without_pose_has_no_figure_of_it(make_model, shown):
    parts = {"infer_theta": False, "infer_shift": False, "generator": partial(PixelMLP, hidden=8)}
    model = make_model(**parts, likelihood=Gaussian).eval()
    gallery = Gallery(model)
    batch = batch_of(model, theta=torch.randn(6))
    found, _ = infer_batch(model, batch)
    assert gallery.pose(found) is None
    names = [name for name, _ in gallery.of_images(batch["image"], found, found)]
    assert names == ["reconstructions", "latents"]
    assert shown["reconstruction_figure"][0][3:] == (None, None)


def test_latents_that_are_not_finite_leave_the_reconstructions(make_model):
    model = make_model().eval()
    batch = batch_of(model)
    found, _ = infer_batch(model, batch)
    found.latents.z[2] = torch.nan
    names = [name for name, _ in Gallery(model).of_images(batch["image"], found, found)]
    assert names == ["reconstructions"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, []),
        (2, [[0, 1]]),
        (5, [[0, 2], [1, 3]]),
        (8, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (12, [[0, 6], [1, 7], [2, 8], [3, 9]]),
    ],
)
def test_couples_are_of_two_halves(count, expected):
    assert couples(count).tolist() == expected


def test_rows_are_spread_from_the_first_to_the_last():
    rows = torch.arange(10) * 7
    assert spread(rows, 10) is rows
    assert spread(rows, 4).tolist() == [0, 21, 42, 63]
    assert spread(rows, 1).tolist() == [0]


@pytest.mark.parametrize(
    "wrong", [{"examples": 0}, {"examples": 13}, {"manifold_side": 1}, {"steps": 1}]
)
def test_wrong_sizes(make_model, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        Gallery(make_model(), **wrong)
