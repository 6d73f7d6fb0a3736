(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, name, text) => { const e = document.createElement(tag); if (name) e.className = name; if (text !== undefined) e.textContent = text; return e; };

$("theme").onclick = () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light"), then = now === "dark" ? "light" : "dark";
  root.dataset.theme = then;
  try { localStorage.setItem("emodissect-theme", then); } catch (e) { /* a page without storage forgets */ }
};

/* Images: a tile's sheet and place follow from its number. */
function place(element, at) {
  const {across: most, sheet: per} = data.sheets;
  const sheet = Math.floor(at / per), inside = at % per, tiles = Math.min(data.tiles - sheet * per, per);
  const across = Math.min(most, Math.max(Math.ceil(Math.sqrt(tiles)), 1)), down = Math.ceil(tiles / across);
  const row = Math.floor(inside / across), column = inside % across;
  element.classList.add("s" + sheet);
  element.style.backgroundSize = across * 100 + "% " + down * 100 + "%";
  element.style.backgroundPosition = (across > 1 ? 100 * column / (across - 1) : 0) + "% " + (down > 1 ? 100 * row / (down - 1) : 0) + "%";
}
function paint(canvas, heat) {
  canvas.width = heat.w; canvas.height = heat.h;
  const bytes = atob(heat.d), context = canvas.getContext("2d"), pixels = context.createImageData(heat.w, heat.h);
  for (let i = 0; i < bytes.length; i++) {
    const v = bytes.charCodeAt(i) / 255;
    pixels.data.set([255, 140 - 60 * v, 30 * (1 - v), 190 * v], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
}
document.querySelectorAll("[data-tile]").forEach(e => place(e, +e.dataset.tile));
document.querySelectorAll("canvas[data-heat]").forEach(e => paint(e, {w: +e.dataset.w, h: +e.dataset.h, d: e.dataset.heat}));

/* Static tables sort on a click or on Enter. */
function headings(table, act) {
  table.querySelectorAll("thead th").forEach((th, at) => {
    th.classList.add("s"); th.tabIndex = 0;
    const go = () => {
      const falling = th.getAttribute("aria-sort") ? th.getAttribute("aria-sort") === "ascending" : th.classList.contains("n");
      table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", falling ? "descending" : "ascending");
      act(at, falling);
    };
    th.onclick = go;
    th.onkeydown = e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); go(); } };
  });
}
document.querySelectorAll("table.sortable").forEach(table => headings(table, (at, falling) => {
  const body = table.tBodies[0], rows = [...body.rows], numeric = table.tHead.rows[0].cells[at].classList.contains("n");
  const value = row => { const v = row.cells[at].dataset.v; return numeric ? (v === "" ? NaN : +v) : v.toLowerCase(); };
  rows.sort((a, b) => compare(value(a), value(b), falling));
  body.append(...rows);
}));
function compare(x, y, falling) {
  const noX = x === null || x === undefined || Number.isNaN(x), noY = y === null || y === undefined || Number.isNaN(y);
  if (noX || noY) return noX - noY;
  return (x < y ? -1 : x > y ? 1 : 0) * (falling ? -1 : 1);
}

/* The neurons: one list of rows, filtered and ordered, shown as cards or as a table. */
const all = data.neurons;
if (!all) return;
const total = all.neuron.length, text = new Array(total);
for (let i = 0; i < total; i++) text[i] = (data.names.layer[all.layer[i]] + " " + all.neuron[i] + " " + data.names.concept[all.concept[i]]).toLowerCase();
$("explorer").hidden = false;
for (const [value, name] of [["", "all"], ...data.names.layer.map((name, i) => [i, name])]) { const o = make("option", "", name); o.value = value; $("in-layer").append(o); }
if (data.names.layer.length < 2) $("in-layer").parentElement.hidden = true;
$("heat-control").hidden = !Object.keys(data.heat).length;

