"""Train the pocket preset's region encoder anew, with more names, from labelled images without questions.

    python -m finetune names --data runs/q/{camvid,clothing}/records.jsonl \\
        --outlined DATA/{voc,coco}/train/instances.json --salient DATA/duts/train/instances.json \\
        --out runs/names
    python -m finetune publish --heads runs/names/heads.safetensors

The language model and the selector stay as they are: they were trained with several encoders, so that they
understand another one. What is an object is learned from the images that later tunings rehearse, and from the
encoder before. Every tenth image of each set is left out, so that it can be measured on.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from assistant.errors import BadInput
from assistant.files import make_folder
from assistant.pocket.heads import Heads
from assistant.pocket.llm import PocketLLM
from assistant.pocket.opening import load_pocket_opener, region_key
from assistant.pocket.region_encoder import RegionEncoder
from assistant.pocket.wheels import smollm2_folder
from assistant.weights import pocket_file, sha256_of
from finetune.check import must_exist
from finetune.image_record import read_image_records
from finetune.pocket.encoder import RegionLabels, train_encoder
from finetune.pocket.instances import instances_of_images
from finetune.pocket.named_images import NamedSet, add_named_set_arguments, name_rules, read_named_sets
from finetune.pocket.regions import cached_instances
from finetune.pocket.rehearsal import PACK, read_pack
from finetune.pocket.settings import EncoderSettings
from finetune.region_cache import ImageRegions, RegionCache

MAX_IMAGES_OF_NAME = 10  # of an incomplete set, where few names have many images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    add_named_set_arguments(parser)
    add = parser.add_argument
    add("--data", type=Path, nargs="*", default=[], help="records files whose targets teach their names, too")
    add("--start", type=Path, help="heads.safetensors whose names are kept (default: the published ones)")
    add("--sam", type=Path, help="weights of the pocket SAM (default: the published ones)")
    add("--steps", type=int, default=1800, help="steps of the region encoder")
    add("--lr", type=float, default=1e-3, help="its highest learning rate")
    add("--copies", type=int, default=1, help="augmented copies of each image of --outlined (default: 1)")
    add("--regions", type=Path, help="folder of the region cache (default: in --out)")
    add("--out", type=Path, required=True, help="folder for the weights")


def main(args: argparse.Namespace) -> None:
    """Train the region encoder, and write OUT/heads.safetensors."""
    start_file = args.start or pocket_file("heads.safetensors")
    sam = args.sam or pocket_file("sam.safetensors")
    must_exist(start_file, sam, *args.data, *args.outlined, *args.salient)
    if not args.outlined and not args.salient:
        raise BadInput("give --outlined or --salient: the labelled images that teach names")
    if args.steps < 1 or args.copies < 0:
        raise BadInput("--steps must be at least 1, and --copies at least 0")
    make_folder(args.out)
    torch.manual_seed(0)
    heads = Heads.load(start_file)
    sets = [*_recorded_sets(args.data), *read_named_sets(args.outlined, args.salient)]
    cache = RegionCache(args.regions or args.out / "regions")
    images = list(_instance_regions(sets, sam, cache, args.copies))
    _, rehearsed = read_pack(PACK, sha256_of(sam))
    llm = PocketLLM.load(smollm2_folder(), None, heads.encoder, heads.phrase_rows)
    encoder, phrase_rows = extended(llm, sorted({name for of_set in sets for name in of_set.names}))
    data = RegionLabels.of([*rehearsed.values(), *images], phrase_rows)
    with torch.no_grad():
        known = heads.encoder(data.features).objectness.sigmoid()
    data.objectness = torch.maximum(data.objectness, known)  # few objects are labelled
    encoder.fit_inputs(data.features)
    settings = EncoderSettings(steps=args.steps, lr=args.lr)
    train_encoder(encoder, data, settings, competing=competing_names(phrase_rows))
    heads.encoder = encoder
    heads.unspoken |= phrase_rows.keys() - heads.phrase_rows.keys()
    heads.phrase_rows = phrase_rows
    heads.save(args.out / "heads.safetensors")


def _recorded_sets(files: Sequence[Path]) -> Iterator[NamedSet]:
    """The instances of records files, under the names in lower case by which replies call them."""
    for file in files:
        instances = instances_of_images(read_image_records(file), {})
        named = {image: [(name.lower(), rle) for name, rle in found] for image, found in instances.items()}
        yield NamedSet({image: found for image, found in named.items() if found}, {}, {}, is_complete=True)


def _instance_regions(
    sets: Sequence[NamedSet], sam: Path, cache: RegionCache, copies: int
) -> Iterator[ImageRegions]:
    """The instances of all images, as augmented ones: they are no proposals, and teach names alone.

    `copies`: number of augmented copies of the images of complete sets.
    """
    opener = load_pocket_opener(sam)
    key = region_key(sam)
    for of_set in sets:
        counts: Counter[str] = Counter()
        for image, instances in tqdm(of_set.instances.items(), desc="names", unit="image", disable=None):
            if not of_set.is_complete and counts[instances[0][0]] >= MAX_IMAGES_OF_NAME:
                continue
            counts.update({name for name, _ in instances})
            regions = cached_instances(
                opener, key, image, instances, cache, copies if of_set.is_complete else 0
            )
            yield ImageRegions(
                torch.zeros(0, regions.features.shape[1]),
                [],
                augmented=torch.cat([regions.features, regions.augmented]),
                augmented_names=regions.names + regions.augmented_names,
            )


def extended(llm: PocketLLM, names: Sequence[str]) -> tuple[RegionEncoder, dict[str, int]]:
    """An untrained region encoder with the names of a language model's and further ones.

    Args:
        llm: The language model.
        names: Names to be known; those that have a row already keep it.

    Returns:
        The encoder, and {phrase: row} of all names.
    """
    old = llm.encoder
    new = [name for name in names if name not in llm.phrase_rows]
    rows = llm.phrase_rows | {name: len(old.names) + k for k, name in enumerate(new)}
    embeddings = [llm.mean_token_embedding(name)[None] for name in new]
    encoder = RegionEncoder(old.names.shape[1], len(old.names) + len(new))
    encoder.names.copy_(torch.cat([old.names, *embeddings]))
    return encoder, rows


def competing_names(phrase_rows: Mapping[str, int]) -> Tensor:
    """(C, C) bool: for the label of a region, the names that it is told from; ambiguous ones are not."""
    count = max(phrase_rows.values()) + 1
    competing = torch.ones(count, count, dtype=torch.bool)
    for name, others in name_rules().ambiguous.items():
        if name in phrase_rows:
            competing[phrase_rows[name], [phrase_rows[other] for other in others if other in phrase_rows]] = (
                False
            )
    competing.fill_diagonal_(True)
    return competing
