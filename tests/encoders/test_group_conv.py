"""Equivariance, to the exactness that each test states, and where features belong."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import conv2d, leaky_relu
from torch.testing import assert_close

from svae.encoders import GroupConv
from svae.encoders.group_conv import _Lift
from svae.geometry import pixel_grid, pixel_size

DOUBLE = torch.float64
# (image side, kernel, padding, stride): even and odd kernels, lattices that are cropped.
SETTINGS = [
    (9, 3, 0, 1),
    (9, 4, 2, 1),
    (10, 5, 1, 1),
    (9, 9, 4, 1),
    (10, 4, 2, 2),
    (9, 3, 1, 2),
    (11, 5, 0, 4),
    (12, 5, 2, 3),
    (9, 1, 0, 2),
]


def encoder(shape, rotations, kernel, padding=0, stride=1, **options):
    options = {"channels": 3, "group_order": rotations} | options
    return GroupConv(shape, kernel_size=kernel, padding=padding, stride=stride, **options).double()


def features_of(network, images):
    """Features (B, rows, columns, R, channels)."""
    with torch.no_grad():
        return network(images).unflatten(1, network.lattice.shape)


def only_filter(network, kernel_image):
    """Make `kernel_image` (C, k, k) the one filter, without a bias."""
    with torch.no_grad():
        network.filters.copy_(kernel_image[None])
        network.bias.zero_()


def blobs(coords, seed):
    """Smooth functions without symmetry near the origin of coordinates (..., 2) in pixels."""
    random = torch.Generator().manual_seed(seed)
    value = torch.zeros(coords.shape[:-1], dtype=DOUBLE)
    for centre in ((3.0, 1.0), (-1.5, 3.0), (-2.0, -3.0)):
        weight = torch.rand((), generator=random, dtype=DOUBLE) + 0.3
        distance = (coords - torch.tensor(centre, dtype=DOUBLE)).square().sum(-1)
        value = value + weight * torch.exp(-distance / 8.0)
    return value


def pixels(size):
    """Coordinates (size, size, 2) in pixels from the centre, x right and y up."""
    return (pixel_grid(size, size) / pixel_size(size, size)).reshape(size, size, 2)


def posed(coords, angle, shift):
    """Coordinates seen from an object turned counter-clockwise by `angle` and moved to `shift`."""
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = coords[..., 0] - shift[0], coords[..., 1] - shift[1]
    return torch.stack((cos * x + sin * y, cos * y - sin * x), -1)


# ---- equivariance


@pytest.mark.parametrize(("size", "kernel", "padding", "stride"), SETTINGS)
@pytest.mark.parametrize(("rotations", "disc"), [(4, True), (8, False), (12, True)])
def test_a_quarter_turn_is_exact(size, kernel, padding, stride, rotations, disc):
    """Rotations move on by a quarter of them, positions turn with the image."""
    network = encoder((2, size, size), rotations, kernel, padding, stride, disc=disc)
    images = torch.randn(2, 2, size, size, dtype=DOUBLE)
    features = features_of(network, images)
    for quarters in (1, 2, 3):
        expected = torch.rot90(features, quarters, (1, 2))
        expected = expected.roll(quarters * rotations // 4, 3)
        found = features_of(network, torch.rot90(images, quarters, (-2, -1)))
        assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("kernel", "stride", "rotations"), [(4, 1, 3), (5, 2, 8), (7, 3, 4)])
def test_whole_strides_are_exact(kernel, stride, rotations):
    network = encoder((1, 25, 31), rotations, kernel, padding=kernel - 1, stride=stride)
    images = torch.zeros(2, 1, 25, 31, dtype=DOUBLE)
    images[:, :, 9:17, 10:18] = torch.randn(2, 1, 8, 8, dtype=DOUBLE)
    features = features_of(network, images)
    # Two strides up and one to the right; nothing leaves the image.
    moved = features_of(network, images.roll((-2 * stride, stride), (2, 3)))
    assert_close(moved[:, :-2, 1:], features[:, 2:, :-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("rotations", [3, 5, 6, 8, 16])
def test_turns_between_are_as_exact_as_interpolation(rotations):
    """Within 2 % of the largest for details with a width of 2 pixels, at any position."""
    size, kernel, step = 31, 19, 2 * math.pi / rotations
    network = encoder((1, size, size), rotations, kernel, channels=2, layers=1)
    with torch.no_grad():
        network.filters.copy_(torch.stack([blobs(pixels(kernel), i) for i in (1, 2)])[:, None])
    row = column = network.lattice.shape[0] // 2
    for shift in ((0.0, 0.0), (4.0, 0.0), (-1.5, 2.5)):
        # The lattice has the centre; an object moved the other way stands for other positions.
        original = blobs(posed(pixels(size), 0.0, shift), 3)
        turned = blobs(posed(posed(pixels(size), step, (0.0, 0.0)), 0.0, shift), 3)
        features = features_of(network, torch.stack((original, turned))[:, None])
        before, after = features[:, row, column]
        scale = before.abs().amax(0)
        assert ((after - before.roll(1, 0)).abs() < 0.02 * scale).all()
        assert ((after - before).abs().amax(0) > 0.06 * scale).all()


@pytest.mark.parametrize("rotations", [1, 3, 5, 6, 8])
def test_an_object_is_found_where_and_how_it_lies(rotations):
    """A filter that is the object itself answers most at the object's position and angle."""
    size, kernel, padding, stride = 27, 19, 8, 2
    network = encoder((1, size, size), rotations, kernel, padding, stride, channels=1, layers=1)
    only_filter(network, blobs(pixels(kernel), 0)[None])
    lattice = network.lattice
    shifts = lattice.shifts / pixel_size(size, size)
    near = (shifts.abs().amax(1) <= 6).nonzero().flatten()[::11]
    poses = [(int(p), r) for p in near for r in range(rotations)]
    images = [
        blobs(posed(pixels(size), lattice.angles[r].item(), shifts[p].tolist()), 0)
        for p, r in poses
    ]
    with torch.no_grad():
        answers = network(torch.stack(images)[:, None]).squeeze(-1).flatten(1)
    best = answers.argmax(1)
    assert [(int(b) // rotations, int(b) % rotations) for b in best] == poses
    assert len(near) > 4


# ---- the lattice


@pytest.mark.parametrize(("size", "kernel", "padding", "stride"), SETTINGS)
@pytest.mark.parametrize("wider", [0, 2, 4])
def test_a_bright_pixel_is_found_at_its_own_coordinate(size, kernel, padding, stride, wider):
    """With a filter that is one pixel at its centre, features are the pixels of the image."""
    size, kernel = size - (kernel % 2 == 0), kernel - (kernel % 2 == 0)
    width = size + wider * stride
    network = encoder((1, size, width), 1, kernel, padding, stride, channels=1, layers=1)
    delta = torch.zeros(1, kernel, kernel, dtype=DOUBLE)
    delta[0, kernel // 2, kernel // 2] = 1
    only_filter(network, delta)
    images = torch.rand(1, 1, size, width, dtype=DOUBLE) + 1
    with torch.no_grad():
        found = network(images).flatten()
    # Outside of the image there is nothing.
    difference = network.lattice.shifts[:, None] - pixel_grid(size, width)
    nearest, pixel = difference.abs().amax(2).min(1)
    inside = nearest < 1e-9
    assert inside.any()
    assert_close(found, images.flatten()[pixel] * inside, atol=1e-12, rtol=0)
    assert (nearest[~inside] > 0.9 * pixel_size(size, width)).all()


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [(9, 9, 3, 1), (9, 12, 4, 1), (12, 10, 4, 2), (11, 11, 5, 4), (15, 20, 5, 5)],
)
def test_a_filter_stands_at_its_centre(height, width, kernel, stride):
    """Averages of a linear function are its values at the positions; even kernels too."""
    network = encoder((1, height, width), 4, kernel, 0, stride, channels=1, layers=1, disc=False)
    only_filter(network, torch.full((1, kernel, kernel), kernel**-2.0, dtype=DOUBLE))

    def linear(coords):
        return 5 + coords[:, 0] + 2 * coords[:, 1]

    images = linear(pixel_grid(height, width)).reshape(1, 1, height, width)
    with torch.no_grad():
        found = network(images)[0, :, :, 0]
    expected = linear(network.lattice.shifts)[:, None].expand(-1, 4)
    assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 4, 7])
