"""`python -m finetune --preset pocket`: new names are learned, old ones kept, and a stopped run goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assistant.pocket.llm import RegionEncoder
from assistant.record import Record, RecordTarget, read_records, write_records
from assistant.sam.mask_ops import decode_rle, encode_rle
from assistant.weights import pocket_file, sha256_of
from finetune import __main__ as command
from finetune.pocket import language, records
from finetune.pocket import tune as pocket
from finetune.pocket.examples import RecordData
from finetune.pocket.outlined import named_in_records
from finetune.pocket.rehearsal import pack, rehearsed, varied
from tests.finetune.pocket.test_records import arguments, llm_folder, picture, setting  # noqa: F401

NEW = "mug"  # what the tests of `records` call a cup; here it is what nobody has named before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the first test that needs it leaves the old adapter."""
    return tmp_path_factory.mktemp("trained") / "base"


@pytest.fixture
def before(setting, trained, monkeypatch):
    """An adapter that knows cats and dogs, and records about mugs."""
    rows = [
        r
        for r in (setting / "records.jsonl").read_text().splitlines()
        if json.loads(r)["source"]["categories"] != ["cup"]
    ]
    (setting / "old.jsonl").write_text("".join(r + "\n" for r in rows))
    made = {}
    monkeypatch.setattr(
        records,
        "all_regions",
        lambda opener, key, images, named, kept: made.setdefault(
            "old", {i: without_cups(r) for i, r in all_old(setting, images).items()}
        ),
    )
    if not trained.exists():
        args = arguments(setting, setting / "base")
        args.data, args.states, args.selector_steps, args.steps = [setting / "old.jsonl"], 8, 4, 2
        records.main(args)
        shutil.copytree(setting / "base", trained)
    shutil.copytree(trained, setting / "base", dirs_exist_ok=True)
    rng, new, regions = np.random.default_rng(7), [], {}
    for i in range(10):
        image = (setting / f"new{i}.jpg").resolve()
        from PIL import Image

        Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(image)
        own = regions[image] = picture(rng)
        own.names = [NEW if n == "cup" else n for n in own.names]
        rle = own.rles[own.names.index(NEW)] if NEW in own.names else None
        answer = f"mug {'[SEG]' if rle else '[ABS]'}."
        new.append(Record(image.name, 60, 40, "where is the mug?", answer, [RecordTarget(NEW, rle)]))
    write_records(setting / "new.jsonl", new[:8])
    write_records(setting / "val.jsonl", new[8:])

    def all_regions(load, key, images, named, kept, views):
        for image in images:  # only what the records outline is outlined for tuning
            own = regions[image]
            if own.names and own.names[0] is not None:
                keep = [k for k, n in enumerate(own.names) if n in [name for name, _ in named.get(image, [])]]
                rest = list(range(len(own.names), len(own.rles)))
                rles, names = [own.rles[k] for k in keep + rest], [own.names[k] for k in keep]
                regions[image] = type(own)(own.features[keep + rest], rles, names)
        return {i: regions[i] for i in images}

    monkeypatch.setattr(pocket, "all_regions", all_regions)
    monkeypatch.setattr(pocket, "EXAMINED", 6)
    monkeypatch.setattr(pocket, "MINUTES", 0)
    return setting


def all_old(folder, images):
    rng, out = np.random.default_rng(0), {}
    for i in range(12):
        out[(folder / f"{i}.jpg").resolve()] = picture(rng)
    return {i: out[i] for i in images}


def without_cups(regions):
    keep = [k for k, n in enumerate(regions.names) if n != "cup"]
    rest = [k + len(regions.names) for k in range(len(regions.names))]
    return type(regions)(
        regions.features[keep + rest],
        [regions.rles[k] for k in keep + rest],
        [regions.names[k] for k in keep],
    )


def words(folder, out, steps: int = 30, rehearsal: float = 0) -> list[str]:
    return [
        "--preset",
        "pocket",
        "--adapter",
        str(folder / "base"),
        "--data",
        str(folder / "new.jsonl"),
        "--val",
        str(folder / "val.jsonl"),
        "--out",
        str(out),
        "--max-steps",
        str(steps),
        "--save-every",
        "40",
        "--batch",
        "1",
        "--rehearsal",
        str(rehearsal),
    ]


def encoder_of(folder) -> tuple[RegionEncoder, dict]:
    heads, about = load_file(folder / "heads.safetensors"), pocket.committed(folder)
    return about.encoder, about.forms | {"count": len(heads["encoder.names"])}


def test_new_names_are_learned_beside_the_old(before, capsys):
    assert command.main(words(before, before / "out")) == 0
    (old, old_forms), (new, forms) = encoder_of(before / "base"), encoder_of(before / "out")
    assert old_forms["count"] == 2 and forms["count"] == 3 and forms[NEW] == 2
    assert torch.equal(new.names[:2], old.names) and all(forms[n] == old_forms[n] for n in ("cat", "dog"))
    rng = np.random.default_rng(99)
    right, kept = [], []
    for _ in range(10):
        own = picture(rng)
        with torch.no_grad():
            said = new.name_logits(new(own.features).words, new.names).argmax(1)[: len(own.names)]
        for name, row in zip(own.names, said.tolist()):
            (right if name == "cup" else kept).append(row == forms[NEW if name == "cup" else name])
    assert np.mean(right) > 0.8 and np.mean(kept) > 0.8
    report = (before / "out/report.html").read_text()
    assert report.count("where is the mug?") == 2 and "step 0" in report and report.count("<svg") >= 5


