"""A conversation as one JSON file that reopens it: images, questions, and answers with their masks.

    text = dump(Conversation([("cups.jpg", image)], [Exchange(0, "where is the cup?", answer)]))
    conversation = load(text)                # BadInput, one line, for anything that is not such a file

The file holds data only: nothing in it is executed, no path in it is opened, and every field is checked.
Images are stored in it as JPEG (quality 95, less where the file would be too large), so that masks stay exact
and pixels nearly so.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, NoReturn

import numpy as np

from assistant.answer import Answer, Target
from assistant.errors import BadInput
from assistant.grammar import check_question
from assistant.images import open_image
from assistant.sam.mask_ops import decode_rle, encode_rle

FILE_VERSION = 1
MAX_FILE_LENGTH = 50_000_000  # characters, all ASCII: the 50 MB that the page lets be uploaded
MAX_PHOTOS = 6
MAX_EXCHANGES = 500
MAX_TARGETS_PER_EXCHANGE = 300
MAX_INSTANCES_PER_TARGET = 300
MAX_SEARCHED_PER_TARGET = 20  # phrases that were looked for
# In all of a file: a few bytes of JPEG or RLE can decode to any number of pixels.
MAX_PHOTO_PIXELS = 128_000_000
MAX_MASK_PIXELS = 500_000_000
MAX_TEXT_LENGTH = 4_000  # characters of a question, an answer or a phrase
MAX_NAME_LENGTH = 200  # characters of a photo's name
JPEG_QUALITY = 95
FALLBACK_JPEG_QUALITIES = (80, 60)  # tried in turn where the file would be too large
NOT_A_CONVERSATION = "this is no conversation that can be reopened"

Json = Any  # what json.loads returns, before it is checked


@dataclass
class Exchange:
    """An answered question, as the file stores it; on the page it is an `assistant.page.question.Question`.

    Attributes:
        photo: Index of the image in the conversation.
        question: The question.
        answer: Its answer.
        about: (H, W) bool, the part of the image that the question is about; None for the whole image.
        about_phrase: What that part was called; "" for the whole image, and in files of earlier versions.
        corrected: Whether the answer was changed by hand.
    """

    photo: int
    question: str
    answer: Answer
    about: np.ndarray | None = field(default=None, repr=False)
    about_phrase: str = ""
    corrected: bool = False


@dataclass
class Conversation:
    """What a file holds.

    Attributes:
        photos: (name, (H, W, 3) uint8 RGB) of each image.
        exchanges: Questions and answers, oldest first.
    """

    photos: list[tuple[str, np.ndarray]]
    exchanges: list[Exchange]


def dump(conversation: Conversation) -> str:
    """Write a conversation.

    Args:
        conversation: At most MAX_PHOTOS images and MAX_EXCHANGES exchanges.

    Returns:
        The text of the file, ASCII.

    Raises:
        BadInput: The file would be too large to be opened again.
    """
    for quality in (JPEG_QUALITY, *FALLBACK_JPEG_QUALITIES):
        table = _to_json(conversation, quality)
        if _mask_pixels(table["exchanges"], conversation.photos) > MAX_MASK_PIXELS:
            raise BadInput(
                "the conversation has more masks than can be opened again: start a new one, or undo some "
                "questions"
            )
        text = json.dumps(table)
        if len(text) <= MAX_FILE_LENGTH:
            return text
    raise BadInput(
        f"the conversation takes {len(text) // 10**6} MB, more than the {MAX_FILE_LENGTH // 10**6} MB that "
        "can be opened again: keep fewer or smaller photos in it"
    )


def _to_json(conversation: Conversation, quality: int) -> dict[str, Any]:
    return {
        "maskpick": FILE_VERSION,
        "photos": [
            {"name": name[:MAX_NAME_LENGTH], "jpeg": base64.b64encode(as_jpeg(image, quality)).decode()}
            for name, image in conversation.photos
        ],
        "exchanges": [_exchange_to_json(exchange) for exchange in conversation.exchanges],
    }


def _exchange_to_json(exchange: Exchange) -> dict[str, Any]:
    return {
        "photo": exchange.photo,
        "question": exchange.question,
        "about": None if exchange.about is None else encode_rle(exchange.about),
        "text": exchange.answer.text[:MAX_TEXT_LENGTH],
        "targets": [_target_to_json(target) for target in exchange.answer.targets],
        # Earlier versions do not know these: they are left out where they say nothing.
        **({"about_phrase": exchange.about_phrase[:MAX_TEXT_LENGTH]} if exchange.about_phrase else {}),
        **({"corrected": True} if exchange.corrected else {}),
    }


def _target_to_json(target: Target) -> dict[str, Any]:
    return {
        "phrase": target.phrase[:MAX_TEXT_LENGTH],
        "present": bool(target.present),
        "confidence": float(target.confidence),
        "rle": encode_rle(target.mask) if target.present and target.mask is not None else None,
        **({} if target.known else {"known": False}),
        **({"seen": True} if target.seen else {}),
        **({"searched": _searched_to_json(target)} if target.searched else {}),
        **({"instances": _instances_to_json(target)} if len(target.instances) > 1 else {}),
    }


def _searched_to_json(target: Target) -> list[str]:
    """The phrases that were looked for, as far as they are read again."""
    return [phrase[:MAX_TEXT_LENGTH] for phrase in target.searched[:MAX_SEARCHED_PER_TARGET]]


def _instances_to_json(target: Target) -> list[dict[str, Any]]:
    """The masks of a target's instances; [] where there are more than can be read again."""
    if len(target.instances) > MAX_INSTANCES_PER_TARGET:
        return []
    return [encode_rle(mask) for mask in target.instances]


