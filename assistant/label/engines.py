"""What labels the photos: this process, several of this machine, or those of a Ray cluster.

    for outcome in outcomes(photos, settings): ...

Whatever labels a photo writes its files as well: only how it went comes back.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from assistant.errors import BadInput, NotWritten
from assistant.label.cluster import connected_ray
from assistant.label.labeller import Labeller, Outcome
from assistant.label.photos import Photo
from assistant.label.settings import LabelSettings
from assistant.scene import Assistant

PHOTOS_PER_BATCH = 4  # that a worker of a cluster takes at a time
SECONDS_TO_END = 30  # that a worker has once there are no more photos
SPARE_CPUS = 1  # of a Ray that is started here, beside the workers': to read what they are given


def outcomes(photos: Sequence[Photo], settings: LabelSettings) -> Iterator[Outcome]:
    """Label photos, with the workers that the settings name.

    Raises:
        BadInput: The models or Ray cannot be had, or a worker has ended.
    """
    if not photos:
        return
    if settings.engine == "ray":
        yield from _on_ray(photos, settings.with_whole_paths())
    elif settings.workers > 1:
        yield from _in_processes(photos, settings)
    else:
        labeller = load_labeller(settings)
        yield from map(labeller.label, photos)


def load_labeller(settings: LabelSettings) -> Labeller:
    """A labeller on the models that the settings name."""
    return Labeller(settings, Assistant(*settings.models.load()))


# ---------------------------------------------------------------------------------- processes


def _in_processes(photos: Sequence[Photo], settings: LabelSettings) -> Iterator[Outcome]:
    """Label photos in several processes of this machine, each with models of its own."""
    spawning = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    count = min(settings.workers, len(photos))
    processes = []
    try:
        connections = []
        for rank in range(count):
            connection, other_end = spawning.Pipe()
            process = spawning.Process(target=work, args=(other_end, settings, rank, count), daemon=True)
            process.start()
            processes.append(process)
            other_end.close()  # so that this end tells when the worker has ended
            connections.append(connection)
        yield from _exchange(connections, iter(photos))
        for connection, process in zip(connections, processes, strict=True):
            with contextlib.suppress(ConnectionError):
                connection.send(None)  # that is all: a worker that ends by itself leaves nothing behind
            process.join(SECONDS_TO_END)
    except (EOFError, ConnectionError):
        raise BadInput(
            f"a worker has ended, perhaps for want of memory: give fewer --workers than {count} and run "
            "the same command again; what is finished is kept"
        ) from None
    finally:
        for process in processes:
            process.terminate()


def _exchange(connections: list[Connection], photos: Iterator[Photo]) -> Iterator[Outcome]:
    """Give each worker a photo at a time; yields what comes back, as it comes.

    Raises EOFError or ConnectionError where a worker has ended, and what a worker has raised.
    """
    busy = []
    for connection, photo in zip(connections, photos, strict=False):
        connection.send(photo)
        busy.append(connection)
    while busy:
        ready = wait(busy)
        for connection in [each for each in busy if each in ready]:
            outcome = connection.recv()
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
            following = next(photos, None)
            if following is None:
                busy.remove(connection)
            else:
                connection.send(following)


def work(connection: Connection, settings: LabelSettings, rank: int, workers: int) -> None:
    """Label photos in a worker process, until the process that started it needs no more or has ended.

    Args:
        connection: Photos come in, None at the end; their outcomes go out, or an error that ends the run.
        settings: Of the run.
        rank: Number of the worker, from 0.
        workers: Number of workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started it
    _take_share(rank, workers)
    with contextlib.suppress(EOFError, ConnectionError):  # that process has ended
        try:
            labeller = load_labeller(settings)
            while (photo := connection.recv()) and _is_needed():  # it may have been sent before a kill
                connection.send(labeller.label(photo))
        except (BadInput, NotWritten) as error:
            connection.send(error)
            while True:  # another photo may be on its way, which must not find this end closed
                connection.recv()


def _is_needed() -> bool:
    """Whether the process that started this one still runs."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def _take_share(rank: int, workers: int) -> None:
    """Leave the other workers their shares of the machine's GPUs and cores."""
    import torch

    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(
            rank % torch.cuda.device_count()
        )  # see assistant.loading.devices.pick_device
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


# ---------------------------------------------------------------------------------- a cluster


class RayLabeller:
    """A worker of a cluster.

    Args:
        settings: Of the run, with whole paths: the photos and the output are on a disk that all machines
            share.
    """

    def __init__(self, settings: LabelSettings):
        self.settings = settings
        self.labeller: Labeller | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Label a batch of photos.

        Args:
            batch: {"photo": [path, name] of each photo, as JSON}.

        Returns:
            "outcome": the fields of each photo's `Outcome`, as JSON.
        """
        if self.labeller is None:
            self.labeller = load_labeller(self.settings)
        places = [json.loads(text) for text in batch["photo"]]
        found = [self.labeller.label(Photo(Path(file), name)) for file, name in places]
        return {"outcome": [json.dumps(asdict(outcome)) for outcome in found]}


def _on_ray(photos: Sequence[Photo], settings: LabelSettings) -> Iterator[Outcome]:
    """Label photos on a Ray cluster."""
    workers = min(settings.workers, len(photos))
    rows = [{"photo": json.dumps([str(photo.file.absolute()), photo.name])} for photo in photos]
    with connected_ray(workers + SPARE_CPUS, keeps_order=True) as ray:
        gpus = gpus_per_worker(ray.cluster_resources().get("GPU", 0), workers, settings)
        items = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // PHOTOS_PER_BATCH))
        labelled = items.map_batches(
            RayLabeller,
            batch_size=PHOTOS_PER_BATCH,
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            **({"num_gpus": gpus} if gpus else {}),
        )
        for row in labelled.iter_rows():
            yield Outcome(**json.loads(row["outcome"]))


def gpus_per_worker(gpus: float, workers: int, settings: LabelSettings) -> float:
    """The share of a GPU to ask Ray for, which hides all GPUs from a worker that asks for none.

    Args:
        gpus: Number of GPUs of the cluster.
        workers: Number of workers.
        settings: Of the run.
    """
    models = settings.models
    if not gpus or models.is_embedded or (models.device or "").startswith("cpu"):
        return 0.0
    return min(1.0, gpus / workers)