def test_what_is_accepted_is_symmetric(kernel, stride):
    """For every size and padding: the features of a mirrored image are mirrored."""
    accepted = 0
    for size in range(7, 12):
        for padding in range(4):
            try:
                network = encoder((1, size, size + stride), 1, kernel, padding, stride)
            except ValueError:
                continue
            accepted += 1
            with torch.no_grad():
                network.filters.copy_((network.filters + network.filters.flip(-2, -1)) / 2)
            images = torch.randn(1, 1, size, size + stride, dtype=DOUBLE)
            mirrored = features_of(network, images.flip(-2, -1))
            expected = features_of(network, images).flip(1, 2)
            assert_close(mirrored, expected, atol=1e-12, rtol=0)
            farthest = network.lattice.shifts.abs().amax(0) / pixel_size(size, size + stride)
            sides = torch.tensor([size + stride, size], dtype=DOUBLE)
            reach = sides / 2 + padding - kernel / 2
            assert (farthest <= reach + 1e-9).all()
            assert (farthest > reach - stride).all()
    assert accepted >= 8


def test_padding_lets_the_lattice_reach_further():
    plain = encoder((1, 9, 9), 1, 5, padding=0).lattice.shifts
    padded = encoder((1, 9, 9), 1, 5, padding=3).lattice.shifts
    further = padded.amax(0) - plain.amax(0)
    assert_close(further, torch.full((2,), 3 * pixel_size(9, 9), dtype=DOUBLE))


