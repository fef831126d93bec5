// Numbers, sizes and times as people read them.

const units = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (value) => value.toLocaleString("en");

export function bytes(value) {
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export const percent = (value) => `${(100 * value).toFixed(value < 0.1 && value > 0 ? 1 : 0)}%`;

const date = (time) => new Date(time * 1000);

export const moment = (time) => date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

export const day = (time) => date(time).toLocaleDateString("en-GB", { dateStyle: "full" });

export const clock = (time, fine = false) =>
  date(time).toLocaleTimeString("en-GB", { timeStyle: fine ? "medium" : "short" });

const steps = [[60, "second"], [60, "minute"], [24, "hour"], [30, "day"], [12, "month"], [Infinity, "year"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function ago(time) {
  let value = time - Date.now() / 1000;
  for (const [size, unit] of steps) {
    if (Math.abs(value) < size) return relative.format(Math.round(value), unit);
    value /= size;
  }
  return moment(time);
}

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
