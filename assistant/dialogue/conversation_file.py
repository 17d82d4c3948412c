"""A conversation as one JSON file that reopens it: photos, questions, answers with their masks.

    text = dump(Conversation([("cups.jpg", image)], [Exchange(0, "where is the cup?", answer)]))
    conversation = load(text)                # BadInput, one line, for anything that is not such a file

The file is data only: nothing in it is executed, no path in it is opened, every field is checked. Photos are inside it
as JPEG (quality 95, less where the file would be too large), so masks stay exact and pixels nearly so.
"""

import base64
import binascii
import io
import json
from dataclasses import dataclass, field

import numpy as np

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.grammar import check_question
from assistant.images import open_image
from assistant.record import from_rle, to_rle

VERSION = 1
LARGEST = 50_000_000  # bytes of a file, what the page lets be uploaded
MOST = {"photos": 6, "exchanges": 500, "targets": 300}
PIXELS = {"photos": 128_000_000, "masks": 500_000_000}  # in all: small files can unfold to any size
LONGEST = 4_000  # characters of a text


@dataclass
class Exchange:
    """A question about a photo (its index) and its answer. about: (H, W) bool, the part that was pointed at, or
    None."""

    photo: int
    question: str
    answer: Answer
    about: np.ndarray | None = field(default=None, repr=False)


@dataclass
class Conversation:
    """photos: (name, (H, W, 3) uint8 RGB) each."""

    photos: list[tuple[str, np.ndarray]]
    exchanges: list[Exchange]


def dump(conversation: Conversation) -> str:
    """The file's text, ASCII. BadInput where it would be larger than can be opened again."""
    for quality in (95, 80, 60):
        table = _table(conversation, quality)
        if _mask_pixels(table["exchanges"], conversation.photos) > PIXELS["masks"]:
            raise BadInput(
                "the conversation has more masks than can be opened again: start a new one, or undo some questions"
            )
        text = json.dumps(table)
        if len(text) <= LARGEST:
            return text
    raise BadInput(
        f"the conversation takes {len(text) // 10**6} MB, more than the {LARGEST // 10**6} MB that can be opened "
        "again: keep fewer or smaller photos in it"
    )


def _table(conversation: Conversation, quality: int) -> dict:
    return {
        "maskpick": VERSION,
        "photos": [
            {"name": name[:200], "jpeg": base64.b64encode(as_jpeg(image, quality)).decode()}
            for name, image in conversation.photos
        ],
        "exchanges": [
            {
                "photo": e.photo,
                "question": e.question,
                "about": None if e.about is None else to_rle(e.about),
                "text": e.answer.text[:LONGEST],
                "targets": [
                    {
                        "phrase": t.phrase[:LONGEST],
                        "present": bool(t.present),
                        "confidence": float(t.confidence),
                        "rle": to_rle(t.mask) if t.present else None,
                    }
                    for t in e.answer.targets
                ],
            }
            for e in conversation.exchanges
        ],
    }


