"""The images, masks and prompts that the pocket SAM is trained on.

    data = PromptDataset(root, size=384, prompts=12, seed=0, length=54_000)
    sample = data[0]                                      # .image, .targets, .points, .labels, .kind

Reads the folders of a data root, each in its public layout (COCO `instances.json`, label PNGs, region PNGs,
one mask PNG a frame); folders that are missing are left out. Every sample depends on (seed, index) alone, so
a resumed run sees the data that an uninterrupted one would have seen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage
from torch import Tensor

from assistant.errors import BadInput
from assistant.files import read_json
from assistant.sam.mask_ops import PADDING_GREY, Rle, decode_rle, pad_to_square, rle_of_segmentation
from finetune.pocket.examples import every_tenth
from finetune.pocket.sam_prompts import CELL, PromptDrawer

# Share of samples from each folder. COCO and VOC are what users photograph; BSDS teaches whole images.
FOLDER_SHARES = {
    "coco": 0.32,
    "voc": 0.12,
    "duts": 0.14,
    "bsds": 0.12,
    "people": 0.07,
    "ecssd": 0.05,
    "clothing": 0.04,
    "pennfudan": 0.03,
    "camvid": 0.03,
    "carparts": 0.03,
    "scenes": 0.02,
    "pets": 0.01,
    "faces": 0.01,
    "davis": 0.01,
}
COCO_FOLDERS = ("coco", "people", "carparts")  # all their images are trained on
MEASURED_COCO_FOLDERS = ("voc", "duts", "pets", "pennfudan", "ecssd", "scenes", "faces")  # but every tenth
UNLABELLED_VALUES = {"clothing": (0,), "davis": (0,), "camvid": (11,)}  # of index maps
FOLDERS_OF_CLASSES = ("camvid", "clothing")  # whose index maps tell classes, not instances
DAVIS_THRESHOLD = 127  # grey value above which a pixel of a DAVIS mask is inside

MIN_MASK_AREA = 40  # px at training size, below which a mask is not prompted
MAX_MASKS = 24  # of one image, drawn among its instances
MAX_CLASS_PARTS = 4  # connected parts of a class that are masks of their own, the largest

# Augmentations: half of the samples are crops, so that objects come at every size.
CROP_SHARE, MIN_CROP = 0.5, 0.4
FULL_SCALE_SHARE, MIN_SCALE = 0.7, 0.5
MIN_SIDE = 16  # px of a scaled image
FLIP_SHARE = 0.5
COLOUR_SHARE, MIN_ENHANCEMENT, MAX_ENHANCEMENT = 0.5, 0.6, 1.4
PASTE_SHARE, MAX_PASTED = 0.25, 3
# A share of the samples is a collage of two by two images, so that more objects are small.
COLLAGE_SHARE = 0.3
MIN_PASTED_SIDE, MAX_PASTED_SIDE = 0.12, 0.55  # in shares of the image's longest side
MIN_PASTED_PIXELS = 4  # of a side
MIN_PASTED_PLACE, MAX_PASTED_PLACE = -0.2, 0.9  # of the left and top edge, in shares of the image's sides
OPAQUE_ALPHA = 127  # above which a pixel of a cut-out covers what lies under it


Item = TypeVar("Item")  # what a dataset holds


class TrainingImage(NamedTuple):
    """An image with its masks, not opened.

    Attributes:
        folder: Name of its folder, a key of `FOLDER_SHARES`.
        image: The image file.
        masks: RLEs of its instances, or index PNGs of which one is drawn.
    """

    folder: str
    image: Path
    masks: list[Rle] | list[Path]


class Sample(NamedTuple):
    """One item of the training: an image of side S with P prompts.

    Attributes:
        image: (3, S, S) uint8 RGB, padded right and below with grey.
        targets: (P, S / 4, S / 4) uint8, 255 times the covered share of each cell.
        points: (P, MAX_POINTS, 2) float32 xy px of the square.
        labels: (P, MAX_POINTS) int64, see `finetune.pocket.sam_prompts`.
        kind: (P,) int64, see `finetune.pocket.sam_prompts`.
    """

    image: Tensor
    targets: Tensor
    points: Tensor
    labels: Tensor
    kind: Tensor


# ---------------------------------------------------------------------------------- the folders


def coco_images(folder: str, root: Path) -> list[TrainingImage]:
    """The images of a COCO-format folder (`instances.json`, `images/`), without crowds."""
    data = read_json(root / "instances.json")
    sizes = {row["id"]: (row["height"], row["width"]) for row in data["images"]}
    masks: dict[int, list[Rle]] = {number: [] for number in sizes}
    for row in data["annotations"]:
        if not row.get("iscrowd") and row["segmentation"]:
            height, width = sizes[row["image_id"]]
            masks[row["image_id"]].append(rle_of_segmentation(row["segmentation"], height, width))
    return [
        TrainingImage(folder, root / "images" / row["file_name"], masks[row["id"]])
        for row in data["images"]
        if masks[row["id"]]
    ]


def all_images(root: Path) -> dict[str, list[TrainingImage]]:
    """Every training image under a data root, by folder; folders without images are left out."""
    images: dict[str, list[TrainingImage]] = {}
    for name in (*COCO_FOLDERS, *MEASURED_COCO_FOLDERS):
        if (root / name / "train/instances.json").exists():
            images[name] = coco_images(name, root / name / "train")
            held_out = every_tenth(sorted(row.image for row in images[name]))
            if name in MEASURED_COCO_FOLDERS:
                images[name] = [row for row in images[name] if row.image not in held_out]
    for name, masks_folder in (("clothing", "labels"), ("camvid", "labels"), ("davis", "masks")):
        train = root / name / "train"
        images[name] = [
            TrainingImage(name, file, [train / masks_folder / f"{file.stem}.png"])
            for file in sorted((train / "images").glob("*.jpg"))
        ]
    regions: dict[str, list[Path]] = {}
    for path in sorted((root / "bsds/train/regions").glob("*.png")):
        regions.setdefault(path.stem.split("_")[0], []).append(path)
    images["bsds"] = [
        TrainingImage("bsds", root / f"bsds/train/images/{stem}.jpg", files)
        for stem, files in sorted(regions.items())
    ]
    return {name: found for name, found in images.items() if found}


def index_masks(folder: str, index: np.ndarray) -> list[np.ndarray]:
    """The masks of an index map.

    Args:
        folder: Whose index map it is.
        index: (H, W) int, the region or class of each pixel.

    Returns:
        (H, W) bool masks of the values, and of the connected parts of those that are classes.
    """
    masks = []
    for value in np.unique(index):
        if value in UNLABELLED_VALUES.get(folder, ()):
            continue
        mask = index == value
        if folder in FOLDERS_OF_CLASSES:
            parts, count = ndimage.label(mask)
            areas = np.bincount(parts.ravel())[1:]
            largest = np.argsort(-areas)[:MAX_CLASS_PARTS]
            masks += [parts == k + 1 for k in largest if areas[k] >= MIN_MASK_AREA]
            if count == 1:
                continue
        masks.append(mask)
    return masks


def open_masks(
    training_image: TrainingImage, rng: np.random.Generator, max_masks: int = MAX_MASKS
) -> list[np.ndarray]:
    """The masks of an image, (H, W) bool each: all of an index map, at most `max_masks` instances."""
    masks = training_image.masks
    if isinstance(masks[0], Path):
        index = np.asarray(Image.open(masks[rng.integers(len(masks))]))
        is_davis = training_image.folder == "davis"
        return index_masks(training_image.folder, index > DAVIS_THRESHOLD if is_davis else index)
    chosen = rng.permutation(len(masks))[:max_masks]
    return [decode_rle(masks[i]) for i in chosen]


# ---------------------------------------------------------------------------------- the samples


@dataclass(frozen=True)
class AugmentedImage:
    """An augmented training image, or a collage of four.

    Attributes:
        image: RGB, at most as large as the training square.
        masks: (H, W) bool each, none of them empty.
        tiles: The folder of each image in it and the box that the image fills, half-open xyxy px.
    """

    image: Image.Image
    masks: list[np.ndarray]
    tiles: list[tuple[str, tuple[int, int, int, int]]]

    def square(self, size: int) -> Tensor:
        """The image in its training square, (3, size, size) uint8 RGB, padded right and below with grey."""
        return torch.from_numpy(pad_to_square(np.asarray(self.image), size)).permute(2, 0, 1)


class ImageDrawer:
    """Draws augmented images from the folders of a data root.

    Args:
        root: The data root.
        size: Side S of the training square, px.
        max_masks: Instances of an image that are read, at most.

    Raises:
        BadInput: There are no training images.
    """

    def __init__(self, root: Path, size: int, max_masks: int = MAX_MASKS):
        self.images = all_images(root)
        if not self.images:
            raise BadInput(
                f"no training images under {root}; its folders are listed in finetune/pocket/sam_data.py"
            )
        self.size = size
        self.max_masks = max_masks
        self.folders = list(self.images)
        shares = np.array([FOLDER_SHARES[name] for name in self.images])
        self.shares = shares / shares.sum()
        captions = root / "cutouts/captions.json"
        rows = read_json(captions) if captions.exists() else []
        self.cutouts = [root / "cutouts" / row["file"] for row in rows]

    def draw(self, rng: np.random.Generator) -> AugmentedImage:
        """Draw an image; `rng` decides everything. Its masks may be few and small, or none."""
        training_images = [self._draw_image(rng) for _ in range(4 if rng.random() < COLLAGE_SHARE else 1)]
        size = self.size if len(training_images) == 1 else self.size // 2
        parts = []
        for training_image in training_images:
            image = Image.open(training_image.image).convert("RGB")
            parts.append(rescaled(image, open_masks(training_image, rng, self.max_masks), size, rng))
        image, masks = parts[0] if len(parts) == 1 else collage(parts, self.size)
        if rng.random() < COLOUR_SHARE:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(rng.uniform(MIN_ENHANCEMENT, MAX_ENHANCEMENT))
        if self.cutouts and rng.random() < PASTE_SHARE:
            image, masks = paste(image, masks, self.cutouts, rng)
        tiles = []
        for number, (training_image, (part, _)) in enumerate(zip(training_images, parts, strict=True)):
            top, left = _collage_corner(number, self.size)
            tiles.append((training_image.folder, (left, top, left + part.width, top + part.height)))
        return AugmentedImage(image, [mask for mask in masks if mask.any()], tiles)

    def _draw_image(self, rng: np.random.Generator) -> TrainingImage:
        images = self.images[rng.choice(self.folders, p=self.shares)]
        return images[rng.integers(len(images))]


class AugmentedDataset(torch.utils.data.Dataset[Item]):
    """Samples of augmented images; item k of a run depends on (seed, k) alone.

    Args:
        drawer: Draws the images.
        seed: Of the samples.
        length: Number of samples.
    """

    def __init__(self, drawer: ImageDrawer, seed: int, length: int):
        self.drawer = drawer
        self.size = drawer.size
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> Item:
        rng = np.random.default_rng((self.seed, k))
        while True:
            sample = self.sample(self.drawer.draw(rng), rng)
            if sample is not None:
                return sample

    def sample(self, drawn: AugmentedImage, rng: np.random.Generator) -> Item | None:
        """The sample of an image; None where it teaches nothing, and another image is drawn."""
        raise NotImplementedError


class PromptDataset(AugmentedDataset[Sample]):
    """Samples with prompts.

    Args:
        root: The data root.
        size: Side S of the training square, px.
        prompts: Number of prompts of each sample.
        seed: Of the samples.
        length: Number of samples.

    Raises:
        BadInput: There are no training images.
    """

    def __init__(self, root: Path, size: int, prompts: int, seed: int, length: int):
        super().__init__(ImageDrawer(root, size), seed, length)
        self.prompts = prompts

    def sample(self, drawn: AugmentedImage, rng: np.random.Generator) -> Sample | None:
        """An image with prompts; None where no mask is large enough."""
        masks = [mask for mask in drawn.masks if mask.sum() >= MIN_MASK_AREA]
        if not masks:
            return None
        width, height = drawn.image.size
        square_masks = np.zeros((len(masks), self.size, self.size), bool)
        for square_mask, mask in zip(square_masks, masks, strict=True):
            square_mask[:height, :width] = mask
        prompt_drawer = PromptDrawer(square_masks, (height, width), rng)
        is_complete = all(folder == "coco" for folder, _ in drawn.tiles)
        prompts = prompt_drawer.draw(self.prompts, with_clicks_on_nothing=is_complete)
        wanted = torch.from_numpy(square_masks[prompts.mask_of]).float()
        covered = wanted.unfold(1, CELL, CELL).unfold(2, CELL, CELL).mean((-1, -2))
        return Sample(
            drawn.square(self.size),
            (covered * 255).byte(),
            torch.from_numpy(prompts.points),
            torch.from_numpy(prompts.labels),
            torch.from_numpy(prompts.kind),
        )


def rescaled(
    image: Image.Image, masks: list[np.ndarray], size: int, rng: np.random.Generator
) -> tuple[Image.Image, list[np.ndarray]]:
    """A random crop of an image at a random scale, perhaps mirrored.

    Args:
        image: RGB.
        masks: (H, W) bool each.
        size: Longest side of the result, px, at most.
        rng: Decides everything.

    Returns:
        The image and its masks.
    """
    width, height = image.size
    left, top, crop_width, crop_height = 0, 0, width, height
    if rng.random() < CROP_SHARE:
        crop_width, crop_height = (
            int(width * rng.uniform(MIN_CROP, 1)),
            int(height * rng.uniform(MIN_CROP, 1)),
        )
        left = int(rng.integers(width - crop_width + 1))
        top = int(rng.integers(height - crop_height + 1))
    scale = size / max(crop_width, crop_height)
    scale *= 1 if rng.random() < FULL_SCALE_SHARE else rng.uniform(MIN_SCALE, 1)
    new_size = max(MIN_SIDE, round(crop_width * scale)), max(MIN_SIDE, round(crop_height * scale))
    is_flipped = rng.random() < FLIP_SHARE
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize(new_size, Image.Resampling.BILINEAR, box=box)
    if is_flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scaled_masks = []
    for mask in masks:
        scaled = np.asarray(Image.fromarray(mask).resize(new_size, Image.Resampling.NEAREST, box=box))
        scaled_masks.append(scaled[:, ::-1] if is_flipped else scaled)
    return image, scaled_masks


def collage(
    tiles: list[tuple[Image.Image, list[np.ndarray]]], size: int
) -> tuple[Image.Image, list[np.ndarray]]:
    """Lay four images side by side and below each other, on the grey of the padding.

    Args:
        tiles: Four RGB images of at most `size` / 2 px a side, with their masks.
        size: Side of the collage, px.

    Returns:
        The collage and the masks of all four over it.
    """
    square = np.full((size, size, 3), PADDING_GREY, np.uint8)
    masks = []
    for number, (image, masks_of_image) in enumerate(tiles):
        top, left = _collage_corner(number, size)
        here = np.s_[top : top + image.height, left : left + image.width]
        square[here] = np.asarray(image)
        for mask in masks_of_image:
            placed = np.zeros((size, size), bool)
            placed[here] = mask
            masks.append(placed)
    return Image.fromarray(square), masks


def _collage_corner(number: int, size: int) -> tuple[int, int]:
    """(top, left) px of the place of a tile in a collage; of tile 0, that of an image by itself."""
    row, column = divmod(number, 2)
    return row * size // 2, column * size // 2


def paste(
    image: Image.Image, masks: list[np.ndarray], cutouts: list[Path], rng: np.random.Generator
) -> tuple[Image.Image, list[np.ndarray]]:
    """Lay one to three cut-outs on an image, whose masks are exact, and which hide what lies under them.

    Args:
        image: RGB.
        masks: (H, W) bool each.
        cutouts: Files of RGBA images.
        rng: Decides everything.

    Returns:
        The image, and its masks with those of the cut-outs.
    """
    width, height = image.size
    masks = list(masks)
    for _ in range(rng.integers(1, MAX_PASTED + 1)):
        cutout = Image.open(cutouts[rng.integers(len(cutouts))]).convert("RGBA")
        side = max(width, height) * rng.uniform(MIN_PASTED_SIDE, MAX_PASTED_SIDE)
        scale = side / max(cutout.size)
        new_width = max(MIN_PASTED_PIXELS, int(cutout.width * scale))
        new_height = max(MIN_PASTED_PIXELS, int(cutout.height * scale))
        cutout = cutout.resize((new_width, new_height), Image.Resampling.BILINEAR)
        if rng.random() < FLIP_SHARE:
            cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = int(rng.uniform(MIN_PASTED_PLACE, MAX_PASTED_PLACE) * width)
        top = int(rng.uniform(MIN_PASTED_PLACE, MAX_PASTED_PLACE) * height)
        alpha = Image.new("L", (width, height))
        alpha.paste(cutout.getchannel("A"), (left, top))
        image = image.copy()
        image.paste(cutout.convert("RGB"), (left, top), cutout.getchannel("A"))
        cover = np.asarray(alpha) > OPAQUE_ALPHA
        masks = [mask & ~cover for mask in masks] + [cover]
    return image, masks
