"use strict";
// The page of a review. Everything from the data is set as text, never as markup.

const LONG_TEXT = 700;
const PAGE = 48;
const $ = (id) => document.getElementById(id);
let state = null;
let question = null; // { card, repeat, chosen, hidden }
let busy = false;
let offset = 0;
let found = [];
let selected = -1;

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new Error("The server does not answer. Start `expunge review` again; saved answers are kept.");
  }
  const type = response.headers.get("content-type") || "";
  const content = type.includes("json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(content.error || response.statusText);
  return content;
}

// One action at a time; an error is shown and nothing is lost.
async function act(action) {
  if (busy) return;
  busy = true;
  $("error").hidden = true;
  try {
    await action();
  } catch (error) {
    $("error").textContent = error.message;
    $("error").hidden = false;
  } finally {
    busy = false;
  }
}

const reviewer = () => $("reviewer").value.trim();
const percent = (p) => `${(100 * p).toFixed(p > 0 && p < 0.01 ? 1 : 0)} %`;

function show(view) {
  for (const id of ["card", "grid", "done"]) $(id).hidden = id !== view;
  $("show-card").setAttribute("aria-pressed", String(view !== "grid"));
  $("show-grid").setAttribute("aria-pressed", String(view === "grid"));
}

function showProgress(p) {
  $("bar").max = p.budget;
  $("bar").value = p.answered;
  const [rate, low, high] = p.rate.map((x) => x.toFixed(2));
  const parts = [`${p.answered} of ${p.budget}: noise rate ${rate}, ${low}–${high}`];
  if (p.answered && p.design_based) parts.push(`would be ± ${p.half_width.toFixed(2)} after ${p.more} more`);
  if (p.disputed) parts.push(`${p.disputed} disputed`);
  if (p.skipped) parts.push(`${p.skipped} skipped`);
  $("progress").textContent = parts.join(", ");
  $("more").hidden = p.answered < p.budget || !$("done").hidden;
  $("more").textContent = "Ask 60 more";
  if (!p.current) window.setTimeout(refreshProgress, 250);
}

async function refreshProgress() {
  try {
    showProgress(await call("progress"));
  } catch {
    // The next action says what is wrong.
  }
}

// The question

function showQuestion(next, chosen = false) {
  if (next.done) {
    question = null;
    show("done");
    showProgress(next.progress);
    $("done-text").textContent = `${next.progress.answered} answers are saved. ` +
      "Run `expunge repair` again: it takes them into account.";
    $("again").hidden = !next.progress.skipped;
    $("done-title").focus();
    return;
  }
  const card = next.card;
  const hasEvidence = card.p_noisy !== undefined;
  const hidden = hasEvidence && state.suggestions === "after" && !chosen;
  question = { card, repeat: next.repeat, chosen, hidden };
  show("card");
  $("question").textContent = `Is this “${card.given_name}”?`;
  $("right-text").textContent = `Yes: ${card.given_name}`;
  $("identity").textContent = `id ${card.id}`;
  $("badge").textContent = chosen ? "chosen from the grid" : "flagged";
  showMedia(card);
  showSuggestions(card.suggestions || []);
  $("reasons").replaceChildren(...(card.reasons || []).map((text) => element("li", { textContent: text })));
  if (hasEvidence) {
    $("reasons").prepend(element("li", {
      textContent: `Probability of a wrong label ${percent(card.p_label_fault)}, of a bad input ${percent(card.p_input_fault)}`,
    }));
  }
  showAnswers(card.answers);
  $("neighbours").replaceChildren(...(card.neighbours || []).map((tile) => element("li", {}, tileButton(tile))));
  showEvidence();
  closeClasses();
  $("find").value = "";
  $("announce").textContent = `Sample ${card.id}, given label ${card.given_name}`;
  $("question").focus({ preventScroll: true });
}

// What says whether the label is wrong waits, so that it does not influence the answer.
function showEvidence() {
  const { card, chosen, hidden } = question;
  $("reveal").hidden = !hidden;
  $("suggestions").hidden = hidden;
  $("badge").hidden = hidden || !(chosen || card.flagged);
  $("why").hidden = hidden || card.reasons === undefined;
  $("near").hidden = hidden || !(card.neighbours || []).length;
}

function reveal() {
  if (!question || !question.hidden) return;
  question.hidden = false;
  showEvidence();
  $("question").focus({ preventScroll: true });
  $("announce").textContent = `${$("suggestions").childElementCount} suggestions`;
}

