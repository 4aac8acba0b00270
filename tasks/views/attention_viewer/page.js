"use strict";
const records = JSON.parse(document.getElementById("records").textContent);
const ROW = 26; // height of a token in the line view, as in page.css
const FAINTEST = 0.02; // of the largest weight: weaker lines are not drawn
const find = (selector) => document.querySelector(selector);
const findAll = (selector) => [...document.querySelectorAll(selector)];

// The choices, as in the hash of the address. Lines and tokens count from 1, layers and heads from 0.
let selection = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
// The token of each side, by its index, that was pressed, and that the pointer or keyboard is at.
let pressedTokens = {};
let pointedTokens = null;
let role; // of the selected line
let layer; // of the role
let map; // the weights of the selected head
let colours; // red, green and blue of weights above zero, and below

function createElement(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// ---- choices

function numbers(count, first) {
  return Array.from({ length: count }, (_, index) => String(first + index));
}

// Show the choices, and select the fallback if the current choice is not one of them.
function updateChoices(name, values, fallback, title = (value) => value) {
  if (!values.includes(selection[name])) selection[name] = fallback;
  const group = find(`[data-name="${name}"]`);
  if (group.dataset.values !== values.join()) {
    group.dataset.values = values.join();
    group.replaceChildren(...values.map((value) => {
      const input = createElement("input", { type: "radio", name, value });
      return createElement("label", {}, input, title(value));
    }));
  }
  for (const input of group.querySelectorAll("input")) input.checked = input.value === selection[name];
}

function resolveSelection() {
  const lines = find("select");
  if (!numbers(records.length, 1).includes(selection.line)) selection.line = "1";
  lines.value = selection.line;
  const record = records[selection.line - 1];
  const names = record.roles.map((each) => each.name);
  const roleTitle = (name) => record.roles.find((each) => each.name === name).title;
  updateChoices("role", names, names.includes("cross") ? "cross" : names[0], roleTitle);
  const before = role;
  role = record.roles.find((each) => each.name === selection.role);
  updateChoices("layer", numbers(role.layers.length, 0), String(role.layers.length - 1));
  layer = role.layers[selection.layer];
  // A single head needs no mean.
  const heads = [...(layer.heads > 1 ? ["mean"] : []), ...numbers(layer.heads, 0)];
  updateChoices("head", heads, heads[0]);
  map = headWeights(layer, selection.head);
  if (role !== before) {
    pressedTokens = {};
    find("#source").textContent = record.source;
    find("#target").textContent = record.target;
    buildTokens();
    updatePressed();
  }
}

function saveSelection() {
  // A frame shares its address with the page that it is in.
  if (window !== top) return;
  const positions = Object.entries(pressedTokens).map(([side, index]) => [side, index + 1]);
  const { line, role, layer, head } = selection;
  const parameters = { ...(records.length > 1 && { line }), role, layer, head, ...Object.fromEntries(positions) };
  history.replaceState(null, "", `#${new URLSearchParams(parameters)}`);
}

// ---- weights

// Return the weights of a head, or the mean over heads: [q k], flat.
function headWeights(layer, head) {
  const all = decodeWeights(layer);
  const size = role.queries.length * role.keys.length;
  if (head !== "mean") return all.subarray(head * size, (Number(head) + 1) * size);
  layer.mean ??= Float32Array.from({ length: size }, (_, index) => {
    let sum = 0;
    for (let each = 0; each < layer.heads; each += 1) sum += all[each * size + index];
    return sum / layer.heads;
  });
  return layer.mean;
}

// Return the weights of all heads, decoded at the first call: [h q k], flat.
function decodeWeights(layer) {
  if (!layer.all) {
    const bytes = Uint8Array.from(atob(layer.weights), (character) => character.charCodeAt(0));
    layer.all = Float32Array.from(new Int16Array(bytes.buffer), (number) => number * layer.step);
  }
  return layer.all;
}

function weight(query, key) {
  return map[query * role.keys.length + key];
}

// Return the largest weight of a layer, the scale of all its heads.
function largestWeight(layer) {
  layer.largest ??= decodeWeights(layer).reduce((largest, each) => Math.max(largest, Math.abs(each)), 0) || 1;
  return layer.largest;
}

// Format a weight so that the largest has three digits.
function formatWeight(value) {
  const decimals = Math.min(8, Math.max(0, 3 - Math.ceil(Math.log10(largestWeight(layer)))));
  return value.toFixed(decimals).replace("-", "−");
}

// ---- tokens

// Return whether most letters are read from right to left.
function isRightToLeft(tokens) {
  const letters = tokens.filter((token) => !/^<\w+>$/.test(token)).join("").match(/\p{L}/gu) ?? [];
  const right = letters.filter((letter) =>
    /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u.test(letter));
  return right.length * 2 > letters.length;
}

function sideTokens(side) {
  return side === "query" ? role.queries : role.keys;
}

// Build what depends on the tokens and layers of the role only.
function buildTokens() {
  role.reversed = isRightToLeft(role.keys);
  for (const side of ["query", "key"]) {
    const [list, axis] = findAll(`ol[data-side="${side}"]`);
    const items = (inside) => sideTokens(side).map((token, index) => {
      const item = createElement("li", {}, ...inside({ dir: "auto", title: token, textContent: token }, index));
      item.dataset.index = index;
      return item;
    });
    list.replaceChildren(...items((name, index) => [
      createElement("button", { ...name, type: "button", tabIndex: index ? -1 : 0 }),
      createElement("span", { className: "figure" }),
    ]));
    axis.replaceChildren(...items((name) => [createElement("span", name)]));
    const [queries, keys] = role.sides;
    const title = side === "query" ? `${queries} tokens (queries)` : `${keys} tokens (keys)`;
    const [across, down] = findAll(`[data-title="${side}"]`);
    across.textContent = title;
    down.textContent = `${side === "query" ? "↓" : role.reversed ? "←" : "→"} ${title}`;
  }
  find("#grid").classList.toggle("reversed", role.reversed);
  for (const scroll of findAll(".scroll")) scroll.scrollTo(0, 0);
  buildOverview();
}

function buildOverview() {
  const maxHeads = Math.max(...role.layers.map((each) => each.heads));
  const heads = maxHeads > 1 ? ["mean", ...numbers(maxHeads, 0)] : ["0"];
  const named = (head) => (head === "mean" ? "mean of heads" : `head ${head}`);
  const titles = heads.map((head) => createElement("th", { scope: "col" }, head === "mean" ? head : named(head)));
  const top = createElement("tr", {}, createElement("td"), ...titles);
  const rows = role.layers.map((each, index) => {
    const cells = heads.filter((head) => head === "mean" || head < each.heads).map((head) => {
      const title = `layer ${index}, ${named(head)}`;
      const button = createElement("button", { type: "button", title, ariaLabel: title }, createElement("canvas"));
      Object.assign(button.dataset, { layer: index, head });
      return createElement("td", {}, button);
    });
    return createElement("tr", {}, createElement("th", { scope: "row" }, `layer ${index}`), ...cells);
  });
  find("#overview").replaceChildren(top, ...rows);
}

// ---- drawing

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = ["--plus", "--minus"].map((name) => {
    const colour = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  });
}

