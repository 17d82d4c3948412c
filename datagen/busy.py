"""How well the pipeline keeps a language model's server busy: a stand-in that answers after a fixed time, and counts.

    python -m datagen.busy --slots 64 --seconds 0.2 --photos 400

Prints the share of its slots that were busy on average, from the first request to the last answer, and what a request
costs us in CPU time: the most requests a second that one core can send.
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
from pathlib import Path

QUESTIONS = 6  # a photo, each with a second opinion


def answer(body: dict) -> dict:
    """A good answer to each of the writer's requests."""
    told = body["messages"][-1]["content"]
    title = body["response_format"]["json_schema"]["schema"]["title"]
    if title == "description":
        return {"description": "Some things lie about."}
    if title == "questions":
        number = re.search(r"(\d+)\. cup", told)[1]
        words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]
        return {
            "questions": [
                {
                    "kind": "implicit",
                    "before": [],
                    "question": f"Which thing would I use for {w}?",
                    "targets": [{"phrase": "cup", "name": "cup", "numbers": [int(number)]}],
                }
                for w in words[:QUESTIONS]
            ]
        }
    return {"numbers": [int(re.search(r"(\d+)\. cup", str(body["messages"]))[1])]}


def serve(slots: int, seconds: float, pipe) -> None:
    """An OpenAI-compatible server on loopback; sends its port, and at the end of each run (requests, busy seconds of
    all slots, seconds from first to last, the most at once)."""
    state = {"now": 0, "most": 0, "count": 0, "busy": 0.0, "first": None, "last": 0.0}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                body = json.loads(await reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1])))
                began = time.perf_counter()
                state["first"] = state["first"] or began
                state["now"] += 1
                state["most"] = max(state["most"], state["now"])
                await asyncio.sleep(seconds)
                message = {"role": "assistant", "content": json.dumps(answer(body))}
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
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(content) + content
                )
                state["last"] = time.perf_counter()
                state["now"] -= 1
                state["count"] += 1
                state["busy"] += state["last"] - began
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 24)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.1)
        pipe.send((state["count"], state["busy"], state["last"] - (state["first"] or 0), state["most"]))

    asyncio.run(run())


def photos(folder: Path, count: int) -> Path:
    """A folder of pictures with a cup and two cats each; returns its annotations."""
    from PIL import Image

    (folder / "images").mkdir()
    Image.effect_noise((640, 480), 60).convert("RGB").save(folder / "images/0.jpg", quality=85)
    content, rows, things = (folder / "images/0.jpg").read_bytes(), [], []
    for k in range(count):
        (folder / f"images/{k}.jpg").write_bytes(content)
        rows.append({"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 480})
        for n, (name, x) in enumerate(((1, 5), (2, 150), (2, 70))):
            things.append(
                {
                    "id": 10 * k + n,
                    "image_id": k,
                    "category_id": name,
                    "bbox": [x, 20, 40, 50],
                    "area": 2000,
                    "segmentation": [[x, 20, x + 40, 20, x + 40, 70, x, 70]],
                }
            )
    data = {
        "images": rows,
        "annotations": things,
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json"


def measure(slots: int, seconds: float, count: int, describe: bool) -> dict:
    """One run of the pipeline against the stand-in."""
    import openai  # noqa: F401, not to be counted

    from datagen.__main__ import parser, run
    from datagen.engines import plain as engine  # noqa: F401

    os.environ["OPENAI_API_KEY"] = "none"
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(slots, seconds, theirs), daemon=True)
    process.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        words = [
            "--images",
            folder / "images",
            "--annotations",
            photos(folder, count),
            "--writer",
            "openai",
            "--model",
            "stub",
            "--base-url",
            f"http://127.0.0.1:{port}/v1",
            "--concurrency",
            slots,
            "--per-image",
            QUESTIONS,
            "--out",
            folder / "out",
        ]
        words += ["--describe-with", "stub"] if describe else []
        options = parser().parse_args(list(map(str, words)))
        began = time.process_time()
        run(options)
        cpu = time.process_time() - began
    ours.send("done")
    requests, busy, elapsed, most = ours.recv()
    process.join()
    return {
        "requests": requests,
        "most_at_once": most,
        "busy": busy / (slots * elapsed),
        "requests_per_second": requests / elapsed,
        "cpu_ms_per_request": 1000 * cpu / requests,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m datagen.busy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.2, help="that every answer takes")
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--describe", action="store_true", help="send the pictures too, to be described")
    options = parser.parse_args(arguments)
    for name, figure in measure(options.slots, options.seconds, options.photos, options.describe).items():
        print(f"{name}: {figure:.3f}" if isinstance(figure, float) else f"{name}: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
