"""The images of few-shot benchmarks, their folds, and the episodes that are drawn from them.

    queries = LAYOUTS["pascal5i"](Path("VOC2012"))
    mask, ignored = queries.read(queries.showing[6][0], 6)            # the first image that shows a car
    episodes = draw_episodes("pascal5i", queries, queries, fold=1, shots=5, count=1000, seed=0)

Categories are numbered from 0 in the order of `names`, images by their place in `paths`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assistant.errors import BadInput
from assistant.files import read_json, read_text
from assistant.mask_images import open_label_map
from eval.annotated_images import read_annotated_images

FOLDS = 4
MIN_CATEGORY_AREA = 1024  # px that a category must cover in an image to be asked for or shown there
UNLABELLED = 255  # in label PNGs: pixels that do not count
PASCAL_FOLD_SIZE = 5  # categories
VOC_CATEGORIES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,dining table,dog,horse,motorbike,person,"
    "potted plant,sheep,sofa,train,tv monitor"
).split(",")
COCO_CATEGORIES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,"
    "broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,"
    "mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
).split(",")


class EpisodeImages(ABC):
    """Images whose categories are outlined.

    Attributes:
        names: The names of all categories.
        paths: The files of the images.
        showing: {category: the images that show enough of it}.
    """

    names: list[str]
    paths: list[Path]
    showing: dict[int, list[int]]

    @abstractmethod
    def read(self, image: int, category: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the mask of a category.

        Args:
            image: Number of the image.
            category: Number of the category.

        Returns:
            The mask, (H, W) bool, and the pixels that do not count, (H, W) bool or None for none.

        Raises:
            BadInput: The annotation cannot be read.
        """


