"""What labels the photos: this process, several of this machine, or those of a Ray cluster.

    for outcome in outcomes(photos, settings): ...

Whatever labels a photo writes its files as well: only how it went comes back, in the photos' order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from assistant.errors import BadInput
from assistant.label.cluster import connected_ray
from assistant.label.labeller import Labeller, Outcome
from assistant.label.photos import Photo
from assistant.label.settings import LabelSettings
from assistant.scene import Assistant

PHOTOS_PER_BATCH = 4  # that a worker of a cluster takes at a time
SPARE_CPUS = 1  # of a Ray that is started here, beside the workers': to read what they are given

_labeller: Labeller | None = None  # of a worker process


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
    workers = min(settings.workers, len(photos))
    number: Synchronized[int] = spawning.Value("i", 0)
    pool = ProcessPoolExecutor(workers, spawning, _start_worker, (number, workers))
    try:
        yield from pool.map(_label, [settings] * len(photos), photos)
    except BrokenProcessPool:
        raise BadInput(
            f"a worker has ended, perhaps for want of memory: give fewer --workers than {workers} and run "
            "the same command again; what is finished is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(number: Synchronized[int], workers: int) -> None:
    """Prepare a worker process: its share of the machine, and an end with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with number.get_lock():
        rank = number.value
        number.value += 1
    import torch

    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(rank % torch.cuda.device_count())  # see presets.pick_device
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _label(settings: LabelSettings, photo: Photo) -> Outcome:
    """Label one photo in a worker process, which loads its models for the first one."""
    global _labeller
    if _labeller is None:
        _labeller = load_labeller(settings)
    return _labeller.label(photo)


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
