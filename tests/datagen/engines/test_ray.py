"""The Ray engine gives the rows of the plain one, and loses no answer that was paid for."""

import json

import pytest

pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'maskpick[scale]'")

from datagen.__main__ import main
from tests.helpers.cached_results import delete_image_results
from tests.helpers.datagen_images import command, generated_files
from tests.helpers.written_questions import generate


def test_two_workers_give_the_same_rows(many_images, cluster):
    assert main(command(many_images, "plain", "--per-image", 20)) == 0
    assert main(command(many_images, "ray", "--per-image", 20, "--engine", "ray", "--workers", 2)) == 0
    plain = generated_files(many_images / "plain")
    assert generated_files(many_images / "ray") == plain
    assert not list((many_images / "ray").glob(".*"))
    # What is cached is not made again, by whichever engine.
    assert main(command(many_images, "ray", "--per-image", 20)) == 0
    assert generated_files(many_images / "ray") == plain


@pytest.mark.slow
def test_answers_are_cached_one_by_one(three_images, model_server, cluster):
    """With the images' results gone, as after a change of the checks, nothing is asked again."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    _, plain = generate(three_images, model_server, out="plain")
    model_server.bodies.clear()
    on_ray = ("--engine", "ray", "--workers", 1)
    code, records = generate(three_images, model_server, *on_ray)
    assert code == 0 and records == plain and len(model_server.bodies) == 24
    for engine in (on_ray, ()):
        delete_image_results(three_images / "out")
        code, records = generate(three_images, model_server, *engine)
        assert code == 0 and records == plain and len(model_server.bodies) == 24


def test_what_was_answered_before_the_budget_was_spent_is_cached(three_images, model_server, cluster, capsys):
    pytest.importorskip("openai", reason="the openai client is not installed")
    cost = (100 * 10 + 50 * 20) / 1e6  # of a request
    options = ("--price", 10, 20, "--concurrency", 1, "--engine", "ray", "--workers", 1)
    assert generate(three_images, model_server, *options, "--budget", 4.5 * cost)[0] == 2
    assert "the budget of" in capsys.readouterr().err and len(model_server.bodies) == 5
    _, records = generate(three_images, model_server, *options, "--budget", 40 * cost)
    assert len(records) == 18 and len(model_server.bodies) == 24


def test_workers_share_the_budget(three_images, model_server, cluster):
    pytest.importorskip("openai", reason="the openai client is not installed")
    data = json.loads((three_images / "instances.json").read_text())
    for k in range(4, 20):  # more than one batch
        (three_images / f"images/{k}.jpg").write_bytes((three_images / "images/1.jpg").read_bytes())
        data["images"].append(data["images"][0] | {"id": k, "file_name": f"{k}.jpg"})
        data["annotations"] += [
            row | {"id": 10 * k + n, "image_id": k} for n, row in enumerate(data["annotations"][:3])
        ]
    (three_images / "instances.json").write_text(json.dumps(data))
    cost = (100 * 10 + 50 * 20) / 1e6  # of a request
    options = ("--price", 10, 20, "--concurrency", 2, "--engine", "ray", "--workers", 2)
    assert generate(three_images, model_server, *options, "--budget", 8 * cost)[0] == 2
    assert len(model_server.bodies) <= 8
