import math

import gemmi
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from svae.geometry import pixel_grid, pixel_size
from svae.simulation import project, resolution_std


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_it_is_the_sum_of_blobs_in_three_dimensions_along_z():
    random = torch.Generator().manual_seed(0)
    atoms = torch.randn(2, 5, 3, generator=random, dtype=torch.float64) * 3
    weights = torch.rand(5, generator=random) + 0.5
    height, width, std = 12, 15, 1.3
    grid = pixel_grid(height, width) / pixel_size(height, width)
    z = torch.arange(-20, 20, 0.1, dtype=torch.float64)
    points = torch.cat(
        (grid[:, None].expand(-1, len(z), -1), z[:, None].expand(len(grid), -1, 1)), -1
    )
    expected = torch.zeros(2, len(grid), dtype=torch.float64)
    for image in range(2):
        for atom, weight in zip(atoms[image], weights, strict=True):
            square = (points - atom).square().sum(-1)
            density = weight * torch.exp(-square / (2 * std**2)) / (2 * math.pi * std**2) ** 1.5
            expected[image] += density.sum(1) * 0.1
    images = project(atoms[..., :2], weights, std, height, width)
    assert_close(images.double(), expected.reshape(2, height, width), atol=1e-7, rtol=1e-5)


def test_it_agrees_with_gemmis_density_summed_along_z():
    """Carbon, nitrogen and sulphur with X-ray form factors, blurred as much."""
    random = np.random.default_rng(1)
    std, spacing, cells = 2.5, 1.0, 64
    places = random.normal(0, 7, (30, 3))
    elements = random.choice(["C", "N", "S"], 30)
    structure = gemmi.Structure()
    structure.cell = gemmi.UnitCell(*[cells * spacing] * 3, 90, 90, 90)
    structure.spacegroup_hm = "P 1"
    model, chain, residue = gemmi.Model(1), gemmi.Chain("A"), gemmi.Residue()
    for place, element in zip(places, elements, strict=True):
        atom = gemmi.Atom()
        atom.element = gemmi.Element(str(element))
        atom.pos = gemmi.Position(*(place + cells * spacing / 2))
        atom.b_iso, atom.occ = 8 * math.pi**2 * std**2, 1.0
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    calculator = gemmi.DensityCalculatorX()
    calculator.d_min = 2 * calculator.rate * spacing
    calculator.grid.setup_from(structure)
    calculator.grid.set_size(cells, cells, cells)
    calculator.put_model_density_on_grid(structure[0])
    summed = np.array(calculator.grid.array).sum(2).T[::-1] * spacing  # y up, x to the right
    numbers = torch.tensor([gemmi.Element(str(e)).atomic_number for e in elements]).double()
    # Its points are at whole numbers, the middle of ours is between two.
    points = torch.as_tensor(places[None, :, :2]) + 0.5
    image = project(points, numbers, std, cells, cells)[0].numpy()
    assert correlation(image, summed) > 0.9995
    assert summed.sum() == pytest.approx(image.sum(), rel=0.01)
    assert np.abs(summed - image).max() < 0.02 * image.max()


def test_all_the_weight_arrives_and_y_is_up():
    points = torch.tensor([[[3.0, 5.0]]])
    image = project(points, torch.tensor([7.0]), 1.0, 21, 25)[0]
    assert image.sum().item() == pytest.approx(7, rel=1e-4)
    assert divmod(image.argmax().item(), 25) == (10 - 5, 12 + 3)


def test_the_resolution_is_where_the_transform_is_1_over_e():
    std = resolution_std(10.0)
    assert math.exp(-2 * math.pi**2 * std**2 / 10.0**2) == pytest.approx(math.exp(-1))


def test_atoms_far_away_add_nothing():
    far = project(torch.tensor([[[400.0, 0.0], [0.0, 0.0]]]), torch.ones(2), 1.0, 20, 20)
    alone = project(torch.tensor([[[0.0, 0.0]]]), torch.ones(1), 1.0, 20, 20)
    assert_close(far, alone)
