"""A connection to Ray: the cluster at RAY_ADDRESS, or one that is started on this machine for the run.

with connected_ray(settings.workers + 1, keeps_order=True) as ray: ...
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assistant.errors import BadInput

PROJECT_FOLDER = Path(__file__).parents[2]  # where workers import this package from
MAX_ERROR_LENGTH = 200  # characters of Ray's own message in ours


@contextlib.contextmanager
def connected_ray(cpu_count: int, keeps_order: bool) -> Iterator[Any]:
    """Connect to Ray.

    Args:
        cpu_count: Of a Ray that is started here: those of the workers and some to spare; with none free to
            read what they are to be given, all of them would wait for ever.
        keeps_order: Whether rows come out in the order in which they went in.

    Yields:
        The ray module.

    Raises:
        BadInput: Ray is not installed or does not start; or a worker raised it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BadInput(f"--engine ray needs Ray: pip install 'maskpick[scale]' ({error})") from None

    is_ours = not ray.is_initialized()
    if is_ours:
        _start(ray, cpu_count)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = keeps_order
    context.enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause = _bad_input_behind(error)
        if cause is None:
            raise
        raise BadInput(str(cause)) from None
    finally:
        if is_ours:
            ray.shutdown()


def _start(ray: Any, cpu_count: int) -> None:
    """Start Ray here, or connect to the cluster at RAY_ADDRESS."""
    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": cpu_count}
    try:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT_FOLDER)}},
            **here,
        )
    except Exception as error:  # of many kinds: no cluster at RAY_ADDRESS, a machine that is too busy
        ray.shutdown()
        raise BadInput(
            f"Ray does not start: {str(error).splitlines()[0][:MAX_ERROR_LENGTH]}; is the machine very busy, "
            "or is there no cluster at RAY_ADDRESS?"
        ) from None


def _bad_input_behind(error: BaseException | None) -> BadInput | None:
    """The BadInput that a worker raised, out of what Ray wrapped it in."""
    while error is not None and not isinstance(error, BadInput):
        error = getattr(error, "cause", None) or error.__cause__  # Ray's errors keep theirs in `cause`
    return error
