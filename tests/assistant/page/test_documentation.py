"""The example for programs in docs/page.md runs as it stands there."""

from pathlib import Path

from PIL import Image

import app
from tests.helpers.fake_assistant import sample_image


def test_the_documented_example_runs(served_page, tmp_path, monkeypatch):
    guide = (Path(app.__file__).parent / "docs/page.md").read_text(encoding="utf-8")
    (example,) = [
        block for block in guide.split("```") if block.startswith("python\n") and "handle_file" in block
    ]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(sample_image(300, 480)).save("photo.jpg", quality=95)
    names = {}
    exec(example.removeprefix("python\n").replace("http://127.0.0.1:7860", served_page.address), names)
    assert names["answer"]["question"] == "what keeps the rain off?"
    assert names["left"]["question"] == "the one on the left"
    assert len(names["masks"]["masks"]) == 3
