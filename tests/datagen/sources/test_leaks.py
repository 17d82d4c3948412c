"""Images of an evaluation set are kept out, whatever they are called."""

import skimage.data
from PIL import Image

from assistant.record import read_records
from datagen.__main__ import main
from datagen.sources.leaks import excluded_images, leak
from tests.helpers.datagen_images import command, write_cup_and_cat


def generate(folder, *more):
    code = main(command(folder, "out", "--per-image", 6, *more))
    return code, read_records(folder / "out/records.jsonl") if code == 0 else []


def test_evaluation_images_are_kept_out_by_name_and_by_looks(tmp_path, capsys):
    write_cup_and_cat(tmp_path)
    evaluation = tmp_path / "dev"
    evaluation.mkdir()
    small = Image.open(tmp_path / "images/cat.jpg").resize((180, 120))
    small.save(evaluation / "renamed.jpg", quality=60)
    _, records = generate(tmp_path, "--exclude", evaluation)
    assert {record.image.rsplit("/", 1)[1] for record in records} == {"cup.jpg"}
    assert "dropped 1 x photo: looks like an evaluation image" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("somewhere/cup.png\n")
    _, records = generate(tmp_path, "--exclude", tmp_path / "names.txt")
    assert {record.image.rsplit("/", 1)[1] for record in records} == {"cat.jpg"}
    assert generate(tmp_path, "--exclude", evaluation, tmp_path / "names.txt")[0] == 2  # nothing is left
    assert generate(tmp_path, "--exclude", tmp_path / "nowhere")[0] == 2


def test_different_images_are_no_leak(tmp_path):
    write_cup_and_cat(tmp_path)
    excluded = excluded_images([tmp_path / "images"])
    for pixels in (skimage.data.astronaut(), skimage.data.rocket()):
        Image.fromarray(pixels).save(tmp_path / "other.jpg")
        assert leak(tmp_path / "other.jpg", excluded) is None
