"""The photo with its masks on the page, a gr.HTML with scripts of its own: what the browser is sent.

    canvas = gr.HTML(html_template=CANVAS_TEMPLATE, js_on_load=CANVAS_SCRIPT, **empty_props())
    return gr.HTML(**canvas_props(session))  # in a handler: what has changed

A layer is a dictionary with the keys `name`, `confidence`, `colour`, `tip` (its tooltip), `present` and
`png`, a data URL of a PNG whose opacity is that of the mask. `raw` in it says that the image has colours of
its own; one that is not present has `known` and `seen` of its target; that of several instances has their
`count` and `instances`, see `instances_entry`. What the browser sends back is read by
`assistant.page.canvas_prompts`.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from assistant.export.drawing import draw_heat
from assistant.page.session import AttentionMap, Session, View
from assistant.page.wording import NamedTarget, absence_label, missing_note, name_targets
from assistant.sam.proposals import Proposals

MAX_VIEW_SIDE = 1280  # px: the longer side of the photo on the page; exports have its full size
PHOTO_JPEG_QUALITY = 88
ATTENTION_JPEG_QUALITY = 85
RIM_FILTER_SIZE = 5  # px: a mask's rim is what a minimum filter of this size takes away
OUTLINE_OPACITY = 200  # of 255, of the outlines that are shown while a photo is opened
MAX_NUMBERED_INSTANCES = 20  # of a target; more numbers would cover the picture
MAX_PREVIEW_SIDE = 480  # px: proposals are sent in this size, some 100 kB for all of a photo
CANDIDATE_COLOUR = "#14b8a6"  # of masks that are made by hand; the page's teal
ATTENTION_COLOUR = "#f0e442"  # of an attention map's name, the yellow of its brightest places
OUTLINES_COLOUR = "#ffffff"

# Joined in this order to one script, as a gr.HTML takes one.
SCRIPT_FILES = ("canvas.js", "canvas_words.js", "canvas_zoom.js", "canvas_marks.js", "canvas_update.js")
CANVAS_SCRIPT = "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in SCRIPT_FILES)
CANVAS_TEMPLATE = """<div class="mp" hidden>
<div class="mp-stage"><div class="mp-view"><img class="mp-photo" alt="">
<canvas class="mp-over" tabindex="0" role="img"></canvas></div>
<div class="mp-zoom" role="group" aria-label="Zoom">
<button type="button" data-zoom="in" title="Zoom in (+)" aria-label="Zoom in">+</button>
<button type="button" data-zoom="out" title="Zoom out (-)" aria-label="Zoom out">&minus;</button>
<button type="button" data-zoom="whole" title="Whole picture (0)" aria-label="Whole picture">&#9633;</button>
</div>
<div class="mp-tip" role="tooltip" hidden></div></div>
<div class="mp-tools" role="toolbar" aria-label="Marking tools" hidden>
<button type="button" data-tool="add" title="A click on the thing">+ Click</button>
<button type="button" data-tool="cut"
  title="A click on what does not belong to it (or the right mouse button)">&minus; Click</button>
