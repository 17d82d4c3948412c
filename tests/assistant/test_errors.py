"""How a command ends."""

import subprocess
import sys


def test_a_reader_that_has_had_enough_ends_a_command_quietly():
    code = (
        "import sys; from assistant.errors import exit_code; "
        "sys.exit(exit_code(lambda: [print('line', k) for k in range(100_000)] and None))"
    )
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -n 2; echo ${{PIPESTATUS[0]}}',
        shell=True,
        text=True,
        capture_output=True,
        executable="/bin/bash",
    )
    assert done.stdout.split("\n")[:3] == ["line 0", "line 1", "141"] and done.stderr == ""
