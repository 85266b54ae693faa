"""The state of torch's own generators of random numbers.

What `svae` draws needs none (`svae.noise`). It is for what somebody adds, such as an encoder with
dropout, whose training could not go on exactly otherwise.
"""

import torch
from torch import Tensor

__all__ = ["random_state", "restore_random_state"]


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the processor's generator and of that of a GPU, uint8, by their names."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from what `random_state` gave, be it on another kind of device."""
    # A copy, because torch reads beyond the end of a row of a larger tensor.
    torch.set_rng_state(state["cpu"].clone())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].clone(), device)
