// The frame of the page: key, choice of memory, views, theme.

import { access, call, key, Problem } from "./api.js";
import * as chat from "./chat.js";
import { $, complain, h, safely, tell } from "./dom.js";
import * as memory from "./memories.js";
import * as snapshots from "./snapshots.js";
import * as timeline from "./timeline.js";
import * as usage from "./usage.js";

const views = { chat, memory, timeline, snapshots, usage };
const CHOSEN = "mplus.memory", THEME = "mplus.theme";
let about = null, names = [], chosen = sessionStorage.getItem(CHOSEN) ?? "";

/** Where the user is: what the views ask for. */
const place = { name: () => chosen, model: () => about.model, exists, choose, refresh };

async function exists() {
  await listed();
  return names.includes(chosen);
}

async function listed() {
  names = (await call("GET", "/v1/memories")).memories.map((one) => one.name);
}

async function refresh() {
  await listed();
  const all = [...new Set([about.memory, ...(about.opens ?? []), ...names])].sort();
  if (chosen && !all.includes(chosen)) {
    // Its conversation stays with it: another memory must not be told what was said to this one.
    tell(`The memory ${chosen} is gone; this is ${about.memory}.`);
    chat.anew();
  }
  if (!all.includes(chosen)) chosen = about.memory;
  $("memory-name").replaceChildren(...all.map((name) => h("option", { value: name, selected: name === chosen }, name)));
  $("memory-name").value = chosen;
}

async function choose(name) {
  chosen = name;
  sessionStorage.setItem(CHOSEN, name);
  tell("");
  chat.anew();
  await refresh();
  await show();
}

const current = () => views[location.hash.slice(1)] ? location.hash.slice(1) : "chat";

async function show(moved = false) {
  const now = current();
  for (const name of Object.keys(views)) $(`view-${name}`).hidden = name !== now;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${now}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (moved) $(`${now}-title`).focus();
  if (!about) return;
  try {
    await views[now].show();
  } catch (error) {
    complain(error);
  }
}

async function enter() {
  try {
    about = await access();
  } catch (error) {
    about = null;
    if (error instanceof Problem && error.status === 401) {
      askKey(key.get() ? error.message : "This server needs an API key. It stays in this tab and is gone when the tab is closed.");
      return;
    }
    if (error instanceof Problem && error.code === "not_ready") {
      tell("The model is being loaded …");
      setTimeout(enter, 1000);
      return;
    }
    throw error;
  }
  $("model-name").textContent = about.model;
  $("alert").textContent = "";
  await refresh();
  await show();
}

function askKey(text) {
  $("key-hint").textContent = text;
  $("key").value = key.get();
  $("key-dialog").returnValue = "cancel";
  $("key-dialog").showModal();
}

function keyGiven() {
  const { returnValue } = $("key-dialog");
  const typed = $("key").value.trim();
  $("key").value = "";
  if (returnValue === "cancel") return;
  key.set(returnValue === "use" ? typed : "");
  chosen = "";
  sessionStorage.removeItem(CHOSEN);
  chat.anew();
  enter().catch(complain);
}

async function made() {
  const name = $("new-name").value.trim();
  $("new-name").value = "";
  if ($("name-dialog").returnValue !== "make" || !name) return;
  await call("POST", "/v1/memories", { name });
  await choose(name);
  tell(`Made the memory ${name}.`);
}

function theme(next) {
  const dark = next ? next === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (next) {
    document.documentElement.dataset.theme = next;
    sessionStorage.setItem(THEME, next);
  }
  $("theme-button").textContent = dark ? "Light" : "Dark";
  $("theme-button").setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
  return dark;
}

for (const view of Object.values(views)) view.start(place);
theme(sessionStorage.getItem(THEME));
$("theme-button").addEventListener("click", () => theme($("theme-button").textContent.toLowerCase()));
$("memory-name").addEventListener("change", (event) => choose(event.target.value).catch(complain));
$("new-memory").addEventListener("click", () => {
  $("name-dialog").returnValue = "cancel";
  $("name-dialog").showModal();
});
$("name-dialog").addEventListener("close", safely(made));
$("key-button").addEventListener("click", () => askKey("It stays in this tab and is gone when the tab is closed."));
$("key-dialog").addEventListener("close", keyGiven);
addEventListener("hashchange", () => {
  if (location.hash.slice(1) in views) show(true);
});
show();
enter().catch(complain);
