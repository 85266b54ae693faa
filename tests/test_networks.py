"""Layers in one operation against the same layers step by step."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from torch.testing import assert_close

from svae import networks
from svae.generators import CoordinateMLP, coordinate_mlp
from svae.geometry import pixel_grid
from svae.networks import (
    Dense,
    activation_named,
    fuses,
    hidden_layers,
    precise_linear,
    split_linear,
)

HALF = torch.bfloat16
FUSED = ["tanh", "leaky_relu"]
half = partial(torch.autocast, "cpu", HALF)


def can_fuse():
    with half():
        return fuses(torch.zeros(1, 1), "tanh")


fusing = pytest.mark.skipif(
    not can_fuse(), reason="oneDNN does not multiply bfloat16 on this machine"
)
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")


def rounded(tensor):
    return tensor.to(HALF).to(tensor.dtype)


def is_fused(result):
    return type(result.grad_fn).__name__ == "FusedBackward"


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def gradients(layer, x, outer, autocast=True):
    """The result, the gradient of the input, and those of the parameters."""
    x = x.detach().clone().requires_grad_()
    with half(enabled=autocast):
        y = layer(x)
    found = torch.autograd.grad(y, (x, *layer.parameters()), outer.to(y))
    return y, *found


def exactly(layer, x, outer, rounding=rounded):
    """`gradients` in double precision, of the numbers that bfloat16 makes of x and weights."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(rounding(parameter))
    return gradients(layer, rounding(x.double()), rounding(outer.double()), autocast=False)


# ---- a layer with its activation


@fusing
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("shape", [(5000, 24), (7, 40, 24), (2, 3, 5, 24), (1, 24)], ids=str)
def test_a_fused_layer_is_the_layer(activation, shape):
    layer = Dense(24, 33, activation)
    x, outer = torch.randn(shape), torch.randn(*shape[:-1], 33)
    found, expected = gradients(layer, x, outer), exactly(layer, x, outer)
    assert is_fused(found[0])
    assert found[0].dtype == HALF
    assert [gradient.dtype for gradient in found[1:]] == [torch.float32] * 3
    # A single rounding of the result: 2^-8 of it, and what float32 adds about zero.
    difference = (found[0].double() - expected[0]).abs()
    assert (difference <= 2**-8 * expected[0].abs() + 1e-5).all()
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert a.shape == b.shape
        assert relative(a, b) < 2**-7
    with torch.backends.mkldnn.flags(enabled=False):
        steps = gradients(layer, x, outer)
    assert not is_fused(steps[0])
    for a, b, c in zip(found, steps, expected, strict=True):
        assert relative(a, c) < 1.2 * relative(b, c) + 1e-3


@fusing
@pytest.mark.parametrize("activation", FUSED)
def test_gradients_of_a_fused_layer_are_those_of_each_feature(activation):
    """Where the activation saturates or has its kink too, and only where they are wanted."""
    layer = Dense(1, 4, activation)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0], [-2.0], [0.5], [0.0]]))
        layer.linear.bias.copy_(torch.tensor([0.0, 1.0, -0.25, 0.0]))
    x = torch.tensor([[-50.0], [-1.0], [0.0], [0.5], [1.0], [50.0]])
    found = gradients(layer, x, torch.ones(6, 4))
    exact = exactly(layer, x, torch.ones(6, 4))
    for a, b in zip(found, exact, strict=True):
        assert_close(a.double(), b, rtol=2**-7, atol=1e-3)
    layer.linear.bias.requires_grad_(False)
    with half():
        layer(x).sum().backward()
    assert layer.linear.bias.grad is None
    assert_close(layer.linear.weight.grad, found[2])
    layer.linear.requires_grad_(False)
    x.requires_grad_()
    with half():
        layer(x).sum().backward()
    assert_close(x.grad, found[1])


