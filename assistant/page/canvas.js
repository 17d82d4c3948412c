// The photo with its masks. Props from the server: photo, masks, view, selected, candidates, marks_round, busy, label
// (see canvas.py). Events to it: "pick" {number}, "prompt" {points, box, added, erased}, "choose" {number}. Coordinates
// are shares of the photo's width and height. All text is inserted as text, never as HTML.
const $ = (name) => element.querySelector(".mp-" + name);
const stage = $("stage"), photo = $("photo"), over = $("over"), tip = $("tip");
const legend = $("legend"), tools = $("tools"), candidateBar = $("found");
const pen = over.getContext("2d");
let masks = [], candidates = [], choice = 0, hidden = new Set(), hovered = -1, epoch = 0;
let keyboardUsed = false; // the crosshair is shown to those who mark by keyboard
let tool = "add", marks = [], box = null, corner = null, cursor = null, drag = null, strokes = [];

const newCanvas = () => Object.assign(document.createElement("canvas"), { width: over.width, height: over.height });
const load = (url) => new Promise((done) => {
  const image = new Image();
  image.onload = () => done(image);
  image.onerror = () => done(null);
  image.src = url;
});

// A mask arrives as its opacity. Here it gets its colour, and an alpha plane that tells what lies under the pointer.
async function coloured(mask) {
  const image = await load(mask.png), canvas = newCanvas();
  const draw = canvas.getContext("2d", { willReadFrequently: true });
  if (image) draw.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (mask.raw) return { ...mask, canvas, alpha: [], area: 0 }; // it has colours of its own, as a heat map does
  const alpha = draw.getImageData(0, 0, canvas.width, canvas.height).data;
  let area = 0;
  for (let i = 3; i < alpha.length; i += 4) area += alpha[i] > 40;
  draw.globalCompositeOperation = "source-in";
  draw.fillStyle = mask.colour;
  draw.fillRect(0, 0, canvas.width, canvas.height);
  return { ...mask, canvas, alpha, area };
}

function paint() {
  pen.clearRect(0, 0, over.width, over.height);
  if (props.view !== "hand") {
    [...masks.keys()].sort((a, b) => masks[b].area - masks[a].area).forEach((k) => {
      if (hidden.has(k) || !masks[k].present) return;
      const focus = props.selected ?? (hovered >= 0 ? hovered : null);
      pen.globalAlpha = focus === null || focus === k ? 1 : 0.35;
      pen.drawImage(masks[k].canvas, 0, 0);
    });
    pen.globalAlpha = 1;
    return;
  }
  if (candidates[choice]) pen.drawImage(candidates[choice].canvas, 0, 0);
  const unit = Math.max(over.width / (stage.clientWidth || over.width), 0.5);
  pen.lineCap = pen.lineJoin = "round";
  strokes.forEach((stroke) => trace(pen, stroke, stroke.erase ? "rgba(255,255,255,.55)" : "rgba(20,160,150,.55)"));
  const edge = (x, y, w, h) => {
    for (const [dash, width, colour] of [[[], 4, "#000a"], [[6 * unit, 4 * unit], 2, "#fff"]]) {
      pen.setLineDash(dash); pen.lineWidth = width * unit; pen.strokeStyle = colour; pen.strokeRect(x, y, w, h);
    }
    pen.setLineDash([]);
  };
  const shown = box || (corner && cursor ? [corner[0], corner[1], cursor[0], cursor[1]] : null);
  if (shown) {
    const [x, y, right, bottom] = shown.map((share, k) => share * (k % 2 ? over.height : over.width));
    edge(x, y, right - x, bottom - y);
  }
  marks.forEach(([x, y, inside]) => {
    const at = [x * over.width, y * over.height], r = 8 * unit;
    pen.beginPath(); pen.arc(...at, r, 0, 7); pen.fillStyle = inside ? "#0f766e" : "#b91c1c"; pen.fill();
    pen.lineWidth = 2 * unit; pen.strokeStyle = "#fff"; pen.stroke();
    pen.beginPath(); pen.moveTo(at[0] - r / 2, at[1]); pen.lineTo(at[0] + r / 2, at[1]);
    if (inside) { pen.moveTo(at[0], at[1] - r / 2); pen.lineTo(at[0], at[1] + r / 2); }
    pen.stroke();
  });
  if (cursor && keyboardUsed && document.activeElement === over) {
    const at = [cursor[0] * over.width, cursor[1] * over.height], r = 10 * unit;
    for (const [width, colour] of [[4, "#000a"], [2, "#fff"]]) {
      pen.beginPath(); pen.lineWidth = width * unit; pen.strokeStyle = colour;
      pen.moveTo(at[0] - r, at[1]); pen.lineTo(at[0] + r, at[1]);
      pen.moveTo(at[0], at[1] - r); pen.lineTo(at[0], at[1] + r);
      pen.stroke();
    }
  }
}

