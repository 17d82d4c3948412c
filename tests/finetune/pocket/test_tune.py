"""`python -m finetune --preset pocket`: new names are learned, old ones remain, a stopped run continues."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from assistant.record import Record, RecordTarget, write_records
from assistant.weights import pocket_file, sha256_of
from finetune import __main__ as command
from finetune.image_record import read_image_records
from finetune.pocket import language, records, sources, tune
from finetune.pocket.examples import RecordData
from finetune.pocket.rehearsal import select_varied, write_pack
from finetune.region_cache import ImageRegions
from tests.helpers.pocket_records import random_regions, records_arguments, regions_of_images
from tests.helpers.pocket_wheels import require_pocket_wheels

NEW_NAME = "mug"  # what the tests of the records stage call a cup; the adapter here knows no cups


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the first test that needs it leaves the adapter."""
    return tmp_path_factory.mktemp("trained") / "base"


@pytest.fixture
def known(folder, trained, monkeypatch):
    """The folder with an adapter, `base`, that knows cats and dogs, and records about mugs."""
    require_pocket_wheels()
    train_base(folder, trained, monkeypatch)
    regions = write_mugs(folder)

    def load_regions(load_opener, key, images, instances, cache, copies):
        return {image: labelled_by(regions[image], instances.get(image, [])) for image in images}

    monkeypatch.setattr(tune, "load_regions", load_regions)
    monkeypatch.setattr(tune, "HELD_OUT_EXAMPLES", 6)
    monkeypatch.setattr(tune, "SAVE_MINUTES", 0)
    return folder


