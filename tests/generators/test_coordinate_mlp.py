import copy

import pytest
import torch
from torch.testing import assert_close

from svae.generators import CoordinateMLP
from svae.generators.chunks import in_chunks
from svae.geometry import pixel_grid

SHAPE = (1, 7, 7)
OPTIONS = [
    {},
    {"activation": "tanh", "layers": 3},
    {"residual": True, "layers": 3},
    {"expand_coords": True},
    {"bilinear": True},
    {"expand_coords": True, "bilinear": True, "residual": True},
    {"fourier_features": 32},
    {"fourier_features": 32, "fourier_scale_px": 1.0},
    {"fourier_features": 32, "fourier_learnable": True, "bilinear": True},
]


def generator(z_dim=2, out_features=3, **options):
    return CoordinateMLP(SHAPE, z_dim, out_features, hidden=13, **options).double()


def inputs(z_dim=2, batch=5):
    coords = pixel_grid(7, 7).expand(batch, -1, -1).clone().requires_grad_()
    return coords, torch.randn(batch, z_dim, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 17, 49, 60, 100])
def test_chunks_equal_the_plain_evaluation_with_its_gradients(options, chunk):
    plain = generator(**options)
    chunked = copy.deepcopy(plain)
    chunked.chunk_pixels = chunk
    coords, z = inputs()
    weights = torch.randn(5, 49, 3, dtype=torch.float64)
    expected = plain.pixels(coords, z)
    (expected * weights).sum().backward()
    of_plain = [coords.grad, z.grad, *(p.grad for p in plain.parameters() if p.requires_grad)]

    coords, z = (value.detach().requires_grad_() for value in (coords, z))
    result = chunked(coords, z)
    (result * weights).sum().backward()
    of_chunked = [coords.grad, z.grad, *(p.grad for p in chunked.parameters() if p.requires_grad)]

    assert_close(result, expected, atol=1e-12, rtol=1e-12)
    for a, b in zip(of_chunked, of_plain, strict=True):
        assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_chunks_never_hold_more_pixels_than_asked():
    seen = []

    def function(coords, z):
        seen.append(coords.shape[0] * coords.shape[1])
        return coords

    coords, z = inputs()
    assert torch.equal(in_chunks(function, coords, z, 60), coords)
    assert max(seen) <= 60
    assert sum(seen) == 5 * 49


def test_activations_are_not_kept_for_the_backward_pass():
    """Between the passes, what is stored does not depend on the width of the network."""

    def stored(width, chunk):
        sizes = []
        network = CoordinateMLP(SHAPE, 2, 1, hidden=width, chunk_pixels=chunk).double()
        coords, z = inputs()
        own = {p.data_ptr() for p in network.parameters()}

        def pack(tensor):
            if tensor.data_ptr() not in own:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(coords, z)
        return sum(sizes)

    assert stored(64, 49) == stored(8, 49)
    assert stored(64, 10**6) > 5 * 49 * 64


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("z_dim", [0, 1, 5])
def test_every_parameter_gets_a_finite_gradient(options, z_dim):
    network = generator(z_dim, **options)
    coords, z = inputs(z_dim)
    network(coords, z).square().sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def test_the_first_layer_is_that_of_the_published_code():
    network = generator(bilinear=True, layers=1, activation="tanh")
    coords, z = inputs()
    x, rows = coords, z.unsqueeze(1).expand(-1, 49, -1)
    product = torch.einsum("bni,oij,bnj->bno", x, network.bilinear.weight, rows)
    h = x @ network.from_coords.weight.T + network.from_coords.bias
    h = torch.tanh(h + rows @ network.from_z.weight.T + product)
    assert_close(network(coords, z), network.to_pixel(h))


def test_expanded_coordinates():
    network = generator(expand_coords=True)
    features = network.features(torch.tensor([[2.0, 3.0]]))
    assert features.tolist() == [[2, 3, 4, 9, 6]]


def test_fourier_features_are_fixed_cosines():
    network = generator(fourier_features=4000)
    assert network.features(pixel_grid(7, 7)).abs().max() <= 1
    assert not network.features.weight.requires_grad


def test_signals_of_any_dimension():
    """The paper: "signals of arbitrary dimension"."""
    for dims in (1, 3):
        network = generator(coord_dims=dims, expand_coords=True)
        coords = torch.rand(2, 10, dims, dtype=torch.float64)
        assert network(coords, torch.zeros(2, 2, dtype=torch.float64)).shape == (2, 10, 3)


def test_fourier_and_expanded_coordinates_exclude_each_other():
    with pytest.raises(ValueError, match="expand_coords"):
        generator(expand_coords=True, fourier_features=8)


def test_bfloat16_keeps_the_coordinates():
    """Under autocast two pixels next to each other in a 1000-pixel image differ as they should."""
    network = CoordinateMLP((1, 1000, 1000), 0, 1, hidden=64, activation="tanh")
    # Edges a pixel wide, as in a sharp image, at x = 0.9.
    network.from_coords.weight.data = torch.tensor([[2000.0, 0.0]]).repeat(64, 1)
    network.from_coords.bias.data.fill_(-1800.0)
    coords = torch.tensor([[[0.9 - 1 / 2000, 0.5], [0.9 + 1 / 2000, 0.5]]])
    with torch.no_grad():
        exact = network.pixels(coords, torch.zeros(1, 0))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.pixels(coords, torch.zeros(1, 0)).float()
    difference = exact[0, 1] - exact[0, 0]
    assert difference.abs() > 0.1
    assert_close(rounded[0, 1] - rounded[0, 0], difference, rtol=0.05, atol=0)


def test_fourier_features_resolve_the_lengths_that_were_asked_for():
    """In pixels: frequencies are normal, with a standard deviation of one over the length."""
    shape = (1, 40, 64)
    one = CoordinateMLP(shape, 2, 1, fourier_features=4000, fourier_scale_px=4.0)
    per_px = one.features.weight * 2 / 64
    assert per_px.std() == pytest.approx(1 / 4, rel=0.05)

    every = CoordinateMLP(shape, 2, 1, fourier_features=4000).features.weight * 2 / 64
    for part, length in ((slice(0, 200), 2.0), (slice(-200, None), 32.0)):
        assert every[part].std() == pytest.approx(1 / length, rel=0.2)
    middle = every[1900:2100]  # the geometric mean of both
    assert middle.std() == pytest.approx(1 / 8, rel=0.2)
