"""All five steps of one run: pick, describe, ask, check, write.

figures = generate(Settings(images=Path("photos"), annotations=Path("instances.json"), out=Path("questions")))
figures["questions"]                # as in questions/statistics.json
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from assistant.files import make_folder
from datagen.datasets_folder import write_dataset
from datagen.engines.plain import run_plain
from datagen.image_result import ImageResult
from datagen.inputs import open_images
from datagen.output import RECORDS_FILE, TRAIN_FILE, VAL_FILE, output
from datagen.result_cache import ResultCache
from datagen.settings import Settings
from datagen.sources.annotated_images import AnnotatedImage, AnnotatedImages
from datagen.sources.leaks import ExcludedImages, excluded_images
from datagen.sources.pick import pick

CACHE_FILE = "kept.sqlite"  # in the output folder


def generate(settings: Settings) -> dict[str, Any]:
    """Make questions and write them to the output folder.

    Args:
        settings: What to do.

    Returns:
        What statistics.json holds.

    Raises:
        BadInput: Something that was given cannot be used, no question can be made, or the budget is spent.
    """
    make_folder(settings.out)
    drops: Counter[str] = Counter()
    images = open_images(settings)
    excluded = excluded_images(settings.exclude) if settings.exclude else None
    if settings.pick:
        images.only = pick(images, settings.pick, settings.complex_share, settings.seed, drops)
    cache = ResultCache(settings.out / CACHE_FILE)
    from_dataset = "ego_objects" if settings.format == "egoobjects" else "coco"
    with output(settings.out, settings.val_share, from_dataset, images.path_in_set) as out:
        results = _run(images, drops, settings, excluded, cache)
        progress = tqdm(results, total=len(images), unit="photo", desc=settings.model or settings.split)
        for _, result in progress:
            out.add(result)
        out.statistics.drops.update(drops)
        out.statistics.dropped_items = images.dropped_items
    cache.close()
    if settings.parquet:
        _write_parquet(settings)
    return out.statistics.figures()


def _run(
    images: AnnotatedImages,
    drops: Counter[str],
    settings: Settings,
    excluded: ExcludedImages | None,
    cache: ResultCache,
) -> Iterator[tuple[AnnotatedImage, ImageResult]]:
    """(image, its result) of every image, by the engine that the settings name."""
    if settings.engine == "plain":
        return run_plain(images.read(drops), settings, excluded, cache)
    if settings.writer == "vllm":
        from datagen.engines.vllm import run_vllm

        return run_vllm(images, drops, settings, excluded, cache)
    from datagen.engines.ray import run_ray

    return run_ray(images, drops, settings, excluded, cache)


def _write_parquet(settings: Settings) -> None:
    """Write the folder for the datasets package, of the splits where there are any."""
    if settings.val_share:
        splits = {"train": settings.out / TRAIN_FILE, "val": settings.out / VAL_FILE}
    else:
        splits = {"train": settings.out / RECORDS_FILE}
    write_dataset(settings.out / "dataset", splits, settings.out.resolve().name)