@fusing
def test_inputs_of_any_layout():
    layer = Dense(6, 5, "tanh")
    dense = torch.randn(4, 3, 6)
    for x in (
        dense.transpose(0, 1),
        dense.transpose(1, 2).contiguous().transpose(1, 2),
        dense[:, :1].expand(-1, 3, -1),
        dense[:, ::2],
        dense[:0],
    ):
        expected = gradients(layer, x.contiguous(), torch.ones(*x.shape[:-1], 5))
        leaf = x.detach().requires_grad_()
        with half():
            y = layer(leaf)
        # An outer gradient without memory of its own, too.
        found = torch.autograd.grad(y.sum(), (leaf, *layer.parameters()))
        assert torch.equal(y, expected[0])
        for a, b in zip(found, expected[1:], strict=True):
            assert torch.equal(a, b)


@fusing
def test_of_a_fused_layer_only_the_result_is_kept():
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    layer, x = Dense(64, 64, "tanh"), torch.randn(1000, 64).to(HALF).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half():
        y = layer(x)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() > 64 * 64} == {
        x.data_ptr(),
        y.data_ptr(),
    }


@fusing
@pytest.mark.parametrize("activation", FUSED)
def test_a_result_changed_in_place_is_an_error(activation):
    with half():
        y = Dense(3, 3, activation)(torch.randn(4, 3))
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@fusing
def test_many_rows_add_up():
    """In bfloat16, 256 + 1 is 256."""
    layer = Dense(2, 2, "leaky_relu")
    nn.init.ones_(layer.linear.weight)
    _, _, of_weight, of_bias = gradients(layer, torch.ones(20_000, 2), torch.ones(20_000, 2))
    assert_close(of_bias, torch.full((2,), 20_000.0), rtol=2**-8, atol=0)
    assert_close(of_weight, torch.full((2, 2), 20_000.0), rtol=2**-8, atol=0)


STEPS = {
    "gelu": ("gelu", False, True, True),
    "silu": ("silu", False, True, True),
    "residual": ("tanh", True, True, True),
    "single precision": ("tanh", False, False, True),
    "single precision, leaky": ("leaky_relu", False, False, True),
    "without onednn": ("tanh", False, True, False),
    "without onednn, leaky": ("leaky_relu", False, True, False),
}


@pytest.mark.parametrize(
    ("activation", "residual", "autocast", "onednn"), STEPS.values(), ids=list(STEPS)
)
def test_everything_else_goes_step_by_step(activation, residual, autocast, onednn):
    layer = Dense(6, 6, activation, residual)
    x = torch.randn(20, 6, requires_grad=True)
    with torch.backends.mkldnn.flags(enabled=onednn), half(enabled=autocast):
        found = layer(x)
        h = layer.linear(x)
        expected = activation_named(activation)(h + x if residual else h)
        if not residual:
            assert not fuses(x, activation)
            weights = torch.randn(4, 6), torch.randn(4)
            assert split_linear(x, *weights, activation) is None
    assert not is_fused(found)
    assert torch.equal(found, expected)
    inputs = (x, *layer.parameters())
    of_found, of_expected = (
        torch.autograd.grad(y.float().square().sum(), inputs) for y in (found, expected)
    )
    for a, b in zip(of_found, of_expected, strict=True):
        assert torch.equal(a, b)


def test_double_precision_is_kept():
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    layer = Dense(6, 4, "tanh").double()
    assert not fuses(x, "tanh")
    assert_close(layer(x), torch.tanh(x @ layer.linear.weight.T + layer.linear.bias))


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "gelu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_hidden_layers_one_after_another(activation, residual, autocast):
    """No layer spoils what one before it keeps."""
    layers = hidden_layers(16, 4, activation, residual)
    x, outer = torch.randn(300, 16), torch.randn(300, 16)
    found = gradients(layers, x, outer, autocast)
    expected = exactly(layers, x, outer, rounded if autocast else torch.clone)
    # Rounding puts features on another side of a kink.
    tolerance = 0.15 if activation == "leaky_relu" else 0.03
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < (tolerance if autocast else 1e-5)


# ---- a coordinate in two parts


@fusing
@pytest.mark.parametrize("activation", FUSED)
def test_sixteen_bits_of_a_coordinate_count(activation):
    """At a sharp edge, with weights that are numbers of bfloat16 themselves."""
    weight, bias = torch.tensor([[512.0, -1024.0]]), torch.tensor([-704.0])
    # The edge goes through the first of them.
    x = torch.tensor([0.7, -0.3375]) + 1e-3 * torch.randn(500, 2)
    with half():
        found = split_linear(x, weight, bias, activation)

    def evaluated(x):
        h = linear(x.double(), weight.double(), bias.double())
        return activation_named(activation)(h)

    error = relative(found, evaluated(x))
    assert error < 2**-8
    assert relative(evaluated(rounded(x)), evaluated(x)) > 50 * error


