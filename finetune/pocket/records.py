"""Train the pocket reasoner and selector from records, in three phases that pass on to each other:

1. the region encoder learns the names of outlined regions and what is a thing (cheap: no LLM);
2. LoRA and the token rows learn to answer, shown sixteen of those regions as words;
3. the selector learns to pick, from the states of the tuned LLM, which are computed once.

    python -m finetune records --data runs/questions-train/records.jsonl --named DATA/coco/train/instances.json \\
        --sam runs/sam512/sam.safetensors --out runs/reasoner

The same command again resumes. Losses: cross-entropy of the answer (2); LLM-Seg's alignment and IoP, and
presence (3). LoRA sits in the upper half of the LLM: the lower half then needs no gradient.

Phases 2 and 3 see each picture through an encoder that was not trained on it (one of four, each trained on
the other three quarters): on its own pictures an encoder is far surer than on a new one, and a selector that
learned from it would believe it too much. Every tenth picture is kept out of phases 2 and 3; on those the
confidence is calibrated, and the figures at the end are counted.
"""

import argparse
import functools
from pathlib import Path

import torch

from assistant.files import make_folder
from assistant.record import Record, image_path, read_records
from assistant.weights import sha256_of
from finetune.check import must_exist
from finetune.pocket.encoder import learn_to_see
from finetune.pocket.examples import RecordData
from finetune.pocket.language import build, train_llm
from finetune.pocket.outlined import all_regions, named_regions, outlined
from finetune.pocket.selection import train_selector
from finetune.region_cache import ImageRegions, RegionCache


def add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="records files")
    parser.add_argument(
        "--named",
        type=Path,
        nargs="*",
        default=[],
        help="COCO instances.json of the pictures: all that is outlined, with its name; pictures that none "
        "of them lists are taught what their records outline",
    )
    parser.add_argument("--sam", type=Path, required=True, help="pocket SAM weights that make the proposals")
    parser.add_argument("--regions", type=Path, help="folder of cached regions (default: OUT/regions)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sources(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=900, help="of the LLM")
    parser.add_argument(
        "--batch", type=int, default=4, help="pictures a step of the LLM, five questions each"
    )
    parser.add_argument(
        "--states",
        type=int,
        default=1500,
        help="pictures with questions whose states the selector learns from",
    )
    parser.add_argument("--selector-steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)


def read_sources(
    args: argparse.Namespace, folder: Path
) -> tuple[list[tuple[Record, Path]], dict[Path, ImageRegions]]:
    """The records with their pictures, and what is seen in those, kept in `folder`."""
    from assistant.pocket.opening import load_pocket_opener

    records = [(r, image_path(r, f).resolve()) for f in args.data for r in read_records(f)]
    named = outlined(
        records, {name: things for file in args.named for name, things in named_regions(file).items()}
    )
    return records, all_regions(
        functools.partial(load_pocket_opener, args.sam),
        f"pocket {sha256_of(args.sam)}",
        list(named),
        named,
        RegionCache(folder),
    )


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    must_exist(*args.data, args.sam)
    make_folder(args.out)
    records, regions = read_sources(args, args.regions or args.out / "regions")
    llm = build(args.rank)
    seen = learn_to_see(args, llm, records, regions)
    train_llm(args, llm, RecordData(records, regions, seen, args.seed))
    train_selector(
        args,
        llm,
        RecordData(records, regions, seen, args.seed),
        RecordData(records, regions, seen, args.seed, aside=True),
    )