function trace(to, stroke, colour) {
  to.strokeStyle = to.fillStyle = colour;
  to.lineWidth = stroke.width * to.canvas.width;
  to.lineCap = to.lineJoin = "round";
  to.beginPath();
  const at = ([x, y]) => [x * to.canvas.width, y * to.canvas.height], [left, top] = at(stroke.points[0]);
  stroke.points.forEach((point, k) => to[k ? "lineTo" : "moveTo"](...at(point)));
  if (stroke.points.length === 1) to.lineTo(left + 0.1, top);
  to.stroke();
}

// Where something was painted (or erased) last, as a small PNG; null where nothing was.
function strokesAs(erase) {
  if (!strokes.some((s) => s.erase === erase)) return null;
  const scale = Math.min(1, 640 / Math.max(over.width, over.height));
  const size = { width: Math.round(over.width * scale), height: Math.round(over.height * scale) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const draw = canvas.getContext("2d");
  strokes.forEach((stroke) => {
    draw.globalCompositeOperation = stroke.erase === erase ? "source-over" : "destination-out";
    trace(draw, stroke, "#000");
  });
  return canvas.toDataURL("image/png");
}

function send() {
  trigger("prompt", { points: marks, box, added: strokesAs(false), erased: strokesAs(true) });
  paint();
}

function place(event) {
  const at = over.getBoundingClientRect();
  const clip = (v) => Math.min(1, Math.max(0, v));
  return [clip((event.clientX - at.left) / at.width), clip((event.clientY - at.top) / at.height)];
}

function under([x, y]) {
  const row = Math.min(over.height - 1, Math.floor(y * over.height));
  const k = 4 * (row * over.width + Math.min(over.width - 1, Math.floor(x * over.width))) + 3;
  const hits = masks.map((_, n) => n).filter((n) => masks[n].present && !hidden.has(n) && masks[n].alpha[k] > 40);
  return hits.length ? hits.reduce((a, b) => (masks[b].area < masks[a].area ? b : a)) : -1;
}

function hover(event) {
  const now = props.view === "hand" || !event ? -1 : under(place(event));
  if (event && now >= 0) {
    const at = stage.getBoundingClientRect();
    tip.textContent = masks[now].tip;
    tip.style.left = Math.min(event.clientX - at.left + 12, at.width - 120) + "px";
    tip.style.top = event.clientY - at.top + 14 + "px";
  }
  tip.hidden = now < 0;
  over.style.cursor = props.view === "hand" ? "crosshair" : now >= 0 ? "pointer" : "default";
  if (now !== hovered) { hovered = now; paint(); }
}

function useTool(at, negative) { // one click with the tool that is chosen
  if (props.busy) return;
  if (tool === "box") {
    if (!corner) { corner = at; box = null; paint(); return; }
    const ends = [0, 1].map((k) => [corner[k], at[k]]);
    box = [...ends.map((pair) => Math.min(...pair)), ...ends.map((pair) => Math.max(...pair))];
    corner = null;
    if (box[2] - box[0] < 0.005 || box[3] - box[1] < 0.005) { box = null; paint(); return; }
  } else if (tool === "add" || tool === "cut") marks.push([at[0], at[1], tool === "add" && !negative ? 1 : 0]);
  else strokes.push({ points: [at], erase: tool === "erase", width: 0.03 });
  send();
}

over.addEventListener("pointerdown", (event) => {
  if (props.view !== "hand") return;
  event.preventDefault();
  keyboardUsed = false;
  over.focus({ preventScroll: true });
  over.setPointerCapture(event.pointerId);
  drag = { at: place(event), right: event.button === 2 };
  if (tool === "brush" || tool === "erase") strokes.push({ points: [drag.at], erase: tool === "erase", width: 0.03 });
  if (tool === "box" && !corner) { corner = drag.at; box = null; }
  paint();
});
over.addEventListener("pointermove", (event) => {
  if (props.view !== "hand") return hover(event);
  cursor = place(event);
  if (drag && (tool === "brush" || tool === "erase")) strokes.at(-1).points.push(cursor);
  if (drag || corner) paint();
});
over.addEventListener("pointerup", (event) => {
  if (props.view !== "hand" || !drag) return;
  const at = place(event), { at: from, right } = drag, moved = Math.hypot(at[0] - from[0], at[1] - from[1]) > 0.01;
  drag = null;
  if (tool === "brush" || tool === "erase") send();
  else if (tool === "box") { if (moved || corner !== from) useTool(at); }
  else useTool(at, right || event.shiftKey);
});
over.addEventListener("pointercancel", () => { drag = corner = null; paint(); });
over.addEventListener("pointerleave", () => hover(null));
over.addEventListener("contextmenu", (event) => { if (props.view === "hand") event.preventDefault(); });
over.addEventListener("blur", paint);
over.addEventListener("focus", () => { keyboardUsed = over.matches(":focus-visible"); cursor ||= [0.5, 0.5]; paint(); });
over.addEventListener("click", (event) => {
  if (props.view === "hand") return;
  const number = under(place(event));
  if (number >= 0 || props.selected !== null) trigger("pick", { number: number >= 0 ? number : props.selected });
});
over.addEventListener("keydown", (event) => {
  if (props.view !== "hand") return;
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = event.shiftKey ? 0.05 : 0.01;
  cursor ||= [0.5, 0.5];
  keyboardUsed = true;
  if (ways[event.key]) {
    cursor = cursor.map((v, k) => Math.min(1, Math.max(0, v + step * ways[event.key][k])));
    paint();
  } else if (event.key === "Enter" || event.key === " ") useTool([...cursor]);
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});

function back() {
  if (corner) corner = null;
  else if (strokes.length && (tool === "brush" || tool === "erase" || (!marks.length && !box))) strokes.pop();
  else if (marks.length) marks.pop();
  else if (box) box = null;
  else return;
  send();
}

tools.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) { tool = button.dataset.tool; corner = null; press(); paint(); }
  else if (button.dataset.do === "back") back();
  else { wipe(); send(); }
});

