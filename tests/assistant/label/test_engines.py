"""Whatever labels the photos, and however often it is killed, the files are the same."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from assistant.commands.label import ENGINES as OFFERED_ENGINES
from assistant.errors import BadInput
from assistant.label import engines
from assistant.label.engines import gpus_per_worker
from assistant.label.labeller import Outcome
from assistant.label.photos import Photo
from assistant.label.run import label_photos
from assistant.label.settings import ENGINES, LabelSettings
from assistant.presets import ModelOptions
from tests.helpers.chat_server import ChatServer
from tests.helpers.labelled_sets import set_files, write_textures
from tests.helpers.tiny_models import tiny_sam

ROOT = Path(__file__).parents[3]
CLASSES = ["first one", "second one"]  # that the server answers, and leaves out
RUN_SECONDS = 600  # a run may take on busy cores
WORKER_SECONDS = 60  # its workers may take to end after a kill


@pytest.fixture(scope="module")
def server_models(tmp_path_factory) -> Iterator[ModelOptions]:
    """A model on a server that finds the first proposal of a tiny SAM in every photo."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    sam = tiny_sam(tmp_path_factory.mktemp("models") / "sam")
    with contextlib.closing(ChatServer()) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "a-key-of-nobody")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield ModelOptions(mllm="openai:rule", base_url=server.url, sam=str(sam), device="cpu")


def test_the_command_offers_the_engines():
    assert OFFERED_ENGINES == ENGINES


def test_a_worker_of_a_cluster_asks_for_its_share_of_the_gpus(tmp_path):
    def share(gpus: float, workers: int, **options) -> float:
        settings = LabelSettings(tmp_path, ["cup"], tmp_path / "out", ModelOptions(**options))
        return gpus_per_worker(gpus, workers, settings)

    assert share(4, 8, preset="base") == 0.5 and share(8, 4, preset="base") == 1
    assert share(4, 8) == share(0, 8, preset="base") == share(4, 8, preset="base", device="cpu") == 0


def test_models_that_cannot_be_had_end_the_run_in_one_line(tmp_path):
    photos = write_textures(tmp_path / "photos", 2)
    settings = LabelSettings(photos, CLASSES, tmp_path / "out", ModelOptions(mllm=str(tmp_path / "none")))
    with pytest.raises(BadInput, match="none"):
        label_photos(settings)


def die(*arguments: object) -> None:
    """End a worker process as the system does when memory is short."""
    os._exit(9)


def test_a_worker_that_dies_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "work", die)
    settings = LabelSettings(write_textures(tmp_path / "photos", 2), CLASSES, tmp_path / "out", workers=2)
    with pytest.raises(BadInput, match="fewer --workers than 2"):
        label_photos(settings)


def test_workers_get_a_photo_each_and_another_when_they_are_done():
    photos = [Photo(Path(f"{k}.png"), f"{k}.png") for k in range(5)]
    ends = [multiprocessing.Pipe() for _ in range(2)]
    outcomes = engines._exchange([here for here, _ in ends], iter(photos))
    threads = [threading.Thread(target=answer, args=(there,)) for _, there in ends]
    for thread in threads:
        thread.start()
    assert sorted(outcome.name for outcome in outcomes) == [photo.name for photo in photos]
    for (here, _), thread in zip(ends, threads, strict=True):
        here.close()
        thread.join()


def answer(connection: Connection) -> None:
    """A worker that fails on one photo, and ends with the other end of its connection."""
    with contextlib.suppress(EOFError):
        while True:
            photo = connection.recv()
            connection.send(Outcome(photo.name, "is an empty file" if photo.name == "2.png" else None))


def test_what_a_worker_raises_ends_the_run():
    here, there = multiprocessing.Pipe()
    there.send(BadInput("there is no preset 'none'"))
    with pytest.raises(BadInput, match="there is no preset"):
        list(engines._exchange([here], iter([Photo(Path("a.png"), "a.png")])))


def test_ctrl_c_ends_the_workers_in_one_line(tmp_path):
    photos = write_textures(tmp_path / "photos", 4)
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from assistant.__main__ import main\n"
        "if __name__ == '__main__':\n"
        "    from assistant.label import engines; from tests.assistant.label.test_engines import hang\n"
        "    engines.work = hang; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "program.py").write_text(program)
    words = ["label", str(photos), "--classes", "cup", "--out", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + RUN_SECONDS
    while len(list(photos.glob("*.hangs"))) < 2 and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=RUN_SECONDS)  # until the workers, too, have let go of stderr
    assert process.returncode == 130 and errors.count("\n") == 1, errors


def hang(connection: Connection, settings: LabelSettings, rank: int, workers: int) -> None:
    """A worker that does not come to an end with its first photo."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    photo = connection.recv()
    photo.file.with_suffix(".hangs").touch()
    with contextlib.suppress(EOFError):
        connection.recv()


def command(photos: Path, out: Path, models: ModelOptions, *options: object) -> list[str]:
    words = [photos, "--classes", ", ".join(CLASSES), "--out", out, "--mllm", models.mllm]
    words += ["--base-url", models.base_url, "--sam", models.sam, "--device", "cpu", *options]
    return [sys.executable, "-m", "assistant", "label", *map(str, words)]


def kill_after(photos: int, words: list[str], out: Path) -> None:
    """Run a command until it has labelled so many photos, and kill it outright, but not its workers."""
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + RUN_SECONDS
    while len(list((out / ".results").rglob("[!.]*.json"))) < photos and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    end = time.monotonic() + WORKER_SECONDS
    with contextlib.suppress(ProcessLookupError):  # its workers end by themselves
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_was_killed_twice_gives_the_same_files(tmp_path, server_models, workers):
    photos = write_textures(tmp_path / "photos", 24)
    undisturbed = LabelSettings(photos, CLASSES, tmp_path / "whole", server_models)
    summary = label_photos(undisturbed)
    assert summary.photos == 24 and sum(summary.instances.values()) > 0
    words = command(photos, tmp_path / "out", server_models, "--workers", workers)
    kill_after(3, words, tmp_path / "out")
    kill_after(7, words, tmp_path / "out")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 0 and "24 photos labelled" in done.stdout, done.stderr[-3000:]
    assert set_files(tmp_path / "out") == set_files(tmp_path / "whole")


@pytest.mark.slow
def test_two_workers_of_a_cluster_give_the_same_files(tmp_path, server_models, cluster):
    photos = write_textures(tmp_path / "photos", 10)
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    plain = label_photos(LabelSettings(photos, CLASSES, tmp_path / "plain", server_models))
    on_ray = label_photos(
        LabelSettings(photos, CLASSES, tmp_path / "ray", server_models, workers=2, engine="ray")
    )
    assert plain.photos == on_ray.photos == 10 and list(on_ray.failures) == [os.fsdecode(b"caf\xe9.jpg")]
    assert set_files(tmp_path / "ray") == set_files(tmp_path / "plain")
    assert json.loads((tmp_path / "ray/instances.json").read_text())["annotations"]
