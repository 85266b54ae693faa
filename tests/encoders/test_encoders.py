import pytest
import torch

from svae.encoders import CNN, MLP


@pytest.mark.parametrize("encoder", [MLP, CNN])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 17, 24)])
def test_features_of_any_image_shape(encoder, image_shape):
    network = encoder(image_shape, hidden=11)
    features = network(torch.rand(4, *image_shape))
    assert features.shape == (4, network.out_features) == (4, 11)
    features.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(("layers", "linears"), [(1, 1), (2, 2), (4, 4)])
def test_depth_counts_hidden_layers(layers, linears):
    network = MLP((1, 6, 6), hidden=5, layers=layers)
    assert sum(isinstance(m, torch.nn.Linear) for m in network.modules()) == linears


def test_an_image_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size.*4x4"):
        CNN((1, 8, 8), convolutions=3, kernel_size=5)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"hidden": 0}, "hidden"), ({"layers": 0}, "layers"), ({"activation": "relu6"}, "relu6")],
)
def test_values_out_of_range_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        MLP((1, 6, 6), **options)
