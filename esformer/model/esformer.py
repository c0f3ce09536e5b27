"""ESFormer: the hybrid Transformer of section 3.4, built from a genotype.

Papers:
- Entropic Score metric: Decoupling Topology and Size in Training-free NAS (ESFormer)
- Rethinking Vision Transformers for MobileNet Size and Speed, https://arxiv.org/abs/2212.08059 (EfficientFormerV2)

The skeleton is EfficientFormerV2's and its parts are timm's: a stem at stride 4, four stages, between them a strided
convolution (the last with attention beside it), the last blocks of stages 3 and 4 Transformer layers. The genotype
sets each block's FFN, kernel, width and expansion and each attention's heads. Where a block is wider than the one
before, its skip connection is padded with zeros (Deep Pyramidal Residual Networks, https://arxiv.org/abs/1610.02915).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale2d, calculate_drop_path_rates, get_act_layer, to_2tuple, trunc_normal_
from timm.models import checkpoint_seq
from timm.models import efficientformer_v2 as timm_v2
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from esformer.errors import ESFormerError
from esformer.genotype import Block, ConvBlock, Genotype, TransformerLayer
from esformer.model.attention import Attention2d, Attention2dDownsample, half, take_any_size
from esformer.model.ffn import FFNS

MIN_IMAGE = 32
"""The smallest image in pixels: the network's total stride."""


