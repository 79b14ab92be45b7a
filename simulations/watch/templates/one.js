// One run in full: how far it is, who took part, what it costs, what went wrong.

const SHOWN_ROUNDS = 30;

function showOne() {
  const run = details.get(current);
  byId("one-none").hidden = Boolean(run);
  byId("one-parts").hidden = !run;
  if (!run) return;
  const row = runs.get(current) || run;
  setText(byId("one-title"), `One run: ${row.name}`);
  setText(byId("one-line"), run.line);
  show("one-path", run.path, (path) => h("code", { class: "long" }, path));
  const again = ["stopped", "died", "failed"].includes(row.state) ? run.again : "";
  show("one-again", again, (text) => (text ? ["To go on: ", h("code", { class: "long" }, text)] : []));
  const troubles = [...new Set([row.flaw, run.trouble, run.lost].filter(Boolean))];
  show("one-trouble", troubles, (texts) => texts.map((text) => h("p", { class: "flaw" }, text)));
  show("one-tiles", tiles(run, row), (pairs) => pairs.map(([name, value]) => h("div", { class: "card" }, h("b", null, value), h("span", null, name))));
  show("one-clients", clientRows(run), ({ rows, more }) => rows.length
    ? [table(`Of each phase: replies that came, of the clients that it selected${more ? `; the last ${SHOWN_ROUNDS} rounds` : ""}`,
      ["round", "cohort", "failed", "examples", "steps"], rows.map(([first, cohort, ...rest]) => [first, lined(cohort), ...rest]), ["n wrap", null, "n", "n", "n"])] : "No phase has begun.");
  show("one-stages", run.stages, (stages) => (stages.length ? stageTable(stages) : "Not recorded."));
  show("one-bytes", byteRows(run), (rows) => (rows.length ? table("Messages to and from clients, and memory of the server's process", ["what", "in all", "a round"], rows, [null, "n", "n"]) : "Not recorded by round."));
  show("one-failures", { rows: run.failures, number: run.num_failures, coverage: run.coverage }, failures);
  show("one-metrics", run.metrics, metrics);
  show("one-accuracies", run.accuracies, (found) => (found
    ? table("Spread over clients, each on its own test, last round", ["of the clients", ...(found.heads.length ? found.heads.slice(1) : ["accuracy"])], found.rows, [null, ...Array(9).fill("n")])
    : "Known once the run has ended, where clients have tests of their own."));
  show("one-notices", run.notices, (texts) => (texts.length ? h("ul", null, texts.map((text) => h("li", { class: "long" }, text))) : "None."));
}

const lined = (texts) => h("span", null, texts.map((text) => h("span", { class: "line" }, text)));

function metrics(rows) {
  if (!rows.length) return "Nothing has been evaluated.";
  if (rows[0].length === 2) return table("As they were measured last", ["metric", "last"], rows, ["long", "n"]);
  return table("As they were measured last, and in the best round by validation", ["metric", "last", "best"], rows, ["long", "n", "n"]);
}

function tiles(run, row) {
  const pairs = [["state", row.state], ["rounds", `${row.round} of ${row.rounds}`]];
  if (row.state === "running") {
    pairs.push(["time left", row.end === null ? "unknown" : clock(Math.max(row.end - now(), 0))]);
    pairs.push([row.phase ? `clients done, ${row.phase}` : "now", row.phase ? `${row.done} of ${row.clients}` : row.round ? "between phases" : "loading data"]);
  }
  pairs.push(["time so far", clock(row.seconds)]);
  const costs = run.rounds.length ? run.rounds[run.rounds.length - 1].costs : {};
  if (isNumber(costs.steps)) pairs.push(["optimiser steps", count(costs.steps)]);
  if (isNumber(costs.examples)) pairs.push(["examples", count(costs.examples)]);
  if (isNumber(costs.bytes)) pairs.push(["bytes moved", bytes(costs.bytes)]);
  pairs.push(["failed replies", count(run.num_failures)]);
  return pairs;
}

function clientRows(run) {
  const cohort = (phases) => phases.map(([name, number, failed]) => `${name} ${count(number - failed)} of ${count(number)}`);
  const failed = (phases) => count(phases.reduce((sum, phase) => sum + phase[2], 0));
  const shown = run.rounds.slice(-SHOWN_ROUNDS);
  const rows = shown.map((done, index) => {
    const before = index ? shown[index - 1] : run.rounds[run.rounds.length - shown.length - 1];
    const more = (key) => (isNumber(done.costs[key]) ? count(done.costs[key] - (before ? before.costs[key] || 0 : 0)) : "–");
    return [count(done.round), cohort(done.phases), failed(done.phases), more("examples"), more("steps")];
  });
  const { round, phases } = run.next;
  if (phases.length) rows.push([`${count(round)}, not complete`, phases.map(([name, number]) => `${name} of ${count(number)}`), failed(phases), "", ""]);
  return { rows: rows.reverse(), more: run.rounds.length > SHOWN_ROUNDS };
}

function stageTable(stages) {
  const all = stages.reduce((sum, stage) => sum + stage[1], 0) || 1;
  const bar = (share) => s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { width: Math.max(100 * share, 0.5), height: 10, rx: 1 }));
  return table("Seconds by stage", ["stage", "time", "share"], stages.map(([name, seconds]) =>
    [name, clock(seconds), h("span", { class: "share" }, `${((100 * seconds) / all).toFixed(0)} %`, bar(seconds / all))]), [null, "n", "bar"]);
}

function byteRows(run) {
  const last = run.rounds[run.rounds.length - 1];
  if (!last || !isNumber(last.costs.bytes_down)) return (run.bytes || []).map(([name, tensors, framing, each]) => [name, `${tensors} + ${framing}`, each]);
  const of = (key) => [bytes(last.costs[key]), bytes(last.costs[key] / last.round)];
  const most = Math.max(...run.rounds.map((done) => done.costs.memory_bytes || 0));
  return [["to clients", ...of("bytes_down")], ["from clients", ...of("bytes_up")],
    ...(most ? [["memory, last round", bytes(last.costs.memory_bytes), ""], ["memory, the most after a round", bytes(most), ""]] : [])];
}

function failures({ rows, number, coverage }) {
  const lines = coverage.map((text) => h("p", null, text));
  if (!rows.length && !number) return lines.length ? lines : [h("p", null, "None.")];
  const replies = number === 1 ? "One reply was left out" : `${count(number)} replies were left out`;
  if (!rows.length) return [...lines, h("p", null, `${replies}.`)];
  const told = number > rows.length ? `${replies}; the last ${count(rows.length)}` : replies;
  return [...lines, table(told, ["round", "phase", "client", "node", "reason"],
    rows.map((each) => [count(each.round), each.phase, `${each.client}`, `${each.node}`, each.reason]), ["n", null, "n", "n", "long"])];
}
