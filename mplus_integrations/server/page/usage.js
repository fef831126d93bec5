// Usage: bytes and latency over time, since the server started.

import { memory } from "./api.js";
import { chart } from "./chart.js";
import { $, fill, h, latest, number, safely } from "./dom.js";
import { bytes, clock, moment, seconds } from "./words.js";

const LATEST = 50;
const begin = latest();
let place;

export function start(where) {
  place = where;
  $("refresh").addEventListener("click", safely(show));
}

export async function show() {
  const isLatest = begin();
  const found = (await place.exists()) ? await memory(place.name()).get("/activity") : { acts: [], since: null };
  if (!isLatest()) return;
  const acts = found.acts;
  $("since").textContent = found.since ? `What was done with this memory since the server started, ${moment(found.since)}.` : "";
  const sizes = acts.filter((act) => act.nbytes !== null).map((act) => ({ x: act.time, y: act.nbytes }));
  chart($("bytes-chart"), [{ kind: "step", points: sizes }], bytes, "Bytes of the memory on disk over time");
  const answers = acts.filter((act) => act.first_text_seconds !== null);
  chart($("latency-chart"), [
    { kind: "first", mark: "●", label: "first text of an answer", points: answers.map((act) => ({ x: act.time, y: act.first_text_seconds })) },
    { kind: "whole", mark: "○", label: "whole operation", points: acts.map((act) => ({ x: act.time, y: act.seconds })) },
  ], seconds, "Seconds to the first text of answers, and to the end of operations, over time");
  fill($("acts"), ["Time", "Operation", "#First text", "#Whole", "#Bytes afterwards"], acts.slice(-LATEST).reverse().map((act) => h("tr", {},
    h("td", {}, clock(act.time, true)), h("th", { scope: "row" }, act.operation), number(seconds(act.first_text_seconds)),
    number(seconds(act.seconds)), number(act.nbytes === null ? "–" : bytes(act.nbytes)))), "Nothing was done with this memory yet.");
}
