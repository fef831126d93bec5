// Memory: what it holds by pool, its sources, search, writing, forgetting and pinning; and all memories.

import { call, memory } from "./api.js";
import { $, complain, confirmed, fill, h, latest, number, part, safely, tell } from "./dom.js";
import * as times from "./times.js";
import { ago, bytes, count, moment, plural } from "./words.js";

const AT_ONCE = 200;
const POOLS = [["short", "Short-term", "short_term"], ["pending", "Pending", "pending"], ["long", "Long-term", "long_term"]];
const begin = latest();
let place, period, sources = [], shown = AT_ONCE;

export function start(where) {
  place = where;
  period = times.period("search-times");
  $("search").addEventListener("submit", safely(search));
  $("write").addEventListener("submit", safely(write));
  $("filter").addEventListener("input", () => list());
}

export async function show() {
  $("found").replaceChildren();
  shown = AT_ONCE;
  await refresh();
}

async function refresh() {
  const isLatest = begin(), name = place.name(), mine = memory(name);
  const { memories } = await call("GET", "/v1/memories");
  const stored = memories.find((one) => one.name === name);
  const [stats, held] = stored ? await Promise.all([mine.get(), mine.get("/sources")]) : [null, { sources: [] }];
  if (!isLatest()) return;
  sources = held.sources.reverse();
  listMemories(memories);
  if (stats) overview(stats, stored);
  else $("overview").replaceChildren(h("p", { class: "empty" }, "Nothing has been written into this memory yet."));
  list();
}

/** Shows what is new without making the next click wait. */
const again = () => refresh().catch(complain);

function overview(stats, stored) {
  const pools = POOLS.map(([kind, label, name]) => [kind, label, stats[name].tokens, stats[name].nbytes]);
  pools.push(["tail", "Waiting for a full chunk", stats.tail_tokens, null]);
  const all = Math.max(pools.reduce((sum, [, , tokens]) => sum + tokens, 0), 1);
  const bar = h("div", { class: "pools", "aria-hidden": "true" },
    pools.filter(([, , tokens]) => tokens).map(([kind, , tokens]) => part(kind, tokens / all)));
  const fact = (label, value, kind) => h("div", {}, h("dt", {}, kind ? h("i", { class: kind }) : null, label), h("dd", {}, value));
  const tokens = pools.map(([kind, label, held, size]) =>
    fact(label, `${count(held)} tokens${size === null ? "" : ` · ${bytes(size)}`}`, kind));
  $("overview").replaceChildren(h("div", { class: "panel" }, bar, h("dl", { class: "facts" }, tokens,
    fact("Sources", count(stats.num_sources)), fact("Text written", `${count(stats.text_tokens)} tokens`),
    fact("Oldest age", `${count(stats.oldest_age)} tokens`), fact("In memory", bytes(stats.nbytes)),
    fact("On disk", stored ? bytes(stored.nbytes) : "–"), fact("Snapshots", count(stats.num_snapshots)))));
}

function list() {
  const part = $("filter").value.toLowerCase();
  const found = sources.filter((source) => source.name.toLowerCase().includes(part));
  const columns = ["Source", "#Text tokens", "#Short-term", "#Pending", "#Long-term", "#Age", "Written", ""];
  fill($("sources"), columns, found.slice(0, shown).map(row), sources.length ? "No source has such a name." : "No sources yet.");
  const left = found.length - shown;
  $("more-sources").replaceChildren(...(left > 0
    ? [`${plural(left, "more source")}. `, h("button", { type: "button", class: "tight", click: more }, "Show more")] : []));
}

function more() {
  shown += AT_ONCE;
  list();
}

