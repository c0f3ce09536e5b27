import math

import pytest
import timm
import torch
from timm.layers import DropPath, LayerScale2d
from timm.models._features import FeatureListNet
from torch import nn
from torch.testing import assert_close

from esformer.genotype import ConvBlock, Genotype, TransformerLayer
from esformer.model.esformer import ESFormer
from esformer.model.ffn import FFNS, bottleneck_width
from esformer.model.weights import checkpoint_filter_fn

PIXELS = 64  # of the image and network fixtures


def attends(block):
    return getattr(block, "token_mixer", None) is not None


@pytest.mark.parametrize(("size", "pixels", "kwargs"), [
    ("s0", 224, {}),
    ("s1", 224, {}),
    ("s2", 224, {}),
    ("s0", 160, {"num_classes": 10}),
    ("s0", (96, 256), {"in_chans": 4}),
    ("s1", 64, {"distillation": False}),
])  # fmt: skip
@torch.no_grad()
def test_efficientformerv2_gives_timms_output_for_timms_weights(randomise, size, pixels, kwargs):
    theirs = randomise(timm.create_model(f"efficientformerv2_{size}", pretrained=False, img_size=pixels, **kwargs))
    genotype = Genotype.shipped(f"efficientformerv2_{size}")
    sizes = {name: value for name, value in kwargs.items() if name != "distillation"}
    ours = ESFormer(genotype, img_size=pixels, **sizes).eval()
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours))

    height, width = (pixels, pixels) if isinstance(pixels, int) else pixels
    x = torch.randn(2, kwargs.get("in_chans", 3), height, width)
    features = theirs.forward_features(x)
    assert features.std() > 0.1
    assert_close(ours.forward_features(x), features, rtol=1e-5, atol=1e-5)
    assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    head = getattr(theirs, "head_dist", None) or nn.Identity()
    assert parameters(ours) == parameters(theirs) - parameters(head)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_weights_of_an_esformer_pass_the_filter_unchanged(network):
    state = network.state_dict()
    assert_close(checkpoint_filter_fn(state, network), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("pixels", [32, 33, 100, 224, 256, 512, (160, 320), (320, 160)])
@torch.no_grad()
def test_any_image_size(draw, pixels):
    network = ESFormer(draw(seed=5), num_classes=3, img_size=pixels).eval()
    height, width = network.img_size
    x = torch.randn(1, 3, height, width)
    features = network.forward_features(x)
    assert features.shape == (1, network.num_features, math.ceil(height / 32), math.ceil(width / 32))
    assert_close(network.forward_head(features), network(x))
    for taken, info in zip(
        network.forward_intermediates(x, intermediates_only=True), network.feature_info, strict=True
    ):
        stride = info["reduction"]
        assert taken.shape[1:] == (info["num_chs"], math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("num_classes", [0, 1, 10])
@torch.no_grad()
def test_any_classes_and_channels(draw, num_classes, in_chans):
    network = ESFormer(draw(), num_classes, in_chans, img_size=32).eval()
    assert network(torch.randn(2, in_chans, 32, 32)).shape == (2, num_classes or network.num_features)


def test_an_image_of_another_size_is_refused_with_a_sentence(network):
    for height, width in [(PIXELS, 32), (96, PIXELS), (PIXELS + 1, PIXELS)]:
        for call in (network, network.forward_features, network.forward_intermediates):
            with pytest.raises((AssertionError, ValueError), match=f"built for images of {PIXELS} x {PIXELS}"):
                call(torch.zeros(1, 3, height, width))


def test_wrong_arguments_are_refused(draw):
    for pixels in (31, (32, 31), 0):
        with pytest.raises(ValueError, match="at least 32"):
            ESFormer(draw(), img_size=pixels)
    with pytest.raises(ValueError, match="'max'"):
        ESFormer(draw(), global_pool="max")


@torch.no_grad()
def test_a_skip_across_a_growth_is_padded_with_zeros(network, image):
    grown = []

    def look(block, inputs, output):
        (x,) = inputs
        missing = output.shape[1] - x.shape[1]
        if missing:
            grown.append(attends(block))
            assert torch.equal(output, torch.cat([x, torch.zeros(2, missing, *x.shape[2:])], dim=1))

    for module in network.modules():
        if isinstance(module, LayerScale2d):
            module.gamma.zero_()  # only the skips are left
    for stage in network.stages:
        for block in stage.blocks:
            block.register_forward_hook(look)
    network(image)
    assert set(grown) == {True, False}  # convolution blocks and Transformer layers


def test_every_gene_becomes_its_part(draw):
    genotype = draw("S1", extended=True)
    network = ESFormer(genotype, img_size=32)
    assert {gene.ffn for gene in genotype.blocks()} == set(FFNS)
    for genes, stage in zip(genotype.stages, network.stages, strict=True):
        chs = genes[0].out
        for gene, block in zip(genes, stage.blocks, strict=True):
            fc1, mid, fc2 = block.mlp.fc1.conv, block.mlp.mid.conv, block.mlp.fc2.conv
            kernel = gene.kernel if isinstance(gene, ConvBlock) else 3
            hidden = bottleneck_width(gene.out, gene.ratio) if gene.ffn == "bottleneck" else chs * gene.ratio
            inside, groups = {"ibn": (hidden, hidden), "convnext": (chs, chs), "bottleneck": (hidden, 1)}[gene.ffn]
            assert type(block.mlp) is FFNS[gene.ffn]
            assert (fc1.in_channels, fc1.out_channels, fc2.out_channels) == (chs, hidden, gene.out)
            assert (mid.in_channels, mid.out_channels, mid.groups) == (inside, inside, groups)
            assert mid.kernel_size == (kernel, kernel) and mid.stride == (1, 1)
            assert attends(block) == isinstance(gene, TransformerLayer)
            if attends(block):
                assert (block.token_mixer.num_heads, block.token_mixer.key_dim) == (gene.heads, gene.head_dim)
            chs = gene.out
    assert [stage.downsample.conv.conv.out_channels for stage in network.stages[1:]] == [
        stage[0].out for stage in genotype.stages[1:]
    ]


def test_the_convnext_ffn_has_its_depthwise_convolution_in_front():
    ffn = FFNS["convnext"](8, 16, 7, 4)
    seen = []
    for name in ("fc1", "fc2", "mid"):
        getattr(ffn, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    ffn(torch.zeros(1, 8, 4, 4))
    assert seen == ["mid", "fc1", "fc2"]
    assert sum(isinstance(module, nn.GELU) for module in ffn.modules()) == 1


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6])
def test_a_bottleneck_is_the_nearest_multiple_of_4_wide(ratio):
    for out in range(16, 433, 8):
        width = bottleneck_width(out, ratio)
        assert width % 4 == 0 and width >= 4
        assert abs(width - out / ratio) == min(abs(other - out / ratio) for other in range(4, 440, 4))


def test_stochastic_depth_grows_linearly(draw):
    genotype = draw("S0")
    network = ESFormer(genotype, img_size=32, drop_path_rate=0.26)
    blocks = [block for stage in network.stages for block in stage.blocks]
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.26 * i / 13 for i in range(14)])
    assert isinstance(blocks[-1].drop_path1, DropPath) and blocks[-1].drop_path1.drop_prob == pytest.approx(0.26)
    assert not any(isinstance(module, DropPath) for module in ESFormer(genotype, img_size=32).modules())


