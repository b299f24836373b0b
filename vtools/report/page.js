"use strict";
// Texts are shown by textContent alone: nothing that was judged can become markup.
const data = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 50; // rows that are added to the list together
const at = (id) => document.getElementById(id);
const list = at("list"), more = at("more");
const filters = ["text", "category", "model", "verdict", "agreement", "order"].map(at);
const grading = data.items.length > 0 && data.items.every((item) => item.b === null);

function make(name, kind, ...children) {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

function named(name) {
  return make("bdi", "", name);
}

function short(text, most) {
  return text.length > most ? text.slice(0, most) + "…" : text;
}

// A name without its middle, where it is too long: versions and sizes stand at the end.
function shortName(name, most) {
  const half = Math.floor(most / 2);
  return name.length > most ? `${name.slice(0, half - 1)}…${name.slice(half - most)}` : name;
}

// Filters

function choose(select, any, choices) {
  for (const [value, label] of [["", any], ...choices]) {
    const option = make("option", "", short(label, 80));
    option.value = value;
    select.append(option);
  }
  select.parentElement.hidden = choices.length < 2;
}

function setUp() {
  const categories = [...new Set(data.questions.map((question) => question.category))].filter(Boolean).sort();
  choose(at("category"), "all", categories.map((name) => [name, name]));
  const pairs = new Map();
  for (const item of data.items) {
    if (item.b !== null) pairs.set(`${item.a},${item.b}`, `${data.models[item.a]} against ${data.models[item.b]}`);
  }
  const models = data.models.map((name, number) => [String(number), name]);
  choose(at("model"), "all", models.length > 2 || grading ? [...models, ...(pairs.size > 1 ? pairs : [])] : []);
  const won = models.map(([number, name]) => [number, `${name} is better`]);
  choose(at("verdict"), "all", grading ? [] : [...won, ["tie", "tie"], ["none", "none could be read"]]);
  const disagree = [["orders", "orders disagree"], ["judges", "judges disagree"]];
  const there = disagree.filter(([name]) => data.items.some((item) => item[name]));
  choose(at("agreement"), "all", there.length ? [...there, ["agree", "all agree"]] : []);
  const scored = data.items.some((item) => lead(item) !== null);
  const orders = grading
    ? [["low", "lowest grade first"], ["high", "highest grade first"]]
    : [["high", "B leads by most first"], ["low", "A leads by most first"]];
  choose(at("order"), "as judged", scored ? orders : []);
}

// By how many points b leads a, on average; of a single answer, its grade.
function lead(item) {
  const known = item.said.filter((said) => said[3]).map((said) => said[3]);
  if (!known.length) return null;
  const sum = known.reduce((total, [a, b]) => total + (b === undefined ? a : b - a), 0);
  return sum / known.length;
}

const searched = new Map(); // by item, all its text in lower case
function textOf(item) {
  if (!searched.has(item)) {
    const question = data.questions[item.q];
    const answers = [item.a, item.b].flatMap((model) => question.answers[model] || []);
    const words = item.said.map((said) => said[4]);
    searched.set(item, [question.id, ...question.turns, ...answers, ...words].join("\n").toLowerCase());
  }
  return searched.get(item);
}

function winner(item) {
  if (item.won === "a" || item.won === "b") return String(item[item.won]);
  return item.won === "tie" ? "tie" : "none";
}

function matches(item) {
  const [text, category, model, verdict, agreement] = filters.map((field) => field.value);
  if (category && data.questions[item.q].category !== category) return false;
  if (model && ![String(item.a), String(item.b), `${item.a},${item.b}`].includes(model)) return false;
  if (verdict && winner(item) !== verdict) return false;
  if (agreement === "agree" ? item.orders || item.judges : agreement && !item[agreement]) return false;
  return !text || textOf(item).includes(text.toLowerCase());
}

let found = [];
let shown = 0;

function filter() {
  found = data.items.filter(matches);
  const order = at("order").value;
  if (order) {
    const sign = order === "high" ? -1 : 1;
    const leads = new Map(found.map((item) => [item, lead(item)]));
    found = found.filter((item) => leads.get(item) !== null);
    found.sort((one, other) => sign * (leads.get(one) - leads.get(other)));
  }
  shown = 0;
  list.replaceChildren();
  showMore();
  at("count").value = `${found.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")}`;
}

function showMore() {
  list.append(...found.slice(shown, shown + AT_ONCE).map(row));
  shown = Math.min(shown + AT_ONCE, found.length);
  more.hidden = shown === found.length;
  more.textContent = `Show ${Math.min(AT_ONCE, found.length - shown)} more of ${found.length - shown}`;
}

// Rows

function verdictOf(item, won) {
  if (won === "a" || won === "b") return [shortName(data.models[item[won]], 24), " better"];
  return [won === "tie" ? "tie" : "no verdict"];
}

function row(item) {
  const question = data.questions[item.q];
  const first = question.turns[Math.max(0, (item.t || 1) - 1)] || question.turns[0] || `question ${question.id}`;
  const about = [short(question.id, 40), short(question.category, 40), item.t ? `turn ${item.t}` : ""];
  if (item.b !== null && data.models.length > 2) about.push(`${data.models[item.a]} against ${data.models[item.b]}`);
  if (item.b === null) about.push(data.models[item.a]);
  if (item.orders) about.push("orders disagree");
  if (item.judges) about.push("judges disagree");
  const asked = make("span", "asked", short(first, 300));
  asked.dir = "auto";
  const grade = item.b === null ? lead(item) : null;
  const won = item.b !== null ? verdictOf(item, item.won) : [grade === null ? "no grade" : String(Math.round(grade * 100) / 100)];
  const chip = make("span", `won ${item.won || ""}`, won.length > 1 ? named(won[0]) : won[0], ...won.slice(1));
  const summary = make("summary", "", asked, chip, make("span", "about", about.filter(Boolean).join(" · ")));
  const details = make("details", "", summary);
  const fill = () => {
    if (details.children.length === 1) details.append(inside(item, question));
  };
  details.addEventListener("toggle", () => details.open && fill());
  if (found.length === 1) {
    fill();
    details.open = true;
  }
  return make("li", "", details);
}

function block(name, kind, text) {
  const element = make(name, `text ${kind}`.trim());
  element.dir = "auto";
  const wanted = at("text").value.toLowerCase(), lower = text.toLowerCase();
  let start = 0;
  // Lower case may be longer, as of İ: then the places do not fit, and nothing is marked.
  if (wanted && lower.length === text.length) {
    for (let place; (place = lower.indexOf(wanted, start)) >= 0; start = place + wanted.length) {
      element.append(text.slice(start, place), make("mark", "", text.slice(place, place + wanted.length)));
    }
  }
  element.append(text.slice(start));
  return element;
}

function inside(item, question) {
  const parts = make("div", "inside");
  for (const [role, text] of question.context) {
    parts.append(make("h4", "", short(role, 40)), block("div", "question", text));
  }
  const sides = item.b === null ? ["a"] : ["a", "b"];
  const turns = item.t ? question.turns.slice(0, item.t) : question.turns;
  const given = sides.map((side) => question.answers[item[side]] || []);
  const last = item.t || Math.max(1, turns.length, ...given.map((answers) => answers.length));
  for (let turn = 0; turn < last; turn++) {
    if (last > 1) parts.append(make("h4", "", `Turn ${turn + 1}`));
    if (turns[turn]) parts.append(block("div", "question", turns[turn]));
    if (!given.some((answers) => answers.length)) continue;
    const columns = sides.map((side, number) => answer(item, side, given[number][turn]));
    parts.append(make("div", "sides", ...columns));
  }
  if (question.reference.length) {
    parts.append(make("h4", "", "Reference answer"), ...question.reference.map((text) => block("div", "question", text)));
  }
  if (item.said.length) {
    parts.append(make("h4", "", item.said.length > 1 ? "The judgments" : "The judgment"));
    parts.append(make("div", "sides", ...item.said.map((said) => verdict(item, said))));
  }
  return parts;
}

function answer(item, side, text) {
  const size = text === undefined ? "" : `${text.length.toLocaleString("en")} characters`;
  const letter = item.b === null ? "" : `${side.toUpperCase()}: `;
  const head = make("h3", "", letter, named(short(data.models[item[side]], 200)), " ", make("span", "", size));
  const missing = text === undefined || (item.missing || []).includes(side);
  const body = text ? block("div", "", text) : make("p", "note", missing ? "no answer" : "an empty answer");
  return make("div", `answer ${side}`, head, body);
}

function verdict(item, [judge, order, won, scores, words, voter]) {
  const first = { ab: "A’s answer shown first", ba: "B’s answer shown first" }[order] || "";
  const points = scores ? scores.map((score) => Math.round(score * 100) / 100) : [];
  const score = points.length === 2 ? `A ${points[0]}, B ${points[1]}` : points.length ? `grade ${points[0]}` : "";
  const outcome = item.b === null ? "" : won === "tie" ? "tie" : won ? `${won.toUpperCase()} is better` : "no verdict";
  const who = voter ? `${data.judges[judge]}: ${voter}` : data.judges[judge];
  const head = make("h3", "", named(short(who, 120)), " ");
  head.append(make("span", "", [first, score, outcome].filter(Boolean).join(" · ")));
  const said = words ? block("div", "", words) : make("p", "note", "The judge’s words were not stored.");
  return make("div", "verdict", head, said);
}

// What is chosen stands in the address, so that a view can be kept and passed on.

function fromAddress() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const field of filters) field.value = chosen.get(field.id) || "";
  for (const field of filters) if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
  filter();
}

function toAddress() {
  const chosen = filters.filter((field) => field.value).map((field) => [field.id, field.value]);
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
  filter();
}

setUp();
fromAddress();
at("filters").addEventListener("input", toAddress);
at("filters").addEventListener("submit", (event) => event.preventDefault());
at("filters").addEventListener("reset", () => setTimeout(toAddress));
more.addEventListener("click", showMore);
addEventListener("hashchange", fromAddress);
addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "SELECT"].includes(event.target.tagName)) {
    event.preventDefault();
    at("text").focus();
  }
});
