import json
import resource
import signal
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import timm
import torch
import yaml
from exported import APPS, KEYS, Exports, description, metadata, opened
from torch.testing import assert_close

import esformer
from esformer.checkpoint import open_checkpoint
from esformer.errors import ESFormerError
from esformer.export import FORMATS
from esformer.genotype import Genotype
from esformer.model.esformer import ESFormer
from esformer.recipe import Recipe
from pipelines import export
from pipelines.runtime import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
CLASSES = [f"class {number}" for number in range(7)]
DATA = {"name": "folder", "classes": CLASSES, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
DATA |= {"interpolation": "bilinear", "crop_pct": 0.875}


@pytest.fixture(scope="module")
def genotype(draw):
    return draw("S0", extended=True)


@pytest.fixture(scope="module")
def networks(genotype, randomise):
    """The network with the raw and with the averaged weights."""
    torch.manual_seed(0)
    return {name: randomise(ESFormer(genotype, num_classes=7, img_size=64)) for name in ("raw", "averaged")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, genotype, networks):
    """As the training writes it, but for weights at which mistakes show."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    settings = dict(genotype=genotype.to_dict(), recipe=Recipe().to_dict(), num_classes=7, img_size=64)
    settings |= dict(provenance={"command": "python -m pipelines.full"}, format=3, version="0.1.0+abc1234")
    content = {
        "hyper_parameters": settings,
        "state_dict": {f"model.{name}": value for name, value in networks["raw"].state_dict().items()},
        "state_dict_ema": networks["averaged"].state_dict(),
        "metrics": {"val/top1": 0.5, "val/ema_top1": 0.625},
        "data": DATA,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    return Exports(checkpoint)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "coreml"])
@torch.no_grad()
def test_outputs_are_those_of_the_averaged_weights(exported, networks, checkpoint, kind):
    written = Path(exported[kind]["written"])
    assert written == checkpoint.with_name(f"last{FORMATS[kind].suffix}")
    network = opened(kind, written)
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 64, 64)
        wanted = networks["averaged"](images)
        assert_close(network(images), wanted, rtol=0, atol=3e-6 * wanted.abs().max().item())
        assert not torch.allclose(networks["raw"](images), wanted, atol=1e-2)
    result = exported[kind]
    assert 0 <= result["largest_difference"] < 3e-6 * result["largest_output"] and result["weights"] == "averaged"
    assert (result["largest_difference"] > 0) == FORMATS[kind].is_graph
    assert ("folding_speed_up" in result) == FORMATS[kind].is_graph


@pytest.mark.parametrize("kind", APPS)
def test_apps_find_what_they_need(exported, kind):
    found = metadata(kind, exported[kind]["written"])
    assert [json.loads(found[key]) for key in KEYS[1:]] == [[64, 64], DATA["mean"], DATA["std"], CLASSES]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_known_travels_with_the_weights(exported, genotype, kind):
    about = description(kind, exported[kind]["written"])
    assert Genotype.from_dict(about["genotype"]) == genotype and about["data"] == DATA
    assert about["recipe"] == Recipe().to_dict() and about["metrics"]["val/ema_top1"] == 0.625
    assert about["weights"] == "averaged" and about["img_size"] == [64, 64] and about["version"] == "0.1.0+abc1234"
    assert about["provenance"] == {"command": "python -m pipelines.full"}
    assert about.get("folded", False) == FORMATS[kind].is_graph


@pytest.mark.parametrize("kind", FORMATS)
def test_no_file_names_folders_of_the_machine(exported, kind):
    written = Path(exported[kind]["written"])
    files = [path for path in (written, written.with_suffix(".bin"), *written.rglob("*")) if path.is_file()]
    assert files
    for content in map(Path.read_bytes, files):
        assert str(ROOT).encode() not in content and Path(torch.__file__).parent.as_posix().encode() not in content


@pytest.mark.parametrize("kind", FORMATS)
def test_a_card_and_a_drawing_lie_beside(exported, kind):
    result = exported[kind]
    card, picture = Path(result["card"]), Path(result["picture"])
    text = card.read_text()
    assert f"({picture.name})" in text and picture.parent == card.parent and picture.read_bytes()[1:4] == b"PNG"
    assert "| top-1 | 62.50% |" in text and Path(result["written"]).name in text and "class 6" in text
    assert ("folded" in text) == FORMATS[kind].is_graph
    assert ("## Licence\n\nmit" in text) == (kind == "timm-folder") == text.startswith("---\n")


def test_the_cards_python_runs(exported, monkeypatch):
    for kind, result in exported.items():
        if kind == "coreml":  # on a Mac
            continue
        images = torch.randn(2 if FORMATS[kind].any_number else 1, 3, 64, 64)
        code = Path(result["card"]).read_text().split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(Path(result["written"]).parent)
        names = {"images": images.numpy() if kind in ("onnx", "openvino", "litert") else images}
        exec(code, names)
        assert names["logits"].shape == (len(images), 7)


def test_nothing_else_is_left(exported, checkpoint):
    results = [result for kind, result in exported.items() if kind != "timm-folder"]
    expected = {Path(result[what]).name for result in results for what in ("written", "card", "picture")}
    expected |= {"last.ckpt", *(["last-timm"] if "timm-folder" in exported else [])}
    expected |= {"last.bin"} if "openvino" in exported else set()
    assert {path.name for path in checkpoint.parent.iterdir()} == expected


def test_onnx(exported):
    model = onnx.load(exported["onnx"]["written"])
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 21)]
    (image,), (logits,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (image, logits)]
    assert (image.name, logits.name) == ("image", "logits") and shapes == [["batch", 3, 64, 64], ["batch", 7]]


@torch.no_grad()
def test_timm_folder(exported, networks, genotype):
    folder = Path(exported["timm-folder"]["written"])
    assert {path.name for path in folder.iterdir()} == FORMATS["timm-folder"].holds
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert Genotype.load(folder / "genotype.yaml") == genotype
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "esformer_s0" and config["num_classes"] == 7
    assert Genotype.from_dict(config["model_args"]["genotype"]) == genotype
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    data = timm.data.resolve_model_data_config(network)
    assert list(data["mean"]) == DATA["mean"] and list(data["std"]) == DATA["std"] and data["crop_pct"] == 0.875
    assert data["interpolation"] == "bilinear" and data["input_size"] == (3, 64, 64)
    assert list(network.pretrained_cfg["label_names"]) == CLASSES
    card = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert card["license"] == "mit" and card["library_name"] == "timm"
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3, in_chans=1, img_size=96).eval()
    assert other(torch.randn(2, 1, 96, 96)).shape == (2, 3)
    own, theirs = networks["averaged"].state_dict(), other.state_dict()
    assert torch.equal(own["stages.2.blocks.0.mlp.fc1.conv.weight"], theirs["stages.2.blocks.0.mlp.fc1.conv.weight"])


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.nightly
def test_raw_weights_at_another_size(checkpoint, networks, tmp_path, caplog):
    out = tmp_path / "new" / "wide.safetensors"
    caplog.set_level("WARNING")
    result = export.main([str(checkpoint), "--to", "safetensors", "--raw", "--img-size", "64x96", "--out", str(out)])
    assert result["weights"] == "raw"
    images = torch.randn(2, 3, 64, 96)
    assert_close(esformer.load(out)(images), esformer.load(checkpoint, ema=False, img_size=(64, 96))(images))
    found = open_checkpoint(out)
    assert found.averaged is None and found.img_size == (64, 96) and found.provenance["trained_img_size"] == [64, 64]
    assert "at 64 x 64 pixels" in Path(result["card"]).read_text()
    # exported again, at the size of the training or not, it still says at which it was trained
    again = export.main([str(out), "--to", "safetensors", "--img-size", "64", "--out", str(tmp_path / "a.safetensors")])
    assert "trained_img_size" not in open_checkpoint(again["written"]).provenance
    again = export.main([str(out), "--to", "safetensors", "--img-size", "96", "--out", str(tmp_path / "b.safetensors")])
    assert open_checkpoint(again["written"]).provenance["trained_img_size"] == [64, 64]


@torch.no_grad()
def test_core_ml_is_described_and_says_that_it_was_not_run(exported, networks, checkpoint, capsys):
    exported["coreml"]
    import coremltools

    result = export.main([str(checkpoint), "--to", "coreml"])  # replaces the first
    assert "does not run on this system" in "".join(capsys.readouterr())
    assert "largest_difference" not in result and result["written"] == exported["coreml"]["written"]
    model = coremltools.models.MLModel(result["written"], skip_model_load=True)
    (image,), (logits,) = model.get_spec().description.input, model.get_spec().description.output
    shapes = [list(feature.type.multiArrayType.shape) for feature in (image, logits)]
    assert (image.name, logits.name) == ("image", "logits") and shapes == [[1, 3, 64, 64], [1, 7]]
    ramp = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    wanted = networks["averaged"](ramp)[0]
    found = torch.tensor(json.loads(model.user_defined_metadata["check"]))
    assert_close(found, wanted, rtol=0, atol=3e-6 * wanted.abs().max().item())
    card = Path(result["card"]).read_text()
    assert "It was converted and not run" in card and 'user_defined_metadata["check"]' in card
    modes = {path.stat().st_mode & 0o777 for path in Path(result["written"]).rglob("*")}
    assert modes == {0o777 & ~_umask(), 0o666 & ~_umask()}
    assert {path.name for path in Path(result["written"]).iterdir()} == FORMATS["coreml"].holds


def test_a_package_that_does_not_fit_is_a_sentence(checkpoint, tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError("cannot import name 'x'\nmore")

    monkeypatch.setitem(FORMATS, "openvino", replace(FORMATS["openvino"], write=broken, needs=("torch",)))
    with pytest.raises(ESFormerError, match=r"torch cannot be imported here \(cannot import name 'x'\); try: pip ins"):
        export.main([str(checkpoint), "--to", "openvino", "--out", str(tmp_path / "x.xml")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind, choice", [("openvino", "x.xml"), ("coreml", "x.mlpackage")])
def test_places_of_exports_that_are_several_files(checkpoint, tmp_path, monkeypatch, kind, choice):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], needs=()))
    Path("x.mlpackage").mkdir()
    Path("x.mlpackage", "precious").touch()
    Path("x.bin").touch()
    sentence = {"openvino": "x.bin is there already, without x.xml", "coreml": "is there already and is not an export"}
    with pytest.raises(ESFormerError, match=sentence[kind]):
        export.main([str(checkpoint), "--to", kind, "--out", choice])
    Path("y.bin").symlink_to(checkpoint)
    if kind == "openvino":
        with pytest.raises(ESFormerError, match="y.bin is the checkpoint itself"):
            export.main(["y.bin", "--to", kind])
    for out, wrong in ((f"x{FORMATS[kind].suffix}.z", "must end in"), (f"x.bin/x{FORMATS[kind].suffix}", "written: ")):
        with pytest.raises(ESFormerError, match=wrong):
            export.main([str(checkpoint), "--to", kind, "--out", out])
    with pytest.raises(ESFormerError, match=f"--opset is for --to onnx, not for {kind}"):
        export.main([str(checkpoint), "--to", kind, "--opset", "20"])


@pytest.mark.nightly
def test_norms_are_kept_if_asked(checkpoint, exported, tmp_path):
    out = tmp_path / "kept.pt2"
    result = export.main([str(checkpoint), "--to", "torch-export", "--no-fold", "--out", str(out)])
    assert "folding_speed_up" not in result and "folded" not in description("torch-export", out)
    norms = [graph(path).count("bn.running_var") for path in (out, exported["torch-export"]["written"])]
    assert norms[0] > 50 and norms[1] == 0


def graph(path):
    """The text of a torch.export program."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json"))).decode()


