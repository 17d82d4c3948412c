"""The picture with its masks, as a gr.HTML whose script is canvas.js: what the browser is sent, and what it sends.

canvas = gr.HTML(html_template=TEMPLATE, js_on_load=SCRIPT, **nothing())
canvas.prompt(handler)                   # handler(event: gr.EventData): read_prompt(event._data, scene.size)
return gr.HTML(**shown(session))         # what an event changes
"""

import base64
import io
import math
from pathlib import Path

import numpy as np

from assistant.answer import Target
from assistant.errors import BadInput
from assistant.page.session import EVERYTHING, HAND, LOOKING, Session
from assistant.page.words import named

VIEW_SIDE = 1280  # pixels: the page shows the picture at most this large; exports keep its full size
MARKS = 100  # clicks of a prompt
PAINTED = 3_000_000  # characters of a painted layer
SCRIPT = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")
TEMPLATE = """<div class="mp" hidden>
<div class="mp-stage"><img class="mp-photo" alt=""><canvas class="mp-over" tabindex="0" role="img"></canvas>
<div class="mp-tip" role="tooltip" hidden></div></div>
<div class="mp-tools" role="toolbar" aria-label="Marking tools" hidden>
<button type="button" data-tool="add" title="A click on the thing">+ Click</button>
<button type="button" data-tool="cut"
  title="A click on what does not belong to it (or the right mouse button)">&minus; Click</button>
<button type="button" data-tool="box" title="A box around it: drag, or two clicks">Box</button>
<button type="button" data-tool="brush" title="Paint over it">Brush</button>
<button type="button" data-tool="erase" title="Rub out">Eraser</button>
<span></span>
<button type="button" data-do="back" title="Take back the last mark">Undo mark</button>
<button type="button" data-do="clear" title="Take back all marks">Clear</button>
</div>
<div class="mp-found" role="group" aria-label="Candidates" hidden></div>
<ul class="mp-legend" aria-label="What is outlined"></ul></div>"""


def view_size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) in px of the picture (H, W, 3) on the page."""
    h, w = image.shape[:2]
    scale = min(1.0, VIEW_SIDE / max(h, w))
    return max(1, round(w * scale)), max(1, round(h * scale))


def as_url(picture, kind: str = "PNG", **options) -> str:
    """A PIL image as a data URL."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def outlined(mask: np.ndarray, size: tuple[int, int]):
    """Opacity of a mask (H, W) bool at `size` (w, h) as a PIL LA image: half inside, full on its rim."""
    from PIL import Image, ImageFilter

    full = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    rim = np.asarray(full) > np.asarray(full.filter(ImageFilter.MinFilter(5)))
    alpha = np.where(rim, 255, np.asarray(full) // 2).astype(np.uint8)
    return Image.fromarray(np.dstack([np.zeros_like(alpha), alpha]))


def layer(mask: np.ndarray, size: tuple[int, int], name: str, sure: str, colour: str, tip: str) -> dict:
    return {
        "name": name,
        "sure": sure,
        "colour": colour,
        "tip": tip,
        "present": True,
        "png": as_url(outlined(mask, size)),
    }


def nothing() -> dict:
    return {
        "photo": None,
        "masks": [],
        "view": "answer",
        "selected": None,
        "found": [],
        "round": 0,
        "busy": False,
        "label": "",
    }


def photo_of(image: np.ndarray, name: str) -> dict:
    from PIL import Image

    width, height = view_size(image)
    small = (
        Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        if (height, width) != image.shape[:2]
        else Image.fromarray(image)
    )
    return {
        "url": as_url(small, "JPEG", quality=88),
        "width": width,
        "height": height,
        "alt": f"Photo: {name}",
    }


def ghosts(image: np.ndarray, proposals) -> list[dict]:
    """The outlines of all proposals, as one layer: what is seen while a photo is being opened."""
    from PIL import Image

    size, edges = view_size(image), np.zeros(view_size(image)[::-1], np.uint8)
    for i in range(len(proposals)):
        small = np.asarray(Image.fromarray(proposals.mask(i)).resize(size, Image.Resampling.NEAREST))
        edges[:, 1:] |= small[:, 1:] != small[:, :-1]
        edges[1:] |= small[1:] != small[:-1]
    url = as_url(Image.fromarray(np.dstack([edges * 0, edges * 200])))
    return [{"name": "all outlines", "sure": "", "colour": "#ffffff", "tip": "", "present": True, "png": url}]


def layers(targets: list[Target], size: tuple[int, int], percent: bool = True) -> list[dict]:
    out = []
    for target, name, sure, colour in named(targets):
        tip = f"{name}, {sure} sure" if percent else name
        if target.present:
            out.append(layer(target.mask, size, name, sure if percent else "", colour, tip))
        else:
            out.append(
                {
                    "name": name,
                    "sure": "",
                    "colour": colour,
                    "tip": f"{name}: not in the picture",
                    "present": False,
                    "png": "",
                }
            )
    return out


def heat_layer(image: np.ndarray, phrase: str, heat: np.ndarray) -> dict:
    """A heat map (H, W) in [0, 1] over the picture, its highest place as bright as can be."""
    from PIL import Image

    from assistant.export.drawing import draw_heat

    size = view_size(image)
    small = [
        np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR))
        for x in (image, heat.astype(np.float32))
    ]
    url = as_url(
        draw_heat(small[0], (small[1] / max(float(small[1].max()), 1e-6)).clip(0, 1)), "JPEG", quality=85
    )
    return {
        "name": phrase,
        "sure": "",
        "colour": "#f0e442",
        "tip": f"where the model looks for {phrase}",
        "present": True,
        "raw": True,
        "png": url,
    }


