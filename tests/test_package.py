"""What a user installs: the wheel holds every file of the packages, and each of its modules imports."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("assistant", "datagen", "eval", "finetune")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")
# Each kind of data file that the packages read at run time, and one that must be among them.
DATA_FILES = (
    "assistant/pocket/sam.safetensors",
    "assistant/pocket/lora/adapter_model.safetensors",
    "assistant/pocket/checksums.json",
    "assistant/pocket/README.md",
    "assistant/page/canvas.js",
    "assistant/page/page.css",
    "assistant/label/sheet.html",
    "assistant/py.typed",
    "datagen/composer/templates.toml",
    "datagen/composer/phrases/things/food.toml",
    "finetune/configs/fsdp2.yaml",
    "finetune/pocket/rehearsal.npz",
)
IMPORT_ALL = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for file in sorted(root.rglob("*.py")):
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__) == file, module.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this tree, built without a network from a copy, so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*build, "--wheel-dir", str(folder), str(source)], check=True, capture_output=True, text=True
    )
    (built,) = folder.glob("maskpick-*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    expected = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == expected | {"app.py"}
    assert shipped >= set(DATA_FILES)


def test_the_wheel_has_the_console_script(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert wheel.read(name).decode().split() == [
        "[console_scripts]",
        "maskpick",
        "=",
        "assistant.commands.shell:main",
    ]


def test_every_module_imports_from_the_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", IMPORT_ALL, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
