"""What others do to a network: group, checkpoint, load, copy, export and compile it."""

import copy

import pytest
import torch
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch.testing import assert_close

from esformer.model.esformer import ESFormer


def test_attention_biases_and_vectors_are_not_decayed(network):
    skipped = network.no_weight_decay()
    assert skipped == {name for name, _ in network.named_parameters() if name.endswith("attention_biases")}
    assert len(skipped) == 5  # four Transformer layers and the last downsampling
    free, decayed = param_groups_weight_decay(network, 0.05, no_weight_decay_list=skipped)
    assert free["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    biases = {id(parameter) for name, parameter in network.named_parameters() if name in skipped}
    assert biases <= {id(parameter) for parameter in free["params"]}
    assert all(parameter.ndim > 1 for parameter in decayed["params"])


@pytest.mark.parametrize("coarse", [True, False])
def test_parameters_group_by_depth(network, coarse):
    layers = group_parameters(network, network.group_matcher(coarse), reverse=True)
    assert set(layers) == {name for name, _ in network.named_parameters()}
    of = {name.rsplit(".", 1)[0]: layer for name, layer in layers.items()}
    order = [of["stem.conv1.conv"]]
    for s, stage in enumerate(network.stages):
        if s > 0:
            assert of[f"stages.{s}.downsample.conv.conv"] in range(
                order[-1], of[f"stages.{s}.blocks.0.mlp.fc1.conv"] + 1
            )
        blocks = [of[f"stages.{s}.blocks.{b}.mlp.fc1.conv"] for b in range(len(stage.blocks))]
        order += blocks[:1] if coarse else blocks
        assert coarse == (len(set(blocks)) == 1)
    order.append(of["head"])
    assert order == sorted(set(order))
    assert of["norm"] == order[-2] and of["stem.conv2.bn"] == order[0]


def test_layer_decay_weakens_towards_the_image(network):
    groups = param_groups_layer_decay(network, 0.05, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == len(list(network.parameters()))
    assert scale[id(network.stem.conv1.conv.weight)] == min(scale.values()) < 1
    assert scale[id(network.head.weight)] == max(scale.values()) == 1


def test_checkpointing_gives_the_same_gradients(network, image):
    def gradients():
        network.zero_grad()
        network(image).square().sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    plain, calls = gradients(), []
    network.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network.set_grad_checkpointing()
    assert_close(gradients(), plain)
    assert len(calls) == 2  # once more in the backward pass
    network.set_grad_checkpointing(False)
    assert_close(gradients(), plain)
    assert len(calls) == 3


def test_every_parameter_gets_a_gradient(network, image):
    network.train()(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    # a bias before a batch norm has no effect; everything else has
    still = [name for name, p in network.named_parameters() if p.grad.abs().max() < 1e-9 and "bias" not in name]
    assert not still


def test_state_dict_round_trip(network, image, draw, tmp_path):
    torch.save(network.state_dict(), tmp_path / "w.pt")
    other = ESFormer(draw(), num_classes=7, img_size=64).eval()
    assert not torch.allclose(other(image), network(image))
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert torch.equal(other(image), network(image))


def test_a_deep_copy_is_equal_and_separate(network, image):
    before, twin = network(image), copy.deepcopy(network)
    assert torch.equal(twin(image), before)
    with torch.no_grad():
        twin.stem.conv1.conv.weight.zero_()
        twin.stages[3].blocks[3].token_mixer.attention_biases.zero_()
    assert torch.equal(network(image), before) and not torch.equal(twin(image), before)


@torch.no_grad()
def test_attention_biases_are_never_stale(network, image):
    # timm keeps the expanded biases of an evaluating network, whatever happens to the weights
    before = network(image)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    changed = {name: value.flip(-1) if "attention_biases" in name else value for name, value in state.items()}
    network.load_state_dict(changed)
    after = network(image)
    assert not torch.allclose(after, before)
    network.load_state_dict(state)
    assert torch.equal(network(image), before)
    for module in network.modules():  # as an optimiser or a moving average does
        if hasattr(module, "attention_biases"):
            module.attention_biases.copy_(module.attention_biases.flip(-1))
    assert torch.equal(network(image), after)


@torch.no_grad()
def test_bfloat16_and_float64(network, image):
    full = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(image)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert_close(half.float(), full, rtol=0.1, atol=0.1 * full.std().item())
    assert_close(network.double()(image.double()).float(), full, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channels_last_gives_the_same(network, image):
    plain = network(image)
    network.to(memory_format=torch.channels_last)
    assert_close(network(image.contiguous(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
@torch.no_grad()
def test_export_gives_the_same_and_leaves_the_network_alone(network, image):
    eager = network(image)
    program = torch.export.export(network, (image,))
    assert_close(program.module()(image), eager)
    assert torch.equal(network(image), eager)
    network.load_state_dict({name: torch.zeros_like(value) for name, value in network.state_dict().items()})
    assert not network(image).any()
    assert network.train()(image).shape == eager.shape


@pytest.mark.nightly
def test_compiled_gives_the_same_output_and_gradients(network, image):
    twin = copy.deepcopy(network.train())
    compiled = torch.compile(twin, backend="aot_eager")
    outputs = [net(image) for net in (network, compiled)]
    assert_close(*outputs)
    gradients = [torch.autograd.grad(y.sum(), net.stem.conv1.conv.weight) for y, net in zip(outputs, (network, twin))]
    assert_close(*gradients)
    torch._dynamo.reset()


@pytest.mark.nightly
@torch.no_grad()
def test_compiled_by_inductor_gives_the_same(network, image):
    eager = network(image)
    assert_close(torch.compile(network)(image), eager, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
