"""Step 2, describe: pictures for a multimodal model, in the form that OpenAI-compatible servers take."""

import base64
import io

PIXELS = 768  # px, the longer side of a picture that is sent


def picture_part(image, pixels: int = PIXELS) -> dict:
    """A path or (H, W, 3) uint8 -> {"type": "image_url", ...}: a JPEG in the text."""
    from PIL import Image

    from assistant.images import open_image

    image = Image.fromarray(open_image(image))
    image.thumbnail((pixels, pixels))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    content = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{content}"}}


def with_picture(messages: list[dict], picture) -> list[dict]:
    """The messages, the last with the picture before its text."""
    *others, last = messages
    return [*others, last | {"content": [picture_part(picture), {"type": "text", "text": last["content"]}]}]


def pictures_of(messages: list[dict]) -> list:
    """The pictures of messages as PIL images, in their order."""
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
