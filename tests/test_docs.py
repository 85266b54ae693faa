"""README.md and docs/: every command line and every snippet runs, and what they name exists.

A page is read from its top to its bottom in a folder of its own, as a reader would. Its first
training is `outputs/train/DATE`, its first encoding `outputs/encode/DATE`, and so on. The lines
run as they are written, with small networks and few batches added.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from tests.helpers import write_mnist, write_particles

from svae.datasets import Images

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ("train", "evaluate", "encode", "decode", "report", "sweep", "prepare")

#: What is not run, by how the line begins, and why.
NOT_RUN = {
    "python -m svae.train trainer=gpu": "needs a GPU; test_train has the refusal without one",
    "python -m svae.train trainer=ddp ": "needs four GPUs; test_train has two processes",
    "python -m svae.evaluate run=RUN checkpoint=step600": (
        "in the notes: RUN is of 2400 steps, and the checkpoint that of step 600"
    ),
    "python -m svae.train -m dataset=rot_mnist 'experiment=glob(": (
        "six large models; test_configs composes each, test_multirun has another pattern"
    ),
    "python -m svae.train -m seed=1,2,3,4 hydra/launcher=joblib": "test_multirun has it",
    "python -m svae.train -m seed=1,2,3,4 hydra/launcher=submitit_local": "test_multirun has it",
    "python -m svae.train -m 'seed=range(1,1001)' hydra/launcher=slurm": "needs a cluster",
    "python -m svae.train dataset=galaxy_zoo": "61,578 pictures; test_galaxy_zoo has some",
    "python -m svae.train experiment=paper_galaxy_zoo": "test_galaxy_zoo has it",
    "python -m svae.train experiment=paper_antibody": "test_published has it",
    "python -m svae.train experiment=paper_codhacs": "test_published has it",
    "python -m svae.train experiment=paper_integrin_5hdb": "test_published has it",
    "python -m svae.train dataset=hinge dataset.closed=": "test_molecule has structures",
    "python -m svae.train experiment=hinge": "test_hinge has it",
    "python -m svae.train experiment=table1_": "test_hinge has two of the three",
    "python -m svae.results": "a night of trainings; test_results has small ones",
    "torchrun --nnodes 4": "needs four machines; test_distributed has two processes on this one",
    "tensorboard --logdir outputs": "a server that does not end",
    "wandb login": "asks for a key",
    "wandb sync 'outputs/train/DATE/wandb/offline-run-*'": "sends to the service",
}

#: Added to every training: few steps and small networks.
QUICK = (
    "debug=quick",
    "trainer.max_epochs={epochs}",
    "trainer.enable_progress_bar=false",
    "evaluation.iwae_samples=2",
    "model.generator.hidden=8",
    "dataset.batch_size=10",
)
#: Added where the encoder is TARGET-VAE's, and where it is not.
OF_TARGET_VAE = "model.encoder.channels=4", "model.encoder.hidden=8"
TARGET_VAE = re.compile(r"target_vae|best_mnist_u|galaxies|table2_\w+_p\d+")
#: Added by data set.
OF_DATA = {
    "images": (),
    "particles": ("dataset.size=12",),
    "hinge": ("dataset.train_images=40", "dataset.val_images=10", "dataset.test_images=20"),
    "rot_digits": ("dataset.train_copies=1", "dataset.eval_copies=1"),
    "mnist": ("dataset.val_images=10",),
    "my_images": ("dataset.train_copies=1", "dataset.eval_copies=1"),
    "plates": (),
}
#: Added to the other commands.
QUICK_OF = {
    "evaluate": ("trainer.enable_progress_bar=false", "trainer.limit_test_batches=2"),
    "encode": ("progress_bar=false",),
    "decode": ("manifold_side=2", "frames=2", "steps=3"),
    "report": (),
    "sweep": (),
    "prepare": ("progress_bar=false", "dataset.size=12"),
}

OWN_DATA = """
from svae.datasets import RotDigits

class Digits(RotDigits):
    pass
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


class Line(NamedTuple):
    """A command line, split into words, with the variables before it."""

    command: str
    overrides: list[str]
    variables: dict[str, str]

    @property
    def choices(self) -> dict[str, str]:
        return dict(o.split("=", 1) for o in self.overrides if "=" in o)

    @property
    def sweep(self) -> bool:
        return "-m" in self.overrides


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def lines(block: Block) -> Iterator[str]:
    """The command lines of a block, without comments; a quotation may span several."""
    unfinished = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        unfinished += line
        try:
            words = shlex.split(unfinished, comments=True)
        except ValueError:  # no closing quotation
            continue
        unfinished = ""
        if words:
            yield shlex.join(words)
    assert not unfinished, unfinished


