r"""Molecules with one continuous degree of freedom, from closed (0) to open (1).

Each atom goes along an arc of a circle or along a straight line,

.. math:: r(c) = p + R(c \phi)\, u + c\, d,

with :math:`R` a turn about z. Two rigid domains at a hinge have :math:`d = 0`. Between two
structures atoms go straight (:math:`u = 0`): lengths across the axis of a domain that turns by
:math:`\phi` are too short half-way, by the factor :math:`\cos(\phi / 2)`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import gemmi
import torch
from torch import Tensor

from svae.checks import positive
from svae.geometry import rotate

__all__ = ["Molecule", "between_structures", "two_domains"]

# The built-in molecule half open, in Å: ellipsoids by centre and semi-axes.
_HEAD = (((-26.0, 0.0, 0.0), (34.0, 40.0, 14.0)), ((-20.0, 46.0, 0.0), (14.0, 14.0, 14.0)))
_LEG = (((30.0, 0.0, 0.0), (34.0, 16.0, 20.0)), ((58.0, 10.0, 0.0), (14.0, 26.0, 20.0)))
_SPACING = 4.0

_FEWEST_MATCHED = 3


@dataclass(frozen=True)
class Molecule:
    """Atoms that move with a conformation between 0 and 1; positions in Å, float64.

    Arguments:
        weights: What each atom adds to a projection, with shape (A,).
        place: What does not move, with shape (A, 3).
        arm: From the axis of its turn to each atom at conformation 0, with shape (A, 3).
        angle: The turn about z from conformation 0 to 1 in radians, with shape (A,).
        step: The straight way from conformation 0 to 1, with shape (A, 3).
    """

    weights: Tensor
    place: Tensor
    arm: Tensor
    angle: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def positions(self, conformation: Tensor) -> Tensor:
        """Where the atoms are about their centre of mass, (B, A, 3), for conformations (B,)."""
        c = conformation.to(self.place).reshape(-1, 1, 1)
        turned = rotate(self.arm[:, :2], c.squeeze(-1) * self.angle)
        along = self.arm[:, 2:].expand(len(c), -1, 1)
        points = self.place + torch.cat((turned, along), -1) + c * self.step
        share = self.weights / self.weights.sum()
        return points - (share.unsqueeze(-1) * points).sum(1, keepdim=True)


def two_domains(swing_deg: float = 135.0) -> Molecule:
    """A head and a leg at a hinge along z, as columns of density that are seen from above.

    They turn against each other so that half open, the molecule as a whole does not turn.

    Arguments:
        swing_deg: How far the leg swings against the head, about its middle position, in degrees;
            135 is about what an integrin does between bent and extended.
    """
    swing = math.radians(positive("swing_deg", swing_deg))
    (head, head_weights), (leg, leg_weights) = _columns(_HEAD), _columns(_LEG)
    points, weights = torch.cat((head, leg)), torch.cat((head_weights, leg_weights))
    in_leg = (torch.arange(len(points)) >= len(head)).double()
    # How much of the angular momentum about the centre of mass a turn about the hinge, which is
    # the origin, has from the leg.
    from_centre = points - (weights.unsqueeze(-1) * points).sum(0) / weights.sum()
    momentum = weights * (from_centre * points).sum(-1)
    angle = (in_leg - (momentum * in_leg).sum() / momentum.sum()) * swing
    arm = torch.cat((rotate(points[:, :2], -angle / 2), points[:, 2:]), -1)
    still = torch.zeros_like(points)
    return Molecule(weights, still, arm, angle, still)


def _columns(ellipsoids: tuple) -> tuple[Tensor, Tensor]:
    """Points (A, 3) of a lattice at z = 0, and how thick some ellipsoids are there, (A,)."""
    line = torch.arange(-120.0, 121.0, _SPACING, dtype=torch.float64)
    points = torch.cartesian_prod(line, line, torch.zeros(1, dtype=torch.float64))
    thickness = torch.zeros(len(points), dtype=torch.float64)
    for centre, semi_axes in ellipsoids:
        x, y, _ = ((points - torch.tensor(centre)) / torch.tensor(semi_axes)).unbind(-1)
        half = (1 - x**2 - y**2).clamp(min=0).sqrt() * semi_axes[2]
        thickness = torch.maximum(thickness, 2 * half)
    return points[thickness > 0], thickness[thickness > 0]


def between_structures(
    closed: str | Path,
    open: str | Path,
    chain: str | None = None,
    align: str | None = None,
    rot_deg: float | None = None,
    tilt_deg: float | None = None,
) -> Molecule:
    """All atoms that two structures of one protein share, each on a straight line.

    The closed structure is put onto the open one by least squares on the alpha carbons of `align`;
    atoms weigh their atomic number. They are the same by chain, residue number, residue name and
    atom name. Waters, ligands, hydrogens, and all but the first alternative location are left
    out.

    With angles, the molecule in the frame of the open structure's file is turned
    counter-clockwise by `rot_deg` about z, then by `tilt_deg` about y, and seen along z. Without,
    it is seen along the direction in which its atoms move least, with most of the motion along x.

    Arguments:
        closed: A PDB or mmCIF file, conformation 0.
        open: Another one, conformation 1.
        chain: Which chain of both; None for the first of each with a protein.
        align: The residues to superpose on, such as `1-29,68-117`; None for all.
        rot_deg: In degrees; with `tilt_deg` or not at all.
        tilt_deg: In degrees.

    Raises:
        ValueError: A file that is no structure, no such chain or residues, or fewer than three
            residues in common.
        OSError: A file that cannot be read.
    """
    if (rot_deg is None) != (tilt_deg is None):
        raise ValueError(
            f"rot_deg, tilt_deg: expected both or neither, got {rot_deg!r} and {tilt_deg!r}"
        )
    found = [_atoms(name, path, chain) for name, path in (("closed", closed), ("open", open))]
    shared = [key for key in found[0] if key in found[1]]
    carbons = [key for key in shared if key[-1] == "CA"]
    if len(carbons) < _FEWEST_MATCHED:
        raise ValueError(
            f"closed, open: expected at least {_FEWEST_MATCHED} residues with the same number and "
            f"name, got {len(carbons)} in {closed} and {open}"
        )
    wanted = _residues(align)
    fixed = [key for key in carbons if wanted is None or key[0] in wanted]
    if len(fixed) < _FEWEST_MATCHED:
        raise ValueError(
            f"align: expected at least {_FEWEST_MATCHED} residues of both structures, "
            f"got {len(fixed)} with {align!r}"
        )
    move = gemmi.superpose_positions(
        *([atoms[key].pos for key in fixed] for atoms in reversed(found))
    ).transform
    ends = [[atoms[key].pos for key in shared] for atoms in found]
    ends[0] = [gemmi.Position(move.apply(position)) for position in ends[0]]
    start, end = (
        torch.tensor([p.tolist() for p in positions], dtype=torch.float64) for positions in ends
    )
    weights = torch.tensor(
        [found[0][key].element.atomic_number for key in shared], dtype=torch.float64
    )
    if rot_deg is None or tilt_deg is None:
        turn = _along_the_motion(end - start, weights)
    else:
        turn = _about_axes(math.radians(rot_deg), math.radians(tilt_deg))
    start, end = start @ turn.T, end @ turn.T
    none = torch.zeros_like(start)
    return Molecule(weights, start, none, none[:, 0], end - start)


def _atoms(name: str, path: str | Path, chain: str | None) -> dict[tuple, gemmi.Atom]:
    """The atoms of a protein chain by residue number, insertion code, residue name and name."""
    if not Path(path).is_file():
        raise OSError(f"{name}: no such file: {path}")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: expected a PDB or mmCIF file, got {path}: {error}") from error
    structure.setup_entities()
    structure.remove_hydrogens()
    chains = {c.name: c.get_polymer() for c in (structure[0] if len(structure) else [])}
    proteins = {n: c for n, c in chains.items() if any(r.find_atom("CA", "*") for r in c)}
    chosen = next(iter(proteins), None) if chain is None else chain
    if chosen not in proteins:
        wanted = "a chain with alpha carbons" if chain is None else f"chain {chain!r}"
        raise ValueError(
            f"{name}: expected {wanted} in {path}, got {', '.join(proteins) or 'none'}"
        )
    atoms: dict[tuple, gemmi.Atom] = {}
    for residue in proteins[chosen]:
        number = residue.seqid
        for atom in residue:
            key = (number.num, number.icode, residue.name, atom.name)
            atoms.setdefault(key, atom.clone())
    return atoms


def _residues(text: str | None) -> set[int] | None:
    """Residue numbers from `1-29,68`."""
    if text is None:
        return None
    numbers: set[int] = set()
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*", part)
        if match is None:
            raise ValueError(f"align: expected residues such as 1-29,68-117, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers.update(range(first, last + 1))
    return numbers


def _along_the_motion(step: Tensor, weights: Tensor) -> Tensor:
    """The rotation (3, 3) to axes x, y, z in the order of falling motion."""
    _, axes = torch.linalg.eigh(step.T @ (weights.unsqueeze(-1) * step))
    x, y = axes[:, 2], axes[:, 1]
    # An axis has no direction of its own: the one in which its largest part is positive.
    x, y = (axis * axis[axis.abs().argmax()].sign() for axis in (x, y))
    return torch.stack((x, y, torch.linalg.cross(x, y)))


def _about_axes(rot: float, tilt: float) -> Tensor:
    """A turn by `rot` about z, then by `tilt` about y, counter-clockwise, with shape (3, 3)."""
    c, s = math.cos(rot), math.sin(rot)
    about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    c, s = math.cos(tilt), math.sin(tilt)
    about_y = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    return about_y @ about_z
