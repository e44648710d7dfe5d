import { $, annotator, button, kept, keys, make, newTicket, say, sayRefused, send, showAnnotator, start } from "./common.js";

const SAID = {
  left: "Left is better", right: "Right is better", both_good: "Both good", both_bad: "Both bad", skip: "Skipped",
};
let name = "";
let showing = null;
let since = 0;
let editing = null; // null, "which" while the side is asked for, or the side
let busy = false;

start(async (about) => {
  name = await annotator(about.annotator);
  showAnnotator(name);
  keys({
    ArrowLeft: () => side("left"), 1: () => side("left"), ArrowRight: () => side("right"), 2: () => side("right"),
    g: () => vote("both_good"), b: () => vote("both_bad"), s: () => vote("skip"), e: edit, c: comment, u: undo,
    Escape: leaveEdit,
  });
  const pending = kept.get("pending"); // a vote that was not confirmed when the page was left
  if (pending) await store(pending);
  else await next();
});

function side(which) {
  if (editing === "which") openEditor(which);
  else vote(which);
}

async function next() {
  showing = null;
  for (;;) {
    const found = await send("api/next", { annotator: name });
    if (found.showing) return show(found.showing, found.progress);
    if (found.progress.done >= found.progress.total) return finished(found.progress);
    $("main").replaceChildren(...head(found.progress), make("p", { class: "empty waiting" }, found.waits_for));
  }
}

function head(progress) {
  const number = Math.min(progress.done + 1, progress.total);
  return [
    make("progress", { max: progress.total, value: progress.done, "aria-label": "questions done" }),
    make("p", { class: "quiet", id: "count" }, `Question ${number} of ${progress.total}`),
  ];
}

function show(found, progress) {
  showing = found;
  editing = null;
  since = performance.now();
  const question = make("h1", { class: "question text", dir: "auto", tabindex: "-1" }, showing.turns.at(-1).content);
  const earlier = showing.turns.slice(0, -1).map((turn) => make("p", { class: "earlier", dir: "auto" }, `${turn.role}: ${turn.content}`));
  $("main").replaceChildren(
    make("div", {}, ...head(progress)), make("div", {}, ...earlier, question),
    make("div", { class: "answers" }, card("left", "←"), card("right", "→")),
    make("label", { id: "comment-label", hidden: true }, "Comment, stored with your vote",
      make("textarea", { id: "comment", dir: "auto", maxlength: "4000", rows: "2" })),
    make("div", { class: "row bar foot" },
      button("Both good", "g", () => vote("both_good")), button("Both bad", "b", () => vote("both_bad")),
      button("Skip", "s", () => vote("skip")), button("Edit", "e", edit), button("Comment", "c", comment),
      button("Undo", "u", undo)));
  focusHeading();
  scrollTo(0, 0);
}

/** Gives the focus to the question: what had it is gone, and who listens would have to begin anew. */
function focusHeading() {
  document.querySelector("h1").focus({ preventScroll: true });
}

function card(which, key) {
  const answer = showing[which];
  const text = answer.text + (answer.ended ? "" : " ... (cut)");
  return make("section", { class: "card", id: which, "aria-label": `the ${which} answer` },
    make("div", { class: "text", dir: "auto", tabindex: "0" }, text || "(an empty answer)"),
    button("This one is better", key, () => side(which),
      { class: "main", id: `choose-${which}`, "aria-label": `The ${which} one is better` }));
}

async function vote(choice, edited = null) {
  if (!showing || busy || (editing && edited === null)) return;
  const seconds = (performance.now() - since) / 1000;
  const { ticket, pair } = showing;
  await store({ annotator: name, ticket, pair, choice, edited, comment: $("comment").value, seconds });
}

async function store(values) {
  busy = true;
  kept.set("pending", values);
  for (const each of document.querySelectorAll("main button")) each.disabled = true;
  try {
    const found = await send("api/vote", values);
    const authors = found.left === found.right ? "" : ` Left was ${found.left}, right ${found.right}.`;
    say(`${SAID[values.choice]}${values.edited ? ", edited" : ""}. Stored.${authors}`);
  } catch (error) {
    sayRefused(error, "Not stored. ");
  } finally {
    kept.set("pending", null);
    busy = false;
  }
  await next();
}

function edit() {
  if (!showing || busy) return;
  if (editing) return leaveEdit();
  editing = "which";
  say("Which one is better, and is to be edited? Left (←) or right (→); Escape: neither.");
  for (const which of ["left", "right"]) $(`choose-${which}`).firstChild.data = "Edit this one";
}

function openEditor(which) {
  editing = which;
  const text = make("textarea", { id: "edited", dir: "auto", rows: "10", "aria-label": "the better answer, edited" });
  text.value = showing[which].text;
  const save = () => {
    const edited = text.value.trim();
    if (!edited || edited === showing[which].text) return say("Nothing was changed, so there is nothing to store.");
    vote(which, edited);
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    if (event.key === "Escape") leaveEdit();
  });
  $(which).classList.add("chosen");
  $(which).replaceChildren(text, make("div", { class: "row" },
    button("Store it as the better one", "Ctrl+Enter", save, { class: "main", id: "save" }), button("Cancel", "Esc", leaveEdit)));
  say("What you store is the chosen answer; the other one is the rejected one.");
  text.focus();
}

function leaveEdit() {
  if (!editing) return;
  editing = null;
  for (const [which, key] of [["left", "←"], ["right", "→"]]) $(which).replaceWith(card(which, key));
  say("Nothing was changed.");
  focusHeading();
}

function comment() {
  if (!showing) return;
  $("comment-label").hidden = false;
  $("comment").focus();
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const found = await send("api/undo", { annotator: name, ticket: newTicket() });
    say(found.undone ? `Undone: ${SAID[found.undone].toLowerCase()}. It is asked again.` : "Nothing to undo.");
    if (found.undone) await next();
  } catch (error) {
    sayRefused(error);
  } finally {
    busy = false;
  }
}

function finished(progress) {
  const reasons = Object.values(progress.left_out);
  const left = reasons.length ? `${reasons.length} could not be asked: ${[...new Set(reasons)].join(" ")}` : "";
  $("main").replaceChildren(
    make("progress", { max: progress.total || 1, value: progress.done, "aria-label": "questions done" }),
    make("h1", { class: "question", tabindex: "-1" }, "That was the last question. Thank you."),
    make("p", { class: "quiet" }, left), make("div", { class: "row" }, button("Undo the last vote", "u", undo)));
  focusHeading();
}
