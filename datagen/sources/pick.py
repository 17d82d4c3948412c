"""Step 1, pick: which images are asked about, by how much is in them.

    images.only = pick(images, 10_000, 0.4, seed=0, drops=drops)

This follows LLM-Seg40K (Wang & Ke 2024, arXiv 2404.08767), which was made of 6,000 simple images, with 2 to 5
categories, and 4,000 complex ones, with 6 or more; with fewer than 2 there is nothing to choose between.
Which images are taken depends on the seed and their names alone: further images in the folder replace some of
them, and do not shuffle all.
"""

import heapq
from collections import Counter

from datagen.sources.annotated_images import AnnotatedImage, AnnotatedImages, seed_for

# Number of categories from which an image is simple, and complex: LLM-Seg40K's.
MIN_SIMPLE_CATEGORIES = 2
MIN_COMPLEX_CATEGORIES = 6


def difficulty(image: AnnotatedImage) -> str:
    """Return "single" (also where nothing is annotated), "simple" or "complex"."""
    count = len({instance.key for instance in image.instances})
    if count >= MIN_COMPLEX_CATEGORIES:
        return "complex"
    return "simple" if count >= MIN_SIMPLE_CATEGORIES else "single"


def pick(
    images: AnnotatedImages, count: int, complex_share: float, seed: int, drops: Counter[str]
) -> set[int]:
    """Pick images by their difficulty; of images without any annotations, any.

    Where there are too few of one difficulty, the other does not make up for it. Only `count` numbers
    are in memory.

    Args:
        images: The data set.
        count: Number of images to pick, at most.
        complex_share: Share of complex ones among them, 0 to 1.
        seed: Another seed picks others.
        drops: Counts the images that are not picked, by reason.

    Returns:
        The images' numbers in the data set.
    """
    if images.unannotated:
        wanted = {"single": count}
    else:
        complex_count = round(count * complex_share)
        wanted = {"complex": complex_count, "simple": count - complex_count}
    heaps: dict[str, list[tuple[int, int, int]]] = {level: [] for level in wanted}
    for position, image in enumerate(images.read(Counter())):
        level = difficulty(image)
        if not wanted.get(level):
            reason = "fewer than two categories" if level == "single" else level
            drops[f"photo: not picked ({reason})"] += 1
            continue
        item = (-seed_for(image, "pick", seed), position, image.id)
        if len(heaps[level]) < wanted[level]:
            heapq.heappush(heaps[level], item)
        else:
            heapq.heappushpop(heaps[level], item)
            drops[f"photo: not picked ({level})"] += 1
    for level, heap in heaps.items():
        if len(heap) < wanted[level]:
            drops[f"photo: fewer to pick from than asked for ({level})"] += wanted[level] - len(heap)
    return {number for heap in heaps.values() for _, _, number in heap}
