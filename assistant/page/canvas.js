// The photo with its masks: what is drawn, and what lies under the pointer. canvas.py joins this file with
// canvas_words.js, canvas_zoom.js, canvas_marks.js and canvas_update.js, in this order, to one script.
//
// Props from the server, see canvas.py: photo, masks, view, selected, instance, question, proposals, candidates,
// marks_round, busy, label. Events to it: "pick" {number, instance}, "prompt" {points, box, added, erased},
// "choose" {number}, "cutout" {number}, and "outlines" {}, which asks for the proposals. Coordinates are shares of the
// photo's width and height, however far it is zoomed in. All text is inserted as text, never as HTML.
const $ = (name) => element.querySelector(".mp-" + name);
const stage = $("stage"), view = $("view"), photo = $("photo"), over = $("over"), tip = $("tip");
const legend = $("legend"), tools = $("tools"), candidateBar = $("found"), brushSize = $("size input");
const pen = over.getContext("2d");
const MAX_HIT_SIDE = 400; // px: what lies under the pointer is looked up in images of this size
const MIN_ALPHA = 40; // of 255, from which a pixel belongs to a mask
let masks = [], candidates = [], choice = 0, hidden = new Set(), hovered = -1, epoch = 0;
let hoveredInstance = -1; // of the mask under the pointer
let proposals = [], previewed = -1; // of everything mode, to be taken up by a click; the one under the pointer
let keyboardUsed = false; // the crosshair is shown to those who mark by keyboard
let tool = "add", marks = [], box = null, corner = null, cursor = null, drag = null, strokes = [];
let zoom = 1, offset = [0, 0]; // of the picture's top left corner, in shares of the stage

const byHand = () => props.view === "hand";
const clip = (value) => Math.min(1, Math.max(0, value));
const newCanvas = (width = over.width, height = over.height) =>
  Object.assign(document.createElement("canvas"), { width, height });
const load = (url) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(image);
  image.onerror = () => done(null);
  image.src = url;
});

// A mask arrives as its opacity. Here it gets its colour, and a small plane that tells what lies under the pointer.
async function coloured(mask) {
  const image = await load(mask.png), canvas = newCanvas();
  const draw = canvas.getContext("2d");
  if (image) draw.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (mask.raw) return { ...mask, canvas, hits: null, instances: [], area: 0 }; // it has colours of its own
  const hits = hitsOf(canvas);
  const { width, height, runs = [], at = [] } = mask.instances || {};
  const instances = runs.map((row, k) => ({ ...planeOf(row, width, height), at: at[k] }));
  draw.globalCompositeOperation = "source-in";
  draw.fillStyle = mask.colour;
  draw.fillRect(0, 0, canvas.width, canvas.height);
  return { ...mask, canvas, hits, instances, area: hits.pixels.reduce((sum, pixel) => sum + pixel, 0) };
}

// A small plane {width, height, pixels} of 0 and 1: where a canvas is opaque.
function hitsOf(canvas) {
  const scale = Math.min(1, MAX_HIT_SIDE / Math.max(canvas.width, canvas.height));
  const small = newCanvas(...[canvas.width, canvas.height].map((side) => Math.max(1, Math.round(side * scale))));
  const draw = small.getContext("2d", { willReadFrequently: true });
  draw.drawImage(canvas, 0, 0, small.width, small.height);
  const rgba = draw.getImageData(0, 0, small.width, small.height).data;
  const pixels = new Uint8Array(small.width * small.height).map((_, k) => rgba[4 * k + 3] > MIN_ALPHA);
  return { width: small.width, height: small.height, pixels };
}

function isIn(hits, [x, y]) {
  if (!hits) return false;
  const column = Math.min(hits.width - 1, Math.floor(x * hits.width));
  return hits.pixels[Math.min(hits.height - 1, Math.floor(y * hits.height)) * hits.width + column] > 0;
}

