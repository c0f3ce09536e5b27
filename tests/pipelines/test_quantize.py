"""Exports in int8 as people make them, of a network that knows digits, and the evaluation of what was exported."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from exported import Exports

from esformer.errors import ESFormerError
from esformer.export import FORMATS
from pipelines import evaluate, export, train
from pipelines.runtime import cli, quantizing

CPU = ["data.workers=0", "--batch-size", "64"]
ABLE = ("onnx", "openvino", "litert", "executorch")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, smallest):
    """Of a short training, which is right about most digits."""
    folder = tmp_path_factory.mktemp("trained")
    quick = ["--quick", "wandb.mode=disabled", "trainer.accelerator=cpu", "recipe.epochs=2", "recipe.mixup_prob=0"]
    train.main([*quick, f"genotype={smallest}", f"run.dir={folder / 'run'}"])
    shutil.copy(folder / "run" / "checkpoints" / "last.ckpt", folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def in_float(checkpoint):
    return Exports(checkpoint)


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the checkpoint in a folder of its own."""
    shutil.copy(checkpoint, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if FORMATS[kind].told])
def test_an_exported_file_gives_the_figures_of_its_checkpoint(kind, in_float, checkpoint, capsys):
    path = Path(in_float[kind]["written"])
    report, own = (evaluate.main([str(file), *CPU]) for file in (path, checkpoint))
    assert {row["class"]: (row["top1"], row["top5"], row["taken_for_images"]) for row in report["classes"]} == {
        row["class"]: (row["top1"], row["top5"], row["taken_for_images"]) for row in own["classes"]
    }
    for name in ("images", "top1", "top5", "params", "macs", "genotype", "weights", "data"):
        assert report[name] == own[name], name
    assert report["loss"] == pytest.approx(own["loss"], rel=1e-5) and report["images"] == 360
    assert report["latency"]["ms"] > 0 < report["images_per_second"]
    assert (report["threads"] is None) == (kind == "executorch") and report["precision"] == "32-true"
    folder = path.with_name(f"{path.name}-evaluation")
    left = ("classes.csv", "confusion.png", "evaluation.json", "mistakes.png")
    assert sorted(one.name for one in folder.iterdir()) == [*left]
    assert json.loads((folder / "evaluation.json").read_text()) == report
    assert "most often taken for" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ABLE)
def test_int8_keeps_the_accuracy_and_says_what_was_done(kind, copied, capsys):
    for package in (*FORMATS[kind].needs, *FORMATS[kind].quantizer):
        pytest.importorskip(package)
    result = export.main([str(copied), "--to", kind, "--quantize", "--calibration-images", "64"])
    path, done = Path(result["written"]), result["quantized"]
    assert path == copied.with_name(f"last-int8{FORMATS[kind].suffix}")
    assert done["images"] == 360 and done["calibration_images"] == 64 and done["data"] == "digits"
    assert 0.8 < done["float32_top1"] - 0.005 <= done["int8_top1"]
    assert 0 < done["output_error"] < 0.1 or done["float"]
    assert done["int8_bytes"] < done["float32_bytes"]
    assert done["int8_bytes"] == quantizing.size_of(path, FORMATS[kind])
    card = Path(result["card"]).read_text()
    assert f"{done['int8_top1']:.2%}, {done['float32_top1']:.2%} in float32" in card and path.name in card
    assert f"{done['int8_top1']:.2%} in int8" in capsys.readouterr().out
    report = evaluate.main([str(path), *CPU])
    assert report["top1"] == done["int8_top1"] and report["quantized"]["calibration_images"] == 64
    assert report["precision"] == "int8" and "largest_difference" not in result
    names = {path.name, f"{path.name}.md", f"{path.name}.png", f"{path.name}-evaluation", "last.ckpt"}
    assert {one.name for one in copied.parent.iterdir()} == names | ({"last-int8.bin"} if kind == "openvino" else set())


