"""`python -m finetune` for general models: learning end to end, resuming after a kill, two processes, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assistant import presets
from assistant.errors import BadInput
from assistant.grammar import Turn, parse
from assistant.mllm.local_model import MultimodalLLM
from assistant.mllm.trained import load_trained_pipeline
from assistant.record import read_records, write_records
from assistant.scene import Assistant
from finetune import __main__ as command
from finetune import tune
from finetune.mllm import deepspeed as zero
from finetune.mllm import train as general
from finetune.mllm.mixture import Mixture, parse_source, relist
from finetune.region_cache import RegionCache
from tests.helpers import rectangles
from tests.helpers.tiny_models import tiny_llava, tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_smolvlm

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return rectangles.write_world(folder, 6), rectangles.write_world(folder, 3, 1, "val")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny_qwen3_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(autouse=True)
def opener(monkeypatch):
    see_rectangles(monkeypatch)


def see_rectangles(patch) -> None:
    patch.setattr(
        presets, "load_image_opener", lambda sam, device: (rectangles.RectangleOpener(), "rectangles")
    )
    patch.setattr(presets, "opener_key", lambda sam: "rectangles")
    patch.setattr(general, "ANSWER", 6)  # a random model goes on and on


def words(mllm, data, out, *more) -> list[str]:
    return [
        "--mllm",
        str(mllm),
        "--sam",
        "none",
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--batch",
        "4",
        "--micro",
        "2",
        "--lr",
        "5e-3",
        "--selector-lr",
        "3e-3",
        *more,
    ]


def tensors(out: Path) -> dict:
    return load_file(out / "heads.safetensors") | load_file(out / "lora/adapter_model.safetensors")


def test_a_tiny_model_learns_to_pick_and_to_say_what_is_not_there(qwen, tmp_path):
    out, world = tmp_path / "out", [rectangles.write_world(tmp_path, 3)]
    assert (
        command.main(
            words(
                qwen,
                world[0],
                out,
                "--val",
                str(world[0]),
                "--max-steps",
                "130",
                "--save-every",
                "65",
                "--micro",
                "4",
                "--rank",
                "32",
                "--alpha",
                "64",
                "--dropout",
                "0",
                "--selector-lr",
                "6e-3",
                "--weights",
                "presence=3",
            )
        )
        == 0
    )
    assistant = Assistant(
        load_trained_pipeline(MultimodalLLM.load(qwen), rectangles.RectangleOpener(), out), {}
    )
    records, scenes, right = read_records(world[0]), {}, []
    for record in records:
        scene = scenes.setdefault(record.image, assistant.open(world[0].parent / record.image))
        scene.reset()
        answer, target = scene.ask(record.question), record.targets[0]
        there = [t for t in answer.targets if t.present]
        right.append(
            [t.phrase for t in answer.targets] == [target.phrase]
            and bool(there) == (target.rle is not None)
            and (
                not there
                or bool((there[0].mask == rectangles.square(there[0].proposals[0])).all())
                and there[0].mask.sum() == 576
                and scene.image[there[0].mask].std(0).max() == 0
            )
        )
    assert np.mean(right) > 0.7  # by chance it would name one of three, say one of two, and pick one of four
    report = (out / "report.html").read_text()
    assert report.count("<svg") >= 5 and report.count("where is the") == 9 and "step 130" in report
    steps = [json.loads(line)["step"] for line in (out / "val.jsonl").read_text().splitlines()]
    assert steps == [0, 65, 130]


@pytest.mark.parametrize("build", [tiny_qwen2_5_vl, tiny_smolvlm, tiny_llava])
def test_the_same_recipe_trains_other_models(build, world, tmp_path):
    """Several turns, two pictures in a conversation, a merged model that needs no LoRA any more."""
    mllm, out, merged = build(tmp_path / "mllm"), tmp_path / "out", tmp_path / "merged"
    assert (
        command.main(
            words(
                mllm,
                world[0],
                out,
                "--max-steps",
                "12",
                "--pictures",
                "2",
                "--log-every",
                "4",
                "--warm-up",
                "2",
            )
        )
        == 0
    )
    losses = [json.loads(line)["text"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    assert command.main(["merge", "--adapter", str(out), "--out", str(merged), "--dtype", "float32"]) == 0
    image = np.array(read_image(world[0].parent / "train0.png"))
    replies = []
    for model, adapter in ((mllm, out), (merged, merged)):
        loaded = load_trained_pipeline(MultimodalLLM.load(model), rectangles.RectangleOpener(), adapter)
        view = loaded.opener.open(image)
        states = torch.randn(2, loaded.selector.config["state_dim"], generator=torch.manual_seed(0))
        replies.append(
            (
                loaded.llm.reply([Turn("which one?", images=[image])], max_new_tokens=12).text,
                loaded.select(states, torch.zeros(2), view.features),
            )
        )
    assert replies[0] == replies[1]


def read_image(file):
    from PIL import Image

    return Image.open(file).convert("RGB")


LAUNCHED = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from tests.helpers import rectangles
from finetune import __main__
from finetune.mllm import train as general
from finetune.mllm import deepspeed as zero
from assistant import presets
presets.load_image_opener = lambda sam, device: (rectangles.RectangleOpener(), "rectangles")
presets.opener_key = lambda sam: "rectangles"
general.ANSWER = 6
one_step, save_state, steps = general.one_step, general.save_state, []
def slow(*args):
    steps.append(1)
    if len(steps) == {wait}:
        open({flag!r}, "w").close()
        time.sleep(600)  # to be killed here
    return one_step(*args)
def save(file, student, *more):
    assert all(type(p).__name__ == "DTensor" for p in student.parameters())
    assert sum(type(m).__name__.startswith("FSDP") for m in student.modules()) > 2
    save_state(file, student, *more)
general.one_step = slow
if os.environ.get("ACCELERATE_USE_FSDP"):  # accelerate spreads weights over GPUs; here it takes CPUs for them
    from accelerate import PartialState
    PartialState(cpu=True).distributed_type = "MULTI_GPU"
    general.save_state = save
if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
    import accelerate
    accelerate.PartialState(cpu=True).distributed_type = "DEEPSPEED"
    accelerator = accelerate.Accelerator
    accelerate.Accelerator = lambda cpu, **more: accelerator(**more)
    configure = zero.configure
    def small(accelerator, *more):
        configure(accelerator, *more)  # weights this small would be kept by all
        accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    def save(file, student, *more):
        share, whole = (sum(sizes) for sizes in zip(*((p.ds_tensor.numel(), p.ds_numel) for p in student.parameters())))
        assert 1e5 < whole < 2 * share < 1.01 * whole
        save_state(file, student, *more)
    zero.configure, general.save_state = small, save
sys.exit(__main__.main(sys.argv[1:]))
"""


