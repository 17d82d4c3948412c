"""Files that are read in one way, written whole or not at all, and the cache folder.

rows = read_json(folder / "instances.json")              # UTF-8, with or without a byte order mark
with replace_whole(folder / "result.json") as path:      # a temporary file that takes its place at the end
    path.write_text(text)
with lock_folder(out):                                    # so that no second run writes into it meanwhile
    run()
folder = build_once("SmolLM2", convert, is_intact)        # in the cache, by one process while others wait
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from assistant.errors import DISK_FULL, ROOM_ADVICE, BadInput, NotWritten

LOCK_FILE = ".lock"  # in a folder that a run writes to; the process number follows in one of several
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

MAX_REASON_LENGTH = 80  # characters of the JSON reader's message that an error repeats


# ---------------------------------------------------------------------------------- reading


def read_text(path: str | Path, fallback: str | None = None) -> str:
    """The content of a text file in UTF-8, with or without a byte order mark, whatever the locale is.

    Args:
        path: The file.
        fallback: Another encoding, tried where the file is not in UTF-8.

    Raises:
        BadInput: It cannot be read, or is in another encoding.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    return decode_text(content, path, fallback)


def decode_text(content: bytes, path: str | Path, fallback: str | None = None) -> str:
    """As `read_text`, where the content of the file has been read already."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            if fallback is not None:
                return content.decode(fallback)
        except UnicodeDecodeError:
            pass  # what is wrong is said of UTF-8
        raise BadInput(
            f"{path} is not text in UTF-8 (byte {error.start + 1} is not): save it in UTF-8"
        ) from None


def read_json(path: str | Path, fallback: str | None = None) -> Any:
    """The value that a JSON file holds; the file is read as by `read_text`.

    Raises:
        BadInput: It cannot be read, or is not JSON.
    """
    text = read_text(path, fallback)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
        raise BadInput(f"{path} is not JSON ({reason})") from None


# ---------------------------------------------------------------------------------- writing


def make_folder(folder: Path) -> None:
    """Create a folder and its parents where they are missing. Raises BadInput if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        advice = ROOM_ADVICE if error.errno in DISK_FULL else "choose another folder"
        raise BadInput(f"cannot write to {folder} ({error.strerror or error}): {advice}") from None


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep a folder to this run, until the block or the process ends, however it ends.

    The processes of one run, which a launcher has numbered (RANK), do not shut each other out.

    Args:
        folder: The folder; it is created where it is missing.

    Raises:
        BadInput: Another run writes to the folder, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    rank = int(os.environ.get("RANK") or 0)
    file = folder / (f"{LOCK_FILE}.{rank}" if rank else LOCK_FILE)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(
            f"another run writes to {folder}: wait until it has ended, or choose another folder"
        ) from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is locked; a killed run leaves its file to the next
        lock.release()


@contextlib.contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Write a file so that it is never seen half-written.

    Args:
        path: The file. Its folder is created where it is missing.

    Yields:
        A temporary path in the same folder. It takes the place of `path` when the block ends without an
        error, and is removed otherwise.

    Raises:
        NotWritten: The system does not let it be written. What was at `path` is still there.
    """
    path = Path(path)
    with _write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    temporary = Path(name)
    try:
        with _write_errors(path, temporary):
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are the user's alone
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _write_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn the errors of writing a file into NotWritten.

    Args:
        path: The file.
        temporary: Where it is written meanwhile. Errors about other files are raised as they are.
    """
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        if temporary is not None and error.filename not in (None, str(temporary)):
            raise
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):  # of the folders above it
            reason = "a file is in the place of its folder"
        raise NotWritten(error.errno or 0, reason, str(path)) from error


def _umask() -> int:
    """The permissions that new files do not get; the system reports them only when they are set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """$MASKPICK_CACHE or ~/.cache/maskpick, created where it is missing. Raises BadInput if it cannot be."""
    folder = Path(os.environ.get("MASKPICK_CACHE") or "~/.cache/maskpick").expanduser()
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_once(name: str, build: Callable[[Path], Path], is_intact: Callable[[Path], bool]) -> Path:
    """The file or folder `name` in the cache, built where it is missing or damaged.

    It is built beside its place and moved there when it is whole. One process builds it while others wait.

    Args:
        name: In the cache folder.
        build: Called with an empty folder; builds the file or folder in there and returns its path.
        is_intact: Whether the file or folder at a path is there and whole.

    Returns:
        Its path.

    Raises:
        BadInput: The cache cannot be written to, or is full.
    """
    from filelock import FileLock

    folder = cache_folder()
    final, work = folder / name, folder / f".{name}.partial"
    if is_intact(final):
        return final
    with _disk_errors(folder), FileLock(folder / f".{name}.lock"):
        if is_intact(final):  # another process was faster
            return final
        try:
            _remove(work)  # left by a process that was killed
            work.mkdir()
            built = build(work)
            _remove(final)
            os.replace(built, final)
        finally:
            _remove(work)
    return final


def disk_full_message(folder: Path) -> str:
    """What to tell a user whose cache is full."""
    return (
        f"no space left in the cache {folder}: free 600 MB, or set MASKPICK_CACHE to a folder with more space"
    )


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while writing to the cache into BadInput."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise BadInput(disk_full_message(folder)) from None
        if error.errno in NOT_WRITABLE:
            raise BadInput(
                f"cannot write to the cache {folder} ({error.strerror}): set MASKPICK_CACHE to another folder"
            ) from None
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