def as_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """An image (H, W, 3) uint8 RGB as a JPEG file without chroma subsampling; quality: 1 to 100."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def load(text: str | bytes) -> Conversation:
    """Read what `dump` wrote.

    Args:
        text: The contents of a file, of any kind.

    Returns:
        The conversation, with at least one image.

    Raises:
        BadInput: It is not such a file; the message names the first field that is wrong.
    """
    if len(text) > MAX_FILE_LENGTH:
        raise BadInput(f"the conversation file is larger than {MAX_FILE_LENGTH // 10**6} MB")
    try:
        table = json.loads(text, parse_constant=_refuse_constant)
    except BadInput:
        raise
    except (ValueError, RecursionError):
        raise _bad("it is not JSON") from None
    _check_fields(table, {"maskpick": int, "photos": list, "exchanges": list}, "the file")
    if table["maskpick"] != FILE_VERSION:
        raise _bad(f"it has version {table['maskpick']}, this program reads {FILE_VERSION}")
    for name, limit in (("photos", MAX_PHOTOS), ("exchanges", MAX_EXCHANGES)):
        if len(table[name]) > limit:
            raise _bad(f"it has {len(table[name])} {name}, at most {limit} are read")
    photos = _read_photos(table["photos"])
    if _mask_pixels(table["exchanges"], photos) > MAX_MASK_PIXELS:
        raise _bad(f"its masks have more than {MAX_MASK_PIXELS:,} pixels")
    exchanges = [_read_exchange(row, f"exchange {k}", photos) for k, row in enumerate(table["exchanges"], 1)]
    return Conversation(photos, exchanges)


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity, which Python's JSON reader accepts otherwise."""
    raise _bad(f"it holds {name}")


def _mask_pixels(rows: list[Json], photos: list[tuple[str, np.ndarray]]) -> int:
    """How many pixels the masks of exchanges decode to; malformed ones, refused later, count as none."""
    total = 0
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("targets"), list):
            continue
        if not isinstance(row.get("photo"), int) or row["photo"] not in range(len(photos)):
            continue
        masks = sum(_mask_count(target) for target in row["targets"] if isinstance(target, dict))
        masks += row.get("about") is not None
        height, width = photos[row["photo"]][1].shape[:2]
        total += masks * height * width
    return total


def _mask_count(row: dict[str, Json]) -> int:
    """How many masks a target of a file has."""
    instances = row.get("instances")
    return (row.get("rle") is not None) + (len(instances) if isinstance(instances, list) else 0)


def _bad(reason: str) -> BadInput:
    return BadInput(f'{NOT_A_CONVERSATION}: {reason}; give a file that "Save conversation" wrote')


