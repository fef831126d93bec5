// Snapshots: take, compare, roll back (and undo that), discard.

import { memory } from "./api.js";
import { $, complain, confirmed, fill, h, latest, safely, tell } from "./dom.js";
import { ago, moment } from "./words.js";

const begin = latest();
let place;

export function start(where) {
  place = where;
  $("take").addEventListener("submit", safely(take));
}

export async function show() {
  $("difference").replaceChildren();
  await refresh();
}

async function refresh() {
  const isLatest = begin();
  const found = (await place.exists()) ? (await memory(place.name()).get("/snapshots")).snapshots : [];
  if (!isLatest()) return;
  fill($("snapshots"), ["Label", "Taken", "Id", ""], found.reverse().map(row), "No snapshots yet.");
}

const again = () => refresh().catch(complain);

function row(one) {
  const title = one.label || one.id, named = (text) => ({
    type: "button", class: "tight", "aria-label": `${text} ${title}`, "data-focus": `${text} ${one.id}`,
  });
  return h("tr", {},
    h("th", { scope: "row" }, one.label || h("span", { class: "quiet" }, "no label")),
    h("td", {}, h("time", { datetime: new Date(one.created * 1000).toISOString(), title: moment(one.created) }, ago(one.created))), h("td", {}, h("code", {}, one.id)),
    h("td", { class: "actions" },
      h("button", { ...named("Compare with"), click: safely(() => compare(one.id, title)) }, "Compare"),
      h("button", { ...named("Roll back to"), click: safely(() => rollBack(one.id, title)) }, "Roll back"),
      h("button", { ...named("Discard"), class: "tight danger", click: safely(() => discard(one.id, title)) }, "Discard")));
}

async function take() {
  const label = $("label").value.trim();
  await memory(place.name()).post("/snapshots", { label });
  $("take").reset();
  tell(label ? `Took the snapshot ${label}.` : "Took a snapshot.");
  again();
}

async function compare(id, title) {
  const found = await memory(place.name()).get(`/diff?before=${encodeURIComponent(id)}`);
  told(`Since ${title}`, found);
}

async function rollBack(id, title) {
  const text = `The memory returns to “${title}”. What was written since is taken away; this can be undone. What was forgotten does not come back.`;
  if (!(await confirmed("Roll back?", text, "Roll back"))) return;
  const { undo, ...found } = await memory(place.name()).post("/rollback", { snapshot: id });
  again();
  tell(`Rolled back to ${title}.`);
  const back = h("button", { type: "button", click: safely(async () => {
    await memory(place.name()).post("/rollback", { snapshot: undo });
    $("difference").replaceChildren();
    again();
    tell("The rollback was undone.");
  }) }, "Undo");
  told(`Rolled back to ${title}`, found, back);
}

async function discard(id, title) {
  if (!(await confirmed("Discard this snapshot?", `“${title}” can then not be returned to.`, "Discard"))) return;
  await memory(place.name()).remove(`/snapshots/${encodeURIComponent(id)}`);
  again();
  tell(`Discarded ${title}.`);
}

function told(title, { added, removed, changed }, button) {
  const part = (name, names) => names.length
    ? h("div", {}, h("h4", {}, `${name} (${names.length})`), h("ul", {}, names.map((one) => h("li", {}, one)))) : null;
  const parts = [part("Added", added), part("Removed", removed), part("Changed", changed)];
  const none = parts.every((one) => one === null) ? h("p", {}, "No source is different.") : null;
  $("difference").replaceChildren(h("div", { class: "panel" },
    h("div", { class: "row spread" }, h("h3", {}, title), button ?? null), none, h("div", { class: "halves" }, parts)));
}
