// What stands beneath the picture, and what happens when the server changes a prop.
function button(text, pressed, title) {
  const item = document.createElement("button");
  item.type = "button";
  item.textContent = text;
  if (pressed !== undefined) item.setAttribute("aria-pressed", pressed);
  if (title) item.title = item.ariaLabel = title;
  return item;
}

// An entry of the legend: its mask is lit under the pointer and under the keyboard's focus.
function legendItem(mask, number) {
  const item = document.createElement("li");
  item.dataset.number = number;
  if (!mask.present) {
    item.className = "mp-gone";
    item.textContent = mask.label;
    item.title = mask.tip;
    return item;
  }
  const name = mask.count ? `${mask.name} (${mask.count})` : mask.name;
  const select = button(name, props.selected === number, `${mask.tip}: select, to ask about it`);
  const eye = button("", !hidden.has(number), `show the mask of ${mask.name}`);
  select.className = "mp-name";
  select.style.setProperty("--mask-colour", mask.colour);
  const confidence = document.createElement("span");
  confidence.textContent = " " + mask.confidence;
  select.append(confidence);
  eye.className = "mp-eye";
  select.addEventListener("click", () => pick(number));
  lights(select, number);
  eye.addEventListener("click", () => {
    if (!hidden.delete(number)) hidden.add(number);
    eye.setAttribute("aria-pressed", !hidden.has(number));
    paint();
  });
  const save = button("", undefined, `save ${mask.name} as a PNG, cut out`);
  save.className = "mp-save";
  save.addEventListener("click", () => trigger("cutout", { number }));
  const numbers = mask.instances.map((_, instance) => {
    const one = button(instance + 1, props.selected === number && props.instance === instance,
      `${mask.name} ${instance + 1}: select, to ask about it`);
    one.className = "mp-one";
    one.addEventListener("click", () => pick(number, instance));
    lights(one, number, instance);
    return one;
  });
  item.append(select, ...numbers, eye, ...(mask.raw ? [] : [save]));
  return item;
}

function lights(item, number, instance) {
  for (const type of ["mouseenter", "focus"]) item.addEventListener(type, () => light(number, instance));
  for (const type of ["mouseleave", "blur"]) item.addEventListener(type, () => light(-1));
}

const HAS_POINTER = window.matchMedia("(hover: hover)").matches; // not on a phone
const HOW_TO_CLICK = "Click on a thing to outline it. Arrow keys and Enter work too.";

function list() {
  legend.hidden = byHand() || !masks.length;
  legend.replaceChildren(...masks.map(legendItem));
  candidateBar.hidden = tools.hidden = !byHand();
  candidateBar.replaceChildren(...candidates.map((candidate, k) => {
    const item = button(candidate.name, k === choice, candidate.tip);
    item.addEventListener("click", () => { choice = k; trigger("choose", { number: k }); list(); paint(); });
    return item;
  }));
  if (!candidates.length) candidateBar.textContent = HAS_POINTER ? HOW_TO_CLICK : "Tap a thing to outline it.";
}

const TRACKED = ["photo", "masks", "proposals", "candidates", "marks_round"]; // whose change means more than drawing
const loading = {}; // promises of the masks and candidates that were sent last
let last = {}, asked = false; // asked: whether the photo's proposals were asked for
async function update() {
  const mine = ++epoch, changed = {};
  for (const name of TRACKED) {
    const value = JSON.stringify(props[name] ?? null);
    changed[name] = last[name] !== value;
    last[name] = value;
  }
  element.querySelector(".mp").hidden = !props.photo;
  if (!props.photo) { masks = candidates = proposals = []; return; }
  if (changed.photo) showPhoto();
  if (byHand() && !props.proposals && !asked && !props.busy) { // once for each photo
    asked = true;
    trigger("outlines", {});
  }
  if (changed.photo || changed.marks_round) { wipe(); hidden = new Set(); }
  if (changed.proposals) {
    const { width, height, runs } = props.proposals || { runs: [] };
    proposals = runs.map((row) => planeOf(row, width, height));
  }
  const all = (layers) => Promise.all((layers || []).map(coloured));
  for (const name of ["masks", "candidates"]) { // what has not changed is not drawn again, as after a selection
    if (changed[name] || changed.photo) loading[name] = all(props[name]);
  }
  const loaded = { masks: await loading.masks, candidates: await loading.candidates };
  if (mine !== epoch) return; // a later update has begun meanwhile
  if (changed.masks) hidden = new Set();
  masks = loaded.masks;
  candidates = loaded.candidates;
  if (changed.candidates) choice = 0;
  showState();
}

function showPhoto() {
  photo.src = props.photo.url;
  photo.alt = props.photo.alt;
  over.width = props.photo.width;
  over.height = props.photo.height;
  stage.style.setProperty("--shape", `${props.photo.width} / ${props.photo.height}`);
  stage.style.setProperty("--ratio", props.photo.width / props.photo.height);
  cursor = null;
  asked = false;
  showWhole();
}

function showState() {
  over.setAttribute("aria-label", props.label || "");
  over.setAttribute("role", byHand() ? "application" : "img"); // marks are set by keys, too
  stage.classList.toggle("mp-busy", !!props.busy);
  hovered = hoveredInstance = -1;
  tip.hidden = true;
  preview(null);
  setTabIndex();
  press();
  list();
  openWords();
  paint();
  stage.dataset.drawn = String(masks.filter((mask) => mask.present).length + candidates.length);
  stage.dataset.proposals = proposals.length;
  stage.dataset.view = props.view;
}
watch([...TRACKED, "view", "selected", "instance", "question", "busy", "label"], update);
update();
