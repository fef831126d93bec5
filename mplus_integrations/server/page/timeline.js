// Timeline: when each source was written, or said if it came with its time, and each snapshot taken.

import { memory } from "./api.js";
import { $, complain, h, latest } from "./dom.js";
import * as times from "./times.js";
import { clock, day, moment, plural } from "./words.js";

const MOST = 500;
const begin = latest();
let place, period;

export function start(where) {
  place = where;
  period = times.period("timeline-times", () => show().catch(complain));
  $("period").addEventListener("submit", (event) => event.preventDefault());
}

export async function show() {
  const isLatest = begin();
  if (!(await place.exists())) {
    $("days").replaceChildren(h("p", { class: "empty" }, "Nothing has been written into this memory yet."));
    return;
  }
  const mine = memory(place.name()), chosen = period();
  const [{ sources }, { snapshots }] = await Promise.all([mine.get(times.during("/sources", chosen)), mine.get("/snapshots")]);
  if (!isLatest()) return;
  $("alert").textContent = "";
  const taken = snapshots.filter((one) => isWithin(one.created * 1000, chosen));
  const events = [...sources.flatMap(ofSource), ...taken.map(ofSnapshot)].sort((a, b) => b.time - a.time);
  const none = Object.keys(chosen).length ? "Nothing was said in that time." : "Nothing has been written into this memory yet.";
  const days = Map.groupBy(events.slice(0, MOST), (event) => day(event.time));
  const left = events.length - MOST;
  $("days").replaceChildren(
    ...(events.length ? [...days].map(([title, those]) => h("div", { class: "day" }, h("h3", {}, title), h("ol", {}, those.map(item))))
      : [h("p", { class: "empty" }, none)]),
    left > 0 ? h("p", { class: "quiet" }, `${plural(left, "older event")} not shown.`) : "");
}

function isWithin(time, { since, until, as_of }) {
  return (!since || time >= Date.parse(since)) && [until, as_of].every((end) => !end || time <= Date.parse(end));
}

function ofSource(source) {
  const size = plural(source.text_tokens, "text token"), written = `${size}, written ${moment(source.first_written)}`;
  const { earliest, latest: last, first_written } = source, noted = Date.parse(source.metadata.time) / 1000;
  if (Math.abs(earliest - first_written) >= 1 || Math.abs(last - source.last_written) >= 1) {
    const begin = { kind: "said", time: earliest, name: source.name, about: written };
    return last - earliest < 1 ? [begin] : [begin, { ...begin, kind: "last said", time: last }];
  }
  if (noted) return [{ kind: "said", time: noted, name: source.name, about: written }];
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