def test_layer_scale_dropout_and_activation_are_options(draw):
    network = ESFormer(draw(), img_size=32, layer_scale_init_value=None, drop_rate=0.3, act_layer="relu")
    kinds = {type(module) for module in network.modules()}
    assert LayerScale2d not in kinds and nn.GELU not in kinds and nn.ReLU in kinds
    assert network.head_drop.p == 0.3
    scales = [m for m in ESFormer(draw(), img_size=32).modules() if isinstance(m, LayerScale2d)]
    assert len(scales) == 18 and all((scale.gamma == 1e-5).all() for scale in scales)  # 14 blocks, 4 attentions


@torch.no_grad()
def test_features_head_and_pooling(network, image):
    features = network.forward_features(image)
    pooled = features.mean(dim=(2, 3))
    assert_close(network.forward_head(features, pre_logits=True), pooled)
    assert_close(network(image), network.head(pooled))
    assert network.get_classifier() is network.head and network.head.out_features == 7
    assert network.num_features == network.head_hidden_size == features.shape[1]
    network.reset_classifier(0)
    assert_close(network(image), pooled)
    network.reset_classifier(0, global_pool="")
    assert_close(network(image), features)


def test_reset_classifier_keeps_device_dtype_and_mode(network):
    network.double().reset_classifier(11, global_pool="avg")
    assert network.num_classes == 11 and network.head.out_features == 11
    assert network.head.weight.dtype == torch.float64 and not network.head.training
    assert network(torch.randn(1, 3, PIXELS, PIXELS, dtype=torch.float64)).shape == (1, 11)
    network.to("meta").reset_classifier(5)
    assert network.head.weight.device.type == "meta"
    with pytest.raises(ValueError, match="'max'"):
        network.reset_classifier(5, global_pool="max")


