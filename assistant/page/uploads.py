"""Files that visitors and programs send.

file = uploaded_file(payload)            # payload: what Gradio says of an upload, before it reads it
with received_image(source) as file:     # source: that, or what programs give: a path, a URL, a data: URL
    scene = assistant.open(file)
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from assistant.errors import BadInput

FILE_ROUTE = "/gradio_api/file="  # of Gradio: the address of an uploaded file, before its path
MAX_DATA_URL_LENGTH = (
    70_000_000  # characters: a file of 50 MB, which is what Gradio takes (app.MAX_UPLOAD_SIZE)
)
WAYS_TO_SEND = (
    "send the picture as a data: URL (data:image/jpeg;base64,...), or upload it to /gradio_api/upload and "
    "give the path that comes back, as gradio_client does by handle_file(path)"
)


def uploaded_file(payload: object) -> Path:
    """The file that was uploaded.

    Args:
        payload: {"path": str, ...}, as Gradio passes an upload on.

    Returns:
        Its path in the folder of uploads.

    Raises:
        BadInput: It is anything else, such as another file of this machine.
    """
    from gradio.utils import get_upload_folder

    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(path, str) or "\0" in path or not _is_inside(Path(path), Path(get_upload_folder())):
        raise BadInput(f"the picture is missing: {WAYS_TO_SEND}")
    return Path(path)


@contextlib.contextmanager
def received_image(source: object) -> Iterator[Path]:
    """The image that a program sent.

    Args:
        source: What Gradio says of an upload, {"path": str, ...}; or a str: the path that an upload returned,
            its address on this page, another address on the network, or a data: URL.

    Yields:
        A file, which is deleted at the end unless it is an upload.

    Raises:
        BadInput: It is none of these, or cannot be had.
    """
    from gradio.utils import get_upload_folder

    text = _address(source)
    if text.startswith("data:"):
        folder = Path(get_upload_folder())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="sent-") as file:
            file.write(_decode_data_url(text))
            file.flush()
            yield Path(file.name)
    elif text.startswith(("http://", "https://")):
        path = unquote(urlsplit(text).path)
        if FILE_ROUTE in path:
            yield uploaded_file({"path": path.partition(FILE_ROUTE)[2]})
        else:
            yield _download(text, get_upload_folder())
    else:
        yield uploaded_file({"path": text})


def _address(source: object) -> str:
    """The path or the URL of what a program sent."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("url")
    if not isinstance(source, str) or not source:
        raise BadInput(f"the picture is missing: {WAYS_TO_SEND}")
    return source


def _decode_data_url(text: str) -> bytes:
    """The content of a data: URL. Raises BadInput where it is damaged or too long."""
    head, _, content = text.partition(",")
    if len(content) > MAX_DATA_URL_LENGTH:
        raise BadInput("the picture is larger than 50 MB: scale it down first")
    if not head.endswith(";base64"):
        raise BadInput("the data: URL is not in base64: send data:image/jpeg;base64,...")
    try:
        return base64.b64decode("".join(unquote(content).split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(
            "the data: URL is not in base64, or cut short: send data:image/jpeg;base64,..."
        ) from None


def _download(url: str, folder: str) -> Path:
    """Fetch an image from the network; Gradio refuses addresses of this machine and of its own network."""
    from gradio.processing_utils import ssrf_protected_download

    try:
        return Path(ssrf_protected_download(url, folder))
    except Exception:  # what a network raises varies
        raise BadInput(f"the picture cannot be fetched from {url[:100]}: {WAYS_TO_SEND}") from None


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
