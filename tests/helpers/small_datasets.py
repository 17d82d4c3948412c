"""Small data sets from the photos that scikit-image ships, in the public layouts that the commands read.

    write_coco(folder / "DATA/coco/train", photos(8), COCO)      # images/, instances.json
    write_label_maps(folder / "DATA/camvid/train", renamed(photos(4), AS_STREET), STREET)

The outlines were drawn by hand and are true to a few pixels. Car parts, streets and garments are the same
photos under other names: enough to run every format, not to learn from.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageOps
from pycocotools import mask as coco_mask

LONGEST_SIDE = 320  # px of the photos written here, so that opening one takes a second or two

# {photo: {name: corners "x,y" in px of the photo as scikit-image ships it}}
OUTLINES = {
    "chelsea": {"cat": "0,125 30,90 40,0 400,0 362,82 396,120 350,190 392,262 410,299 0,299"},
    "coffee": {
        "cup": "174,95 200,40 290,16 370,45 406,100 400,160 370,225 320,275 255,280 235,306 204,300 185,180",
        "spoon": "404,74 424,76 420,100 388,200 405,270 392,310 358,326 330,304 328,266 365,238 380,190",
    },
    "motorcycle": {
        "motorcycle": "134,156 191,161 253,187 357,192 450,171 487,78 565,135 565,208 640,270 640,446 "
        "555,405 513,312 482,332 440,374 336,436 "
        "321,374 232,400 160,384 123,322 134,260 103,234 92,203 139,208",
        "bench": "46,109 279,109 279,156 150,156 134,208 87,223 51,306 44,208",
    },
    "astronaut": {
        "person": "155,72 191,20 264,20 300,72 300,144 295,207 337,259 363,331 285,394 279,511 25,511 20,404 "
        "46,290 108,228 129,165 160,124"
    },
}

# {name: category id}; COCO's own ids.
COCO = {"person": 1, "motorcycle": 4, "bench": 15, "cat": 17, "dog": 18, "cup": 47, "spoon": 50}
CAR_PARTS = {"hood": 1, "front_glass": 2, "wheel": 3, "left_mirror": 4, "back_glass": 5, "tailgate": 6}
AS_CAR_PARTS = dict(
    motorcycle="hood",
    bench="front_glass",
    cat="wheel",
    cup="left_mirror",
    spoon="back_glass",
    person="tailgate",
)

# Names by their number in the label PNGs. What is not outlined is "void", the last, or "null", the first.
STREET = ["building", "pole", "tree", "fence", "car", "pedestrian", "sky", "road", "pavement", "void"]
AS_STREET = dict(
    motorcycle="car", bench="fence", cat="tree", cup="building", spoon="pole", person="pedestrian"
)
GARMENTS = ["null", "jacket", "jeans", "shirt", "skirt", "boots", "hat"]
AS_GARMENTS = dict(motorcycle="jacket", bench="jeans", cat="shirt", cup="skirt", spoon="boots", person="hat")

Corners = list[tuple[float, float]]


@dataclass(frozen=True)
class Photo:
    """An image with the outlines of its instances, each a list of corners in px."""

    image: Image.Image
    outlines: dict[str, Corners]

    def mask(self, name: str) -> np.ndarray:
        """(H, W) bool."""
        canvas = Image.new("L", self.image.size)
        ImageDraw.Draw(canvas).polygon(self.outlines[name], fill=1)
        return np.asarray(canvas) == 1


def photo_named(name: str) -> Photo:
    """One photo of `OUTLINES`, at most `LONGEST_SIDE` px wide and high."""
    pixels = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    image = Image.fromarray(pixels)
    scale = LONGEST_SIDE / max(image.size)
    outlines = {
        what: [tuple(scale * float(v) for v in corner.split(",")) for corner in corners.split()]
        for what, corners in OUTLINES[name].items()
    }
    return Photo(image.resize((round(scale * image.width), round(scale * image.height))), outlines)


def photos(count: int) -> list[Photo]:
    """`count` photos: the four in turn, then mirrored, then narrower by 20 px a round."""
    made = []
    for k in range(count):
        photo = photo_named(list(OUTLINES)[k % len(OUTLINES)])
        turn = k // len(OUTLINES)
        if turn % 2:
            photo = mirrored(photo)
        made.append(narrower(photo, 20 * (turn // 2)))
    return made


def mirrored(photo: Photo) -> Photo:
    return Photo(
        ImageOps.mirror(photo.image),
        {name: [(photo.image.width - x, y) for x, y in corners] for name, corners in photo.outlines.items()},
    )


def narrower(photo: Photo, pixels: int) -> Photo:
    """Without a strip at the right."""
    width = photo.image.width - pixels
    return Photo(
        photo.image.crop((0, 0, width, photo.image.height)),
        {name: [(min(x, width), y) for x, y in corners] for name, corners in photo.outlines.items()},
    )


def renamed(many: list[Photo], names: dict[str, str]) -> list[Photo]:
    return [Photo(p.image, {names[name]: corners for name, corners in p.outlines.items()}) for p in many]


def rle_of(mask: np.ndarray) -> dict:
    """COCO's compressed RLE of an (H, W) bool mask."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def save_images(folder: Path, many: list[Photo]) -> list[str]:
    """Write the images as photo-0.jpg, photo-1.jpg, ...; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"photo-{k}.jpg" for k in range(len(many))]
    for name, photo in zip(names, many, strict=True):
        photo.image.save(folder / name, quality=90)
    return names


def write_coco(
    folder: Path,
    many: list[Photo],
    categories: dict[str, int],
    images: str = "images",
    annotations: str = "instances.json",
) -> None:
    """A COCO-format data set: a folder of images and a json file of polygons."""
    names = save_images(folder / images, many)
    rows = [
        {"id": k, "file_name": name, "width": photo.image.width, "height": photo.image.height}
        for k, (name, photo) in enumerate(zip(names, many, strict=True))
    ]
    objects = []
    for k, photo in enumerate(many):
        for name, corners in photo.outlines.items():
            left, top = np.min(corners, axis=0)
            right, bottom = np.max(corners, axis=0)
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": k,
                    "category_id": categories[name],
                    "segmentation": [[v for corner in corners for v in corner]],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(photo.mask(name).sum()),
                    "iscrowd": 0,
                }
            )
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    data = {"images": rows, "annotations": objects, "categories": listed}
    (folder / annotations).write_text(json.dumps(data))


def write_label_maps(folder: Path, many: list[Photo], names: list[str]) -> None:
    """images/*.jpg, labels/*.png of numbers into `names`, names.json one folder up, as in camvid/train."""
    (folder / "labels").mkdir(parents=True)
    rest = names.index("void") if "void" in names else 0
    for file, photo in zip(save_images(folder / "images", many), many, strict=True):
        labels = np.full(photo.image.size[::-1], rest, np.uint8)
        for name in photo.outlines:
            labels[photo.mask(name)] = names.index(name)
        Image.fromarray(labels).save(folder / "labels" / Path(file).with_suffix(".png"))
    (folder.parent / "names.json").write_text(json.dumps(names))


def write_expressions(folder: Path, many: list[Photo]) -> None:
    """Referring expressions with boxes, one of them about nothing in the image, as in refcocos/dev."""
    rows = []
    for name, photo in zip(save_images(folder / "images", many), many, strict=True):
        what, corners = next(iter(photo.outlines.items()))
        box = [*np.min(corners, axis=0), *np.max(corners, axis=0)]
        size = {"width": photo.image.width, "height": photo.image.height}
        more = {"hops": 1, "type": ["attribute"]}
        rows.append({"image": name, **size, "expression": f"the {what}", "box": box, "empty": False, **more})
        rows.append({"image": name, **size, "expression": "the giraffe", "box": None, "empty": True, **more})
    (folder / "expressions.json").write_text(json.dumps(rows))


def write_reasonseg(folder: Path, many: list[Photo], predictions: Path) -> None:
    """ReasonSeg's layout, and another model's answers, NAME.png: the mask of each, shifted by 10 px."""
    predictions.mkdir(parents=True)
    for name, photo in zip(save_images(folder, many), many, strict=True):
        what, corners = next(iter(photo.outlines.items()))
        row = {
            "text": [f"Which part of the photo shows the {what}?"],
            "is_sentence": True,
            "shapes": [{"label": "target", "points": [list(corner) for corner in corners]}],
        }
        (folder / name).with_suffix(".json").write_text(json.dumps(row))
        shifted = np.roll(photo.mask(what), 10, axis=1)
        Image.fromarray(np.uint8(255 * shifted)).save((predictions / name).with_suffix(".png"))


def write_question_records(file: Path, many: list[Photo], images: str) -> None:
    """A records file: each instance asked for by name, and one that is absent. images: a folder beside it."""
    rows = []
    for name, photo in zip(save_images(file.parent / images, many), many, strict=True):
        common = {"image": f"{images}/{name}", "width": photo.image.width, "height": photo.image.height}
        for what in photo.outlines:
            target = {"phrase": what, "rle": rle_of(photo.mask(what))}
            text = {"question": f"where is the {what}?", "answer": f"The {what} [SEG]."}
            rows.append({**common, **text, "targets": [target], "source": {"kind": "named"}})
        text = {"question": "is there a giraffe?", "answer": "There is no giraffe [ABS]."}
        absent = {"phrase": "giraffe", "rle": None}
        rows.append({**common, **text, "targets": [absent], "source": {"kind": "absent"}})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
