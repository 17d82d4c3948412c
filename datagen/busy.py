"""How well the pipeline keeps a language model's server busy, measured with a stand-in of fixed speed.

    python -m datagen.busy --slots 64 --seconds 0.2 --photos 400

Prints the share of its slots that were busy on average, from the first request to the last answer, and what a
request costs us in CPU time: the most requests a second that one core can send.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datagen.settings import Settings

QUESTIONS_PER_IMAGE = 6  # each with a second opinion
QUESTION_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot")  # what makes the questions differ
MAX_REQUEST_BYTES = 1 << 24  # images are sent inside of requests
STOP_POLL_SECONDS = 0.1
IMAGE_SIZE = (640, 480)  # px, COCO's usual one


@dataclass
class Load:
    """What a server had to do.

    Attributes:
        now, most: Requests that are being answered, and the most there were at once.
        requests: Requests that were answered.
        busy_seconds: Of all slots together.
        first, last: Times of the first request and the last answer, in seconds.
    """

    now: int = 0
    most: int = 0
    requests: int = 0
    busy_seconds: float = 0.0
    first: float | None = None
    last: float = 0.0

    def begin(self) -> float:
        """Note a request; returns the time."""
        began = time.perf_counter()
        if self.first is None:
            self.first = began
        self.now += 1
        self.most = max(self.most, self.now)
        return began

    def end(self, began: float) -> None:
        """Note the answer to a request that began at a time."""
        self.last = time.perf_counter()
        self.now -= 1
        self.requests += 1
        self.busy_seconds += self.last - began

    @property
    def elapsed_seconds(self) -> float:
        """From the first request to the last answer."""
        return self.last - (self.first or 0.0)


def good_answer(body: dict[str, Any]) -> dict[str, Any]:
    """A good answer to each of the writer's requests."""
    content = body["messages"][-1]["content"]
    title = body["response_format"]["json_schema"]["schema"]["title"]
    if title == "description":
        return {"description": "A cup and two cats."}
    if title == "questions":
        numbers = [_number_of_cup(content)]
        return {
            "questions": [
                {
                    "kind": "implicit",
                    "before": [],
                    "question": f"Which thing would I use for {word}?",
                    "targets": [{"phrase": "cup", "name": "cup", "numbers": numbers}],
                }
                for word in QUESTION_WORDS[:QUESTIONS_PER_IMAGE]
            ]
        }
    return {"numbers": [_number_of_cup(str(body["messages"]))]}


def _number_of_cup(text: str) -> int:
    """The number of the cup in the list of instances that the writer gives."""
    match = re.search(r"(\d+)\. cup", text)
    assert match is not None
    return int(match[1])


def http_reply(answer: dict[str, Any]) -> bytes:
    """An HTTP response in OpenAI's form."""
    message = {"role": "assistant", "content": json.dumps(answer)}
    content = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 50, "total_tokens": 550},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def serve(seconds: float, pipe: "Connection[Load, int]") -> None:
    """Run an OpenAI-compatible server on loopback that answers each request after a time.

    It sends its port through the pipe at the start, and its `Load` at the end, which is when something comes
    through it.
    """
    load = Load()

    async def answer_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", head)
                assert length is not None
                body = json.loads(await reader.readexactly(int(length[1])))
                began = load.begin()
                await asyncio.sleep(seconds)
                writer.write(http_reply(good_answer(body)))
                load.end(began)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer_requests, "127.0.0.1", 0, limit=MAX_REQUEST_BYTES)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(STOP_POLL_SECONDS)
        pipe.send(load)

    asyncio.run(run())


def write_images(folder: Path, count: int) -> Path:
    """Write a folder of images with a cup and two cats each; returns its annotations."""
    from PIL import Image

    (folder / "images").mkdir()
    first = folder / "images/0.jpg"
    Image.effect_noise(IMAGE_SIZE, 60).convert("RGB").save(first, quality=85)
    content = first.read_bytes()
    width, height = IMAGE_SIZE
    images, annotations = [], []
    for number in range(count):
        (folder / f"images/{number}.jpg").write_bytes(content)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        for k, (category, x) in enumerate(((1, 5), (2, 150), (2, 70))):
            annotations.append(
                {
                    "id": 10 * number + k,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, 20, 40, 50],
                    "area": 2000,
                    "segmentation": [[x, 20, x + 40, 20, x + 40, 70, x, 70]],
                }
            )
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json"


def measure(slots: int, seconds: float, image_count: int, describes: bool) -> dict[str, float]:
    """Run the pipeline once against the stand-in.

    Args:
        slots: Number of requests at a time.
        seconds: That every answer takes.
        image_count: Number of images to ask about.
        describes: Whether the images are sent too, to be described.

    Returns:
        {name: figure}: what the command prints.
    """
    import openai  # noqa: F401  # loaded before the clock starts

    from datagen.generate import generate

    os.environ["OPENAI_API_KEY"] = "none"
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(seconds, theirs), daemon=True)
    process.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(
            images=folder / "images",
            annotations=write_images(folder, image_count),
            writer="openai",
            model="stub",
            base_url=f"http://127.0.0.1:{port}/v1",
            describe_with="stub" if describes else None,
            concurrency=slots,
            per_image=QUESTIONS_PER_IMAGE,
            out=folder / "out",
        )
        began = time.process_time()
        generate(settings)
        cpu_seconds = time.process_time() - began
    ours.send(0)
    load = ours.recv()
    process.join()
    return {
        "requests": load.requests,
        "most_at_once": load.most,
        "busy": load.busy_seconds / (slots * load.elapsed_seconds),
        "requests_per_second": load.requests / load.elapsed_seconds,
        "cpu_ms_per_request": 1000 * cpu_seconds / load.requests,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m datagen.busy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=64, help="requests at a time (default: 64)")
    parser.add_argument("--seconds", type=float, default=0.2, help="that every answer takes (default: 0.2)")
    parser.add_argument("--photos", type=int, default=400, help="to ask about (default: 400)")
    parser.add_argument("--describe", action="store_true", help="send the photos too, to be described")
    options = parser.parse_args(arguments)
    for name, figure in measure(options.slots, options.seconds, options.photos, options.describe).items():
        print(f"{name}: {figure:.3f}" if isinstance(figure, float) else f"{name}: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
