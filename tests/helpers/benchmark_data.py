"""Small data sets in the public benchmarks' layouts, of coloured rectangles."""

import json

import numpy as np
from PIL import Image

from assistant.sam.mask_ops import encode_rle
from tests.helpers.colour_finder import BOXES, H, W, rectangle, save_image


def reasonseg_polygon(x0, y0, x1, y1, label="target"):
    """The rectangle's pixels [x0, x1) x [y0, y1): ReasonSeg's reader draws corners inclusively."""
    return {
        "label": label,
        "points": [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]],
        "shape_type": "polygon",
        "labels": [label],
        "image_name": "x.jpg",
        "group_id": None,
        "group_ids": [],
        "flags": {},
    }


def write_reasonseg_item(folder, name, question, shapes, is_sentence, encoding="utf-8"):
    """One image and its json."""
    save_image(folder / f"{name}.jpg")
    row = {"text": [question, "a rephrasing that is not asked"], "is_sentence": is_sentence, "shapes": shapes}
    (folder / f"{name}.json").write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))


def record_row(question, colours, image="images/a.png", kind="named", **changes):
    """A row of a records file that asks for some colours; images/a.png has red and blue, others none."""
    masks = []
    for colour in colours:
        present = colour in BOXES and image.endswith("a.png")
        masks.append((colour, encode_rle(rectangle(*BOXES[colour])) if present else None))
    return {
        "image": image,
        "width": W,
        "height": H,
        "question": question,
        "answer": ", ".join(f"{colour} [SEG]" if rle else f"{colour} [ABS]" for colour, rle in masks),
        "targets": [{"phrase": colour, "rle": rle} for colour, rle in masks],
        "source": {"kind": kind},
    } | changes


def write_record_rows(folder, rows):
    """FOLDER/records.jsonl."""
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def label_map(elsewhere, red, blue):
    """The class numbers of the coloured image, (H, W) uint8."""
    labels = np.full((H, W), elsewhere, np.uint8)
    labels[rectangle(*BOXES["red"])] = red
    labels[rectangle(*BOXES["blue"])] = blue
    return labels


def save_label_png(path, labels):
    """Write a label map as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)


def write_label_maps(root):
    """A plain folder of one image with red, blue and a grey wall; its right edge has no class."""
    save_image(root / "images/p.jpg")
    labels = label_map(3, 0, 1)
    labels[:, 50:] = 9  # no name: does not count
    save_label_png(root / "labels/p.png", labels)
    (root / "names.json").write_text(json.dumps(["red", "blue", "green", "grey wall", "void"]))


def write_coco_folder(folder):
    """instances.json with red, blue and a crowd of blue in images/a.png, and an image that is not there."""
    save_image(folder / "images/a.png")
    boxes = [(4, 4, 24, 24), (30, 10, 50, 30), (50, 32, 58, 38)]
    annotations = [
        {
            "id": k,
            "image_id": 1,
            "category_id": 1 + (k > 0),
            "iscrowd": int(k == 2),
            "bbox": [0, 0, 1, 1],
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        }
        for k, (x0, y0, x1, y1) in enumerate(boxes)
    ]
    table = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": H, "width": W},
            {"id": 2, "file_name": "gone.png", "height": H, "width": W},
        ],
        "annotations": annotations + [dict(annotations[0], id=9, image_id=2)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    (folder / "instances.json").write_text(json.dumps(table))