// A proposal arrives as the lengths of its runs of pixels outside and inside, row by row.
function planeOf(runs, width, height) {
  const pixels = new Uint8Array(width * height);
  let at = 0;
  runs.forEach((length, k) => { if (k % 2) pixels.fill(1, at, at + length); at += length; });
  return { width, height, pixels, canvas: null };
}

// The picture of a proposal: its inside translucent, its rim not. It is made when it is first needed.
function previewOf(proposal) {
  if (proposal.canvas) return proposal.canvas;
  const { width, height, pixels } = proposal;
  proposal.canvas = newCanvas(width, height);
  const draw = proposal.canvas.getContext("2d"), image = draw.createImageData(width, height);
  pixels.forEach((inside, k) => {
    if (!inside) return;
    const x = k % width;
    const inner = x && x < width - 1 && pixels[k - 1] && pixels[k + 1] && pixels[k - width] && pixels[k + width];
    image.data.set([255, 255, 255, inner ? 70 : 255], 4 * k);
  });
  draw.putImageData(image, 0, 0);
  return proposal.canvas;
}

function paint() {
  pen.clearRect(0, 0, over.width, over.height);
  if (byHand()) return paintMarks();
  [...masks.keys()].sort((a, b) => masks[b].area - masks[a].area).forEach((k) => {
    if (hidden.has(k) || !masks[k].present) return;
    const focus = props.selected ?? (hovered >= 0 ? hovered : null);
    pen.globalAlpha = focus === null || focus === k || hovered === k ? 1 : 0.35;
    pen.drawImage(masks[k].canvas, 0, 0);
  });
  pen.globalAlpha = 1;
  const chosen = masks[hovered]?.instances[hoveredInstance] ?? masks[props.selected]?.instances[props.instance];
  if (chosen) pen.drawImage(previewOf(chosen), 0, 0, over.width, over.height);
  masks.forEach((mask, k) => { if (mask.present && !hidden.has(k)) mask.instances.forEach(paintNumber); });
}

// The number of an instance, by which it can be asked for ("the second one").
function paintNumber(instance, number) {
  const unit = pixel(), [x, y] = [instance.at[0] * over.width, instance.at[1] * over.height];
  pen.beginPath();
  pen.arc(x, y, 10 * unit, 0, 7);
  pen.fillStyle = "#000c";
  pen.fill();
  pen.fillStyle = "#fff";
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(number + 1, x, y + unit);
}

const pixel = () => Math.max(over.width / (stage.clientWidth || over.width), 0.5) / zoom; // one px of the screen

// The number of the smallest mask that is shown at a place; -1 where there is none.
function under(at) {
  const hits = [...masks.keys()].filter((k) => masks[k].present && !hidden.has(k) && isIn(masks[k].hits, at));
  return hits.reduce((best, k) => (best < 0 || masks[k].area < masks[best].area ? k : best), -1);
}

function hover(event) {
  const now = byHand() || !event ? -1 : under(place(event)), instance = now < 0 ? -1 : instanceAt(now, place(event));
  if (event && now >= 0) {
    const at = stage.getBoundingClientRect();
    tip.textContent = (instance >= 0 ? `${instance + 1}: ` : "") + masks[now].tip;
    tip.style.left = Math.min(event.clientX - at.left + 12, at.width - 120) + "px";
    tip.style.top = event.clientY - at.top + 14 + "px";
  }
  tip.hidden = now < 0;
  over.style.cursor = byHand() ? "crosshair" : now >= 0 ? "pointer" : zoom > 1 ? "grab" : "default";
  light(now, instance);
}

const instanceAt = (number, at) => masks[number].instances.findIndex((plane) => isIn(plane, at));

// Show one mask at full strength, with an instance of it, and mark its name; -1: none.
function light(number, instance = -1) {
  if (number === hovered && instance === hoveredInstance) return;
  hovered = number;
  hoveredInstance = instance;
  for (const item of legend.children) item.classList.toggle("mp-lit", Number(item.dataset.number) === number);
  markWords();
  paint();
}

function place(event) {
  const at = over.getBoundingClientRect();
  return [clip((event.clientX - at.left) / at.width), clip((event.clientY - at.top) / at.height)];
}