function colourOf(value, opacity) {
  return `rgba(${colours[value < 0 ? 1 : 0].join()}, ${opacity})`;
}

// Paint a pixel for each weight, more opaque for a larger weight.
function paint(canvas, weights, largest) {
  const [rows, columns] = [role.queries.length, role.keys.length];
  Object.assign(canvas, { width: columns, height: rows });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows);
  for (let index = 0; index < weights.length; index += 1) {
    const column = index % columns;
    const value = weights[index - column + keyInColumn(column)];
    const [red, green, blue] = colours[value < 0 ? 1 : 0];
    image.data[4 * index] = red;
    image.data[4 * index + 1] = green;
    image.data[4 * index + 2] = blue;
    image.data[4 * index + 3] = 255 * Math.abs(value) / largest;
  }
  pen.putImageData(image, 0, 0);
}

// Return the key of a heatmap's column, or the column of a key. The first key of Hebrew is at the right.
function keyInColumn(column) {
  return role.reversed ? role.keys.length - 1 - column : column;
}

function drawHeatmap() {
  const [rows, columns] = [role.queries.length, role.keys.length];
  const room = find("#heat").clientWidth - find("#grid .down").offsetWidth - 2;
  // Labels must be legible; cells fit if they can.
  const cell = Math.max(15, Math.min(34, Math.floor(room / columns), Math.floor(440 / rows)));
  find("#grid").style.setProperty("--cell", `${cell}px`);
  const canvas = find("#cells canvas");
  Object.assign(canvas.style, { width: `${cell * columns}px`, height: `${cell * rows}px` });
  paint(canvas, map, largestWeight(layer));
}

function drawOverview() {
  const shape = role.keys.length / role.queries.length;
  const [width, height] = shape > 1 ? [76, 76 / shape] : [76 * shape, 76];
  for (const button of findAll("#overview button")) {
    const each = role.layers[button.dataset.layer];
    const canvas = button.firstChild;
    Object.assign(canvas.style, { width: `${Math.max(6, width)}px`, height: `${Math.max(6, height)}px` });
    paint(canvas, headWeights(each, button.dataset.head), largestWeight(each));
  }
}

