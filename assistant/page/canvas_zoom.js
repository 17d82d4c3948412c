// Zoom and pan: the wheel, two fingers, buttons and the keys + - 0. Marks stay in coordinates of the photo.
const MAX_ZOOM = 8, ZOOM_STEP = 1.4;
const DRAG_LENGTH = 4; // px from which a press is a drag, not a click
const fingers = new Map(); // what touches the picture: its place on the screen, by pointer
let panning = false, dragged = false, pinched = false;

function setZoom(to, x, y) {
  zoom = Math.min(MAX_ZOOM, Math.max(1, to));
  if (zoom < 1.01) zoom = 1;
  offset = [x, y].map((value) => Math.min(0, Math.max(1 - zoom, value)));
  view.style.transform = zoom === 1 ? "" : `translate(${100 * offset[0]}%, ${100 * offset[1]}%) scale(${zoom})`;
  stage.dataset.zoom = zoom.toFixed(2);
  setTabIndex();
  paint();
}

// Zoom by a factor; what stands at `at`, in shares of the stage, stays there.
function zoomBy(factor, at = [0.5, 0.5]) {
  const to = Math.min(MAX_ZOOM, Math.max(1, zoom * factor));
  setZoom(to, ...at.map((share, k) => share - ((share - offset[k]) / zoom) * to));
}

const panBy = (x, y) => setZoom(zoom, offset[0] + x, offset[1] + y);
const showWhole = () => setZoom(1, 0, 0);
const setTabIndex = () => { over.tabIndex = byHand() || zoom > 1 ? 0 : -1; };

// Move the picture so that a place of it can be seen.
function reveal(at) {
  const seen = at.map((share, k) => share * zoom + offset[k]);
  panBy(...seen.map((share) => Math.max(0, 0.05 - share) - Math.max(0, share - 0.95)));
}

function inStage(x, y) {
  const at = stage.getBoundingClientRect();
  return [(x - at.left) / at.width, (y - at.top) / at.height];
}

const middleOf = (points) => [0, 1].map((k) => points.reduce((sum, point) => sum + point[k], 0) / points.length);
const spanOf = ([a, b]) => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));

// Whether a pointer event moves the picture; nothing else is made of it then.
function movesPicture(event) {
  const now = [event.clientX, event.clientY], before = fingers.get(event.pointerId);
  if (event.type === "pointerdown") {
    if (!fingers.size) dragged = pinched = false;
    fingers.set(event.pointerId, now);
    pinched = dragged = pinched || fingers.size > 1;
    panning = !pinched && (!byHand() || tool === "move" || event.button === 1);
    if (panning && event.button === 1) event.preventDefault();
    return pinched || panning;
  }
  if (!before) return false;
  if (event.type !== "pointermove") {
    const moved = pinched || panning;
    fingers.delete(event.pointerId);
    if (!fingers.size) panning = pinched = false;
    return moved;
  }
  if (pinched && fingers.size === 2) {
    const old = [...fingers.values()];
    fingers.set(event.pointerId, now);
    const current = [...fingers.values()], [from, to] = [old, current].map((points) => inStage(...middleOf(points)));
    zoomBy(spanOf(current) / spanOf(old), from);
    panBy(to[0] - from[0], to[1] - from[1]);
  } else if (panning) {
    dragged = dragged || Math.hypot(now[0] - before[0], now[1] - before[1]) > DRAG_LENGTH;
    if (!dragged || zoom === 1) return false; // still a click, and what lies under it may be shown
    over.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, now);
    const [from, to] = [inStage(...before), inStage(...now)];
    panBy(to[0] - from[0], to[1] - from[1]);
  }
  return pinched || panning;
}

stage.addEventListener("wheel", (event) => {
  const asked = event.ctrlKey || event.metaKey; // so do two fingers on a touchpad
  const out = event.deltaY > 0;
  if (!asked && zoom === 1 && (!byHand() || out)) return; // the page scrolls
  event.preventDefault();
  const pixels = event.deltaY * (event.deltaMode === 1 ? 33 : 1);
  zoomBy(Math.exp(-Math.max(-200, Math.min(200, pixels)) / 300), inStage(event.clientX, event.clientY));
}, { passive: false });
over.addEventListener("touchstart", (event) => { // or the browser would zoom the whole page
  if (event.touches.length > 1) event.preventDefault();
}, { passive: false });

$("zoom").addEventListener("click", (event) => {
  const what = event.target.closest("button")?.dataset.zoom;
  if (what === "in") zoomBy(ZOOM_STEP);
  else if (what === "out") zoomBy(1 / ZOOM_STEP);
  else if (what) showWhole();
});
element.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const pans = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (event.key === "+" || event.key === "=") zoomBy(ZOOM_STEP);
  else if (event.key === "-") zoomBy(1 / ZOOM_STEP);
  else if (event.key === "0") showWhole();
  else if (pans && zoom > 1 && !byHand() && event.target === over) panBy(0.1 * pans[0], 0.1 * pans[1]);
  else return;
  event.preventDefault();
});