@pytest.fixture
def quick(monkeypatch):
    """Exports that write what a format would be quantised to without a graph: for what is asked around it."""
    from dataclasses import replace

    def write(network, about, path, **settings):
        path.write_bytes(bytes(1000))
        state["network"] = network

    def quantize(source, target, images, kept, about):
        target.write_bytes(bytes(250))
        state.update(images=images, about=about)

    def read(path):
        def run(images):
            with torch.no_grad():
                outputs = state["network"](images)
            return outputs.roll(state["rolled"], 1) if path.stat().st_size == 250 else outputs

        return run

    state = {"rolled": 0}
    for package in FORMATS["onnx"].needs:
        pytest.importorskip(package)
    changed = replace(FORMATS["onnx"], write=write, quantize=quantize, read=read)
    monkeypatch.setitem(FORMATS, "onnx", changed)
    return state


@pytest.mark.slow
def test_it_is_calibrated_on_training_images_and_judged_on_validation_images(quick, copied):
    result = export.main([str(copied), "--to", "onnx", "--quantize", "--calibration-images", "16"])
    done = result["quantized"]
    assert quick["images"].shape == (16, 3, 32, 32) and abs(float(quick["images"].mean())) < 0.3
    assert (done["images"], done["int8_bytes"], done["float32_bytes"]) == (360, 250, 1000)
    assert done["int8_top1"] == done["float32_top1"] == evaluate.main([str(copied), *CPU])["top1"]
    assert quick["about"]["quantized"]["float"] == [] and "quantized" not in quick["about"]["data"]


@pytest.mark.slow
def test_a_fall_in_accuracy_is_refused_and_nothing_is_left(quick, copied):
    quick["rolled"] = 1  # every class is taken for the next
    before = sorted(copied.parent.iterdir())
    command = [str(copied), "--to", "onnx", "--quantize", "--calibration-images", "16", "--evaluate-images", "50"]
    with pytest.raises(
        ESFormerError, match=r"top-1 of 50 validation images is \S+ in int8, \S+ in float32, a fall of more"
    ):
        export.main(command)
    assert sorted(copied.parent.iterdir()) == before
    result = export.main([*command, "--largest-drop", "100"])
    assert result["quantized"]["images"] == 50 and result["quantized"]["int8_top1"] < 0.3
    assert set(result["quantized"]["float"]) <= set(quick["about"]["quantized"]["float"])


@pytest.mark.slow
def test_other_images_can_be_given(quick, copied, digits_in_folders):
    images = digits_in_folders(120, 40)
    corrupt = sorted((images / "val").rglob("*.png"))[3]
    corrupt.write_text("no image")
    command = [str(copied), "--to", "onnx", "--quantize", f"data.root={images}", "data.workers=0"]
    done = export.main([*command, "--calibration-images", "80"])["quantized"]
    assert done["images"] == 39 and done["data"] == "folder"
    refused([*command, "--calibration-images", "81"], "80 can be read, fewer than the 81 asked for")
    for path in (images / "train").rglob("*.png"):
        path.write_text("no image")
    refused([*command, "--calibration-images", "8"], " 0 can be read, fewer than the 8 asked for")


