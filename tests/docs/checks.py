"""What a documented command must leave behind. Each check takes the command's `Outcome`."""

import html
import html.parser
import io
import json
from collections.abc import Callable

import numpy as np
from PIL import Image
from safetensors import safe_open

from assistant.weights import sha256_of
from tests.docs.walkthrough import Outcome, read_url
from tests.docs.world import ROOT

Check = Callable[[Outcome], None]

RECORD_KEYS = {"image", "width", "height", "question", "answer", "targets", "source"}
RESULT_KEYS = {"benchmark", "protocol", "version", "n", "ci95", "by", "preset", "weights", "commit"}
RESULT_KEYS |= {"gIoU", "cIoU", "ncIoU", "N_acc", "T_acc", "oracle_gIoU"}
RESULT_KEYS |= {"seconds_per_query", "seconds_per_image", "tokens_per_query"}


def files(*names: str) -> Check:
    """The files are there and not empty."""

    def check(outcome: Outcome) -> None:
        for name in names:
            assert (outcome.folder / name).stat().st_size, name

    return check


def says(*parts: str) -> Check:
    """Standard output holds the parts."""

    def check(outcome: Outcome) -> None:
        for part in parts:
            assert part in outcome.stdout, f"{part!r} is not in {outcome.stdout[-2000:]}"

    return check


def complains(part: str) -> Check:
    """The error that ends it holds the part."""

    def check(outcome: Outcome) -> None:
        assert part in outcome.stderr, outcome.stderr[-2000:]

    return check


def quiet() -> Check:
    """Nothing but the answer reached the terminal."""

    def check(outcome: Outcome) -> None:
        assert outcome.stderr == ""

    return check


def answer_folder(name: str, *phrases: str) -> Check:
    """What `Answer.save` writes, with targets of these phrases: each mask opens at the image's size."""

    def check(outcome: Outcome) -> None:
        folder = outcome.folder / name
        answer = json.loads((folder / "answer.json").read_text())
        size = answer["width"], answer["height"]
        for file in ("image.png", "mask.png", "overlay.png"):
            assert Image.open(folder / file).size == size
        for target in answer["targets"]:
            assert 0 <= target["confidence"] <= 1 and target["present"] == (target["file"] is not None)
            if target["present"]:
                assert int((np.asarray(Image.open(folder / target["file"])) > 0).sum()) == target["area"]
        assert {target["phrase"] for target in answer["targets"]} >= set(phrases)
        present = [target for target in answer["targets"] if target["present"]]
        assert len(json.loads((folder / "coco.json").read_text())["annotations"]) == len(present)
        assert json.loads((folder / "labelme.json").read_text())["imageWidth"] == size[0]

    return check


def labelled_set(name: str, *classes: str) -> Check:
    """What `label` writes: every photo that is listed has its files, and every annotation its line."""

    def check(outcome: Outcome) -> None:
        folder = outcome.folder / name
        coco = json.loads((folder / "instances.json").read_text())
        assert [row["name"] for row in coco["categories"]] == [*classes]
        assert coco["images"]
        lines = 0
        for row in coco["images"]:
            stem = row["file_name"].rpartition(".")[0]
            for place in (f"images/{row['file_name']}", f"label_maps/{stem}.png", f"overlays/{stem}.jpg"):
                with Image.open(folder / place) as opened:
                    opened.load()
                assert opened.size == (row["width"], row["height"]) or place.startswith("overlays/")
            lines += len((folder / f"labels/{stem}.txt").read_text().splitlines())
        assert lines == len(coco["annotations"])
        assert (folder / "failed.txt").read_text() == ""

    return check


def image(name: str) -> Check:
    """An image that opens."""

    def check(outcome: Outcome) -> None:
        with Image.open(outcome.folder / name) as opened:
            opened.load()

    return check


