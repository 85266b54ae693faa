"""Mistakes of a user end at once, with one clear line and without a traceback."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tests.helpers import write_pictures

import svae
import svae.evaluate
import svae.train
from svae.train import tell_few_steps

QUICK = ["debug=quick", "dataset.train_copies=1"]

ATTENTION = ["model=target_vae"]
NO_POSITION = [f"model.encoder.{name}" for name in ("kernel_size=27", "padding=0", "stride=3")]
ODD = ["model.encoder.kernel_size=27", "model.encoder.stride=2"]
TOO_LARGE = ["model.group_order=512", "model.encoder.padding=40"]
SOFT = ["model/posterior/sampling=soft"]


def outcome(main, capfd, monkeypatch, tmp_path, *overrides):
    """What was printed by a command that failed."""
    monkeypatch.chdir(tmp_path)
    quick = QUICK if main is svae.train.main else []
    if "dataset=images" in overrides:
        quick = QUICK[:1]
    argv = ["svae", f"hydra.run.dir={tmp_path / 'run'}", *quick, *overrides]
    monkeypatch.setattr(sys, "argv", argv)
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
        (["model.zdim=3"], r"override 'model\.zdim'\. Did you mean model\.z_dim\?$"),
        (["modle.z_dim=3"], r"'modle\.z_dim'\. Did you mean model\.z_dim\?$"),
        (["model.hidden=3"], r"mean model\.encoder\.hidden or model\.generator\.hidden\?$"),
        (["dataset.foo=3"], r"'dataset\.foo'\. To append to your config use \+dataset\.foo=3$"),
        (["modle=spatial_vae"], "modle"),
        (["model=spatial_vea"], r"spatial_vea'; Available options in 'model': .*; vanilla_vae$"),
        (["model.z_dim"], "model.z_dim"),
        (["+model.encoder.widht=3"], "model.encoder.widht"),
        (["model.z_dim=two"], "z_dim: expected int, got 'two'"),
        (["model.z_dim=2.5"], "z_dim: expected int, got 2.5"),
        (["model.z_dim=-1"], "dims: expected .* at least 0, got -1 .in model.prior.z."),
        (["model.pixels_per_image=0"], "pixels_per_image: expected .* at least 1, got 0"),
        (["model.beta=-1"], "beta: expected a number above 0, got -1"),
        (["model.infer_theta=maybe"], "infer_theta: expected bool, got 'maybe'"),
        (["model.infer_scale=maybe"], "infer_scale: expected bool, got 'maybe'"),
        (["model=vanilla_vae", "model.infer_scale=true"], "infer_scale: expected false"),
        (["prior.scale.std=0"], "std: expected a number above 0, got 0"),
        (["dataset.scale_std=-0.1"], "scale_std: expected .* at least 0, got -0.1"),
        (["model.encoder.activation=tanhh"], "activation: expected one of tanh.*'tanhh'"),
        (["model/encoder=cnn", "model.encoder.kernel_size=99"], "kernel_size"),
        (["model=vanilla_vae", "model.infer_theta=true"], "infer_theta"),
        (["model/generator=pixel_mlp"], "infer_theta"),
        ([*ATTENTION, "model.group_order=0"], "group_order: expected .* at least 1, got 0"),
        ([*ATTENTION, "model.encoder.group_order=4"], "group_order: .* encoder, 4, got 8"),
        ([*ATTENTION, "model.encoder.kernel_size=99"], "kernel_size: expected at most the 28 pix"),
        ([*ATTENTION, *NO_POSITION], "kernel_size, padding, stride: .* leaves no position"),
        ([*ATTENTION, *ODD], "stride: .* centre"),
        ([*ATTENTION, *TOO_LARGE], "81x81 positions in 512 rotations .* GB .*encoder.stride"),
        ([*ATTENTION, "model.infer_theta=false"], "group_order: expected 1 where infer_th"),
        ([*ATTENTION, "model.infer_shift=false"], "infer_shift: expected true with the 289 latt"),
        ([*ATTENTION, "model.beta={place: 2}"], "beta: expected names among z, theta, shift"),
        ([*ATTENTION, "model.posterior.sampling.points=0"], "points: expected .* at least 1"),
        ([*ATTENTION, *SOFT, "model.second_look=true"], "second_look: expected false .*truncated"),
        ([*ATTENTION, "model.pixel_focus=1"], "pixel_focus: expected a fraction below 1, got 1"),
        (["model/posterior=attention"], "attention needs an encoder with a lattice"),
        (["model/encoder=group_conv"], "mean_field takes one vector of features"),
        (["prior.theta.std_deg=0"], "std_deg: expected a number above 0, got 0"),
        (["prior.shift.std_px=wide"], "std_px: expected float, got 'wide'"),
        (["dataset.image_size=10"], "image_size: expected at least the 24 pixels"),
        (["dataset.theta_distribution=flat"], "theta_distribution: expected one of normal"),
        (["dataset.batch_size=0"], "batch_size: expected .* at least 1, got 0"),
        (["optimizer.lr=fast"], "optimizer.lr: expected float, got 'fast'"),
        (["trainer.max_epochs=many"], "trainer.max_epochs: expected int or null, got 'many'"),
        (["trainer=gpu"], "finds no GPU here; use trainer=cpu"),
        (["evaluation.iwae_samples=-1"], "iwae_samples: expected .* at least 0, got -1"),
        (["evaluation.elbo_samples=0"], "elbo_samples: expected .* at least 1, got 0"),
        (["ckpt_path=nowhere/last.ckpt"], "nowhere/last.ckpt does not exist"),
        (["seed=null"], "seed: expected int, got None"),
        (["test='no'"], "test: expected bool, got 'no'"),
        (["+callbacks.mine.rate=1"], "callbacks.mine: expected an object with a _target_, got"),
        (
            ["+callbacks.mine._target_=torch.nn.Identity"],
            "callbacks.mine: expected a Callback of pytorch_lightning, got torch.nn.Identity",
        ),
        (
            ["+logger.mine._target_=torch.nn.Identity"],
            "logger.mine: expected a Logger of pytorch_lightning, got torch.nn.Identity",
        ),
        (["compile=fast"], "compile: expected bool, got 'fast'"),
        (["optimizer.lr=-1"], "lr: expected a number above 0, got -1"),
        (["scheduler.warmup=2"], "warmup: expected a fraction"),
        (["scheduler=plateau", "scheduler.factor=2"], "[Ff]actor"),
        (["trainer.max_epochs=-1"], "cosine needs trainer.max_epochs"),
        (["trainer.limit_val_batches=0"], "limit_val_batches: expected more than 0"),
        (["prior.z.dims=3"], "2 components of z, got 3"),
        (["callbacks.figures.examples=13"], "examples: expected at most 12"),
        (["hydra.run.dir=/proc/nowhere"], "the output folder /proc/nowhere cannot be made"),
        (["model._target_=os.system"], "os.system"),
        (["model.encoder._target_=svae.sweep.__main__.X"], "svae.sweep.__main__.X' is no class"),
        (["prior.z.std=/my (1)"], r"svae: prior.z.std=/my \(1\): mismatched input"),
        (
            ["trainer=ddp_cpu", "dataset.batch_size=1"],
            "dataset.batch_size: 1 makes batches of 1 of the .* images of train, .* 2 processes",
        ),
        (
            ["trainer=ddp_cpu", "dataset.eval_batch_size=1"],
            "dataset.eval_batch_size: 1 makes batches of 1 of the .* images of val",
        ),
    ],
)
def test_training(overrides, message, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("svae.run.accelerator_at_hand", lambda: "cpu")
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, *overrides)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, printed
    assert re.search(message, lines[0]), printed
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_schedule_that_looks_at_what_is_not_logged(capfd, monkeypatch, tmp_path):
    """A callback might log it: there is a warning, and an end after the first validation."""
    monkeypatch.setenv("SVAE_TRUSTED_TARGETS", "tests")
    own = ["scheduler=constant", "scheduler._target_=tests.helpers.on_plateau"]
    own += ["+scheduler.monitor=val/nonsense", "model.encoder.hidden=8", "~callbacks.figures"]
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, *own)
    lines = [line for line in printed.splitlines() if "scheduler.monitor" in line]
    assert len(lines) == 2
    assert re.search(
        "'val/nonsense' is not among what validation logs by itself .val/elb", lines[0]
    )
    assert re.search("expected a metric .*val/elbo.*, got 'val/nonsense'$", lines[1])


@pytest.mark.parametrize("memory", [1e6, 1e15])
def test_networks_that_no_memory_holds(memory, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("svae.train.memory_at_hand", lambda accelerator: memory)
    # At once, where the system refuses it; else by what the weights add up to.
    overrides = ["model.encoder.hidden=100_000_000_000"] if memory > 1e12 else []
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, *overrides)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, printed
    assert "dataset: networks for images of 28x28 pixels with 1 channels take more" in lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mistakes") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quiet = ["trainer.enable_progress_bar=false"]
        small = [*QUICK, "model.encoder.hidden=8", "model.generator.hidden=8"]
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


@pytest.mark.parametrize(
    "override",
    ["seed=2", "optimizer.lr=1e-3", "prior.theta.std_deg=90", "dataset.shift_std_px=3"],
)
def test_going_on_with_other_settings(trained, override, capfd, monkeypatch, tmp_path):
    path = trained / "checkpoints" / "last.ckpt"
    small = ["model.encoder.hidden=8", "model.generator.hidden=8"]
    printed = outcome(
        svae.train.main, capfd, monkeypatch, tmp_path, f"ckpt_path={path}", *small, override
    )
    name, value = override.split("=")
    assert f"{name}: expected the value of the run" in printed
    assert f"got {float(value) if '.' in name and 'e' in value else value}" in printed


def test_one_job_of_a_sweep_fails_and_the_others_go_on(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quiet = ["trainer.enable_progress_bar=false", "dataset.eval_copies=1"]
    sweep = ["-m", "model.z_dim=-1,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    monkeypatch.setattr(sys, "argv", ["svae", *sweep, *QUICK, *quiet])
    with pytest.raises(SystemExit) as stopped:
        svae.train.main()
    assert stopped.value.code == 1
    printed = capfd.readouterr().out
    assert "2 jobs (1 failed, 1 finished)" in printed
    assert re.search("failed: .*/sweep/z_dim--1: dims: .* at least 0, got -1", printed)
    assert "Traceback" not in printed
    assert (tmp_path / "sweep" / "z_dim-1" / "metrics.json").is_file()


def test_mnist_that_cannot_be_had(capfd, monkeypatch, tmp_path):
    from urllib.error import URLError

    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading\n" + "tried a mirror\n" * 40) from URLError("x")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    monkeypatch.setenv("SVAE_DATA_DIR", str(tmp_path))
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, "dataset=rot_mnist")
    assert len(printed.splitlines()) == 1
    assert "train-images-idx3-ubyte.gz" in printed
    assert str(tmp_path / "MNIST" / "raw") in printed
    assert "python -m svae.train dataset=rot_digits" in printed


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
    # By its bare name, from the folder it lies in.
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, f"ckpt_path={path.name}")
    assert f"{path.name}: not a whole checkpoint" in printed
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


def picture(folder, name, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def bar(size=16):
    pixels = np.zeros((size, size), np.uint8)
    pixels[4:-4, 7:9] = 200
    return pixels


def missing(folder):
    return [f"dataset.path={folder / 'nowhere'}"]


def nothing_given(folder):
    return []


def empty(folder):
    folder.mkdir()
    return [f"dataset.path={folder}"]


def no_readable_image(folder):
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"no picture")
    return [f"dataset.path={folder}"]


def a_corrupt_one(folder):
    write_pictures(folder)
    whole = (folder / "img7.png").read_bytes()
    (folder / "img7.png").write_bytes(whole[: len(whole) // 2])
    return [f"dataset.path={folder}"]


def mixed_sizes(folder):
    write_pictures(folder)
    picture(folder, "z.png", bar(20))
    return [f"dataset.path={folder}"]


def grey_and_rgb(folder):
    write_pictures(folder)
    picture(folder, "z.png", np.stack([bar(), bar().T, bar()], -1))
    return [f"dataset.path={folder}"]


def of_array(folder, images, **more):
    folder.mkdir()
    np.savez(folder / "stack.npz", images=images, **more)
    return [f"dataset.path={folder / 'stack.npz'}"]


def random(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def with_nan(folder):
    images = random(12, 16, 16)
    images[5, 3, 3] = np.nan
    return of_array(folder, images)


def with_infinity(folder):
    images = random(12, 16, 16)
    images[5, 3, 3] = np.inf
    return of_array(folder, images)


def a_constant_one(folder):
    images = random(12, 16, 16)
    images[5] = 0.5
    return of_array(folder, images)


def beyond_bernoulli(folder):
    bernoulli = ["model/likelihood=bernoulli", "dataset.normalize=standard"]
    return of_array(folder, random(12, 16, 16) * 9) + bernoulli


def of_wrong_rank(folder):
    return of_array(folder, random(16, 16))


def too_few(folder):
    write_pictures(folder, count=2)
    return [f"dataset.path={folder}"]


def labels_of_another_length(folder):
    write_pictures(folder)
    np.save(folder.parent / "labels.npy", np.arange(5))
    return [f"dataset.path={folder}", f"dataset.labels={folder.parent / 'labels.npy'}"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing_given, "write dataset.path=FOLDER"),
        (missing, "pictures/nowhere"),
        (empty, r"pictures.*\.png"),
        (no_readable_image, "pictures.*no"),
        (a_corrupt_one, "img7.png.*dataset.skip_unusable=true"),
        (mixed_sizes, r"z.png.*20.*dataset.resize="),
        (grey_and_rgb, "z.png.*dataset.color=grey"),
        (with_nan, r"stack.npz.*5.*(NaN|finite)"),
        (with_infinity, r"stack.npz.*5.*(inf|finite)"),
        (a_constant_one, r"stack.npz.*5.*constant"),
        (beyond_bernoulli, "Bernoulli likelihood expects pixel values from 0 to 1"),
        (of_wrong_rank, r"stack.npz.*\(16, 16\)"),
        (too_few, "at least 3 images"),
        (labels_of_another_length, "labels.npy.*5.*12|labels.npy.*12.*5"),
    ],
)
def test_own_images(make, message, capfd, monkeypatch, tmp_path):
    options = make(tmp_path / "pictures")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    printed = outcome(svae.train.main, capfd, monkeypatch, tmp_path, "dataset=images", *options)
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, printed
    assert re.search(message, lines[0]), printed
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("images", "changed", "told"),
    [
        (120, {}, "only 40 training steps in 20 epochs: of 120 images in batches of 100 .*=500 "),
        (120, {"accumulate_grad_batches": 2}, "only 20 training steps .*max_epochs=1000 makes"),
        (30, {"max_epochs": 199}, "only 199 training steps in 199 epochs"),
        (30, {"max_epochs": 200}, None),
        (120, {"limit_train_batches": 2}, None),
        (120, {"max_steps": 3}, None),
        (120, {"max_epochs": -1}, None),
    ],
)
def test_a_training_of_few_steps_is_warned_of(images, changed, told, caplog):
    trainer = OmegaConf.create(
        {"max_epochs": 20, "max_steps": -1, "max_time": None, "limit_train_batches": None}
        | {"accumulate_grad_batches": 1}
        | changed
    )
    tell_few_steps(trainer, images, 100)
    assert bool(caplog.messages) == (told is not None)
    assert told is None or re.search(told, caplog.text)