@torch.no_grad()
def test_intermediates_are_the_outputs_of_the_stages(network, image):
    outputs = []
    hooks = [stage.register_forward_hook(lambda *args: outputs.append(args[-1])) for stage in network.stages]
    features = network.forward_features(image)
    for hook in hooks:
        hook.remove()
    final, taken = network.forward_intermediates(image)
    assert_close(final, features)
    assert_close(taken, outputs)
    for indices, wanted in [(1, [3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ((1,), [1])]:
        assert_close(
            network.forward_intermediates(image, indices, intermediates_only=True), [outputs[i] for i in wanted]
        )
    normed = network.forward_intermediates(image, norm=True, intermediates_only=True)
    assert_close(normed, [*outputs[:3], features])
    last, taken = network.forward_intermediates(image, [0, 1], stop_early=True)
    assert_close([last, *taken], [outputs[1], outputs[0], outputs[1]])
    with pytest.raises(ValueError, match="NLC"):
        network.forward_intermediates(image, output_fmt="NLC")


@torch.no_grad()
def test_stop_early_does_not_run_what_is_left_out(network, image):
    ran = []
    network.stages[2].register_forward_hook(lambda *_: ran.append(2))
    network.forward_intermediates(image, [1], stop_early=True)
    assert not ran
    network.forward_intermediates(image, [1])
    assert ran == [2]


@pytest.mark.parametrize(("indices", "left"), [([0], 1), ([1, 2], 3), (1, 4)])
@torch.no_grad()
def test_pruned_to_some_stages(network, image, indices, left):
    wanted = network.forward_intermediates(image, indices, norm=True, intermediates_only=True)
    taken = network.prune_intermediate_layers(indices)
    assert len(network.stages) == left and max(taken) == left - 1
    assert_close(network.forward_intermediates(image, taken, norm=True, intermediates_only=True), wanted)
    assert_close(network(image), wanted[-1])
    assert network.num_features == wanted[-1].shape[1] and isinstance(network.get_classifier(), nn.Identity)


@torch.no_grad()
def test_pruned_of_nothing_or_of_the_norm_alone(network, image):
    logits, raw = network(image), network.forward_intermediates(image, [3], intermediates_only=True)[0]
    assert network.prune_intermediate_layers(1, prune_head=False) == [3]
    assert_close(network(image), logits)
    network.prune_intermediate_layers(1, prune_norm=True)
    assert_close(network(image), raw)


@torch.no_grad()
def test_feature_info_serves_timms_feature_list(network, image):
    wanted = network.forward_intermediates(image, [1, 3], intermediates_only=True)
    features = FeatureListNet(network, out_indices=(1, 3), flatten_sequential=True)
    assert_close(features(image), wanted)
    assert features.feature_info.channels() == [wanted[0].shape[1], wanted[1].shape[1]]
    assert features.feature_info.reduction() == [8, 32]