# ---- the convolution


def cases_of_lifting():
    image = torch.randn(2, 3, 9, 11, dtype=DOUBLE, requires_grad=True)
    for kernel, stride in ((3, 1), (4, 2), (5, 3), (9, 1), (1, 2)):
        filters = torch.randn(6, 3 * kernel**2, dtype=DOUBLE, requires_grad=True)
        yield image, filters, kernel, stride


def test_lifting_is_torchs_convolution():
    for image, filters, kernel, stride in cases_of_lifting():
        bias = torch.randn(6, dtype=DOUBLE, requires_grad=True)
        found = _Lift.apply(image, filters, bias, kernel, stride, None)
        weight = filters.reshape(6, 3, kernel, kernel)
        expected = conv2d(image, weight, bias, stride).flatten(2).transpose(1, 2)
        assert_close(found, expected)
        grad = torch.randn_like(expected)
        found = torch.autograd.grad(found, (image, filters, bias), grad)
        expected = torch.autograd.grad(expected, (image, filters, bias), grad)
        assert_close(found, expected)


@pytest.mark.parametrize(("rotations", "disc"), [(4, True), (5, True), (8, False)])
def test_features_have_the_gradients_of_finite_differences(rotations, disc):
    network = encoder((1, 6, 6), rotations, 3, 1, channels=2, activation="tanh", disc=disc)
    images = torch.randn(1, 1, 6, 6, dtype=DOUBLE, requires_grad=True)
    parameters = list(network.parameters())
    weight = torch.randn_like(network(images))

    def total(image, *_):
        return (network(image) * weight).sum()

    assert torch.autograd.gradcheck(total, (images, *parameters))


def test_one_rotation_is_a_plain_convolution():
    network = encoder((2, 9, 8), 1, 5, padding=2, stride=1, disc=False)
    images = torch.randn(3, 2, 9, 8, dtype=DOUBLE)
    hidden = conv2d(images, network.filters, network.bias, padding=2)
    hidden = leaky_relu(hidden).permute(0, 2, 3, 1)
    expected = leaky_relu(network.pointwise[0].linear(hidden))
    found = network(images).unflatten(1, network.lattice.shape)
    assert_close(found.squeeze(3), expected)
    assert network.lattice.angles.tolist() == [0.0]


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_layers_count_the_convolution(layers):
    network = encoder((1, 9, 9), 4, 3, layers=layers)
    linears = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == layers - 1


def test_pooling_is_a_weighted_sum_over_rotations():
    options = {"padding": 1, "stride": 2, "layers": 1}
    plain = encoder((1, 9, 9), 6, 3, **options)
    pooled = encoder((1, 9, 9), 6, 3, pool_rotations=True, **options)
    pooled.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 1, 9, 9, dtype=DOUBLE)
    weights, bias = pooled.pool.weight[0], pooled.pool.bias
    expected = torch.einsum("r,bprk->bpk", weights, plain(images)) + bias
    assert_close(pooled(images).squeeze(2), expected)
    assert pooled.lattice.angles.tolist() == [0.0]
    assert torch.equal(pooled.lattice.shifts, plain.lattice.shifts)
    assert (plain.group_order, pooled.group_order) == (6, 6)


