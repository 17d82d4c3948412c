"""Thumbnails of a conversation's photos, of which a click shows one; hidden while there is only one photo."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import gradio as gr
from PIL import Image

from assistant.page.canvas import as_data_url
from assistant.page.session import Session
from assistant.page.wording import escape
from assistant.scene import Scene

THUMBNAIL_SIDE = 96  # px: the longer side at most; twice what it is shown at, for sharp screens
THUMBNAIL_QUALITY = 80
# The focus stays on the thumbnail that was pressed, though the list is drawn anew.
SCRIPT = """
let pressed = null;
element.addEventListener("click", (event) => {
  const item = event.target.closest("button");
  if (!item) return;
  pressed = item.dataset.number;
  trigger("switch", { number: Number(pressed) });
});
watch("value", () => {
  if (pressed !== null) element.querySelector(`[data-number="${pressed}"]`)?.focus({ preventScroll: true });
  pressed = null;
});
"""

_urls: WeakKeyDictionary[Scene, str] = WeakKeyDictionary()  # data URLs of thumbnails that were made


def build() -> gr.HTML:
    """Add the thumbnails."""
    return gr.HTML("", js_on_load=SCRIPT, visible=False, elem_id="strip")


def thumbnails_html(session: Session) -> str:
    """A button for each photo, with its number and name; that of the photo that is shown is pressed."""
    buttons = [
        f'<button type="button" data-number="{number}" '
        f'aria-pressed="{"true" if number == session.photo else "false"}">'
        f'<img src="{_thumbnail_url(scene)}" alt=""><span>{number + 1}. {escape(name)}</span></button>'
        for number, (scene, name) in enumerate(zip(session.scenes, session.names, strict=True))
    ]
    return f'<div class="strip" role="group" aria-label="Photos">{"".join(buttons)}</div>'


def _thumbnail_url(scene: Scene) -> str:
    if scene not in _urls:
        image = Image.fromarray(scene.image)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        _urls[scene] = as_data_url(image, "JPEG", quality=THUMBNAIL_QUALITY)
    return _urls[scene]
