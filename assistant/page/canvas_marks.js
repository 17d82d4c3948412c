// Marking by hand: clicks, a box, a brush and an eraser, by pointer and by keyboard.
const brushWidth = () => brushSize.value / 100 / zoom; // as a share of the photo's width: the same on the screen
const paints = () => tool === "brush" || tool === "erase";
const newStroke = (at) => strokes.push({ points: [at], erase: tool === "erase", width: brushWidth() });

function paintMarks() {
  const unit = pixel();
  if (candidates[choice]) pen.drawImage(candidates[choice].canvas, 0, 0);
  if (previewed >= 0) pen.drawImage(previewOf(proposals[previewed]), 0, 0, over.width, over.height);
  pen.lineCap = pen.lineJoin = "round";
  strokes.forEach((stroke) => trace(pen, stroke, stroke.erase ? "rgba(255,255,255,.55)" : "rgba(20,160,150,.55)"));
  const shown = box || (corner && cursor ? [corner[0], corner[1], cursor[0], cursor[1]] : null);
  if (shown) paintBox(shown, unit);
  marks.forEach((mark) => paintClick(mark, unit));
  if (!cursor) return;
  const at = [cursor[0] * over.width, cursor[1] * over.height];
  if (paints() && !keyboardUsed) paintRing(at, (brushWidth() * over.width) / 2, unit);
  if (keyboardUsed && document.activeElement === over) paintCross(at, 10 * unit, unit);
}

// Two lines over each other, dark and light, so that they are seen on any photo.
function twice(unit, path, dash = []) {
  for (const [line, width, colour] of [[[], 4, "#000a"], [dash, 2, "#fff"]]) {
    pen.beginPath();
    pen.setLineDash(line);
    pen.lineWidth = width * unit;
    pen.strokeStyle = colour;
    path();
    pen.stroke();
  }
  pen.setLineDash([]);
}

function paintBox(shares, unit) {
  const [x, y, right, bottom] = shares.map((share, k) => share * (k % 2 ? over.height : over.width));
  twice(unit, () => pen.rect(x, y, right - x, bottom - y), [6 * unit, 4 * unit]);
}

const paintRing = (at, radius, unit) => twice(unit / 2, () => pen.arc(...at, radius, 0, 7));

function paintCross([x, y], r, unit) {
  twice(unit, () => {
    pen.moveTo(x - r, y); pen.lineTo(x + r, y);
    pen.moveTo(x, y - r); pen.lineTo(x, y + r);
  });
}

