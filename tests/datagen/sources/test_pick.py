"""Images are picked by how much is in them, whichever others there are."""

import json
from collections import Counter

from datagen.__main__ import main
from datagen.sources.annotated_images import AnnotatedImages
from datagen.sources.index import open_index
from datagen.sources.pick import difficulty, pick
from tests.helpers.datagen_images import command


def test_images_are_picked_by_difficulty(many_images):
    folder = many_images / "images"
    images = AnnotatedImages(open_index("coco", many_images / "instances.json", folder, None), folder)
    levels = {image.id: difficulty(image) for image in images}
    assert Counter(levels.values()) == {"single": 6, "simple": 24, "complex": 18}
    drops = Counter()
    chosen = pick(images, 10, 0.4, 0, drops)
    assert Counter(levels[number] for number in chosen) == {"complex": 4, "simple": 6}
    assert drops == {
        "photo: not picked (fewer than two categories)": 6,
        "photo: not picked (simple)": 18,
        "photo: not picked (complex)": 14,
    }
    assert pick(images, 10, 0.4, 0, Counter()) == chosen != pick(images, 10, 0.4, 1, Counter())
    assert chosen <= pick(images, 20, 0.4, 0, Counter())
    images.only = chosen
    assert {image.id for image in images} == chosen and len(images) == 10
    images.only = None
    drops = Counter()
    assert len(pick(images, 40, 0.5, 0, drops)) == 18 + 20
    assert drops["photo: fewer to pick from than asked for (complex)"] == 2


def test_picking_from_the_command_line(many_images, capsys):
    assert main(command(many_images, "out", "--pick", 10, "--complex", 0.3)) == 0
    figures = json.loads((many_images / "out/statistics.json").read_text())
    assert figures["photos_by_difficulty"] == {"simple": 7, "complex": 3} and figures["photos"] == 10
    assert main(command(many_images, "out", "--pick", 0)) == 2
    assert main(command(many_images, "out", "--complex", 2)) == 2