WRONG = {
    "not quantised": (["--largest-drop", "1"], "--largest-drop is for an export in int8, with --quantize"),
    "settings alone": (["data.root=x"], "data.root=x is for an export in int8, with --quantize"),
    "other format": (
        ["--quantize", "--to", "coreml"],
        "--quantize is for --to onnx, openvino, litert and executorch, not for coreml",
    ),
    "no images": (["--quantize", "--calibration-images", "0"], "--calibration-images is 0; it must be at least 1"),
    "a rise": (["--quantize", "--largest-drop", "-1"], "--largest-drop is -1; it must be from 0 to 100 points"),
    "no number": (["--quantize", "--largest-drop", "nan"], "--largest-drop is nan; it must be from 0 to 100"),
    "another setting": (
        ["--quantize", "recipe.lr=1"],
        "recipe.lr=1 is no setting of an export in int8; it takes data=",
    ),
    "the size": (["--quantize", "data.img_size=64"], "give --img-size in place of data.img_size"),
    "no square": (["--quantize", "--img-size", "32x64"], "ours are square, not 32 x 64 pixels"),
    "no folder": (["--quantize", "data.root=nowhere"], "data.root is nowhere, which is not a folder"),
    "no such setting": (["--quantize", "data.rot=x"], "did you mean 'data.root'?"),
    "unwritable": (["--quantize", "--out", "last.ckpt/x.onnx"], "last.ckpt/x.onnx cannot be written: File exists"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_sentence(wrong, quick, copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    monkeypatch.setattr(FORMATS["litert"].__class__, "check_packages", lambda *_: None)
    arguments, message = WRONG[wrong]
    refused(["last.ckpt", "--to", "onnx", *arguments], message)
    assert [path.name for path in copied.parent.iterdir()] == ["last.ckpt"]


def refused(arguments, message):
    with pytest.raises(ESFormerError) as caught:
        export.main(arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("openvino", "nncf cannot be imported; install what this export needs: pip install 'esformer[openvino]'"),
        (
            "executorch",
            "torchao cannot be imported; install what this export needs: pip install 'esformer[executorch]'",
        ),
        (
            "litert",
            "ai_edge_quantizer cannot be imported; install what this export needs into an environment of its own",
        ),
    ],
)
def test_a_missing_quantiser_is_named_with_what_installs_it(kind, sentence, copied, monkeypatch):
    import importlib.util

    there, needs = importlib.util.find_spec, FORMATS[kind].quantizer
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in needs else there(name) or True)
    refused([str(copied), "--to", kind, "--quantize"], sentence)


def test_a_stop_while_it_is_judged_leaves_nothing(quick, copied, monkeypatch, capsys):
    monkeypatch.setattr(quantizing.stop, "received", {signal.SIGTERM})
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: export.main([str(copied), "--to", "onnx", "--quantize", "--calibration-images", "16"]))
    assert end.value.code == 75 and [path.name for path in copied.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.nightly
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_killed_half_way_nothing_is_kept(copied, warm, number, code):
    command = ["pipelines.export", copied, "--to", "onnx", "--quantize"]
    process = warm.start(command, copied.parent)
    deadline = time.monotonic() + 120
    while not list(copied.parent.rglob("prepared.onnx")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(120) == code, process.output
    assert number == signal.SIGKILL or process.output.endswith("stopped; the same command begins again\n")
    left = [path.name for path in copied.parent.iterdir() if path.name != "last.ckpt"]
    assert left == [] if number == signal.SIGTERM else all(name.startswith(".last-int8.onnx.") for name in left)


ASKED = {
    "raw weights": (["--raw"], "x.onnx has one kind of weights, those that were exported: leave out --raw"),
    "another size": (["data.img_size=64"], "takes images of 32 pixels, not of data.img_size=64: .* with --img-size 64"),
    "two processes": (["trainer.devices=2"], "is run by one process on the CPU, in the arithmetic"),
    "half precision": (["trainer.precision=bf16-mixed"], "is run by one process on the CPU, in the arithmetic"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_only_pytorch_can_do_is_refused_of_an_exported_file(asked, tmp_path, smallest):
    import onnx

    from esformer.checkpoint import Checkpoint
    from esformer.genotype import Genotype

    genotype = Genotype.load(smallest)
    data = {"name": "digits", "classes": list("0123456789")}
    about = Checkpoint(tmp_path, genotype, 10, 3, (32, 32), {}, None, data=data).describe()
    shape = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["x"])], "g", [shape], [])
    graph.output.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 32, 32]))
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"esformer": json.dumps(about)})
    onnx.save(model, tmp_path / "x.onnx")
    arguments, message = ASKED[asked]
    with pytest.raises(ESFormerError, match=message):
        evaluate.main([str(tmp_path / "x.onnx"), *CPU, *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
