"use strict";

const $ = (id) => document.getElementById(id);
const asked = { key: null, model: null, messages: [], stop: null };

// Requests.

async function call(method, path, body, signal) {
  const headers = {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  if (answer.status === 401) $("access").hidden = false;
  let message = `${answer.status} ${answer.statusText}`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* no JSON: what HTTP says is all there is */ }
  throw new Error(message);
}

const place = (key, action = "") => `/v1/memories/${encodeURIComponent(key)}${action}`;

function tell(id, text, wrong = false) {
  $(id).textContent = text;
  $(id).classList.toggle("wrong", wrong);
}

async function during(form, status, text, work) {
  const buttons = [...form.querySelectorAll("button:not(#stop)")];
  for (const button of buttons) button.disabled = true;
  tell(status, text);
  try {
    await work();
    if ($(status).textContent === text) tell(status, "");
  } catch (error) {
    tell(status, error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

// Writing.

function bytes(count) {
  const units = ["bytes", "KB", "MB", "GB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function show(text, written) {
  $("facts").hidden = false;
  const size = new TextEncoder().encode(text).length;
  $("fact-text").textContent = `${bytes(size)}, ${written.tokens} tokens: forgotten`;
  $("fact-state").textContent = bytes(written.state_bytes);
  const measured = "cache_bytes" in written;
  for (const id of ["fact-cache", "fact-value"]) $(id).parentElement.hidden = !measured;
  if (!measured) return;
  const share = written.state_bytes / written.cache_bytes;
  $("fact-cache").textContent = `${bytes(written.cache_bytes)}; the memory is ${(100 * share).toPrecision(2)} % of it`;
  const value = written.value_kept;
  $("fact-value").textContent = value === null ? "cannot be said of this text" : `${Math.round(100 * value)} %`;
  $("fact-bar").style.width = `${100 * Math.min(1, Math.max(0, value ?? 0))}%`;
}

$("write").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  const text = $("text").value;
  const appends = event.submitter && event.submitter.value === "append";
  during(event.target, "write-status", "Writing…", async () => {
    const answer = appends
      ? await call("POST", place(key, "/append"), { text })
      : await call("PUT", place(key), { text, model: $("model").value, measure: $("measure").checked });
    const written = await answer.json();
    show(text, written);
    $("text").value = "";
    choose(written);
    await list();
  });
});

// Memories.

function choose(memory) {
  if (asked.key !== memory.id) restart();
  asked.key = memory.id;
  asked.model = memory.model;
  $("asked").textContent = memory.id;
  $("key").value = memory.id;
  for (const name of document.querySelectorAll("#memories .name")) {
    name.setAttribute("aria-pressed", String(name.textContent === asked.key));
  }
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

async function list() {
  const { data, has_more } = await (await call("GET", "/v1/memories")).json();
  const rows = data.map((memory) => {
    const row = document.createElement("li");
    const name = element("button", "name", memory.id);
    name.setAttribute("aria-pressed", String(memory.id === asked.key));
    name.addEventListener("click", () => choose(memory));
    const remove = element("button", "", "Delete");
    remove.setAttribute("aria-label", `Delete ${memory.id}`);
    remove.addEventListener("click", () => during(row, "list-status", "", async () => {
      await call("DELETE", place(memory.id));
      if (asked.key === memory.id) {
        asked.key = null;
        $("asked").textContent = "nothing yet";
        restart();
      }
      await list();
    }));
    row.append(name, element("small", "", bytes(memory.stored_bytes)), remove);
    return row;
  });
  $("memories").replaceChildren(...rows);
  tell("list-status", has_more ? "These are the first; there are more." : rows.length ? "" : "None yet.");
}

// Asking.

function restart() {
  asked.messages = [];
  $("log").replaceChildren();
}

function say(role, text) {
  const line = element("li", role, text);
  $("log").append(line);
  $("log").scrollTop = $("log").scrollHeight;
  return line;
}

async function* pieces(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk.choices[0].delta.content ?? "";
    }
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = { role: "user", content: $("question").value };
  const before = $("chat").checked ? asked.messages : [];
  const said = { role: "assistant", content: "" };
  during(event.target, "ask-status", "", async () => {
    if (asked.key === null) throw new Error("Write a text first, or choose a memory.");
    asked.stop = new AbortController();
    $("stop").hidden = false;
    say("user", message.content);
    const line = say("assistant", "…");
    try {
      const messages = [...before, message];
      const body = { model: asked.model, memory: asked.key, stream: true, messages };
      const answer = await call("POST", "/v1/chat/completions", body, asked.stop.signal);
      $("question").value = "";
      for await (const piece of pieces(answer)) {
        said.content += piece;
        line.textContent = said.content || "…";
        $("log").scrollTop = $("log").scrollHeight;
      }
    } finally {
      $("stop").hidden = true;
      if (!said.content.trim()) {
        line.textContent = "The model said nothing.";
        line.classList.add("empty");
      } else {
        asked.messages.push(message, said);
      }
    }
  });
});

$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => asked.stop.abort());
$("new").addEventListener("click", restart);

// Access.

async function begin() {
  try {
    const { data } = await (await call("GET", "/v1/models")).json();
    $("model").replaceChildren(...data.map((model) => new Option(model.id, model.id)));
    $("which").hidden = data.length < 2;
    $("access").hidden = true;
    await list();
  } catch (error) {
    tell("list-status", error.message, true);
  }
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  begin();
});

begin();
