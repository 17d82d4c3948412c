"""Every documented command runs: `make test` runs the quick ones, `make test-docs` all of them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from assistant.pocket.wheels import backbone_state, smollm2_folder
from tests.docs.cases import CASES, DOUBLES, SNIPPETS
from tests.docs.extraction import commands_in, documents, fences, inline_commands_in, snippets_in, words_of
from tests.docs.walkthrough import Walkthrough
from tests.docs.world import ROOT, write_hub_cache

LANGUAGES = {"sh", "python", ""}  # of fences; "" for drawings
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path for path in documents(ROOT)}


def marked(entries: list) -> list:
    """The entries as pytest's parameters; those of a document run on one worker, in their order."""
    return [
        pytest.param(
            entry,
            id=f"{Path(entry.document).stem}: {entry.name}",
            marks=[pytest.mark.xdist_group(entry.document), *([] if entry.quick else [pytest.mark.slow])],
        )
        for entry in entries
    ]


@pytest.fixture(scope="session")
def walkthroughs(tmp_path_factory) -> dict[str, Walkthrough]:
    """One folder a document; nothing is written before its first command."""
    backbone_state()  # fetched once, so that no command says that it is fetching
    smollm2_folder()
    folder = tmp_path_factory.mktemp("docs")
    write_hub_cache(folder / "hub")
    return {
        document: Walkthrough(
            document,
            folder / path.stem,
            folder / "hub",
            {case.name: case for case in CASES if case.document == document},
        )
        for document, path in DOCUMENTS.items()
    }


@pytest.mark.parametrize("case", marked(CASES))
def test_command(case, walkthroughs):
    walkthroughs[case.document].run(case)


@pytest.mark.parametrize("snippet", marked(SNIPPETS))
def test_snippet(snippet, walkthroughs):
    texts = [fence.text for fence in snippets_in(DOCUMENTS[snippet.document])]
    (text,) = [text for text in texts if text.splitlines()[0] == snippet.first_line]
    walkthroughs[snippet.document].run_snippet(snippet, text)


def test_every_command_has_one_entry_and_every_entry_a_command():
    documented = [
        (document, command.text) for document, path in DOCUMENTS.items() for command in commands_in(path)
    ]
    tested = [(case.document, case.command) for case in CASES]
    assert Counter(documented) == Counter(tested)
    names = Counter((case.document, case.name) for case in CASES)
    assert max(names.values()) == 1


def test_every_snippet_has_one_entry_and_every_entry_a_snippet():
    documented = [
        (document, fence.text.splitlines()[0])
        for document, path in DOCUMENTS.items()
        for fence in snippets_in(path)
    ]
    assert Counter(documented) == Counter((snippet.document, snippet.first_line) for snippet in SNIPPETS)


def test_no_command_hides_in_a_fence_of_another_language():
    for path in DOCUMENTS.values():
        for fence in fences(path):
            assert fence.language in LANGUAGES, f"{path.name}: {fence.language}"
            assert fence.language or "python -m" not in fence.text, f"{path.name}: line {fence.line}"


def test_what_does_not_run_as_documented_says_why():
    used = {reason for case in CASES for reason in case.doubles}
    assert used == DOUBLES.keys()


def test_a_quick_command_needs_quick_ones_only():
    quick = {(case.document, case.name) for case in CASES if case.quick}
    needed = {(case.document, name) for case in CASES if case.quick for name in case.needs}
    assert needed <= quick


@pytest.mark.parametrize(
    "command",
    dict.fromkeys(
        command for path in DOCUMENTS.values() for command in inline_commands_in(path) if " --" in command
    ),
)
def test_inline_commands_have_their_options(command):
    words = words_of(command)
    first = next(k for k, word in enumerate(words) if word.startswith("--"))
    help_text = subprocess.run(
        [sys.executable, *words[1:first], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for word in words:
        assert not word.startswith("--") or word in help_text, word