@pytest.mark.parametrize("kernel", [1, 3, 4, 5, 8])
def test_nothing_outside_of_the_disc_has_an_influence(kernel):
    network = encoder((1, 11, 11), 8, kernel)
    images = torch.randn(2, 1, 11, 11, dtype=DOUBLE)
    network(images).square().sum().backward()
    # The corners of a turned filter would leave the square.
    centre = (kernel - 1) / 2
    rows = torch.arange(kernel, dtype=DOUBLE) - centre
    # An even square has two pixels beside the middle of each side; the disc holds both.
    outside = rows[:, None] ** 2 + rows**2 > centre**2 + (rows.abs().min() ** 2) + 1e-4
    influences = network.filters.grad.abs().sum((0, 1))
    assert not influences[outside].any()
    assert (influences[~outside] > 0).all()
    before = features_of(network, images)
    with torch.no_grad():
        network.filters += 100 * outside
    assert torch.equal(features_of(network, images), before)


def test_a_disc_leaves_something_of_every_kernel():
    for kernel in range(1, 7):
        network = encoder((1, 11, 11), 4, kernel)
        network(torch.randn(2, 1, 11, 11, dtype=DOUBLE)).square().sum().backward()
        assert network.filters.grad.any(), kernel


def test_without_a_disc_corners_count():
    network = encoder((1, 11, 11), 4, 5, disc=False)
    network(torch.randn(2, 1, 11, 11, dtype=DOUBLE)).square().sum().backward()
    assert (network.filters.grad.abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize("rotations", [1, 4, 6])
def test_autocast_computes_the_same_roughly(rotations):
    network = GroupConv((1, 12, 12), rotations, 8, kernel_size=7, padding=2)
    images = torch.rand(4, 1, 12, 12, requires_grad=True)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(images)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.float(), exact, atol=0.03, rtol=0)
    gradients = []
    for features in (exact, rough):
        network.zero_grad()
        images.grad = None
        features.float().square().sum().backward()
        gradients.append([p.grad for p in (images, *network.parameters())])
    for found, expected in zip(*reversed(gradients), strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("options", [{}, {"pool_rotations": True}, {"disc": False, "layers": 3}])
def test_every_parameter_gets_a_finite_gradient(options):
    network = encoder((3, 10, 13), 8, 4, padding=1, **options)
    images = torch.rand(2, 3, 10, 13, dtype=DOUBLE)
    features = network(images)
    lattice = network.lattice
    assert features.shape == (2, len(lattice.shifts), len(lattice.angles), network.out_features)
    features.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_order": 0}, "group_order: .*at least 1, got 0"),
        ({"kernel_size": 0}, "kernel_size: .*at least 1"),
        ({"kernel_size": 9}, "kernel_size: .*8 pixels of the image's shorter side, got 9"),
        ({"padding": -1}, "padding: .*at least 0, got -1"),
        ({"stride": 0}, "stride: .*at least 1"),
        ({"kernel_size": 3, "stride": 2}, "stride: .*2 px apart.*8 px.*kernel of 3 px"),
        ({"channels": 0}, "channels: .*at least 1"),
        ({"layers": 0}, "layers: .*at least 1"),
        ({"activation": "relu6"}, "activation: .*relu6"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        GroupConv((1, 8, 10), **({"kernel_size": 4, "padding": 2} | options))
    assert "\n" not in str(error.value)


def test_the_advice_on_a_refused_stride_helps():
    """An odd stride is always possible, if need be with one position less."""
    for size in range(9, 15):
        encoder((1, size, size), 1, 5, stride=3)


def test_rotations_differ():
    """A filter in different turns is a different filter, unless it is round."""
    network = encoder((1, 9, 9), 5, 5)
    turned = network.turned_filters()
    assert turned.shape == (5, 3, 1, 5, 5)
    assert_close(turned[0], network.filters * network.kept)
    for one, other in pairwise(turned):
        assert (one - other).abs().max() > 0.05
