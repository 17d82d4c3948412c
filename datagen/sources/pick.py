"""Step 1, pick: which photos are asked about, by how much is in them.

    photos.only = pick(photos, 10_000, 0.4, seed=0, drops=drops)

As LLM-Seg40K was made (Wang & Ke 2024, arXiv 2404.08767): photos with 2 to 5 categories are simple, with 6 or more
complex, 6,000 to 4,000 of them; with fewer than 2 there is nothing to choose between. Which photos are taken depends on
the seed and their names alone: more photos in the folder replace some, and do not shuffle all.
"""

import heapq
from collections import Counter

from datagen.sources.photos import Photo, Photos, seed_for

SIMPLE, COMPLEX = 2, 6  # categories from which a photo is so


def difficulty(photo: Photo) -> str:
    """ "single" (or nothing known), "simple" or "complex"."""
    count = len({instance.key for instance in photo.instances})
    return "complex" if count >= COMPLEX else "simple" if count >= SIMPLE else "single"


def pick(photos: Photos, count: int, complex_share: float, seed: int, drops: Counter) -> set:
    """The numbers of at most `count` photos, that share of them complex; of photos without any annotations, any `count`.
    Where one sort runs short, the other does not make up for it. Memory: `count` numbers."""
    wanted = {"single": count} if photos.empty else {"complex": round(count * complex_share)}
    if not photos.empty:
        wanted["simple"] = count - wanted["complex"]
    taken: dict[str, list] = {sort: [] for sort in wanted}
    for place, photo in enumerate(photos.read(Counter())):
        sort = difficulty(photo)
        if not wanted.get(sort):
            drops[f"photo: not picked ({'fewer than two categories' if sort == 'single' else sort})"] += 1
            continue
        item = (-seed_for(photo, "pick", seed), place, photo.id)
        if len(taken[sort]) < wanted[sort]:
            heapq.heappush(taken[sort], item)
        else:
            heapq.heappushpop(taken[sort], item)
            drops[f"photo: not picked ({sort})"] += 1
    for sort, few in taken.items():
        if len(few) < wanted[sort]:
            drops[f"photo: wanted, and there is no more ({sort})"] += wanted[sort] - len(few)
    return {number for few in taken.values() for *_, number in few}
