"""Structures are written by the tests; real ones only where they are at hand."""

import math
import os
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from svae.simulation import between_structures, two_domains

STRUCTURES = Path(os.environ.get("SVAE_DATA_DIR", "nowhere")) / "structures"

HALF = torch.tensor([0.5])


def write_structure(path, positions, chain="A", first=1, skip=(), more=()):
    """Two atoms to a residue, at positions (R, 3) and 1.5 Å beside; as the path's suffix says."""
    structure = gemmi.Structure()
    model = gemmi.Model(1)
    model.add_chain(gemmi.Chain(chain))
    for number, place in enumerate(np.asarray(positions), first):
        if number in skip:
            continue
        residue = gemmi.Residue()
        residue.name, residue.seqid = ("ALA", "LYS")[number % 2], gemmi.SeqId(number, " ")
        residue.entity_type = gemmi.EntityType.Polymer
        for name, element, beside in (("CA", "C", 0.0), ("N", "N", 1.5), *more):
            atom = gemmi.Atom()
            atom.name, atom.element = name, gemmi.Element(element)
            atom.pos = gemmi.Position(*(place + np.array([beside, 0, 0])))
            residue.add_atom(atom)
        model[0].add_residue(residue)
    structure.add_model(model)
    structure.setup_entities()
    if path.suffix == ".pdb":
        structure.write_pdb(str(path))
    else:
        structure.make_mmcif_document().write_file(str(path))
    return path


@pytest.fixture
def ends(tmp_path):
    """The first ten residues stand still and the others go by (0, 6, 0); closed lies elsewhere."""
    random = np.random.default_rng(0)
    closed = random.normal(0, 15, (16, 3)).round(3)
    opened = closed.copy()
    opened[10:] += [0, 6, 0]
    c, s = math.cos(0.7), math.sin(0.7)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return (
        write_structure(tmp_path / "closed.pdb", closed @ turn.T + [20, -7, 3], skip=(3,)),
        write_structure(tmp_path / "open.cif", opened, more=[("CB", "C", 3.0)]),
        opened[[i for i in range(16) if i != 2]],
    )


def distances(points):
    return torch.cdist(points, points)


def test_two_domains_are_rigid_and_swing_by_the_angle():
    molecule = two_domains(80.0)
    points = molecule.positions(torch.linspace(0, 1, 5))
    head = molecule.angle == molecule.angle.min()
    for rigid in (head, ~head):
        between = (distances(points[i, rigid]) for i in (0, 3))
        assert_close(*between, atol=1e-4, rtol=0)
    directions = []
    for part in (head, ~head):
        start, end = (points[i, part][:, :2] - points[i, part][:, :2].mean(0) for i in (0, 4))
        across = (start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0]).sum()
        directions.append(torch.atan2(across, (start * end).sum()))
    assert math.degrees(directions[1] - directions[0]) == pytest.approx(80)
    assert (distances(points[0]) - distances(points[4])).abs().max() > 20


def test_the_centre_of_mass_stays_and_half_open_nothing_turns_as_a_whole():
    molecule = two_domains()
    share = molecule.weights / molecule.weights.sum()
    points = molecule.positions(torch.tensor([0.0, 0.3, 1.0]))
    assert_close((share[:, None] * points).sum(1), torch.zeros(3, 3).double(), atol=1e-9, rtol=0)
    before, now, after = molecule.positions(torch.tensor([0.499, 0.5, 0.501]))[..., :2]
    step = after - before
    spin = share * (now[:, 0] * step[:, 1] - now[:, 1] * step[:, 0])
    assert spin.sum().abs() < 1e-5 * spin.abs().sum()


