"""What `python -m assistant label` is told: the photos, the classes, the models, how many workers.

settings = LabelSettings(Path("photos"), read_classes("cup, spoon"), Path("labelled"))
label_photos(settings)         # of assistant.label.run
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from assistant.dialogue.class_list import read_class_names
from assistant.errors import BadInput
from assistant.files import read_text
from assistant.loading.names import EMBEDDED
from assistant.presets import ModelOptions
from assistant.weights import CHECKSUMS, POCKET, fingerprint, sha256_of

ENGINES = ("plain", "ray")
# Of what is made of a photo: another number labels the photos of earlier runs again.
LABELLER_VERSION = 1
# Options of the models that say where they run, not what they answer.
WHERE_IT_RUNS = ("device", "base_url")


@dataclass(frozen=True)
class LabelSettings:
    """Settings of one run.

    Attributes:
        photos: The folder of the photos.
        classes: Their names, in the order of their numbers.
        out: The folder to write to.
        models: The models that answer.
        workers: Number of processes, each with models of its own.
        engine: One of `ENGINES`: processes of this machine, or those of a Ray cluster.

    Raises:
        BadInput: There is no such folder, or a number is out of range.
    """

    photos: Path
    classes: list[str]
    out: Path
    models: ModelOptions = field(default_factory=ModelOptions)
    workers: int = 1
    engine: str = "plain"

    def __post_init__(self) -> None:
        if not self.photos.is_dir():
            raise BadInput(f"there is no folder of photos at {self.photos}")
        if self.workers < 1:
            raise BadInput(f"--workers must be at least 1, not {self.workers}")
        if self.engine not in ENGINES:
            raise BadInput(f"there is no engine {self.engine!r}; choose one of: {', '.join(ENGINES)}")

    def with_whole_paths(self) -> LabelSettings:
        """The same settings for a worker that runs in another folder."""
        models = replace(
            self.models,
            mllm=_whole(self.models.mllm),
            sam=_whole(self.models.sam),
            adapter=None if self.models.adapter is None else self.models.adapter.resolve(),
        )
        return replace(self, photos=self.photos.resolve(), out=self.out.resolve(), models=models)

    def key(self) -> str:
        """Names everything but the photo itself that decides what is made of a photo, as a sha256."""
        models = asdict(self.models)
        for name in WHERE_IT_RUNS:
            del models[name]
        for name in ("mllm", "sam", "adapter"):
            models[name] = _state(models[name])
        uses_pocket = self.models.is_embedded or self.models.sam_or_preset == EMBEDDED
        embedded = sha256_of(POCKET / CHECKSUMS) if uses_pocket else None
        parts = [LABELLER_VERSION, self.classes, models, embedded]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _whole(name: str | None) -> str | None:
    """The whole path of a model's folder or file; another name as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _state(name: str | Path | None) -> str | None:
    """The content of a model's folder or file; another name as it is."""
    if name is None:
        return None
    path = Path(name)
    if path.is_file():
        return sha256_of(path)
    return fingerprint(path) if path.is_dir() else str(name)


def read_classes(text: str) -> list[str]:
    """Read the value of --classes.

    Args:
        text: The path of a text file of names, or the names themselves, see `read_class_names`.

    Raises:
        BadInput: There is no such file, or it holds no classes.
    """
    if Path(text).suffix == ".txt" or Path(text).is_file():
        return read_class_names(read_text(text))
    return read_class_names(text)
