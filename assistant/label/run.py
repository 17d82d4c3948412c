"""Labels a folder of photos with a list of classes, and writes them as one set.

    summary = label_photos(LabelSettings(Path("photos"), ["cup", "spoon"], Path("labelled")))
    summary.instances["cup"], summary.failures

A photo that an earlier run has labelled in the same way is not labelled again, so that a run that was killed
goes on where it was, and gives the files that it would have given undisturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from assistant.errors import BadInput
from assistant.files import lock_folder
from assistant.label.engines import outcomes
from assistant.label.labeller import Outcome, is_labelled
from assistant.label.output import LabelSummary, write_set
from assistant.label.photos import Photo, photos_in
from assistant.label.settings import LabelSettings

# So many photos after another that the models fail on are a fault of the models, or of their server.
MAX_FAILURES_IN_A_ROW = 10


def label_photos(settings: LabelSettings) -> LabelSummary:
    """Label the photos of a folder.

    Args:
        settings: What to do.

    Returns:
        What was labelled, and what was not.

    Raises:
        BadInput: There are no photos, none can be labelled, the models cannot be had, or another run writes
            to the folder.
    """
    with lock_folder(settings.out):
        photos = photos_in(settings.photos, settings.out)
        key = settings.key()
        waiting = [photo for photo in photos if not is_labelled(photo, key, settings.out)]
        failures = _label(waiting, len(photos), settings)
        if len(failures) == len(photos):
            raise BadInput(
                f"none of {len(photos)} photos in {settings.photos} can be labelled; the first: "
                f"{next(iter(failures.values()))}"
            )
        return write_set([photo for photo in photos if photo.name not in failures], failures, settings)


def _label(waiting: list[Photo], count: int, settings: LabelSettings) -> dict[str, str]:
    """Label the photos that wait, of `count` in all. Returns {name: error} of those that cannot be."""
    progress = tqdm(
        stopped_by_the_models(outcomes(waiting, settings)),
        total=count,
        initial=count - len(waiting),
        unit="photo",
        desc="labelling",
        disable=None,
    )
    errors = {outcome.name: outcome.error for outcome in progress if outcome.error is not None}
    return {photo.name: errors[photo.name] for photo in waiting if photo.name in errors}


def stopped_by_the_models(found: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same outcomes. Raises BadInput once the models have failed on many photos in a row."""
    in_a_row = 0
    for outcome in found:
        if outcome.error is not None and outcome.was_opened:
            in_a_row += 1
        elif outcome.error is None:
            in_a_row = 0
        if in_a_row == MAX_FAILURES_IN_A_ROW:
            raise BadInput(
                f"stopped after {in_a_row} photos in a row; what is finished is kept: {outcome.error}"
            )
        yield outcome
