import { $, Refused, button, kept, make, say, start, stream } from "./common.js";

const NAMES = {
  max_new_tokens: ["Longest answer, tokens", { min: 1, max: 8192, step: 1 }],
  temperature: ["Temperature (0: most likely)", { min: 0, step: 0.1 }],
  top_p: ["Top-p (1: off)", { min: 0.01, max: 1, step: 0.01 }],
  top_k: ["Top-k (0: off)", { min: 0, step: 1 }],
  repetition_penalty: ["Repetition penalty (1: off)", { min: 0.1, step: 0.05 }],
  seed: ["Seed (empty: drawn)", { min: 0, step: 1 }],
};
let turns = kept.get("turns", []);
let writing = null;

start(async (about) => {
  const question = make("textarea", { id: "question", rows: "2", maxlength: "40000", "aria-label": "your question" });
  question.value = kept.get("question", "");
  question.addEventListener("input", () => kept.set("question", question.value));
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask(about);
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && writing?.abort());
  const settings = kept.get("sampling", about.sampling);
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
  showTurns();
  question.focus();
});

function showTurns() {
  const empty = make("p", { class: "empty" }, "Ask something. Enter sends, Shift+Enter begins a new line, Escape stops an answer.");
  $("talk").replaceChildren(...(turns.length ? turns.map(bubble) : [empty]));
}

function bubble(turn) {
  return make("div", { class: `turn ${turn.role}` }, make("div", { class: "text" }, turn.content),
    turn.note ? make("p", { class: "quiet" }, turn.note) : null);
}

function settings() {
  const values = {};
  for (const name of Object.keys(NAMES)) {
    const text = $(name).value.trim();
    if (text === "" && name !== "seed") throw new Refused(`${NAMES[name][0]}: a number is missing.`);
    values[name] = text === "" ? null : Number(text);
  }
  kept.set("sampling", values);
  return values;
}

async function ask(about) {
  const text = $("question").value.trim();
  if (!text || writing) return;
  const base = $("tuned") ? !$("tuned").checked : false;
  const asked = [...turns, { role: "user", content: text }];
  const answer = { role: "assistant", content: "", note: "" };
  writing = new AbortController();
  busy(true);
  let shown;
  try {
    const sampling = settings();
    turns = [...asked, answer];
    showTurns();
    $("question").value = "";
    kept.set("question", null);
    shown = $("talk").lastChild;
    const messages = asked.map(({ role, content }) => ({ role, content }));
    say("");
    await stream("api/chat", { messages, sampling, base }, (event) => {
      if (event.forgotten) say(`${event.forgotten} of the oldest questions no longer fit into the model and are left out.`);
      if (event.text) {
        answer.content += event.text;
        shown.firstChild.append(event.text);
        if (innerHeight + scrollY > document.body.scrollHeight - 200) scrollTo(0, document.body.scrollHeight);
      }
      if (event.ended !== undefined) answer.note = noteOf(event, base ? about.base : about.model, answer.content);
    }, writing.signal);
  } catch (error) {
    if (error.name === "AbortError") answer.note = "stopped";
    else if (!answer.content) {
      turns = asked.slice(0, -1); // nothing came: the question goes back to where it was written
      $("question").value = text;
      kept.set("question", text);
      say(error instanceof Refused ? error.message : "The server cannot be reached. Send it again when it is back.");
    } else answer.note = "cut off: the server cannot be reached";
  }
  writing = null;
  busy(false);
  keepTurns();
  showTurns();
  $("question").focus();
  scrollTo(0, document.body.scrollHeight);
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