const minus = s => s.replace("-", "−");
const fixed = digits => v => v === null || v === undefined ? "–" : minus(v.toFixed(digits));
const percent = v => v === null || v === undefined ? "–" : Math.round(100 * v) + " %";
const chance = v => v === null || v === undefined ? "–" : v < .001 ? "< .001" : v >= .995 ? "1.00" : v.toFixed(v < .1 ? 3 : 2).slice(1);
const stated = (letter, v) => { const s = chance(v); return letter + (s[0] === "<" ? " " : " = ") + s; };
/* A cell as report/columns.py writes it. */
const forms = {id: String, count: v => v.toLocaleString("en"), percent: v => (100 * v).toFixed(1) + " %", points: v => minus((v > 0 ? "+" : "") + (100 * v).toFixed(2)), p: chance, setting: v => minus(String(v))};
const fields = data.fields.map(f => ({...f, number: f.name in all && !(f.name in data.names)}));
const columns = fields.filter(f => f.on_page);
const shown = (f, i) => {
  const v = all[f.name][i];
  if (f.name in data.names) return data.names[f.name][v] || "–";
  return v === null ? "–" : typeof f.form === "number" ? fixed(f.form)(v) : (forms[f.form] || String)(v);
};
const value = (name, i) => name === "concept" ? data.names.concept[all.concept[i]].toLowerCase() || undefined : name === "layer" ? all.layer[i] : all[name][i];
const sameLabel = i => data.names.held_out_concept[all.held_out_concept[i]] === data.names.concept[all.concept[i]];
const holds = i => all.held_out_q[i] !== null && all.held_out_q[i] < data.level && sameLabel(i);
if (!all.held_out) { $("show").querySelector("[value=holds]").remove(); $("order").querySelector("[value='held_out:1']").remove(); }
const state = {rows: [], sort: "z", falling: true, cards: true, shown: 0, page: 0};
const perPage = 50, perStep = 24;