def train_base(folder: Path, trained: Path, monkeypatch) -> None:
    """Write `base`, the adapter, and old.jsonl, what it was trained on."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    old = [line for line in lines if json.loads(line)["source"]["categories"] != ["cup"]]
    (folder / "old.jsonl").write_text("".join(line + "\n" for line in old))
    regions = old_regions(folder)
    monkeypatch.setattr(
        sources,
        "load_regions",
        lambda load_opener, key, images, instances, cache: {image: regions[image] for image in images},
    )
    if not trained.exists():
        args = records_arguments(folder, folder / "base")
        args.data = [folder / "old.jsonl"]
        args.states, args.selector_steps, args.steps = 8, 4, 2
        records.main(args)
        shutil.copytree(folder / "base", trained)
    shutil.copytree(trained, folder / "base", dirs_exist_ok=True)


def old_regions(folder: Path) -> dict[Path, ImageRegions]:
    """The regions of the images of `folder` without cups."""
    regions = {}
    for image, of_image in regions_of_images(folder).items():
        instances = [k for k, name in enumerate(of_image.names) if name != "cup"]
        proposals = [k + len(of_image.names) for k in range(len(of_image.names))]
        regions[image] = chosen(of_image, instances, proposals)
    return regions


def chosen(regions: ImageRegions, instances: list[int], proposals: list[int]) -> ImageRegions:
    """Some of the regions of an image."""
    rles = [regions.rles[k] for k in instances + proposals]
    return ImageRegions(regions.features[instances + proposals], rles, [regions.names[k] for k in instances])


def labelled_by(regions: ImageRegions, instances: list) -> ImageRegions:
    """The regions of an image of which only `instances` are labelled."""
    names = {name for name, _ in instances}
    labelled = [k for k, name in enumerate(regions.names) if name in names]
    return chosen(regions, labelled, list(range(len(regions.names), len(regions.rles))))


def write_mugs(folder: Path) -> dict[Path, ImageRegions]:
    """Write new.jsonl and val.jsonl with questions about mugs; returns the regions of their images."""
    rng = np.random.default_rng(7)
    rows, regions = [], {}
    for i in range(10):
        image = (folder / f"new{i}.jpg").resolve()
        Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(image)
        of_image = regions[image] = random_regions(rng)
        of_image.names = [NEW_NAME if name == "cup" else name for name in of_image.names]
        rle = of_image.rles[of_image.names.index(NEW_NAME)] if NEW_NAME in of_image.names else None
        answer = f"mug {'[SEG]' if rle else '[ABS]'}."
        rows.append(Record(image.name, 60, 40, "where is the mug?", answer, [RecordTarget(NEW_NAME, rle)]))
    write_records(folder / "new.jsonl", rows[:8])
    write_records(folder / "val.jsonl", rows[8:])
    return regions


def words(folder, out, steps: int = 30, rehearsal: float = 0) -> list[str]:
    options = {
        "preset": "pocket",
        "adapter": folder / "base",
        "data": folder / "new.jsonl",
        "val": folder / "val.jsonl",
        "out": out,
        "max-steps": steps,
        "save-every": 40,
        "batch": 1,
        "rehearsal": rehearsal,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_new_names_are_learned_beside_the_old(known):
    assert command.main(words(known, known / "out")) == 0
    old, new = tune.load_start(known / "base"), tune.load_start(known / "out")
    assert len(old.encoder.names) == 2 and len(new.encoder.names) == 3 and new.phrase_rows[NEW_NAME] == 2
    assert torch.equal(new.encoder.names[:2], old.encoder.names)
    assert all(new.phrase_rows[name] == old.phrase_rows[name] for name in ("cat", "dog"))
    rng = np.random.default_rng(99)
    is_right = {"mug": [], "old": []}
    for _ in range(10):
        of_image = random_regions(rng)
        with torch.no_grad():
            embeddings = new.encoder(of_image.features).embeddings
            named = new.encoder.name_logits(embeddings, new.encoder.names).argmax(1)
        for name, row in zip(of_image.names, named.tolist()[: len(of_image.names)], strict=True):
            kind, expected = ("mug", NEW_NAME) if name == "cup" else ("old", name)
            is_right[kind].append(row == new.phrase_rows[expected])
    assert np.mean(is_right["mug"]) > 0.8 and np.mean(is_right["old"]) > 0.8
    report = (known / "out/report.html").read_text()
    assert report.count("where is the mug?") == 2 and "step 0" in report and report.count("<svg") >= 5


@pytest.fixture
def packed(known, monkeypatch):
    """The folder with a pack of the images that the adapter was trained on."""
    old = read_image_records(known / "old.jsonl")
    checksum = sha256_of(pocket_file("sam.safetensors"))
    monkeypatch.setattr(tune, "PACK", known / "pack.npz")
    write_pack(tune.PACK, old, old_regions(known), select_varied(old, 11), checksum)
    return known


def test_what_it_knows_is_rehearsed(packed, monkeypatch):
    made = []
    drawn = []

    class WatchedData(RecordData):
        def __init__(self, records, regions, encoded, seed, images, weights):
            super().__init__(records, regions, encoded, seed, images, weights)
            made.append(weights)

        def example(self, k, *more, **options):
            drawn.append(k)
            return super().example(k, *more, **options)

    monkeypatch.setattr(tune, "RecordData", WatchedData)
    assert command.main(words(packed, packed / "out", 6, 0.5)) == 0
    rehearsed_counts = []
    for weights in made:
        rehearsed = {image: w for image, w in weights.items() if image.parent == packed / "pack"}
        # Questions of an image: about the cat and the dog, or about the mug.
        shares = {image: w * (2 if image in rehearsed else 1) for image, w in weights.items()}
        share = sum(shares[image] for image in rehearsed) / sum(shares.values())
        assert share == pytest.approx(1 / 3)
        rehearsed_counts.append(len(rehearsed))
    assert set(rehearsed_counts) == {1, 10}  # held out, and learned from
    assert drawn and json.loads((packed / "out/settings.json").read_text())["rehearsal"] == 0.5


def test_rehearsal_that_cannot_be_is_one_line(packed, capsys):
    tune.PACK.write_bytes(tune.PACK.read_bytes()[:100])
    assert command.main(words(packed, packed / "a", 2, 0.5)) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert command.main([*words(packed, packed / "a", 2), "--rehearsal", "-1"]) == 2
    assert command.main([*words(packed, packed / "a", 2), "--mllm", "x", "--rehearsal", "1"]) == 2
    assert "older.jsonl=0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_tuning_continues_to_the_same_weights(known, stopped):
    def run() -> None:
        if command.main(words(known, known / "parts", 6)) == 130:  # ctrl-C, reported in one line
            raise KeyboardInterrupt

    assert command.main(words(known, known / "whole", 6)) == 0
    stopped(language, "read_batch", 6, run)
    assert command.main(words(known, known / "parts", 6)) == 0
    for file in ("lora/adapter_model.safetensors", "heads.safetensors"):
        whole, parts = (load_file(known / run / file) for run in ("whole", "parts"))
        assert all(torch.allclose(whole[k].float(), parts[k].float(), atol=1e-5) for k in whole)
