"""Other data sets as records. Every function is pure: files in, `Record`s out, in the files' order.

    write_records("train.jsonl", from_llmseg40k("train.json"))
    json.dump(to_llmseg40k(read_records("train.jsonl")), file)
    write_records("ReasonSeg/val.jsonl", from_reasonseg("ReasonSeg/val", prefix="val/"))
    write_records("refcoco.jsonl", from_refer("refs(unc).p", "instances.json", split="val",
    prefix="train2014/")) write_records("camvid.jsonl", from_label_maps("train", dict(enumerate(names)),
    prefix="train/"))

`prefix` is put before the picture's file name: records hold paths relative to their own file's folder. An
empty mask counts as absent. Raises BadInput with the file's name where something is not as the format says;
given a list as `bad`, items that cannot be read are put there as (name, reason) instead, and the others are
yielded.
"""

import io
import json
import pickle
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.grammar import parse, plain, reply_for
from assistant.images import picture_size
from assistant.record import Record, RecordTarget, record_masks
from assistant.sam.mask_ops import decode_rle, encode_rle, merge_rles, rle_of_segmentation

LLMSEG_FOLDERS = {"coco": "coco/train2017/", "ego_objects": "ego_objects/images/"}
NAME_WORDS = 5  # an answer of at most so many words is taken for a name


def _json(path: Path):
    """JSON in UTF-8, else in cp1252, in which some of ReasonSeg's files are written."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    try:
        try:
            return json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return json.loads(raw.decode("cp1252"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({' '.join(str(error).split())[:80]})") from None


def _one_target(image: str, question: str, phrase: str, mask: np.ndarray, source: dict) -> Record:
    """A record of one thing; an empty mask means that it is absent."""
    present = bool(mask.any())
    answer = reply_for(
        [(re.sub(r"^\s*(the|an?)\s+", "", phrase, flags=re.I), present)]
    )  # the reply has its own
    name = parse(answer)[0].phrase
    return Record(
        image,
        mask.shape[1],
        mask.shape[0],
        question,
        answer,
        [RecordTarget(name, encode_rle(mask) if present else None)],
        source,
    )


def _refused(bad: list | None, name: str, reason: str) -> None:
    if bad is None:
        raise BadInput(reason if name in reason else f"{name}: {reason}")
    bad.append((name, reason))


# LLM-Seg40K: {file name: {"from_dataset": "coco" | "ego_objects", "qa_pairs": [{"question", "answer",
# "rle_seg"}]}}


def from_llmseg40k(
    path, folders: dict[str, str] = LLMSEG_FOLDERS, bad: list | None = None
) -> Iterator[Record]:
    """One record per question. A short answer names the target ("it" otherwise) and is kept whole in the
    source.

    folders: what is put before a file name, by from_dataset.
    """
    rows = _json(path)
    if not isinstance(rows, dict):
        raise BadInput(f"{path} is not LLM-Seg40K's form: an object keyed by file name")
    for file, row in rows.items():
        try:
            folder, pairs = folders.get(row["from_dataset"], ""), list(row["qa_pairs"])
        except (KeyError, TypeError) as error:
            _refused(bad, file, f"{path}: {file}: not as in LLM-Seg40K: {_reason(error)}")
            continue
        for number, pair in enumerate(pairs):
            try:
                mask, question, answer = (
                    decode_rle(pair["rle_seg"]),
                    str(pair["question"]),
                    str(pair["answer"]),
                )
            except (KeyError, TypeError, BadInput) as error:
                _refused(
                    bad,
                    f"{file}, pair {number + 1}",
                    f"{path}: {file}: not as in LLM-Seg40K: {_reason(error)}",
                )
                continue
            words = answer.strip().rstrip(".").split()
            record = _one_target(
                folder + file,
                question,
                " ".join(words) if len(words) <= NAME_WORDS else "it",
                mask,
                {
                    "dataset": "LLM-Seg40K",
                    "from_dataset": row["from_dataset"],
                    "file": file,
                    "answer": answer,
                },
            )
            if len(words) > NAME_WORDS:
                record.answer += f" {plain(answer)}"
            yield record


def _reason(error: Exception) -> str:
    return f"no {error} there" if isinstance(error, KeyError) else str(error)


def to_llmseg40k(records: Iterable[Record]) -> dict:
    """LLM-Seg40K's object. It knows one mask per question: targets are merged, what is absent has an empty
    mask; and no turns: questions that follow others are left out.

    Of records made by `from_llmseg40k` nothing is lost; others lose their single masks, phrases and source.
    """
    rows: dict[str, dict] = {}
    images: dict[str, str] = {}
    for record in records:
        if record.history:
            continue
        file = record.source.get("file") or Path(record.image).name
        if images.setdefault(file, record.image) != record.image:
            raise BadInput(f"two pictures are called {file}, which LLM-Seg40K's form cannot hold")
        size = [record.height, record.width]
        nothing = {"size": size, "counts": [size[0] * size[1]]}
        there = [t.rle for t in record.targets if t.rle is not None] or [rle_of_segmentation(nothing, *size)]
        if any(rle["size"] != size or not isinstance(rle["counts"], str) for rle in there):
            union = encode_rle(np.any([mask for mask in record_masks(record) if mask is not None], axis=0))
        else:  # as runs: decoding takes longer than all else here
            union = there[0] if len(there) == 1 else merge_rles(there)
        row = rows.setdefault(
            file, {"from_dataset": record.source.get("from_dataset", "coco"), "qa_pairs": []}
        )
        answer = record.source.get("answer", plain(record.answer))
        row["qa_pairs"].append({"question": record.question, "answer": answer, "rle_seg": union})
    return rows


# ReasonSeg: NAME.jpg beside NAME.json {"text": [...], "is_sentence": bool, "shapes": [{"label", "points"}]}


def from_reasonseg(folder, prefix: str = "", bad: list | None = None) -> Iterator[Record]:
    """One record per picture: the question is text[0], `source["ignore"]` the RLE of pixels that do not
    count, or null.

    As LISA reads them (utils/data_processing.py): larger polygons are painted first, so smaller ones stay on
    top; a label with "ignore" in it marks pixels to ignore, "flag" is skipped, any other is the target. A
    polygon that leaves the picture is cut at its edge, and `source["trouble"]` says so ("" otherwise).
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise BadInput(f"no .json in {folder}: give a folder of ReasonSeg such as ReasonSeg/val")
    for file in files:
        try:
            yield _reasonseg_item(file, prefix)
        except BadInput as error:
            _refused(bad, file.name, str(error))


