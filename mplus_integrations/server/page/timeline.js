// Timeline: when each source was written, or said if it was imported with its time, and each snapshot taken.

import { memory } from "./api.js";
import { $, h, latest } from "./dom.js";
import { clock, day, moment, plural } from "./words.js";

const MOST = 500;
const begin = latest();
let place;

export function start(where) {
  place = where;
}

export async function show() {
  const isLatest = begin();
  if (!(await place.exists())) {
    $("days").replaceChildren(h("p", { class: "empty" }, "Nothing has been written into this memory yet."));
    return;
  }
  const mine = memory(place.name());
  const [{ sources }, { snapshots }] = await Promise.all([mine.get("/sources"), mine.get("/snapshots")]);
  if (!isLatest()) return;
  const events = [...sources.flatMap(ofSource), ...snapshots.map(ofSnapshot)].sort((a, b) => b.time - a.time);
  const days = Map.groupBy(events.slice(0, MOST), (event) => day(event.time));
  const left = events.length - MOST;
  $("days").replaceChildren(
    ...(events.length ? [...days].map(([title, those]) => h("div", { class: "day" }, h("h3", {}, title), h("ol", {}, those.map(item))))
      : [h("p", { class: "empty" }, "Nothing has been written into this memory yet.")]),
    left > 0 ? h("p", { class: "quiet" }, `${plural(left, "older event")} not shown.`) : "");
}

function ofSource(source) {
  const size = plural(source.text_tokens, "text token"), said = Date.parse(source.metadata.time) / 1000;
  if (said) return [{ kind: "said", time: said, name: source.name, about: `${size}, written ${moment(source.first_written)}` }];
  const first = { kind: "written", time: source.first_written, name: source.name, about: size };
  if (source.last_written - source.first_written < 1) return [first];
  return [{ ...first, about: "" }, { kind: "added to", time: source.last_written, name: source.name, about: `${size} in all` }];
}

function ofSnapshot(one) {
  return { kind: "snapshot", time: one.created, name: one.label || one.id, about: "" };
}

function item(event) {
  return h("li", { class: event.kind === "snapshot" ? "snapshot" : "written" },
    h("time", { class: "quiet", datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)),
    h("span", {}, event.kind),
    h("span", { class: "what" }, event.name, " ", h("span", { class: "quiet small" }, event.about)));
}