<button type="button" data-tool="box" title="A box around it: drag, or two clicks">Box</button>
<button type="button" data-tool="brush" title="Paint over it">Brush</button>
<button type="button" data-tool="erase" title="Rub out">Eraser</button>
<button type="button" data-tool="move" title="Drag the picture, once it is zoomed in">Move</button>
<label class="mp-size" hidden>Size
<input type="range" min="1" max="12" value="3" title="How thick the brush is ([ and ])"></label>
<span></span>
<button type="button" data-do="back" title="Take back the last mark">Undo mark</button>
<button type="button" data-do="clear" title="Take back all marks">Clear</button>
</div>
<div class="mp-found" role="group" aria-label="Candidates" hidden></div>
<ul class="mp-legend" aria-label="What is outlined"></ul></div>"""

Layer = dict[str, Any]
Props = dict[str, Any]


def view_size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) in px of an image (H, W, 3) on the page."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_VIEW_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def as_data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """An image as a data URL; kind: Pillow's name of the format; options: of `Image.save`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def mask_opacity(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The opacity of a mask on the page: half inside, full on its rim.

    Args:
        mask: (H, W) bool.
        size: (width, height) in px of the result.

    Returns:
        A PIL image of mode LA.
    """
    full = Image.fromarray(np.asarray(mask, np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    inner = full.filter(ImageFilter.MinFilter(RIM_FILTER_SIZE))
    rim = np.asarray(full) > np.asarray(inner)
    alpha = np.where(rim, 255, np.asarray(full) // 2).astype(np.uint8)
    return Image.fromarray(np.dstack([np.zeros_like(alpha), alpha]))


def mask_layer(
    mask: np.ndarray, size: tuple[int, int], name: str, confidence: str, colour: str, tip: str
) -> Layer:
    """A mask (H, W) bool as a layer; size: (width, height) in px on the page."""
    return _layer(name, colour, tip, as_data_url(mask_opacity(mask, size)), confidence=confidence)


def _layer(name: str, colour: str, tip: str, url: str, confidence: str = "", present: bool = True) -> Layer:
    return {
        "name": name,
        "confidence": confidence,
        "colour": colour,
        "tip": tip,
        "present": present,
        "png": url,
    }


def empty_props() -> Props:
    """The props of a canvas without a photo."""
    return {
        "photo": None,
        "masks": [],
        "view": View.ANSWER.value,
        "selected": None,
        "instance": None,
        "question": None,
        "proposals": None,
        "candidates": [],
        "marks_round": 0,
        "busy": False,
        "label": "",
    }


def photo_prop(image: np.ndarray, name: str) -> dict[str, Any]:
    """An image (H, W, 3) uint8 as the prop `photo`."""
    width, height = view_size(image)
    photo = Image.fromarray(image)
    if (height, width) != image.shape[:2]:
        photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    return {
        "url": as_data_url(photo, "JPEG", quality=PHOTO_JPEG_QUALITY),
        "width": width,
        "height": height,
        "alt": f"Photo: {name}",
    }


def outline_layers(image: np.ndarray, proposals: Proposals) -> list[Layer]:
    """The outlines of all proposals as one layer, which is shown while a photo is opened."""
    size = view_size(image)
    edges = np.zeros(size[::-1], np.uint8)
    for index in range(len(proposals)):
        mask = Image.fromarray(proposals.mask(index)).resize(size, Image.Resampling.NEAREST)
        small = np.asarray(mask)
        edges[:, 1:] |= small[:, 1:] != small[:, :-1]
        edges[1:] |= small[1:] != small[:-1]
    opacity = Image.fromarray(np.dstack([edges * 0, edges * OUTLINE_OPACITY]))
    return [_layer("all outlines", OUTLINES_COLOUR, "", as_data_url(opacity))]


def target_layers(session: Session, size: tuple[int, int]) -> list[Layer]:
    """A layer for each target; that of an absent one has no PNG. size: (width, height) in px on the page."""
    show_confidence = session.view != View.EVERYTHING
    rows = name_targets(session.targets, session.colours)
    return [_target_layer(row, size, show_confidence) for row in rows]


def _target_layer(row: NamedTarget, size: tuple[int, int], show_confidence: bool) -> Layer:
    if not row.target.present:
        note = missing_note(row.target)
        layer = _layer(row.name, row.colour, f"{row.name}: {note}", "", present=False)
        return layer | {"label": absence_label(row)}
    assert row.target.mask is not None
    tip = f"{row.name}, {row.confidence} sure" if show_confidence else row.name
    confidence = row.confidence if show_confidence else ""
    layer = mask_layer(row.target.mask, size, row.name, confidence, row.colour, tip)
    instances = row.target.instances
    if len(instances) < 2:
        return layer
    opacities = [np.asarray(mask_opacity(instance, size)) for instance in instances]
    layer["png"] = as_data_url(Image.fromarray(np.maximum.reduce(opacities)))  # each has its own outline
    return layer | {"instances": instances_entry(instances[:MAX_NUMBERED_INSTANCES]), "count": len(instances)}


def instances_entry(instances: list[np.ndarray]) -> dict[str, Any]:
    """The instances of one target, for the browser to number them and to show them one by one.

    Args:
        instances: (H, W) bool each, in their order.

    Returns:
        {"width", "height", "runs"}, see `proposals_prop`, and "at": [[x, y]], a place in the middle of each,
        in shares of the width and height.
    """
    step = preview_step(instances[0].shape)
    planes = [instance[::step, ::step] for instance in instances]
    height, width = planes[0].shape
    places = [[float((x + 0.5) / width), float((y + 0.5) / height)] for x, y in map(_middle, planes)]
    return {"width": width, "height": height, "runs": [_runs(plane) for plane in planes], "at": places}


def _middle(plane: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a plane (H, W) bool that is nearest to the middle of its pixels."""
    rows, columns = np.nonzero(plane)
    if not len(rows):  # smaller than a pixel of the plane
        return plane.shape[1] // 2, plane.shape[0] // 2
    nearest = np.argmin((rows - np.median(rows)) ** 2 + (columns - np.median(columns)) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def attention_layer(image: np.ndarray, attention: AttentionMap) -> Layer:
    """An attention map over its image (H, W, 3) uint8, stretched up to its brightness."""
    size = view_size(image)
    small_image, small_heat = (
        np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))
        for array in (image, attention.heat.astype(np.float32))
    )
    stretched = (small_heat / max(float(small_heat.max()), 1e-6)).clip(0, 1) * attention.brightness
    url = as_data_url(draw_heat(small_image, stretched), "JPEG", quality=ATTENTION_JPEG_QUALITY)
    tip = f"where the model looks for {attention.phrase}"
    layer = _layer(attention.phrase, ATTENTION_COLOUR, tip, url)
    return layer | {"raw": True}


