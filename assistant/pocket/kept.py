"""Opened pictures kept on disk: what a question about the regions needs, without the embedding for SAM's prompts.

    view = kept_view(eyes, key, "photo.jpg", Path("runs/views"))       # opened once; read from there afterwards
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from assistant.files import replace_whole
from assistant.images import open_image
from assistant.pocket.model import Eyes, View
from assistant.proposals import Proposals

ARRAYS = ("boxes", "predicted_iou", "stability", "areas", "points")


def kept_file(key: str, image: Path, folder: Path) -> Path:
    """Where the picture lies once opened with the SAM weights of checksum `key`."""
    return folder / (hashlib.sha256(f"{key} {Path(image).resolve()}".encode()).hexdigest()[:24] + ".npz")


def kept_view(eyes: Eyes, key: str, image, folder: Path | None) -> View:
    """The view of a picture (a path, or what `open_image` takes); without `folder` nothing is kept. The embedding of
    one that was read back is None. BadInput: no picture."""
    file = kept_file(key, image, folder) if folder else None
    if file is None or not file.exists():
        view = eyes.open(open_image(image))
        if file:
            write_view(file, view)
        return view
    with np.load(file) as kept:
        p = {name: kept[name] for name in ARRAYS}
        rles, size = json.loads(str(kept["rles"])), tuple(int(s) for s in kept["size"])
        proposals = Proposals(rles, *(p[name] for name in ARRAYS), np.zeros((len(rles), 0, 0), np.float32), size)
        return View(None, proposals, torch.from_numpy(kept["features"].astype(np.float32)))


def write_view(file: Path, view: View) -> None:
    p = view.proposals
    with replace_whole(file) as path, path.open("wb") as out:
        np.savez_compressed(out, features=view.features.half().numpy(), rles=json.dumps(p.rles), size=p.size,
                            **{name: getattr(p, name) for name in ARRAYS})
