"""The direction of imports: there are no circles, and no package or layer imports one above it.

Imports inside functions count as those at the top of a module do. Those under TYPE_CHECKING do not: they
never run.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("assistant", "datagen", "eval", "finetune")
MAX_TOP_MODULES = 14  # of assistant/, besides its __init__ and py.typed

# What of our own each package may import, besides itself. eval measures what tuning costs and trains.
MAY_IMPORT = {
    "assistant": set(),
    "datagen": {"assistant"},
    "finetune": {"assistant"},
    "eval": {"assistant", "finetune"},
    "app": {"assistant"},
}

# The folders and modules of assistant/, highest first. Each may import those below it.
LAYERS = (
    "assistant.__main__",
    "assistant.commands",
    "assistant.cli",
    "assistant.page",
    "assistant.label",
    "assistant",
    "assistant.scene",
    "assistant.presets",
    "assistant.loading",
    "assistant.few_shot",
    "assistant.pocket",
    "assistant.mllm",
    "assistant.attention",
    "assistant.dialogue",
    "assistant.pipeline",
    "assistant.answer",
    "assistant.export",
    "assistant.record",
    "assistant.sam",
    "assistant.weights",
    "assistant.grammar",
    "assistant.mask_images",
    "assistant.images",
    "assistant.files",
    "assistant.errors",
    "assistant.interruption",
)
COMMAND_LINE = {"assistant.cli", "assistant.commands", "assistant.__main__"}  # what may know argparse


@cache
def modules() -> dict[str, Path]:
    """{name: file} of every module that is shipped."""
    files = [ROOT / "app.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    return {name_of(file): file for file in files}


def name_of(file: Path) -> str:
    """ "assistant/sam/mask_ops.py" -> "assistant.sam.mask_ops"; a package has its folder's name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def syntax_tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import statement under a node that runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.orelse:
                yield from import_statements(statement)
        else:
            yield from import_statements(child)


def names_imported(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports, third-party ones too."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    assert statement.level == 0, f"a relative import in line {statement.lineno}"
    # `from package import module` imports that module, `from module import name` the one it names.
    inside = [f"{statement.module}.{alias.name}" for alias in statement.names]
    return [name if name in modules() else str(statement.module) for name in inside]


@cache
def imports() -> dict[str, set[str]]:
    """{module: modules of ours that it imports}."""
    return {
        name: {
            other
            for statement in import_statements(syntax_tree(name))
            for other in names_imported(statement)
            if other in modules() and other != name
        }
        for name in sorted(modules())
    }


def layer_of(name: str) -> str:
    """The folder or module of assistant/ that a module belongs to."""
    return ".".join(name.split(".")[:2])


def test_imports_have_no_circles():
    rest = {name: set(others) for name, others in imports().items()}
    while outer := [n for n, others in rest.items() if not others or not any(n in o for o in rest.values())]:
        for name in outer:  # imports nothing that is left, or is imported by nothing that is left
            del rest[name]
        for others in rest.values():
            others.difference_update(outer)
    assert not rest, "these import each other"


def test_packages_import_in_one_direction():
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if other.split(".")[0] not in MAY_IMPORT[name.split(".")[0]] | {name.split(".")[0]}
    ]
    assert not wrong


def test_layers_of_assistant_import_only_lower_ones():
    height = {layer: -k for k, layer in enumerate(LAYERS)}
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in sorted(others)
        if name.startswith("assistant")
        and layer_of(name) != layer_of(other)
        and height[layer_of(other)] > height[layer_of(name)]
    ]
    assert not wrong


def test_every_part_of_assistant_has_its_layer():
    parts = {layer_of(name) for name in modules() if name.startswith("assistant")}
    assert parts == set(LAYERS)


def test_the_top_of_assistant_stays_small():
    top = [file.name for file in (ROOT / "assistant").glob("*.py") if file.name != "__init__.py"]
    assert len(top) <= MAX_TOP_MODULES, sorted(top)


def test_only_the_command_line_of_assistant_knows_argparse():
    knowing = {
        layer_of(name)
        for name in modules()
        if name.startswith("assistant")
        for node in ast.walk(syntax_tree(name))
        if isinstance(node, ast.Import | ast.ImportFrom) and "argparse" in names_imported(node)
    }
    assert knowing <= COMMAND_LINE
