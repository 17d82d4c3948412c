"""Files that visitors and programs send.

file = uploaded_file(payload)            # payload: what Gradio says of an upload, before it reads it
"""

from __future__ import annotations

from pathlib import Path

from assistant.errors import BadInput


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
        raise BadInput("the picture is missing: upload a file, with gradio_client by handle_file(path)")
    return Path(path)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
