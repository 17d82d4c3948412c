"""What a training run reads: its conversations, its validation records, and the regions of their images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from assistant.sam.concepts import longest_end
from finetune.image_record import read_image_records
from finetune.mllm.batches import BatchReader, PartDataset
from finetune.mllm.mixture import Mixture
from finetune.mllm.validation import Validation
from finetune.region_cache import ImageRegions, RegionCache, RegionSource, cached_regions, fill_cache
from finetune.settings import TuneSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_REGIONS_IN_MEMORY = 512  # images; 100 proposals take 0.1 MB, with the features of DINOv2-large 0.5 MB
IMAGES_STANDARDISED_BY = 200  # about; their regions give the mean and deviation of the features


@dataclass(frozen=True)
class TrainingData:
    """What a training run reads.

    Attributes:
        mixture: The conversations of each step.
        validation: The validation records; None for a run without.
        images: All images of both, sorted.
        regions_of: Gives the regions of an image file.
    """

    mixture: Mixture
    validation: Validation | None
    images: Sequence[Path]
    regions_of: Callable[[Path], ImageRegions]

    def sample_regions(self) -> list[ImageRegions]:
        """The regions of some images, evenly spaced over all."""
        step = max(1, len(self.images) // IMAGES_STANDARDISED_BY)
        return [self.regions_of(image) for image in self.images[::step]]


def prepare_data(
    settings: TuneSettings,
    key: str,
    load_opener: Callable[[], Any],
    accelerator: "Accelerator",
    by_name: bool,
) -> TrainingData:
    """Read the records and compute the regions that the cache lacks.

    Each process computes those of its share of the images.

    Args:
        settings: Names the records and the cache.
        key: Names the weights and settings that make the regions, see `finetune.region_cache`.
        load_opener: Loads what makes them; called only if the cache lacks an image.
        accelerator: The accelerator of this run.
        by_name: Whether they are what is found for the names of an image's targets (the opener is a
            `finetune.region_cache.PhraseOpener`), rather than the masks of everything mode.

    Raises:
        BadInput: Records or images that cannot be read, or a cache that is too small.
    """
    mixture = Mixture(
        settings.sources,
        settings.max_steps * settings.batch,
        settings.turns,
        settings.pictures,
        settings.seed,
        not settings.no_grouping,
    )
    validation = None
    if settings.val:
        validation = Validation.read(settings.val, settings.val_limit, settings.micro)
    cache = RegionCache(settings.cache_folder, settings.cache_gb)
    images = sorted({*mixture.images, *(validation.images if validation else ())})
    own_share = images[accelerator.process_index :: accelerator.num_processes]
    phrases = None
    if by_name:
        phrases = phrases_by_image(settings.record_files + ([settings.val] if settings.val else []))
    source = RegionSource(key, load_opener, phrases)
    fill_cache(source, own_share, cache)
    accelerator.wait_for_everyone()

    @lru_cache(maxsize=MAX_REGIONS_IN_MEMORY)
    def regions_of(image: Path) -> ImageRegions:
        return cached_regions(None, source.key_of(image), image, cache)

    return TrainingData(mixture, validation, images, regions_of)


def phrases_by_image(files: Sequence[Path]) -> dict[Path, set[str]]:
    """The names of all targets of some records, present and absent ones, by their image."""
    phrases: dict[Path, set[str]] = {}
    for file in files:
        for row in read_image_records(file):
            names = (longest_end(target.phrase.lower()) for target in row.record.targets)
            phrases.setdefault(row.image, set()).update(name for name in names if name)
    return phrases


def part_loader(
    settings: TuneSettings,
    data: TrainingData,
    read_batch: BatchReader,
    start: int,
    accelerator: "Accelerator",
) -> DataLoader:
    """Loads the parts that this process computes, from step `start` on, in order."""
    parts_per_step = settings.batch // settings.micro
    own_parts = range(accelerator.process_index, parts_per_step, accelerator.num_processes)
    parts = [(step, part) for step in range(start, settings.max_steps) for part in own_parts]
    dataset = PartDataset(data.mixture, parts, settings.batch, settings.micro, read_batch)
    return DataLoader(dataset, batch_size=None, num_workers=settings.workers)