def file_of(block: Block) -> str | None:
    """The path of a block that is a file, which a comment at its top consists of."""
    # What Hydra reads comes before it.
    found = re.match(r"(?:# @package .*\n)?# (\S+\.(?:py|yaml))\n", block.text)
    return found[1] if found else None


def reason_not_to_run(line: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), None)


def parsed(text: str) -> Line:
    words = shlex.split(text)
    variables = {}
    while "=" in words[0]:
        name, _, variables[name] = words.pop(0).partition("=")
    assert words[:2] == ["python", "-m"], f"not run: {text}"
    name = words[2].removeprefix("svae.")
    assert name in COMMANDS, f"no such command: {text}"
    return Line(name, words[3:], variables)


def quick(line: Line, first: bool) -> list[str]:
    """The words of a line, and what makes it quick."""
    words = [re.sub(r"^([a-z_.]+=[^,\[]+,[^,]+),.*", r"\1", w) for w in line.overrides]
    words = [re.sub(r"n_trials=\d+", "n_trials=2", w) for w in words]
    if first and not line.sweep and line.command not in ("report", "prepare"):
        words.append(f"hydra.run.dir=outputs/{line.command}/DATE")
    if line.command != "train":
        return [*words, *QUICK_OF[line.command]]
    experiment = line.choices.get("experiment", "demo")
    data = {"demo": "rot_digits", "galaxies": "images", "mine": "plates"}.get(
        experiment, "rot_mnist"
    )
    if experiment == "demo":
        data = line.choices.get("dataset", data)
    words += [w.format(epochs=2 if "ckpt_path" in line.choices else 1) for w in QUICK]
    words += OF_DATA["mnist" if "mnist" in data else data]
    chosen = line.choices.get("model", "") + " " + experiment
    words.append(OF_TARGET_VAE[not TARGET_VAE.search(chosen)])
    if not first:
        words.append("~callbacks.figures")
    return words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with what the pages speak of: pictures, data, code of one's own."""
    random = np.random.default_rng(0)

    def pixels(*shape: int, kind: type = np.uint8) -> np.ndarray:
        return random.integers(0, np.iinfo(kind).max, shape, kind)

    for name in ("pictures", "new_pictures"):
        for i in range(24):
            path = tmp_path / name / f"{'ab'[i % 2]}/cell{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(28, 28)).save(path)
    files = [
        p.relative_to(tmp_path / "new_pictures")
        for p in (tmp_path / "new_pictures").rglob("*.png")
    ]
    rows = "".join(f"{file.as_posix()},{'xy'[i % 2]}\n" for i, file in enumerate(files))
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")
    (tmp_path / "micrographs").mkdir()
    for i in range(12):
        picture = pixels(200 + i, 220, 3, kind=np.uint16)
        tifffile.imwrite(tmp_path / f"micrographs/m{i}.tif", picture, photometric="rgb")
    tifffile.imwrite(tmp_path / "stack.tif", pixels(12, 32, 32, kind=np.uint16))
    (tmp_path / "fluorescence").mkdir()
    for i in range(12):
        cell = pixels(2, 32, 32, kind=np.uint16)
        path = tmp_path / f"fluorescence/cell{i}.tif"
        tifffile.imwrite(path, cell, imagej=True, metadata={"axes": "CYX"})
    (tmp_path / "cutouts").mkdir()
    for i in range(3):
        with (tmp_path / f"cutouts/{i}.fits").open("wb") as file:
            np.save(file, random.normal(size=(32, 32)).astype(">f4"))
    # astropy is no dependency: this reads the files above.
    reader = SimpleNamespace(getdata=np.load)
    for name in ("astropy", "astropy.io"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(fits=reader))
    write_mnist(tmp_path / "data")
    write_particles(tmp_path)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab/__init__.py").write_text(OWN_DATA)
    own = yaml.safe_load((ROOT / "conf/dataset/rot_digits.yaml").read_text())
    (tmp_path / "my_configs/dataset").mkdir(parents=True)
    text = yaml.safe_dump(own | {"_target_": "mylab.Digits"})
    (tmp_path / "my_configs/dataset/my_images.yaml").write_text(text)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    monkeypatch.setenv("SVAE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


class Reader:
    """Does what a page says, one step after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.done: set[str] = set()
        self.snippets: dict[str, object] = {"images": torch.rand(3, 1, 28, 28)}

    def run(self, text: str) -> None:
        if text.startswith("export "):
            self.monkeypatch.setenv(*text.removeprefix("export ").split("=", 1))
            return
        line = parsed(text)
        first = line.command not in self.done and not line.sweep
        if first and any("outputs/train/DATE" in word for word in line.overrides):
            self.need("train")
        words = quick(line, first)
        if line.variables:  # they must be there before Python starts
            environment = os.environ | line.variables | {"PYTHONPATH": str(ROOT / "src")}
            arguments = [sys.executable, "-m", f"svae.{line.command}", *words]
            result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, f"{text}\n{result.stderr}"
        else:
            self.monkeypatch.setattr(sys, "argv", [f"svae.{line.command}", *words])
            try:
                import_module(f"svae.{line.command}").main()
            except SystemExit as error:
                pytest.fail(f"{text}\nended with {error.code!r}")
        if first:
            self.done.add(line.command)

    def need(self, *commands: str) -> None:
        """Run what a page takes for granted."""
        for command in commands:
            if command not in self.done:
                run = "" if command == "train" else " run=outputs/train/DATE"
                self.run(f"python -m svae.{command}{run}")

    def execute(self, snippet: str) -> None:
        self.need(*(c for c in COMMANDS if f"outputs/{c}/DATE" in snippet))
        exec(compile(snippet, "snippet", "exec"), self.snippets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_and_snippet_runs(page, folder, monkeypatch):
    reader = Reader(monkeypatch)
    if '"pictures"' in page.read_text():  # the page makes them
        (folder / "pictures").rename(folder / "pictures_not_used")
    for block in blocks(page):
        if path := file_of(block):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(block.text)
        elif block.language == "python":
            reader.execute(block.text)
        elif block.language == "":
            for line in lines(block):
                if line.startswith("make "):
                    target = line.split()[1]
                    assert f"\n{target}:" in (ROOT / "Makefile").read_text(), line
                elif reason_not_to_run(line) is None:
                    reader.run(line)


def test_the_bottom_of_a_fits_image_is_the_bottom_of_the_picture(folder):
    snippets = [block.text for block in blocks(ROOT / "docs/galaxies.md") if "fits" in block.text]
    exec(compile(snippets[0], "snippet", "exec"), {})
    data = Images("cutouts.npy", normalize="none").everything()
    images = data[torch.arange(3)]["image"]
    for i, image in enumerate(images):
        # What it does to the values keeps their order.
        fits = np.load(folder / f"cutouts/{i}.fits")
        assert image[0].flatten().argsort().tolist() == fits[::-1].ravel().argsort().tolist()


def test_whatever_is_not_run_is_on_a_page():
    known = [line for page in PAGES for block in blocks(page) for line in lines(block)]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in known), start


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_hides_in_another_kind_of_block(page):
    found = blocks(page)
    assert page.read_text().count("```") == 2 * len(found)
    for block in found:
        assert block.language in ("", "python", "text", "yaml"), block.language
        assert block.language != "yaml" or file_of(block), block.text
        assert block.language == "" or "python -m" not in block.text, block.text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_figures_are_small_and_used():
    text = "".join(page.read_text() for page in (*PAGES, *ROOT.glob("RESULTS*.md")))
    folder = ROOT / "docs/figures"
    for figure in (path for path in folder.rglob("*") if path.is_file()):
        assert figure.stat().st_size < 200_000, figure
        assert f"figures/{figure.relative_to(folder).as_posix()}" in text, figure


def test_the_readme_is_short_and_shows_something():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200
    assert "![" in text


@pytest.mark.parametrize("command", [*COMMANDS, "results"])
def test_every_option_of_a_command_is_on_its_page(command):
    config = yaml.safe_load((ROOT / f"conf/{command}.yaml").read_text())
    groups = [name for item in config.pop("defaults") if isinstance(item, dict) for name in item]
    names = {name for name in (*config, *groups) if not name.startswith(("hydra", "override "))}
    text = (ROOT / f"docs/{command}.md").read_text()
    for name in names:
        nested = config.get(name)
        options = [f"{name}.{key}" for key in nested] if isinstance(nested, dict) else [name]
        for option in options:
            assert f"`{option}`" in text, option


@pytest.mark.parametrize("group", ["dataset/images", "logger/wandb", "logger/tensorboard"])
def test_every_option_of_own_images_and_dashboards_is_documented(group):
    section, choice = group.split("/")
    config = yaml.safe_load((ROOT / f"conf/{group}.yaml").read_text())
    prefix = section if section == "dataset" else f"{section}.{choice}"
    text = (ROOT / "docs" / ("train.md" if section == "dataset" else "dashboards.md")).read_text()
    for key in config if section == "dataset" else config[choice]:
        if key not in ("_target_", "seed"):
            assert f"`{prefix}.{key}`" in text, key
