"""Spatial variational autoencoders: what is in an image, apart from how it is turned and where."""

from svae.elbo import ELBO
from svae.latents import Latents

__all__ = ["ELBO", "Latents", "images", "load"]


def __getattr__(name: str) -> object:
    # These need Hydra and OmegaConf; `import svae` for the mathematics alone does not.
    if name in ("images", "load"):
        from svae import run

        return getattr(run, name)
    raise AttributeError(f"module 'svae' has no attribute {name!r}")
