"""The page: everything that is known of a run, in one file that needs nothing from outside."""

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from svae.instantiate import own_packages
from svae.report.charts import charts
from svae.report.contents import Contents, Picture

__all__ = ["page"]

HERE = Path(__file__).parent
#: Lines longer than this are broken between the overrides.
COMMAND_WIDTH = 88
#: Figures this many times wider than high have the whole width of the page.
WIDE = 1.6
# What no HTML may hold: a terminal's colours in a log, a file name in an unknown encoding.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Card:
    """A key number: what it is called, in which unit, and what it says."""

    metric: str
    title: str
    unit: str
    digits: int
    about: str


ANGLE = "Agreement of inferred and true angles over all images: 1 is perfect, 0 is chance"
CARDS = (
    Card(
        "test/elbo",
        "Test ELBO",
        "nats/image",
        1,
        "How well the model explains images it never saw, less the price of its latents. Higher "
        "is better; compare only on the same data.",
    ),
    Card(
        "test/iwae_bound",
        "Test IWAE bound",
        "nats/image",
        1,
        "The same, bounded more tightly with many samples per image (importance-weighted). Higher "
        "is better.",
    ),
    Card(
        "val/elbo",
        "Validation ELBO",
        "nats/image",
        1,
        "The best epoch's, on the images by which that epoch was chosen. Higher is better.",
    ),
    Card(
        "test/theta_circular_correlation",
        "Angle correlation",
        "",
        2,
        f"{ANGLE} (the form for uniform angles).",
    ),
    Card(
        "test/theta_circular_correlation_plain",
        "Angle correlation, plain",
        "",
        2,
        f"{ANGLE} (the form for angles that are not uniform).",
    ),
    Card(
        "test/theta_error_deg",
        "Angle error",
        "°",
        1,
        "Half of the images are inferred to within this angle, after removing one turn common to "
        "all, which no model can know.",
    ),
    Card(
        "test/shift_rmse_px",
        "Shift error",
        "px",
        2,
        "Typical distance of the inferred from the true position, after removing one offset "
        "common to all objects.",
    ),
    Card(
        "test/scale_correlation",
        "Size correlation",
        "",
        2,
        "Agreement of inferred and true sizes over all images, on a logarithmic scale: 1 is "
        "perfect, 0 is chance.",
    ),
    Card(
        "test/clustering_accuracy",
        "Clustering accuracy",
        "",
        2,
        "Part of the images that fall into the right group when the content z is grouped without "
        "labels (k-means). 1 is perfect.",
    ),
    Card(
        "test/clustering_accuracy_spectral",
        "Clustering of the images",
        "",
        2,
        "The same when the images themselves are grouped, with their pose removed (spectral "
        "clustering). 1 is perfect.",
    ),
    Card(
        "train/total_seconds",
        "Training time",
        "min",
        1,
        "Without validation and test.",
    ),
)

CAPTIONS = {
    "reconstructions": (
        "Reconstructions",
        "Top: images that the model never saw in training. Middle: what it makes of each from its "
        "content, angle and position (and size, where that is inferred). Bottom: the same content "
        "with these removed, so that like objects look alike.",
    ),
    "manifold": (
        "Manifold",
        "What the model generates as the content z changes in equally probable steps, angle and "
        "position removed. Neighbours should look alike.",
    ),
    "traversals": (
        "Traversals",
        "One component of the content z changes at a time while the others stay: what each "
        "component has learned.",
    ),
    "latents": (
        "Latent space",
        "Each point is a test image at its inferred content z, coloured by its label where there "
        "is one. Training saw no labels: groups of one colour are the model's own finding.",
    ),
    "pose": (
        "Inferred against true pose",
        "Each point is a test image. On the solid line, the inferred angle or position is the "
        "true one; on a dashed line, the angle is half a turn off. The relative angle is that "
        "between an image and the same object upright, where the data have both. Colours tell "
        "objects of different symmetry apart; their angles are compared modulo it.",
    ),
    "pose_histogram": (
        "Distribution of poses",
        "How often each angle and each position was inferred among the test images.",
    ),
    "found_pose": (
        "Found poses",
        "Images with the inferred centre and the object's own x axis drawn onto them, and where "
        "it is known the truth, its angle turned by the one that no model can know.",
    ),
    "attention": (
        "Attention",
        "How probable the model holds each position and each angle, beside the image. Two "
        "directions half a turn apart mean that it cannot tell which end is up.",
    ),
    "aligned": (
        "Aligned clusters",
        "A row for each group that k-means finds in the content: the mean of its images, each "
        "moved and turned back by what was inferred (and resized, where sizes are), and some of "
        "them. A sharp mean says that angles and positions agree.",
    ),
    "aligned_spectral": (
        "Aligned clusters of the images",
        "The same for groups of the images themselves, with their pose removed, by who is like "
        "whom (spectral clustering).",
    ),
    "particles": (
        "Particles with their pose removed",
        "Particles, the same moved and turned back by what was inferred, the average of the class "
        "that each belongs to, and what the model makes of its content.",
    ),
    "class_averages": (
        "Class averages",
        "Means of the aligned particles whose content is alike, above what the model generates "
        "from it. Averages as sharp as that say that angles, positions and content are right; "
        "they show what the model left out, too.",
    ),
    "slices": (
        "Averages along the axes of the content",
        "Particles in equal parts by one component of z, averaged, above what the model generates "
        "there. What changes in both is in the data.",
    ),
    "confusion": (
        "Labels against clusters",
        "Which groups the images of each label fall into, in per cent. Groups were found without "
        "labels; then each was matched with one label, framed here.",
    ),
    "confusion_spectral": (
        "Labels against clusters of the images",
        "The same for groups of the images themselves, with their pose removed.",
    ),
    "curves": ("Training curves", "How the bound and its parts changed from epoch to epoch."),
    "worst": (
        "Worst reconstructions",
        "The test images that the model explains worst: look here for artefacts, rare objects and "
        "mistakes in the data.",
    ),
    "samples": ("Samples", "New objects, drawn at random from the prior."),
    "interpolations": (
        "Interpolations",
        "From one image to another in equal steps of the latents. A good model passes through "
        "plausible objects.",
    ),
    "rotations": ("Rotations", "Objects, turned by the model through a full circle."),
}


