"""Images in the messages for a multimodal model, in the form that OpenAI-compatible servers take.

messages = with_image([{"role": "user", "content": "Describe this photo."}], "photo.jpg")
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datagen.llm.requests import Message

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

MAX_SENT_SIDE = 768  # px, the longer side of an image that is sent
JPEG_QUALITY = 90


def image_part(image: Path | str | np.ndarray, max_side: int = MAX_SENT_SIDE) -> dict[str, Any]:
    """Encode an image as a part of a message: {"type": "image_url", ...} with a JPEG in the address.

    Args:
        image: A path or (H, W, 3) uint8 RGB.
        max_side: px; a larger image is scaled down to it.

    Raises:
        BadInput: The file is not an image.
    """
    from PIL import Image

    from assistant.images import open_image

    pil_image = Image.fromarray(open_image(image))
    pil_image.thumbnail((max_side, max_side))
    file = io.BytesIO()
    pil_image.save(file, "JPEG", quality=JPEG_QUALITY)
    content = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{content}"}}


def with_image(messages: list[Message], image: Path | str | np.ndarray) -> list[Message]:
    """Put an image before the text of the last message."""
    *others, last = messages
    return [*others, last | {"content": [image_part(image), {"type": "text", "text": last["content"]}]}]


def has_images(messages: list[Message]) -> bool:
    """Whether some message is a list of parts, as those with images are."""
    return any(isinstance(message["content"], list) for message in messages)


def images_of(messages: list[Message]) -> "list[PilImage]":
    """Decode the images of messages, in their order."""
    from PIL import Image

    parts = [
        part
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    encoded = [part["image_url"]["url"].split(",", 1)[1] for part in parts]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in encoded]