@fusing
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize(("precise", "further"), [(3, 0), (2, 4), (1, 1), (0, 5)])
def test_further_inputs_come_first_among_the_weights(activation, precise, further):
    """With gradients, to each of which a weight used twice contributes once."""
    leaves = {
        "x": torch.randn(40, 7, precise),
        "weight": rounded(torch.randn(6, further + precise)),
        "bias": rounded(torch.randn(6)),
        "rounded": torch.randn(40, 7, further),
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    with half():
        found = split_linear(
            leaves["x"],
            leaves["weight"],
            leaves["bias"],
            activation,
            rounded=leaves["rounded"] if further else None,
        )
    assert is_fused(found)
    assert found.dtype == HALF
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    inputs = torch.cat((rounded(exact["rounded"]), exact["x"]), -1)
    expected = activation_named(activation)(linear(inputs, exact["weight"], exact["bias"]))
    assert relative(found, expected) < 2**-8
    outer = rounded(torch.randn(40, 7, 6))
    found.backward(outer.to(HALF))
    expected.backward(outer.double())
    for name, value in leaves.items():
        if value.numel():
            assert value.grad.dtype == torch.float32
            assert relative(value.grad, exact[name].grad) < 2**-6, name


@fusing
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("z_dim", [0, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"expand_coords": True}, {"fourier_features": 10, "fourier_learnable": True}],
    ids=str,
)
def test_the_first_layer_of_a_generator_in_one_operation(activation, z_dim, options):
    network = CoordinateMLP((1, 9, 9), z_dim, 2, hidden=12, activation=activation, **options)
    coords = pixel_grid(9, 9).float().expand(4, -1, -1).clone().requires_grad_()
    z, outer = torch.randn(4, z_dim, requires_grad=True), torch.randn(4, 81, 12)
    exact = copy.deepcopy(network).double()
    leaves = [coords, *network.parameters()] + [z] * bool(z_dim)
    exact_leaves = [x.detach().double().requires_grad_() for x in (coords, z)]
    expected = exact._first_layer(*exact_leaves)
    of_expected = torch.autograd.grad(
        expected,
        [exact_leaves[0], *exact.parameters()] + [exact_leaves[1]] * bool(z_dim),
        outer.double(),
        allow_unused=True,
    )
    for onednn in (True, False):
        with torch.backends.mkldnn.flags(enabled=onednn), half():
            found = network._first_layer(coords, z)
        assert is_fused(found) is onednn
        assert found.dtype == HALF
        assert relative(found, expected) < 2**-7
        of_found = torch.autograd.grad(found, leaves, outer.to(HALF), allow_unused=True)
        for a, b in zip(of_found, of_expected, strict=True):
            if b is None:
                assert a is None
            else:
                # Rounding puts features on another side of a kink.
                assert relative(a, b) < (0.2 if activation == "leaky_relu" else 0.03)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize(
    "options", [{}, {"expand_coords": True}, {"bilinear": True}, {"z_dim": 0}], ids=str
)
def test_a_generator_has_sharp_edges_in_half_precision(onednn, activation, options):
    options = {"z_dim": 2} | options
    network = CoordinateMLP((1, 9, 9), out_features=1, hidden=1, activation=activation, **options)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        network.from_coords.weight[0, 0] = 512.0
        network.from_coords.bias[0] = -358.0
    coords = torch.tensor([0.7, 0.0]) + 1e-3 * torch.randn(1, 500, 2)
    z = torch.randn(1, options["z_dim"])
    with torch.backends.mkldnn.flags(enabled=onednn), half():
        found = network._first_layer(coords, z)
    expected = copy.deepcopy(network).double()._first_layer(coords.double(), z.double())
    assert expected.std() > 0.1
    assert relative(found, expected) < 2**-7