class CocoFolder(EpisodeImages):
    """A folder with instances.json and images/. Categories are in the order of their ids; crowds do not
    count.

    Args:
        root: The folder.

    Raises:
        BadInput: It has no instances.json, or one that is not COCO's.
    """

    def __init__(self, root: Path):
        # An image of which not everything can be read is no episode's: its masks would lack something.
        self.annotated = [image for image in read_annotated_images(root) if not image.fault]
        categories = read_json(root / "instances.json")["categories"]
        self.names = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
        self.paths = [annotated.path for annotated in self.annotated]
        self.showing = {}
        for k, annotated in enumerate(self.annotated):
            for name in {instance.category for instance in annotated.instances}:
                category = self.names.index(name)
                if self.read(k, category)[0].sum() >= MIN_CATEGORY_AREA:
                    self.showing.setdefault(category, []).append(k)

    def read(self, image: int, category: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See `EpisodeImages`."""
        annotated = self.annotated[image]
        mask = np.zeros((annotated.height, annotated.width), bool)
        crowd = np.zeros((annotated.height, annotated.width), bool)
        for instance in annotated.instances:
            if instance.category == self.names[category]:
                if instance.crowd:
                    crowd |= instance.mask()
                else:
                    mask |= instance.mask()
        return mask, crowd & ~mask if crowd.any() else None


class LabelPngs(EpisodeImages):
    """Images with PNGs of category numbers from 1; 0 is background, 255 does not count.

    Args:
        names: The names of the categories.
        pairs: (image, label PNG).

    Raises:
        BadInput: A label PNG cannot be read.
    """

    def __init__(self, names: list[str], pairs: list[tuple[Path, Path]]):
        from tqdm import tqdm

        self.names = names
        self.paths = [image for image, _ in pairs]
        self.label_files = [label_file for _, label_file in pairs]
        self.showing = {}
        for k in tqdm(range(len(pairs)), desc="label maps", disable=None):
            numbers, areas = np.unique(open_label_map(self.label_files[k]), return_counts=True)
            for number, area in zip(numbers.tolist(), areas.tolist(), strict=True):
                if 1 <= number <= len(names) and area >= MIN_CATEGORY_AREA:
                    self.showing.setdefault(number - 1, []).append(k)

    def read(self, image: int, category: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See `EpisodeImages`."""
        numbers = open_label_map(self.label_files[image])
        return numbers == category + 1, numbers == UNLABELLED


def open_pascal(root: Path) -> EpisodeImages:
    """PASCAL-5i: the images of ImageSets/Segmentation/val.txt, or all where that file is missing.

    Args:
        root: VOC2012's folder, or the one above it. It holds JPEGImages and SegmentationClassAug or
            SegmentationClass.

    Raises:
        BadInput: It has another layout.
    """
    root = root / "VOC2012" if (root / "VOC2012").is_dir() else root
    candidates = [root / "SegmentationClassAug", root / "SegmentationClass"]
    labels = next((folder for folder in candidates if folder.is_dir()), None)
    if labels is None or not (root / "JPEGImages").is_dir():
        raise BadInput(
            f"{root} is not VOC2012: it must hold JPEGImages and SegmentationClassAug (or SegmentationClass)"
        )
    listed = root / "ImageSets/Segmentation/val.txt"
    if listed.is_file():
        stems = read_text(listed).split()
    else:
        stems = sorted(file.stem for file in labels.glob("*.png"))
    pairs = [(root / f"JPEGImages/{stem}.jpg", labels / f"{stem}.png") for stem in stems]
    return LabelPngs(list(VOC_CATEGORIES), pairs)


def open_coco20i(root: Path) -> EpisodeImages:
    """COCO-20i: val2014/NAME.jpg with annotations/val2014/NAME.png.

    Args:
        root: COCO2014's folder, or the one above it.

    Raises:
        BadInput: It has another layout.
    """
    root = root / "COCO2014" if (root / "COCO2014").is_dir() else root
    files = sorted((root / "annotations/val2014").glob("*.png"))
    if not files:
        raise BadInput(
            f"{root} is not COCO-20i: it must hold val2014 and annotations/val2014 with label PNGs"
        )
    pairs = [(root / f"val2014/{file.stem}.jpg", file) for file in files]
    return LabelPngs(list(COCO_CATEGORIES), pairs)


LAYOUTS: dict[str, Callable[[Path], EpisodeImages]] = {
    "pascal5i": open_pascal,
    "coco20i": open_coco20i,
    "coco-format": CocoFolder,
}


def fold_of(layout: str, category: int) -> int:
    """The fold that a category is tested in.

    PASCAL-5i has folds of five successive categories (Shaban et al. 2017), COCO-20i of every fourth one
    (Nguyen and Todorovic 2019); COCO-format folders follow COCO-20i.
    """
    return category // PASCAL_FOLD_SIZE if layout == "pascal5i" else category % FOLDS


@dataclass(frozen=True)
class EpisodePlan:
    """An episode before its images are opened.

    Attributes:
        key: Its name in samples.jsonl.
        fold: The fold that it belongs to.
        category: Number of its category.
        query: Number of the image to segment.
        references: Numbers of the reference images.
    """

    key: str
    fold: int
    category: int
    query: int
    references: tuple[int, ...]


def draw_episodes(
    layout: str,
    queries: EpisodeImages,
    sources: EpisodeImages,
    fold: int,
    shots: int,
    count: int,
    seed: int,
) -> list[EpisodePlan]:
    """Draw the episodes of a fold.

    Every category is equally likely. References come from other images than the query. The same seed gives
    the same queries and the same first references for any number of shots.

    Args:
        layout: A name of `LAYOUTS`; tells the folds.
        queries: Images to segment.
        sources: Images to take references from, with the same categories.
        fold: The fold.
        shots: References per episode; fewer where a category has fewer images.
        count: Number of episodes.
        seed: Of the random numbers.

    Returns:
        The episodes.

    Raises:
        BadInput: The fold has no category with a query and a reference.
    """
    rng = np.random.default_rng((seed, fold))

    def others(category: int, query: int) -> list[int]:
        """The images that may be references for a query: not the query itself, in whichever folder."""
        return [
            source
            for source in sources.showing.get(category, ())
            if sources.paths[source].name != queries.paths[query].name
        ]

    categories = [
        category
        for category in sorted(queries.showing)
        if fold_of(layout, category) == fold
        and any(others(category, query) for query in queries.showing[category])
    ]
    if not categories:
        raise BadInput(f"fold {fold} has no category with a query and a reference in another image")
    episodes: list[EpisodePlan] = []
    while len(episodes) < count:
        category = categories[rng.integers(len(categories))]
        query = queries.showing[category][rng.integers(len(queries.showing[category]))]
        references = rng.permutation(others(category, query))[:shots]
        if len(references):
            key = f"{fold}-{len(episodes)}"
            chosen = tuple(int(reference) for reference in references)
            episodes.append(EpisodePlan(key, fold, int(category), int(query), chosen))
    return episodes
