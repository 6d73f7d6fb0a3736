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

function paint(canvas, heat) {
  canvas.width = heat.w; canvas.height = heat.h;
  const bytes = atob(heat.d), context = canvas.getContext("2d"), pixels = context.createImageData(heat.w, heat.h);
  for (let i = 0; i < bytes.length; i++) {
    const v = bytes.charCodeAt(i) / 255;
    pixels.data.set([255, 140 - 60 * v, 30 * (1 - v), 190 * v], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
}
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

/* Wide tables say that there is more beside what is seen. */
function hint(box) { box.classList.toggle("wider", box.scrollWidth > box.clientWidth + 2 && box.scrollLeft + box.clientWidth < box.scrollWidth - 2); }
document.querySelectorAll(".scroll, .drawing").forEach(box => {
  box.addEventListener("scroll", () => hint(box), {passive: true});
  new ResizeObserver(() => hint(box)).observe(box);
  if (box.firstElementChild) new ResizeObserver(() => hint(box)).observe(box.firstElementChild);
});

/* The neurons: one list of rows, filtered and ordered, shown as cards or as a table. */
const all = data.neurons;
if (!all) return;
const total = all.neuron.length, text = new Array(total), L = data.names.layer;
const layerOf = i => L[all.layer[i]], labelOf = i => data.names.concept[all.concept[i]], keyOf = i => layerOf(i) + "-" + all.neuron[i];
const byKey = new Map();
for (let i = 0; i < total; i++) { text[i] = (layerOf(i) + " " + all.neuron[i] + " " + labelOf(i)).toLowerCase(); byKey.set(keyOf(i), i); }
$("explorer").hidden = false;
for (const [value, name] of [["", "all"], ...L.map((name, i) => [i, name])]) { const o = make("option", "", name); o.value = value; $("in-layer").append(o); }
if (L.length < 2) $("in-layer").parentElement.hidden = true;
$("heat-control").hidden = !Object.keys(data.heat).length;
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

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
const value = (name, i) => name === "match" ? state.match.get(i) : name === "concept" ? labelOf(i).toLowerCase() || undefined : name in data.names ? data.names[name][all[name][i]] || undefined : all[name][i];
const sameLabel = i => data.names.held_out_concept[all.held_out_concept[i]] === labelOf(i);
const holds = i => all.held_out_q[i] !== null && all.held_out_q[i] < data.level && sameLabel(i);
const editOf = i => all.edit ? data.names.edit[all.edit[i]] : "";
const dead = i => all.flags[i] & 1;

/* Concept profiles: a byte a cell, 0 where there is none. */
const profile = data.profile && {...data.profile, bytes: bytes(data.profile.data)}, C = profile ? profile.names.length : 0;
const similarityTo = (i, c) => { const b = profile.bytes[i * C + c]; return b ? profile.low + (b - 1) / 254 * (profile.high - profile.low) : null; };
let unit = null; /* profiles less their layer's mean, of length 1 */
function units() {
  if (unit) return unit;
  unit = new Float32Array(total * C);
  const sums = L.map(() => new Float64Array(C)), counts = L.map(() => 0);
  for (let i = 0; i < total; i++) if (!dead(i)) { counts[all.layer[i]]++; for (let c = 0; c < C; c++) sums[all.layer[i]][c] += profile.bytes[i * C + c]; }
  for (let i = 0; i < total; i++) {
    if (dead(i)) continue;
    let length = 0;
    for (let c = 0; c < C; c++) { const v = profile.bytes[i * C + c] - sums[all.layer[i]][c] / counts[all.layer[i]]; unit[i * C + c] = v; length += v * v; }
    length = Math.sqrt(length) || 1;
    for (let c = 0; c < C; c++) unit[i * C + c] /= length;
  }
  return unit;
}
function like(i, most) {
  const u = units(), found = [];
  for (let j = 0; j < total; j++) { if (j === i || dead(j)) continue; let dot = 0; for (let c = 0; c < C; c++) dot += u[i * C + c] * u[j * C + c]; found.push([dot, j]); }
  return found.sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, most);
}

const drop = (select, name) => { const o = $(select).querySelector(`[value="${name}"]`); if (o) o.remove(); };
if (!all.held_out) { drop("show", "holds"); drop("order", "held_out:1"); }
if (!all.edit) drop("show", "edited");
if (!all.alike || all.alike.every(v => v === null)) { drop("show", "alike"); drop("order", "alike:0"); }
if (!profile) $("search-in").hidden = true;
if (!all.z) drop("order", "z:1");
const state = {rows: [], sort: all.z ? "z" : "similarity", falling: true, cards: true, shown: 0, page: 0, only: null, match: new Map()};
const perPage = 50, perStep = 24;

/* What is looked for is in the address, so that it can be sent: #neurons?q=tears&layer=lin2, or #lin2-292. */
const defaults = {q: "", in: "label", layer: "", show: "all", order: state.sort + ":1", view: "cards"};
function address() {
  if (state.only !== null) return "#" + encodeURIComponent(keyOf(state.only));
  const now = {q: $("search").value, in: $("in").value, layer: $("in-layer").value === "" ? "" : L[+$("in-layer").value], show: $("show").value, order: state.sort + ":" + +state.falling, view: state.cards ? "cards" : "table"};
  const changed = Object.entries(now).filter(([name, v]) => v !== defaults[name]);
  return changed.length ? "#neurons?" + new URLSearchParams(changed) : null;
}
function keep() {
  const now = address();
  if (now === null ? /^#neurons\?/.test(location.hash) || byKey.has(key()) : now !== location.hash) history.replaceState(null, "", now === null ? "#neurons" : now);
}
const key = () => { try { return decodeURIComponent(location.hash.slice(1)); } catch (e) { return location.hash.slice(1); } };
function read() {
  state.only = byKey.has(key()) ? byKey.get(key()) : null;
  if (location.hash.startsWith("#neurons?")) {
    const wanted = {...defaults, ...Object.fromEntries(new URLSearchParams(location.hash.slice(9)))}, pick = (id, v) => { if ([...$(id).options].some(o => o.value === v)) $(id).value = v; };
    $("search").value = wanted.q; pick("in", wanted.in); pick("show", wanted.show); pick("order", wanted.order);
    pick("in-layer", wanted.layer === "" ? "" : String(L.indexOf(wanted.layer)));
    const [name, falling] = wanted.order.split(":");
    if (name in all) { state.sort = name; state.falling = falling === "1"; }
    state.cards = wanted.view !== "table";
  }
  filter();
  if (state.only !== null || location.hash.startsWith("#neurons?")) document.getElementById("neurons").scrollIntoView();
}

function filter() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean), layer = $("in-layer").value, show = $("show").value;
  const inProfile = profile && $("in").value === "profile" && words.length > 0, rows = [];
  const concepts = inProfile ? profile.names.map((name, c) => [name.toLowerCase(), c]).filter(([name]) => words.every(w => name.includes(w))).map(([, c]) => c) : [];
  state.match = new Map();
  for (let i = 0; i < total; i++) {
    const f = all.flags[i];
    if (state.only !== null) { if (i === state.only) rows.push(i); continue; }
    if (layer !== "" && all.layer[i] !== +layer) continue;
    if (show === "dead" ? !(f & 1) : show === "edited" ? !editOf(i) : show === "interpretable" ? !(f & 2) : show === "significant" ? !(f & 4) : show === "alike" ? all.alike[i] === null : show === "correct" ? !(all.accuracy[i] >= .5) : show === "holds" ? !holds(i) : show === "others" ? f & 3 : false) continue;
    if (inProfile) {
      if (f & 1 || !concepts.length) continue;
      state.match.set(i, Math.max(...concepts.map(c => similarityTo(i, c) ?? -Infinity))); rows.push(i);
    } else if (words.every(w => /^\d+$/.test(w) ? String(all.neuron[i]) === w || text[i].split(" ")[0] === w : text[i].includes(w))) rows.push(i);
  }
  const sort = inProfile ? "match" : state.sort, falling = inProfile || state.falling;
  rows.sort((a, b) => compare(value(sort, a), value(sort, b), falling) || a - b);
  state.rows = rows; state.shown = 0; state.page = 0; state.concepts = concepts;
  const of = total.toLocaleString("en") + " neurons";
  $("found").textContent = state.only !== null ? keyOf(state.only) + ", one of " + of : inProfile ? (concepts.length ? rows.length.toLocaleString("en") + " neurons by their similarity to " + concepts.slice(0, 3).map(c => "“" + profile.names[c] + "”").join(", ") + (concepts.length > 3 ? " and " + (concepts.length - 3) + " more" : "") : "No concept has all these words.") : rows.length === total ? of : rows.length.toLocaleString("en") + " of " + of;
  $("everything").hidden = state.only === null;
  draw(); keep();
}
function draw() {
  const cards = state.cards || state.only !== null;
  $("cards").hidden = !cards; $("listing").hidden = cards;
  $("as-cards").setAttribute("aria-pressed", state.cards); $("as-table").setAttribute("aria-pressed", !state.cards);
  if (cards) { $("cards").replaceChildren(); state.shown = 0; step(); } else page();
}
function step() {
  const some = document.createDocumentFragment();
  for (const i of state.rows.slice(state.shown, state.shown + perStep)) some.append(card(i));
  state.shown = Math.min(state.shown + perStep, state.rows.length);
  $("cards").append(some);
}
/* A printed page has the cards that are drawn so far, and says how many that is. */
addEventListener("beforeprint", () => {
  const drawn = state.cards || state.only !== null ? state.shown : Math.min(perPage, state.rows.length - state.page * perPage);
  $("printed").textContent = drawn < state.rows.length ? "Printed: " + drawn.toLocaleString("en") + " of " + state.rows.length.toLocaleString("en") + ", in this order." : "";
});
const copy = id => $(id).content.firstElementChild.cloneNode(true);
function picture(tile, heat) {
  const box = make("i", "im"), image = make("img");
  image.src = "data:image/webp;base64," + data.images[tile]; image.alt = data.classes[data.labels[tile]] ?? "image";
  box.append(image);
  if (heat) { const canvas = make("canvas"); paint(canvas, heat); box.append(canvas); }
  return box;
}
function larger(tile, heat, said) {
  const dialog = $("larger");
  dialog.querySelector(".im").replaceWith(picture(tile, heat)); dialog.querySelector("p").textContent = said;
  dialog.showModal();
}
$("larger").onclick = e => { if (e.target === $("larger")) $("larger").close(); };
function card(i) {
  const box = copy("card-template"), part = name => box.querySelector("." + name), link = part("permalink");
  link.textContent = layerOf(i) + " · neuron " + all.neuron[i]; link.href = "#" + encodeURIComponent(keyOf(i));
  const tag = part("state"), edit = editOf(i);
  tag.textContent = dead(i) ? "dead" : all.flags[i] & 4 ? "beyond chance" : all.flags[i] & 2 ? "above τ, not beyond chance" : "not interpretable";
  tag.classList.add(all.flags[i] & 4 ? "yes" : "no");
  if (edit) { const t = part("edit"); t.hidden = false; t.textContent = "edited: " + edit; }
  box.querySelector("h3").textContent = dead(i) ? "no label" : labelOf(i);
  const numbers = part("numbers");
  if (dead(i)) { numbers.textContent = "It gives the same output for every image."; for (const name of ["stands", "five", "also", "further"]) part(name).remove(); return box; }
  const of = data.standsFor[labelOf(i)] || [];
  part("stands").textContent = of.length ? "stands for " + of.join(", ") : "stands for no class";
  const say = (word, number, rest) => { numbers.append(word + " ", make("b", "", number), rest || ""); };
  if (state.match.has(i)) { const c = state.concepts.reduce((a, b) => similarityTo(i, b) > similarityTo(i, a) ? b : a); say("similarity to “" + profile.names[c] + "”", fixed(2)(similarityTo(i, c))); numbers.append(make("br")); }
  if (all.label_set && data.names.label_set[all.label_set[i]]) { numbers.append("not excluded: ", make("b", "", data.names.label_set[all.label_set[i]]), make("br")); }
  say("similarity", fixed(2)(all.similarity[i]), ", ");
  if (all.z) say("z", fixed(1)(all.z[i]), ", ");
  numbers.append(make("b", "", stated("p", all.p_value[i])), ", ", make("b", "", stated("q", all.q_value[i])), make("br"));
  if (all.accuracy[i] !== null) {
    say("label fits", percent(all.accuracy[i]), " of its top images");
    if (all.accuracy_low && all.accuracy_low[i] !== null) numbers.append(" (" + Math.round(100 * all.accuracy_low[i]) + "–" + Math.round(100 * all.accuracy_high[i]) + ")");
    if (all.accuracy_chance && all.accuracy_chance[i] !== null) numbers.append(", " + percent(all.accuracy_chance[i]) + " by chance");
  } else numbers.append("no class to compare its images with");
  if (all.held_out && all.held_out[i] !== null) {
    const same = sameLabel(i);
    numbers.append(make("br"), same ? (holds(i) ? "holds on held-out images: " : "not beyond chance on held-out images: ") : "half of the images say “" + data.names.held_out_concept[all.held_out_concept[i]] + "”; on the others ");
    say("r =", fixed(2)(all.held_out[i]), " (" + fixed(2)(all.held_out_low[i]) + " to " + fixed(2)(all.held_out_high[i]) + ")");
  }
  const heat = data.heat[i];
  all.top[i].forEach((tile, rank) => {
    const cell = make("button", "tile"), truth = data.labels[tile], guess = data.predicted ? data.predicted[tile] : -1, number = all.values[i][rank];
    cell.type = "button";
    const said = "true: " + data.classes[truth] + (guess >= 0 ? ", predicted: " + data.classes[guess] : "") + (number !== undefined ? ", activation " + number : "");
    cell.title = said;
    cell.append(picture(tile, heat && heat[rank]), make("b", "", data.classes[truth]));
    if (guess >= 0 && guess !== truth) cell.append(make("em", "", "→ " + data.classes[guess]));
    cell.onclick = () => larger(tile, heat && heat[rank], keyOf(i) + ", image " + (rank + 1) + "; " + said);
    part("five").append(cell);
  });
  if (all.runners[i].length) part("also").textContent = "next: " + all.runners[i].map((c, k) => data.names.concept[c] + " " + fixed(2)(all.runnersSimilarity[i][k])).join(", ");
  const further = part("further");
  if (!profile && !data.byClass && !data.effects) further.remove();
  else further.ontoggle = () => { if (further.open && !part("answers").childElementCount) answers(i, part("answers")); };
  if (state.only === i) { box.classList.add("alone"); further.open = true; }
  return box;
}

