"use strict";

const QUESTIONS = ["truer", "follows"];
// a double click must not answer the next pair too
const PAUSE_MS = 350;
const SMALL_PIXELS = 200;

const at = (id) => document.getElementById(id);
const state = { place: 0, done: 0, total: 0, pair: null, answers: {}, ready: false, since: 0, asks: 0 };
let retry = null;

async function ask(address, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response, answer;
  try {
    response = await fetch(address, options);
    answer = await response.json();
  } catch {
    throw new Error("The server does not answer. Your answer is kept in this page: please try again.");
  }
  if (!response.ok) throw new Error(answer.error || "The server refuses this request.");
  return answer;
}

async function attempt(work) {
  at("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    retry = work;
    at("message").textContent = error.message;
    at("problem").hidden = false;
  }
}

function show(section) {
  for (const id of ["welcome", "judging", "finished"]) at(id).hidden = id !== section;
}

async function start() {
  const found = await ask("/api/state");
  state.done = found.done;
  state.total = found.total;
  if (found.name === null) {
    at("count").textContent = found.total === 1 ? "There is 1 pair." : `There are ${found.total} pairs.`;
    show("welcome");
    at("name").focus();
  } else {
    await open(found.done);
  }
}

async function open(place) {
  if (place >= state.total) {
    show("finished");
    at("thanks").focus();
    return;
  }
  const asked = ++state.asks;
  state.ready = false;
  update();
  const pair = await ask(`/api/pair/${place}`);
  if (asked !== state.asks) return;
  Object.assign(state, { place, pair: pair.pair, answers: { ...pair.answers } });
  show("judging");
  at("number").textContent = `Pair ${place + 1} of ${state.total}`;
  at("progress").max = state.total;
  at("progress").value = state.done;
  at("caption").textContent = pair.caption;
  const references = pair.references.map((address, number) => {
    const image = new Image();
    image.alt = pair.references.length > 1 ? `Reference ${number + 1}` : "Reference";
    image.src = address;
    return image;
  });
  at("references").replaceChildren(...references);
  at("left").src = pair.pictures[0];
  at("right").src = pair.pictures[1];
  const images = [...references, at("left"), at("right")];
  update();
  window.scrollTo(0, 0);
  at("number").focus({ preventScroll: true });
  try {
    await Promise.all(images.map((image) => image.decode()));
  } catch {
    if (asked === state.asks) throw new Error("A picture could not be loaded. Please try again.");
    return;
  }
  if (asked !== state.asks) return;
  for (const image of images) image.classList.toggle("small", image.naturalWidth < SMALL_PIXELS);
  Object.assign(state, { ready: true, since: performance.now() });
  update();
}

function active() {
  return QUESTIONS.find((question) => !(question in state.answers)) || null;
}

function update() {
  for (const question of QUESTIONS) {
    at(question).classList.toggle("active", state.ready && question === (state.chosen || active()));
    for (const button of at(question).querySelectorAll("button")) {
      button.disabled = !state.ready;
      button.setAttribute("aria-pressed", String(state.answers[question] === Number(button.dataset.side)));
    }
  }
  at("back").disabled = state.place === 0 && active() !== "follows";
  at("next").hidden = !(state.ready && active() === null);
}

function answer(question, side) {
  if (!state.ready || performance.now() - state.since < PAUSE_MS) return;
  const complete = active() === null;
  state.answers[question] = side;
  // a pair that was judged before goes on with its last question, or with "Next"
  state.chosen = complete && question === "truer" ? "follows" : null;
  update();
  if (active() === null && (!complete || question === "follows")) attempt(send);
}

async function send() {
  if (active() !== null) return;
  state.ready = false;
  state.chosen = null;
  update();
  let counted;
  try {
    counted = await ask("/api/vote", { pair: state.pair, ...state.answers });
  } catch (error) {
    state.ready = true;
    update();
    throw error;
  }
  state.done = counted.done;
  // on its own: what is tried again after a failure is the next pair, not the vote
  await attempt(() => open(counted.place + 1));
}

function back() {
  if (at("judging").hidden || at("back").disabled) return;
  state.chosen = null;
  if ("truer" in state.answers && active() === "follows") {
    delete state.answers.truer;
    update();
  } else if (state.place > 0) {
    attempt(() => open(state.place - 1));
  }
}

function next() {
  if (!at("judging").hidden && !at("next").hidden) attempt(send);
}

function pressed(event) {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target instanceof HTMLInputElement) return;
  if (at("judging").hidden) return;
  if (["0", "1", "2"].includes(event.key)) {
    answer(state.chosen || active() || "truer", Number(event.key));
  } else if (event.key === "ArrowLeft" || event.key === "Backspace") {
    back();
  } else if (event.key === "ArrowRight") {
    next();
  } else {
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
at("back").addEventListener("click", back);
at("next").addEventListener("click", next);
at("review").addEventListener("click", () => attempt(() => open(state.total - 1)));
at("again").addEventListener("click", () => attempt(retry));
at("join").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await ask("/api/judge", { name: at("name").value });
    await start();
  });
});
for (const question of QUESTIONS) {
  for (const button of at(question).querySelectorAll("button")) {
    button.addEventListener("click", () => answer(question, Number(button.dataset.side)));
  }
}
attempt(start);
