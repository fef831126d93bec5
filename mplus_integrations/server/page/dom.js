// Makes elements. Every text becomes a text node or an attribute: nothing is ever read as HTML.

export const $ = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A bar whose parts have a share of its width. */
export function part(kind, share) {
  const made = h("i", { class: kind });
  made.style.width = `${(100 * share).toFixed(2)}%`;
  return made;
}

/** Fills a table: names of columns (with "#" before those of numbers), and rows of cells. The keyboard stays where it was. */
export function fill(table, columns, rows, empty) {
  const head = columns.map((name) => name.startsWith("#")
    ? h("th", { scope: "col", class: "number" }, name.slice(1))
    : h("th", { scope: "col" }, name || h("span", { class: "unseen" }, "Actions")));
  const body = rows.length ? rows : [h("tr", {}, h("td", { colspan: columns.length, class: "empty" }, empty))];
  const focused = table.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  table.replaceChildren(h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
  if (focused) ([...table.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused) ?? table.parentElement).focus();
}

export function number(value) {
  return h("td", { class: "number" }, value);
}

/** Asks before something is done that cannot be undone. */
export function confirmed(title, text, action) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = action;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    const left = new AbortController();
    // Escape tells of itself at once, and of the dialog's end only later: who asks again meanwhile is asked again.
    const done = (event) => {
      if (event.type === "close" && dialog.open) return;
      left.abort();
      resolve(event.type === "close" && dialog.returnValue === "yes");
    };
    for (const type of ["cancel", "close"]) dialog.addEventListener(type, done, { signal: left.signal });
  });
}

export function tell(text) {
  $("alert").textContent = "";
  $("status").textContent = text;
}

export function complain(error) {
  if (error.name === "AbortError") return;
  $("status").textContent = "";
  $("alert").textContent = error.message;
}

/** Tells of each run whether it is still the latest one, so that a slow answer does not overwrite a newer one. */
export function latest() {
  let begun = 0;
  return () => {
    const mine = ++begun;
    return () => mine === begun;
  };
}

/** Runs work, once at a time; what goes wrong is told to the user. */
export function safely(work) {
  let runs = false;
  return async (event) => {
    event?.preventDefault?.();
    if (runs) return;
    runs = true;
    try {
      await work(event);
    } catch (error) {
      complain(error);
    } finally {
      runs = false;
    }
  };
}
