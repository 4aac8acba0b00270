"use strict";
const readings = JSON.parse(document.getElementById("readings").textContent);
const ROW = 26; // height of a token in the line view, as in page.css
const FAINTEST = 0.02; // of the greatest weight: fainter lines are left out
const find = (selector) => document.querySelector(selector);
const every = (selector) => [...document.querySelectorAll(selector)];

// What is shown, in the words of the address's hash; numbers count from 1.
let chosen = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
// Tokens by their side and place: what was pressed, and what the pointer or the keyboard is at.
let pinned = {};
let pointed = null;
let role; // of the chosen line
let layer; // of the role
let map; // the weights of the chosen head
let inks; // red, green and blue of weights above zero, and below

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// ---- choices

function numbers(count) {
  return Array.from({ length: count }, (_, place) => String(place + 1));
}

// Take the choice from those that there are, and let the others be chosen.
function offer(name, legal, usual, title = (value) => value) {
  if (!legal.includes(chosen[name])) chosen[name] = usual;
  const group = find(`[data-name="${name}"]`);
  if (group.dataset.legal !== legal.join()) {
    group.dataset.legal = legal.join();
    group.replaceChildren(...legal.map((value) => {
      const input = make("input", { type: "radio", name, value });
      return make("label", {}, input, title(value));
    }));
  }
  for (const input of group.querySelectorAll("input")) input.checked = input.value === chosen[name];
}

function settle() {
  const lines = find("select");
  if (!numbers(readings.length).includes(chosen.line)) chosen.line = "1";
  lines.value = chosen.line;
  const reading = readings[chosen.line - 1];
  const names = reading.roles.map((each) => each.name);
  const titled = (name) => reading.roles.find((each) => each.name === name).title;
  offer("role", names, names.includes("cross") ? "cross" : names[0], titled);
  const before = role;
  role = reading.roles.find((each) => each.name === chosen.role);
  offer("layer", numbers(role.layers.length), String(role.layers.length));
  layer = role.layers[chosen.layer - 1];
  // The mean of a single head is that head.
  const heads = [...(layer.heads > 1 ? ["mean"] : []), ...numbers(layer.heads)];
  offer("head", heads, heads[0]);
  map = weightsOf(layer, chosen.head);
  if (role !== before) {
    pinned = {};
    find("#source").textContent = reading.source;
    find("#written").textContent = reading.written;
    build();
    tellPressed();
  }
}

function remember() {
  // A frame shares its address with the page that it is in.
  if (window !== top) return;
  const places = Object.entries(pinned).map(([side, place]) => [side, place + 1]);
  const { line, role, layer, head } = chosen;
  const given = { ...(readings.length > 1 && { line }), role, layer, head, ...Object.fromEntries(places) };
  history.replaceState(null, "", `#${new URLSearchParams(given)}`);
}

// ---- weights

// Of a head, or the mean of all: [q k] in one row.
function weightsOf(layer, head) {
  const all = unpacked(layer);
  const size = role.queries.length * role.keys.length;
  if (head !== "mean") return all.subarray((head - 1) * size, head * size);
  layer.mean ??= Float32Array.from({ length: size }, (_, place) => {
    let sum = 0;
    for (let each = 0; each < layer.heads; each += 1) sum += all[each * size + place];
    return sum / layer.heads;
  });
  return layer.mean;
}

// Of all heads, once they are wanted: [h q k] in one row.
function unpacked(layer) {
  if (!layer.all) {
    const bytes = Uint8Array.from(atob(layer.weights), (character) => character.charCodeAt(0));
    layer.all = Float32Array.from(new Int16Array(bytes.buffer), (number) => number * layer.step);
  }
  return layer.all;
}

function weight(query, key) {
  return map[query * role.keys.length + key];
}

// The greatest weight of the layer: all its heads are on one scale.
function most(layer) {
  layer.most ??= unpacked(layer).reduce((far, each) => Math.max(far, Math.abs(each)), 0) || 1;
  return layer.most;
}

// Three digits of the greatest weight.
function figure(value) {
  const decimals = Math.min(8, Math.max(0, 3 - Math.ceil(Math.log10(most(layer)))));
  return value.toFixed(decimals).replace("-", "−");
}

// ---- tokens

// Whether a sentence is read from the right: most of its letters are.
function fromTheRight(tokens) {
  const letters = tokens.filter((token) => !/^<\w+>$/.test(token)).join("").match(/\p{L}/gu) ?? [];
  const right = letters.filter((letter) =>
    /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u.test(letter));
  return right.length * 2 > letters.length;
}

function tokensOf(side) {
  return side === "query" ? role.queries : role.keys;
}

