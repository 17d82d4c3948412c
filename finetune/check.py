"""Everything that is wrong with records, before anything is loaded."""

import sys
from pathlib import Path

from assistant.errors import BadInput
from assistant.record import check_records, image_path, stream_records

SHOWN = 200  # troubles at most


def must_exist(*files: Path | None) -> None:
    """BadInput for the first of the files or folders that is not there; None is none."""
    for file in files:
        if file is not None and not file.exists():
            raise BadInput(f"there is no {file}")


def check_files(files: list[Path]) -> None:
    """BadInput after printing every trouble of every file, one `file:line: trouble` each."""
    troubles = []
    for file in files:
        try:
            troubles += check_records(file)
        except BadInput as error:
            troubles.append(str(error))
    for trouble in troubles[:SHOWN]:
        print(trouble, file=sys.stderr)
    if len(troubles) > SHOWN:
        print(f"... and {len(troubles) - SHOWN} more", file=sys.stderr)
    if troubles:
        raise BadInput(
            f"{len(troubles)} trouble{'s' * (len(troubles) > 1)} in the records, listed above; correct or "
            "remove those lines"
        )


def shared_pictures(data: list[Path], val: Path) -> int:
    """How many pictures of `val` are learned from as well: a score on them says little."""
    names = {image_path(r, f).resolve() for f in data for r in stream_records(f)}
    return len(names & {image_path(r, val).resolve() for r in stream_records(val)})
