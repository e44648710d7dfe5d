import { $, Refused, annotator, button, kept, keys, make, newTicket, say, sayRefused, send, showAnnotator, start, stream } from "./common.js";

const SIDES = ["left", "right"];
let name = "";
let showing = null; // {ticket, pair} once both answers are there, until the vote
let since = 0;
let busy = false;

start(async (about) => {
  name = await annotator(about.annotator);
  showAnnotator(name);
  const prompt = make("textarea", { id: "prompt", dir: "auto", rows: "2", maxlength: "40000", required: true });
  prompt.value = kept.get("prompt", "");
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  const proposals = make("select", { id: "proposals", dir: "auto", hidden: !about.questions.length, change: () => {
    if (proposals.value) prompt.value = proposals.value;
    proposals.selectedIndex = 0;
    prompt.focus();
  } }, make("option", { value: "" }, "Or take one of these ..."),
    ...about.questions.map((question) => make("option", { value: question }, question.slice(0, 120))));
  $("main").replaceChildren(
    make("form", { class: "card", id: "ask", submit: (event) => {
      event.preventDefault();
      ask();
    } }, make("label", {}, "A question for both models", prompt),
      make("div", { class: "row" }, make("div", { class: "grow" }, proposals),
        make("button", { class: "main", id: "go" }, "Ask both"))),
    make("div", { class: "answers", id: "answers", role: "group", "aria-label": "both answers", tabindex: "-1" }, ...SIDES.map(card)),
    make("div", { class: "row bar foot", id: "votes" },
      button("Left is better", "←", () => vote("left"), { class: "main" }),
      button("Right is better", "→", () => vote("right"), { class: "main" }),
      button("Both good", "g", () => vote("both_good")), button("Both bad", "b", () => vote("both_bad")),
      button("Undo", "u", undo, { id: "undo" })),
    make("ul", { class: "tally", id: "tally", "aria-label": "votes so far" }));
  ready(false);
  tally(about.tally);
  keys({
    ArrowLeft: () => vote("left"), 1: () => vote("left"), ArrowRight: () => vote("right"), 2: () => vote("right"),
    g: () => vote("both_good"), b: () => vote("both_bad"), u: undo,
  });
  const pending = kept.get("pending");
  if (pending) await store(pending);
  prompt.focus();
});

function card(side) {
  return make("section", { class: "card", id: side, "aria-label": `the ${side} answer` },
    make("h2", { id: `${side}-by` }, side), make("div", { class: "text", dir: "auto", id: `${side}-text`, tabindex: "0" }));
}

/** Lets people vote or not; a button that is switched off gives the focus to the answers. */
function ready(on) {
  if (!on && $("votes").contains(document.activeElement) && document.activeElement !== $("undo")) focusAnswers();
  for (const each of $("votes").querySelectorAll("button")) each.disabled = !on && each.id !== "undo";
}

function focusAnswers() {
  $("answers").focus({ preventScroll: true });
}

async function ask() {
  const prompt = $("prompt").value.trim();
  if (!prompt || busy) return;
  busy = true;
  showing = null;
  ready(false);
  if (document.activeElement === $("go")) focusAnswers();
  $("go").disabled = true;
  kept.set("prompt", prompt);
  for (const side of SIDES) {
    $(side).classList.remove("chosen");
    $(`${side}-by`).textContent = side;
    $(`${side}-text`).textContent = "";
  }
  say("The models are writing ...");
  try {
    await stream("api/compare", { prompt }, (event) => {
      if (event.text !== undefined) $(`${event.side}-text`).append(event.text);
      if (event.ended === false) $(`${event.side}-text`).append(" ... (cut)");
      if (event.ticket) showing = event;
    });
    if (!showing) throw new Refused("The answer was cut off.");
    if (showing.alike) say("Both answers are the same: there is nothing to prefer.");
    else say("Which one is better?");
    ready(!showing.alike);
    since = performance.now();
    // So that keys vote; not in the middle of the next question, whose letters would.
    if (document.activeElement === $("prompt") && $("prompt").value.trim() === prompt) focusAnswers();
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server cannot be reached. Ask again when it is back.");
  } finally {
    busy = false;
    $("go").disabled = false;
  }
}

async function vote(choice) {
  if (!showing || showing.alike || busy) return;
  const { ticket, pair } = showing;
  await store({ annotator: name, ticket, pair, choice, seconds: (performance.now() - since) / 1000 });
}

async function store(values) {
  busy = true;
  ready(false);
  kept.set("pending", values);
  try {
    const found = await send("api/vote", values);
    if (showing) for (const side of SIDES) $(`${side}-by`).textContent = found[side];
    if (showing && $(values.choice)) $(values.choice).classList.add("chosen");
    say(`Stored. Left was ${found.left}, right ${found.right}.`);
    tally(found.tally);
  } catch (error) {
    sayRefused(error, "Not stored. ");
  } finally {
    kept.set("pending", null);
    showing = null;
    busy = false;
  }
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const found = await send("api/undo", { annotator: name, ticket: newTicket() });
    say(found.undone ? "Your last vote was taken back." : "Nothing to undo.");
    tally(found.tally);
  } catch (error) {
    sayRefused(error);
  } finally {
    busy = false;
  }
}

function tally(counts) {
  $("tally").replaceChildren(...Object.entries(counts).map(([who, count]) =>
    make("li", {}, `${who === "tie" ? "neither" : who}: `, make("b", {}, String(count)))));
}