// Make the canvas as large as the view; it does not scroll with the tokens.
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
  const { query, key } = activeTokens();
  const from = query === undefined ? role.queries.keys() : [query];
  for (const one of from) {
    const to = query === undefined && key !== undefined ? [key] : role.keys.keys();
    for (const other of to) {
      const value = weight(one, other);
      const strength = Math.abs(value) / largestWeight(layer);
      const [start, end] = [one, other].map((index) => (index + 0.5) * ROW - top);
      if (strength < FAINTEST || Math.max(start, end) < 0 || Math.min(start, end) > height) continue;
      pen.strokeStyle = colourOf(value, strength);
      pen.lineWidth = 1 + 2 * strength;
      pen.beginPath();
      pen.moveTo(0, start);
      pen.bezierCurveTo(width / 2, start, width / 2, end, width, end);
      pen.stroke();
    }
  }
}

function drawScale() {
  const [low, zero, high, text] = findAll("#scale > span");
  const negative = decodeWeights(layer).some((each) => each < 0);
  low.textContent = negative ? `weight ${formatWeight(-largestWeight(layer))}` : "weight";
  find("#scale .minus").hidden = !negative;
  zero.textContent = formatWeight(0);
  high.textContent = formatWeight(largestWeight(layer));
  const sums = role.queries.map((_, query) => role.keys.reduce((sum, _, key) => sum + weight(query, key), 0));
  const [least, greatest] = [Math.min(...sums), Math.max(...sums)];
  const range = [...new Set([formatSum(least), formatSum(greatest)])].join(" to ");
  text.textContent = least > 0.99 && greatest < 1.01
    ? "The weights of a query sum to 1."
    : `The weights of a query do not sum to 1 here, but to ${range}.`;
}

function formatSum(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

// ---- pointing

function activeTokens() {
  return pointedTokens ?? pressedTokens;
}

// Return the weight that colours a token: that with the active token on the other side. An active
// cell shows the weights of its query.
function highlightWeight(side, index) {
  const { query, key } = activeTokens();
  if (side === "key") return query === undefined ? 0 : weight(query, index);
  return query === undefined && key !== undefined ? weight(index, key) : 0;
}

function highlight() {
  const { query, key } = activeTokens();
  for (const list of findAll("ol[data-side]")) {
    const { side } = list.dataset;
    for (const item of list.children) {
      const index = Number(item.dataset.index);
      const value = highlightWeight(side, index);
      const strength = Math.abs(value) / largestWeight(layer);
      // Text must be legible on it.
      item.style.backgroundColor = strength ? colourOf(value, 0.45 * strength) : "";
      item.classList.toggle("at", index === (side === "query" ? query : key));
      if (!item.lastChild.classList.contains("figure")) continue;
      item.lastChild.textContent = strength < FAINTEST ? "" : formatWeight(value);
    }
  }
  const mark = find("#mark");
  mark.hidden = query === undefined && key === undefined;
  const cell = "var(--cell)";
  Object.assign(mark.style, {
    top: query === undefined ? 0 : `calc(${query} * ${cell})`,
    height: query === undefined ? "100%" : cell,
    left: key === undefined ? 0 : `calc(${keyInColumn(key)} * ${cell})`,
    width: key === undefined ? "100%" : cell,
  });
  describe();
  drawThreads();
}

// Describe the active cell, or the active token with its largest weights.
function describe() {
  const { query, key } = activeTokens();
  const name = (side, index) => createElement("b", { dir: "auto" }, sideTokens(side)[index]);
  const description = find("#description");
  if (query !== undefined && key !== undefined) {
    description.replaceChildren(name("query", query), " attends to ", name("key", key), ` with ${formatWeight(weight(query, key))}`);
    return;
  }
  if (query === undefined && key === undefined) {
    description.replaceChildren("Point at a token to see what it attends to, or at a cell. Press to keep it.");
    return;
  }
  const [side, other] = key === undefined ? ["query", "key"] : ["key", "query"];
  const weightAt = (index) => (key === undefined ? weight(query, index) : weight(index, key));
  const greatest = sideTokens(other).map((_, index) => index).filter(weightAt)
    .sort((one, two) => Math.abs(weightAt(two)) - Math.abs(weightAt(one))).slice(0, 5);
  const names = greatest.flatMap((index, rank) =>
    [rank ? ", " : " ", name(other, index), ` ${formatWeight(weightAt(index))}`]);
  const verb = key === undefined ? " attends to" : " is attended to by";
  description.replaceChildren(name(side, activeTokens()[side]), verb, ...(names.length ? names : [" nothing"]));
}

function isSame(one, other) {
  return one?.query === other?.query && one?.key === other?.key;
}

function pointAt(at) {
  if (isSame(at, pointedTokens)) return;
  pointedTokens = at;
  highlight();
}

function pressAt(at) {
  pressedTokens = isSame(at, pressedTokens) ? {} : at;
  updatePressed();
  saveSelection();
  highlight();
}

function updatePressed() {
  for (const button of findAll(".tokens button")) {
    const [[side, index]] = Object.entries(tokenAt(button));
    button.setAttribute("aria-pressed", pressedTokens[side] === index);
  }
}

function draw() {
  sizeThreads();
  drawHeatmap();
  drawScale();
  for (const button of findAll("#overview button")) {
    const { layer, head } = button.dataset;
    button.setAttribute("aria-pressed", layer === selection.layer && head === selection.head);
  }
  highlight();
}

function choose(choices) {
  const before = role;
  Object.assign(selection, choices);
  resolveSelection();
  if (role !== before) drawOverview();
  saveSelection();
  draw();
}

function tokenAt(target) {
  const item = target.closest("ol[data-side] li");
  return item && { [item.parentElement.dataset.side]: Number(item.dataset.index) };
}

function cellAt(event) {
  const box = find("#cells canvas").getBoundingClientRect();
  const part = (at, start, size, count) => clamp(Math.floor((at - start) / size * count), count);
  const column = part(event.clientX, box.left, box.width, role.keys.length);
  return { query: part(event.clientY, box.top, box.height, role.queries.length), key: keyInColumn(column) };
}

function clamp(index, count) {
  return Math.max(0, Math.min(count - 1, index));
}

find("#choices").addEventListener("change", ({ target }) => choose({ [target.name]: target.value }));
find("#choices").addEventListener("submit", (event) => event.preventDefault());
find("#overview").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) choose({ layer: button.dataset.layer, head: button.dataset.head });
});
for (const panel of findAll(".panels .scroll")) {
  // `pointerover` would also fire when the page scrolls.
  panel.addEventListener("pointermove", ({ target }) => {
    const at = tokenAt(target);
    if (at) pointAt(at);
  });
  panel.addEventListener("pointerleave", () => {
    // The keyboard may have moved the page under the pointer.
    if (!panel.matches(":focus-visible, :has(:focus-visible)")) pointAt(null);
  });
  panel.addEventListener("focusin", ({ target }) => {
    const at = target.matches(":focus-visible") && tokenAt(target);
    if (at) pointAt(at);
  });
  panel.addEventListener("focusout", () => pointAt(null));
  panel.addEventListener("click", ({ target }) => {
    const at = tokenAt(target);
    if (at) pressAt(at);
  });
}
find("#threads").addEventListener("pointermove", () => pointAt(null));
find("#cells").addEventListener("pointermove", (event) => pointAt(cellAt(event)));
find("#cells").addEventListener("click", (event) => pressAt(cellAt(event)));
find("#lines").addEventListener("scroll", drawThreads);

