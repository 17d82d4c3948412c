"""The records that the stages of the pocket preset learn from, and the regions of their images.

sources = RecordSources((Path("records.jsonl"),), (Path("instances.json"),), sam, Path("regions"))
records, regions = read_sources(sources)
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from assistant.pocket.opening import load_pocket_opener, region_key
from finetune.image_record import ImageRecord, read_image_records
from finetune.pocket.instances import instances_of_images, read_instances
from finetune.pocket.regions import load_regions
from finetune.pocket.settings import RecordSources
from finetune.region_cache import ImageRegions, RegionCache


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of which `RecordSources` is made to a command line."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="records files")
    parser.add_argument(
        "--named",
        type=Path,
        nargs="*",
        default=[],
        help="COCO instances.json files with all labelled instances of the images; for an image that none of "
        "them lists, the instances are what its records outline",
    )
    parser.add_argument(
        "--sam", type=Path, required=True, help="weights of the pocket SAM that makes the proposals"
    )
    parser.add_argument(
        "--regions", type=Path, help="folder of the region cache (default: that of the records stage)"
    )


def read_sources(
    sources: RecordSources, select: Callable[[Sequence[ImageRecord]], Sequence[Path]] | None = None
) -> tuple[list[ImageRecord], dict[Path, ImageRegions]]:
    """Read records and the regions of their images; missing regions are computed and stored.

    Args:
        sources: The files.
        select: Selects the images to use from all records; None for all images.

    Returns:
        The records about these images, and {image: its regions}.

    Raises:
        BadInput: A file cannot be read.
    """
    records = [record for file in sources.data for record in read_image_records(file)]
    if select is not None:
        selected = set(select(records))
        records = [record for record in records if record.image in selected]
    by_file = {
        name: labelled for file in sources.annotations for name, labelled in read_instances(file).items()
    }
    instances = instances_of_images(records, by_file)
    load_opener = functools.partial(load_pocket_opener, sources.sam)
    key = region_key(sources.sam)
    return records, load_regions(load_opener, key, list(instances), instances, RegionCache(sources.regions))