function showMedia(card) {
  const box = $("media");
  box.className = "media";
  const media = (name) => `media/${card.row}/${name}`;
  if (card.kind === "image") {
    const picture = element("img", { className: "picture", src: media("image.png"), alt: `sample ${card.id}` });
    picture.addEventListener("load", () => picture.classList.toggle("pixelated", picture.naturalWidth < 200));
    picture.addEventListener("click", zoom);
    box.replaceChildren(picture);
  } else if (card.kind === "sound") {
    box.classList.add("sound");
    box.replaceChildren(
      element("audio", { controls: true, preload: "auto", src: media("sound.wav") }),
      element("img", { className: "wave", src: media("waveform.png"), alt: `waveform, ${card.seconds.toFixed(2)} s` }),
      element("img", { className: "wave", src: media("spectrogram.png"), alt: "spectrogram" }),
    );
  } else if (card.kind === "text") {
    box.classList.add("sheet");
    const shown = element("p", { className: "document", textContent: card.text.slice(0, LONG_TEXT) });
    const parts = [shown];
    if (card.text.length > LONG_TEXT) {
      const rest = element("p", { className: "document", textContent: card.text.slice(LONG_TEXT) });
      parts.push(element("details", {}, element("summary", { textContent: `${card.text.length - LONG_TEXT} more signs` }), rest));
    }
    box.replaceChildren(...parts);
  } else if (card.kind === "table") {
    box.classList.add("sheet");
    box.replaceChildren(numbersTable(card.numbers));
  } else {
    box.classList.add("sheet");
    box.replaceChildren(element("p", { textContent: "The inputs are not known. Give the spec: expunge review SPEC." }));
  }
}