// The tab key reaches one token of a list, and the arrow keys reach the others from there.
find("#lines").addEventListener("keydown", (event) => {
  const item = event.target.closest("li");
  if (!item) return;
  const [list, index] = [item.parentElement, Number(item.dataset.index)];
  const last = list.children.length - 1;
  const across = list.dataset.side === "query" ? "key" : "query";
  const next = { ArrowUp: index - 1, ArrowDown: index + 1, Home: 0, End: last }[event.key];
  if (next !== undefined) {
    event.preventDefault();
    const button = list.children[clamp(next, last + 1)].firstChild;
    for (const each of list.children) each.firstChild.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    find(`.tokens[data-side="${across}"] [tabindex="0"]`).focus();
  }
});
find("#heat").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && pointedTokens) pressAt(pointedTokens);
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const [down, on] = moves[event.key];
  const { query, key } = pointedTokens ?? {};
  if (query === undefined || key === undefined) {
    pointAt({ query: 0, key: 0 });
  } else {
    pointAt({
      query: clamp(query + down, role.queries.length),
      key: clamp(key + (role.reversed ? -on : on), role.keys.length),
    });
  }
  find("#mark").scrollIntoView({ block: "nearest", inline: "nearest" });
});
addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  pointedTokens = null;
  pressAt({});
});

// ---- start

function start() {
  readColours();
  resolveSelection();
  const positions = ["query", "key"].map((side) => [side, selection[side] - 1]);
  pressedTokens = Object.fromEntries(positions.filter(([side, index]) => index in sideTokens(side)));
  updatePressed();
  drawOverview();
  draw();
}

find("#line").hidden = records.length === 1;
find("select").append(...records.map((record, index) =>
  createElement("option", { value: index + 1, textContent: `${index + 1}. ${record.source}` })));
start();
addEventListener("hashchange", () => {
  selection = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  start();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  drawOverview();
  draw();
});
let width;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width !== width) draw();
  width = contentRect.width;
}).observe(find("main"));
if (window.frameElement) {
  document.documentElement.classList.add("in-frame");
  const fit = () => { frameElement.style.height = `${document.documentElement.offsetHeight}px`; };
  new ResizeObserver(fit).observe(document.documentElement);
}