class Downsample(timm_v2.Downsample):
    """A 3x3 convolution of stride 2 with, before the last stage, attention beside it. B, C, H, W -> B, C', H/2, W/2."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        resolution: tuple[int, int],
        use_attn: bool,
        act_layer: type[nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: Any = {"device": device, "dtype": dtype}
        super().__init__(in_chs, out_chs, **dd)
        if use_attn:
            self.attn = Attention2dDownsample(in_chs, resolution=resolution, out_dim=out_chs, act_layer=act_layer, **dd)


class ESFormerBlock(nn.Module):
    """A convolution block, which is an FFN, or a Transformer layer: attention, then an FFN. Each with a skip around it.

    B, C, H, W -> B, C', H, W with C' >= C; the missing channels of the FFN's skip are zeros.
    """

    def __init__(
        self,
        gene: Block,
        in_chs: int,
        resolution: tuple[int, int],
        attn_stride: int | None,
        drop_path: float,
        layer_scale_init_value: float | None,
        act_layer: type[nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: Any = {"device": device, "dtype": dtype}
        super().__init__()

        def layer_scale(chs: int) -> nn.Module:
            return nn.Identity() if layer_scale_init_value is None else LayerScale2d(chs, layer_scale_init_value, **dd)

        self.growth = gene.out - in_chs
        kernel = gene.kernel if isinstance(gene, ConvBlock) else 3
        self.token_mixer = None
        if isinstance(gene, TransformerLayer):
            self.token_mixer = Attention2d(
                in_chs, gene.head_dim, gene.heads, resolution=resolution, stride=attn_stride, act_layer=act_layer, **dd
            )
            self.ls1 = layer_scale(in_chs)
            self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.mlp = FFNS[gene.ffn](in_chs, gene.out, kernel, gene.ratio, act_layer, **dd)
        self.ls2 = layer_scale(gene.out)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.token_mixer is not None:
            x = x + self.drop_path1(self.ls1(self.token_mixer(x)))
        skip = F.pad(x, (0, 0, 0, 0, 0, self.growth)) if self.growth else x
        return skip + self.drop_path2(self.ls2(self.mlp(x)))


class ESFormerStage(nn.Module):
    """A downsampling (none in the first stage) to the first block's width, then the blocks."""

    def __init__(
        self,
        genes: Sequence[Block],
        in_chs: int,
        resolution: tuple[int, int],
        downsample: bool,
        downsample_attn: bool,
        attn_stride: int | None,
        drop_path: Sequence[float],
        layer_scale_init_value: float | None,
        act_layer: type[nn.Module],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: Any = {"device": device, "dtype": dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = Downsample(in_chs, genes[0].out, resolution, downsample_attn, act_layer, **dd)
            resolution = half(resolution)
        widths = [genes[0].out, *(gene.out for gene in genes[:-1])]  # what each block is given
        self.blocks = nn.Sequential(
            *(
                ESFormerBlock(gene, width, resolution, attn_stride, rate, layer_scale_init_value, act_layer, **dd)
                for gene, width, rate in zip(genes, widths, drop_path, strict=True)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class ESFormer(nn.Module):
    """A genotype made a network: B, in_chans, H, W -> B, num_classes, with H, W = img_size. A network like timm's own.

    Args:
        genotype: the architecture.
        num_classes: outputs of the classifier; 0 leaves the pooled features.
        in_chans: channels of the image.
        img_size: height and width of the image in pixels (one number: square), at least 32. Attention fixes it.
        global_pool: `avg`, or `''` for the unpooled feature map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        layer_scale_init_value: what LayerScale starts from; None leaves it out.
        act_layer: the activation, by timm's name.
        dynamic_img_size: take images of any other size too; attention then interpolates its biases.
        device: of all parameters and buffers.
        dtype: of all parameters, and of the buffers that are not integers.

    Raises:
        ESFormerError: the image is too small, or the pooling unknown.

    Examples:
        >>> network = ESFormer(Genotype.shipped("esformer_s0"), num_classes=10, img_size=64)
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        genotype: Genotype,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-5,
        act_layer: str = "gelu",
        dynamic_img_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dd: Any = {"device": device, "dtype": dtype}
        super().__init__()
        self.genotype = genotype
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        if min(self.img_size) < MIN_IMAGE:
            raise ESFormerError(f"img_size is {img_size}; an ESFormer needs at least {MIN_IMAGE} pixels each way")
        self.dynamic_img_size = dynamic_img_size
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self._asked = dict[str, Any]()  # of timm's create_model
        self._set_pool(global_pool)
        act = get_act_layer(act_layer)

        width = genotype.stages[0][0].out
        self.stem = timm_v2.Stem4(in_chans, width, act_layer=act, **dd)
        resolution = half(half(self.img_size))
        rates = calculate_drop_path_rates(drop_path_rate, [len(genes) for genes in genotype.stages], stagewise=True)
        self.feature_info = []
        stages = []
        for i, genes in enumerate(genotype.stages):
            stages.append(
                ESFormerStage(
                    genes,
                    width,
                    resolution,
                    downsample=i > 0,
                    downsample_attn=i == 3,
                    attn_stride=2 if i == 2 else None,  # stage 3's attention runs at half resolution
                    drop_path=rates[i],
                    layer_scale_init_value=layer_scale_init_value,
                    act_layer=act,
                    **dd,
                )
            )
            width = genes[-1].out
            resolution = half(resolution) if i > 0 else resolution
            self.feature_info.append(dict(num_chs=width, reduction=4 * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)

        self.num_features = self.head_hidden_size = width
        self.norm: nn.Module = nn.BatchNorm2d(width, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(**dd)
        if dynamic_img_size:
            take_any_size(self)

    __jit_unused_properties__ = ["_model_args"]  # TorchScript would compile it

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm writes into the config.json of a saved model, to build it again: no file's name, no object."""
        return self._asked | {"genotype": self.genotype.to_dict()}

    @_model_args.setter
    def _model_args(self, asked: dict[str, Any]) -> None:
        self._asked = asked

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "attention_biases" in name}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return dict(stem=r"^stem", blocks=[*([(r"^stages\.(\d+)", None)] if coarse else fine), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable
        for stage in self.stages:
            assert isinstance(stage, ESFormerStage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            self._set_pool(global_pool)
        like = next(self.parameters())
        self.head = self._classifier(device=like.device, dtype=like.dtype).train(self.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """B, in_chans, H, W -> B, C, H/32, W/32"""
        self._check_size(x)
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """B, C, H/32, W/32 -> B, num_classes"""
        if self.global_pool == "avg":
            x = x.mean(dim=(2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features and the outputs of some stages, as timm's networks give them.

        Args:
            x: images, B, in_chans, H, W.
            indices: the stages to take; a number takes that many of the last, None takes all.
            norm: apply the final norm to the last stage's output too.
            stop_early: leave out the stages after the last one taken.
            output_fmt: only NCHW.
            intermediates_only: give the list alone.
        """
        if output_fmt != "NCHW":
            raise ESFormerError(f"output_fmt is {output_fmt!r}; an ESFormer gives NCHW")
        self._check_size(x)
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == last else x)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if i == last else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the given stages do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        ends_early = max_index < len(self.stages) - 1
        if prune_norm or ends_early:
            self.norm = nn.Identity()
        self.stages = self.stages[: max_index + 1]
        if ends_early:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return take_indices

    def _classifier(self, **dd: Any) -> nn.Module:
        if self.num_classes <= 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, self.num_classes, **dd)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def _set_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ESFormerError(f"global_pool is {global_pool!r}; an ESFormer pools with 'avg' or not at all ('')")
        self.global_pool = global_pool

    def _check_size(self, x: Tensor) -> None:
        if self.dynamic_img_size:
            return
        height, width = self.img_size
        told = f"the network was built for images of {height} x {width}; build it with the img_size of these"
        torch._assert(x.shape[2] == height, told)  # `and` would ask torch.fx, which knows no sizes, for a truth value
        torch._assert(x.shape[3] == width, told)