def page(contents: Contents) -> str:
    """The report as HTML. All that comes from files is escaped.

    Arguments:
        contents: What was found in the run directory.
    """
    style, script = ((HERE / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    # The browser itself refuses other scripts and everything from a network.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    title = " · ".join(_title(contents))
    drawn = charts(contents.rows)
    sections = {
        "Key numbers": _cards(contents),
        "Training curves": f'<div class="charts">{"".join(drawn)}</div>' if drawn else "",
        "Figures": _figures(contents.pictures, leave_out="curves" if drawn else None),
        "All metrics": _metrics(contents.metrics),
        "Config": _config(contents),
        "Where it ran": _environment(contents),
        "Log": _logs(contents),
    }
    present = {heading: body for heading, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading in present)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{inner}</section>\n'
        for heading, inner in present.items()
    )
    html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kind">svae · {_text(contents.command)}</p>
<h1>{_text(title)}</h1>
{_facts(_summary(contents))}
{_command(contents)}
{_notes(contents.notes)}
</header>
<nav aria-label="Contents">{links}</nav>
<main>
{body}</main>
<script>{script}</script>
</body>
</html>
"""
    return CONTROL.sub("�", html)


def _text(value: object) -> str:
    """Anything as text of the page."""
    return escape(str(value))


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _number(value: object, written: str) -> str:
    """A number in the given format, or whatever else stands in its place."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'<span class="bad">{str(value).replace("nan", "NaN")}</span>'
    return f"{value:{written}}" if isinstance(value, float) else _text(value)


def _title(contents: Contents) -> list[str]:
    parts = [contents.choice("dataset"), contents.choice("model")]
    if not any(parts):
        tested = contents.setting("run")
        parts = [f"{contents.command} of {tested}" if tested else contents.run.resolve().name]
    date = f"{contents.started:%Y-%m-%d %H:%M}" if contents.started else None
    return [part for part in (*parts, date) if part]


def _summary(contents: Contents) -> dict[str, object]:
    """The settings that tell runs apart."""
    shape = contents.setting("model.image_shape")
    epochs = contents.setting("trainer.max_epochs")
    limit = f" of {epochs}" if isinstance(epochs, int) and epochs > 0 else ""
    facts = {
        "experiment": contents.choice("experiment"),
        "prior": contents.choice("prior"),
        "content dimensions": contents.setting("model.z_dim"),
        "image (channels, height, width)": " × ".join(map(str, shape))
        if isinstance(shape, list)
        else None,
        "epochs": f"{len(contents.rows)}{limit}" if contents.rows else None,
        "seed": contents.setting("seed"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _facts(facts: Mapping[str, object]) -> str:
    pairs = (
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{"".join(pairs)}</dl>' if facts else ""


def _command(contents: Contents) -> str:
    """What to type to repeat the run."""
    if contents.overrides is None:
        return (
            "<p>The command is not known: .hydra/overrides.yaml is missing or cannot be read.</p>"
        )
    sources = contents.runtime.get("config_sources")
    folders = [
        f"--config-dir={source.get('path')}"
        for source in (sources if isinstance(sources, list) else [])
        if isinstance(source, dict) and source.get("provider") == "command-line"
    ]
    packages = own_packages(contents.config)
    trust = f"SVAE_TRUSTED_TARGETS={shlex.quote(','.join(packages))} " if packages else ""
    start = trust + shlex.join(["python", "-m", f"svae.{contents.command}"])
    words = [start, *map(shlex.quote, [*folders, *contents.overrides])]
    line = " ".join(words)
    if len(line) > COMMAND_WIDTH:
        line = " \\\n    ".join(words)
    return (
        f'<p class="label">To repeat it</p><pre class="command"><code>{_text(line)}</code></pre>'
    )


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes" role="note">{items}</ul>' if notes else ""


def _key_numbers(contents: Contents) -> dict[str, float]:
    """The final metrics; of a run without them, what its epochs tell."""
    found: dict[str, float] = {}
    validated = [row["val/elbo"] for row in contents.rows if "val/elbo" in row]
    if finite := [value for value in validated if math.isfinite(value)]:
        found["val/elbo"] = max(finite)
    if timed := [
        row["train/total_seconds"] for row in contents.rows if "train/total_seconds" in row
    ]:
        found["train/total_seconds"] = timed[-1]
    final = {name: v for name, v in contents.metrics.items() if isinstance(v, float)}
    numbers = found | final
    # Which of the two forms is right depends on the true angles.
    both = ("test/theta_circular_correlation", "test/theta_circular_correlation_plain")
    distribution = contents.setting("dataset.theta_distribution")
    if distribution is not None and all(name in numbers for name in both):
        del numbers[both[distribution == "uniform"]]
    if "train/total_seconds" in numbers:
        numbers["train/total_seconds"] /= 60
    return numbers


def _cards(contents: Contents) -> str:
    numbers = _key_numbers(contents)
    cards = []
    for card in CARDS:
        if card.metric in numbers:
            value = _number(numbers[card.metric], f".{card.digits}f").replace("-", "−")
            small = f" <small>{card.unit}</small>" if card.unit else ""
            unit = card.unit if card.unit == "°" else small
            cards.append(
                f'<article class="card"><h3>{card.title}</h3>'
                f'<p class="value" title="{card.metric}">{value}{unit}</p>'
                f'<p class="about">{card.about}</p></article>'
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _figures(pictures: list[Picture], leave_out: str | None) -> str:
    order = list(CAPTIONS)
    shown = sorted(
        (picture for picture in pictures if picture.path.stem != leave_out),
        key=lambda picture: [*order, picture.path.stem].index(picture.path.stem),
    )
    made = []
    for picture in shown:
        title, caption = CAPTIONS.get(picture.path.stem, ("", ""))
        data = base64.b64encode(picture.data).decode()
        wide = " wide" if picture.width >= WIDE * picture.height else ""
        size = f'width="{picture.width}" height="{picture.height}"'
        words = f"<b>{title}.</b> {caption} " if title else ""
        alt = f"{title}. {caption}" if title else _text(picture.path.name)
        made.append(
            f'<figure class="picture{wide}"><div><img {size} alt="{alt}" '
            f'src="data:image/{picture.kind};base64,{data}"></div>'
            f"<figcaption>{words}<code>figures/{_text(picture.path.name)}</code></figcaption>"
            "</figure>"
        )
    return f'<div class="pictures">{"".join(made)}</div>' if made else ""


def _metrics(metrics: Mapping[str, Any]) -> str:
    """A table with one part for each split."""
    groups: dict[str, list[str]] = {}
    for name, value in sorted(metrics.items()):
        split, _, rest = name.rpartition("/")
        groups.setdefault(split, []).append(
            f'<tr><th scope="row">{_text(rest)}</th><td>{_number(value, ".6g")}</td></tr>'
        )
    bodies = "".join(
        f'<tbody><tr class="split"><th scope="rowgroup" colspan="2">{_text(split)}</th></tr>'
        f"{''.join(rows)}</tbody>"
        for split, rows in groups.items()
    )
    # The script shows the search box, which without it would do nothing.
    return (
        '<p><input type="search" placeholder="Search metrics" aria-label="Search metrics" hidden>'
        '</p><table class="metrics"><thead><tr><th scope="col">metric</th>'
        f'<th scope="col">value</th></tr></thead>{bodies}</table>'
        if groups
        else ""
    )


def _config(contents: Contents) -> str:
    """One part to unfold for each section of the config, the values of no section first."""
    if contents.config_text is not None:
        return _unfold(contents.config_name, contents.config_text)
    sections = {name: v for name, v in contents.config.items() if isinstance(v, dict)}
    single = {name: v for name, v in contents.config.items() if name not in sections}
    parts = [_unfold("general", _yaml(single), unfolded=True)] if single else []
    parts += [_unfold(name, _yaml(section)) for name, section in sections.items()]
    source = f'<p class="about">From <code>{contents.config_name}</code>.</p>'
    return source + "".join(parts) if parts else ""


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")


def _unfold(summary: str, text: str, unfolded: bool = False) -> str:
    opened = " open" if unfolded else ""
    return (
        f"<details{opened}><summary>{_text(summary)}</summary>"
        f"<pre><code>{_text(text)}</code></pre></details>"
    )


def _environment(contents: Contents) -> str:
    """Only what the run directory tells: this machine may be another."""
    facts = {
        "run directory": contents.run.resolve(),
        "started in": contents.runtime.get("cwd"),
        "accelerator": contents.setting("trainer.accelerator"),
        "devices": contents.setting("trainer.devices"),
        "precision": contents.setting("trainer.precision"),
        "Hydra": contents.runtime.get("version"),
    }
    recorded = contents.setting("environment")
    facts |= recorded if isinstance(recorded, dict) else {}
    return _facts({name: value for name, value in facts.items() if value is not None})


def _logs(contents: Contents) -> str:
    return "".join(
        _unfold(f"{name}, the last lines", text) for name, text in contents.logs.items()
    )
