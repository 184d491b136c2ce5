// The audit: one failed trace at a time. Labels stay in this page, in the browser's storage as a draft, and in the file that is saved.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const DRAFT = `stepmend-audit-${data.run}`;
const at = (id) => document.getElementById(id);
const radios = [...document.querySelectorAll("input[name=class]")];
const classes = radios.map((radio) => radio.value);
const isStep = (choice) => Number.isInteger(choice);

// By key: choice is a 0-based step, "none" (no step is faulty), "skip", or null.
let labels = new Map();
let shown = 0;
let unsaved = false;
let typed = "";
let typedAt = 0;

function label() {
  const { key } = data.items[shown];
  if (!labels.has(key)) labels.set(key, { choice: null, error_class: null, note: "" });
  return labels.get(key);
}

function choiceOf(item) {
  return labels.get(item.key)?.choice ?? null;
}

function stepButton(text, index) {
  const row = document.createElement("li");
  const button = document.createElement("button");
  const number = document.createElement("span");
  const words = document.createElement("span");
  number.className = "number";
  number.textContent = String(index + 1);
  words.className = "text";
  words.textContent = text.trimEnd();
  button.append(number, words);
  button.addEventListener("click", () => choose(index));
  row.append(button);
  return row;
}

function show(index) {
  shown = index;
  typed = "";
  const item = data.items[index];
  at("heading").textContent = `Solution ${index + 1} of ${data.items.length}`;
  at("question").textContent = item.question;
  at("answer").textContent = item.answer;
  at("steps").replaceChildren(...(item.steps.length ? item.steps.map(stepButton) : ["The solution is empty."]));
  at("note").value = label().note;
  mark();
}

// What is chosen, without building the steps anew: the focus stays where it is.
function mark() {
  const { choice, error_class } = label();
  const pressed = (button, on) => button.setAttribute("aria-pressed", String(on));
  [...at("steps").querySelectorAll("button")].forEach((button, index) => pressed(button, choice === index));
  pressed(at("none"), choice === "none");
  pressed(at("skip"), choice === "skip");
  at("clear").disabled = choice === null;
  at("classes").disabled = !isStep(choice);
  for (const radio of radios) radio.checked = radio.value === error_class;
  const skipped = data.items.filter((item) => choiceOf(item) === "skip").length;
  const done = data.items.filter((item) => choiceOf(item) !== null).length - skipped;
  at("progress").textContent = `${done} of ${data.items.length} labelled${skipped ? `, ${skipped} skipped` : ""}`;
  at("previous").disabled = shown === 0;
  at("next").disabled = shown === data.items.length - 1;
  at("unlabelled").disabled = done + skipped === data.items.length;
}

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

// Some browsers refuse storage to a page that was opened as a file.
function keepDraft() {
  try {
    localStorage.setItem(DRAFT, JSON.stringify({ labels: [...labels], shown, unsaved }));
    return true;
  } catch {
    return false;
  }
}

function readDraft() {
  try {
    const draft = JSON.parse(localStorage.getItem(DRAFT));
    if (!draft) return;
    labels = new Map(draft.labels);
    shown = draft.shown;
    unsaved = draft.unsaved;
  } catch {
    labels = new Map();
  }
}

function changed() {
  unsaved = true;
  keepDraft();
  mark();
}

function choose(choice) {
  const mine = label();
  mine.choice = choice;
  if (!isStep(choice)) mine.error_class = null;
  say("");
  changed();
}

function classify(name) {
  if (!isStep(label().choice)) return;
  label().error_class = name;
  changed();
}

function go(index) {
  if (index < 0 || index >= data.items.length || index === shown) return;
  const stay = document.activeElement?.closest("nav");
  say("");
  show(index);
  keepDraft();
  const top = at("main").offsetTop - at("bar").offsetHeight;
  if (window.scrollY > top) window.scrollTo(0, top);
  if (!stay || document.activeElement === document.body || document.activeElement.disabled) at("heading").focus({ preventScroll: true });
}

function goUnlabelled() {
  const count = data.items.length;
  const order = data.items.map((_, offset) => (shown + 1 + offset) % count);
  const next = order.find((index) => choiceOf(data.items[index]) === null);
  if (next !== undefined) go(next);
}