def _check_fields(
    row: Json,
    kinds: Mapping[str, type | UnionType],
    where: str,
    optional: Mapping[str, type | UnionType] | None = None,
) -> None:
    """Raise BadInput unless `row` has exactly these fields, of which the optional may be missing, each of its
    kind."""
    optional = optional or {}
    if not isinstance(row, dict) or set(row) - set(optional) != set(kinds):
        raise _bad(f"{where} must have the fields {', '.join(kinds)}")
    for name, kind in {**kinds, **optional}.items():
        if name not in row:
            continue
        if not isinstance(row[name], kind) or (isinstance(row[name], bool) and kind is not bool):
            raise _bad(f"{name} of {where} is not of the right kind")
        if isinstance(row[name], str) and name != "jpeg" and len(row[name]) > MAX_TEXT_LENGTH:
            raise _bad(f"{name} of {where} is longer than {MAX_TEXT_LENGTH:,} characters")


def _read_photos(rows: list[Json]) -> list[tuple[str, np.ndarray]]:
    photos = []
    pixels = 0
    for k, row in enumerate(rows, 1):
        name, image = _read_photo(row, f"photo {k}")
        photos.append((name, image))
        pixels += image.shape[0] * image.shape[1]
        if pixels > MAX_PHOTO_PIXELS:
            raise _bad(f"its photos have more than {MAX_PHOTO_PIXELS:,} pixels")
    if not photos:
        raise _bad("it has no photo")
    return photos


def _read_photo(row: Json, where: str) -> tuple[str, np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    _check_fields(row, {"name": str, "jpeg": str}, where)
    try:
        content = base64.b64decode(row["jpeg"], validate=True)
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return row["name"][:MAX_NAME_LENGTH], open_image(image)
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


def _read_exchange(row: Json, where: str, photos: list[tuple[str, np.ndarray]]) -> Exchange:
    kinds = {"photo": int, "question": str, "about": dict | None, "text": str, "targets": list}
    _check_fields(row, kinds, where, optional={"about_phrase": str, "corrected": bool})
    if not 0 <= row["photo"] < len(photos):
        raise _bad(f"{where} is about photo {row['photo'] + 1} of {len(photos)}")
    if len(row["targets"]) > MAX_TARGETS_PER_EXCHANGE:
        raise _bad(f"{where} has {len(row['targets'])} targets, at most {MAX_TARGETS_PER_EXCHANGE} are read")
    image = photos[row["photo"]][1]
    try:
        question = check_question(row["question"])
        about = None if row["about"] is None else _read_mask(row["about"], image)
        targets = [_read_target(t, f"target {k} of {where}", image) for k, t in enumerate(row["targets"], 1)]
    except BadInput as error:
        if str(error).startswith(NOT_A_CONVERSATION):
            raise
        raise _bad(f"{where}: {error}") from None
    answer = Answer(row["text"], targets, image.shape[:2], image, question)
    return Exchange(
        row["photo"], question, answer, about, row.get("about_phrase", ""), row.get("corrected", False)
    )


def _read_target(row: Json, where: str, image: np.ndarray) -> Target:
    kinds = {"phrase": str, "present": bool, "confidence": float | int, "rle": dict | None}
    optional = {"known": bool, "seen": bool, "instances": list, "searched": list}
    _check_fields(row, kinds, where, optional)
    if not 0 <= row["confidence"] <= 1:
        raise _bad(f"confidence of {where} is outside of 0 to 1")
    if row["present"] != (row["rle"] is not None):
        raise _bad(f"{where} is {'present without' if row['present'] else 'absent with'} a mask")
    mask = _read_mask(row["rle"], image) if row["present"] else None
    rles = row.get("instances", [])
    if len(rles) > MAX_INSTANCES_PER_TARGET:
        raise _bad(f"{where} has {len(rles)} instances, at most {MAX_INSTANCES_PER_TARGET} are read")
    if not all(isinstance(rle, dict) for rle in rles):
        raise _bad(f"instances of {where} is not of the right kind")
    searched = row.get("searched", [])
    if len(searched) > MAX_SEARCHED_PER_TARGET or not all(
        isinstance(phrase, str) and len(phrase) <= MAX_TEXT_LENGTH for phrase in searched
    ):
        raise _bad(f"searched of {where} is not at most {MAX_SEARCHED_PER_TARGET} phrases")
    return Target(
        row["phrase"],
        row["present"],
        float(row["confidence"]),
        mask,
        [],
        known=row.get("known", True),
        seen=row.get("seen", False),
        instances=[_read_mask(rle, image) for rle in rles],
        searched=searched,
    )


def _read_mask(rle: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool of the size of its image."""
    if rle.get("size") != list(image.shape[:2]):
        raise BadInput(f"a mask is not of its photo's size, {image.shape[1]}x{image.shape[0]}")
    return decode_rle(rle)
