"""What timm asks of every family of models (its tests/test_models.py), in small; here of the registered ESFormers."""

import io

import pytest
import timm
import timm.optim
import torch
from timm.data import resolve_model_data_config
from timm.models import get_notrace_functions, get_notrace_modules
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import esformer.model.registry  # noqa: F401 (registers the names)

PIXELS = 64
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(params=["esformer_s0", "esformer_s1", "esformer_s2"])
def name(request):
    return request.param


@pytest.fixture
def make(name, randomise):
    def make(**kwargs):
        return randomise(timm.create_model(name, **{"img_size": PIXELS} | kwargs))

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, PIXELS, PIXELS)


@torch.no_grad()
def test_forward_is_the_same_with_checkpointing(make, images):
    network = make()
    logits = network(images)
    assert logits.shape == (2, 1000) and logits.isfinite().all()
    network.set_grad_checkpointing()
    assert_close(network(images), logits, rtol=1e-4, atol=1e-5)


def test_backward_reaches_every_parameter(make, images):
    network = make(num_classes=42).train()
    logits = network(images)
    logits.mean().backward()
    assert logits.shape == (2, 42)
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


@torch.no_grad()
def test_the_configuration_is_true_of_the_network(name):
    network = timm.create_model(name).eval()
    cfg, state = network.default_cfg, network.state_dict()
    assert cfg is network.pretrained_cfg and cfg["architecture"] == name
    assert {cfg["first_conv"] + ".weight", cfg["classifier"] + ".weight", cfg["classifier"] + ".bias"} <= set(state)
    assert len(state[cfg["classifier"] + ".bias"]) == cfg["num_classes"] == network.num_classes
    image = torch.randn(1, *cfg["input_size"])
    features = network.forward_features(image)
    assert features.shape == (1, network.num_features, *cfg["pool_size"])
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, network.head_hidden_size)
    network.reset_classifier(0)
    assert network.num_classes == 0 and torch.equal(network(image), pooled)
    network.reset_classifier(0, "")
    assert torch.equal(network(image), features)
    bare = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert bare(image).shape == features.shape


def test_the_configuration_speaks_of_the_images_that_it_was_built_for(name, make):
    config = resolve_model_data_config(timm.create_model(name))
    assert config["input_size"] == (3, 224, 224) and config["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    assert config["crop_pct"] == 0.95 and config["interpolation"] == "bicubic"
    config = resolve_model_data_config(make(in_chans=1, img_size=(64, 96)))
    assert config["input_size"] == (1, 64, 96)
    assert config["mean"] == pytest.approx((0.449,)) and config["std"] == pytest.approx((0.226,))
    assert make().pretrained_cfg["fixed_input_size"]
    features = make(features_only=True, in_chans=4)
    assert resolve_model_data_config(features)["input_size"] == (4, PIXELS, PIXELS)
    assert len(resolve_model_data_config(features)["std"]) == 4
    assert not features.pretrained_cfg["fixed_input_size"]
    assert timm.create_model(name).pretrained_cfg["input_size"] == (3, 224, 224)  # the others left it alone


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
@torch.no_grad()
def test_features_of_every_kind(make, images, kind):
    whole, network = make(), make(features_only=True, feature_cls=kind)
    network.load_state_dict(whole.state_dict())
    taken = network(images)
    taken = list(taken.values()) if kind == "dict" else taken
    assert_close(taken, whole.forward_intermediates(images, intermediates_only=True))
    assert network.feature_info.channels() == [x.shape[1] for x in taken]
    assert network.feature_info.reduction() == [PIXELS // x.shape[2] for x in taken] == [4, 8, 16, 32]


@torch.no_grad()
def test_intermediates(make, images):
    network = make()
    final, taken = network.forward_intermediates(images)
    assert_close(final, network.forward_features(images))
    assert [info["num_chs"] for info in network.feature_info] == [x.shape[1] for x in taken]
    assert [info["reduction"] for info in network.feature_info] == [PIXELS // x.shape[2] for x in taken]
    network.set_grad_checkpointing()
    assert_close(network.forward_intermediates(images)[0], final, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@torch.no_grad()
def test_scripted(make, images):
    network = make(scriptable=True)
    assert_close(torch.jit.script(network)(images), network(images))


@pytest.mark.parametrize("name", ["esformer_s0"])
@torch.no_grad()
def test_features_scripted_and_saved(make, images):
    features = make(scriptable=True, features_only=True)  # of one size
    scripted, file = torch.jit.script(features), io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert_close(torch.jit.load(file)(images), features(images))


@pytest.mark.parametrize("name", ["esformer_s0"])
@torch.no_grad()
def test_features_by_fx(make, images):
    features = make(features_only=True, feature_cls="fx")  # of one size too
    taken = features(images)
    assert [x.shape[1] for x in taken] == features.feature_info.channels()
    assert_close(torch.jit.script(features)(images), taken)


def traced(network):
    tracing = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    nodes = [names[-1:] for names in get_graph_node_names(network, tracer_kwargs=tracing)]
    return create_feature_extractor(
        network, train_return_nodes=nodes[0], eval_return_nodes=nodes[1], tracer_kwargs=tracing
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["esformer_s0"])
def test_traced_by_fx(make, images):
    network = make(num_classes=42)
    with torch.no_grad():
        logits = network(images)
        (output,) = traced(network)(images).values()
        assert torch.equal(output, logits)
        (output,) = torch.jit.script(traced(network))(images).values()
        assert_close(output, logits)
    learning = traced(network.train())
    (output,) = learning(images).values()
    output.mean().backward()
    assert not [name for name, parameter in learning.named_parameters() if parameter.grad is None]


def test_layer_wise_decay(make):
    network = make(num_classes=5)
    optimizer = timm.optim.create_optimizer_v2(network, opt="adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    groups = optimizer.param_groups
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale.keys() == {id(parameter) for parameter in network.parameters()}
    blocks = [block for stage in network.stages for block in stage.blocks]
    rates = [scale[id(block.mlp.fc1.conv.weight)] for block in blocks]
    assert rates == sorted(rates) and len(set(rates)) == len(blocks)
    assert scale[id(network.stem.conv1.conv.weight)] < rates[0] and scale[id(network.get_classifier().weight)] == 1
    biases = network.stages[3].blocks[-1].token_mixer.attention_biases
    assert [group["weight_decay"] for group in groups if any(p is biases for p in group["params"])] == [0]