/* What a card says on a click: drawn with the page's own boxes, so that print and dark follow. */
const near = v => (Math.round(1000 * v) / 10) + "%";
function row(name, bar, number) { const r = make("div", "row"); r.append(make("span", "name", name), bar, make("span", "number", number)); return r; }
const responses = data.byClass && {...data.byClass, bytes: bytes(data.byClass.data)};
function answers(i, box) {
  if (responses) {
    const figure = copy("response-template"), K = data.classes.length, Q = 5, low = responses.low[i], high = responses.high[i];
    const tops = data.classes.map(() => []);
    all.top[i].forEach((tile, rank) => { const v = all.values[i][rank]; if (v !== undefined && data.labels[tile] >= 0) tops[data.labels[tile]].push(v); });
    const end = Math.max(high, ...tops.flat()), at = v => (v - low) / ((end - low) || 1);
    data.classes.forEach((name, k) => {
      const bar = make("span", "box"), q = [...responses.bytes.subarray((i * K + k) * Q, (i * K + k + 1) * Q)];
      if (q[0]) {
        const [a, b, m, d, e] = q.map(b => at(low + (b - 1) / 254 * (high - low)));
        for (const [name, from, to] of [["wide", a, e], ["half", b, d], ["median", m, m]]) { const s = make("i", name); s.style.left = near(from); s.style.width = name === "median" ? "" : near(Math.max(to - from, .004)); bar.append(s); }
        for (const v of tops[k]) { const s = make("i", "dot"); s.style.left = near(at(v)); bar.append(s); }
        figure.querySelector(".bars").append(row(name, bar, fixed(2)(low + (q[2] - 1) / 254 * (high - low))));
      } else figure.querySelector(".bars").append(row(name, bar, "–"));
    });
    box.append(figure);
  }
  if (data.effects && data.effects[i]) {
    const figure = copy("effects-template"), largest = Math.max(...data.effects[i].map(v => Math.abs(v ?? 0))) || 1;
    data.classes.forEach((name, k) => {
      const v = data.effects[i][k], bar = make("span", "signed"), s = make("i", v < 0 ? "less" : "more");
      if (v !== null) { s.style.width = near(Math.abs(v) / largest / 2); s.style[v < 0 ? "right" : "left"] = "50%"; bar.append(s); }
      figure.querySelector(".bars").append(row(name, bar, v === null ? "–" : minus(largest < .01 ? v.toExponential(1) : v.toPrecision(2))));
    });
    box.append(figure);
  }
  if (profile) {
    const figure = copy("profile-template"), order = profile.names.map((_, c) => c).sort((a, b) => profile.bytes[i * C + b] - profile.bytes[i * C + a]);
    const values = order.map(c => similarityTo(i, c)), low = Math.min(0, ...values), high = Math.max(...values);
    figure.querySelector("figcaption").textContent = "Similarity to " + (C < profile.all ? "the " + C + " strongest of " + profile.all : "all " + C) + " concepts.";
    const bars = figure.querySelector(".bars"), most = state.only === i ? order.length : 8;
    const add = (from, to) => order.slice(from, to).forEach(c => {
      const bar = make("span", "plainbar"), s = make("i"), v = similarityTo(i, c);
      s.style.left = near((Math.min(v, 0) - low) / ((high - low) || 1)); s.style.width = near(Math.abs(v) / ((high - low) || 1)); if (v < 0) s.className = "less";
      bar.append(s); bars.append(row(profile.names[c], bar, fixed(2)(v)));
    });
    add(0, most);
    if (order.length > most) { const rest = make("button", "plain", "all " + order.length); rest.type = "button"; rest.onclick = () => { rest.remove(); add(most, order.length); }; figure.append(rest); }
    box.append(figure);
    const list = copy("like-template"), ol = list.querySelector("ol");
    for (const [cosine, j] of like(i, state.only === i ? 12 : 5)) {
      const item = make("li"), a = make("a", "", layerOf(j) + " " + all.neuron[j]); a.href = "#" + encodeURIComponent(keyOf(j));
      item.append(a, " " + labelOf(j) + ", ", make("b", "", fixed(2)(cosine))); ol.append(item);
    }
    if (all.alike && all.alike[i] !== null) list.append(make("p", "note", "In group " + all.alike[i] + " of " + all.alike.filter((g, j) => g === all.alike[i]).length + " alike neurons of " + layerOf(i) + "."));
    box.append(list);
  }
}
function page() {
  const pages = Math.max(Math.ceil(state.rows.length / perPage), 1), body = $("rows").tBodies[0];
  body.replaceChildren(...state.rows.slice(state.page * perPage, (state.page + 1) * perPage).map(i => {
    const row = make("tr");
    for (const f of columns) {
      const cell = make("td", f.number ? "n" : "");
      if (f.name === "neuron") { const a = make("a", "", shown(f, i)); a.href = "#" + encodeURIComponent(keyOf(i)); cell.append(a); } else cell.textContent = shown(f, i);
      row.append(cell);
    }
    return row;
  }));
  $("page").textContent = "page " + (state.page + 1) + " of " + pages;
  $("back").disabled = state.page === 0; $("next").disabled = state.page >= pages - 1;
}
for (const f of columns) { const th = make("th", f.number ? "n" : "", f.title || f.name); th.scope = "col"; if (f.help) th.title = f.help; $("rows").tHead.rows[0].append(th); }
headings($("rows"), (at, falling) => { state.sort = columns[at].name; state.falling = falling; $("order").selectedIndex = -1; filter(); });
let waiting; $("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(() => { state.only = null; filter(); }, 120); };
$("in-layer").onchange = $("show").onchange = $("in").onchange = () => { state.only = null; filter(); };
$("order").onchange = () => { const [name, falling] = $("order").value.split(":"); state.sort = name; state.falling = falling === "1"; state.only = null; document.querySelectorAll("#rows th[aria-sort]").forEach(th => th.removeAttribute("aria-sort")); filter(); };
$("as-cards").onclick = () => { state.cards = true; draw(); keep(); };
$("as-table").onclick = () => { state.cards = false; state.only = null; filter(); };
$("everything").onclick = () => { state.only = null; filter(); };
$("back").onclick = () => { state.page--; page(); };
$("next").onclick = () => { state.page++; page(); };
$("heat").onchange = () => $("cards").classList.toggle("without-heat", !$("heat").checked);
addEventListener("hashchange", () => { if (byKey.has(key()) || location.hash.startsWith("#neurons?")) read(); });
new IntersectionObserver(seen => { if (seen[0].isIntersecting && state.cards && state.shown < state.rows.length) { step(); again(); } }, {rootMargin: "900px"}).observe($("more"));
function again() { requestAnimationFrame(() => { if (state.cards && state.shown < state.rows.length && $("more").getBoundingClientRect().top < innerHeight + 900) { step(); again(); } }); }

/* Two layers, or this run and another, side by side: how many neurons each label has. */
const sources = [];
function offer(name, found) {
  found.names.layer.forEach((layer, at) => {
    sources.push({name: name + layer, found, at});
    for (const id of ["left", "right"]) { const o = make("option", "", name + layer); o.value = sources.length - 1; $(id).append(o); }
  });
}
function counts({found, at}) {
  const n = found.neurons, by = new Map(); let living = 0;
  for (let i = 0; i < n.neuron.length; i++) {
    if (n.layer[i] !== at || n.flags[i] & 1) continue;
    living++;
    const label = found.names.concept[n.concept[i]], c = by.get(label) || [0, 0];
    c[0]++; if (n.flags[i] & 4) c[1]++; by.set(label, c);
  }
  return {by, living};
}
function beside() {
  const two = [sources[+$("left").value], sources[+$("right").value]];
  if (!two[0] || !two[1]) return;
  const [a, b] = two.map(counts), labels = [...new Set([...a.by.keys(), ...b.by.keys()])];
  const head = $("beside").tHead.rows[0], body = $("beside").tBodies[0];
  const titles = ["label", ...two.flatMap(s => [s.name + ": neurons", "share", "beyond chance"]), "difference (points)"];
  head.replaceChildren(...titles.map((t, k) => { const th = make("th", k ? "n" : "", t); th.scope = "col"; return th; }));
  const rows = labels.map(label => { const [x, y] = [a, b].map(s => s.by.get(label) || [0, 0]), [p, q] = [x[0] / (a.living || 1), y[0] / (b.living || 1)]; return [label, x[0], p, x[1], y[0], q, y[1], q - p]; });
  const fill = rows => body.replaceChildren(...rows.map(r => { const tr = make("tr"); r.forEach((v, k) => tr.append(make("td", k ? "n" : "", k === 0 ? v : k === 2 || k === 5 ? (100 * v).toFixed(1) + " %" : k === 7 ? forms.points(v) : v.toLocaleString("en")))); return tr; }));
  rows.sort((r, s) => Math.abs(s[7]) - Math.abs(r[7]) || (r[0] < s[0] ? -1 : 1));
  fill(rows);
  headings($("beside"), (at, falling) => fill(rows.sort((r, s) => compare(r[at], s[at], falling))));
}
offer("", data);
$("right").value = Math.min(1, sources.length - 1);
$("left").onchange = $("right").onchange = beside;
$("compare").ontoggle = () => { if ($("compare").open) beside(); };
$("other").onchange = async () => {
  const file = $("other").files[0];
  if (!file) return;
  try {
    const found = JSON.parse(new DOMParser().parseFromString(await file.text(), "text/html").getElementById("data").textContent);
    if (!found.neurons || !found.names) throw new Error();
    const before = sources.length;
    offer("other: ", found);
    $("right").value = before; $("other-said").textContent = file.name + ": " + found.neurons.neuron.length.toLocaleString("en") + " neurons.";
    beside();
  } catch (e) { $("other-said").textContent = file.name + " holds no neurons. Choose the report.html of a dissect.py or edit.py run of this version."; }
};
read();
})();
