"""`report.html`: what a person and a browser find in it, from any run directory."""

import base64
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

import svae.report
from svae.curves import robust_range
from svae.report import write_report
from svae.report.charts import charts, nice_ticks

CONFIG = {
    "seed": 1,
    "dataset": {"_target_": "svae.datasets.RotDigits", "theta_distribution": "normal"},
    "model": {"_target_": "svae.model.SpatialVAE", "z_dim": 2, "image_shape": [1, 28, 28]},
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "precision": "bf16-mixed"},
}
METRICS = {
    "test/elbo": -216.14,
    "test/iwae_bound": -213.8,
    "test/theta_circular_correlation": 0.64,
    "test/theta_circular_correlation_plain": 0.87,
    "test/theta_error_deg": 5.72,
    "test/shift_rmse_px": 0.57,
    "test/clustering_accuracy": 0.781,
    "train/total_seconds": 120.0,
    "val/elbo": -212.3,
}
ROWS = [
    {"epoch": 0, "step": 9, "train/elbo": -300.0, "train/kl_z": 1.0, "train/learning_rate": 4e-3},
    {"epoch": 1, "step": 18, "train/elbo": -250.5, "val/elbo": -251.5, "train/kl_z": 2.0},
    {"epoch": 2, "step": 27, "train/elbo": -240.0, "val/elbo": -243.0, "train/kl_z": 2.5},
]
HYDRA = {
    "job": {"name": "train"},
    "runtime": {
        "version": "1.3.8",
        "cwd": "/home/somebody",
        "choices": {"dataset": "rot_digits", "model": "spatial_vae", "prior": "uniform"},
    },
}
OVERRIDES = ["experiment=demo", "dataset.path=my cells/plate 1"]
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """The elements of a page, its texts, and a check that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)
        self.close()
        assert not self.inside, f"never closed: {self.inside}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside and self.inside[-1] not in ("script", "style"):
            self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def write_csv(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_figure(run, name, size=(40, 20)):
    path = run / "figures" / name
    path.parent.mkdir(exist_ok=True)
    Image.new("L", size).save(path, format=path.suffix[1:])


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    directory = tmp_path / "train" / "2025-03-04_05-06-07-891011"
    (directory / ".hydra").mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(OVERRIDES))
    (directory / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": HYDRA}))
    (directory / "metrics.json").write_text(json.dumps(METRICS))
    (directory / "train.log").write_text("first line\nthe last line\n")
    write_csv(directory / "metrics.csv", ROWS)
    write_figure(directory, "reconstructions.png")
    write_figure(directory, "manifold.gif", (30, 31))
    return directory


def read(run) -> tuple[str, Page]:
    path = write_report(run)
    assert path == Path(run) / "report.html"
    html = path.read_text()
    return html, Page(html)


def cards(html):
    """What the cards say, by metric."""
    found = re.findall(r'<p class="value" title="([^"]+)">(.*?)</p>', html)
    return {metric: re.sub("<[^>]+>", "", value) for metric, value in found}


def test_a_finished_run_is_told_whole(run):
    html, page = read(run)
    assert "<title>rot_digits · spatial_vae · 2025-03-04 05:06</title>" in html
    assert cards(html) == {
        "test/elbo": "−216.1 nats/image",
        "test/iwae_bound": "−213.8 nats/image",
        "val/elbo": "−212.3 nats/image",
        "test/theta_circular_correlation_plain": "0.87",
        "test/theta_error_deg": "5.7°",
        "test/shift_rmse_px": "0.57 px",
        "test/clustering_accuracy": "0.78",
        "train/total_seconds": "2.0 min",
    }
    for text in ("z_dim: 2", "the last line", "3 of 4", "bf16-mixed", "/home/somebody", "-216.14"):
        assert text in page.text
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings[:4] == ["Key numbers", "Training curves", "Figures", "All metrics"]
    assert headings[4:] == ["Config", "Where it ran", "Log"]
    assert {f"#{a['id']}" for a in page.of("section")} == {a["href"] for a in page.of("a")}
    assert "There is no" not in page.text


def test_the_command_can_be_pasted(run):
    hydra = HYDRA | {"runtime": {"config_sources": [
        {"path": "/etc/my configs", "provider": "command-line"},
        {"path": "/elsewhere", "provider": "main"},
    ]}}  # fmt: skip
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    overrides = [*OVERRIDES, "+callbacks.x={_target_: a.B,\n  name: 'c d'}", "dataset=images"]
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    _, page = read(run)
    shown = page.text[page.text.index("python -m") : page.text.index("Key numbers")].strip()
    # What a shell makes of it.
    told = subprocess.check_output(["sh", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}\n{shown}"])
    assert told.decode().split("\0")[:-1] == [
        *("-m", "svae.train", "--config-dir=/etc/my configs"),
        *overrides,
    ]


def test_the_command_names_packages_of_ones_own(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["callbacks"] = {"a": {"_target_": "my lab.x.A", "inner": [{"_target_": "lab.B"}]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, page = read(run)
    assert "SVAE_TRUSTED_TARGETS='lab,my lab' python -m svae.train" in page.text


def test_figures_are_inside_as_they_are(run):
    write_figure(run, "curves.png")
    write_figure(run, "of my own.png")
    html, page = read(run)
    images = page.of("img")
    names = ["reconstructions.png", "manifold.gif", "of my own.png"]
    for image, name in zip(images, names, strict=True):
        kind, data = image["src"].split(",")
        assert kind == f"data:image/{name[-3:]};base64"
        assert base64.b64decode(data) == (run / "figures" / name).read_bytes()
        assert image["alt"]
    assert [(i["width"], i["height"]) for i in images[:2]] == [("40", "20"), ("30", "31")]
    assert "that the model never saw in training" in page.text
    assert images[2]["alt"] == "of my own.png"

    (run / "metrics.csv").unlink()  # then the figure of the curves is all there is of them
    html, page = read(run)
    assert len(page.of("img")) == 4
    assert "Training curves." in page.text
    assert 'class="chart"' not in html


def test_nothing_comes_from_a_network(run):
    html, page = read(run)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert not page.of("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    assert "default-src 'none'" in page.of("meta")[1]["content"]


EVIL = '"><script>alert(1)<!--</script><img src=x onerror=alert(1)>'


def test_what_comes_from_files_is_escaped(run):
    _, clean = read(run)
    evil_file = EVIL.replace("/", "")
    config = CONFIG | {EVIL: {EVIL: EVIL}, "seed": EVIL}
    config["model"] = CONFIG["model"] | {"image_shape": [EVIL], "z_dim": EVIL}
    runtime = HYDRA["runtime"] | {"choices": {"dataset": EVIL, "prior": EVIL}, "cwd": EVIL}
    hydra = {"hydra": {"job": {"name": EVIL}, "runtime": runtime}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([EVIL]))
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    metrics = {EVIL: 1.0, f"{EVIL}/{EVIL}": EVIL}
    (run / "metrics.json").write_text(json.dumps(METRICS | metrics))
    (run / "train.log").write_text(f"{EVIL}\n\x1b[31m\x00")
    (run / f"{evil_file}.log").write_text(EVIL)
    write_csv(run / "metrics.csv", [row | {f"train/kl_{EVIL}": 1.0} for row in ROWS])
    shutil.copy(run / "figures" / "manifold.gif", run / "figures" / f"{evil_file}.gif")
    (run / "figures" / f"{evil_file}.png").write_text("no picture")
    html, page = read(run)
    assert len(page.of("script")) == len(clean.of("script"))
    assert len(page.of("img")) == 1 + len(clean.of("img"))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count(EVIL) > 10
    assert not re.search("[\x00\x1b]", html)


def test_a_name_that_is_no_text_does_no_harm(run):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    shutil.copy(run / "figures" / "reconstructions.png", run / "figures" / name)
    _, page = read(run)
    assert "figures/caf\N{REPLACEMENT CHARACTER}.png" in page.text


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("config.yaml", "There is no config.yaml"),
        ("metrics.json", "There is no metrics.json"),
        ("metrics.csv", "There is no metrics.csv"),
        ("figures", "There is no figures"),
        (".hydra", "The command is not known"),
        ("train.log", None),
    ],
)
def test_each_part_may_be_missing(run, part, told):
    whole = write_report(run).read_text()
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, page = read(run)
    assert (told or "Key numbers") in page.text
    assert told is None or told not in whole
    assert ("the last line" in page.text) == (part != "train.log")


@pytest.mark.parametrize(
    "part", ["config.yaml", "metrics.json", "metrics.csv", "figures/manifold.gif", "train.log"]
)
def test_one_part_alone_is_enough(run, tmp_path, part):
    alone = tmp_path / "alone"
    (alone / part).parent.mkdir(parents=True)
    shutil.copy(run / part, alone / part)
    _, page = read(alone)
    assert "There is no" in page.text


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x89{[", b"[1, 2", b"- a\n- b", b"'", b"3"])
@pytest.mark.parametrize(
    "part",
    [
        *("config.yaml", "metrics.json", "metrics.csv", "train.log", "figures/manifold.gif"),
        *(".hydra/overrides.yaml", ".hydra/hydra.yaml"),
    ],
)
def test_no_broken_part_stops_the_report(run, part, content):
    (run / part).write_bytes(content)
    _, page = read(run)
    assert "images that the model never saw in training" in page.text


@pytest.mark.parametrize(
    ("part", "content", "told"),
    [
        ("config.yaml", "a: [", "config.yaml is not YAML"),
        ("metrics.json", '{"test/elbo": -2', "metrics.json is not JSON"),
        ("metrics.json", "[]", "metrics.json holds no pairs"),
        ("figures/manifold.gif", "GIF", "figures/manifold.gif is neither a PNG nor a GIF"),
        (".hydra/overrides.yaml", "a: [", "The command is not known"),
    ],
)
def test_a_broken_part_is_named(run, part, content, told):
    (run / part).write_text(content)
    _, page = read(run)
    assert told in page.text
    assert part != "config.yaml" or "a: [" in page.text[page.text.rindex("Config") :]


def test_an_unfinished_run_shows_what_its_epochs_tell(run):
    (run / "metrics.json").unlink()
    html, _ = read(run)
    assert cards(html) == {"val/elbo": "−243.0 nats/image"}


def test_an_evaluation_misses_no_training(run):
    for part in ("config.yaml", "metrics.csv"):
        (run / part).unlink()
    (run / ".hydra" / "config.yaml").write_text("run: outputs/train/before\n")
    hydra = {"hydra": {"job": {"name": "evaluate"}}}
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    html, page = read(run)
    assert "<h1>evaluate of outputs/train/before · 2025-03-04 05:06</h1>" in html
    assert "python -m svae.evaluate experiment=demo" in page.text
    assert "There is no" not in page.text


@pytest.mark.parametrize(
    ("distribution", "shown"),
    [("normal", ["_plain"]), ("uniform", [""]), (None, ["", "_plain"])],
)
def test_the_correlation_that_fits_the_angles_is_shown(run, distribution, shown):
    config = CONFIG | {"dataset": {"theta_distribution": distribution}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    html, _ = read(run)
    found = [name for name in cards(html) if "correlation" in name]
    assert found == [f"test/theta_circular_correlation{suffix}" for suffix in shown]


def test_numbers_that_are_none_are_told(run):
    metrics = METRICS | {"test/elbo": math.nan, "test/kl_z": math.inf, "test/nmi": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    html, page = read(run)
    assert cards(html)["test/elbo"] == "NaN nats/image"
    assert '<td><span class="bad">inf</span></td>' in html
    assert "None" in page.text


@pytest.mark.parametrize("nothing", ["empty", "other", "absent"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, nothing):
    folder = tmp_path / "folder"
    if nothing != "absent":
        folder.mkdir()
    if nothing == "other":
        (folder / "figures").mkdir()
        (folder / "notes.txt").write_text("other")
    with pytest.raises(FileNotFoundError, match=r"folder is not a run directory .* expected one"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_date_of_a_folder_without_one_is_that_of_its_files(run, tmp_path):
    moved = run.rename(tmp_path / "2025-99-99_99-99-99")
    html, _ = read(moved)
    assert re.search(r"<h1>rot_digits · spatial_vae · 20\d\d-\d\d-\d\d \d\d:\d\d</h1>", html)
    assert "· 2025-03-04" not in html


def test_writing_again_replaces_the_report_alone(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = write_report(run).read_text()
    (run / "report.html").write_text("an old one")
    assert write_report(str(run)).read_text() == first
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {run / "report.html"}
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-325.1, -237.9, [-320, -300, -280, -260, -240]),
        (0, 0.004, [0, 0.001, 0.002, 0.003, 0.004]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (1e15, 1e15 + 4, [1e15, 1e15 + 1, 1e15 + 2, 1e15 + 3, 1e15 + 4]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert nice_ticks(low, high, 5) == pytest.approx(expected, rel=1e-12)


def test_epochs_are_whole():
    assert nice_ticks(0, 2, 6, whole=True) == [0, 1, 2]


def test_first_epochs_do_not_own_the_axis():
    curve = [-200 - 50 * math.exp(-i / 5) for i in range(50)]
    low, high = robust_range([-1e5, -4e3, *curve])
    assert -251 < low < -200
    assert high == max(curve)
    assert robust_range([1.0, 2.0, 3.0, 4.0]) == (1.0, 4.0)
    assert robust_range([5.0]) == (5.0, 5.0)


def drawn(rows, title="ELBO"):
    """The points of each line of a chart, in pieces, and the data for the script."""
    chart = next(c for c in charts(rows) if f"<h3>{title}" in c)
    plot = chart[chart.index('class="plot"') :]
    paths = re.findall(r'<path class="line [^"]*" d="([^"]*)"/>', plot)
    lines = [
        [[tuple(map(float, p.split())) for p in piece.split("L")] for piece in path.split("M")[1:]]
        for path in paths
    ]
    return lines, json.loads(re.findall(r"json\">(.*?)</script>", chart)[0])


def test_curves_are_where_the_numbers_are():
    rows = [{"epoch": 0.0, "train/elbo": -300.0}, {"epoch": 2.0, "train/elbo": -200.0}]
    rows.insert(1, {"epoch": 1.0, "train/elbo": -225.0, "val/elbo": -250.0})
    (training, validation), data = drawn(rows)
    ((x0, y0), (x1, y1), (x2, y2)) = training[0]
    assert x1 - x0 == x2 - x1 > 100
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.75, abs=0.01)
    assert validation == [[(x1, pytest.approx((y0 + y2) / 2, abs=0.1))]]
    assert data["x"] == [x0, x1, x2]
    assert data["label"] == ["epoch 0", "epoch 1", "epoch 2"]
    assert [series["text"] for series in data["series"]] == [
        ["−300.00", "−225.00", "−200.00"],
        ["–", "−250.00", "–"],
    ]
    assert data["rest"] == 1  # the last at which both were measured


def test_a_gap_is_left_where_a_value_is_not_finite():
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 1e300, 4.0, 5.0]
    rows = [{"epoch": float(i), "train/elbo": value} for i, value in enumerate(values)]
    (line,), data = drawn(rows)
    assert [len(piece) for piece in line] == [2, 1, 2]
    assert data["series"][0]["text"][2] == "nan"
    assert data["series"][0]["y"][2] is None


@pytest.mark.parametrize(
    "rows",
    [
        [{"epoch": 0.0, "train/elbo": -5.0}],
        [{"epoch": float(i), "train/elbo": 0.0} for i in range(3)],
        [{"epoch": math.nan, "train/elbo": -5.0}, {"train/elbo": -6.0}],
        [{"epoch": float(i), "train/elbo": 1e29 * (-1) ** i} for i in range(3)],
        [{"epoch": float(i), "train/elbo": 1e-320 * i} for i in range(3)],
        [{"epoch": float(i), "train/elbo": 1e15 + i / 8} for i in range(3)],
    ],
)
def test_any_numbers_can_be_drawn(rows):
    (line,), _ = drawn(rows)
    assert len(line[0]) == len(rows)
    assert all(0 < x < 480 and 0 < y < 270 for x, y in line[0])


def test_nothing_is_drawn_of_nothing():
    assert charts([]) == []
    assert charts([{"epoch": 0.0, "train/elbo": math.nan}, {"epoch": 1.0}]) == []


def test_a_long_training_is_thinned_evenly():
    rows = [{"epoch": float(i), "train/elbo": -1.0 - i} for i in range(20000)]
    for row in rows[1::2]:
        row["val/elbo"] = row["train/elbo"] - 3
    (training, validation), data = drawn(rows)
    assert 400 < len(validation[0]) < 1200
    assert 400 < len(training[0]) < 1200
    assert data["label"][0] == "epoch 0"
    assert data["label"][-1] == "epoch 19999"


def test_every_divergence_has_a_line(run):
    write_csv(run / "metrics.csv", [row | {"train/kl_lattice": 3.0} for row in ROWS])
    _, page = read(run)
    assert re.search(r"content z, training\s+2\.5000", page.text)
    assert re.search(r"kl_lattice, training\s+3\.0000", page.text)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run the command in an empty folder; returns what that folder holds then."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*overrides: str) -> list[Path]:
        monkeypatch.setattr(sys, "argv", ["svae", *overrides])
        svae.report.main()
        return list(folder.iterdir())

    return call


def test_the_command_writes_the_report_and_nothing_else(command, run, capfd):
    before = set(run.rglob("*"))
    assert command(f"run={run}") == []
    assert set(run.rglob("*")) - before == {run / "report.html"}
    assert capfd.readouterr().out.splitlines() == [f"report: {run / 'report.html'}"]


@pytest.mark.parametrize(
    ("overrides", "message"), [(["run=nowhere"], "nowhere is not a run directory"), ([], "run")]
)
def test_mistakes_are_told_in_one_line(command, capfd, overrides, message):
    with pytest.raises(SystemExit) as stopped:
        command(*overrides)
    assert stopped.value.code == 2
    captured = capfd.readouterr()
    (line,) = (captured.out + captured.err).splitlines()
    assert message in line


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_runs_it_without_an_error(run, tmp_path):
    """Also where names and values try to run something; and the read-out follows a pointer."""
    write_figure(run, EVIL.replace("/", "") + ".png")
    (run / "train.log").write_text(f"{EVIL}</pre>{EVIL}")
    html, _ = read(run)
    # A second script that acts as a person, which the page's own policy would refuse.
    acting = """<script>
        const plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
        const at = { clientX: box.left + 1, clientY: box.top + 1 };
        plot.dispatchEvent(new PointerEvent("pointermove", at));
        const search = document.querySelector("input");
        search.value = "test/shift"; search.dispatchEvent(new Event("input"));
        const rows = [...document.querySelectorAll(".metrics tbody tr:not(.split)")];
        document.body.dataset.found = rows.filter((row) => row.checkVisibility()).length;
        const images = [...document.images];
        document.body.dataset.seen = images.filter((image) => image.naturalWidth > 1).length;
    </script>"""
    acted = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    (run / "acted.html").write_text(acted.replace("</body>", f"{acting}</body>"))
    for name in ("report.html", "acted.html"):
        done = subprocess.run(
            [
                *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"),
                *("--dump-dom", (run / name).as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "CONSOLE" not in done.stderr
        assert 'data-ready="yes"' in done.stdout
        assert "alert(1)" in Page(done.stdout).text
    assert '<span class="where">epoch 0, step 9</span>' in done.stdout
    assert "<b>−300.00</b>" in done.stdout
    assert 'data-found="1"' in done.stdout
    assert 'data-seen="3"' in done.stdout