// What the role's tokens and layers decide, and no choice among them.
function build() {
  role.reversed = fromTheRight(role.keys);
  for (const side of ["query", "key"]) {
    const [list, axis] = every(`ol[data-side="${side}"]`);
    const items = (inside) => tokensOf(side).map((token, place) => {
      const item = make("li", {}, ...inside({ dir: "auto", title: token, textContent: token }, place));
      item.dataset.place = place;
      return item;
    });
    list.replaceChildren(...items((name, place) => [
      make("button", { ...name, type: "button", tabIndex: place ? -1 : 0 }),
      make("span", { className: "figure" }),
    ]));
    axis.replaceChildren(...items((name) => [make("span", name)]));
    const [queries, keys] = role.sides;
    const title = side === "query" ? `${queries} tokens (queries)` : `${keys} tokens (keys)`;
    const [across, down] = every(`[data-title="${side}"]`);
    across.textContent = title;
    down.textContent = `${side === "query" ? "↓" : role.reversed ? "←" : "→"} ${title}`;
  }
  find("#grid").classList.toggle("reversed", role.reversed);
  for (const scroll of every(".scroll")) scroll.scrollTo(0, 0);
  buildOverview();
}

function buildOverview() {
  const most = Math.max(...role.layers.map((each) => each.heads));
  const heads = most > 1 ? ["mean", ...numbers(most)] : ["1"];
  const named = (head) => (head === "mean" ? "mean of heads" : `head ${head}`);
  const titles = heads.map((head) => make("th", { scope: "col" }, head === "mean" ? head : named(head)));
  const top = make("tr", {}, make("td"), ...titles);
  const rows = role.layers.map((each, place) => {
    const cells = heads.filter((head) => head === "mean" || head <= each.heads).map((head) => {
      const title = `layer ${place + 1}, ${named(head)}`;
      const button = make("button", { type: "button", title, ariaLabel: title }, make("canvas"));
      Object.assign(button.dataset, { layer: place + 1, head });
      return make("td", {}, button);
    });
    return make("tr", {}, make("th", { scope: "row" }, `layer ${place + 1}`), ...cells);
  });
  find("#overview").replaceChildren(top, ...rows);
}

// ---- pictures

function readInks() {
  const style = getComputedStyle(document.documentElement);
  inks = ["--plus", "--minus"].map((name) => {
    const colour = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  });
}

function ink(value, opacity) {
  return `rgba(${inks[value < 0 ? 1 : 0].join()}, ${opacity})`;
}

// A pixel a weight, as opaque as it is great.
function paint(canvas, weights, most) {
  const [rows, columns] = [role.queries.length, role.keys.length];
  Object.assign(canvas, { width: columns, height: rows });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows);
  for (let place = 0; place < weights.length; place += 1) {
    const column = place % columns;
    const value = weights[place - column + keyAt(column)];
    const [red, green, blue] = inks[value < 0 ? 1 : 0];
    image.data[4 * place] = red;
    image.data[4 * place + 1] = green;
    image.data[4 * place + 2] = blue;
    image.data[4 * place + 3] = 255 * Math.abs(value) / most;
  }
  pen.putImageData(image, 0, 0);
}

// The key in a column of the heatmap, or the column of a key: of Hebrew, the first is at the right.
function keyAt(column) {
  return role.reversed ? role.keys.length - 1 - column : column;
}

function drawHeatmap() {
  const [rows, columns] = [role.queries.length, role.keys.length];
  const room = find("#heat").clientWidth - find("#grid .down").offsetWidth - 2;
  // Legible labels, and cells that fit where they can.
  const cell = Math.max(15, Math.min(34, Math.floor(room / columns), Math.floor(440 / rows)));
  find("#grid").style.setProperty("--cell", `${cell}px`);
  const canvas = find("#cells canvas");
  Object.assign(canvas.style, { width: `${cell * columns}px`, height: `${cell * rows}px` });
  paint(canvas, map, most(layer));
}

function drawOverview() {
  const shape = role.keys.length / role.queries.length;
  const [width, height] = shape > 1 ? [76, 76 / shape] : [76 * shape, 76];
  for (const button of every("#overview button")) {
    const each = role.layers[button.dataset.layer - 1];
    const canvas = button.firstChild;
    Object.assign(canvas.style, { width: `${Math.max(6, width)}px`, height: `${Math.max(6, height)}px` });
    paint(canvas, weightsOf(each, button.dataset.head), most(each));
  }
}

// As large as the view, whatever the sentence: it stays where one looks.
function sizeThreads() {
  const canvas = find("#threads");
  canvas.style.height = 0;
  canvas.style.height = `${find("#lines").clientHeight}px`;
  const { clientWidth, clientHeight } = canvas;
  Object.assign(canvas, { width: clientWidth * devicePixelRatio, height: clientHeight * devicePixelRatio });
}

