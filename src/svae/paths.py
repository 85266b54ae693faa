"""Where the package's configs and the user's data lie."""

import os
from pathlib import Path

__all__ = ["conf_dir", "data_dir"]


def conf_dir() -> str:
    """The absolute path of `conf/`: inside an installed wheel, else at the top of a checkout.

    It is a string because that is what `hydra.main` and `initialize_config_dir` take. A path
    found when the program starts works from a wheel, from an editable install and from
    `PYTHONPATH=src`; Hydra's `pkg://` works from the first only.
    """
    package = Path(__file__).resolve().parent
    candidates = [package / "conf", package.parents[1] / "conf"]

    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return str(candidate)

    places = " nor in ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"train.yaml is neither in {places}: svae is not installed completely")


def data_dir() -> Path:
    """The absolute path of the folder for data sets, which may not exist yet.

    The environment variable `SVAE_DATA_DIR` where it is set, else `svae` in the user's cache
    folder: `$XDG_CACHE_HOME`, else `~/.cache`. A leading `~` stands for the home folder.
    """
    if chosen := os.environ.get("SVAE_DATA_DIR"):
        return Path(chosen).expanduser().absolute()

    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "svae"
