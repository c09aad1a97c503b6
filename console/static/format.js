// Numbers, times and elements. Text of the outside becomes text nodes and nothing else.

export const NONE = "–";

export function number(value, digits = 0) {
  if (value === null || value === undefined) return NONE;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(value) {
  return value === null || value === undefined ? NONE : `${number(100 * value, 1)} %`;
}

export function clock(seconds) {
  return new Date(1000 * seconds).toISOString().slice(11, 19);
}

export function day(seconds) {
  return new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ");
}

export function element(name, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