def as_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 -> JPEG without chroma subsampling."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def load(text: str | bytes) -> Conversation:
    """What `dump` wrote. Raises BadInput that names the first field that is wrong."""
    if len(text) > LARGEST:
        raise BadInput(f"the conversation file is larger than {LARGEST // 10**6} MB")
    try:
        table = json.loads(text, parse_constant=lambda name: _bad(f"it holds {name}"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise _bad("it is not JSON") from None
    _fields(table, {"maskpick": int, "photos": list, "exchanges": list}, "the file")
    if table["maskpick"] != VERSION:
        raise _bad(f"it has version {table['maskpick']}, this program reads {VERSION}")
    for name in ("photos", "exchanges"):
        if len(table[name]) > MOST[name]:
            raise _bad(f"it has {len(table[name])} {name}, at most {MOST[name]} are read")
    photos = []
    for k, row in enumerate(table["photos"], 1):
        photos.append(_photo(row, f"photo {k}"))
        if sum(image.shape[0] * image.shape[1] for _, image in photos) > PIXELS["photos"]:
            raise _bad(f"its photos have more than {PIXELS['photos']:,} pixels")
    if not photos:
        raise _bad("it has no photo")
    if _mask_pixels(table["exchanges"], photos) > PIXELS["masks"]:
        raise _bad(f"its masks have more than {PIXELS['masks']:,} pixels")
    return Conversation(
        photos, [_exchange(row, f"exchange {k}", photos) for k, row in enumerate(table["exchanges"], 1)]
    )


def _mask_pixels(rows: list, photos: list) -> int:
    """How many pixels the masks of these exchanges unfold to; of rows that are no exchanges, none."""
    total = 0
    for row in rows:
        if (
            isinstance(row, dict)
            and isinstance(row.get("targets"), list)
            and isinstance(row.get("photo"), int)
            and row["photo"] in range(len(photos))
        ):
            masks = sum(isinstance(t, dict) and t.get("rle") is not None for t in row["targets"]) + (
                row.get("about") is not None
            )
            total += masks * photos[row["photo"]][1].shape[0] * photos[row["photo"]][1].shape[1]
    return total


def _bad(reason: str) -> BadInput:
    return BadInput(
        f'this is no conversation that can be reopened: {reason}; give a file that "Save conversation" wrote'
    )


def _fields(row, kinds: dict[str, type], where: str) -> None:
    """Exactly these fields, of these kinds."""
    if not isinstance(row, dict) or set(row) != set(kinds):
        raise _bad(f"{where} must have the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and kind is not bool):
            raise _bad(f"{name} of {where} is not of the right kind")
        if isinstance(row[name], str) and name != "jpeg" and len(row[name]) > LONGEST:
            raise _bad(f"{name} of {where} is longer than {LONGEST:,} characters")


def _photo(row, where: str) -> tuple[str, np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    _fields(row, {"name": str, "jpeg": str}, where)
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(row["jpeg"], validate=True)), formats=["JPEG"]
        ) as picture:
            return row["name"][:200], open_image(picture)
    except BadInput as error:
        raise _bad(f"{where}: {error}") from None
    except (
        binascii.Error,
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):
        raise _bad(f"{where} is not a JPEG picture") from None


def _exchange(row, where: str, photos: list) -> Exchange:
    _fields(row, {"photo": int, "question": str, "about": dict | None, "text": str, "targets": list}, where)
    if not 0 <= row["photo"] < len(photos):
        raise _bad(f"{where} is about photo {row['photo'] + 1} of {len(photos)}")
    if len(row["targets"]) > MOST["targets"]:
        raise _bad(f"{where} has {len(row['targets'])} targets, at most {MOST['targets']} are read")
    image = photos[row["photo"]][1]
    try:
        question = check_question(row["question"])
        about = None if row["about"] is None else _mask(row["about"], image)
        targets = [_target(t, f"target {k} of {where}", image) for k, t in enumerate(row["targets"], 1)]
    except BadInput as error:
        raise error if str(error).startswith("this is no") else _bad(f"{where}: {error}") from None
    return Exchange(
        row["photo"], question, Answer(row["text"], targets, image.shape[:2], image, question), about
    )


def _target(row, where: str, image: np.ndarray) -> Target:
    _fields(row, {"phrase": str, "present": bool, "confidence": float | int, "rle": dict | None}, where)
    if not 0 <= row["confidence"] <= 1:
        raise _bad(f"confidence of {where} is outside of 0 to 1")
    if row["present"] != (row["rle"] is not None):
        raise _bad(f"{where} is {'present without' if row['present'] else 'absent with'} a mask")
    mask = _mask(row["rle"], image) if row["present"] else None
    return Target(row["phrase"], row["present"], float(row["confidence"]), mask, [])


def _mask(rle: dict, image: np.ndarray) -> np.ndarray:
    if rle.get("size") != list(image.shape[:2]):
        raise BadInput(f"a mask is not of its photo's size, {image.shape[1]}x{image.shape[0]}")
    return from_rle(rle)