function drawThreads() {
  const canvas = find("#threads");
  const [width, height] = [canvas.width / devicePixelRatio, canvas.height / devicePixelRatio];
  const top = find("#lines").scrollTop;
  const pen = canvas.getContext("2d");
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const { query, key } = shown();
  const from = query === undefined ? role.queries.keys() : [query];
  for (const one of from) {
    const to = query === undefined && key !== undefined ? [key] : role.keys.keys();
    for (const other of to) {
      const value = weight(one, other);
      const strength = Math.abs(value) / most(layer);
      const [start, end] = [one, other].map((place) => (place + 0.5) * ROW - top);
      if (strength < FAINTEST || Math.max(start, end) < 0 || Math.min(start, end) > height) continue;
      pen.strokeStyle = ink(value, strength);
      pen.lineWidth = 1 + 2 * strength;
      pen.beginPath();
      pen.moveTo(0, start);
      pen.bezierCurveTo(width / 2, start, width / 2, end, width, end);
      pen.stroke();
    }
  }
}

function drawScale() {
  const [low, none, high, told] = every("#scale > span");
  const negative = unpacked(layer).some((each) => each < 0);
  low.textContent = negative ? `weight ${figure(-most(layer))}` : "weight";
  find("#scale .minus").hidden = !negative;
  none.textContent = figure(0);
  high.textContent = figure(most(layer));
  const sums = role.queries.map((_, query) => role.keys.reduce((sum, _, key) => sum + weight(query, key), 0));
  const [least, greatest] = [Math.min(...sums), Math.max(...sums)];
  const range = [...new Set([short(least), short(greatest)])].join(" to ");
  told.textContent = least > 0.99 && greatest < 1.01
    ? "The weights of a query sum to 1."
    : `The weights of a query do not sum to 1 here, but to ${range}.`;
}

function short(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

// ---- pointing

function shown() {
  return pointed ?? pinned;
}

// How a token is lit: by its weight with the one that is pointed at on the other side. Of a cell,
// the query's weights are shown.
function lightOf(side, place) {
  const { query, key } = shown();
  if (side === "key") return query === undefined ? 0 : weight(query, place);
  return query === undefined && key !== undefined ? weight(place, key) : 0;
}

function light() {
  const { query, key } = shown();
  for (const list of every("ol[data-side]")) {
    const { side } = list.dataset;
    for (const item of list.children) {
      const place = Number(item.dataset.place);
      const value = lightOf(side, place);
      const strength = Math.abs(value) / most(layer);
      // Text stays legible on it.
      item.style.backgroundColor = strength ? ink(value, 0.45 * strength) : "";
      item.classList.toggle("at", place === (side === "query" ? query : key));
      if (!item.lastChild.classList.contains("figure")) continue;
      item.lastChild.textContent = strength < FAINTEST ? "" : figure(value);
    }
  }
  const mark = find("#mark");
  mark.hidden = query === undefined && key === undefined;
  const cell = "var(--cell)";
  Object.assign(mark.style, {
    top: query === undefined ? 0 : `calc(${query} * ${cell})`,
    height: query === undefined ? "100%" : cell,
    left: key === undefined ? 0 : `calc(${keyAt(key)} * ${cell})`,
    width: key === undefined ? "100%" : cell,
  });
  tell();
  drawThreads();
}

// The same in words, with the greatest weights of a token that is pointed at.
function tell() {
  const { query, key } = shown();
  const name = (side, place) => make("b", { dir: "auto" }, tokensOf(side)[place]);
  const told = find("#told");
  if (query !== undefined && key !== undefined) {
    told.replaceChildren(name("query", query), " attends to ", name("key", key), ` with ${figure(weight(query, key))}`);
    return;
  }
  if (query === undefined && key === undefined) {
    told.replaceChildren("Point at a token to see what it attends to, or at a cell. Press to keep it.");
    return;
  }
  const [side, other] = key === undefined ? ["query", "key"] : ["key", "query"];
  const weightAt = (place) => (key === undefined ? weight(query, place) : weight(place, key));
  const greatest = tokensOf(other).map((_, place) => place).filter(weightAt)
    .sort((one, two) => Math.abs(weightAt(two)) - Math.abs(weightAt(one))).slice(0, 5);
  const listed = greatest.flatMap((place, rank) =>
    [rank ? ", " : " ", name(other, place), ` ${figure(weightAt(place))}`]);
  const verb = key === undefined ? " attends to" : " is attended to by";
  told.replaceChildren(name(side, shown()[side]), verb, ...(listed.length ? listed : [" nothing"]));
}

function same(one, other) {
  return one?.query === other?.query && one?.key === other?.key;
}

function point(at) {
  if (same(at, pointed)) return;
  pointed = at;
  light();
}

function press(at) {
  pinned = same(at, pinned) ? {} : at;
  tellPressed();
  remember();
  light();
}

function tellPressed() {
  for (const button of every(".tokens button")) {
    const [[side, place]] = Object.entries(tokenAt(button));
    button.setAttribute("aria-pressed", pinned[side] === place);
  }
}

function draw() {
  sizeThreads();
  drawHeatmap();
  drawScale();
  for (const button of every("#overview button")) {
    const { layer, head } = button.dataset;
    button.setAttribute("aria-pressed", layer === chosen.layer && head === chosen.head);
  }
  light();
}

function choose(choices) {
  const before = role;
  Object.assign(chosen, choices);
  settle();
  if (role !== before) drawOverview();
  remember();
  draw();
}

function tokenAt(target) {
  const item = target.closest("ol[data-side] li");
  return item && { [item.parentElement.dataset.side]: Number(item.dataset.place) };
}

function cellAt(event) {
  const box = find("#cells canvas").getBoundingClientRect();
  const part = (at, start, size, count) => within(Math.floor((at - start) / size * count), count);
  const column = part(event.clientX, box.left, box.width, role.keys.length);
  return { query: part(event.clientY, box.top, box.height, role.queries.length), key: keyAt(column) };
}

function within(place, count) {
  return Math.max(0, Math.min(count - 1, place));
}

find("#choices").addEventListener("change", ({ target }) => choose({ [target.name]: target.value }));
find("#choices").addEventListener("submit", (event) => event.preventDefault());
find("#overview").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) choose({ layer: button.dataset.layer, head: button.dataset.head });
});
for (const panel of every(".panels .scroll")) {
  // Not `pointerover`, which comes of scrolling too.
  panel.addEventListener("pointermove", ({ target }) => {
    const at = tokenAt(target);
    if (at) point(at);
  });
  panel.addEventListener("pointerleave", () => {
    // The page may have moved from under the pointer, by the keyboard.
    if (!panel.matches(":focus-visible, :has(:focus-visible)")) point(null);
  });
  panel.addEventListener("focusin", ({ target }) => {
    const at = target.matches(":focus-visible") && tokenAt(target);
    if (at) point(at);
  });
  panel.addEventListener("focusout", () => point(null));
  panel.addEventListener("click", ({ target }) => {
    const at = tokenAt(target);
    if (at) press(at);
  });
}
find("#threads").addEventListener("pointermove", () => point(null));
find("#cells").addEventListener("pointermove", (event) => point(cellAt(event)));
find("#cells").addEventListener("click", (event) => press(cellAt(event)));
find("#lines").addEventListener("scroll", drawThreads);

