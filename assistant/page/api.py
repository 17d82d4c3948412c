"""The page's actions for programs: typed endpoints (gradio_client, curl); with `app.py --mcp`, tools of an MCP server.

    from gradio_client import Client, handle_file
    client = Client("http://127.0.0.1:7860")
    client.predict(handle_file("photo.jpg"), "what keeps the rain off?", api_name="/ask")

Every call names its picture; a picture that was opened lately is not opened again. Masks are COCO RLE
{"size": [h, w], "counts": str}, which pycocotools.mask.decode reads; boxes are [x, y, w, h] px. Errors are one line
that says what to do.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from assistant.dialogue.class_list import ask_classes, class_targets, read_names
from assistant.errors import BadInput
from assistant.images import open_image
from assistant.page.canvas import as_url
from assistant.page.work import Worker, polite
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.sam.proposals import by_granularity

EARLIER = 6  # questions before the one that is asked
PNG = "data:image/png;base64,"


def uploaded(payload) -> Path:
    """The file that a browser or client has uploaded. BadInput for anything else on this machine."""
    from gradio.utils import get_upload_folder

    path = payload.get("path") if isinstance(payload, dict) else None
    if (
        not isinstance(path, str)
        or "\0" in path
        or not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    ):
        raise BadInput("the picture is missing: upload a file, with gradio_client by handle_file(path)")
    return Path(path)


def add_api(assistant, worker: Worker) -> None:
    """Add the endpoints to the gr.Blocks that is being built."""
    import gradio as gr

    def answering(image, work):
        """What `work` makes of the opened picture; every error as one line."""
        file = None
        try:
            file = uploaded(image)
            return worker.call(lambda: work(assistant.open(file)))
        except Exception as error:
            raise gr.Error(polite(error, file), print_exception=False) from None

    def ask(
        image: gr.FileData, question: str, about: dict | None = None, earlier: list[str] | None = None
    ) -> dict:
        """Find what a question means in a picture: what is there with masks, what is not there said to be absent.

        Args:
            image: the picture
            question: any text of at most 4,000 characters, such as "what keeps the rain off, and is there a bear?"
            about: a mask as COCO RLE {"size": [h, w], "counts": str} of the part of the picture that "it" means
            earlier: questions that were asked before this one, oldest first, for follow-ups such as "the left one"

        Returns:
            {"question", "text", "width", "height", "targets": [{"phrase": str, "present": bool, "confidence": 0 to 1,
            "box": [x, y, w, h], "area": px, "proposals": [int], "rle": mask}]}; rle and box are null where the thing is
            absent
        """

        def work(scene):
            before = earlier or []
            if not isinstance(before, list) or len(before) > EARLIER:
                raise BadInput(f"earlier must be a list of at most {EARLIER} questions")
            for one in before:
                scene.ask(one)
            return scene.ask(question, **({} if about is None else {"about": mask_of(about)})).to_json()

        return answering(image, work)

    def segment(
        image: gr.FileData,
        points: list[list[float]] | None = None,
        labels: list[int] | None = None,
        box: list[float] | None = None,
        mask: dict | None = None,
        multimask: bool = True,
    ) -> dict:
        """Outline what clicks, a box or a rough mask point at, as Segment Anything does.

        Args:
            image: the picture
            points: clicks [[x, y], ...] in px
            labels: for each click 1 = on the thing, 0 = not part of it; all 1 if left out
            box: [left, top, right, bottom] px around the thing
            mask: a rough mask of the thing as COCO RLE {"size": [h, w], "counts": str}
            multimask: three readings of the prompt instead of one

        Returns:
            {"width", "height", "masks": [{"rle": mask, "score": predicted IoU, 0 to 1}]}, best first
        """

        def work(scene):
            masks, scores = scene.segment(
                points, labels, box, None if mask is None else mask_of(mask), bool(multimask)
            )
            rows = [
                {"rle": encode_rle(m), "score": min(max(float(s), 0.0), 1.0)} for m, s in zip(masks, scores)
            ]
            return {
                "width": scene.size[1],
                "height": scene.size[0],
                "masks": sorted(rows, key=lambda row: -row["score"]),
            }

        return answering(image, work)

    def everything(image: gr.FileData, granularity: float = 0.5) -> dict:
        """Outline everything in a picture.

        Args:
            image: the picture
            granularity: 0 = parts, 1 = whole things

        Returns:
            {"width", "height", "masks": [{"rle": mask, "score": predicted IoU, 0 to 1, "area": px}]}, largest first
        """

        def work(scene):
            found = by_granularity(scene.proposals, granularity)
            rows = [
                {"rle": rle, "score": min(max(float(s), 0.0), 1.0), "area": int(a)}
                for rle, s, a in zip(found.rles, found.predicted_iou, found.areas)
            ]
            return {
                "width": scene.size[1],
                "height": scene.size[0],
                "masks": sorted(rows, key=lambda row: -row["area"]),
            }

        return answering(image, work)

    def classes(image: gr.FileData, names: str) -> dict:
        """Make a semantic map of a picture: which pixels belong to which of the given classes.

        Args:
            image: the picture
            names: the classes, one a line or with commas between them

        Returns:
            {"width", "height", "classes": [{"name": str, "present": bool, "confidence": 0 to 1, "rle": mask or null}]};
            present and confidence are null where the model said nothing of a class
        """

        def work(scene):
            listed = read_names(names)
            rows = {name: {"name": name, "present": None, "confidence": None, "rle": None} for name in listed}
            for target in class_targets(ask_classes(scene, listed), listed):
                rle = encode_rle(target.mask) if target.present else None
                rows[target.phrase] |= {
                    "present": target.present,
                    "confidence": target.confidence,
                    "rle": rle,
                }
            return {"width": scene.size[1], "height": scene.size[0], "classes": list(rows.values())}

        return answering(image, work)

    def segment_like(image: gr.FileData, reference: gr.FileData, mask: dict, label: str = "") -> dict:
        """Outline in a picture what is like an example that is outlined in another picture.

        Args:
            image: the picture to search
            reference: the picture with the example
            mask: the example in the reference as COCO RLE {"size": [h, w], "counts": str}
            label: its name, such as "mug"; may be left out

        Returns:
            {"width", "height", "rle": mask or null where nothing is like it, "score": 0 to 1}
        """

        def work(scene):
            found, score = scene.segment_like(open_image(uploaded(reference)), mask_of(mask), label or None)
            return {
                "width": scene.size[1],
                "height": scene.size[0],
                "rle": encode_rle(found) if found.any() else None,
                "score": min(max(float(score), 0.0), 1.0),
            }

        return answering(image, work)

    def attend(image: gr.FileData, phrase: str) -> dict:
        """Show where the model looks for a phrase, as a heat map.

        Args:
            image: the picture
            phrase: what to look for, such as "a mug"

        Returns:
            {"width", "height", "heat": a grey PNG of the picture's size as a data URL, 255 = where it looks most}
        """

        def work(scene):
            heat = Image.fromarray((scene.attend(phrase).clip(0, 1) * 255).round().astype(np.uint8))
            return {"width": scene.size[1], "height": scene.size[0], "heat": as_url(heat)}

        return answering(image, work)

    for action in (ask, segment, everything, classes, segment_like, attend):
        gr.api(action, api_name=action.__name__, concurrency_id="assistant", concurrency_limit=1)


def tool_reply(data: list[dict]) -> list:
    """What an endpoint returns, as the content of an MCP tool's reply: JSON, where Gradio writes Python's repr, and
    pictures as pictures, which a model can look at."""
    from mcp.types import ImageContent, TextContent

    content = []
    for value in data:
        urls = {name: url for name, url in value.items() if isinstance(url, str) and url.startswith(PNG)}
        rest = {name: part for name, part in value.items() if name not in urls}
        content.append(TextContent(type="text", text=json.dumps(rest, ensure_ascii=False)))
        for url in urls.values():
            content.append(ImageContent(type="image", data=url.removeprefix(PNG), mimeType="image/png"))
    return content


def mask_of(rle) -> np.ndarray:
    if not isinstance(rle, dict):
        raise BadInput("a mask must be an RLE {'size': [h, w], 'counts': str}")
    return decode_rle(rle)
