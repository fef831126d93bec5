// Chat: a conversation, and beside it what the answer reads while it is made.

import { ask } from "./api.js";
import { $, complain, h, part } from "./dom.js";
import { percent, plural, seconds } from "./words.js";

const SHOWN = 5;
let place, messages = [], going = null;

export function start(where) {
  place = where;
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send().catch(complain);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  $("stop").addEventListener("click", () => going?.abort());
  $("anew").addEventListener("click", anew);
}

export function show() {
  $("question").focus({ preventScroll: true });
}

/** Begins another conversation, as a change of memory does. */
export function anew() {
  going?.abort();
  messages = [];
  $("turns").replaceChildren();
  $("no-turns").hidden = false;
  $("reads").replaceChildren(h("p", { class: "empty" }, "Sources and sentences appear here while an answer is made."));
}

async function send() {
  const question = $("question").value.trim();
  if (!question || going) return;
  $("no-turns").hidden = true;
  $("question").value = "";
  $("alert").textContent = "";
  const asked = [...messages, { role: "user", content: question }];
  turn("asked", "You", question);
  const answer = turn("answered", place.name(), "");
  if (await follow(answer, asked)) messages = [...asked, { role: "assistant", content: answer.said.textContent }];
  else if (!answer.said.textContent) $("question").value = question;
}

function turn(kind, who, text) {
  const said = h("div", { class: "said" }, text), about = h("div", { class: "about" });
  const item = h("li", { class: `turn ${kind}` }, h("div", { class: "who" }, who), said, about);
  $("turns").append(item);
  item.scrollIntoView({ block: "nearest" });
  return { item, said, about };
}

/** Shows an answer as it grows; returns whether it is whole. */
async function follow(answer, asked) {
  const begun = performance.now();
  const left = (going = new AbortController());
  let reading = null, done = null, reason = "", first = null;
  answer.item.setAttribute("aria-busy", "true");
  busy(true);
  reads(null);
  try {
    for await (const piece of ask(place.model(), place.name(), asked, left.signal)) {
      if (piece.reading) reads((reading = piece.reading));
      if (piece.text) {
        first ??= (performance.now() - begun) / 1000;
        answer.said.append(piece.text);
        answer.item.scrollIntoView({ block: "nearest" });
      }
      if (piece.done) [done, reason] = [piece.done, piece.reason];
    }
    if (!reading) reads(done);
    return done !== null;
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    return false;
  } finally {
    going = going === left ? null : going;
    busy(false);
    about(answer, reading ?? done, done, reason, first);
    answer.item.setAttribute("aria-busy", "false");
  }
}

function busy(is) {
  $("stop").disabled = !is;
  $("ask").querySelector("button.main").disabled = is;
}

function about(answer, reading, done, reason, first) {
  const facts = [];
  if (reading) {
    const button = h("button", { type: "button", class: "plain", click: () => reads(reading) },
      reading.used_memory ? `Read ${plural(reading.recalled.length, "source")}` : "Answered without memory");
    facts.push(button);
  }
  if (done) facts.push(`confidence ${percent(done.confidence)}${done.is_calibrated ? "" : " (not calibrated)"}`);
  if (first !== null) facts.push(`first text after ${seconds(first)}`);
  if (reason === "length") facts.push("cut at the most tokens");
  if (!done) facts.push("stopped");
  answer.about.replaceChildren(...facts.map((fact) => h("span", {}, fact)));
}

/** Shows what an answer reads. */
function reads(reading) {
  if (!reading) {
    $("reads").replaceChildren(h("p", { class: "empty", role: "status" }, "Reading…"));
    return;
  }
  const found = reading.recalled.map((one) => source(one, reading.passages ?? []));
  const none = h("p", { class: "empty" }, "No memory was read for this answer.");
  const total = reading.prefix_tokens ? `${plural(reading.prefix_tokens, "memory token")} before the prompt.` : "";
  $("reads").replaceChildren(...(found.length ? found : [none]), h("p", { class: "quiet small" }, total));
}

function source(one, passages) {
  const mine = passages.filter((passage) => passage.source === one.source && passage.memory === one.memory);
  const where = { short_term: "short-term", long_term: "recalled", both: "short-term and recalled" }[one.pool];
  const other = one.memory === place.name() ? null : h("span", { class: "tag" }, `memory ${one.memory}`);
  const newer = one.newer_than.length
    ? h("p", { class: "small quiet" }, `Newer than ${one.newer_than.join(", ")}, which says something about the same.`)
    : null;
  return h("article", { class: "read" },
    h("header", {}, h("h4", {}, one.source), h("span", { class: "number" }, percent(one.share))),
    h("div", { class: "share", "aria-hidden": "true" }, part("", one.share)),
    h("div", { class: "row" }, h("span", { class: "tag" }, where), other),
    newer, quotes(mine));
}

function quotes(passages) {
  const all = passages.flatMap((passage) => passage.sentences.map((text) => ({ text, best: passage.relevance > 0 })));
  if (!all.length) return null;
  const quote = (sentences) => h("blockquote", { class: sentences[0].best ? "best" : null },
    sentences.map((sentence) => h("p", {}, sentence.text)));
  const more = all.slice(SHOWN);
  return [quote(all.slice(0, SHOWN)),
    more.length ? h("details", {}, h("summary", {}, `${plural(more.length, "more sentence")}`), quote(more)) : null];
}
