"""Checks of a command's input files, before any model is loaded."""

import sys
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import check_records, image_path, stream_records

MAX_FAULTS_SHOWN = 200  # lines that still can be read through


def must_exist(*files: Path | None) -> None:
    """Raise BadInput for the first of the files or folders that does not exist.

    None stands for an option that was left out.
    """
    for file in files:
        if file is not None and not file.exists():
            raise BadInput(f"there is no {file}")


def check_files(files: list[Path]) -> None:
    """Check records files and print every fault as `file:line: fault`.

    Raises:
        BadInput: There is at least one fault.
    """
    faults = []
    for file in files:
        try:
            faults += check_records(file)
        except BadInput as error:
            faults.append(str(error))
    for fault in faults[:MAX_FAULTS_SHOWN]:
        print(fault, file=sys.stderr)
    if len(faults) > MAX_FAULTS_SHOWN:
        print(f"... and {len(faults) - MAX_FAULTS_SHOWN} more", file=sys.stderr)
    if faults:
        raise BadInput(
            f"{len(faults)} fault{'s' * (len(faults) > 1)} in the records, listed "
            "above; correct or remove those lines"
        )


def count_images(files: list[Path]) -> int:
    """The number of images of some records files."""
    return len({image_path(record, file).resolve() for file in files for record in stream_records(file)})


def count_shared_images(train: list[Path], val: Path) -> int:
    """The number of images of the records file `val` that the records files `train` contain too."""
    trained = {image_path(r, f).resolve() for f in train for r in stream_records(f)}
    return len(trained & {image_path(r, val).resolve() for r in stream_records(val)})
