// The page: takes frames from the server and shows the latest, and the last five minutes as charts.

import * as actions from "./actions.js";
import { makeCharts } from "./charts.js";
import { clock, day, element, number, percent } from "./format.js";
import * as request from "./request.js";

const KEPT_S = 300;
const SILENT_MS = 3000;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let frames = [];
let replay = false;
let heard = performance.now();
let drawn = 0;

const draw = makeCharts();
const about = await (await fetch("/api/about")).json();
replay = about.replay;
if (about.can_ask) request.setUp();
actions.setUp(about.actions);
listen();
setInterval(tellSilence, 500);

function listen() {
  const stream = new EventSource("/api/frames");
  stream.addEventListener("past", (event) => take(JSON.parse(event.data), true));
  stream.addEventListener("frame", (event) => take([JSON.parse(event.data)], false));
}

function take(news, all) {
  if (!news.length) return;
  heard = performance.now();
  frames = all ? news : [...frames, ...news];
  const latest = frames.at(-1);
  while (frames[0].t < latest.t - KEPT_S) frames.shift();
  show(latest);
  // Readers who want less motion see charts move every two seconds.
  if (all || !calm.matches || heard - drawn > 2000) {
    drawn = heard;
    draw(frames);
  }
}

function tellSilence() {
  const note = document.getElementById("silence");
  const silent = (performance.now() - heard) / 1000;
  note.hidden = 1000 * silent < SILENT_MS;
  note.textContent = replay
    ? "The recording has ended."
    : `Everything below is stale: the console has been silent for ${number(silent)} s.`;
}

function show(frame) {
  document.getElementById("clock").textContent = `${clock(frame.t)} UTC`;
  document.getElementById("clock").dateTime = new Date(1000 * frame.t).toISOString();
  showSources(frame.sources);
  for (const place of document.querySelectorAll("[data-figure]")) showFigure(place, frame.figures);
  if (frame.figures.beams) showBeams(frame.figures.beams);
  if (frame.figures.rejects) showRejects(frame.figures.rejects);
  if (frame.versions) showVersions(frame.versions, frame.figures);
}

// A figure whose source is gone stays as it was, greyed by `showSources`.
function showFigure(place, figures) {
  const name = place.dataset.figure;
  if (!(name in figures)) {
    if (!place.textContent) place.textContent = "–";
    return;
  }
  const value = figures[name];
  place.dataset.value = value ?? "";
  place.textContent = "percent" in place.dataset ? percent(value) : number(value, Number(place.dataset.digits ?? 0));
}

function showSources(sources) {
  const items = Object.entries(sources).map(([name, { ok }]) =>
    element("li", { text: name, className: ok ? "" : "gone", "data-name": name }),
  );
  document.getElementById("sources").replaceChildren(...items);
  // Not every deployment has these; one that was there stays, and grows stale.
  for (const [id, name] of [["learning", "trainer"], ["revenue", "loop"]]) {
    if (name in sources) document.getElementById(id).hidden = false;
  }
  for (const panel of document.querySelectorAll("[data-source]")) {
    const state = sources[panel.dataset.source] ?? { ok: true };
    panel.classList.toggle("stale", !state.ok);
    let note = panel.querySelector(":scope > .note");
    if (state.ok) {
      note?.remove();
      continue;
    }
    if (!note) panel.append((note = element(panel.tagName === "OL" ? "li" : panel.tagName === "DL" ? "div" : "p", { className: "note" })));
    const since = state.age_s === null ? "Nothing yet" : `Stale for ${number(state.age_s)} s`;
    note.textContent = `${since}: ${state.problem}`;
  }
}

function showBeams(beams) {
  const place = document.getElementById("beams");
  const most = Math.max(1, ...frames.flatMap((frame) => Object.values(frame.figures.beams ?? {})));
  for (const [level, count] of Object.entries(beams)) {
    let bar = place.querySelector(`i[data-level="${CSS.escape(level)}"]`);
    if (!bar) {
      bar = element("i", { "data-level": level });
      const name = level === "value" ? "value" : `level ${level}`;
      place.append(element("span", { text: name }), element("div", { className: "track" }, bar), element("span", { "data-beams": level }));
    }
    bar.style.transform = `scaleX(${count / most})`;
    place.querySelector(`[data-beams="${CSS.escape(level)}"]`).textContent = number(count);
  }
}

function showRejects(rejects) {
  const entries = Object.entries(rejects).map(([reason, rate]) =>
    element("div", {}, element("dt", { text: `${reason} / s` }), element("dd", { text: number(rate, 1) })),
  );
  if (!entries.length) entries.push(element("div", {}, element("dt", { text: "nobody so far" })));
  document.getElementById("rejects").replaceChildren(...entries);
}

function showVersions({ current, problem, made, named, canary, canary_share: share }, { models, versions_refused: refused }) {
  const answering = new Set(Object.values(models ?? {}));
  const items = Object.keys(made)
    .map(Number)
    .sort((a, b) => b - a)
    .map((version) => {
      const says = [];
      if (answering.has(version)) says.push("answers");
      if (version === current) says.push("CURRENT");
      else if (named.includes(version)) says.push("named before");
      if (version === canary) says.push(`canary, ${percent(share)} of the requests`);
      if (version === current && refused?.length) says.push(`refused: ${refused.join(", ")}`);
      return element(
        "li",
        { "data-version": String(version) },
        element("b", { text: String(version) }),
        element("span", { text: day(made[version]) }),
        element("span", { className: "says", text: says.join(", ") }),
      );
    });
  if (problem) items.unshift(element("li", { className: "note", text: problem }));
  document.getElementById("versions").replaceChildren(...items);
}
