"""The one error that a user's input raises, and how a command ends on it.

raise BadInput("no image at photo.jpg")
sys.exit(exit_code(run))                     # 2 after a BadInput, which is printed as one line
"""

import os
import sys
from collections.abc import Callable

# Exit codes: 2 is argparse's own for bad input; a signal's number is added to 128, as shells do.
BAD_INPUT_CODE = 2
INTERRUPTED_CODE = 130
BROKEN_PIPE_CODE = 141


class BadInput(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong and what to do."""


def exit_code(run: Callable[[], object]) -> int:
    """Run a command.

    Args:
        run: The command.

    Returns:
        0; 2 after a BadInput, which is printed as one line on stderr; 130 after an interruption (Ctrl-C); 141
        after the reader of its output closed the pipe, as `| head` does.
    """
    try:
        run()
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return INTERRUPTED_CODE
    except BrokenPipeError:
        # Python flushes stdout once more as it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_CODE
    return 0
