"""Images that teach names alone, and the stages that learn from them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from assistant.errors import BadInput
from assistant.pocket.heads import Heads
from assistant.pocket.semantic import SemanticSelector
from assistant.sam.mask_ops import encode_rle
from assistant.weights import pocket_file
from finetune import __main__ as command
from finetune.pocket.named_images import NameRules, name_rules, read_named_set
from finetune.pocket.semantic_head import BACKGROUND, OUTSIDE, AugmentedImages, ImageSet, LabelledImages
from tests.helpers.pocket_wheels import require_pocket_wheels

SIZE = (40, 60)  # height and width of the images


def square(left: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[10:30, left : left + 20] = True
    return mask


def write_set(folder, names, unlabelled=()):
    """A COCO file with one image per name, a coloured square each, beside its folder of images."""
    (folder / "images").mkdir(parents=True)
    kinds = sorted(set(names))
    images, annotations = [], []
    for k, name in enumerate(names):
        mask = square(5 + k % 30)
        pixels = np.full((*SIZE, 3), 120, np.uint8)
        pixels[mask] = np.eye(3, dtype=np.uint8)[kinds.index(name) % 3] * 255
        file = f"{k:03}.png"
        Image.fromarray(pixels).save(folder / "images" / file)
        image = {"id": k, "file_name": file, "width": SIZE[1], "height": SIZE[0]}
        images.append(image | ({"ignore": encode_rle(square(0))} if k in unlabelled else {}))
        annotations.append(
            {"id": k, "image_id": k, "category_id": kinds.index(name), "segmentation": encode_rle(mask)}
        )
    file = folder / "instances.json"
    categories = [{"id": k, "name": name} for k, name in enumerate(kinds)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def test_no_rule_contradicts_another():
    rules = name_rules()
    assert not rules.merged.keys() & set(rules.merged.values())
    used = rules.background.union(*rules.ambiguous.values(), rules.ambiguous)
    assert not used & rules.merged.keys()
    assert all(name not in others for name, others in rules.ambiguous.items())


def test_a_set_has_its_names_as_they_are_taught(tmp_path):
    file = write_set(tmp_path, ["mug", "frog"] * 11 + ["axe"] * 3, unlabelled={0})
    named = read_named_set(file, is_complete=False)
    assert named.names == {"cup", "frog"}
    files = [image.name for image in named.instances]
    # Every tenth is kept aside, and the last three show what too few others do.
    assert files == [f"{k:03}.png" for k in range(22) if k % 10 != 9]
    assert [image.name for image in named.aside] == ["009.png", "019.png"]
    assert all(row[0] in named.names for rows in named.aside.values() for row in rows)
    assert list(named.unlabelled) == [tmp_path / "images/000.png"] and not named.is_complete
    with pytest.raises(BadInput, match="teaches nothing"):
        read_named_set(write_set(tmp_path / "few", ["axe"] * 4), is_complete=True)


def test_names_are_told_from_what_is_known_to_be_absent():
    rules = NameRules({}, {"cup": {"mug"}, "mug": {"cup"}}, {"lamp"})
    sets = [
        ImageSet({"cup", "dog", "cat"}, 0),
        ImageSet({"road"}, 1),
        ImageSet({"frog", "mug", "lamp"}, 0, is_complete=False),
        ImageSet({"dog"}, 0),
    ]
    names = ["cat", "cup", "dog", "frog", "lamp", "mug", "road"]
    table = LabelledImages({}, {}, names, sets).competing(rules)

    def rivals(number, label):
        row = len(names) if label is None else names.index(label)
        return {name for name, is_rival in zip([*names, None], table[number, row], strict=True) if is_rival}

    assert rivals(0, "cup") == {"cat", "cup", "dog", "frog", "lamp", None}
    assert rivals(0, None) == {"cat", "cup", "dog", "frog", "mug", None}
    assert rivals(1, "road") == rivals(1, None) == {"road", None}
    assert rivals(2, "frog") == {"cat", "cup", "dog", "frog", "lamp", "mug", None}
    assert rivals(3, None) == {"dog", None}


def test_what_is_not_labelled_is_unknown_where_a_set_is_not_complete(tmp_path):
    file = write_set(tmp_path, ["frog"] * 6, unlabelled={0})
    for is_complete in (False, True):
        named = read_named_set(file, is_complete)
        sets = [ImageSet({"frog"}, 0, is_complete)]
        image = next(iter(named.instances))
        images = LabelledImages(named.instances, {image: 0}, ["frog"], sets, named.unlabelled)
        _, labels, _ = AugmentedImages(images, [image], seed=0)[0]
        assert (labels == 0).any() and (labels == OUTSIDE).any()
        assert (labels == BACKGROUND).any() == is_complete


def test_the_published_heads_learn_more_names(tmp_path, capsys):
    require_pocket_wheels()
    file = write_set(tmp_path / "set", ["gong", "dog"] * 6)
    published = Heads.load(pocket_file("heads.safetensors"))
    out = tmp_path / "names"
    words = ["names", "--salient", str(file), "--out", str(out), "--steps", "4"]
    assert command.main(words) == 0
    heads = Heads.load(out / "heads.safetensors")
    assert heads.phrase_rows == published.phrase_rows | {"gong": len(published.encoder.names)}
    assert torch.equal(heads.encoder.names[: len(published.encoder.names)], published.encoder.names)
    assert all(
        torch.equal(a, b)
        for a, b in zip(heads.selector.parameters(), published.selector.parameters(), strict=True)
    )
    assert command.main(["names", "--out", str(out)]) == 2
    assert "give --outlined or --salient" in capsys.readouterr().err


def test_the_published_map_learns_more_names(tmp_path, drawn_records):
    require_pocket_wheels()
    file = write_set(tmp_path / "set", ["gong", "dog"] * 6)
    start = pocket_file("semantic.safetensors")
    words = {
        "data": drawn_records,
        "sam": pocket_file("sam.safetensors"),
        "salient": file,
        "start": start,
        "steps": 2,
        "batch": 2,
        "pixel-steps": 0,
        "workers": 0,
        "out": tmp_path / "map",
    }
    options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    assert command.main(["semantic", *options]) == 0
    old, new = SemanticSelector.load(start), SemanticSelector.load(tmp_path / "map/semantic.safetensors")
    assert new.categories == ["cat", "cup", "dog", "gong"]
    assert new.head.together.tolist() == [[True] * 5]
    for old_part, part in zip(old.pixel_head.parameters(), new.pixel_head.parameters(), strict=True):
        assert torch.equal(old_part, part)
    # Two steps change the rows that were there by little.
    rows = [old.categories.index(name) for name in new.categories[:3]]
    change = new.head.out.weight[:3] - old.head.out.weight[rows]
    assert change.norm() < 0.2 * old.head.out.weight[rows].norm()