@pytest.fixture
def packed(before, monkeypatch):
    """The old pictures, packed."""
    old = [(r, (before / r.image).resolve()) for r in read_records(before / "old.jsonl")]
    regions = {i: without_cups(r) for i, r in all_old(before, sorted({i for _, i in old})).items()}
    monkeypatch.setattr(pocket, "PACK", before / "pack.npz")
    pack(old, regions, varied(old, 11), sha256_of(pocket_file("sam.safetensors")), pocket.PACK)
    return old, regions


def test_a_pack_holds_what_was_seen_and_asked(before, packed):
    old, regions = packed
    images = varied(old, 11)
    assert len(set(images)) == 11 and {i for _, i in old} > set(images)
    records, seen = rehearsed(pocket.PACK, sha256_of(pocket_file("sam.safetensors")))
    assert len(seen) == 11 and len(records) == len([r for r, i in old if i in images])
    for image, own in zip(images, seen.values()):
        step = (own.features - regions[image].features).abs().max()
        assert own.rles == regions[image].rles and own.names == regions[image].names and step < 0.02
    first = [(r.question, r.answer, r.targets, r.source["categories"]) for r, i in old if i == images[0]]
    assert [
        (r.question, r.answer, r.targets, r.source["categories"]) for r, i in records if i == list(seen)[0]
    ] == first
    assert not Path(records[0][0].image).exists()


def test_as_many_categories_as_they_can_show():
    rle = encode_rle(np.ones((8, 8)))
    asked = [
        Record(
            f"{k}",
            8,
            8,
            "?",
            "",
            [RecordTarget(n, rle) for n in names] + [RecordTarget("gone", None)],
            {"categories": [*names, "gone"]},
        )
        for k, names in enumerate((["cat"], ["cat", "dog"], ["cat", "dog"], ["cup", "fork"]))
    ]
    assert [str(p) for p in varied([(r, Path(r.image)) for r in asked], 2)] == ["1", "3"]


def test_what_it_knew_is_rehearsed(before, packed, monkeypatch):
    met, asked = [], []
    monkeypatch.setattr(
        pocket,
        "RecordData",
        lambda records, regions, seen, seed, held_out, aside, rates: (
            met.append((held_out, rates)) or RecordData(records, regions, seen, seed, held_out, aside, rates)
        ),
    )
    drawn = RecordData.example
    monkeypatch.setattr(
        RecordData, "example", lambda self, k, *a, **o: asked.append(k) or drawn(self, k, *a, **o)
    )
    assert command.main(words(before, before / "out", 6, 0.5)) == 0
    old = lambda rates: {i: r for i, r in rates.items() if i.parent == before / "pack"}
    for held_out, rates in met:
        counts = {
            i: 2 if i in old(rates) else 1 for i in rates
        }  # questions of a picture: cat and dog, or mug
        share = sum(counts[i] * r for i, r in old(rates).items()) / sum(
            counts[i] * r for i, r in rates.items()
        )
        assert share == pytest.approx(1 / 3) and len(old(rates)) == (1 if held_out else 10)
    assert asked and json.loads((before / "out/settings.json").read_text())["rehearsal"] == 0.5


def test_a_pack_that_cannot_be_used_is_one_line(before, packed, capsys):
    file = pocket.PACK
    pack(*packed, varied(packed[0], 2), "another", file)
    assert (
        command.main(words(before, before / "a", 2, 0.5)) == 2 and "of another SAM" in capsys.readouterr().err
    )
    file.write_bytes(file.read_bytes()[:100])
    assert (
        command.main(words(before, before / "a", 2, 0.5)) == 2 and "cannot be read" in capsys.readouterr().err
    )
    file.unlink()
    assert (
        command.main(words(before, before / "a", 2, 0.5)) == 2
        and "give --rehearsal 0" in capsys.readouterr().err
    )
    assert command.main([*words(before, before / "a", 2), "--rehearsal", "-1"]) == 2
    assert command.main([*words(before, before / "a", 2), "--mllm", "x", "--rehearsal", "1"]) == 2
    assert "older.jsonl=0.5" in capsys.readouterr().err


def test_a_stopped_tuning_goes_on_to_the_same_weights(before, stopped):
    assert command.main(words(before, before / "whole", 6)) == 0
    stopped(language, "read_batch", 6, lambda: run(before))
    assert command.main(words(before, before / "parts", 6)) == 0
    for file in ("lora/adapter_model.safetensors", "heads.safetensors"):
        whole, parts = (load_file(before / k / file) for k in ("whole", "parts"))
        assert all(torch.allclose(whole[k].float(), parts[k].float(), atol=1e-5) for k in whole)


def run(before) -> None:
    if command.main(words(before, before / "parts", 6)) == 130:  # ctrl-C, said in one line
        raise KeyboardInterrupt


def test_names_come_from_the_records_and_apart_things_are_things_of_their_own():
    wheels = np.zeros((20, 40), bool)
    wheels[5:15, 2:12] = wheels[5:15, 25:35] = True
    speck = wheels.copy()
    speck[:, 20:] = False
    speck[0, 0] = True
    asked = [
        Record(
            "a.jpg",
            40,
            20,
            "?",
            "wheels [SEG].",
            [RecordTarget("wheels", encode_rle(wheels))],
            {"categories": ["wheel"]},
        ),
        Record("a.jpg", 40, 20, "?", "Wheels [SEG].", [RecordTarget("Speck", encode_rle(speck))]),
        Record("a.jpg", 40, 20, "?", "door [ABS].", [RecordTarget("door", None)]),
    ]
    named = named_in_records([(r, "a") for r in asked])["a"]
    assert [n for n, _ in named] == ["wheel", "wheel", "speck"]
    assert [int(m.sum()) for m in map(decode_rle, (rle for _, rle in named))] == [100, 100, 101]
