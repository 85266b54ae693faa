"""Simulated particles: projections of a molecule with one continuous degree of freedom."""

import math
from typing import Any

import torch
from torch import Tensor

from svae.checks import at_least, not_negative, one_of, positive
from svae.ctf import ctf
from svae.datasets.base import Batch, ImageDataModule
from svae.datasets.posed import RandomAngles
from svae.geometry import pixel_size, rotate
from svae.noise import Noise
from svae.simulation import Molecule, between_structures, project, resolution_std, two_domains

__all__ = ["Hinge"]

#: How much of half the image's side the molecule reaches, where no pixel size is given, and how
#: many pixels the resolution has, where none is given.
REACH, RESOLUTION_PX = 0.9, 3.0

#: Within the mask the projection is, for some conformation, at least this part of its largest
#: value over all of them.
MASK_LEVEL = 0.05

#: How many conformations, and defoci, the signal is measured at.
_REFERENCES = 9

#: How many images are drawn at once, for the memory of their noise.
_CHUNK = 500


class Hinge(ImageDataModule):
    """Noisy projections of a molecule along one direction, in any conformation and pose.

    Each image is a function of the seed and its index. The molecule is drawn in its pose, not
    resampled, as Gaussian blobs at its atoms, whose centre of mass is what
    turns and moves. Then comes the CTF, where one is asked for, and white noise of standard
    deviation 1, which so is the unit of the pixels; the background's mean is 0.

    The signal-to-noise ratio is the variance of the signal within the particle's mask over that
    of the noise. The mask is where the upright, centred molecule's projection is at least 0.05 of
    its largest value for any of 9 conformations, evenly spaced from 0 to 1. The variance is that
    of the pixels within it about their mean, averaged over these conformations, with the CTF,
    where there is one, at 9 defoci over its range and without astigmatism. It is one number for
    all images. Without noise, the unit of the pixels is the signal's standard deviation.

    A batch holds beside `image` (B, 1, H, W) and `index`: `conformation` (B,) from 0, closed, to
    1, open; `theta` and `shift` where they vary; with a CTF, `ctf` (B, 9) and `ctf_applied` (B,),
    which is 0.

    References:
        Explicitly disentangling image content from translation and rotation with spatial-VAE
        (Bepler et al., 2019), section 4.3, whose molecule is an integrin (5HDB).

    Arguments:
        closed: A PDB or mmCIF file, conformation 0; null for a built-in molecule of two domains.
        open: Another of the same protein, conformation 1; see `between_structures`.
        chain: Which chain of both; null for the first with a protein.
        align: The residues to superpose the two on, such as `1-29,68-117`; null for all.
        rot_deg: The viewing direction, with `tilt_deg`; null for that of the least motion.
        tilt_deg: See `rot_deg`.
        swing_deg: How far the built-in molecule's arm swings, in degrees.
        conformation_distribution: `uniform` from 0 to 1, or `normal`: mean 1/2, standard
            deviation 1/6, cut at 0 and 1.
        image_size: The side of the square images in pixels.
        pixel_size_A: Null for that with which the molecule reaches 0.9 of the way to the edge.
        resolution_A: Where the blobs' Fourier transform is 1/e; null for 3 pixels.
        theta_distribution: `normal` or `uniform` (over the whole circle).
        theta_std_deg: The standard deviation of a normal angle in degrees.
        shift_std_px: The standard deviation of the shift along each axis in pixels.
        snr: The signal-to-noise ratio; null for no noise.
        defocus_A: The lowest and highest defocus, which is uniform between them; null for no CTF.
        astigmatism_A: The difference of the defoci along its axes, whose direction is any.
        voltage_kV: The acceleration voltage.
        cs_mm: The spherical aberration.
        amplitude_contrast: Its part.
        b_factor_A2: The decay of the CTF.
        train_images: The number of training images.
        val_images: The number of validation images.
        test_images: The number of test images.
        batch_size: As in `ImageDataModule`.
        eval_batch_size: As in `ImageDataModule`.
        seed: As in `ImageDataModule`.
    """

    def __init__(
        self,
        closed: str | None = None,
        open: str | None = None,
        chain: str | None = None,
        align: str | None = None,
        rot_deg: float | None = None,
        tilt_deg: float | None = None,
        swing_deg: float = 135.0,
        conformation_distribution: str = "uniform",
        image_size: int = 40,
        pixel_size_A: float | None = None,
        resolution_A: float | None = None,
        theta_distribution: str = "uniform",
        theta_std_deg: float = 45.0,
        shift_std_px: float = 0.0,
        snr: float | None = 0.1,
        defocus_A: list[float] | None = None,
        astigmatism_A: float = 0.0,
        voltage_kV: float = 300.0,
        cs_mm: float = 2.7,
        amplitude_contrast: float = 0.1,
        b_factor_A2: float = 0.0,
        train_images: int = 15_000,
        val_images: int = 1_000,
        test_images: int = 4_000,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if (closed is None) != (open is None):
            raise ValueError(
                f"closed, open: expected two structures or neither, got {closed!r} and {open!r}"
            )
        of_structures = {
            "chain": chain,
            "align": align,
            "rot_deg": rot_deg,
            "tilt_deg": tilt_deg,
        }
        unused = [name for name, value in of_structures.items() if value is not None]
        if closed is None and unused:
            raise ValueError(f"{', '.join(unused)}: expected null without closed and open")
        self._structures = None if closed is None or open is None else (closed, open)
        self._of_structures: dict[str, Any] = of_structures
        self.swing_deg = positive("swing_deg", swing_deg)
        distribution = one_of(
            "conformation_distribution", conformation_distribution, ("uniform", "normal")
        )
        self.uniform_conformation = distribution == "uniform"
        self.image_size = at_least("image_size", image_size, 2)
        #: Å per pixel, known after `setup` where it was not given.
        self.pixel_size = None if pixel_size_A is None else positive("pixel_size_A", pixel_size_A)
        self.resolution = None if resolution_A is None else positive("resolution_A", resolution_A)
        self.angles = RandomAngles(theta_distribution, theta_std_deg)
        self.shift_std_px = not_negative("shift_std_px", shift_std_px)
        self.snr = None if snr is None else positive("snr", snr)
        self.defocus: tuple[float, float] | None = None
        if defocus_A is not None:
            if len(defocus_A) != 2 or not 0 < defocus_A[0] <= defocus_A[1] < math.inf:
                raise ValueError(
                    "defocus_A: expected [lowest, highest], above 0 and in this order, "
                    f"got {defocus_A!r}"
                )
            self.defocus = (float(defocus_A[0]), float(defocus_A[1]))
        self.astigmatism = not_negative("astigmatism_A", astigmatism_A)
        if not 0 <= amplitude_contrast <= 1:
            raise ValueError(
                f"amplitude_contrast: expected a number from 0 to 1, got {amplitude_contrast!r}"
            )
        #: What of the CTF is the same for all images: voltage, Cs, amplitude contrast, B-factor.
        self.microscope = (
            positive("voltage_kV", voltage_kV),
            not_negative("cs_mm", cs_mm),
            amplitude_contrast,
            not_negative("b_factor_A2", b_factor_A2),
        )
        self.counts = {
            "train": at_least("train_images", train_images, 1),
            "val": at_least("val_images", val_images, 1),
            "test": at_least("test_images", test_images, 1),
        }

    def read(self) -> dict[str, Batch]:
        molecule = self._molecule()
        self._fit(molecule)
        signal_std = self._signal_std(molecule)
        index = torch.arange(sum(self.counts.values()))
        parts = index.split(list(self.counts.values()))
        return {
            name: self._images(molecule, signal_std, rows)
            for name, rows in zip(self.counts, parts, strict=True)
        }

    def found(self) -> dict[str, Any]:
        return {"pixel_size_A": self.pixel_size, "resolution_A": self.resolution}

    def _molecule(self) -> Molecule:
        if self._structures is None:
            return two_domains(self.swing_deg)
        return between_structures(*self._structures, **self._of_structures)

    def _fit(self, molecule: Molecule) -> None:
        """Decide what was left open, and see that the molecule is within the image."""
        conformations = torch.linspace(0, 1, _REFERENCES)
        reach = molecule.positions(conformations)[..., :2].norm(dim=-1).max().item()
        half = self.image_size / 2
        if self.pixel_size is None:
            self.pixel_size = reach / (REACH * half)
        if reach > half * self.pixel_size:
            raise ValueError(
                f"pixel_size_A: expected at least {reach / half:.3g} for a molecule that reaches "
                f"{reach:.0f} Å from its centre, in {self.image_size} pixels, "
                f"got {self.pixel_size!r}"
            )
        if self.resolution is None:
            self.resolution = RESOLUTION_PX * self.pixel_size

    def _signal_std(self, molecule: Molecule) -> float:
        """The standard deviation of the signal within the mask (class docstring)."""
        conformations = torch.linspace(0, 1, _REFERENCES)
        still, middle = torch.zeros(_REFERENCES), torch.zeros(_REFERENCES, 2)
        upright = self._draw(molecule, conformations, still, middle, None)
        inside = upright.amax(0) >= MASK_LEVEL * upright.max()
        if self.defocus is None:
            signals = [upright]
        else:
            defoci = torch.linspace(*self.defocus, _REFERENCES)
            signals = [
                self._draw(molecule, conformations, still, middle, params.expand(_REFERENCES, -1))
                for params in self._ctf_params(defoci, still, 0.0)
            ]
        within = torch.cat(signals)[:, inside].double()
        return within.var(1, correction=0).mean().sqrt().item()

    def _images(self, molecule: Molecule, signal_std: float, index: Tensor) -> Batch:
        noise = Noise(self.seed, "hinge", index)
        conformation = self._conformations(noise)
        theta = self.angles.draw(noise)
        shift_px = noise.normal("pose shift", 2) * self.shift_std_px
        params = None
        if self.defocus is not None:
            low, high = self.defocus
            defocus = low + (high - low) * noise.uniform("defocus")
            direction = 180 * noise.uniform("astigmatism")
            params = self._ctf_params(defocus, direction, self.astigmatism)
        images = torch.empty(len(index), 1, self.image_size, self.image_size)
        for rows in torch.arange(len(index)).split(_CHUNK):
            part = None if params is None else params[rows]
            signal = self._draw(molecule, conformation[rows], theta[rows], shift_px[rows], part)
            images[rows, 0] = signal / signal_std
            if self.snr is not None:
                pixels = Noise(self.seed, "hinge", index[rows]).normal("noise", *signal.shape[1:])
                images[rows, 0] = (math.sqrt(self.snr) * images[rows, 0] + pixels).float()
        batch = {"image": images, "index": index, "conformation": conformation.float()}
        # A pose that nobody varied is no truth to compare with.
        if self.angles.varied:
            batch["theta"] = theta.float()
        if self.shift_std_px:
            unit = pixel_size(self.image_size, self.image_size)
            batch["shift"] = (shift_px * unit).float()
        if params is not None:
            batch["ctf"], batch["ctf_applied"] = params, torch.zeros_like(index)
        return batch

    def _conformations(self, noise: Noise) -> Tensor:
        uniform = noise.uniform("conformation")
        if self.uniform_conformation:
            return uniform
        tail = torch.special.ndtr(torch.tensor(-3.0, dtype=torch.float64))
        return 0.5 + torch.special.ndtri(tail + (1 - 2 * tail) * uniform) / 6

    def _ctf_params(self, defocus: Tensor, direction: Tensor, astigmatism: float) -> Tensor:
        """Parameters (B, 9) of `svae.ctf`, for mean defoci and directions (B,)."""
        voltage, cs, amplitude_contrast, b_factor = self.microscope
        assert self.pixel_size is not None
        same = (voltage, cs, amplitude_contrast, 0.0, self.pixel_size, b_factor)
        return torch.stack(
            [
                defocus + astigmatism / 2,
                defocus - astigmatism / 2,
                direction,
                *(torch.full_like(defocus, value) for value in same),
            ],
            dim=-1,
        ).float()

    def _draw(
        self,
        molecule: Molecule,
        conformation: Tensor,
        theta: Tensor,
        shift_px: Tensor,
        params: Tensor | None,
    ) -> Tensor:
        """The signal, with shape (B, H, W)."""
        assert self.pixel_size is not None
        assert self.resolution is not None
        points = molecule.positions(conformation)[..., :2] / self.pixel_size
        points = rotate(points, theta.double().unsqueeze(-1)) + shift_px.unsqueeze(1)
        size, std = self.image_size, resolution_std(self.resolution) / self.pixel_size
        if params is None:
            return project(points, molecule.weights, std, size, size)
        # The CTF spreads the particle: in a larger field of view, so that what leaves the image
        # on one side does not come back on the other.
        margin = size // 2
        field = size + 2 * margin
        spectrum = torch.fft.rfft2(project(points, molecule.weights, std, field, field))
        seen = torch.fft.irfft2(spectrum * ctf(params, field, field), s=(field, field))
        return seen[:, margin : margin + size, margin : margin + size]