function row(source) {
  const name = source.name, { short_term, pending, long_term } = source.tokens;
  const label = (text, focus = text) => ({
    type: "button", class: "tight", "aria-label": `${text} ${name}`, "data-focus": `${focus} ${name}`,
  });
  return h("tr", {},
    h("th", { scope: "row" }, name, " ", source.pinned ? h("span", { class: "tag" }, "pinned") : null),
    number(count(source.text_tokens)), number(count(short_term + source.tail_tokens)), number(count(pending)),
    number(count(long_term)), number(count(source.oldest_age)),
    h("td", {}, h("time", { datetime: new Date(source.last_written * 1000).toISOString(),
      title: moment(source.last_written) }, ago(source.last_written))),
    h("td", { class: "actions" },
      h("button", { ...label("Show the text of"), "aria-expanded": "false", click: safely((e) => text(e, name)) }, "Text"),
      h("button", { ...label(source.pinned ? "Unpin" : "Pin", "pin"), click: safely(() => pin(source)) },
        source.pinned ? "Unpin" : "Pin"),
      h("button", { ...label("Forget"), class: "tight danger", click: safely(() => forget(name)) }, "Forget")));
}

async function text(event, name) {
  const button = event.currentTarget, here = button.closest("tr");
  if (button.getAttribute("aria-expanded") === "true") {
    here.nextElementSibling.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const { sources: [source] } = await memory(place.name()).get(`/sources?texts=true&source=${encodeURIComponent(name)}`);
  const said = source.texts.length ? source.texts.join("\n\n") : "Its text was not kept beside the memory.";
  const about = Object.keys(source.metadata).length ? `\n\n${JSON.stringify(source.metadata, null, 1)}` : "";
  here.after(h("tr", {}, h("td", { class: "texts", colspan: here.cells.length },
    h("div", {}, said, h("span", { class: "quiet" }, about)))));
  button.setAttribute("aria-expanded", "true");
}

async function pin(source) {
  await memory(place.name()).post(source.pinned ? "/unpin" : "/pin", { source: source.name });
  tell(`${source.pinned ? "Unpinned" : "Pinned"} ${source.name}.`);
  again();
}

async function forget(name) {
  const text = `“${name}” is removed from the memory and from all of its snapshots, for good.`;
  if (!(await confirmed("Forget this source?", text, "Forget"))) return;
  const { memory_tokens } = await memory(place.name()).post("/forget", { source: name });
  tell(`Forgot ${name}: ${plural(memory_tokens, "memory token")}.`);
  again();
}

async function search() {
  const query = $("query").value.trim();
  if (!query) return;
  const { found } = await memory(place.name()).post("/search", { query, limit: 8, ...period() });
  const none = h("p", { class: "empty" }, "Nothing was found.");
  $("found").replaceChildren(...(found.length ? found.map((one) => h("div", { class: "found" },
    h("strong", {}, one.source), " ", h("span", { class: "tag" }, `relevance ${one.relevance.toFixed(2).replace("-0.00", "0.00")}`),
    h("p", {}, one.texts.join("\n").slice(0, 600) || "Its text was not kept.")))
    : [none]));
}

async function write() {
  const text = $("text").value, source = $("source-name").value.trim() || null, files = [...$("upload").files];
  if (!text.trim() && !files.length) throw new Error("There is nothing to remember: type a text, or choose text files.");
  const mine = memory(place.name()), day = $("said-on").value, dated = $("dated").checked;
  if (dated && !day) throw new Error("There is no date to see: say when it was said.");
  const said = day ? { at: times.moment(day), dated } : {};
  const reports = [];
  if (text.trim()) reports.push(await mine.post("/write", { text, source, ...said }));
  if (files.length) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name);
    for (const [name, value] of Object.entries(said)) form.append(name, value);
    reports.push(await mine.post("/files", form));
  }
  tell(`Remembered ${reports.flatMap((report) => report.sources).join(", ")}.`);
  $("write").reset();
  place.refresh().catch(complain);
  again();
}

function listMemories(memories) {
  fill($("memories"), ["Memory", "#On disk", "Saved", "Used", "Encrypted"], memories.map((one) => h("tr",
    { "aria-current": one.name === place.name() ? "true" : null },
    h("th", { scope: "row" }, h("button", { type: "button", class: "plain", click: () => place.choose(one.name) }, one.name)),
    number(bytes(one.nbytes)), h("td", {}, h("time", {}, moment(one.saved))), h("td", {}, h("time", {}, ago(one.used))),
    h("td", {}, one.encrypted ? "yes" : "no"))), "There are no memories yet.");
}
