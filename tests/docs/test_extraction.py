"""What is taken from the documents as a command."""

from tests.docs.extraction import (
    Command,
    Fence,
    commands_in,
    expand_braces,
    inline_commands_in,
    snippets_in,
    words_of,
)

DOCUMENT = """# Title

```sh
python -m one --a 1      # with a comment
# a line of its own
python -m two "a # in quotes" \\
    --b 2 \\
    --c 3    # and the end

FLAG=1 python -m three
```

As `python -m four --d
5` says, and `not a command`.

```python
import one  # kept
```

```
python -m not_a_command
```
"""


def test_commands_are_joined_and_freed_of_comments(tmp_path):
    file = tmp_path / "a.md"
    file.write_text(DOCUMENT)
    assert commands_in(file) == [
        Command(4, "python -m one --a 1"),
        Command(6, 'python -m two "a # in quotes" --b 2 --c 3'),
        Command(10, "FLAG=1 python -m three"),
    ]
    assert snippets_in(file) == [Fence("python", 17, "import one  # kept\n")]
    assert inline_commands_in(file) == ["python -m four --d 5"]


def test_braces_are_expanded_as_a_shell_does():
    assert expand_braces("runs/{a,b}/{c,d}.e") == ["runs/a/c.e", "runs/a/d.e", "runs/b/c.e", "runs/b/d.e"]
    assert expand_braces("runs/ref-{fold}") == ["runs/ref-{fold}"]
    assert words_of("""x {a,b} "{a,b}" '{"k": 2}'""") == ["x", "a", "b", "{a,b}", '{"k": 2}']
