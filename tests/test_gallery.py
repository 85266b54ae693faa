"""What is handed to the figures; the figures themselves are tested in `tests/figures`."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch.testing import assert_close

from svae import figures
from svae.gallery import Gallery, couples, spread
from svae.generators import PixelMLP
from svae.geometry import remove_pose, transform_image
from svae.inferred import Inferred, infer_batch
from svae.latents import Latents
from svae.lattice import Lattice
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
    expected = {"reconstructions", "pose_histogram", "found_pose", "worst", "pose_removed"}
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
    sized = replace(latents, log_scale=torch.linspace(-0.3, 0.3, len(latents)))
    _, aligned, again = gallery.pose_removed(batch["image"], sized)
    assert_close(aligned, remove_pose(batch["image"], *sized.pose))
    assert (aligned - remove_pose(batch["image"], *latents.pose)).abs().max() > 0.1
    assert torch.equal(again, generated)
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
    symmetry = torch.tensor([1, 2, 4, 1, 2, 4])
    found, _ = infer_batch(model, batch_of(model, **truth, symmetry=symmetry))
    found = replace(found, reference_theta=torch.randn(6))
    name, _ = Gallery(model).pose(found)
    assert name == "pose"
    theta, true_theta, shift, true_shift, step, orders, reference = shown["pose_figure"][0]
    assert_close(orders, symmetry)
    assert_close(reference, found.reference_theta)
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


def turned(count=60, offset=0.7, **more):
    """What a perfect model infers whose object is turned against the true one."""
    true, shift = torch.rand(count) * 6 - 3, torch.randn(count, 2)
    latents = Latents(torch.zeros(count, 2), true + offset, shift)
    index = torch.arange(count)
    return Inferred(index, latents, torch.zeros(count), theta=true, shift=shift, **more)


def test_true_angles_are_turned_as_the_model_turns_all(make_model, shown):
    gallery = Gallery(make_model().eval())
    everyone = turned()
    some = everyone[:6]
    some.latents.theta[0] += torch.pi  # one that is upside down does not move the others
    images = torch.rand(6, 1, 9, 9)
    gallery.found_pose(images, some, everyone)
    (drawn, pose, true_pose), options = shown["found_pose_figure"]
    assert_close(drawn, images)
    assert_close(pose, (some.latents.theta, some.latents.shift))
    error = (some.latents.theta - true_pose[0] + 3) % (2 * torch.pi) - 3
    assert_close(error, torch.tensor([torch.pi, 0, 0, 0, 0, 0]).double(), atol=1e-5, rtol=0)
    assert_close(true_pose[1], some.shift)
    assert options["pixel_size"] == pytest.approx(2 / 8)


def test_true_angles_are_the_nearest_at_which_an_object_looks_the_same(make_model):
    """Squares, ellipses and others, each kind with an offset of its own."""
    symmetry = torch.tensor([1, 2, 4]).repeat(20)
    everyone = turned(offset=torch.tensor([0.7, -0.4, 0.2]).repeat(20), symmetry=symmetry)
    turns = torch.randint(0, 4, (60,)) % symmetry
    everyone.latents.theta.add_(turns * 2 * torch.pi / symmetry)
    theta, _ = Gallery(make_model().eval()).true_pose(everyone[:9], everyone)
    assert_close(theta.float(), everyone.latents.theta[:9], atol=1e-5, rtol=0)
    # Of a kind that nobody else is of, the offset is found from the images themselves.
    lonely = replace(everyone[:9], symmetry=torch.full((9,), 3))
    lonely.latents.theta.copy_(lonely.theta + 0.1)
    theta, _ = Gallery(make_model().eval()).true_pose(lonely, everyone)
    assert_close(theta.float(), lonely.latents.theta, atol=1e-5, rtol=0)


def test_a_truth_is_drawn_of_what_is_inferred_alone(make_model):
    everyone = turned(6)
    no_angle = Gallery(make_model(infer_theta=False).eval())
    assert no_angle.true_pose(everyone, everyone)[0] is None
    assert_close(no_angle.true_pose(everyone, everyone)[1], everyone.shift)
    no_shift = Gallery(make_model(infer_shift=False).eval())
    assert no_shift.inferred_pose(everyone)[1] is no_shift.true_pose(everyone, everyone)[1] is None
    unknown = replace(everyone, theta=None, shift=None)
    assert Gallery(make_model().eval()).true_pose(unknown, unknown) == (None, None)


def test_attention_is_that_of_a_posterior_with_a_lattice(make_model, shown, monkeypatch):
    model = make_model().eval()
    gallery = Gallery(model)
    batch = batch_of(model, 12, theta=torch.zeros(12))
    found, _ = infer_batch(model, batch)
    assert gallery.attention(batch["image"], found, found) is None
    lattice = Lattice.centred(8, (5, 5), 0.25)

    upside_down = Latents(*(getattr(found.latents, n) + torch.pi for n in ("z", "theta", "shift")))

    def infer(image, candidates):
        assert candidates == 1
        # Weights that tell which image they are of.
        weights = image.mean((1, 2, 3)).reshape(-1, 1, 1).expand(-1, 25, 8)
        return SimpleNamespace(lattice=lattice, weights=weights, mode=lambda: upside_down[:8])

    monkeypatch.setattr(model, "infer", infer)
    names = [name for name, _ in gallery.of_images(batch["image"], found, found)]
    assert names == ["reconstructions", "latents", "pose", "found_pose", "attention"]
    (images, weights, used, pose, true_pose), options = shown["attention_figure"]
    assert_close(images, batch["image"][:8])
    assert_close(weights[:, 0, 0], batch["image"][:8].mean((1, 2, 3)))
    assert used is lattice
    # That of this posterior, which may not be the one that was kept of several candidates.
    assert_close(pose, (upside_down.theta[:8], upside_down.shift[:8]))
    assert len(true_pose[0]) == 8
    assert options["pixel_size"] == pytest.approx(2 / 8)

    lattice = Lattice.centred(1, (1, 1), 0.25)
    assert gallery.attention(batch["image"], found, found) is None


def test_clusters_are_averaged_without_their_pose(make_model, shown):
    """Of 500 images of one object in two clusters, at most 200 of each are read."""
    count = 500
    everyone = turned(count, offset=0.0, label=torch.arange(count) % 2)
    everyone.latents.shift.mul_(0.1)
    everyone = replace(everyone, index=everyone.index + 1000)
    clusters = 1 - everyone.label
    clusters[-100:] = 0
    upright = torch.zeros(1, 5, 21, 21)
    upright[..., 6:15, 9:12] = 1
    asked = []

    def images_of(index):
        asked.append(index)
        latents = everyone.latents[index - 1000]
        return transform_image(
            upright.expand(len(index), -1, -1, -1), latents.theta, latents.shift
        )

    gallery = Gallery(make_model((5, 21, 21)).eval())
    gallery.aligned(images_of, everyone, clusters, ["even", "odd"])
    (found, means, members, names), _ = shown["aligned_figure"]
    assert [(one.number, one.label, one.size) for one in found] == [(1, 0, 200), (0, 1, 300)]
    assert [len(index) for index in asked] == [200, 200]
    for cluster, index in zip(found, asked, strict=True):
        assert (clusters[index - 1000] == cluster.number).all()
        assert len(index.unique()) == 200
    # Turned twice, the object is blurred, but where it was.
    assert means.shape == (2, 1, 21, 21)
    assert [len(images) for images in members] == [10, 10]
    for image in (*means, *members[0]):
        assert (image[0] - upright[0, 0]).abs().mean() < 0.05
        assert image[0, 7:14, 10].min() > 0.8
    assert names == ["even", "odd"]

    gallery.confusion(everyone, clusters, ["even", "odd"])
    assert_close(shown["confusion_figure"][0][:2], (everyone.label, clusters))


def test_of_many_clusters_twenty_are_drawn(make_model, shown):
    everyone = turned(60, label=torch.arange(60) % 30)
    gallery = Gallery(make_model().eval())
    gallery.aligned(lambda index: torch.rand(len(index), 1, 9, 9), everyone, everyone.label)
    (found, *_), options = shown["aligned_figure"]
    assert len(found) == 20
    assert options["total"] == 30


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
