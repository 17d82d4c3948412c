// The coloured words of the answer whose masks are shown: they light their masks, and the masks mark them.
// A word says by a class "of-QUESTION-TARGET" which mask is its own (wording.py).
let chat = null; // which Gradio may draw anew

// The words of the answer that is shown, each with the number of its mask.
function shownWords() {
  if (props.question === null || props.question === undefined) return [];
  return [...document.querySelectorAll("#chat .found")].map((word) => [word, maskOf(word)]).filter(([, k]) => k >= 0);
}

function maskOf(word) {
  const [, question, number] = word.className.match(/\bof-(\d+)-(\d+)\b/) || [];
  return number !== undefined && Number(question) === props.question && masks[number]?.present ? Number(number) : -1;
}

function markWords() {
  for (const word of document.querySelectorAll("#chat .lit")) word.classList.remove("lit");
  for (const [word, number] of shownWords()) word.classList.toggle("lit", number === hovered);
}

// The first word of each mask can be reached by keyboard, and selects its mask as a click does.
function openWords() {
  if (!chat?.isConnected) {
    chat = document.querySelector("#chat");
    if (chat) new MutationObserver(openWords).observe(chat, { childList: true, subtree: true });
  }
  const first = new Set();
  for (const word of document.querySelectorAll("#chat .found")) {
    const number = maskOf(word);
    if (number < 0 || first.has(number)) {
      for (const name of ["tabindex", "role", "aria-pressed"]) word.removeAttribute(name);
      continue;
    }
    first.add(number);
    word.tabIndex = 0;
    word.setAttribute("role", "button");
    word.setAttribute("aria-pressed", props.selected === number);
  }
  markWords();
}

// Select a mask, or an instance of it, to ask about it; the same again selects nothing.
const pick = (number, instance = null) => trigger("pick", { number, instance: instance >= 0 ? instance : null });

function onWord(event) {
  const word = event.target.closest?.("#chat .found"), number = word ? maskOf(word) : -1;
  if (!word || !element.isConnected) return;
  if (event.type === "mouseout" || event.type === "focusout") light(-1);
  else if (number < 0) return;
  else if (event.type === "mouseover" || event.type === "focusin") light(number);
  else if (event.type === "click") pick(number);
  else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    event.stopPropagation();
    pick(number);
  }
}

for (const type of ["mouseover", "mouseout", "focusin", "focusout", "click", "keydown"]) {
  document.addEventListener(type, onWord, true);
}