def shown(session: Session, marks: bool = False) -> dict:
    """The canvas's settings for what a session shows; marks: take back the visitor's marks. The picture itself is sent
    where another one was shown before."""
    if session.scene is None:
        session.drawn = None
        return nothing()
    image = session.scene.image
    size, targets = view_size(image), session.targets
    every = session.view == EVERYTHING
    present = [name for target, name, *_ in named(targets) if target.present]
    if session.view == HAND:
        label = "the photo, to be marked by hand: arrow keys move, Enter marks, Backspace takes back"
    elif session.view == LOOKING:
        label = f"where the model looks for {session.heat[0]}"
    else:
        label = (
            f"{len(present)} regions"
            if every
            else f"outlined: {', '.join(present)}"
            if present
            else "nothing is outlined"
        )
    tips = {True: "exactly what was drawn", False: "predicted IoU: how good the mask is likely to be"}
    settings = {
        "masks": []
        if session.view == HAND
        else [heat_layer(image, *session.heat)]
        if session.view == LOOKING
        else layers(targets, size, not every),
        "view": session.view,
        "busy": False,
        "selected": session.selected,
        "label": label,
        "found": [
            layer(mask, size, name, "", "#14b8a6", tips[score is None])
            for name, mask, score in session.hand.found
        ]
        if session.view == HAND
        else [],
    }
    photo = session.drawn is not session.scene
    if photo:
        session.drawn = session.scene
        settings["photo"] = photo_of(image, session.names[session.at])
    if marks or photo:
        settings["round"] = session.round = session.round + 1
    return settings


def read_prompt(data: dict, size: tuple[int, int]) -> dict:
    """What the browser says is marked, checked, for `Session.mark`; size: (H, W) px of the picture."""
    height, width = size
    rows = data.get("points") or []
    if not isinstance(rows, list) or len(rows) > MARKS:
        raise BadInput(f"at most {MARKS} clicks can be marked at once")
    rows = [_shares(row, 3, "a click") for row in rows]
    prompt = {
        "points": [[x * width, y * height] for x, y, _ in rows],
        "labels": [int(label > 0.5) for *_, label in rows],
    }
    if data.get("box") is not None:
        x0, y0, x1, y1 = _shares(data["box"], 4, "the box")
        prompt["box"] = [x0 * width, y0 * height, x1 * width, y1 * height]
    for name in ("added", "erased"):
        if data.get(name) is not None:
            prompt[name] = _painted(data[name], size)
    return prompt


def _shares(row, count: int, what: str) -> list[float]:
    fine = (
        isinstance(row, list)
        and len(row) == count
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and 0 <= v <= 1
            for v in row
        )
    )
    if not fine:
        raise BadInput(f"{what} is not within the picture")
    return [float(v) for v in row]


def _painted(url, size: tuple[int, int]) -> np.ndarray:
    """A painted layer, a PNG data URL with transparency, as (H, W) bool."""
    from PIL import Image

    head = "data:image/png;base64,"
    if not isinstance(url, str) or not url.startswith(head) or len(url) > PAINTED:
        raise BadInput("what was painted cannot be read: clear it and paint again")
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(url[len(head) :], validate=True)), formats=["PNG"]
        ) as picture:
            if max(picture.size) > 2 * VIEW_SIDE:
                raise ValueError
            alpha = picture.convert("RGBA").getchannel("A")
    except Exception:  # what a broken PNG raises varies
        raise BadInput("what was painted cannot be read: clear it and paint again") from None
    return np.asarray(alpha.resize(size[::-1], Image.Resampling.BILINEAR)) > 127
