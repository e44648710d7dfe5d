// What the pages share. Whatever comes from a model or a person is put into the page as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** Makes an element: `make("p", {class: "text"}, "words", child)`; functions among the attributes are listeners. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SHORTCUTS = { "←": "ArrowLeft", "→": "ArrowRight", Esc: "Escape", "Ctrl+Enter": "Control+Enter" };

/** Makes a button with the key that does the same. */
export function button(text, key, press, attributes = {}) {
  const shown = key ? make("kbd", { "aria-hidden": "true" }, key) : null;
  const shortcut = SHORTCUTS[key] || key || null;
  return make("button", { type: "button", click: press, "aria-keyshortcuts": shortcut, ...attributes }, text, shown);
}

export function say(text) {
  $("status").textContent = text;
}

export const LARGEST = 250 * 1024; // bytes of a request, a little less than the server takes
export const bytesOf = (text) => new TextEncoder().encode(text).length;
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** What the server says is wrong; sending the same again would not help. */
export class Refused extends Error {}

/** Says what was refused; any other error is a mistake of this page and is thrown again. */
export function sayRefused(error, before = "") {
  if (!(error instanceof Refused)) throw error;
  say(before + error.message);
}

function offline(text) {
  $("offline").textContent = text;
  $("offline").hidden = !text;
}

async function refusal(response) {
  if (response.status === 401 && document.body.dataset.page !== "login") {
    location.reload(); // the password is asked for again; what was not sent is kept
    await new Promise(() => {}); // until then nothing is to be done about the refusal
  }
  let text = `The server answers ${response.status}.`;
  try {
    text = (await response.json()).error || text;
  } catch { /* no JSON */ }
  return new Refused(text);
}

/** Returns a name that nothing else has, in the form of the server's own tickets. */
export function newTicket() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Sends JSON, again and again until the server is there: everything that is sent by this may come twice. */
export async function send(path, values) {
  const body = values === undefined ? undefined : JSON.stringify(values);
  if (body && bytesOf(body) > LARGEST) throw new Refused("That is too much at once.");
  const request = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body };
  for (let wait = 500; ; wait = Math.min(wait * 1.5, 5000)) {
    let response;
    let found;
    try {
      response = await fetch(path, request);
      if (response.ok) found = await response.json(); // which a connection that breaks can cut as well
    } catch {
      offline("The server cannot be reached. Nothing is lost: this page tries again until it is back.");
      await pause(wait);
      continue;
    }
    if (response.status >= 500) {
      offline(`The server has a problem (${response.status}); see its terminal. This page tries again.`);
      await pause(wait);
      continue;
    }
    offline("");
    if (!response.ok) throw await refusal(response);
    return found;
  }
}

/** Sends JSON once and calls `take` with each object of the answer, as it comes. */
export async function stream(path, values, take, signal) {
  const body = JSON.stringify(values);
  if (bytesOf(body) > LARGEST) throw new Refused("That is too much at once.");
  const headers = { "content-type": "application/json" };
  const response = await fetch(path, { method: "POST", headers, body, signal });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Refused(event.error);
      take(event);
    }
  }
}

/** Calls the function of a pressed key, unless somebody is writing. */
export function keys(functions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.shiftKey && event.key.length > 1) return; // Shift+Left; but French keyboards type digits with Shift
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const press = functions[event.key] || functions[event.key.toLowerCase()];
    if (!press) return;
    event.preventDefault();
    press();
  });
}

/** A value that this tab keeps when it is loaded again, and that no other tab sees. */
export const kept = {
  get(name, otherwise = null) {
    try {
      return JSON.parse(sessionStorage.getItem(`${document.body.dataset.page}:${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    const key = `${document.body.dataset.page}:${name}`;
    if (value === null) sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, JSON.stringify(value));
  },
};

/** Returns whether the server takes a name, and says what is wrong with it. */
async function isName(text) {
  try {
    await send("api/name", { annotator: text });
    return true;
  } catch (error) {
    sayRefused(error);
    return false;
  }
}

/** Asks who votes, once; returns the name. */
export async function annotator(proposed) {
  const known = localStorage.getItem("annotator");
  if (known && await isName(known)) return known;
  return await new Promise((resolve) => {
    const name = make("input", {
      id: "name", dir: "auto", maxlength: "64", required: true, autocomplete: "nickname", value: known || proposed,
    });
    const form = make("form", { class: "card", submit: async (event) => {
      event.preventDefault();
      const text = name.value.trim();
      if (!text || !await isName(text)) return;
      say("");
      localStorage.setItem("annotator", text);
      resolve(text);
    } }, make("label", {}, "Your name, which is stored with each vote", name), make("button", { class: "main" }, "Start"));
    $("main").replaceChildren(form);
    name.focus();
  });
}

/** Shows who votes, and lets somebody else take over. */
export function showAnnotator(name) {
  const change = () => {
    localStorage.removeItem("annotator");
    location.reload();
  };
  $("who").replaceChildren(make("bdi", {}, name), " · ", make("a", { href: "#", click: (event) => {
    event.preventDefault();
    change();
  } }, "not me"));
}

/** Starts a page; what goes wrong is said. */
export async function start(run) {
  try {
    await run(await send("api/about"));
  } catch (error) {
    sayRefused(error);
  }
}
