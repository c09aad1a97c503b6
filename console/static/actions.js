// Actions: one form each, sent with the token that the reader types. It is kept nowhere.

import { element } from "./format.js";
import { post } from "./server.js";

export function setUp(actions) {
  if (!actions.length) return;
  document.getElementById("actions").hidden = false;
  document.getElementById("action-forms").append(...actions.map(form));
}

function form({ name, text, fields }) {
  const inputs = fields.map((field) =>
    element(
      "label",
      { text: field.name.replaceAll("_", " ") },
      element("input", { name: field.name, value: field.default ?? "", autocomplete: "off", required: "" }),
    ),
  );
  const made = element("form", { "data-action": name, title: text }, ...inputs);
  made.append(element("button", { text: name.replaceAll("_", " ") }));
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    const status = document.getElementById("action-status");
    const body = Object.fromEntries(fields.map((field) => [field.name, value(field, made.elements[field.name].value)]));
    try {
      status.textContent = (await post(`/api/actions/${name}`, body, document.getElementById("token").value)).done;
    } catch (error) {
      status.textContent = error.message;
    }
  });
  return made;
}

// An ad that is named by digits alone is a number, as in the tables; beyond 2^53 JavaScript has no such number.
function value(field, text) {
  const plain = /^\d{1,15}$/.test(text);
  return field.number || (field.name === "ad_id" && plain) ? Number(text) : text;
}