// Digits in quick succession are one number, as long as there is such a step.
function digit(key) {
  const now = Date.now();
  const count = data.items[shown].steps.length;
  typed = now - typedAt < 1000 && Number(typed + key) <= count ? typed + key : key;
  typedAt = now;
  const number = Number(typed);
  if (number === 0) choose("none");
  else if (number <= count) choose(number - 1);
}

function save() {
  const of = (item) => labels.get(item.key);
  const file = {
    stepmend_audit: 1,
    run: data.run,
    seed: data.seed,
    keys: data.items.map((item) => item.key),
    labels: data.items
      .filter((item) => isStep(choiceOf(item)) || choiceOf(item) === "none")
      .map((item) => ({ key: item.key, step: isStep(choiceOf(item)) ? choiceOf(item) : null, error_class: of(item).error_class, note: of(item).note })),
    skipped: data.items.filter((item) => choiceOf(item) === "skip").map((item) => ({ key: item.key, note: of(item).note })),
  };
  if (!file.labels.length && !file.skipped.length) {
    say("Nothing is labelled yet; nothing was saved.");
    return;
  }
  const address = URL.createObjectURL(new Blob([`${JSON.stringify(file, null, 2)}\n`], { type: "application/json" }));
  const link = document.createElement("a");
  link.setAttribute("href", address);
  link.download = "audit-labels.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  unsaved = false;
  keepDraft();
  const open = data.items.length - file.labels.length - file.skipped.length;
  say(`Saved ${file.labels.length} labels as audit-labels.json${open ? `; ${open} are still open` : ""}.`);
}

// The labels of a saved file; throws what is wrong with it.
function parse(text) {
  let file = null;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("is not valid JSON");
  }
  if (file?.stepmend_audit !== 1 || !Array.isArray(file.labels)) throw new Error("is not a file that this page saves");
  if (file.run !== data.run) throw new Error("was saved from another page than this one");
  const steps = new Map(data.items.map((item) => [item.key, item.steps.length]));
  const found = new Map();
  for (const { key, step, error_class, note } of file.labels) {
    const known = step === null || (isStep(step) && step >= 0 && step < steps.get(key));
    if (!steps.has(key) || !known || !(error_class === null || classes.includes(error_class))) throw new Error("holds a label that does not fit this page");
    found.set(key, { choice: step ?? "none", error_class, note: String(note ?? "") });
  }
  for (const { key, note } of file.skipped ?? []) found.set(key, { choice: "skip", error_class: null, note: String(note ?? "") });
  return found;
}

async function load(file) {
  if (!file || (unsaved && !confirm("Replace what you have labelled here, and not saved, by the file's labels?"))) return;
  try {
    labels = parse(await file.text());
  } catch (error) {
    say(`${file.name} ${error.message}; nothing was changed.`);
    return;
  }
  unsaved = false;
  show(shown);
  keepDraft();
  say(`Loaded ${labels.size} labels from ${file.name}.`);
}

const KEYS = {
  n: () => go(shown + 1),
  ArrowRight: () => go(shown + 1),
  p: () => go(shown - 1),
  ArrowLeft: () => go(shown - 1),
  u: goUnlabelled,
  s: () => choose("skip"),
};

function onKey(event) {
  const { target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (target === at("note")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const letter = "abcdefgh".indexOf(key);
  if (key.startsWith("Arrow") && target.matches("input")) return;
  if (/^\d$/.test(key)) digit(key);
  else if (Object.hasOwn(KEYS, key)) KEYS[key]();
  else if (key.length === 1 && letter >= 0) classify(classes[letter]);
  else return;
  event.preventDefault();
}

at("previous").addEventListener("click", () => go(shown - 1));
at("next").addEventListener("click", () => go(shown + 1));
at("unlabelled").addEventListener("click", goUnlabelled);
at("none").addEventListener("click", () => choose("none"));
at("skip").addEventListener("click", () => choose("skip"));
at("clear").addEventListener("click", () => choose(null));
at("save").addEventListener("click", save);
at("load").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  await load(at("file").files[0]);
  at("file").value = "";
});
for (const radio of radios) radio.addEventListener("change", () => classify(radio.value));
at("note").addEventListener("input", () => {
  label().note = at("note").value;
  changed();
});
document.addEventListener("keydown", onKey);
window.addEventListener("beforeunload", (event) => {
  if (!unsaved) return;
  event.preventDefault();
  event.returnValue = true; // for browsers that do not heed preventDefault here
});

readDraft();
at("undrafted").hidden = keepDraft();
show(data.items[shown] ? shown : 0);
