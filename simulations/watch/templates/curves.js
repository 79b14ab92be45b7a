// The curves of the runs that were chosen, over each other; a strategy keeps its colour while it is shown.

const details = new Map(); // id -> what the server told of a run, with all its rounds
const slots = new Map(); // strategy -> colour
let readAt = null; // the round whose values are shown; null is the last one

const labelOf = (id) => (details.get(id) || {}).label || (details.get(id) || {}).strategy_label || (runs.get(id) || {}).strategy || "";

// A comparison's strategies have the colours of its report, by their order there; others keep theirs where it is free.
function colour(ids) {
  const labels = [...new Set(ids.map(labelOf))];
  for (const label of slots.keys()) if (!labels.includes(label)) slots.delete(label);
  const compared = new Map();
  for (const id of ids) {
    const { place } = runs.get(id) || {};
    if (isNumber(place) && !compared.has(labelOf(id)) && ![...compared.values()].includes(place)) compared.set(labelOf(id), place);
  }
  for (const [label, slot] of [...slots]) if ([...compared.values()].includes(slot)) slots.delete(label);
  for (const [label, place] of compared) slots.set(label, place);
  for (const label of labels) {
    if (slots.has(label)) continue;
    let free = 0;
    while ([...slots.values()].includes(free)) free += 1;
    slots.set(label, free);
  }
}

function look(ids) {
  colour(ids);
  const seen = new Map();
  return new Map(ids.map((id) => {
    const slot = slots.get(labelOf(id));
    const nth = seen.get(slot) || 0;
    seen.set(slot, nth + 1);
    const round = Math.floor(slot / facts.colours.length);
    return [id, { slot: slot % facts.colours.length, dash: DASHES[(nth + round) % DASHES.length] }];
  }));
}

function measuresOf(ids) {
  const found = new Map();
  for (const id of ids) for (const [name, measure] of Object.entries(details.get(id).measures)) found.set(name, measure);
  return found;
}

function offer(select, found, preferred) {
  const names = [...found.keys()];
  const text = JSON.stringify(names);
  if (select.dataset.names !== text) {
    const before = select.dataset.chosen || "";
    select.dataset.names = text;
    select.replaceChildren(...names.map((name) => {
      const { title } = found.get(name);
      return h("option", { value: name }, title === name ? name : `${title} (${name})`);
    }));
    const first = preferred.find((name) => found.has(name)) || names[0];
    if (names.length) select.value = names.includes(before) ? before : first;
  }
  select.disabled = !names.length;
  return select.value;
}

function pointsOf(id, name, across) {
  return details.get(id).rounds
    .filter((done) => name in done.metrics && isNumber(across.of(done)))
    .map((done) => [across.of(done), done.metrics[name], done.round]);
}

function showCurves() {
  const ids = selected.filter((id) => details.has(id));
  const found = measuresOf(ids);
  const across = ACROSS[byId("across").value];
  const looks = look(ids);
  const last = Math.max(1, ...ids.flatMap((id) => details.get(id).rounds.slice(-1).map((done) => done.round)));
  const slider = byId("at");
  slider.max = last;
  slider.disabled = !ids.length;
  const at = readAt === null ? last : Math.min(readAt, last);
  slider.value = at;
  setText(byId("at-text"), ids.length ? `${count(at)} of ${count(last)}` : "–");
  const lacking = ids.filter((id) => details.get(id).rounds.length && !details.get(id).rounds.some((done) => isNumber(across.of(done))));
  byId("lacking").hidden = !lacking.length;
  setText(byId("lacking"), `Not recorded by round, in a run of an earlier umbel: ${across.title} of ${lacking.map((id) => runs.get(id).name).join(", ")}.`);
  const chosenOnes = [["first", facts.accuracies], ["second", facts.losses]].map(([key, preferred]) => {
    const name = offer(byId(key), found, preferred);
    const measure = found.get(name) || { title: key === "first" ? "Accuracy" : "Loss", whole: 0 };
    const series = ids.map((id) => {
      const points = name ? pointsOf(id, name, across) : [];
      return { id, ...looks.get(id), points, mark: points.findLastIndex((point) => point[2] <= at) };
    }).filter((each) => each.points.length);
    draw(byId(`chart-${key}`), measure.title, series, measure, across, read);
    return { measure, series: new Map(series.map((each) => [each.id, each])) };
  });
  showValues(ids, looks, across, chosenOnes);
}

function showValues(ids, looks, across, charts) {
  const grid = byId("values");
  const heads = ["run", "strategy", "seed", "round", ...(across === ACROSS.round ? [] : [across.title]), ...charts.map(({ measure }) => measure.title)];
  const dropped = across === ACROSS.round ? 2 : 3; // where there is little room
  const numeric = (index) => [index > 1 ? "n" : "", index && index <= dropped ? "wide" : ""].join(" ").trim() || null;
  grid.tHead.replaceChildren(h("tr", null, heads.map((head, i) => h("th", { scope: "col", class: numeric(i) }, head))));
  grid.tBodies[0].replaceChildren(...ids.map((id) => {
    const read = charts.map(({ series }) => (series.has(id) && series.get(id).mark >= 0 ? series.get(id).points[series.get(id).mark] : null));
    const at = read.find(Boolean);
    const { slot, dash } = looks.get(id);
    const row = runs.get(id);
    const cells = [labelOf(id), row.seed === null ? "" : `${row.seed}`, at ? count(at[2]) : "–",
      ...(across === ACROSS.round ? [] : [at ? across.text(at[0]) : "–"]),
      ...charts.map(({ measure }, i) => (read[i] ? written(read[i][1], measure) : "–"))];
    return h("tr", null, h("th", { scope: "row", class: "long" }, swatch(slot, dash), row.name, h("span", { class: "narrow" }, `${labelOf(id)}${row.seed === null ? "" : ` · seed ${row.seed}`}`)), cells.map((cell, i) => h("td", { class: numeric(i + 1) }, cell)));
  }), ...(ids.length ? [] : [h("tr", null, h("td", { colspan: heads.length }, "Tick runs in the table above."))]));
}

function read(round) {
  const last = Number(byId("at").max);
  readAt = round >= last ? null : round;
  showCurves();
}
