import { $, LARGEST, Refused, button, bytesOf, kept, make, say, start, stream } from "./common.js";

const NAMES = {
  max_new_tokens: ["Longest answer, tokens", { min: 1, max: 8192, step: 1 }],
  temperature: ["Temperature (0: most likely)", { min: 0, step: 0.1 }],
  top_p: ["Top-p (1: off)", { min: 0.01, max: 1, step: 0.01 }],
  top_k: ["Top-k (0: off)", { min: 0, step: 1 }],
  repetition_penalty: ["Repetition penalty (1: off)", { min: 0.1, step: 0.05 }],
  seed: ["Seed (empty: drawn)", { min: 0, step: 1 }],
};
const MOST_TURNS = 399; // that the server takes
const ROOM = 2048; // bytes of a request that are not the conversation's
const KEEP_EVERY = 1000; // milliseconds, while an answer comes
let turns = kept.get("turns", []);
let writing = null;

start(async (about) => {
  const question = make("textarea", { id: "question", dir: "auto", rows: "2", maxlength: "40000", "aria-label": "your question" });
  question.value = kept.get("question", "");
  question.addEventListener("input", () => kept.set("question", question.value));
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask(about);
    }
  });
  addEventListener("pagehide", () => writing && keepTurns());
  document.addEventListener("keydown", (event) => event.key === "Escape" && writing?.abort());
  const settings = { ...about.sampling, ...kept.get("sampling", {}) };
  const inputs = Object.entries(NAMES).map(([name, [label, limits]]) =>
    make("label", {}, label, make("input", { id: name, type: "number", value: settings[name], ...limits })));
  const toggle = about.base === null ? null : make("label", { class: "switch", title: about.base },
    make("input", { type: "checkbox", id: "tuned", role: "switch", checked: !kept.get("base", false),
      change: (event) => kept.set("base", !event.target.checked) }), `${about.switch} on`);
  $("who").textContent = about.model;
  $("main").replaceChildren(
    make("div", { class: "talk", id: "talk", role: "log", "aria-live": "off" }),
    make("div", { class: "foot" }, question,
      make("div", { class: "row" },
        button("Send", "", () => ask(about), { class: "main", id: "send" }),
        button("Stop", "Esc", () => writing?.abort(), { id: "stop", hidden: true }),
        toggle, button("New conversation", "", forget, { id: "new" })),
      make("details", {}, make("summary", {}, "How answers are written"), make("div", { class: "settings" }, ...inputs))));
  recover();
  showTurns();
  question.focus();
});

/** An answer without a note was being written when the page was left; where nothing of it had come, the question goes back. */
function recover() {
  const last = turns.at(-1);
  if (!last || last.note) return;
  if (last.content) last.note = "cut off";
  else giveBack(turns.at(-2).content);
  keepTurns();
}

/** Puts the last question back to where it was written, unless another one stands there. */
function giveBack(text) {
  turns = turns.slice(0, -2);
  $("question").value ||= text;
  kept.set("question", $("question").value);
}

function showTurns() {
  const empty = make("p", { class: "empty" }, "Ask something. Enter sends, Shift+Enter begins a new line, Escape stops an answer.");
  $("talk").replaceChildren(...(turns.length ? turns.map(bubble) : [empty]));
}

function bubble(turn) {
  return make("div", { class: `turn ${turn.role}` }, make("div", { class: "text", dir: "auto" }, turn.content),
    turn.note ? make("p", { class: "quiet" }, turn.note) : null);
}

/** Returns the settings; only those that are not the server's own are kept, so that a later server's are not hidden. */
function settings(defaults) {
  const values = {};
  for (const name of Object.keys(NAMES)) {
    const text = $(name).value.trim();
    if (text === "" && name !== "seed") throw new Refused(`${NAMES[name][0]}: a number is missing.`);
    values[name] = text === "" ? null : Number(text);
  }
  kept.set("sampling", Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== defaults[name])));
  return values;
}

/** Returns the newest turns that a request may hold, beginning with a question. */
function newest(asked) {
  let start = Math.max(0, asked.length - MOST_TURNS);
  let left = LARGEST - ROOM - bytesOf(JSON.stringify(asked.slice(start)));
  for (; left < 0 && start < asked.length - 1; start += 2) left += bytesOf(JSON.stringify(asked.slice(start, start + 2)));
  return asked.slice(start);
}

async function ask(about) {
  const text = $("question").value.trim();
  if (!text || writing) return;
  const base = $("tuned") ? !$("tuned").checked : false;
  const asked = [...turns, { role: "user", content: text }];
  const messages = newest(asked.map(({ role, content }) => ({ role, content })));
  const answer = { role: "assistant", content: "", note: "" };
  writing = new AbortController();
  busy(true);
  let said = forgotten((asked.length - messages.length) / 2);
  try {
    const sampling = settings(about.sampling);
    turns = [...asked, answer];
    showTurns();
    keepTurns();
    $("question").value = "";
    kept.set("question", null);
    const shown = $("talk").lastChild;
    let since = performance.now();
    say(said);
    await stream("api/chat", { messages, sampling, base }, (event) => {
      if (event.forgotten) say(said = forgotten((asked.length - messages.length) / 2 + event.forgotten));
      if (event.text) {
        answer.content += event.text;
        shown.firstChild.append(event.text);
        if (innerHeight + scrollY > document.body.scrollHeight - 200) scrollTo(0, document.body.scrollHeight);
        if (performance.now() - since > KEEP_EVERY) {
          keepTurns();
          since = performance.now();
        }
      }
      if (event.ended !== undefined) answer.note = noteOf(event, base ? about.base : about.model, answer.content);
    }, writing.signal);
    if (!answer.note) throw new Refused("The answer was cut off.");
    say(`${said} The answer is complete.`.trim());
  } catch (error) {
    const why = error instanceof Refused ? error.message : "The server cannot be reached. Send it again when it is back.";
    if (error.name === "AbortError") {
      answer.note = "stopped";
      say("The answer was stopped.");
    } else {
      if (answer.content) answer.note = "cut off";
      else if (turns.at(-1) === answer) giveBack(text);
      say(why);
    }
  }
  writing = null;
  busy(false);
  keepTurns();
  showTurns();
  $("question").focus();
  scrollTo(0, document.body.scrollHeight);
}

function forgotten(count) {
  return count ? `${count} of the oldest questions no longer fit into the model and are left out.` : "";
}

function noteOf(event, who, content) {
  const end = event.ended ? "" : ", cut at its limit";
  return `${who}, ${event.tokens} tokens${end}${content ? "" : ", an empty answer"}, seed ${event.seed}`;
}

function keepTurns() {
  try {
    kept.set("turns", turns);
  } catch {
    say("The conversation is too long to be kept when this page is loaded again.");
  }
}

function busy(on) {
  $("send").disabled = $("new").disabled = on;
  $("stop").hidden = !on;
}

function forget() {
  turns = [];
  kept.set("turns", null);
  showTurns();
  say("Forgotten.");
  $("question").focus();
}