// One token of a list is reached by the tabulator, the others from there by the arrows.
find("#lines").addEventListener("keydown", (event) => {
  const item = event.target.closest("li");
  if (!item) return;
  const [list, place] = [item.parentElement, Number(item.dataset.place)];
  const last = list.children.length - 1;
  const across = list.dataset.side === "query" ? "key" : "query";
  const next = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: last }[event.key];
  if (next !== undefined) {
    event.preventDefault();
    const button = list.children[within(next, last + 1)].firstChild;
    for (const each of list.children) each.firstChild.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    find(`.tokens[data-side="${across}"] [tabindex="0"]`).focus();
  }
});
find("#heat").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && pointed) press(pointed);
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const [down, on] = moves[event.key];
  const { query, key } = pointed ?? {};
  if (query === undefined || key === undefined) {
    point({ query: 0, key: 0 });
  } else {
    point({
      query: within(query + down, role.queries.length),
      key: within(key + (role.reversed ? -on : on), role.keys.length),
    });
  }
  find("#mark").scrollIntoView({ block: "nearest", inline: "nearest" });
});
addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  pointed = null;
  press({});
});

// ---- start

function start() {
  readInks();
  settle();
  const places = ["query", "key"].map((side) => [side, chosen[side] - 1]);
  pinned = Object.fromEntries(places.filter(([side, place]) => place in tokensOf(side)));
  tellPressed();
  drawOverview();
  draw();
}

find("#several").hidden = readings.length === 1;
find("select").append(...readings.map((reading, place) =>
  make("option", { value: place + 1, textContent: `${place + 1}. ${reading.source}` })));
start();
addEventListener("hashchange", () => {
  chosen = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  start();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readInks();
  drawOverview();
  draw();
});
let width;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) draw();
  width = contentRect.width;
}).observe(find("main"));
if (window.frameElement) {
  document.documentElement.classList.add("framed");
  const fit = () => { frameElement.style.height = `${document.documentElement.offsetHeight}px`; };
  new ResizeObserver(fit).observe(document.documentElement);
}
