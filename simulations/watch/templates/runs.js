// The table of runs: by folder, the newest first; elements stay, so that who is at one keeps the focus.

const PAGE = 100; // runs that are shown before somebody asks for more
const MOST_CURVES = 30;
const STATES = ["running", "done", "ended", "incomplete", "stopped", "failed", "died", "damaged"];

const runs = new Map(); // id -> row
const selected = []; // ids, in the order of their choice
let current = null; // the id of the run that is shown in full
let limit = PAGE;
const lines = new Map(); // id -> elements of a row
const groups = new Map(); // name -> elements of a folder

function groupOf(name) {
  if (!groups.has(name)) {
    const text = h("span");
    const flaw = h("div", { class: "flaw" });
    const button = h("button", { type: "button", class: "small", onclick: () => chooseGroup(name) }, "Show all its curves");
    const head = h("th", { class: "group", colspan: 8, scope: "rowgroup" }, text, " ", button, flaw);
    groups.set(name, { text, flaw, button, body: h("tbody", null, h("tr", null, head)) });
  }
  return groups.get(name);
}

function lineOf(row) {
  if (!lines.has(row.id)) {
    const box = h("input", { type: "checkbox", onchange: () => choose(row.id, box.checked) });
    const name = h("button", { type: "button", class: "name", onclick: () => open(row.id, true) });
    const cell = (kind) => h("td", { class: kind });
    const parts = { box, name, small: h("span", { class: "narrow" }), flaw: h("div", { class: "flaw" }), state: h("span"), bar: h("progress") };
    const cells = { strategy: cell("wide"), seed: cell("n wide"), round: cell("n"), time: cell("n wide"), result: cell("wide") };
    parts.rounds = h("span");
    cells.round.append(parts.rounds);
    const line = h("tr", null, h("td", null, box), h("th", { scope: "row" }, name, parts.small, parts.flaw), h("td", null, parts.state), ...Object.values(cells));
    lines.set(row.id, { ...parts, cells, line });
  }
  return lines.get(row.id);
}

function fillLine(row) {
  const parts = lineOf(row);
  const strategy = row.label || row.strategy;
  setText(parts.name, row.name);
  parts.box.checked = selected.includes(row.id);
  parts.box.setAttribute("aria-label", `Curves of ${row.name}`);
  setText(parts.state, row.state);
  parts.state.className = `state ${row.state}`;
  setText(parts.flaw, row.flaw);
  setText(parts.cells.strategy, strategy);
  setText(parts.cells.seed, row.seed === null ? "" : `${row.seed}`);
  setText(parts.rounds, row.rounds ? `${row.round} of ${row.rounds}` : "");
  const time = row.state === "running" ? left(row) : row.seconds ? clock(row.seconds) : "";
  setText(parts.cells.time, time);
  setText(parts.cells.result, row.result);
  setText(parts.small, [strategy, row.seed === null ? "" : `seed ${row.seed}`, time, row.result].filter(Boolean).join(" · "));
  if (row.state === "running" && row.rounds) {
    parts.bar.max = row.rounds;
    parts.bar.value = Math.min(row.round + (row.clients ? row.done / row.clients : 0) * 0.9, row.rounds);
    parts.bar.setAttribute("aria-label", `Rounds of ${row.name}`);
    if (!parts.bar.isConnected) parts.cells.round.append(parts.bar);
  } else parts.bar.remove();
  parts.line.className = row.id === current ? "open" : "";
  if (row.id === current) parts.name.setAttribute("aria-current", "true");
  else parts.name.removeAttribute("aria-current");
}

function left(row) {
  if (row.end === null) return "time left unknown";
  return `${clock(Math.max(row.end - now(), 0))} left`;
}

function wanted() {
  const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const state = byId("state").value;
  const found = [...runs.values()].filter((row) => {
    const text = `${row.group}/${row.name} ${row.strategy} ${row.label}`.toLowerCase();
    return (!state || row.state === state) && words.every((word) => text.includes(word));
  });
  const newest = new Map();
  for (const row of found) newest.set(row.group, Math.max(newest.get(row.group) || 0, row.began));
  return found.sort((a, b) => newest.get(b.group) - newest.get(a.group) || (a.group < b.group ? -1 : a.group > b.group ? 1 : 0)
    || b.began - a.began || (a.name < b.name ? -1 : 1));
}

function showRuns(waiting) {
  const found = wanted();
  const order = found.slice(0, limit);
  const counts = new Map();
  for (const row of found) {
    if (!counts.has(row.group)) counts.set(row.group, new Map());
    const states = counts.get(row.group);
    states.set(row.state, (states.get(row.state) || 0) + 1);
  }
  const bodies = new Map();
  for (const row of order) {
    if (!bodies.has(row.group)) bodies.set(row.group, []);
    bodies.get(row.group).push(row);
  }
  const focused = document.activeElement;
  const grid = byId("runs");
  for (const body of [...grid.tBodies]) if (![...bodies.keys()].some((name) => groupOf(name).body === body)) body.remove();
  for (const [index, [name, rows]] of [...bodies].entries()) {
    const group = groupOf(name);
    const states = STATES.filter((state) => counts.get(name).has(state)).map((state) => `${counts.get(name).get(state)} ${state}`);
    const what = rows[0].comparison ? "comparison, " : name ? "folder, " : "";
    setText(group.text, `${name || "In the folder itself"}: ${what}${states.join(", ")}`);
    setText(group.flaw, rows[0].group_flaw || "");
    group.body.rows[0].hidden = !name && bodies.size === 1 && !rows[0].comparison;
    if (grid.tBodies[index] !== group.body) grid.insertBefore(group.body, grid.tBodies[index] || null);
    const kept = new Set(rows.map((row) => lineOf(row).line));
    for (const line of [...group.body.rows].slice(1)) if (!kept.has(line)) line.remove();
    rows.forEach((row, position) => {
      fillLine(row);
      const { line } = lineOf(row);
      if (group.body.rows[position + 1] !== line) group.body.insertBefore(line, group.body.rows[position + 1] || null);
    });
  }
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  byId("none").hidden = found.length > 0 || waiting > 0;
  byId("more").hidden = found.length <= limit;
  setText(byId("more"), `Show ${Math.min(PAGE, found.length - limit)} more`);
  const all = runs.size === found.length ? `${count(runs.size)} runs` : `${count(found.length)} of ${count(runs.size)} runs`;
  setText(byId("count"), `${all}, ${selected.length} with curves${waiting ? `; ${count(waiting)} folders are still to be read` : ""}`);
}

function choose(id, isChosen) {
  const place = selected.indexOf(id);
  if (isChosen && place < 0) {
    if (selected.length >= MOST_CURVES) say(`No more than ${MOST_CURVES} runs at once have their curves drawn.`);
    else selected.push(id);
  } else if (!isChosen && place >= 0) selected.splice(place, 1);
  chosen();
}

function chooseGroup(name) {
  const rows = wanted().filter((row) => row.group === name).reverse();
  selected.splice(0, selected.length, ...rows.slice(0, MOST_CURVES).map((row) => row.id));
  if (rows.length > MOST_CURVES) say(`The first ${MOST_CURVES} of ${count(rows.length)} runs have their curves drawn.`);
  chosen();
  byId("curves").scrollIntoView({ block: "start" });
  byId("curves").focus({ preventScroll: true });
}

function open(id, goes) {
  current = id;
  chosen();
  if (goes) {
    byId("one").scrollIntoView({ block: "start" });
    byId("one").focus({ preventScroll: true });
  }
}