def launched(tmp_path: Path, name: str, wait: int = 0) -> str:
    script = tmp_path / f"{name}.py"
    script.write_text(
        LAUNCHED.format(
            root=str(ROOT), tests=str(ROOT / "tests"), wait=wait, flag=str(tmp_path / f"{name}.flag")
        )
    )
    return str(script)


# As many threads as here: sums in another order would be other weights.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": str(torch.get_num_threads()),
    "TOKENIZERS_PARALLELISM": "false",
}


def four_steps(world) -> tuple[str, ...]:
    return "--val", str(world[1]), "--max-steps", "4", "--save-every", "2", "--log-every", "1"


def lines(file: Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in file.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def halves(world, qwen, tmp_path_factory):
    """Folders of four steps in one process: stopped in the third, and whole."""
    half, whole = tmp_path_factory.mktemp("halves") / "half", tmp_path_factory.mktemp("halves") / "whole"
    one_step = general.one_step

    def stop(args, step, *more):
        if step == 2:
            raise KeyboardInterrupt
        return one_step(args, step, *more)

    with pytest.MonkeyPatch.context() as patch:
        see_rectangles(patch)
        patch.setattr(general, "one_step", stop)
        assert command.main(words(qwen, world[0], half, *four_steps(world))) == 130
        patch.setattr(general, "one_step", one_step)
        assert command.main(words(qwen, world[0], whole, *four_steps(world))) == 0
    return half, whole


def test_a_run_killed_outright_goes_on_to_the_same_weights(world, qwen, halves, tmp_path):
    out = tmp_path / "parts"
    start = [
        sys.executable,
        launched(tmp_path, "killed", wait=4),
        *words(qwen, world[0], out, *four_steps(world)),
    ]
    killed = subprocess.Popen(start, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed.flag").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 2
    assert command.main(words(qwen, world[0], out, *four_steps(world))) == 0
    whole, resumed = tensors(halves[1]), tensors(out)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    for file in ("log.jsonl", "val.jsonl"):
        assert lines(halves[1] / file) == lines(out / file)


@pytest.mark.parametrize(
    "more", [[], ["--gradient-checkpointing", "--dtype", "bfloat16"]], ids=["float32", "bfloat16"]
)
def test_a_model_in_four_bits_learns_stops_and_goes_on(more, world, qwen, tmp_path, monkeypatch):
    """QLoRA: the LLM's weights stay as they are, in 4 bits; what sees and the new rows do not."""
    pytest.importorskip("bitsandbytes")
    one_step, seen = general.one_step, []

    def watched(args, step, *rest):
        if step == 6 and not seen:
            seen.append(
                sum(
                    p.dtype == torch.uint8
                    for r in rest
                    if isinstance(r, torch.nn.Module)
                    for p in r.parameters()
                )
            )
            raise KeyboardInterrupt
        return one_step(args, step, *rest)

    monkeypatch.setattr(general, "one_step", watched)
    run = lambda name: command.main(
        words(
            qwen,
            world[0],
            tmp_path / name,
            "--max-steps",
            "12",
            "--save-every",
            "6",
            "--four-bit",
            "--log-every",
            "4",
            "--warm-up",
            "2",
            *more,
        )
    )
    assert run("parts") == 130 and run("parts") == 0 and run("whole") == 0
    losses = [line["text"] for line in lines(tmp_path / "whole/log.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    whole, parts_ = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts_[k]) for k in whole)
    llm = MultimodalLLM.load(qwen, four_bit=True)
    assert sum(p.dtype == torch.uint8 for p in llm.model.parameters()) == seen[0] > 6
    assistant = Assistant(load_trained_pipeline(llm, rectangles.RectangleOpener(), tmp_path / "whole"), {})
    answer = assistant.open(world[0].parent / "train0.png").ask("where is the red one?", max_new_tokens=8)
    assert isinstance(answer.text, str)


CONFIGS = ROOT / "finetune/configs"
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install deepspeed")


@pytest.mark.parametrize(
    "how",
    [
        ["--multi_gpu"],
        ["--config_file", str(CONFIGS / "fsdp2.yaml")],
        pytest.param(["--config_file", str(CONFIGS / "zero3.yaml")], marks=needs_deepspeed),
    ],
    ids=["copies", "fsdp2", "zero3"],
)
def test_two_processes_go_on_along_the_curve_of_one(how, world, qwen, halves, tmp_path):
    """From what one process left in the middle, each with all weights or with its share of them; the end reads as one's."""
    half, whole = halves
    out = shutil.copytree(half, tmp_path / "out")
    run = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *how,
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        launched(tmp_path, "two"),
        *words(qwen, world[0], out, *four_steps(world)),
    ]
    done = subprocess.run(
        run, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming at step 2" in done.stdout
    for a, b in zip(lines(whole / "log.jsonl"), lines(out / "log.jsonl"), strict=True):
        for name in ("loss", "text", "align", "iop", "presence", "marker", "gradient"):
            assert a[name] == pytest.approx(b[name], abs=2e-3), name
    # Adam makes full steps of gradients that are nothing but rounding, so the weights themselves may differ.
    texts = [lines(folder / "val.jsonl")[-1]["text"] for folder in (whole, out)]
    assert texts[0] == pytest.approx(texts[1], abs=2e-2)
    assert {k: v.shape for k, v in tensors(whole).items()} == {k: v.shape for k, v in tensors(out).items()}
    one, two = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, out))
    assert one["step"] == two["step"] == 4 and one["model"].keys() == two["model"].keys()
    for name, moments in one["optimizer"]["state"].items():
        assert torch.allclose(moments["exp_avg"], two["optimizer"]["state"][name]["exp_avg"], atol=1e-3), name


def test_records_that_cannot_be_used_are_all_named_before_anything_is_loaded(world, tmp_path, capsys):
    folder = world[0].parent
    rows = read_records(world[0])[:6]
    rows[1].image = "gone.png"
    rows[2].targets[0].rle = {"size": [9, 9], "counts": "Q3"}
    rows[3].targets = rows[3].targets * 2
    rows[4].answer = "red [SEG] and red [SEG]."
    write_records(folder / "bad.jsonl", rows)
    code = command.main(
        [
            "--mllm",
            "nothing/here",
            "--sam",
            "none",
            "--data",
            str(folder / "bad.jsonl"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    said = capsys.readouterr().err
    assert code == 2 and not (tmp_path / "out").exists()
    for line in (2, 3, 4, 5):
        assert f"bad.jsonl:{line}: " in said
    assert "bad.jsonl:1:" not in said and "bad.jsonl:6:" not in said
    assert command.main(["--data", str(world[0]), "--out", str(tmp_path / "out"), "--check"]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--rank", "0"], "--rank must be at least 1"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--dropout", "1"], "--dropout"),
        (["--selector-lr", "nan"], "--selector-lr must be above 0"),
        (["--val", "gone.jsonl"], "no records file at gone.jsonl"),
        (["--data", "gone.jsonl"], "no records file at gone.jsonl"),
        (["--adapter", "gone"], "no heads.safetensors in gone"),
        (["--preset", "pocket", "--adapter", "CUT"], "fetch it again"),
        (["--out", "FILE"], "choose another folder"),
        (["--cache", "FILE"], "choose another folder"),
        (["--batch", "5"], "must be a multiple of --micro 2"),
        (["merge", "--adapter", "gone", "--out", "m"], "no heads.safetensors in gone"),
        (["publish", "--sam", "gone"], "there is no gone"),
        (["publish"], "--reasoner"),
        (["records", "--data", "gone", "--sam", "gone", "--out", "o"], "there is no gone"),
        (
            ["rehearsal", "--data", "gone", "--sam", "gone", "--regions", "o", "--photos", "0"],
            "--photos must be at least 1",
        ),
        (["sam", "--data", "gone", "--out", "o"], "no training photos under gone"),
    ],
)
def test_a_wrong_option_is_one_line_before_the_work_begins(
    wrong, said, world, qwen, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("CUT").mkdir()
    Path("CUT/heads.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(general, "prepare", lambda *args: pytest.fail("pictures are opened"))
    if wrong[0].startswith("--"):
        wrong = [*words(qwen, world[0], "out"), *wrong]
        wrong = wrong[2:] if "pocket" in wrong else wrong  # without --mllm
        wrong = [w for w in wrong if w not in ("--sam", "none")] if "pocket" in wrong else wrong
    assert command.main(wrong) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("error: ") == 1


@pytest.mark.parametrize(
    "kind, stage, device, four_bit, said",
    [
        ("MULTI_CPU", 3, "none", False, "for GPUs only"),
        ("DEEPSPEED", 2, "none", False, "ZeRO stage 2 keeps all"),
        ("DEEPSPEED", 3, "none", True, "4 bits"),
        ("DEEPSPEED", 3, "nvme", False, "nvme"),
        ("DEEPSPEED", 3, "cpu", False, ""),
    ],
)
def test_what_deepspeed_could_not_do_is_refused_in_one_line(kind, stage, device, four_bit, said):
    settings = {"zero_optimization": {"stage": stage, "offload_param": {"device": device}}}
    plugin = SimpleNamespace(deepspeed_config=settings)
    accelerator = SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=plugin))
    if not said:
        zero.configure(accelerator, torch.bfloat16, four_bit)
        assert settings["bf16"] == {"enabled": True} and settings["gradient_clipping"] == 1
        return
    with pytest.raises(BadInput, match=said):
        zero.configure(accelerator, torch.float32, four_bit)


def test_deepspeed_that_is_not_installed_is_one_line(world, qwen, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(words(qwen, world[0], tmp_path / "out")) == 2
    errors = capsys.readouterr().err
    assert "pip install deepspeed" in errors and errors.count("error: ") == 1


def test_out_of_memory_says_what_to_change(world, qwen, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(general, "one_step", full)
    assert command.main(words(qwen, world[0], tmp_path / "out", "--max-steps", "2")) == 2
    said = capsys.readouterr().err
    assert (
        "--micro (now 2)" in said
        and "--gradient-checkpointing" in said
        and "--four-bit" in said
        and said.count("error") == 1
    )


def test_other_settings_do_not_go_on_from_a_run(world, qwen, tmp_path, capsys):
    assert command.main(words(qwen, world[0], tmp_path / "out", "--max-steps", "2")) == 0
    assert command.main(words(qwen, world[0], tmp_path / "out", "--max-steps", "2", "--rank", "4")) == 2
    assert "--rank was 16" in capsys.readouterr().err


def test_files_are_mixed_by_their_rates_and_every_record_comes_once_an_epoch(world):
    mixture = Mixture([(world[0], 3.0), (world[1], 1.0)], 4000, turns=1)
    assert abs((mixture.file == 0).mean() - 0.75) < 0.03
    drawn = [k for k in range(4000) if mixture.file[k] == 0][:18]  # 18 records in the first file
    assert len({(a.image, a.record.question) for k in drawn for a in mixture.lesson(k)}) == 18
    again = Mixture([(world[0], 3.0), (world[1], 1.0)], 4000, turns=1)
    assert all(mixture.lesson(k) == again.lesson(k) for k in range(50))
    batches = [k for step in range(1000) for k in mixture.batch(step, 4)]
    assert sorted(batches) == list(range(4000))
    assert parse_source("a.jsonl=0.3") == (Path("a.jsonl"), 0.3) and parse_source("a.jsonl") == (
        Path("a.jsonl"),
        1.0,
    )
    with pytest.raises(BadInput):
        parse_source("a.jsonl=0")


def test_conversations_of_like_length_come_together_the_same_wherever_a_run_begins(world):
    make = lambda grouped: Mixture([(world[0], 1.0)], 640, seed=3, grouped=grouped)
    length = lambda mixture, k: sum(len(a.record.question) + len(a.record.answer) for a in mixture.lesson(k))
    wasted = {}
    for grouped in (True, False):
        mixture = make(grouped)
        batches = [mixture.batch(step, 8) for step in range(80)]
        assert sorted(k for b in batches for k in b) == list(range(640))
        lengths = [[length(mixture, k) for k in b] for b in batches]
        wasted[grouped] = sum(max(n) * len(n) - sum(n) for n in lengths)
    assert wasted[True] < wasted[False] / 3  # of padding
    whole, later = make(True), make(True)
    assert later.batch(77, 8) == whole.batch(77, 8)  # nothing was asked of it before
    drawn = [whole.batch(step, 8) for step in range(8)]
    assert drawn != sorted(drawn, key=lambda b: length(whole, b[0]))


def test_class_lists_are_drawn_anew_answered_in_order_and_may_hold_nothing_that_is_there(world):
    record = read_records(world[0])[0]
    there = [r.targets[0] for r in read_records(world[0])[:3] if r.targets[0].rle]
    record.question, record.targets = (
        f"Which of these are there: {there[0].phrase}, {there[1].phrase}?",
        there,
    )
    known = {t.phrase: t.rle for t in there} | {f"thing {k}": None for k in range(12)}
    lists = [relist(record, known, np.random.default_rng(k)) for k in range(60)]
    for one in lists:
        names = one.question.removeprefix("Which of these are there: ").removesuffix("?").split(", ")
        assert names == [
            t.phrase for t in one.targets
        ]  # every listed class is answered, in the order of the question
        assert [m.phrase for m in parse(one.answer)] == names
        assert all(t.rle == known[t.phrase] for t in one.targets) and len(names) >= 2
    assert len({one.question for one in lists}) > 50
    empty = sum(all(t.rle is None for t in one.targets) for one in lists)
    assert 0 < empty < 20


def test_kept_regions_are_bounded_and_never_computed_twice(world, tmp_path):
    kept, made = RegionCache(tmp_path, gigabytes=3e-6), []
    make = lambda: made.append(1) or {"x": np.random.default_rng(0).random(100)}
    kept.get("a", make), kept.get("a", make)
    assert len(made) == 1
    kept.get("b", make)
    later = RegionCache(tmp_path, gigabytes=2.2e-6)  # another run, which needs neither
    later.get("c", make)
    assert not (tmp_path / "a.npz").exists() and (tmp_path / "c.npz").exists()
    with pytest.raises(BadInput, match="--cache-gb"):
        later.get("d", make), later.get("e", make)


def test_weights_of_losses_are_read_and_checked():
    assert tune.loss_weights(["align=2"]) == {"text": 1, "align": 2, "iop": 1, "presence": 1, "marker": 1}
    for wrong in ("aling=2", "align=x", "align"):
        with pytest.raises(BadInput, match="LOSS=WEIGHT"):
            tune.loss_weights([wrong])
