"""The page's actions for programs: typed endpoints, which are tools of an MCP server with `app.py --mcp`.

    from gradio_client import Client, handle_file
    client = Client("http://127.0.0.1:7860")
    client.predict(handle_file("photo.jpg"), "what keeps the rain off?", api_name="/ask")

Every call names its picture: an upload, the path or the address of one, or a data: URL
(`assistant.page.uploads`). A picture that was opened lately is not opened again. Masks are COCO RLE
{"size": [h, w], "counts": str}, which pycocotools.mask.decode reads; boxes are [x, y, w, h] px. Errors are
one line that says what to do.

Gradio derives the endpoints' schemas from the annotations, which therefore are not postponed in this module,
and their descriptions from the docstrings, in which each argument takes one line.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.context import get_blocks_context
from gradio.utils import get_function_description
from PIL import Image

from assistant.dialogue.class_list import ask_classes, read_class_names
from assistant.errors import BadInput
from assistant.images import collect_notes, open_image
from assistant.page.canvas import as_data_url
from assistant.page.uploads import received_image
from assistant.page.worker import Worker, error_line
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.sam.proposals import by_granularity
from assistant.scene import Assistant, Scene

MAX_EARLIER_QUESTIONS = 6  # before the one that is asked; each of them is asked again
PNG_URL_PREFIX = "data:image/png;base64,"


class Endpoints:
    """The endpoints; each public method is one."""

    def __init__(self, assistant: Assistant, worker: Worker):
        self._assistant = assistant
        self._worker = worker

    def _answer(self, image: Any, work: Callable[[Scene], dict]) -> dict:
        """What `work` returns for the scene of a sent image, and notes about it; every error as one line."""

        def open_and_work(source: Path) -> dict:
            with collect_notes() as notes:
                result = work(self._assistant.open(source))
            return result | {"notes": notes} if notes else result

        file = None
        try:
            with received_image(image) as file:
                return self._worker.call(functools.partial(open_and_work, file))
        except Exception as error:
            raise gr.Error(error_line(error, file), print_exception=False) from None

    def ask(
        self,
        image: gr.FileData,
        question: str,
        about: dict | None = None,
        earlier: list[str] | None = None,
    ) -> dict:
        """Find what a question means in a picture: what is there with masks, what is not there said to be
        absent.

        Args:
            image: the picture: a data: URL, an http(s) URL, or the path that an upload returned
            question: at most 4,000 characters, such as "what keeps the rain off, and is there a bear?"
            about: a mask as COCO RLE {"size": [h, w], "counts": str} of the part that "it" means
            earlier: questions asked before this one, oldest first, for follow-ups such as "the left one"

        Returns:
            {"question", "text", "width", "height", "targets": [{"phrase": str, "present": bool, "confidence":
            0 to 1, "box": [x, y, w, h], "area": px, "rle": mask, "proposals": [int], "instances": [{"box",
            "area", "rle"}]}]}; instances are the single objects of the mask, from left to right; rle and box
            are null where the thing is absent
        """

        def work(scene: Scene) -> dict:
            before = _value(earlier) or []
            if not isinstance(before, list) or len(before) > MAX_EARLIER_QUESTIONS:
                raise BadInput(f"earlier must be a list of at most {MAX_EARLIER_QUESTIONS} questions")
            for earlier_question in before:
                scene.ask(earlier_question)
            region = None if _value(about) is None else _read_mask(about)
            return scene.ask(question, about=region).to_json()

        return self._answer(image, work)

    def segment(
        self,
        image: gr.FileData,
        points: list[list[float]] | None = None,
        labels: list[int] | None = None,
        box: list[float] | None = None,
        mask: dict | None = None,
        multimask: bool = True,
    ) -> dict:
        """Outline what clicks, a box or a rough mask point at, as Segment Anything does.

        Args:
            image: the picture: a data: URL, an http(s) URL, or the path that an upload returned
            points: clicks [[x, y], ...] in px
            labels: for each click 1 = on the thing, 0 = not part of it; all 1 if left out
            box: [left, top, right, bottom] px around the thing
            mask: a rough mask of the thing as COCO RLE {"size": [h, w], "counts": str}
            multimask: three readings of the prompt instead of one

        Returns:
            {"width", "height", "masks": [{"rle": mask, "score": predicted IoU, 0 to 1}]}, best first
        """

        def work(scene: Scene) -> dict:
            rough = None if _value(mask) is None else _read_mask(mask)
            clicks, sides, edges = map(_value, (points, labels, box))
            masks, scores = scene.segment(clicks, sides, edges, rough, bool(_value(multimask)))
            rows = [
                {"rle": encode_rle(found), "score": _probability(score)}
                for found, score in zip(masks, scores, strict=True)
            ]
            return _with_size(scene, masks=sorted(rows, key=lambda row: -row["score"]))

        return self._answer(image, work)

    def everything(self, image: gr.FileData, granularity: float = 0.5) -> dict:
        """Outline everything in a picture.

        Args:
            image: the picture: a data: URL, an http(s) URL, or the path that an upload returned
            granularity: 0 = parts, 1 = whole things

        Returns:
            {"width", "height", "masks": [{"rle": mask, "score": predicted IoU, 0 to 1, "area": px}]}, largest
            first
        """

        def work(scene: Scene) -> dict:
            proposals = by_granularity(scene.proposals, _number(granularity, "granularity"))
            rows = [
                {"rle": rle, "score": _probability(score), "area": int(area)}
                for rle, score, area in zip(
                    proposals.rles, proposals.predicted_iou, proposals.areas, strict=True
                )
            ]
            return _with_size(scene, masks=sorted(rows, key=lambda row: -row["area"]))

        return self._answer(image, work)

    def classes(self, image: gr.FileData, names: str | list[str]) -> dict:
        """Make a semantic map of a picture: which pixels belong to which of the given classes.

        Args:
            image: the picture: a data: URL, an http(s) URL, or the path that an upload returned
            names: the classes: a list of names, or a text of names, one a line or with commas between them

        Returns:
            {"width", "height", "classes": [{"name": str, "present": bool or null, "confidence": 0 to 1 or
            null, "rle": mask or null}]}, in the order of the names; present and confidence are null where the
            model said nothing of a class, rle is null where the class has no pixel
        """

        def work(scene: Scene) -> dict:
            listed = read_class_names("\n".join(map(str, names)) if isinstance(names, list) else names)
            rows: dict[str, dict[str, Any]] = {
                name: {"name": name, "present": None, "confidence": None, "rle": None} for name in listed
            }
            for target in ask_classes(scene, listed).targets():
                rows[target.phrase] |= {
                    "present": target.present,
                    "confidence": target.confidence,
                    "rle": None if target.mask is None else encode_rle(target.mask),
                }
            return _with_size(scene, classes=list(rows.values()))

        return self._answer(image, work)

    def segment_like(self, image: gr.FileData, reference: gr.FileData, mask: dict, label: str = "") -> dict:
        """Outline in a picture what is like an example that is outlined in another picture.

        Args:
            image: the picture to search: a data: URL, an http(s) URL, or the path that an upload returned
            reference: the picture with the example, given likewise
            mask: the example in the reference as COCO RLE {"size": [h, w], "counts": str}
            label: its name, such as "mug"; may be left out

        Returns:
            {"width", "height", "rle": mask or null where nothing is like it, "score": 0 to 1}
        """

        def work(scene: Scene) -> dict:
            with received_image(reference) as file:
                example = open_image(file)
            found, score = scene.segment_like(example, _read_mask(mask), label or None)
            rle = encode_rle(found) if found.any() else None
            return _with_size(scene, rle=rle, score=_probability(score))

        return self._answer(image, work)

    def attend(self, image: gr.FileData, phrase: str) -> dict:
        """Show where the model looks for a phrase, as a heat map.

        Args:
            image: the picture: a data: URL, an http(s) URL, or the path that an upload returned
            phrase: what to look for, such as "a mug"

        Returns:
            {"width", "height", "heat": a grey PNG of the picture's size as a data URL}. A pixel, 0 to 255, is
            the share of the model's attention there that the phrase has among common words for a background,
            times how well it fits the picture: near 0 everywhere for what is not there. It is no probability
        """

        def work(scene: Scene) -> dict:
            grey = (scene.attend(phrase).clip(0, 1) * 255).round().astype(np.uint8)
            return _with_size(scene, heat=as_data_url(Image.fromarray(grey)))

        return self._answer(image, work)


def add_api(assistant: Assistant, worker: Worker) -> None:
    """Add the endpoints to the gr.Blocks that is being built."""
    endpoints = Endpoints(assistant, worker)
    for action in (
        endpoints.ask,
        endpoints.segment,
        endpoints.everything,
        endpoints.classes,
        endpoints.segment_like,
        endpoints.attend,
    ):
        gr.api(action, api_name=action.__name__, concurrency_id="assistant", concurrency_limit=1)
        _describe_last_endpoint(action)


def _describe_last_endpoint(action: Callable[..., Any]) -> None:
    """Say on the API page what the docstring says of each argument and of what is returned.

    Gradio itself tells it to MCP clients only, and calls the arguments "1st" and "2nd".
    """
    blocks = get_blocks_context()
    assert blocks is not None
    endpoint = list(blocks.fns.values())[-1]
    _, arguments, returns = get_function_description(action)
    for argument, (name, meaning) in zip(endpoint.inputs, arguments.items(), strict=True):
        _describe(argument, name, additional_description=meaning)
    (reply,) = endpoint.outputs
    _describe(reply, "reply", description=" ".join(returns))


def _describe(component: Any, label: str, **more: str) -> None:
    """Label one of Gradio's `Api` components, and add to the schema that it was made with."""
    component.label = label
    component._api_info = component.api_info() | more


def tool_reply(data: list[dict]) -> list:
    """What an endpoint returns, as the content of an MCP tool's reply.

    It is JSON, where Gradio would write Python's repr, and images as images, which a model can look at.
    """
    from mcp.types import ImageContent, TextContent

    content: list[Any] = []
    for row in data:
        urls = [url for url in row.values() if _is_png_url(url)]
        rest = {name: value for name, value in row.items() if not _is_png_url(value)}
        content.append(TextContent(type="text", text=json.dumps(rest, ensure_ascii=False)))
        for url in urls:
            png = url.removeprefix(PNG_URL_PREFIX)
            content.append(ImageContent(type="image", data=png, mimeType="image/png"))
    return content


def _is_png_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(PNG_URL_PREFIX)


def _with_size(scene: Scene, **results: Any) -> dict[str, Any]:
    """Results with the size of the image."""
    height, width = scene.size
    return {"width": width, "height": height, **results}


def _probability(value: float) -> float:
    """A score, clipped to [0, 1]."""
    return min(max(float(value), 0.0), 1.0)


def _value(given: Any) -> Any:
    """What a program means that sends numbers, lists or objects as text, as many language models do."""
    if isinstance(given, list):
        return [_value(item) for item in given]
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return {"true": True, "false": False, "none": None, "": None}.get(given.strip().lower(), given)


def _number(given: object, name: str) -> float:
    """A number that may have been sent as text. Raises BadInput where it is none."""
    number = _value(given)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise BadInput(f"{name} must be a number, such as 0.5, not {str(given)[:40]!r}")
    return float(number)


def _read_mask(given: object) -> np.ndarray:
    """A mask (H, W) bool from its RLE. Raises BadInput where it is none."""
    rle = _value(given)
    if not isinstance(rle, dict):
        raise BadInput("a mask must be an RLE {'size': [h, w], 'counts': str}")
    return decode_rle(rle)
