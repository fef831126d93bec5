// The API of this server. The key stays in this tab, and goes nowhere else.

const KEY = "mplus.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.code = body.code ?? "";
  }
}

async function send(method, path, body, signal) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers, signal, body: isForm || body === undefined ? body : JSON.stringify(body),
      credentials: "omit", cache: "no-store", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Look whether it still runs.");
  }
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export async function call(method, path, body) {
  const answer = await send(method, path, body);
  return answer.status === 204 ? null : answer.json();
}

export const access = () => call("GET", "/v1/access");

/** The API of one memory. */
export function memory(name) {
  const at = (path) => `/v1/memories/${encodeURIComponent(name)}${path}`;
  return {
    get: (path = "") => call("GET", at(path)),
    post: (path, body) => call("POST", at(path), body),
    remove: (path = "") => call("DELETE", at(path)),
  };
}

/** Server-sent events as JSON, until the stream ends. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const one of parts) {
      const data = one.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/** An answer piece by piece: {reading}, {text}…, {done}. */
export async function* ask(model, name, messages, signal) {
  const body = { model, memory: name, messages, stream: true, passages: true, stream_options: { include_usage: true } };
  const answer = await send("POST", "/v1/chat/completions", body, signal);
  let begun = false;
  for await (const event of events(answer)) {
    if (event.error) throw new Problem(answer.status, { detail: event.error.message, code: event.error.code });
    const [choice] = event.choices;
    if (event.mplus && !begun && !choice?.finish_reason) {
      begun = true;
      yield { reading: event.mplus };
    }
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { done: event.mplus, reason: choice.finish_reason };
    if (event.usage) yield { usage: event.usage };
  }
}
