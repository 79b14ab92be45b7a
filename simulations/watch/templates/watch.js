// Asks the server again and again for what has changed, and shows it.

const EVERY = 1500; // milliseconds
let [epoch, version, skew, waiting] = ["", 0, 0, 0];
let flaw = ""; // why the server could not look at the folder
let isFirst = true;
const stale = new Set(); // ids of runs whose details have changed

const now = () => Date.now() / 1000 + skew; // by the server's clock
const say = (text) => setText(byId("status"), text);

async function ask(path, values) {
  const answer = await fetch(`${path}?${new URLSearchParams(values)}`, { cache: "no-store" });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

async function askForRuns() {
  const told = await ask("api/runs", { since: version, epoch });
  if (told.whole) {
    const there = new Set(told.runs.map((row) => row.id));
    for (const id of [...runs.keys()]) if (!there.has(id)) gone(id);
    details.clear();
  }
  for (const row of told.runs) {
    runs.set(row.id, row);
    stale.add(row.id);
  }
  told.gone.forEach(gone);
  [epoch, version, skew, waiting, flaw] = [told.epoch, told.version, told.now - Date.now() / 1000, told.waiting, told.flaw];
  return told.runs.length || told.gone.length;
}

function gone(id) {
  runs.delete(id);
  details.delete(id);
  stale.delete(id);
  if (lines.has(id)) lines.get(id).line.remove();
  lines.delete(id);
  if (selected.includes(id)) selected.splice(selected.indexOf(id), 1);
  if (current === id) current = null;
}

async function askForDetails() {
  const ids = [...new Set([...selected, current])].filter((id) => runs.has(id) && (stale.has(id) || !details.has(id)));
  await Promise.all(ids.map(async (id) => {
    stale.delete(id);
    const before = details.get(id);
    const last = before && before.rounds.length ? before.rounds[before.rounds.length - 1].round : 0;
    const told = await ask("api/run", { id, after: last, generation: before ? before.generation : "" });
    if (!told) return;
    const kept = before && told.after ? before.rounds : [];
    details.set(id, { ...told, rounds: [...kept, ...told.told], told: null });
  }));
  return ids.length;
}

function begin() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const known = (asked.get("curves") || "").split(",").filter((id) => runs.has(id));
  const newest = wanted();
  const going = newest.filter((row) => row.state === "running").slice(0, 8).map((row) => row.id);
  selected.push(...(known.length ? known.slice(0, MOST_CURVES) : going.length ? going : newest.slice(0, 1).map((row) => row.id)));
  current = runs.has(asked.get("run")) ? asked.get("run") : selected[0];
  isFirst = false;
}

function chosen() {
  const parts = new URLSearchParams();
  if (selected.length) parts.set("curves", selected.join(","));
  if (current) parts.set("run", current);
  history.replaceState(null, "", `#${parts}`);
  showRuns(waiting);
  askForDetails().then(showRest, lost);
}

function showRest() {
  showCurves();
  showOne();
}

function lost() {
  say("The server does not answer; this is what it said last. Asking again.");
}

let isLost = false;
async function turn() {
  if (!document.hidden) {
    try {
      const changed = await askForRuns();
      if (isFirst && runs.size && (!waiting || flaw)) begin();
      const more = await askForDetails();
      if (changed || more) showRest();
      showRuns(waiting);
      if (current && runs.has(current) && runs.get(current).state === "running") showOne();
      if (flaw) say(`Looking at the folder failed (${flaw}); what is shown may be old. Trying again.`);
      else if (isLost || byId("status").textContent.startsWith("Reading")) say("Follows what is written to this folder.");
      isLost = Boolean(flaw);
    } catch (error) {
      isLost = true;
      lost();
    }
  }
  setTimeout(turn, EVERY);
}

byId("state").append(...STATES.map((state) => h("option", { value: state }, state)));
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("words").addEventListener("input", () => { limit = PAGE; showRuns(waiting); });
byId("state").addEventListener("change", () => { limit = PAGE; showRuns(waiting); });
byId("clear").addEventListener("click", () => { selected.splice(0); chosen(); });
byId("more").addEventListener("click", () => { limit += PAGE; showRuns(waiting); });
byId("across").addEventListener("change", showCurves);
for (const key of ["first", "second"]) byId(key).addEventListener("change", (event) => { event.target.dataset.chosen = event.target.value; showCurves(); });
byId("at").addEventListener("input", (event) => read(Number(event.target.value)));
let resizing = 0;
addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(showCurves); });
turn();
