// Days that the user chooses, in the zone of this browser: when something was said, or a period to look at.

import { $, h } from "./dom.js";

const PERIOD = [["since", "Said from"], ["until", "Said up to"], ["as_of", "As it was on"]];

/** Fills an element with fields for a period. Returns what asks for it, of fields that are filled in: {since, until, as_of}. */
export function period(id, changed = null) {
  const fields = PERIOD.map(([name, label]) => {
    const field = h("input", { type: "date", id: `${id}-${name}`, max: "9999-12-31", ...(changed && { change: changed }) });
    return [name, label, field];
  });
  const clear = h("button", { type: "button", class: "tight", click: () => {
    for (const [, , field] of fields) field.value = "";
    changed?.();
  } }, "Any time");
  $(id).append(h("legend", {}, "Only what was said"), h("div", { class: "row" },
    fields.map(([, label, field]) => h("div", {}, h("label", { for: field.id }, label), field)), clear));
  return () => Object.fromEntries(fields.filter(([, , field]) => field.value)
    .map(([name, , field]) => [name, moment(field.value, name !== "since")]));
}

/** The beginning of a day of a date field, or its end, with this browser's offset. */
export function moment(day, isEnd = false) {
  const time = `${day}T${isEnd ? "23:59:59.999" : "00:00:00"}`;
  const minutes = -new Date(time).getTimezoneOffset(), two = (value) => String(Math.trunc(value)).padStart(2, "0");
  return `${time}${minutes < 0 ? "-" : "+"}${two(Math.abs(minutes) / 60)}:${two(Math.abs(minutes) % 60)}`;
}

/** A path with what was chosen. */
export const during = (path, chosen) => {
  const query = new URLSearchParams(chosen).toString();
  return query ? `${path}?${query}` : path;
};
