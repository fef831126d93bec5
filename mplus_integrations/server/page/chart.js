// A small chart of values over time; the table below it says the same.

import { h, svg } from "./dom.js";
import { clock } from "./words.js";

const HEIGHT = 200, LEFT = 62, RIGHT = 12, TOP = 10, BOTTOM = 24;

/** A round number at least as large as a value: 1, 2 or 5 times a power of ten, or of 1024 for bytes. */
function ceiling(value, isBytes) {
  const base = isBytes ? 1024 ** Math.floor(Math.log(Math.max(value, 1)) / Math.log(1024)) : 1;
  const scaled = value / base || 1e-3;
  const power = 10 ** Math.floor(Math.log10(scaled));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= scaled * 0.9999) * base;
}

export function chart(place, series, written, title) {
  const points = series.flatMap((one) => one.points);
  if (!points.length) {
    place.replaceChildren(h("p", { class: "empty" }, "Nothing to show yet."));
    return;
  }
  const width = Math.max(place.clientWidth, 260);
  const times = points.map((point) => point.x);
  const first = Math.min(...times), last = Math.max(...times, first + 1);
  const top = ceiling(Math.max(...points.map((point) => point.y)), series[0].kind === "step");
  const x = (time) => LEFT + ((time - first) / (last - first)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, 0.5, 1].flatMap((share) => line(width, y(share * top), written(share * top)));
  const ends = [[first, "start"], [last, "end"]].map(([time, anchor]) =>
    svg("text", { x: x(time), y: HEIGHT - 6, "text-anchor": anchor }, clock(time, last - first < 600)));
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": title },
    ...parts, ...ends, ...series.flatMap((one) => drawn(one, x, y)));
  const keys = series.filter((one) => one.label).map((one) =>
    h("span", {}, h("i", { class: one.kind, "aria-hidden": "true" }, one.mark), one.label));
  place.replaceChildren(drawing, h("div", { class: "key" }, keys));
}

function line(width, at, text) {
  return [svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }),
    svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, text)];
}

function drawn(one, x, y) {
  if (one.kind !== "step") {
    return one.points.map((point) => svg("circle", { class: one.kind, cx: x(point.x), cy: y(point.y), r: 3 }));
  }
  const steps = one.points.map((point, n) => (n ? `H${x(point.x)}V${y(point.y)}` : `M${x(point.x)} ${y(point.y)}`));
  const end = one.points.at(-1);
  return [svg("path", { class: "line", d: steps.join("") }), svg("circle", { class: "first", cx: x(end.x), cy: y(end.y), r: 3 })];
}