function numbersTable(numbers) {
  const rows = [...numbers].sort((a, b) => Number(b.unusual) - Number(a.unusual));
  const head = element("tr", {}, ...["column", "value", "median", ""].map((t) => element("th", { textContent: t })));
  const body = rows.map((n) => element("tr", { className: n.unusual ? "unusual" : "" },
    ...[n.column, n.value, n.median, n.unusual ? "unusual" : ""].map((t) => element("td", { textContent: t }))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function showSuggestions(suggestions) {
  $("suggestions").replaceChildren(...suggestions.map((s, k) => {
    const button = element("button", { type: "button", className: "suggestion" },
      element("kbd", { textContent: String(k + 1) }), element("span", { textContent: s.name }),
      element("span", { className: "p", textContent: percent(s.probability) }));
    button.addEventListener("click", () => answer("wrong", s.label));
    return button;
  }));
}

function showAnswers(answers) {
  $("others").hidden = !answers.length;
  $("given-answers").replaceChildren(...answers.map((a) => element("li", {
    textContent: `${a.reviewer || "no name"}, ${a.time}: ${a.verdict}${a.label === null ? "" : ` (${a.label})`}`,
  })));
}

function zoom() {
  $("media").classList.toggle("zoomed");
}

function answer(verdict, label = null) {
  if (!question) return;
  const shown = question;
  act(async () => {
    const saved = await call("answer", {
      row: shown.card.row, verdict, label, reviewer: reviewer(), repeat: shown.repeat,
    });
    showProgress(saved.progress);
    if (shown.chosen) await openGrid();
    else showQuestion(await call(`next?reviewer=${encodeURIComponent(reviewer())}`));
  });
}

function undo() {
  act(async () => {
    showQuestion(await call("undo", { reviewer: reviewer() }));
    refreshProgress();
    $("announce").textContent = `Undone: ${$("announce").textContent}`;
  });
}

function next(skipped = false) {
  return act(async () => {
    const query = `next?reviewer=${encodeURIComponent(reviewer())}${skipped ? "&skipped=1" : ""}`;
    showQuestion(await call(query));
  });
}

function askMore() {
  act(async () => {
    await call("more", { n: 60 });
    showQuestion(await call(`next?reviewer=${encodeURIComponent(reviewer())}`));
    refreshProgress();
  });
}

// Another class

async function findClasses() {
  const wanted = $("find").value.trim();
  found = wanted ? await call(`classes?q=${encodeURIComponent(wanted)}`) : [];
  selected = found.length ? 0 : -1;
  drawClasses();
}

function drawClasses() {
  $("found").replaceChildren(...found.map((c, k) => {
    const line = element("li", { id: `class-${k}`, role: "option", "aria-selected": String(k === selected), textContent: c.name });
    line.addEventListener("mousedown", (event) => {
      event.preventDefault();
      chooseClass(k);
    });
    return line;
  }));
  $("found").hidden = !found.length;
  $("find").setAttribute("aria-expanded", String(found.length > 0));
  if (selected >= 0) $("find").setAttribute("aria-activedescendant", `class-${selected}`);
  else $("find").removeAttribute("aria-activedescendant");
}

function closeClasses() {
  found = [];
  selected = -1;
  drawClasses();
}

function chooseClass(k) {
  const chosen = found[k];
  if (!chosen) return;
  $("find").blur();
  if (chosen.label === question.card.given) answer("right");
  else answer("wrong", chosen.label);
}

function onFindKey(event) {
  if (event.key === "Escape") {
    closeClasses();
    $("question").focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const step = event.key === "ArrowDown" ? 1 : -1;
    if (found.length) selected = (selected + step + found.length) % found.length;
    drawClasses();
  } else return;
  event.preventDefault();
}

// The grid

function tileButton(tile) {
  const button = element("button", { type: "button", className: tile.flagged ? "flagged" : "" });
  if (state.kind === "image") {
    button.append(element("img", { loading: "lazy", src: `media/${tile.row}/image.png`, alt: "", className: "pixelated" }));
  }
  button.append(element("span", { textContent: tile.given_name }));
  if (tile.text) button.append(element("span", { className: "excerpt", textContent: tile.text }));
  if (state.suggestions !== "never") {
    const other = tile.suggested_name === tile.given_name ? "" : ` → ${tile.suggested_name}`;
    button.append(element("span", { className: "p", textContent: `${percent(tile.p_noisy)}${other}` }));
  }
  button.append(element("span", { className: "p", textContent: `id ${tile.id}` }));
  button.addEventListener("click", () => act(async () => showQuestion(await call(`card/${tile.row}`), true)));
  return button;
}

async function openGrid() {
  const query = new URLSearchParams({ offset, limit: PAGE });
  const name = $("f-class").value.trim();
  if (name) {
    const matches = await call(`classes?q=${encodeURIComponent(name)}`);
    const exact = matches.find((c) => c.name === name) || matches[0];
    if (!exact) throw new Error(`There is no class “${name}”.`);
    query.set("label", exact.label);
  }
  for (const [key, id] of [["kind", "f-kind"], ["low", "f-low"], ["high", "f-high"],
    ["flagged", "f-flagged"], ["status", "f-status"], ["text", "f-text"]]) {
    if ($(id).value) query.set(key, $(id).value);
  }
  const page = await call(`list?${query}`);
  show("grid");
  const last = Math.min(offset + page.tiles.length, page.total);
  $("count").textContent = page.total
    ? `${offset + 1}–${last} of ${page.total.toLocaleString("en")}, most suspicious first`
    : "no sample passes the filters";
  $("tiles").replaceChildren(...page.tiles.map((tile) => element("li", {}, tileButton(tile))));
  $("previous").disabled = offset === 0;
  $("following").disabled = last >= page.total;
}

function turn(step) {
  act(async () => {
    offset = Math.max(offset + step * PAGE, 0);
    await openGrid();
    $("grid-title").focus();
  });
}

// Keys

function toggleHelp() {
  $("help").hidden = !$("help").hidden;
  $("show-help").setAttribute("aria-expanded", String(!$("help").hidden));
}

function toggleGrid() {
  if ($("grid").hidden) act(openGrid);
  else next();
}

function onKey(event) {
  const typing = event.target.closest("input, select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const onButton = event.target.closest("button, summary, a, audio");
  if (onButton && (event.key === "Enter" || event.key === " ")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "?") toggleHelp();
  else if (key === "g") toggleGrid();
  else if (key === "u") undo();
  else if (!question || $("card").hidden) return;
  else if (key === "Enter" || key === "r") answer("right");
  else if (key === "n" || (question.hidden && key >= "1" && key <= "5")) reveal();
  else if (key >= "1" && key <= "5") {
    const suggestion = (question.card.suggestions || [])[Number(key) - 1];
    if (suggestion) answer("wrong", suggestion.label);
  } else if (key === "b") answer("bad-input");
  else if (key === "x") answer("cannot-tell");
  else if (key === "s") answer("skip");
  else if (key === "c") $("find").focus();
  else if (key === "z") zoom();
  else if (key === "p") $("media").querySelector("audio")?.play();
  else return;
  event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.addEventListener("click", () => answer(button.dataset.verdict));
  }
  $("reveal").addEventListener("click", reveal);
  $("undo").addEventListener("click", undo);
  $("again").addEventListener("click", () => next(true));
  $("next-batch").addEventListener("click", askMore);
  $("more").addEventListener("click", askMore);
  $("show-help").addEventListener("click", toggleHelp);
  $("show-grid").addEventListener("click", () => act(openGrid));
  $("show-card").addEventListener("click", () => next());
  $("previous").addEventListener("click", () => turn(-1));
  $("following").addEventListener("click", () => turn(1));
  $("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    offset = 0;
    act(openGrid);
  });
  $("find").addEventListener("input", () => findClasses().catch(() => closeClasses()));
  $("find").addEventListener("keydown", onFindKey);
  $("find").addEventListener("blur", closeClasses);
  $("other").addEventListener("submit", (event) => {
    event.preventDefault();
    chooseClass(selected);
  });
  $("reviewer").value = window.localStorage.getItem("expunge-reviewer") || "";
  $("reviewer").addEventListener("change", () => {
    window.localStorage.setItem("expunge-reviewer", reviewer());
    next();
  });
}

async function start() {
  listen();
  state = await call("state");
  $("run").textContent = state.run;
  document.title = `Review ${state.run}`;
  $("class-names").append(...state.classes.map((name) => element("option", { value: name })));
  showProgress(state.progress);
  await next();
}

start().catch((error) => {
  $("error").textContent = error.message;
  $("error").hidden = false;
});
