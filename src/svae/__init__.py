"""Spatial variational autoencoders: what is in an image, apart from how it is turned and where."""

from svae.elbo import ELBO
from svae.latents import Latents

__all__ = ["ELBO", "Latents", "load"]


def __getattr__(name: str) -> object:
    # `svae.load` needs Hydra and OmegaConf; `import svae` for the mathematics alone does not.
    if name == "load":
        from svae.run import load

        return load
    raise AttributeError(f"module 'svae' has no attribute {name!r}")
