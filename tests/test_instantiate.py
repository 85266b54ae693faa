import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from svae.encoders import MLP
from svae.instantiate import instantiate


def node(**values):
    return OmegaConf.create({"_target_": "svae.encoders.MLP", "image_shape": [1, 4, 4], **values})


def test_objects_are_made_with_plain_containers():
    made = instantiate(node(hidden=3), "encoder")
    assert isinstance(made, MLP)
    assert made.out_features == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden": 3}, r"encoder\.hiden: .*takes no such argument.*hidden"),
        ({"hidden": "three"}, r"encoder\.hidden: expected int, got 'three'"),
        ({"hidden": 3.5}, r"encoder\.hidden: expected int, got 3.5"),
        ({"hidden": True}, r"encoder\.hidden: expected int, got True"),
        ({"residual": "no"}, r"encoder\.residual: expected bool, got 'no'"),
        ({"activation": None}, r"encoder\.activation: expected str, got None"),
        ({"hidden": "???"}, r"encoder\.hidden: a value is missing"),
    ],
)
def test_wrong_keys_and_types_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        instantiate(node(**values), "encoder")


def test_whole_numbers_are_fine_where_any_number_is():
    config = {"_target_": "svae.priors.GaussianAngle", "std_deg": 45}
    assert instantiate(OmegaConf.create(config), "prior").std > 0
    with pytest.raises(ValueError, match="std_deg: expected float"):
        instantiate(OmegaConf.create(config | {"std_deg": "wide"}), "prior")


def test_mistakes_deep_inside_are_named_by_their_path():
    config = OmegaConf.create({"parts": [{"encoder": node(layers="2")}]})
    with pytest.raises(ValueError, match=r"model\.parts\[0\]\.encoder\.layers"):
        instantiate(config, "model")


def test_what_is_not_annotated_takes_anything(monkeypatch):
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    config = OmegaConf.create({"_target_": "tests.helpers.Anything", "folder": "x", "more": "y"})
    made = instantiate(config, "mine")
    assert (made.folder, made.more) == ("x", {"more": "y"})


def test_positional_arguments_are_refused():
    with pytest.raises(ValueError, match=r"encoder\._args_"):
        instantiate(node(_args_=["x.pkl"]), "encoder")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "svaeevil.x",
        "svae.run.torch.load",
        "svae.files.write_atomic",
        "svae.hardware.os.system",
        "pytorch_lightning.core.saving._load_from_checkpoint",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "pytorch_lightning.plugins.io.TorchCheckpointIO.load_checkpoint",
        "torch.nn.modules.module.torch.hub.load",
        3,
    ],
)
def test_a_config_cannot_run_any_code_it_likes(target):
    with pytest.raises(ValueError, match="SVAE_TRUSTED_TARGETS"):
        instantiate(OmegaConf.create({"_target_": target}), "model")


def test_a_package_of_ones_own_can_be_trusted(monkeypatch):
    config = OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 3})
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "decimal,fractions")
    assert instantiate(config, "mine") == 3


@pytest.fixture
def own_code(monkeypatch, tmp_path):
    """A package of one's own, some of whose modules are broken."""
    package = tmp_path / "laboratory"
    package.mkdir()
    (package / "whole.py").write_text("class Part:\n    def __init__(self, size: int): ...\n")
    (package / "lacking.py").write_text("import not_installed\n")
    (package / "wrong.py").write_text("class Part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "decimal, laboratory, nowhere")
    yield
    for name in [name for name in sys.modules if name.startswith("laboratory")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("laboratory.whole.Other", r"does not exist \(No module named 'laboratory.whole.Other'"),
        ("laboratory.whole.Part.more", r"does not exist \(type object 'Part' has no attribute"),
        ("laboratory.lacking.Part", r"cannot be imported \(Module.*: No module named 'not_ins"),
        ("laboratory.wrong.Part", r"cannot be imported \(SyntaxError: .*wrong\.py, line 1\)\)$"),
        ("nowhere.Part", r"does not exist \(No module named 'nowhere'\)$"),
    ],
)
def test_why_code_of_ones_own_is_not_found(target, message, own_code, caplog):
    with pytest.raises(ValueError, match=rf"^mine\._target_: '{target}' {message}"):
        instantiate(OmegaConf.create({"_target_": target}), "mine")
    assert not caplog.records  # the message is all that is told


def test_a_single_class_can_be_trusted(own_code, monkeypatch):
    config = OmegaConf.create({"_target_": "laboratory.whole.Part", "size": 3})
    assert type(instantiate(config, "mine")).__name__ == "Part"
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "decimal,laboratory.whole.Part")
    assert type(instantiate(config, "mine")).__name__ == "Part"
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "laboratory.whole.Par")
    with pytest.raises(ValueError, match="SVAE_TRUSTED_TARGETS"):
        instantiate(config, "mine")


def test_an_argument_that_is_not_given_is_named():
    config = OmegaConf.create({"_target_": "svae.encoders.MLP", "hidden": 3})
    with pytest.raises(ValueError, match=r"^encoder: svae.*MLP is not given image_shape; .*_part"):
        instantiate(config, "encoder")
    config._partial_ = True
    assert instantiate(config, "encoder")(image_shape=(1, 4, 4)).out_features == 3


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"svae\.encoders\.Transformer.*does not exist"):
        instantiate(OmegaConf.create({"_target_": "svae.encoders.Transformer"}), "encoder")
