// How things are written, and how elements are made. Text is set as text, never as markup.

const facts = JSON.parse(document.getElementById("facts").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Fill a part of the page anew only where what it shows has changed: who reads there keeps their place.
const shownParts = new Map();
function show(id, content, make) {
  const text = JSON.stringify(content);
  if (shownParts.get(id) === text) return;
  shownParts.set(id, text);
  byId(id).replaceChildren(...[make(content)].flat());
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en");

function clock(seconds) {
  if (!isNumber(seconds)) return "–";
  const whole = Math.max(Math.round(seconds), 0);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return `${minutes} min ${whole % 60} s`;
  return whole < 10 && seconds % 1 ? `${seconds.toFixed(1)} s` : `${whole} s`;
}

function scaled(value, units, digits) {
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? trimmed(value, digits) : trimmed(value, 3)}${units[unit]}`;
}

const trimmed = (value, digits) => `${parseFloat(value.toFixed(digits))}`;
const bytes = (value) => (isNumber(value) ? scaled(value, [" B", " kB", " MB", " GB", " TB"], 1) : "–");
const count = (value) => (isNumber(value) ? grouped.format(value) : "–");

function written(value, measure) {
  if (!isNumber(value)) return "–";
  if (measure && measure.whole) return `${((100 / measure.whole) * value).toFixed(2)} %`;
  return Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : value.toFixed(4);
}

const ACROSS = {
  round: { title: "round", of: (done) => done.round, text: count, tick: count },
  steps: { title: "optimiser steps", of: (done) => done.costs.steps, text: count, tick: short },
  examples: { title: "examples gone through", of: (done) => done.costs.examples, text: count, tick: short },
  bytes: { title: "bytes moved", of: (done) => done.costs.bytes, text: bytes, tick: bytes },
  seconds: { title: "seconds", of: (done) => done.seconds, text: clock, tick: short },
};

function short(value) {
  return scaled(value, ["", "k", "M", "G", "T"], 1);
}

function table(caption, heads, rows, classes = []) {
  const of = (index) => classes[index] || null;
  return h("table", null,
    h("caption", null, caption),
    h("thead", null, h("tr", null, heads.map((head, i) => h("th", { scope: "col", class: of(i) }, head)))),
    h("tbody", null, rows.map((cells) => h("tr", null,
      cells.map((cell, i) => h(i ? "td" : "th", { class: of(i), scope: i ? null : "row" }, cell))))));
}
