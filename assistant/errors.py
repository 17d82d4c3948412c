"""The one error that a user's input raises, and how every command ends on it."""

import os
import sys
from collections.abc import Callable


class BadInput(ValueError):
    """What was given cannot be used; the message is one line that says what to do about it."""


def exit_code(run: Callable[[], object]) -> int:
    """Run a command: 0; 2 after its BadInput in one line on stderr; 130 when it was interrupted; 141 when what read its
    output (`| head`) had enough of it."""
    try:
        run()
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it ends
        return 141
    return 0
