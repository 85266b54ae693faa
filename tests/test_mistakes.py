"""Mistakes of a user end at once, with one clear line and without a traceback."""

import shutil
import subprocess
import sys

import pytest
import torch

import svae
import svae.evaluate
import svae.train

QUICK = ["debug=quick", "dataset.train_copies=1"]


def outcome(main, capfd, monkeypatch, tmp_path, *overrides):
    """The exit status and what was printed."""
    monkeypatch.chdir(tmp_path)
    argv = ["svae", f"hydra.run.dir={tmp_path / 'run'}", *QUICK, *overrides]
    monkeypatch.setattr(
        sys, "argv", [a for a in argv if main is svae.train.main or a not in QUICK]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capfd.readouterr()
    printed = captured.out + captured.err
    if isinstance(stopped.value.code, str):
        printed += stopped.value.code
    assert stopped.value.code not in (None, 0)
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.zdim=3"], "zdim"),
        (["modle=spatial_vae"], "modle"),
        (["model=spatial_vea"], "spatial_vea"),
        (["model.z_dim"], "model.z_dim"),
        (["+model.encoder.widht=3"], "model.encoder.widht"),
        (["model.z_dim=two"], "z_dim: expected int, got 'two'"),
        (["model.z_dim=2.5"], "z_dim: expected int, got 2.5"),
        (["model.z_dim=-1"], "at least 0, got -1"),
        (["model.pixels_per_image=0"], "pixels_per_image: expected .* at least 1, got 0"),
        (["model.beta=-1"], "beta: expected a number above 0, got -1"),
        (["model.infer_theta=maybe"], "infer_theta: expected bool, got 'maybe'"),
        (["model.encoder.activation=tanhh"], "activation: expected one of tanh.*'tanhh'"),
        (["model/encoder=cnn", "model.encoder.kernel_size=99"], "kernel_size"),
        (["model=vanilla_vae", "model.infer_theta=true"], "infer_theta"),
        (["model/generator=pixel_mlp"], "infer_theta"),
        (["prior.theta.std_deg=0"], "std_deg: expected a number above 0, got 0"),
        (["prior.shift.std_px=wide"], "std_px: expected float, got 'wide'"),
        (["dataset.image_size=20"], "image_size: expected at least the 28 pixels"),
        (["dataset.theta_distribution=flat"], "theta_distribution: expected one of normal"),
        (["dataset.batch_size=0"], "batch_size: expected .* at least 1, got 0"),
        (["optimizer.lr=fast"], "optimizer.lr: expected float or Tensor, got 'fast'"),
        (["trainer.max_epochs=many"], "trainer.max_epochs: expected int or null, got 'many'"),
        (["trainer=gpu"], "finds no GPU here; use trainer=cpu"),
        (["evaluation.iwae_samples=-1"], "iwae_samples: expected .* at least 0, got -1"),
        (["evaluation.elbo_samples=0"], "elbo_samples: expected .* at least 1, got 0"),
        (["ckpt_path=nowhere/last.ckpt"], "nowhere/last.ckpt does not exist"),
        (["seed=null"], "seed"),
        (["model._target_=os.system"], "os.system"),
    ],
)
def test_training(overrides, message, capfd, monkeypatch, tmp_path):
    import re

    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, *overrides)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, printed
    assert re.search(message, lines[0]), printed
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mistakes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quiet = ["trainer.enable_progress_bar=false", "~callbacks.progress_bar"]
        small = ["debug=quick", "model.encoder.hidden=8", "model.generator.hidden=8"]
        patch.setattr(sys, "argv", ["svae", f"hydra.run.dir={directory}", *small, *quiet])
        svae.train.main()
    return directory


def test_a_checkpoint_of_another_model(trained, capfd, monkeypatch, tmp_path):
    path = trained / "checkpoints" / "last.ckpt"
    printed = outcome(
        svae.train.main, capfd, monkeypatch, tmp_path, f"ckpt_path={path}", "model.z_dim=3"
    )
    assert "checkpoint of another model" in printed
    assert str(path) in printed


@pytest.mark.parametrize("damage", ["truncated", "empty", "not a checkpoint", "code"])
def test_a_damaged_checkpoint(trained, damage, capfd, monkeypatch, tmp_path):
    path = tmp_path / "damaged.ckpt"
    content = (trained / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "code":
        torch.save({"state_dict": {}, "evil": Evil()}, path)
    elif damage == "not a checkpoint":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, f"ckpt_path={path}")
    assert f"{path}: not a whole checkpoint" in printed
    assert not (tmp_path / "pwned").exists()


class Evil:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_a_run_that_is_none(trained, capfd, monkeypatch, tmp_path):
    printed = outcome(svae.evaluate.main, capfd, monkeypatch, tmp_path, f"run={tmp_path}")
    assert "is not a run directory" in printed
    printed = outcome(svae.evaluate.main, capfd, monkeypatch, tmp_path)
    assert "run" in printed
    printed = outcome(
        svae.evaluate.main, capfd, monkeypatch, tmp_path, f"run={trained}", "checkpoint=worst"
    )
    assert "worst.ckpt does not exist; there is best, last" in printed
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        svae.load(tmp_path)


def test_a_config_from_elsewhere_cannot_run_code(trained, capfd, monkeypatch, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = copy / "config.yaml"
    text = config.read_text().replace("svae.datasets.RotDigits", "os.system")
    config.write_text(text)
    printed = outcome(svae.evaluate.main, capfd, monkeypatch, tmp_path, f"run={copy}")
    assert "os.system" in printed


def test_the_traceback_is_there_for_who_wants_it(monkeypatch, tmp_path):
    command = [sys.executable, "-m", "svae.train", "model.z_dim=-1", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "HYDRA_FULL_ERROR": "1"},
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
