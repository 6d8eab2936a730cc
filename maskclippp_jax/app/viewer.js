// Shows an answer (views.py): coloured segments over the picture, their names, the best names of
// the one that is pointed at or chosen, a legend, a table. Text from people enters as text only.
// Gradio gives `element`, `props` and `watch`.

const LAYERS = { segments: "Segments", semantic: "Semantic map", instances: "Instances" };
const find = (selector) => element.querySelector(selector);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
const percent = (share) => (share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`);
const score = (value) => value.toFixed(2);

const canvas = find("canvas"), tip = find(".mc-tip");
let answer = null, shown = "segments", maps = {}, hovered = 0, chosen = 0, asked = 0;

function numbersOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const numbers = new Uint16Array(canvas.width * canvas.height);
  for (let i = 0; i < numbers.length; i++) numbers[i] = data[4 * i] + 256 * data[4 * i + 1];
  return numbers;
}

async function loaded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function paint() {
  if (!answer || !maps[shown]) return;
  const { width, height } = answer, numbers = maps[shown];
  const items = answer.layers[shown].items, opacity = Number(find("[name=opacity]").value) / 100;
  const colors = items.map((item) => [1, 3, 5].map((i) => parseInt(item.color.slice(i, i + 2), 16)));
  const marked = hovered || chosen;
  find(".mc-stage img").style.filter = `saturate(${1 - 0.7 * opacity})`;  // regions look like their legend
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  const data = pixels.data;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const n = numbers[i];
      const right = x + 1 < width ? numbers[i + 1] : n, below = y + 1 < height ? numbers[i + width] : n;
      const at = 4 * i;
      if (n !== right || n !== below) {
        const near = marked && (n === marked || right === marked || below === marked);
        data[at] = data[at + 1] = data[at + 2] = 255;
        data[at + 3] = near ? 255 : 200 * Math.min(1, 2 * opacity);
      } else if (n) {
        const [red, green, blue] = colors[n - 1];
        data[at] = red;
        data[at + 1] = green;
        data[at + 2] = blue;
        const share = !marked ? opacity : n === marked ? Math.max(opacity, 0.6) : 0.35 * opacity;
        data[at + 3] = 255 * share;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

// Names stand at the middle of their segments, inside the picture, the larger one first; one that
// finds no free place is left to the legend.
function placeNames() {
  const box = find(".mc-names"), stage = find(".mc-stage");
  box.replaceChildren();
  if (!answer || !LAYERS[shown] || !find("[name=names]").checked) return;
  const { clientWidth: wide, clientHeight: high } = stage, taken = [];
  answer.layers[shown].items.forEach((item, index) => {
    if (item.share < 0.002 || taken.length >= 30) return;
    const label = make("span", "mc-name", item.name);
    label.style.borderColor = item.color;
    box.append(label);
    const w = label.offsetWidth, h = label.offsetHeight;
    const left = Math.min(Math.max(item.x * wide - w / 2, 2), Math.max(wide - w - 2, 2));
    const free = (top) => taken.every(([l, t, r, b]) => left > r || left + w < l || top > b || top + h < t);
    const middle = item.y * high - h / 2;
    const tops = [0, 1, -1, 2, -2].map((k) => middle + k * (h / 2 + 2));
    const top = tops.map((t) => Math.min(Math.max(t, 2), high - h - 2)).find(free);
    if (top === undefined) return label.remove();
    taken.push([left, top, left + w, top + h]);
    label.style.left = `${left}px`;
    label.style.top = `${top}px`;
    label.dataset.number = index + 1;
  });
  markNames();
}

function markNames() {
  const marked = hovered || chosen;
  element.querySelectorAll(".mc-name, .mc-legend button").forEach((label) => {
    label.classList.toggle("mc-faint", marked > 0 && Number(label.dataset.number) !== marked);
    label.classList.toggle("mc-marked", Number(label.dataset.number) === marked);
  });
}

function bestNames(item) {
  const list = make("div", "mc-best");
  for (const [name, value] of item.top) {
    const bar = make("span", "mc-bar"), fill = make("i");
    fill.style.width = `${100 * value}%`;
    fill.style.background = item.color;
    bar.append(fill);
    list.append(make("span", "mc-best-name", name), bar, make("span", "mc-number", score(value)));
  }
  return list;
}

function showCard() {
  const card = find(".mc-card"), item = LAYERS[shown] && answer?.layers[shown].items[chosen - 1];
  card.replaceChildren();
  card.hidden = !item;
  if (!item) return;
  const head = make("div", "mc-card-head"), swatch = make("span", "mc-swatch");
  swatch.style.background = item.color;
  const close = make("button", "mc-close", "×");
  close.setAttribute("aria-label", "Close");
  close.onclick = () => choose(0);
  head.append(swatch, make("strong", "", item.name), make("span", "mc-soft", percent(item.share)), close);
  card.append(head, bestNames(item));
}

function mark(number) {
  if (number === hovered) return;
  hovered = number;
  paint();
  markNames();
}

function choose(number) {
  chosen = chosen === number ? 0 : number;
  tip.hidden = true;
  paint();
  markNames();
  showCard();
}

function showLegend() {
  const legend = find(".mc-legend");
  legend.replaceChildren();
  answer.layers[shown].items.forEach((item, index) => {
    const row = make("li"), button = make("button"), swatch = make("span", "mc-swatch");
    swatch.style.background = item.color;
    button.dataset.number = index + 1;
    button.title = `${item.name}: ${percent(item.share)} of the picture, score ${score(item.top[0][1])}`;
    button.append(swatch, make("span", "mc-legend-name", item.name),
                  make("span", "mc-number mc-soft", percent(item.share)),
                  make("span", "mc-number", score(item.top[0][1])));
    button.onpointerenter = () => mark(index + 1);
    button.onpointerleave = () => mark(0);
    button.onclick = () => choose(index + 1);
    row.append(button);
    legend.append(row);
  });
  if (!answer.layers[shown].items.length) legend.append(make("li", "mc-soft", "Nothing has a name here."));
}

function showTable() {
  const body = find("tbody");
  body.replaceChildren();
  for (const mask of answer.masks) {
    const row = make("tr"), name = make("td"), swatch = make("span", "mc-swatch");
    swatch.style.background = mask.color;
    name.append(swatch, make("span", "", mask.name ?? "no name"));
    const others = mask.top.slice(mask.name === mask.top[0][0] ? 1 : 0, 4)
      .map(([other, value]) => `${other} ${score(value)}`).join(", ");
    row.append(make("td", "mc-number", mask.number), name, make("td", "mc-number", score(mask.top[0][1])),
               make("td", "mc-number", percent(mask.share)), make("td", "mc-soft", others));
    body.append(row);
  }
}

function show(tab) {
  shown = tab;
  hovered = chosen = 0;
  element.querySelectorAll("[role=tab]").forEach((button) => {
    button.setAttribute("aria-selected", button.dataset.tab === tab);
    button.tabIndex = button.dataset.tab === tab ? 0 : -1;
  });
  find(".mc-table").hidden = tab !== "table";
  find(".mc-picture").hidden = tab === "table";
  tip.hidden = true;
  if (!answer) return;
  if (tab === "table") return showTable();
  paint();
  showLegend();
  showCard();
  placeNames();
}

async function arrive(value) {
  const mine = ++asked;
  const urls = value ? Object.keys(LAYERS).map((layer) => value.layers[layer].map) : [];
  const images = await Promise.all([value?.picture, ...urls].filter(Boolean).map(loaded));
  if (mine !== asked) return;  // a newer answer has come
  answer = value;
  find(".mc-answer").hidden = !answer;
  find(".mc-empty").hidden = Boolean(answer);
  if (!answer) return;
  maps = Object.fromEntries(Object.keys(LAYERS).map((layer, i) => [layer, numbersOf(images[i + 1])]));
  const picture = find(".mc-stage img");
  picture.src = answer.picture;
  find(".mc-stage").style.aspectRatio = `${answer.width} / ${answer.height}`;
  find(".mc-stage").style.setProperty("--ratio", answer.width / answer.height);
  find(".mc-stage").classList.toggle("mc-crisp", answer.crisp);
  find(".mc-notes").replaceChildren(...answer.notes.map((note) => make("li", "", note)));
  show(shown);
  if (find(".mc-view").getBoundingClientRect().top > 0.8 * window.innerHeight) {  // on a phone
    find(".mc-view").scrollIntoView({ behavior: "smooth", block: "start" });
  }
  element.dataset.answers = Number(element.dataset.answers ?? 0) + 1;
}

function numberAt(event) {
  const box = find("canvas").getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * answer.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * answer.height);
  return x >= 0 && y >= 0 && x < answer.width && y < answer.height ? maps[shown][y * answer.width + x] : 0;
}

canvas.addEventListener("pointermove", (event) => {
  if (!answer || event.pointerType === "touch") return;
  const number = numberAt(event), item = answer.layers[shown].items[number - 1];
  mark(number);
  tip.hidden = !item || number === chosen;  // the card tells the same
  if (tip.hidden) return;
  if (Number(tip.dataset.number) !== number) {
    tip.dataset.number = number;
    tip.replaceChildren(bestNames(item));
  }
  const box = find(".mc-stage").getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  tip.style.left = `${Math.max(0, x + 16 + tip.offsetWidth > box.width ? x - 16 - tip.offsetWidth : x + 16)}px`;
  tip.style.top = `${Math.max(0, y + 16 + tip.offsetHeight > box.height ? y - 8 - tip.offsetHeight : y + 16)}px`;
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; mark(0); });
canvas.addEventListener("click", (event) => answer && choose(numberAt(event)));
find("[name=opacity]").addEventListener("input", paint);
find("[name=names]").addEventListener("change", placeNames);
find("[role=tablist]").addEventListener("click", (event) => {
  const tab = event.target.closest("[role=tab]");
  if (tab) show(tab.dataset.tab);
});
find("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...element.querySelectorAll("[role=tab]")];
  const next = tabs[(tabs.findIndex((tab) => tab.dataset.tab === shown) + step + tabs.length) % tabs.length];
  show(next.dataset.tab);
  next.focus();
});
new ResizeObserver(placeNames).observe(find(".mc-stage"));
watch("value", () => arrive(props.value));
if (props.value) arrive(props.value);
