// A chart of curves, as SVG; its values are read in a table beneath, by a slider or the pointer.

const DASHES = [null, "6 4", "8 3 2 3", "2 3"];
const NUM_TICKS = 5;
const MOST_POINTS = 1500; // of a curve: more are no longer told apart

function ticks(low, high, wholes) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / NUM_TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].find((each) => each * power >= rough) * power, wholes ? 1 : 0);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(parseFloat((i * step).toPrecision(12)));
  return found;
}

function range(values, pads) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1];
  const pad = low === high ? Math.abs(low) * 0.1 || 0.5 : (high - low) * 0.05;
  return pads ? [low - pad, high + pad] : low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function thinned(points) {
  const every = Math.ceil(points.length / MOST_POINTS);
  return every === 1 ? points : points.filter((_, index) => index % every === 0 || index === points.length - 1);
}

// series: [{ id, slot, dash, points: [[x, y, round]], mark: index of the point that is read, or -1 }]
function draw(figure, title, series, measure, across, onRead) {
  const width = Math.max(figure.clientWidth - 24, 240);
  const height = Math.round(Math.min(Math.max(width * 0.52, 200), 320));
  const [left, right, top, bottom] = [58, 12, 8, 40];
  const points = series.flatMap((each) => each.points);
  const [lowX, highX] = range(points.map((point) => point[0]), false);
  let [lowY, highY] = range(points.map((point) => point[1]), true);
  if (measure.whole) {
    lowY = Math.max(lowY, Math.min(0, ...points.map((point) => point[1])));
    if (points.every((point) => point[1] <= measure.whole)) highY = Math.min(highY, measure.whole * 1.005);
  }
  const x = (value) => left + ((value - lowX) / (highX - lowX)) * (width - left - right);
  const y = (value) => height - bottom - ((value - lowY) / (highY - lowY)) * (height - top - bottom);
  const tickY = (value) => (measure.whole ? `${trimmed((100 / measure.whole) * value, 2)} %` : trimmed(value, 4));
  const told = series.length ? `${series.length} ${series.length === 1 ? "curve" : "curves"}; the table below has the values` : "no values yet";
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} against ${across.title}: ${told}` });
  for (const value of ticks(lowY, highY, false)) {
    svg.append(s("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tickY(value)));
  }
  for (const value of thinnedTicks(ticks(lowX, highX, across === ACROSS.round), width)) {
    svg.append(s("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }));
    svg.append(s("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, across.tick(value)));
  }
  svg.append(s("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  svg.append(s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, across.title));
  for (const each of series) {
    const drawn = thinned(each.points);
    const path = drawn.map(([a, b], index) => `${index ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    svg.append(s("path", { class: `curve c${each.slot}`, d: path, "stroke-dasharray": each.dash }));
    if (drawn.length <= 30) for (const [a, b] of drawn) svg.append(s("circle", { class: `dot c${each.slot}`, cx: x(a), cy: y(b), r: 2.6 }));
  }
  for (const each of series) {
    if (each.mark < 0) continue;
    const [a, b] = each.points[each.mark];
    svg.append(s("line", { class: "cross", x1: x(a), x2: x(a), y1: top, y2: height - bottom }));
    svg.append(s("circle", { class: `dot c${each.slot}`, cx: x(a), cy: y(b), r: 4.5 }));
  }
  if (!points.length) svg.append(s("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "No values yet."));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    let [best, distance] = [null, Infinity];
    for (const point of points) {
      const away = Math.abs(x(point[0]) - at);
      if (away < distance) [best, distance] = [point, away];
    }
    if (best) onRead(best[2]);
  });
  figure.replaceChildren(h("figcaption", null, title), svg);
}

function thinnedTicks(found, width) {
  const every = Math.ceil(found.length / Math.max(Math.floor(width / 70), 2));
  return found.filter((_, index) => index % every === 0);
}

function swatch(slot, dash) {
  return s("svg", { class: "swatch", viewBox: "0 0 28 10", "aria-hidden": "true" },
    s("path", { class: `curve c${slot}`, d: "M1 5L27 5", "stroke-dasharray": dash }));
}
