"""The direction of imports: there are no circles, and no package or layer imports one above it.

Imports inside functions count as those at the top of a module do. Those under TYPE_CHECKING do not: they
never run.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("assistant", "datagen", "eval", "finetune")
MOST_TOP_MODULES = 14

# What of our own each package may import, besides itself.
MAY_IMPORT = {
    "assistant": set(),
    "datagen": {"assistant"},
    "finetune": {"assistant"},
    "eval": {"assistant", "finetune"},
    "app": {"assistant"},
}


@dataclass(frozen=True)
class Import:
    """One import of a module of ours by another. runs: not for type checkers alone."""

    importer: str
    imported: str
    runs: bool


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(tree: ast.AST, runs: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement under a node, and whether it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, runs
        elif is_type_checking(node):
            for child in node.body:
                yield from import_nodes(ast.Module([child], []), False)
            for child in node.orelse:
                yield from import_nodes(ast.Module([child], []), runs)
        else:
            yield from import_nodes(node, runs)


@cache
def modules() -> dict[str, Path]:
    """{module name: file} of everything that is shipped."""
    files = [ROOT / "app.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    return {name_of(file): file for file in files}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(name: str) -> Iterator[Import]:
    """The modules of ours that a module imports."""
    known = modules()
    for node, runs in import_nodes(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            # `from package import module` imports that module, `from module import name` the one it names.
            wanted = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                for alias in node.names
            ]
        for other in dict.fromkeys(wanted):
            if other in known and other != name:
                yield Import(name, other, runs)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name in sorted(modules()) for found in imported_by(name))


def test_imports_have_no_circles():
    after = {name: {i.imported for i in all_imports() if i.importer == name and i.runs} for name in modules()}
    while free := [name for name, others in after.items() if not others]:
        for name in free:
            del after[name]
        for others in after.values():
            others.difference_update(free)
    assert not after, f"these import each other, or what does: {sorted(after)}"


def test_packages_import_in_one_direction():
    wrong = []
    for found in all_imports():
        importer, imported = found.importer.split(".")[0], found.imported.split(".")[0]
        if importer != imported and imported not in MAY_IMPORT[importer]:
            wrong.append(f"{found.importer} imports {found.imported}")
    assert not wrong
