// One request: asked when the reader wants it, and unfolded: ads, paths of their SIDs, history.

import { day, element, number } from "./format.js";
import { post } from "./server.js";

export function setUp() {
  const form = document.getElementById("ask");
  const status = document.getElementById("ask-status");
  document.getElementById("request").hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    status.textContent = "asking …";
    try {
      const body = { user: form.elements.user.value.trim(), num_ads: Number(form.elements.num_ads.value) };
      show(await post("/api/request", body));
      status.textContent = "";
    } catch (error) {
      status.textContent = error.message;
    }
    button.disabled = false;
  });
}

function show(answer) {
  const facts = [
    `user ${answer.user}`,
    `${answer.events} events of history, ${answer.ignored} ignored`,
    `model ${answer.model_version}, index ${answer.index_version}`,
    `beams ${answer.beam_widths.slice(0, -1).join("-")}, ${answer.beam_widths.at(-1)} with a value`,
    answer.degraded ? "narrower than configured" : "as wide as configured",
    `${number(answer.ms, 0)} ms`,
  ];
  const children = [element("p", { className: "facts" }, ...facts.map((text) => element("span", { text })))];
  for (const problem of answer.problems) children.push(element("p", { className: "note", text: problem }));
  if (answer.levels_missing) {
    children.push(element("p", { className: "note", text: `no log p by level: ${answer.levels_missing}` }));
  }
  children.push(element("ol", { className: "ads" }, ...answer.ads.map(ad)));
  children.push(
    element(
      "details",
      {},
      element("summary", { text: `History: the newest ${answer.history.length} of ${answer.events} events` }),
      element("ul", { className: "events" }, ...answer.history.map(event)),
    ),
  );
  document.getElementById("answer").replaceChildren(...children);
}

function ad(shown, index) {
  const facts = [
    `ad ${shown.ad}`,
    `log p ${number(shown.log_p, 3)}`,
    `eCPM ${number(shown.ecpm, 2)}`,
    `seen ${shown.seen} times`,
    ...beyond(shown),
  ];
  return element(
    "li",
    {},
    element("span", { className: "rank", text: String(index + 1) }),
    element(
      "div",
      {},
      element("div", { className: "text", text: shown.text || "(no text)" }),
      path(shown),
      element("div", { className: "facts" }, ...facts.map((text) => element("span", { text }))),
    ),
  );
}

// What the levels do not add up to: serving counts over live children, or gives unseen SIDs a share.
function beyond(shown) {
  if (!shown.log_p_levels) return [];
  const rest = shown.log_p - shown.log_p_levels.reduce((total, level) => total + level, 0);
  return Math.abs(rest) > 0.01 ? [`serving adds ${number(rest, 3)}`] : [];
}

function path(shown) {
  const codes = shown.sid.map((code, level) => {
    const logp = shown.log_p_levels?.[level];
    const sure = logp === undefined ? "" : `sure-${logp > -0.7 ? 3 : logp > -1.6 ? 2 : logp > -3 ? 1 : 0}`;
    const title = `level ${level + 1}, code ${code}`;
    return element(
      "span",
      { className: sure, title },
      String(code),
      element("small", { text: logp === undefined ? "" : `log p ${number(logp, 2)}` }),
    );
  });
  return element("div", { className: "path" }, ...codes);
}

function event(shown) {
  return element(
    "li",
    {},
    element("span", { className: "when", text: day(shown.time) }),
    element("span", { text: shown.behavior }),
    element("span", { text: `ad ${shown.ad}` }),
    element("span", { className: "text", text: shown.text }),
  );
}