def test_a_shipped_name_has_random_weights_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = export.main(["esformer_s0", "--to", "safetensors", "--img-size", "64"])
    assert result["written"] == "esformer_s0.safetensors" and result["weights"] == "random"
    for kind, size in (("timm-folder", "96"), ("safetensors", "32")):  # and that of what was exported says it still
        result = export.main(
            [result["written"], "--to", kind, "--img-size", size, "--out", f"again{FORMATS[kind].suffix}"]
        )
        assert result["weights"] == "random" and open_checkpoint(result["written"]).random
        assert "never trained" in Path(result["card"]).read_text()
        assert "trained_img_size" not in open_checkpoint(result["written"]).provenance


# what cannot be done is one sentence, before anything is written


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing.ckpt", "--to", "onnx"], "missing.ckpt is neither a file nor one of"),
        (["text.ckpt", "--to", "onnx"], "text.ckpt is damaged, or is no file of weights"),
        (["CKPT", "--to", "onnx", "--opset", "7"], "--opset is 7; it must be from 18 to 25"),
        (["CKPT", "--to", "onnx", "--opset", "99"], "--opset is 99; it must be from 18 to 25"),
        (["CKPT", "--to", "safetensors", "--opset", "18"], "--opset is for --to onnx, not for safetensors"),
        (
            ["CKPT", "--to", "onnx", "--img-size", "8192"],
            "image size is 8192 x 8192; it must be at most 2048 pixels each",
        ),
        (["CKPT", "--to", "onnx", "--img-size", "32x2049"], "image size is 32 x 2049; it must be at most 2048 pixels"),
        (["CKPT", "--to", "safetensors", "--img-size", "16"], "img_size is .*16.* at least 32 pixels"),
        (["CKPT", "--to", "safetensors", "--out", "x.bin"], "x.bin must end in .safetensors"),
        (["CKPT", "--to", "onnx", "--out", "folder.onnx"], "folder.onnx is a folder"),
        (["CKPT", "--to", "safetensors", "--out", "text.ckpt/x.safetensors"], "cannot be written: (Not a dir|File)"),
        (["CKPT", "--to", "timm-folder", "--out", "folder.onnx"], "folder.onnx is there already and is not an export"),
        (["CKPT", "--to", "timm-folder", "--out", "text.ckpt"], "text.ckpt is there already and is not an export"),
        (["CKPT", "--to", "timm-folder", "--out", "."], "has no name"),
        (["a.safetensors", "--to", "safetensors"], "a.safetensors is the checkpoint itself"),
        (["timm/model.safetensors", "--to", "timm-folder", "--out", "timm"], "timm is the checkpoint itself"),
        (["a.safetensors", "--to", "torch-export", "--raw"], "holds averaged weights only"),
    ],
)
def test_refusals(exported, checkpoint, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("text.ckpt").write_text("not weights")
    Path("folder.onnx").mkdir()
    Path("folder.onnx", "precious").touch()
    Path("a.safetensors").symlink_to(exported["safetensors"]["written"])
    Path("timm").symlink_to(exported["timm-folder"]["written"])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ESFormerError, match=sentence) as refused:
        export.main([str(checkpoint) if word == "CKPT" else word for word in arguments])
    assert "\n" not in str(refused.value) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [["--to", "torchscript"], [], ["--to", "onnx", "--img-size", "1x2x3"], ["--to", "onnx", "--img-size", "9" * 10]],
)
def test_arguments_that_argparse_refuses(checkpoint, capsys, arguments):
    with pytest.raises(SystemExit) as refused:
        export.main([str(checkpoint), *arguments])
    assert refused.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_missing_package_is_said_first(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ESFormerError, match=r"pip install 'esformer\[export\]'"):
        export.main(["missing.ckpt", "--to", "onnx"])