@pytest.mark.parametrize("rows", [None, 5, 1])
def test_fourier_features_are_cosines_and_so_are_their_gradients(monkeypatch, rows):
    if rows is not None:
        monkeypatch.setattr(coordinate_mlp, "_NUMBERS_AT_ONCE", 6 * rows)
    network = CoordinateMLP((1, 9, 9), 0, 1, fourier_features=6, fourier_learnable=True)
    features = network.features.double()
    coords = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(3, 4, 6, dtype=torch.float64)
    leaves = coords, *features.parameters()
    expected = torch.cos(coords @ features.weight.T + features.bias)
    of_expected = torch.autograd.grad(expected, leaves, outer)
    found = features(coords)
    assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, leaves, outer), of_expected, strict=True):
        assert_close(a, b)
    single = copy.deepcopy(features).float()
    x = coords.detach().float().requires_grad_()
    with half():
        found = single(x)
    assert found.dtype == HALF
    assert_close(found.double(), expected, atol=2**-8, rtol=0)
    found = torch.autograd.grad(found, (x, *single.parameters()), outer.to(HALF))
    for a, b in zip(found, of_expected, strict=True):
        assert a.dtype == torch.float32
        assert relative(a, b) < 0.03


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("fourier_features", [0, 8])
@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("z_dim", [0, 2])
@pytest.mark.parametrize("onednn", [False, True])
def test_every_generator_in_half_precision(activation, fourier_features, bilinear, z_dim, onednn):
    network = CoordinateMLP(
        (1, 9, 9),
        z_dim,
        3,
        hidden=12,
        activation=activation,
        fourier_features=fourier_features,
        bilinear=bilinear,
    )
    coords, z = pixel_grid(9, 9).float().expand(4, -1, -1), torch.randn(4, z_dim)
    with torch.backends.mkldnn.flags(enabled=onednn), half():
        found = network(coords, z)
    expected = copy.deepcopy(network).double()(coords.double(), z.double())
    assert relative(found, expected) < 0.02


# ---- a precise layer of rounded features


@pytest.mark.parametrize("shape", [(10, 8), (3, 5, 8), (2, 3, 4, 8), (1, 8), (0, 8)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 10, 10**6])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_precise_layer_widens_what_was_rounded(monkeypatch, shape, rows, autocast):
    monkeypatch.setattr(networks, "_ROWS", rows)
    layer, outer = nn.Linear(8, 5), torch.randn(*shape[:-1], 5)
    x = torch.randn(shape).to(HALF).requires_grad_()
    wide = x.detach().float().requires_grad_()
    with half(enabled=autocast):
        found = precise_linear(x, layer)
    expected = layer(wide)
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    of_x, *of_layer = torch.autograd.grad(found, (x, *layer.parameters()), outer)
    of_wide, *of_expected = torch.autograd.grad(expected, (wide, *layer.parameters()), outer)
    assert of_x.dtype == HALF
    assert_close(of_x.float(), of_wide, rtol=2**-6, atol=2**-6)
    for a, b in zip(of_layer, of_expected, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_of_rounded_features_no_precise_copy_is_kept():
    def kept(function):
        tensors = []

        def pack(tensor):
            tensors.append(tensor)
            return tensor

        layer, x = nn.Linear(8, 5), torch.randn(1000, 8).to(HALF).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x, layer)
        return sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float32)

    assert kept(precise_linear) <= 8 * 5 + 5
    assert kept(lambda x, layer: layer(x.float())) > 8000


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precise_features_stay_as_they_are(autocast, dtype):
    layer, x = nn.Linear(8, 5).to(dtype), torch.randn(10, 8, dtype=dtype, requires_grad=True)
    with half(enabled=autocast):
        found = precise_linear(x, layer)
    assert torch.equal(found, layer(x))
    a, b = (torch.autograd.grad(y.sum(), (x, *layer.parameters())) for y in (found, layer(x)))
    assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("dims", [(0, 1), (1, 2)])
def test_rounded_features_of_any_layout(dims):
    layer = nn.Linear(6, 5)
    x = torch.randn(4, 6, 6).to(HALF).transpose(*dims)
    expected = precise_linear(x.contiguous(), layer)
    leaf = x.detach().requires_grad_()
    found = precise_linear(leaf, layer)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert_close(leaf.grad.float(), layer.weight.sum(0).expand(leaf.shape), rtol=0.02, atol=0.02)