def records(name: str, at_least: int = 1) -> Check:
    """A records file of at least so many questions, the images of which are there."""

    def check(outcome: Outcome) -> None:
        file = outcome.folder / name
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) >= at_least
        for row in rows:
            assert row.keys() >= RECORD_KEYS
            assert (file.parent / row["image"]).is_file()
            assert all(target.keys() == {"phrase", "rle"} for target in row["targets"])

    return check


def json_file(name: str, *keys: str) -> Check:
    """A JSON object with these keys."""

    def check(outcome: Outcome) -> None:
        assert json.loads((outcome.folder / name).read_text()).keys() >= set(keys)

    return check


def json_lines(name: str, *keys: str) -> Check:
    """JSON objects with these keys, one a line."""

    def check(outcome: Outcome) -> None:
        lines = (outcome.folder / name).read_text().splitlines()
        assert lines
        assert all(json.loads(line).keys() >= set(keys) for line in lines)

    return check


def tensors(name: str) -> Check:
    """A safetensors file whose numbers are finite."""

    def check(outcome: Outcome) -> None:
        with safe_open(outcome.folder / name, "pt") as opened:
            keys = list(opened.keys())
            assert keys
            assert all(opened.get_tensor(key).isfinite().all() for key in keys)

    return check


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)


def report(name: str, *tags: str) -> Check:
    """An HTML page with a title and these tags, that loads nothing from elsewhere."""

    def check(outcome: Outcome) -> None:
        text = (outcome.folder / name).read_text()
        parser = _Tags()
        parser.feed(text)
        assert parser.seen >= {"title", *tags}, parser.seen
        assert 'src="http' not in text and 'href="http' not in text

    return check


def result(name: str, benchmark: str, n: int | None = None) -> Check:
    """A benchmark's folder: result.json with every key, n samples, and a report."""

    def check(outcome: Outcome) -> None:
        folder = outcome.folder / name
        row = json.loads((folder / "result.json").read_text())
        assert row.keys() >= RESULT_KEYS, RESULT_KEYS - row.keys()
        assert row["benchmark"] == benchmark
        assert n is None or row["n"] == n, row["n"]
        assert all(len(checksum) == 64 for checksum in row["weights"].values())
        for line in (folder / "samples.jsonl").read_text().splitlines():
            assert "error" not in json.loads(line), line
        report(f"{name}/report.html")(outcome)

    return check


def answers_with(options: str) -> Check:
    """What was trained answers a question."""

    def check(outcome: Outcome) -> None:
        again = outcome.walkthrough.execute(
            f"python -m assistant ask photo.jpg 'where is the cat?' --json {options}"
        )
        row = json.loads(again.stdout)
        assert row["text"] and row["width"] == 320

    return check


def serves_answers(*phrases: str) -> Check:
    """The page answers a question through its API, with these phrases among its targets."""

    def check(outcome: Outcome) -> None:
        from gradio_client import Client, handle_file

        client = Client(outcome.url, verbose=False)
        photo = handle_file(str(outcome.folder / "photo.jpg"))
        answer = client.predict(photo, "what keeps the rain off?", api_name="/ask")
        assert answer["width"] == 320 and answer["text"]
        assert {target["phrase"] for target in answer["targets"]} >= set(phrases), answer

    return check


def serves_images(tag: str) -> Check:
    """The page has such elements, and its first image opens."""

    def check(outcome: Outcome) -> None:
        page = read_url(outcome.url).decode()
        assert f"<{tag}" in page
        source = html.unescape(page.partition("<img")[2].partition(' src="')[2].partition('"')[0])
        Image.open(io.BytesIO(read_url(outcome.url + source))).load()

    return check


def published(*names: str) -> Check:
    """The weights stand in the copy of the package, with their checksums, in half precision."""

    def check(outcome: Outcome) -> None:
        folder = outcome.folder / "assistant/pocket"
        sums = json.loads((folder / "checksums.json").read_text())
        for name in names:
            assert sums[name] == sha256_of(folder / name)
            assert (folder / name).read_bytes() != (ROOT / "assistant/pocket" / name).read_bytes()
        assert str(folder) in outcome.stdout

    return check