def test_two_structures_are_matched_superposed_and_joined_by_straight_lines(ends):
    closed, opened, places = ends
    molecule = between_structures(closed, opened, align="1-10", rot_deg=0.0, tilt_deg=0.0)
    assert len(molecule) == 30  # without residue 3 and the beta carbons
    assert molecule.weights.tolist() == [6, 7] * 15
    start, half, end = molecule.positions(torch.tensor([0.0, 0.5, 1.0]))
    assert_close((start + end) / 2, half)
    expected = torch.as_tensor(places)
    assert_close(distances(end[::2]), distances(expected), atol=2e-3, rtol=0)
    step = end - start
    step = step - step[:18].mean(0)  # the centre of mass goes along
    assert_close(step[:18], torch.zeros(18, 3).double(), atol=5e-3, rtol=0)
    wanted = torch.tensor([0.0, 6.0, 0.0]).double().expand(12, 3)
    assert_close(step[18:], wanted, atol=5e-3, rtol=0)


def test_it_is_seen_along_the_least_motion_or_as_one_says(ends):
    closed, opened, _ = ends
    molecule = between_structures(closed, opened, align="1-10")
    step = (molecule.positions(torch.ones(1)) - molecule.positions(torch.zeros(1)))[0]
    assert step[:, 0].std() > 2
    assert step[:, 1:].abs().max() < 0.01
    plain, about_z, both = (
        between_structures(closed, opened, rot_deg=rot, tilt_deg=tilt).positions(HALF)[0]
        for rot, tilt in ((0.0, 0.0), (90.0, 0.0), (90.0, 90.0))
    )
    x, y, z = plain.unbind(-1)
    assert_close(about_z, torch.stack((-y, x, z), -1))
    assert_close(both, torch.stack((z, x, y), -1))


def test_axes_are_right_handed(ends):
    closed, opened, _ = ends
    plain = between_structures(closed, opened, rot_deg=0.0, tilt_deg=0.0).positions(HALF)[0]
    motion = between_structures(closed, opened).positions(HALF)[0]
    turn = torch.linalg.lstsq(plain, motion).solution
    assert_close(turn @ turn.T, torch.eye(3).double())
    assert torch.linalg.det(turn) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chain": "B"}, "closed: expected chain 'B' in .*closed.pdb, got A"),
        ({"align": "1-two"}, "align: expected residues such as 1-29,68-117, got '1-two'"),
        ({"align": "3,40-50"}, "align: expected at least 3 residues of both structures, got 0"),
        ({"rot_deg": 3.0}, "rot_deg, tilt_deg: expected both or neither"),
    ],
)
def test_mistakes_are_named(ends, options, message):
    with pytest.raises(ValueError, match=message):
        between_structures(*ends[:2], **options)


def test_files_that_do_not_serve_are_named(ends, tmp_path):
    with pytest.raises(OSError, match=r"open: no such file: nowhere.pdb"):
        between_structures(ends[0], "nowhere.pdb")
    text = tmp_path / "text.cif"
    text.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"open: expected a PDB or mmCIF file, got .*text.cif"):
        between_structures(ends[0], text)
    text.with_suffix(".pdb").write_text("nothing of the kind")
    with pytest.raises(ValueError, match=r"expected a chain with alpha carbons .* got none"):
        between_structures(ends[0], text.with_suffix(".pdb"))
    other = write_structure(tmp_path / "other.pdb", np.zeros((9, 3)), first=100)
    with pytest.raises(ValueError, match=r"at least 3 residues with the same number .* got 0"):
        between_structures(ends[0], other)


@pytest.mark.skipif(not STRUCTURES.is_dir(), reason="needs structures in SVAE_DATA_DIR")
def test_adenylate_kinase_opens_by_7_angstrom():
    molecule = between_structures(STRUCTURES / "1AKE.pdb", STRUCTURES / "4AKE.pdb")
    assert len(molecule) == 1656  # 214 residues
    ends = molecule.positions(torch.tensor([0.0, 1.0]))
    rmsd = (ends[1] - ends[0]).square().sum(-1).mean().sqrt()
    assert rmsd.item() == pytest.approx(7.1, abs=0.5)