function paintClick([x, y, inside], unit) {
  const at = [x * over.width, y * over.height], r = 8 * unit;
  pen.beginPath(); pen.arc(...at, r, 0, 7); pen.fillStyle = inside ? "#0f766e" : "#b91c1c"; pen.fill();
  pen.lineWidth = 2 * unit; pen.strokeStyle = "#fff"; pen.stroke();
  pen.beginPath(); pen.moveTo(at[0] - r / 2, at[1]); pen.lineTo(at[0] + r / 2, at[1]);
  if (inside) { pen.moveTo(at[0], at[1] - r / 2); pen.lineTo(at[0], at[1] + r / 2); }
  pen.stroke();
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
  if (!strokes.some((stroke) => stroke.erase === erase)) return null;
  const scale = Math.min(1, 640 / Math.max(over.width, over.height));
  const canvas = newCanvas(Math.round(over.width * scale), Math.round(over.height * scale));
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

function useTool(at, negative) { // one click with the tool that is chosen
  if (props.busy || tool === "move") return;
  if (tool === "box") {
    if (!corner) { corner = at; box = null; paint(); return; }
    const ends = [0, 1].map((k) => [corner[k], at[k]]);
    box = [...ends.map((pair) => Math.min(...pair)), ...ends.map((pair) => Math.max(...pair))];
    corner = null;
    if (box[2] - box[0] < 0.005 || box[3] - box[1] < 0.005) { box = null; paint(); return; }
  } else if (paints()) newStroke(at);
  else marks.push([at[0], at[1], tool === "add" && !negative ? 1 : 0]);
  send();
}

// What a click would take up: the best proposal at a place. Nothing with other tools, or once something is marked.
function preview(at) {
  const marked = marks.length || strokes.length || box || candidates.length;
  previewed = at && tool === "add" && !marked && !props.busy ? proposals.findIndex((plane) => isIn(plane, at)) : -1;
  stage.dataset.preview = previewed;
}

function dropDrag() {
  if (drag && paints()) strokes.pop();
  drag = corner = null;
}

over.addEventListener("pointerdown", (event) => {
  if (byHand()) over.focus({ preventScroll: true });
  if (movesPicture(event)) { dropDrag(); paint(); return; }
  if (!byHand()) return;
  event.preventDefault();
  keyboardUsed = false;
  over.setPointerCapture(event.pointerId);
  drag = { at: place(event), right: event.button === 2 };
  if (paints()) newStroke(drag.at);
  if (tool === "box" && !corner) { corner = drag.at; box = null; }
  preview(null);
  paint();
});
over.addEventListener("pointermove", (event) => {
  if (movesPicture(event)) return;
  if (!byHand()) return hover(event);
  cursor = place(event);
  keyboardUsed = false;
  if (drag && paints()) strokes.at(-1).points.push(cursor);
  preview(drag ? null : cursor);
  paint();
});
over.addEventListener("pointerup", (event) => {
  if (movesPicture(event) || !byHand() || !drag) return;
  const at = place(event), { at: from, right } = drag;
  const moved = Math.hypot(at[0] - from[0], at[1] - from[1]) * zoom > 0.01;
  drag = null;
  if (paints()) send();
  else if (tool === "box") { if (moved || corner !== from) useTool(at); }
  else useTool(at, right || event.shiftKey);
});
over.addEventListener("pointercancel", (event) => { movesPicture(event); dropDrag(); paint(); });
over.addEventListener("pointerleave", () => {
  preview(null);
  if (byHand() && !keyboardUsed && !drag && !corner) cursor = null;
  hover(null);
  paint();
});
over.addEventListener("contextmenu", (event) => { if (byHand()) event.preventDefault(); });
over.addEventListener("blur", paint);
over.addEventListener("focus", () => {
  if (!byHand()) return;
  keyboardUsed = over.matches(":focus-visible");
  cursor ||= [0.5, 0.5];
  paint();
});
over.addEventListener("click", (event) => {
  if (byHand() || dragged) return;
  const at = place(event), number = under(at);
  if (number >= 0) pick(number, instanceAt(number, at));
  else if (props.selected !== null) pick(props.selected, props.instance);
});
over.addEventListener("keydown", (event) => {
  if (!byHand()) return;
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = (event.shiftKey ? 0.05 : 0.01) / zoom;
  if (ways[event.key]) {
    cursor = (cursor || [0.5, 0.5]).map((share, k) => clip(share + step * ways[event.key][k]));
    reveal(cursor);
    preview(cursor);
  } else if (event.key === "Enter" || event.key === " ") useTool([...(cursor ||= [0.5, 0.5])]);
  else if (event.key === "Backspace") back();
  else if (event.key === "[" || event.key === "]") {
    brushSize.value = Number(brushSize.value) + (event.key === "]" ? 1 : -1);
  } else return;
  keyboardUsed = true;
  event.preventDefault();
  paint();
});

function back() {
  if (corner) corner = null;
  else if (strokes.length && (paints() || (!marks.length && !box))) strokes.pop();
  else if (marks.length) marks.pop();
  else if (box) box = null;
  else return;
  send();
}

tools.addEventListener("click", (event) => {
  const item = event.target.closest("button");
  if (!item) return;
  if (item.dataset.tool) { tool = item.dataset.tool; corner = null; press(); paint(); }
  else if (item.dataset.do === "back") back();
  else { wipe(); send(); }
});
brushSize.addEventListener("input", paint);

const wipe = () => { marks = []; strokes = []; box = corner = null; };
const press = () => {
  for (const item of tools.querySelectorAll("[data-tool]")) {
    item.setAttribute("aria-pressed", item.dataset.tool === tool);
  }
  $("size").hidden = !paints();
};