const wipe = () => { marks = []; strokes = []; box = corner = null; };
const press = () => {
  for (const item of tools.querySelectorAll("[data-tool]")) {
    item.setAttribute("aria-pressed", item.dataset.tool === tool);
  }
};

function button(text, pressed, title) {
  const item = document.createElement("button");
  item.type = "button";
  item.textContent = text;
  if (pressed !== undefined) item.setAttribute("aria-pressed", pressed);
  if (title) item.title = item.ariaLabel = title;
  return item;
}

function list() {
  legend.replaceChildren();
  legend.hidden = props.view === "hand" || !masks.length;
  masks.forEach((mask, k) => {
    const item = document.createElement("li");
    if (!mask.present) {
      item.className = "mp-gone";
      item.textContent = `no ${mask.name}`;
      item.title = mask.tip;
    } else {
      const pick = button(mask.name, props.selected === k, `${mask.tip}: select, to ask about it`);
      const eye = button("", !hidden.has(k), `show the mask of ${mask.name}`);
      pick.className = "mp-name";
      pick.style.setProperty("--mask-colour", mask.colour);
      const confidence = document.createElement("span");
      confidence.textContent = " " + mask.confidence;
      pick.append(confidence);
      eye.className = "mp-eye";
      pick.addEventListener("click", () => trigger("pick", { number: k }));
      pick.addEventListener("mouseenter", () => { hovered = k; paint(); });
      pick.addEventListener("mouseleave", () => { hovered = -1; paint(); });
      eye.addEventListener("click", () => {
        if (!hidden.delete(k)) hidden.add(k);
        eye.setAttribute("aria-pressed", !hidden.has(k));
        paint();
      });
      item.append(pick, eye);
    }
    legend.append(item);
  });
  candidateBar.hidden = props.view !== "hand";
  candidateBar.replaceChildren(...candidates.map((candidate, k) => {
    const item = button(candidate.name, k === choice, candidate.tip);
    item.addEventListener("click", () => { choice = k; trigger("choose", { number: k }); list(); paint(); });
    return item;
  }));
  if (!candidates.length) candidateBar.textContent = "Click on a thing to outline it. Arrow keys and Enter work too.";
  tools.hidden = props.view !== "hand";
}

const TRACKED = ["photo", "masks", "candidates", "marks_round"]; // props whose change means more than drawing anew
let last = {};
async function update() {
  const mine = ++epoch, changed = {};
  for (const name of TRACKED) {
    const value = JSON.stringify(props[name] ?? null);
    changed[name] = last[name] !== value;
    last[name] = value;
  }
  element.querySelector(".mp").hidden = !props.photo;
  if (!props.photo) { masks = candidates = []; return; }
  if (changed.photo) {
    photo.src = props.photo.url;
    photo.alt = props.photo.alt;
    over.width = props.photo.width;
    over.height = props.photo.height;
    stage.style.setProperty("--shape", `${props.photo.width} / ${props.photo.height}`);
    stage.style.setProperty("--ratio", props.photo.width / props.photo.height);
    cursor = null;
  }
  if (changed.photo || changed.marks_round) { wipe(); hidden = new Set(); }
  const all = (layers) => Promise.all((layers || []).map(coloured));
  const loaded = { masks: await all(props.masks), candidates: await all(props.candidates) };
  if (mine !== epoch) return; // a later update has begun meanwhile
  if (changed.masks) hidden = new Set();
  masks = loaded.masks;
  candidates = loaded.candidates;
  if (changed.candidates) choice = 0;
  over.setAttribute("aria-label", props.label || "");
  over.setAttribute("role", props.view === "hand" ? "application" : "img"); // marks are set by keys, too
  over.tabIndex = props.view === "hand" ? 0 : -1;
  stage.classList.toggle("mp-busy", !!props.busy);
  hovered = -1;
  tip.hidden = true;
  press();
  list();
  paint();
  stage.dataset.drawn = String(masks.filter((m) => m.present).length + candidates.length);
  stage.dataset.view = props.view;
}
watch(["photo", "masks", "view", "selected", "candidates", "marks_round", "busy", "label"], update);
update();
