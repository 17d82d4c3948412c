"""Measure how surely a name must be seen to count as present, on photos that taught the pocket nothing.

    python -m finetune presence --data DATA --out runs/presence

The photos of `presence.toml` were looked at for people and for animals; of the images of VOC every tenth is
kept aside. For shifts of the logit of presence, it prints how many of the photos that show something are kept
and how many of the others are let through: the constants of `assistant.pocket.presence` were chosen by that.
The same command again continues a run that was stopped.
"""

import argparse
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from assistant.files import make_folder, read_json, replace_whole
from assistant.images import open_image
from assistant.pocket import presence
from assistant.pocket.conversation import NamesInImage
from assistant.pocket.pipeline import PocketPipeline, load_pocket
from finetune.check import must_exist
from finetune.pocket.named_images import name_rules, read_named_set
from finetune.region_cache import cache_key

PHOTOS_FILE = Path(__file__).with_name("presence.toml")
VOC = "voc/train/instances.json"
SHIFTS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)  # of the logit, beside those in use


@dataclass(frozen=True)
class Seen:
    """Something that may be seen in a photo.

    Attributes:
        what: "people", "animals", or "names of VOC".
        is_there: Whether it is there.
        logit: That it is, as in use.
    """

    what: str
    is_there: bool
    logit: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage to the command line."""
    parser.add_argument("--data", type=Path, required=True, help="root of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures of each photo")
    parser.add_argument("--limit", type=int, help="number of photos, at most")


def main(args: argparse.Namespace) -> None:
    """Look at all photos, and print the table."""
    must_exist(args.data / VOC)
    make_folder(args.out)
    pipeline, checksums = load_pocket()
    constants = {name: value for name, value in vars(presence).items() if name.isupper()}
    seen: list[Seen] = []
    photos = list(labelled_photos(args.data))[: args.limit]
    for photo, labels in tqdm(photos, desc="photos", unit="photo", disable=None):
        # Other weights, constants or labels give other figures.
        key = json.dumps([checksums, constants, labels])
        file = args.out / f"{cache_key(key, photo)}.json"
        if not file.exists():
            rows = [vars(row) for row in look_at(pipeline, photo, labels)]
            with replace_whole(file) as path:
                path.write_text(json.dumps(rows))
        seen += [Seen(**row) for row in read_json(file)]
    print(table(seen), flush=True)


def labelled_photos(data: Path) -> Iterator[tuple[Path, dict[str, bool]]]:
    """The photos, and what is known of each: {"people", "animals" or a name: whether it is there}.

    Photos of `presence.toml` whose sets `data` lacks are left out.
    """
    lists = tomllib.loads(PHOTOS_FILE.read_text(encoding="utf-8"))
    labels: dict[Path, dict[str, bool]] = {}
    for what, absent in (("people", "nobody"), ("animals", "no_animals")):
        for name in (what, absent):
            for folder, stems in lists[name].items():
                for stem in stems:
                    labels.setdefault(data / folder / f"{stem}.jpg", {})[what] = name == what
    yield from ((photo, of_photo) for photo, of_photo in labels.items() if photo.is_file())
    voc = read_named_set(data / VOC, is_complete=True)
    for image, instances in voc.aside.items():
        there = {name for name, _ in instances}
        yield image, {name: name in there for name in sorted(voc.names)}


@torch.inference_mode()
def look_at(pipeline: PocketPipeline, photo: Path, labels: dict[str, bool]) -> list[Seen]:
    """How surely each thing that is known of a photo is seen there."""
    opened = pipeline.opener.open(open_image(photo))
    names = NamesInImage(pipeline, opened, pipeline.llm.encoder(opened.features))
    seen = []
    for what, is_there in labels.items():
        if what == "people":
            seen.append(Seen(what, is_there, names.logit("person", 0.0)))
        elif what == "animals":
            animals = pipeline.reader.lexicon.names_of("animal")
            logit = max(names.logit(name, 0.0) for name in animals)
            seen.append(Seen(what, is_there, logit - presence.several_shift(len(animals))))
        elif name_rules().merged.get(what, what) in pipeline.llm.phrase_rows:
            seen.append(Seen("names of VOC", is_there, names.logit(what, 0.0)))
    return seen


def table(seen: Sequence[Seen]) -> str:
    """The shares that are kept and let through at each shift, as Markdown."""
    lines = ["| | shift | kept | let through |", "|---|---|---|---|"]
    for what in dict.fromkeys(row.what for row in seen):
        logits = {
            is_there: np.array([row.logit for row in seen if row.what == what and row.is_there == is_there])
            for is_there in (True, False)
        }
        for shift in SHIFTS:
            kept, wrong = (
                f"{np.mean(of + shift > 0):.3f} of {len(of)}" if len(of) else "-" for of in logits.values()
            )
            lines.append(f"| {what} | {shift:+} | {kept} | {wrong} |")
    return "\n".join(lines)