def spoil(monkeypatch, kind):
    """Let an export write weights that are a little wrong."""
    right = FORMATS[kind]

    def spoiled(network, about, path, **options):
        with torch.no_grad():
            network.head.bias += 1e-3
            right.write(network, about, path, **options)
            network.head.bias -= 1e-3

    monkeypatch.setitem(FORMATS, kind, replace(right, write=spoiled))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["safetensors", "timm-folder"])
def test_what_differs_is_not_kept_and_what_is_whole_replaces(checkpoint, tmp_path, monkeypatch, kind):
    out = tmp_path / f"x{FORMATS[kind].suffix}"
    export.main([str(checkpoint), "--to", kind, "--raw", "--out", str(out)])
    file = out / "model.safetensors" if out.is_dir() else out
    before, names = file.read_bytes(), sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patched:
        spoil(patched, kind)
        with pytest.raises(ESFormerError, match="differ from PyTorch's by 1.0e-03"):
            export.main([str(checkpoint), "--to", kind, "--out", str(out)])
    assert file.read_bytes() == before and sorted(tmp_path.rglob("*")) == names
    export.main([str(checkpoint), "--to", kind, "--out", str(out)])
    assert open_checkpoint(out).averaged is not None and sorted(tmp_path.rglob("*")) == names


@pytest.mark.parametrize("kind", ["safetensors", "timm-folder"])
def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, capsys, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # Python ignores the signal, and gets an error
    try:
        with pytest.raises(SystemExit) as refused:
            cli.run(
                lambda: export.main(
                    [str(checkpoint), "--to", kind, "--out", str(tmp_path / f"x{FORMATS[kind].suffix}")]
                )
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.code == 2 and not list(tmp_path.iterdir())
    said = f"error: {tmp_path / 'x'}{FORMATS[kind].suffix} cannot be written: File too large\n"
    assert capsys.readouterr().err == said


@pytest.mark.nightly
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_killed_in_the_middle_the_export_is_whole_or_not_there(checkpoint, networks, tmp_path, warm, number, code):
    process = warm.start(
        ["pipelines.export", checkpoint, "--to", "torch-export", "--out", tmp_path / "x.pt2"], tmp_path
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".x.pt2.*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == code, process.output
    if number == signal.SIGKILL:
        assert [path.name.startswith(".x.pt2.") for path in tmp_path.iterdir()] == [True]
    else:
        assert {path.name for path in tmp_path.iterdir()} == {"x.pt2", "x.pt2.md", "x.pt2.png"}
        images = torch.randn(1, 3, 64, 64)
        assert_close(opened("torch-export", tmp_path / "x.pt2")(images), networks["averaged"](images).detach())