def canvas_props(session: Session, clear_marks: bool = False) -> Props:
    """The props of the canvas for what a session shows.

    The photo is among them only where the browser shows another one, which the session notes.

    Args:
        session: The session.
        clear_marks: Whether to take back the visitor's marks.
    """
    scene = session.scene
    if scene is None:
        session.drawn_scene = None
        return empty_props()
    props: Props = {
        "masks": _layers(session, scene.image),
        "view": session.view.value,
        "busy": False,
        "selected": session.selected,
        "instance": session.selected_instance,
        "question": shown_number(session),
        "label": _description(session),
        "candidates": candidate_layers(session),
    }
    photo_changed = session.drawn_scene is not scene
    if photo_changed:
        session.drawn_scene = scene
        props["proposals"] = None
        props["photo"] = photo_prop(scene.image, session.names[session.photo])
    if clear_marks or photo_changed:
        session.marks_round += 1
        props["marks_round"] = session.marks_round
    return props


def shown_number(session: Session) -> int | None:
    """Index of the question whose masks are shown; None where the picture shows something else."""
    question = session.shown_question
    if session.view != View.ANSWER or question is None:
        return None
    return session.questions.index(question)


def proposals_prop(proposals: Proposals) -> Props:
    """The proposals as the prop `proposals`, so that the one under the pointer can be shown at once.

    Returns:
        {"width", "height", "runs": [[int]]}: for each proposal, best first, the lengths of its runs of pixels
        outside and inside, row by row, in a plane of at most MAX_PREVIEW_SIDE px.
    """
    step = preview_step(proposals.size)
    planes = [proposals.mask(index)[::step, ::step] for index in range(len(proposals))]
    rows, columns = (-(-side // step) for side in proposals.size)
    return {"width": columns, "height": rows, "runs": [_runs(plane) for plane in planes]}


def preview_step(size: tuple[int, ...]) -> int:
    """Of how many pixels of a side one is sent, for images of a size (H, W)."""
    return -(-max(size) // MAX_PREVIEW_SIDE)


def _runs(plane: np.ndarray) -> list[int]:
    """The lengths of the runs of a plane (H, W) bool, row by row; the first is of False."""
    flat = np.concatenate([[False], plane.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [plane.size]])).tolist()


def _layers(session: Session, image: np.ndarray) -> list[Layer]:
    if session.view == View.BY_HAND:
        return []
    if session.view == View.ATTENTION and session.attention:
        return [attention_layer(image, session.attention)]
    return target_layers(session, view_size(image))


def candidate_layers(session: Session) -> list[Layer]:
    """The candidates by hand as layers; none in another view."""
    if session.view != View.BY_HAND:
        return []
    size = view_size(session.open_scene().image)
    layers = []
    for candidate in session.manual.candidates:
        if candidate.score is None:
            tip = "exactly what was drawn"
        else:
            tip = "predicted IoU: how good the mask is likely to be"
        layers.append(mask_layer(candidate.mask, size, candidate.name, "", CANDIDATE_COLOUR, tip))
    return layers


def _description(session: Session) -> str:
    """What the picture shows, for screen readers."""
    if session.view == View.BY_HAND:
        return "the photo, to be marked by hand: arrow keys move, Enter marks, Backspace takes back"
    if session.view == View.ATTENTION and session.attention:
        return f"where the model looks for {session.attention.phrase}"
    rows = name_targets(session.targets, session.colours)
    present = [row.name for row in rows if row.target.present]
    if session.view == View.EVERYTHING:
        return f"{len(present)} regions"
    return f"outlined: {', '.join(present)}" if present else "nothing is outlined"
