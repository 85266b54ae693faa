"use strict";

for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot"), cursor = chart.querySelector(".cursor");
  const where = chart.querySelector(".where"), values = chart.querySelectorAll(".legend b");
  const data = JSON.parse(chart.querySelector("script").textContent);
  const { width, height } = plot.viewBox.baseVal;
  const draw = (name, attributes) => {
    const made = document.createElementNS(plot.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    cursor.append(made);
  };
  let at = data.rest;

  const show = (index, pointed) => {
    at = index;
    where.textContent = data.label[at];
    cursor.replaceChildren();
    if (pointed) draw("path", { d: `M${data.x[at]} 0V${height}` });
    data.series.forEach((series, i) => {
      values[i].textContent = series.text[at];
      if (pointed && series.y[at] !== null) {
        draw("circle", { class: `dot ${series.look}`, cx: data.x[at], cy: series.y[at], r: 4.5 });
      }
    });
  };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * width;
    const gaps = data.x.map((place) => Math.abs(place - x));
    show(gaps.indexOf(Math.min(...gaps)), true);
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", () => show(data.rest, false));
  plot.addEventListener("blur", () => show(data.rest, false));
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), data.x.length - 1), true);
  });
}

for (const search of document.querySelectorAll("input[type=search]")) {
  search.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const group of document.querySelectorAll(".metrics tbody")) {
      const split = group.querySelector(".split");
      const rows = [...group.rows].filter((row) => row !== split);
      for (const row of rows) {
        const name = `${split.textContent}/${row.cells[0].textContent}`.toLowerCase();
        row.hidden = !name.includes(wanted);
      }
      group.hidden = rows.every((row) => row.hidden);
    }
  });
}

// On paper nothing can be unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
});

document.documentElement.dataset.ready = "yes";