function filter() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), layer = $("in-layer").value, show = $("show").value;
  const rows = [];
  for (let i = 0; i < total; i++) {
    const f = all.flags[i];
    if (layer !== "" && all.layer[i] !== +layer) continue;
    if (show === "dead" ? !(f & 1) : show === "interpretable" ? !(f & 2) : show === "significant" ? !(f & 4) : show === "correct" ? !(all.accuracy[i] >= .5) : show === "holds" ? !holds(i) : show === "others" ? f & 3 : false) continue;
    if (words.every(w => /^\d+$/.test(w) ? String(all.neuron[i]) === w || text[i].split(" ")[0] === w : text[i].includes(w))) rows.push(i);
  }
  rows.sort((a, b) => compare(value(state.sort, a), value(state.sort, b), state.falling) || a - b);
  state.rows = rows; state.shown = 0; state.page = 0;
  $("found").textContent = rows.length === total ? total.toLocaleString("en") + " neurons" : rows.length.toLocaleString("en") + " of " + total.toLocaleString("en") + " neurons";
  draw();
}
function draw() {
  $("cards").hidden = !state.cards; $("listing").hidden = state.cards;
  $("as-cards").setAttribute("aria-pressed", state.cards); $("as-table").setAttribute("aria-pressed", !state.cards);
  if (state.cards) { $("cards").replaceChildren(); state.shown = 0; step(); } else page();
}
function step() {
  const some = document.createDocumentFragment();
  for (const i of state.rows.slice(state.shown, state.shown + perStep)) some.append(card(i));
  state.shown = Math.min(state.shown + perStep, state.rows.length);
  $("cards").append(some);
}
function card(i) {
  const dead = all.flags[i] & 1, box = make("article", "card"), where = make("div", "where");
  where.append(make("span", "", data.names.layer[all.layer[i]] + " · neuron " + all.neuron[i]));
  where.append(make("span", "tag " + (all.flags[i] & 4 ? "yes" : "no"), dead ? "dead" : all.flags[i] & 4 ? "beyond chance" : all.flags[i] & 2 ? "above τ, not beyond chance" : "not interpretable"));
  box.append(where, make("h3", "", dead ? "no label" : data.names.concept[all.concept[i]]));
  if (dead) { box.append(make("p", "numbers", "It gives the same output for every image.")); return box; }
  const numbers = make("p", "numbers");
  const say = (word, number, rest) => { numbers.append(word + " ", make("b", "", number), rest || ""); };
  say("similarity", fixed(2)(all.similarity[i]), ", ");
  if (all.z) say("z", fixed(1)(all.z[i]), ", ");
  numbers.append(make("b", "", stated("p", all.p_value[i])), ", ", make("b", "", stated("q", all.q_value[i])), make("br"));
  if (all.accuracy[i] !== null) {
    say("label fits", percent(all.accuracy[i]), " of its top images");
    if (all.accuracy_low && all.accuracy_low[i] !== null) numbers.append(" (" + Math.round(100 * all.accuracy_low[i]) + "–" + Math.round(100 * all.accuracy_high[i]) + ")");
    if (all.accuracy_chance && all.accuracy_chance[i] !== null) numbers.append(", " + percent(all.accuracy_chance[i]) + " by chance");
  } else numbers.append("the label stands for no class");
  if (all.held_out && all.held_out[i] !== null) {
    const same = sameLabel(i);
    numbers.append(make("br"), same ? (holds(i) ? "holds on held-out images: " : "not beyond chance on held-out images: ") : "half of the images say “" + data.names.held_out_concept[all.held_out_concept[i]] + "”; on the others ");
    say("r =", fixed(2)(all.held_out[i]), " (" + fixed(2)(all.held_out_low[i]) + " to " + fixed(2)(all.held_out_high[i]) + ")");
  }
  const five = make("div", "five"), heat = data.heat[i];
  all.top[i].forEach((tile, rank) => {
    const cell = make("span", "tile"), picture = make("i", "im"), truth = data.labels[tile], guess = data.predicted ? data.predicted[tile] : -1;
    place(picture, tile);
    if (heat && heat[rank]) { const canvas = make("canvas"); paint(canvas, heat[rank]); picture.append(canvas); }
    const value = all.values[i][rank];
    cell.title = "true: " + data.classes[truth] + (guess >= 0 ? ", predicted: " + data.classes[guess] : "") + (value !== undefined ? ", activation " + value : "");
    cell.append(picture, make("b", "", data.classes[truth]));
    if (guess >= 0 && guess !== truth) cell.append(make("em", "", "→ " + data.classes[guess]));
    five.append(cell);
  });
  box.append(numbers, five);
  if (all.runners[i].length) box.append(make("p", "also", "then " + all.runners[i].map((c, k) => data.names.concept[c] + " " + fixed(2)(all.runnersSimilarity[i][k])).join(", ")));
  return box;
}
function page() {
  const pages = Math.max(Math.ceil(state.rows.length / perPage), 1), body = $("rows").tBodies[0];
  body.replaceChildren(...state.rows.slice(state.page * perPage, (state.page + 1) * perPage).map(i => {
    const row = make("tr");
    for (const f of columns) row.append(make("td", f.number ? "n" : "", shown(f, i)));
    return row;
  }));
  $("page").textContent = "page " + (state.page + 1) + " of " + pages;
  $("back").disabled = state.page === 0; $("next").disabled = state.page >= pages - 1;
}
for (const f of columns) { const th = make("th", f.number ? "n" : "", f.title || f.name); th.scope = "col"; if (f.help) th.title = f.help; $("rows").tHead.rows[0].append(th); }
headings($("rows"), (at, falling) => { state.sort = columns[at].name; state.falling = falling; $("order").selectedIndex = -1; filter(); });
if (!all.z) { $("order").options[0].remove(); state.sort = "similarity"; }
let waiting; $("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
$("in-layer").onchange = $("show").onchange = filter;
$("order").onchange = () => { const [name, falling] = $("order").value.split(":"); state.sort = name; state.falling = falling === "1"; document.querySelectorAll("#rows th[aria-sort]").forEach(th => th.removeAttribute("aria-sort")); filter(); };
$("as-cards").onclick = () => { state.cards = true; draw(); };
$("as-table").onclick = () => { state.cards = false; draw(); };
$("back").onclick = () => { state.page--; page(); };
$("next").onclick = () => { state.page++; page(); };
$("heat").onchange = () => $("cards").classList.toggle("without-heat", !$("heat").checked);
new IntersectionObserver(seen => { if (seen[0].isIntersecting && state.cards && state.shown < state.rows.length) { step(); again(); } }, {rootMargin: "900px"}).observe($("more"));
function again() { requestAnimationFrame(() => { if (state.cards && state.shown < state.rows.length && $("more").getBoundingClientRect().top < innerHeight + 900) { step(); again(); } }); }
filter();
})();