def _reasonseg_item(file: Path, prefix: str) -> Record:
    row = _json(file)
    try:
        text, sentence = row["text"][0], bool(row["is_sentence"])
        if not isinstance(row["text"], list) or not isinstance(text, str):
            raise TypeError
        shapes = [
            (str(s["label"]).lower(), np.asarray(s["points"], float).reshape(-1, 2)) for s in row["shapes"]
        ]
    except (KeyError, IndexError, TypeError, ValueError):
        raise BadInput(
            f"{file} is not as in ReasonSeg: text, is_sentence, shapes with label and points"
        ) from None
    image = file.with_suffix(".jpg")
    size = picture_size(image)
    marks = _paint(shapes, size)
    ignore = marks == 255
    outside = [
        label for label, points in shapes if ((points < -1) | (points > (size[1] + 1, size[0] + 1))).any()
    ]
    source = {
        "dataset": "ReasonSeg",
        "file": file.name,
        "is_sentence": sentence,
        "ignore": encode_rle(ignore) if ignore.any() else None,
        "trouble": f"{len(outside)} polygons leave the picture and were cut at its edge" if outside else "",
    }
    return _one_target(prefix + image.name, text, "it" if sentence else text, marks == 1, source)


def _paint(shapes: list[tuple[str, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """(h, w) uint8: 0, 1 for the target, 255 for what to ignore."""
    from PIL import Image, ImageDraw

    layers = []
    for label, points in shapes:
        if label == "flag" or len(points) == 0:
            continue
        layer = Image.new("1", size[::-1])
        corners = [tuple(p) for p in points.astype(int).tolist()]  # whole pixels, as the original's int32
        draw = ImageDraw.Draw(layer)
        if len(corners) > 2:
            draw.polygon(corners, fill=1, outline=1)
        draw.line(corners + corners[:1], fill=1)
        layers.append((np.asarray(layer), 255 if "ignore" in label else 1))
    marks = np.zeros(size, np.uint8)
    for layer, value in sorted(layers, key=lambda pair: -int(pair[0].sum())):
        marks[layer] = value
    return marks


# refer sets: RefCLEF, RefCOCO, +, g, gRefCOCO: refs (pickle or json) + COCO's instances.json


class _Unpickler(pickle.Unpickler):
    """Reads plain data only: no class or function of any module but the builtin containers and scalars."""

    ALLOWED = {kind.__name__: kind for kind in (dict, list, tuple, set, frozenset, str, int, float, bool)}

    def find_class(self, module, name):
        if module in ("builtins", "__builtin__") and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_refs(path) -> list[dict]:
    """The refs of a refer set, from .json or from a pickle of plain data; a pickle that asks for more is
    refused."""
    path = Path(path)
    if path.suffix == ".json":
        refs = _json(path)
    else:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        try:
            refs = _Unpickler(io.BytesIO(raw), encoding="latin1").load()  # written by Python 2
        except Exception as error:  # a broken pickle may raise anything
            raise BadInput(
                f"{path} is not a pickle of plain data ({' '.join(str(error).split())[:80]})"
            ) from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise BadInput(f"{path} is not a list of refs")
    return refs


def from_refer(
    refs_path, instances_path, split: str | None = None, prefix: str = "", bad: list | None = None
) -> Iterator[Record]:
    """One record per sentence of the refs of `split` (all when None); several annotations of a ref become one
    mask.

    An `ann_id` of -1, as gRefCOCO has it, means that nothing in the picture fits.
    """
    refs, table = read_refs(refs_path), _json(instances_path)
    try:
        images = {row["id"]: row for row in table["images"]}
        annotations = {row["id"]: row for row in table["annotations"]}
    except (KeyError, TypeError):
        raise BadInput(f"{instances_path} is not COCO's instances.json") from None
    for ref in refs:
        try:
            if split is not None and ref["split"] != split:
                continue
            image = images[ref["image_id"]]
            ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
            mask = np.zeros((image["height"], image["width"]), bool)
            for number in ids:
                if number != -1:
                    mask |= segmentation_mask(annotations[number]["segmentation"], mask.shape)
            source = {
                "dataset": Path(refs_path).parent.name,
                "split": str(ref.get("split", "")),
                "ref_id": ref["ref_id"],
                "ann_id": [int(n) for n in ids],
            }
            sentences = [
                (sentence["sent"], sentence.get("sent_id", k)) for k, sentence in enumerate(ref["sentences"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            _refused(
                bad, f"ref {ref.get('ref_id')}", f"{refs_path}: ref {ref.get('ref_id')}: {_reason(error)}"
            )
            continue
        for text, number in sentences:
            yield _one_target(prefix + image["file_name"], text, text, mask, source | {"sent_id": number})


def segmentation_mask(segmentation, size: tuple[int, int]) -> np.ndarray:
    """COCO's segmentation, polygons [[x, y, ...], ...] or an RLE, -> (h, w) bool."""
    if isinstance(segmentation, dict):
        mask = decode_rle(segmentation)
        if mask.shape != tuple(size):
            raise BadInput(f"a mask of {mask.shape[1]}x{mask.shape[0]} in a picture of {size[1]}x{size[0]}")
        return mask
    return decode_rle(rle_of_segmentation(segmentation, *size))


# Label maps: images/NAME.jpg and labels/NAME.png, whose pixels are class numbers


def from_label_maps(
    folder, names: dict[int, str], prefix: str = "", per_question: int = 8, seed: int = 0
) -> Iterator[Record]:
    """One record per picture: which of some classes are there? `per_question` of them, half present where it
    can be.

    names: class number -> name; numbers without a name are void, `source["ignore"]` their RLE or null. The
        choice
    of classes depends on `seed` and the picture's name alone. A class with several numbers has one mask.
    """
    from PIL import Image

    folder = Path(folder)
    files = sorted((folder / "labels").glob("*.png"))
    if not files:
        raise BadInput(f"no labels/*.png in {folder}")
    known = sorted(set(names.values()))
    images = {image.stem: image for image in sorted((folder / "images").glob("*"), reverse=True)}
    for file in files:
        image = images.get(file.stem)
        if image is None:
            raise BadInput(f"no picture in {folder / 'images'} for {file.name}")
        try:
            with Image.open(file) as opened:
                labels = np.asarray(opened)  # numbers as stored: a palette is only for looking
        except OSError:
            raise BadInput(f"{file} is not a label map") from None
        if labels.ndim != 2 or labels.shape != picture_size(image):
            raise BadInput(f"{file} has shape {labels.shape}, not its picture's height and width")
        rng = random.Random(f"{seed} {file.stem}")
        there = sorted({names[n] for n in np.unique(labels).tolist() if n in names})
        gone = [name for name in known if name not in there]
        few = max((per_question + 1) // 2, per_question - len(gone))
        asked = rng.sample(there, min(len(there), few))
        asked += rng.sample(gone, min(len(gone), per_question - len(asked)))
        rng.shuffle(asked)
        answer = reply_for([(name, name in there) for name in asked])
        targets = []
        for name in asked:
            mask = np.isin(labels, [n for n in names if names[n] == name])
            targets.append(RecordTarget(name, encode_rle(mask) if name in there else None))
        void = ~np.isin(labels, list(names))
        yield Record(
            f"{prefix}images/{image.name}",
            labels.shape[1],
            labels.shape[0],
            f"Which of these are in the picture: {', '.join(asked)}?",
            answer,
            targets,
            {"dataset": folder.name, "file": file.name, "ignore": encode_rle(void) if void.any() else None},
        )
