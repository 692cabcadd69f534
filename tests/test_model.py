"""
model.py beside Sec. III-A, III-B, III-E and Fig. 1-2: every equation again, another way.

With loops over positions, by hand or in closed form; networks are narrow, images a few pixels wide.
"""

import math
import os
import pickle
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as TF

from model import (
    LiSiam, MaskGuidedTransformer, OCR, SeparableConvUnit, Xception, XceptionClassifier,
    autocast, build_network, load_network, load_xception_weights, precision, scale_channels,
    split_real_fake, to_input)

# 32, 64, 128, 256, 512, 728, 1024, 2048 channels become 8, 8, 8, 16, 24, 40, 48, 104.
WIDTH = 0.05


def settled(module, seed=0):
    """The module in float64 and eval mode, weights and BatchNorm statistics random.

    (A fresh BatchNorm does nothing, so that a test could not see it.)
    """
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return module


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalized(x, bn):
    """BatchNorm in eval mode, written out; channels are the first axis of x."""
    shape = [-1] + [1] * (x.ndim - 1)
    mean = bn.running_mean.view(shape)
    deviation = (bn.running_var + bn.eps).sqrt().view(shape)
    return (x - mean) / deviation * bn.weight.view(shape) + bn.bias.view(shape)


def interpolation(source, target):
    """(target, source) weights: cell i reads coordinate (i + 0.5) source / target - 0.5."""
    weights = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        at = max(0.0, (i + 0.5) * source / target - 0.5)
        below = int(at)
        above = min(below + 1, source - 1)
        weights[i, below] += 1 - at % 1
        weights[i, above] += at % 1
    return weights


def bilinear(image, height, width):
    """One (C, h, w) map at another size."""
    rows = interpolation(image.shape[1], height)
    columns = interpolation(image.shape[2], width)
    return rows @ image @ columns.T


def positions(x):
    """(C, H, W) -> list of H W vectors, row by row: the x_i of Eq. (9) to Eq. (13)."""
    return list(x.flatten(1).unbind(dim=1))


def as_map(vectors, height, width):
    return torch.stack(vectors, dim=1).reshape(-1, height, width)


def matrix(conv):
    """(out, in): what a 1x1 convolution does at every position."""
    return conv.weight[:, :, 0, 0]


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- Sec. III-E: sizes
def test_every_size_that_section_3e_states_at_299_pixels():
    """Sec. III-E: 1024 x 37 x 37 (backbone), 512 x 37 x 37 (OCR), 2 x 37 x 37 (map), 512 x 13 x 13
    (X_c^1); and the sizes in the comments of model.py."""
    expected = {
        "backbone.conv1": (32, 149, 149),
        "backbone.conv2": (64, 147, 147),
        "backbone.block1": (128, 74, 74),
        "backbone.block2": (256, 37, 37),
        "backbone.block3": (728, 37, 37),
        "backbone.block4": (728, 37, 37),
        "backbone.block11": (728, 37, 37),
        "backbone": (1024, 37, 37),
        "ocr": (512, 37, 37),
        "f_seg": (2, 37, 37),
        "f_scu.layers.0": (512, 21, 21),
        "f_scu": (512, 13, 13),
        "f_mt": (1024, 13, 13),
        "f_mlp": (2,),
    }
    net = LiSiam().eval()
    got = {}

    def note(name, module, inputs, output):
        if isinstance(output, tuple):                       # the backbone and OCR return two maps
            output = output[0]
        got[name] = tuple(output.shape[1:])

    for name in expected:
        net.get_submodule(name).register_forward_hook(partial(note, name))
    with torch.inference_mode():
        net(torch.zeros(1, 3, 299, 299))
    assert got == expected


def test_removing_only_the_last_max_pool_would_give_19_by_19():
    """READING Sec. III-E: block 3's stride has to go as well as block 12's.
    Tables I-V: the baseline keeps both."""
    cases = [                                               # network, block 12's map, block 4's map
        (XceptionClassifier(width=WIDTH).backbone, 10, 19),
        (Xception(WIDTH, block3_stride=2, block12_stride=1), 19, 19),
        (Xception(WIDTH, block3_stride=1, block12_stride=2), 19, 37),
        (Xception(WIDTH), 37, 37),
    ]
    for net, last_side, middle_side in cases:
        with torch.inference_mode():
            last, middle = net.eval()(torch.zeros(1, 3, 299, 299))
        assert last.shape[2:] == (last_side, last_side)
        assert middle.shape[2:] == (middle_side, middle_side)


def test_the_parts_have_as_many_parameters_as_their_layers_say():
    """Numbers counted on an independent build; the small ones once more as arithmetic."""
    C = 512
    by_hand = {
        "backbone": 16_058_152,
        "ocr.region_head": 9 * 728 * C + 2 * C + (2 * C + 2),
        "ocr.bottleneck": 9 * 1024 * C + 2 * C,
        "ocr": 3_356_674 + 4_719_616 + 5_378_560,
        "f_seg": 2 * C + 2,
        "f_scu": 2 * (9 * C + C * C + 2 * C),
        "f_mt.f_q": C * C,
        "f_mt.f_k": C * C,
        "f_mt.f_v": C * C,
        "f_mt.f_m": C * C + 2 * C,
        "f_mt.f_se": 2 * 1024 * 64,
        "f_mlp": (1024 * 1024 + 1024) + 2 * 1024 + (2 * 1024 + 2),
        "": 32_283_950,
    }
    with torch.device("meta"):
        net = LiSiam()
    counted = {name: count_parameters(net.get_submodule(name)) for name in by_hand}
    assert counted == by_hand


@pytest.mark.parametrize("pixels, map_side, scu_side", [
    (23, 3, 4), (107, 13, 7), (139, 17, 8), (256, 32, 11)])
def test_other_image_sizes(pixels, map_side, scu_side):
    """Sec. III-E at other sizes: conv1 halves, conv2 takes 2, blocks 1 and 2 halve; f_scu halves
    and adds 2, twice."""
    net = LiSiam(WIDTH).eval()
    with torch.inference_mode():
        backbone, middle = net.backbone(torch.zeros(1, 3, pixels, pixels))
        feats, _ = net.ocr(backbone, middle)
        cls_feats = net.f_scu(feats)
    assert feats.shape[2:] == (map_side, map_side)
    assert cls_feats.shape[2:] == (scu_side, scu_side)


@pytest.mark.parametrize("height, width", [(22, 23), (23, 22), (22, 256), (256, 22)])
def test_images_that_leave_no_3_by_3_map_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"\({height}, {width}\).*at least 23"):
        LiSiam(WIDTH)(torch.zeros(1, 3, height, width))


def test_width_scales_every_channel_count_to_a_multiple_of_8():
    """Width 1.0 changes nothing (728 = 91 * 8); others round to the nearest multiple of 8, never
    below 8. "0.5 of 32.3 million parameters" (train.py, the demo) are those of width 0.125."""
    paper = [32, 64, 128, 256, 512, 728, 1024, 1536, 2048]
    half = [16, 32, 64, 128, 256, 368, 512, 768, 1024]      # 364 = 45.5 * 8 -> 46 * 8 = 368
    assert [scale_channels(count, 1.0) for count in paper] == paper
    assert [scale_channels(count, 0.5) for count in paper] == half
    assert scale_channels(728, 0.125) == 88                 # 91 = 11.4 * 8 -> 11 * 8
    assert scale_channels(32, 0.001) == 8
    assert 0.45e6 < count_parameters(LiSiam(0.125)) < 0.55e6


# ---------------------------------------------------------------- Sec. III-E: Xception, in f_cnn
# Where a block's separable convolutions stand in `rep`: block 1 starts without a ReLU; blocks 4 to
# 11 have three, at 1, 4 and 7.
SEPARABLE_AT = {1: (0, 3), 2: (1, 4), 3: (1, 4), 12: (1, 4)}


def ports_names(weights):
    """XceptionClassifier's weights by the names of the public ports, whose trunk has no prefix."""
    return {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}


def batch_norm(weights, name, x):
    return F.batch_norm(
        x, weights[f"{name}.running_mean"], weights[f"{name}.running_var"],
        weights[f"{name}.weight"], weights[f"{name}.bias"])


def separable(weights, name, x):
    depthwise = weights[f"{name}.conv1.weight"]
    x = F.conv2d(x, depthwise, padding=1, groups=len(depthwise))
    return F.conv2d(x, weights[f"{name}.pointwise.weight"])


def xception_block(weights, number, x, stride):
    block = f"block{number}"
    y = x
    for index in SEPARABLE_AT.get(number, (1, 4, 7)):
        if index > 0:
            y = y.clamp(min=0)
        y = separable(weights, f"{block}.rep.{index}", y)
        y = batch_norm(weights, f"{block}.rep.{index + 1}", y)
    if stride == 2:
        y = F.max_pool2d(y, 3, stride=2, padding=1)
    if number in (1, 2, 3, 12):
        x = F.conv2d(x, weights[f"{block}.skip.weight"], stride=stride)
        x = batch_norm(weights, f"{block}.skipbn", x)
    return y + x                                            # x as it was before the ReLU


def xception_by_names(weights, images, strided_blocks):
    """(block 12's map, block 4's map) from weights by the names of the public ports alone."""
    x = F.conv2d(images, weights["conv1.weight"], stride=2)
    x = batch_norm(weights, "bn1", x).clamp(min=0)
    x = F.conv2d(x, weights["conv2.weight"])
    x = batch_norm(weights, "bn2", x).clamp(min=0)
    outputs = {}
    for number in range(1, 13):
        stride = 2 if number in strided_blocks else 1
        x = xception_block(weights, number, x, stride)
        outputs[number] = x
    return outputs[12], outputs[4]


def test_xception_recomputed_from_the_names_of_the_public_ports():
    """Eq. (2), first half: blocks 1 to 12, and block 4's output. Blocks 5 to 11 add x as it was
    before the ReLU: an in-place first ReLU would clip it, and block 4's output with it."""
    net = settled(Xception(WIDTH))
    images = noise(2, 3, 35, 41, seed=2)
    last, middle = net(images)
    last_by_hand, middle_by_hand = xception_by_names(net.state_dict(), images, (1, 2))
    assert_close(last, last_by_hand)
    assert_close(middle, middle_by_hand)


def test_the_baseline_recomputed_from_the_names_of_the_public_ports():
    """[3]: strides in blocks 3 and 12 as well, two more separable convolutions, each with BatchNorm
    and ReLU, the mean over the map, one linear layer."""
    net = settled(XceptionClassifier(3, WIDTH))
    images = noise(2, 3, 35, 41, seed=2)
    weights = ports_names(net.state_dict())
    last, middle = net.backbone(images)
    last_by_hand, middle_by_hand = xception_by_names(weights, images, (1, 2, 3, 12))
    assert_close(last, last_by_hand)
    assert_close(middle, middle_by_hand)

    x = separable(weights, "conv3", last_by_hand)
    x = batch_norm(weights, "bn3", x).clamp(min=0)
    x = separable(weights, "conv4", x)
    x = batch_norm(weights, "bn4", x).clamp(min=0)
    pooled = x.mean(dim=(2, 3))
    assert_close(net(images), pooled @ weights["fc.weight"].T + weights["fc.bias"])


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR, in f_cnn
def conv_bn_relu_by_hand(x, *blocks):
    """One image's x (C, H, W) through blocks of a convolution (1x1 or 3x3), BatchNorm and ReLU."""
    for conv, bn, _ in blocks:
        x = F.conv2d(x[None], conv.weight, padding=conv.kernel_size[0] // 2)[0]
        x = normalized(x, bn).clamp(min=0)
    return x


def ocr_by_loops(ocr, backbone, middle):
    """X_I and region_logits of one image, position by position."""
    height, width = middle.shape[1:]
    region_block, last = ocr.region_head
    hidden = conv_bn_relu_by_hand(middle, region_block)
    region_logits = [matrix(last) @ vector + last.bias for vector in positions(hidden)]

    x = conv_bn_relu_by_hand(backbone, ocr.bottleneck)
    keys = []
    values = []
    for region in (0, 1):                                   # gather: softmax over positions
        weights = [logits[region].exp() for logits in region_logits]
        total = sum(weight * x_i for weight, x_i in zip(weights, positions(x)))
        f_k = as_map([total / sum(weights)], 1, 1)
        keys.append(conv_bn_relu_by_hand(f_k, *ocr.key).flatten())
        values.append(conv_bn_relu_by_hand(f_k, ocr.value).flatten())

    mixed = []
    for query in positions(conv_bn_relu_by_hand(x, *ocr.query)):    # distribute: over two regions
        real = math.exp(query @ keys[0] / math.sqrt(len(query)))
        fake = math.exp(query @ keys[1] / math.sqrt(len(query)))
        mixed.append((real * values[0] + fake * values[1]) / (real + fake))
    context = conv_bn_relu_by_hand(as_map(mixed, height, width), ocr.up)
    feats = conv_bn_relu_by_hand(torch.cat([context, x]), ocr.fuse)
    return feats, as_map(region_logits, height, width)


def test_ocr_gathers_over_space_and_distributes_over_two_regions():
    """Eq. (2), second half; [39]: each region is a mean of features weighted by a softmax over
    *space*; each position mixes the regions' values by a softmax over *regions* of query . key /
    sqrt(keys); the mix goes before the features, both are fused. Images do not mix."""
    ocr = settled(OCR(WIDTH), seed=3)
    backbone = noise(2, 48, 3, 4, seed=4)
    middle = noise(2, 40, 3, 4, seed=5)
    feats, region_logits = ocr(backbone, middle)
    for n in range(2):
        feats_by_hand, region_logits_by_hand = ocr_by_loops(ocr, backbone[n], middle[n])
        assert_close(feats[n], feats_by_hand)
        assert_close(region_logits[n], region_logits_by_hand)


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: f_mt
def test_real_and_fake_share_the_features_and_channel_1_is_fake():
    """Eq. (5), Eq. (7), Eq. (8): softmax sums to 1 and f_bi keeps that, so X_r + X_f = X_c; channel
    0 is real, 1 is fake."""
    cls_feats = noise(2, 8, 13, 13)
    says_fake = torch.zeros(2, 2, 37, 37, dtype=torch.float64)
    says_fake[:, 1] = 5.0
    x_real, x_fake = split_real_fake(cls_feats, says_fake)
    assert_close(x_real + x_fake, cls_feats)
    assert_close(x_fake, cls_feats / (1 + math.exp(-5.0)))  # Eq. (8): softmax([0, 5])[1], by hand


def test_the_map_is_reduced_between_its_cells_and_after_the_softmax():
    """Eq. (6): f_bi reads a map of 4 columns at 2 columns at coordinates 0.5 and 2.5, not at its
    corners 0 and 3; it reads probabilities, not logits."""
    p_fake = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    fake_logits = (p_fake / (1 - p_fake)).log()             # softmax of (0, this) is (1 - p, p)
    seg_logits = torch.stack([torch.zeros_like(p_fake), fake_logits])[None, :, None, :]
    ones = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    x_real, x_fake = split_real_fake(ones, seg_logits)
    assert x_fake.flatten().tolist() == pytest.approx([0.15, 0.6])
    assert x_real.flatten().tolist() == pytest.approx([0.85, 0.4])


def transformer_by_loops(f_mt, cls_feats, seg_logits):
    """Z (2 C, H, W) of one image and its attention (N, N), from vectors and matrices only."""
    height, width = cls_feats.shape[1:]
    probs = seg_logits.exp() / seg_logits.exp().sum(dim=0)
    probs = bilinear(probs, height, width)                  # Eq. (6)
    x_c = positions(cls_feats)
    x_r = positions(cls_feats * probs[0])                   # Eq. (7)
    x_f = positions(cls_feats * probs[1])                   # Eq. (8)
    q = [matrix(f_mt.f_q) @ x for x in x_f]                 # Eq. (9)
    k = [matrix(f_mt.f_k) @ x for x in x_r]                 # Eq. (10)
    v = [matrix(f_mt.f_v) @ x for x in x_r]                 # Eq. (11)

    attention = []
    both = []
    for i in range(height * width):
        scores = torch.stack([(q[i] @ k_j).exp() for k_j in k])
        a_i = scores / scores.sum()                         # Eq. (12)  over j
        answer = sum(a_ij * v_j for a_ij, v_j in zip(a_i, v))
        conv, bn = f_mt.f_m
        y_i = normalized(matrix(conv) @ answer, bn)         # Eq. (13)
        attention.append(a_i)
        both.append(torch.cat([y_i + x_f[i], x_c[i]]))      # Eq. (14)  concat(Y + X_f, X_c)

    means = sum(both) / len(both)
    hidden = (f_mt.f_se.squeeze.weight @ means).clamp(min=0)
    weights = 1 / (1 + (-f_mt.f_se.excite.weight @ hidden).exp())
    fused = as_map([weights * vector for vector in both], height, width)    # Eq. (14)  f_se
    return fused, torch.stack(attention)


def test_mask_guided_transformer_against_loops_over_positions():
    """Eq. (6) and Eq. (9), Eq. (10), Eq. (11), Eq. (12), Eq. (13), Eq. (14): a loop over i and j,
    one image at a time, where attention is neither uniform nor symmetric."""
    f_mt = settled(MaskGuidedTransformer(16), seed=11)
    cls_feats = 2 * noise(2, 16, 3, 4, seed=12)
    seg_logits = 2 * noise(2, 2, 7, 9, seed=13)
    fused = f_mt(cls_feats, seg_logits)
    for n in range(2):
        by_hand, attention = transformer_by_loops(f_mt, cls_feats[n], seg_logits[n])
        assert_close(fused[n], by_hand, rtol=1e-4, atol=1e-4)       # its softmax is in float32
        assert attention.max() > 0.5
        assert not torch.allclose(attention, attention.T, atol=0.1)


def bare_transformer():
    """f_q, f_k, f_v, f_m the identity, no re-weighting: what is left of Fig. 2 is the attention."""
    f_mt = MaskGuidedTransformer(16).eval().requires_grad_(False)
    for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]):
        conv.weight.copy_(torch.eye(16)[:, :, None, None])
    f_mt.f_m[1] = nn.Identity()
    f_mt.f_se = nn.Identity()
    return f_mt


def bare_attention(first, second):
    """Y (2 channels, 2 positions) under autocast, where X_f and X_r are two given positions."""
    cls_feats = torch.zeros(1, 16, 1, 2)
    cls_feats[0, :2, 0, 0] = 2 * torch.tensor(first)        # halved by a map that knows nothing
    cls_feats[0, :2, 0, 1] = 2 * torch.tensor(second)
    knows_nothing = torch.zeros(1, 2, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = bare_transformer()(cls_feats, knows_nothing)
    return fused[0, :2, 0].float() - cls_feats[0, :2, 0] / 2        # Z's first half is Y + X_f


def test_attention_has_no_scale_by_the_square_root_of_the_channels():
    """Eq. (12), READING: softmax(q_i . k_j) as printed. Position 0 finds q . k = 4 and 0, its Y is
    2 / (1 + e^-4) = 1.96; with 1 / sqrt(16) it would be 1.46."""
    y = bare_attention([2.0, 0.0], [0.0, 0.0])
    assert y[0].tolist() == pytest.approx([2 / (1 + math.exp(-4)), 1], rel=0.01)


def test_attention_is_in_float32_even_under_autocast():
    """Eq. (12): position 1 finds q . k = 256 and 257; bfloat16 has no 257 and would give 0.5."""
    y = bare_attention([16.0, 0.0], [16.0, 1.0])
    assert y[0].tolist() == pytest.approx([16, 16], rel=0.01)
    assert y[1].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))], rel=0.01)


def test_fake_positions_ask_and_real_positions_answer():
    """Eq. (9) to Eq. (13): where the map says fake everywhere there is nothing real to attend to,
    so Y = f_m(0); where it says real everywhere X_f = 0, every query is 0, and each position gets
    the plain mean of the real features. Eq. (14): the second half of Z is X_c itself."""
    f_mt = bare_transformer()
    cls_feats = noise(1, 16, 3, 3, seed=14).float()
    all_fake = torch.zeros(1, 2, 5, 5)
    all_fake[:, 1] = 60.0
    all_real = all_fake.flip(1)
    mean = cls_feats.mean(dim=(2, 3), keepdim=True).expand(1, 16, 3, 3)
    # Y + X_f is 0 + X_c, then mean + 0.
    assert_close(f_mt(cls_feats, all_fake), torch.cat([cls_feats, cls_feats], dim=1))
    assert_close(f_mt(cls_feats, all_real), torch.cat([mean, cls_feats], dim=1))


# ---------------------------------------------------------------- Sec. III-A, III-B: dropout
@pytest.mark.parametrize("index", [2, 6])
def test_dropout_in_f_scu_takes_one_in_ten_whole_channels(index):
    """Sec. III-A names dropout in f_scu; READING: after each BatchNorm, p = 0.1, by channel; what
    is kept is divided by 0.9."""
    torch.manual_seed(0)
    dropout = SeparableConvUnit(1000).layers[index]
    got = dropout(torch.ones(1, 1000, 2, 2))[0].flatten(1)
    assert torch.equal(got, got[:, :1].expand(-1, 4))       # a channel is kept or lost as a whole
    assert 0.07 < (got == 0).float().mean() < 0.13
    assert_close(got.max(), torch.tensor(1 / 0.9))


def test_dropout_in_f_mt_takes_one_in_ten_attention_weights():
    """READING Sec. III-B: dropout 0.1 on a_ij. With X_f = 0 and X_r = 1 a position's Y is its kept
    share of N = 100, over 0.9: mean 1, deviation sqrt(0.1 / 0.9 / 100) = 0.03."""
    torch.manual_seed(0)
    all_real = torch.zeros(1, 2, 10, 10)
    all_real[:, 0] = 60.0
    f_mt = bare_transformer().train()
    y = f_mt(torch.ones(1, 16, 10, 10), all_real)[0, :16]
    assert_close(y, y[:1].expand(16, 10, 10))               # a weight is lost for all channels
    assert 0.98 < y.mean() < 1.02
    assert y.min() > 0.8
    assert 0.02 < y.std() < 0.05


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: all of it
def separable_by_hand(layer, x):
    """[32], stride 2: a filter per channel, then a mix of channels, position by position; what the
    1x1 convolution pads stays zero."""
    _, height, width = x.shape
    padded = F.pad(x, [1, 1, 1, 1])
    filters = layer.conv1.weight[:, 0]
    mixed = []
    for i in range(0, height, 2):
        for j in range(0, width, 2):
            filtered = (padded[:, i:i + 3, j:j + 3] * filters).sum(dim=(1, 2))
            mixed.append(matrix(layer.pointwise) @ filtered)
    return F.pad(as_map(mixed, (height + 1) // 2, (width + 1) // 2), [1, 1, 1, 1])


@pytest.mark.parametrize("num_classes, transformer", [(2, True), (5, True), (2, False)])
def test_inference_is_the_composition_of_the_parts(num_classes, transformer):
    """Eq. (1): alpha = f_mlp(f_mt(f_seg(f_cnn(I)), f_scu(f_cnn(I)))); READING Table VI, Model-F:
    alpha = f_mlp(X_c). Eq. (3): f_seg is the same 2 x C matrix at every position. Eq. (4): f_scu is
    twice a separable convolution and BatchNorm, one ReLU between the two. Eq. (18): f_mlp works on
    the mean over positions."""
    net = settled(LiSiam(WIDTH, num_classes, transformer), seed=20)
    images = noise(2, 3, 35, 43, seed=21)
    out = net(images)
    assert out.cls_logits.shape == (2, num_classes)

    backbone, middle = net.backbone(images)
    feats, region_logits = net.ocr(backbone, middle)                        # Eq. (2)
    conv1, bn1, _, _, conv2, bn2, _ = net.f_scu.layers
    first, bn, _, last = net.f_mlp.f_mlp
    for n in range(2):
        at = [matrix(net.f_seg) @ x_i + net.f_seg.bias for x_i in positions(feats[n])]
        seg_logits = as_map(at, 4, 5)                                       # Eq. (3)
        hidden = normalized(separable_by_hand(conv1, feats[n]), bn1).clamp(min=0)
        cls_feats = normalized(separable_by_hand(conv2, hidden), bn2)       # Eq. (4)
        fused = cls_feats
        if transformer:
            fused, _ = transformer_by_loops(net.f_mt, cls_feats, seg_logits)
        pooled = sum(positions(fused)) / len(positions(fused))              # Eq. (18)  f_aap
        hidden = normalized(first.weight @ pooled + first.bias, bn).clamp(min=0)
        cls_logits = last.weight @ hidden + last.bias
        assert_close(out.cls_logits[n], cls_logits, rtol=1e-4, atol=1e-4)
        assert_close(out.seg_logits[n], seg_logits)
        assert_close(out.region_logits[n], region_logits[n])


@pytest.mark.parametrize("transformer", [True, False])
def test_the_decision_trains_the_map_through_the_transformer(transformer):
    """Eq. (5), Fig. 1: alpha's gradient reaches f_seg; without f_mt (Model-F) it does not."""
    net = settled(LiSiam(WIDTH, transformer=transformer), seed=20)
    net.f_seg.weight.requires_grad_()
    assert net(noise(2, 3, 35, 43, seed=21)).cls_logits.requires_grad == transformer


@pytest.mark.parametrize("heads", [(True, False), (True, True), (False, True), (False, False)])
def test_a_pair_is_two_calls_of_the_same_network_and_heads_say_which_branches_decide(heads):
    """Fig. 1: the branches share every weight, clean comes out first. Table VI: B reads both
    branches, D and E the degraded one, stage 1 none; a head that is not asked for does not run.
    Bit-equal: a call has no memory."""
    net = settled(LiSiam(WIDTH), seed=27)
    clean = noise(1, 3, 35, 35, seed=28)
    degraded = noise(1, 3, 35, 35, seed=29)
    alone = [net(clean), net(degraded)]
    assert not torch.allclose(alone[0].seg_logits, alone[1].seg_logits)

    ran = []

    def note(module, inputs, output):
        ran.append(module)

    for module in net.classification_modules():
        module.register_forward_hook(note)
    pair = net(clean, degraded, heads=heads)
    assert len(ran) == 3 * heads.count(True)
    for branch, single, has_head in zip(pair, alone, heads):
        assert torch.equal(branch.seg_logits, single.seg_logits)
        assert torch.equal(branch.region_logits, single.region_logits)
        if has_head:
            assert torch.equal(branch.cls_logits, single.cls_logits)
        else:
            assert branch.cls_logits is None
    single = net(clean, heads=heads)
    assert (single.cls_logits is not None) == heads[0]


def test_only_the_first_branch_decides_unless_heads_say_otherwise():
    """Fig. 1: alpha comes from the clean image."""
    net = settled(LiSiam(WIDTH), seed=27)
    clean = noise(1, 3, 35, 35, seed=28)
    degraded = noise(1, 3, 35, 35, seed=29)
    first, second = net(clean, degraded)
    assert torch.equal(first.cls_logits, net(clean).cls_logits)
    assert torch.equal(second.seg_logits, net(degraded).seg_logits)
    assert second.cls_logits is None


def test_batchnorm_sees_each_branch_on_its_own_clean_first():
    """READING Sec. III-A: after one pair bn1's running mean, 0 at the start, is 0.09 m1 + 0.1 m2
    (0.09 = 0.9 * 0.1), its variance, 1 at the start, 0.81 + 0.09 v1 + 0.1 v2. One joined batch, or
    degraded first, would give other numbers. Each map is the one its image has alone."""
    torch.manual_seed(0)
    net = LiSiam(WIDTH).double().train()
    clean = noise(2, 3, 35, 35, seed=30)
    degraded = 1 + 3 * noise(2, 3, 35, 35, seed=31)
    kernel = net.backbone.conv1.weight
    v1, m1 = torch.var_mean(F.conv2d(clean, kernel, stride=2), dim=(0, 2, 3))
    v2, m2 = torch.var_mean(F.conv2d(degraded, kernel, stride=2), dim=(0, 2, 3))

    first, second = net(clean, degraded)
    assert_close(net.backbone.bn1.running_mean, 0.09 * m1 + 0.1 * m2)
    assert_close(net.backbone.bn1.running_var, 0.81 + 0.09 * v1 + 0.1 * v2)
    assert net.f_scu.layers[1].num_batches_tracked == 1     # only the first branch has a head
    no_heads = (False, False)
    assert torch.equal(first.seg_logits, net(clean, heads=no_heads).seg_logits)
    assert torch.equal(second.seg_logits, net(degraded, heads=no_heads).seg_logits)


@pytest.mark.parametrize("transformer", [True, False])
def test_the_stages_modules_split_every_parameter(transformer):
    """Sec. IV-B: segmentation (f_cnn, f_seg) and classification (f_scu, f_mt, f_mlp); none left
    over, none shared."""
    net = LiSiam(WIDTH, transformer=transformer)
    assert net.segmentation_modules() == [net.backbone, net.ocr, net.f_seg]
    if transformer:
        assert net.classification_modules() == [net.f_scu, net.f_mt, net.f_mlp]
    else:
        assert net.classification_modules() == [net.f_scu, net.f_mlp]
    parts = net.segmentation_modules() + net.classification_modules()
    assert sum(len(part.state_dict()) for part in parts) == len(net.state_dict())


# ---------------------------------------------------------------- what a network needs to exist
SETTINGS = {
    "data": "ff++", "quality": "c23", "mask": "ssim", "out": "runs/x", "seed": 0, "size": 48,
    "model": "lisiam", "variant": "A", "iqd": False,
    "width": WIDTH, "num_classes": 5, "transformer": True,
}


def test_to_input_is_torchvisions_scaling_and_keeps_the_order_of_the_channels():
    """DEPARTURE Sec. III-E: RGB in [-1, 1], bit-equal to torchvision's for each of the 256 bytes;
    the three channels differ, so a swap would show."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = torch.cat([levels, levels.flip(2), levels.flip(3)], dim=1)
    got = to_input(images)
    scaled = TF.to_dtype(images, torch.float32, scale=True)
    assert torch.equal(got, TF.normalize(scaled, [0.5] * 3, [0.5] * 3))
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.min() == -1
    assert got.max() == 1


def test_build_network_does_what_the_settings_say():
    """Fig. 5: five classes; Table VI: Model-F has no f_mt; Tables I-V: the baseline."""
    lisiam = build_network(SETTINGS)
    assert isinstance(lisiam, LiSiam)
    assert lisiam.backbone.conv1.out_channels == 8
    assert lisiam.f_mlp.f_mlp[-1].out_features == 5
    assert lisiam.f_mt is not None
    assert build_network({**SETTINGS, "transformer": False}).f_mt is None
    baseline = build_network({**SETTINGS, "model": "xception"})
    assert isinstance(baseline, XceptionClassifier)
    assert baseline.backbone.conv1.out_channels == 8
    assert baseline.fc.out_features == 5


@pytest.mark.parametrize("model", ["lisiam", "xception"])
def test_a_checkpoint_comes_back_as_the_network_of_its_run(model, tmp_path):
    settings = {**SETTINGS, "model": model}
    net = settled(build_network(settings)).float()
    path = tmp_path / "best.pt"
    torch.save({"model": net.state_dict(), "settings": settings, "iteration": 9,
                "threshold": 0.35}, path)
    loaded, got = load_network(path)
    assert got == {**settings, "threshold": 0.35}           # of the map, best on val
    assert type(loaded) is type(net)
    assert not loaded.training
    assert loaded.backbone.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


@pytest.mark.parametrize("name, value", [
    ("width", 8.0), ("width", "0.05"), ("width", 0.0), ("size", 10 ** 9), ("size", 48.0),
    ("num_classes", 3), ("num_classes", 10 ** 9), ("transformer", 1), ("mask", None), ("out", 7)])
def test_settings_of_another_kind_or_of_absurd_size_build_nothing(
        name, value, tmp_path, monkeypatch):
    """A width of 8 would take 8.5 GB before its weights are found not to fit."""
    monkeypatch.setattr("model.build_network", lambda settings: pytest.fail("it was built"))
    torch.save({"model": {}, "settings": {**SETTINGS, name: value}}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="best.pt is not a checkpoint"):
        load_network(tmp_path / "best.pt")


@pytest.mark.parametrize("threshold", [0.0, 2.0, "0.5", None])
def test_a_threshold_that_is_none_is_refused(threshold, tmp_path):
    net = build_network(SETTINGS)
    torch.save({"model": net.state_dict(), "settings": SETTINGS, "threshold": threshold},
               tmp_path / "best.pt")
    with pytest.raises(ValueError, match="best.pt is not a checkpoint"):
        load_network(tmp_path / "best.pt")


def test_on_the_cpu_the_network_runs_in_float32():
    assert precision("cpu") == torch.float32
    with autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


# ---------------------------------------------------------------- Sec. IV-B: weights that fit
def example_weights():
    """XceptionClassifier's at our small width; every number is one that half precision has, too."""
    weights = {}
    for name, tensor in settled(XceptionClassifier(3, WIDTH), seed=40).state_dict().items():
        weights[name] = tensor.half().float() if tensor.is_floating_point() else tensor
    return weights


OURS = example_weights()
PORT = ports_names(OURS)
IMAGENET = {**PORT, "fc.weight": torch.ones(1000, 104), "fc.bias": torch.ones(1000)}


def renamed(prefix, head="fc."):
    """PORT with a prefix before every name, and another name for the head."""
    weights = {}
    for name, tensor in PORT.items():
        if name.startswith("fc."):
            name = head + name.removeprefix("fc.")
        weights[prefix + name] = tensor
    return weights


def old():
    """PORT as xception-b5690688.pth has it: pointwise kernels are matrices, no counters."""
    weights = {}
    for name, tensor in PORT.items():
        if name.endswith("pointwise.weight"):
            tensor = tensor[:, :, 0, 0]
        if not name.endswith("num_batches_tracked"):
            weights[name] = tensor
    return weights


FORMATS = {
    "tstandley, timm legacy_xception": PORT,
    "xception-b5690688": old(),
    "FaceForensics as a state_dict": renamed("model.", head="last_linear.1."),
    "DeepfakeBench, DistributedDataParallel": {
        **renamed("module.backbone.", head="last_linear."),
        "module.backbone.adjust_channel.0.weight": torch.ones(5, 7, 1, 1),
    },
    "ISPL": {"net": renamed("xception.", head="last_linear."), "epoch": 3},
    "a training script's": {"epoch": 7, "state_dict": renamed("module."), "best": 0.5},
    "ours: best.pt": {"model": OURS, "iteration": 9},
    "half precision": {name: tensor.half() for name, tensor in PORT.items()},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_public_format_fills_the_same_trunk(name, tmp_path):
    """Whatever the prefix, the head's name or the pointwise kernels' rank: bit-equal weights and
    statistics in both networks, and in LiSiam nothing else changes. 236 tensors without BatchNorm's
    counters, as in seven public ports; 222 in the trunk."""
    path = tmp_path / "weights.pth"
    torch.save(FORMATS[name], path)
    lisiam = LiSiam(WIDTH)
    baseline = XceptionClassifier(3, WIDTH)
    before = {key: tensor.clone() for key, tensor in lisiam.state_dict().items()}
    assert load_xception_weights(lisiam, path) == "222 tensors from weights.pth"
    sentence = load_xception_weights(baseline, str(path))
    assert sentence == "236 tensors from weights.pth; head too"

    after = lisiam.state_dict()
    for key, tensor in OURS.items():
        if key.endswith("num_batches_tracked"):
            continue
        assert_close(baseline.state_dict()[key], tensor, rtol=0, atol=0)
        if key.startswith("backbone."):
            assert_close(after[key], tensor, rtol=0, atol=0)
    for key, tensor in after.items():
        if not key.startswith("backbone."):
            assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("weights", [IMAGENET, {**IMAGENET, "fc.bias": torch.ones(2)}],
                         ids=["1000 classes", "a bias that fits"])
def test_a_head_that_does_not_fit_stays_random(weights, tmp_path):
    """Sec. IV-B: ImageNet's 1000 classes do not fit a decision of 2: all but the head is taken, and
    it is said; a bias that happens to fit is not taken alone."""
    baseline = XceptionClassifier(2, WIDTH)
    weight = baseline.fc.weight.clone()
    bias = baseline.fc.bias.clone()
    path = tmp_path / "file.pth"
    torch.save(weights, path)
    sentence = load_xception_weights(baseline, path)
    assert sentence == "234 tensors from file.pth; head left random"
    assert torch.equal(baseline.fc.weight, weight)
    assert torch.equal(baseline.fc.bias, bias)
    assert torch.equal(baseline.conv4.pointwise.weight, weights["conv4.pointwise.weight"])


def test_blocks_1_to_12_are_enough_for_lisiam_but_not_for_the_baseline(tmp_path):
    """The authors' release holds these only, as backbone_net.*"""
    weights = {}
    for name, tensor in OURS.items():
        if name.startswith("backbone."):
            weights[name.replace("backbone.", "backbone_net.")] = tensor
    path = tmp_path / "file.pth"
    torch.save(weights, path)
    lisiam = LiSiam(WIDTH)
    load_xception_weights(lisiam, path)
    assert torch.equal(lisiam.backbone.block12.skip.weight, PORT["block12.skip.weight"])
    says = r"file\.pth lacks 12 tensors .* first is conv3\.conv1\.weight.*--pretrained none"
    with pytest.raises(ValueError, match=says):
        load_xception_weights(XceptionClassifier(2, WIDTH), path)


@pytest.mark.parametrize("damage, says", [
    (lambda tensor: tensor * float("nan"), "no finite numbers"),
    (lambda tensor: tensor.to("meta"), "lacks 1 tensors"),
    (lambda tensor: tensor.to_sparse(), "lacks 1 tensors"),
], ids=["nan", "meta", "sparse"])
def test_weights_without_numbers_of_use_are_refused(damage, says, tmp_path):
    path = tmp_path / "file.pth"
    torch.save({**PORT, "conv1.weight": damage(PORT["conv1.weight"])}, path)
    with pytest.raises(ValueError, match=says):
        load_xception_weights(LiSiam(WIDTH), path)


# ---------------------------------------------------------------- files of no use
class Hostile:
    """Unpickled without care it creates a folder."""

    def __reduce__(self):
        return os.mkdir, ("it ran",)


def check_refusal(load, path, contents, says):
    """Loading ends in a ValueError of one line that names the file; no code in it has run.

    contents: bytes are written as they are, None not at all, anything else by torch.save.
    """
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    with pytest.raises(ValueError, match=says) as caught:
        load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert not Path("it ran").exists()


def without(weights, name):
    return {key: tensor for key, tensor in weights.items() if key != name}


HOSTILE_PICKLE = pickle.dumps(Hostile(), protocol=2)
USELESS = {                             # what the file holds, what load_xception_weights says
    "a missing tensor": (
        without(PORT, "block7.rep.4.conv1.weight"),
        "lacks 1 tensors .*first is block7.rep.4.conv1.weight.*--pretrained none"),
    "a wrong shape": (
        {**PORT, "block12.skip.weight": torch.ones(48, 41, 1, 1)},
        "other shapes for 1 tensors .*block12.skip.weight"),
    "another architecture": (
        {"stem.0.weight": torch.ones(3), "head.fc.bias": torch.ones(2)},
        "lacks 222 tensors"),
    "a number for a tensor": (
        {**PORT, "conv1.weight": 3},
        "lacks 1 tensors .*first is conv1.weight"),
    "no tensors": ({"epoch": 3, "state_dict": {}}, "expected a port's state_dict"),
    "a list": ([torch.ones(2)], "expected a port's state_dict"),
    "a pickled network": (
        XceptionClassifier(2, WIDTH),
        r"torch.save its model.state_dict\(\), and pass that file"),
    "a hostile checkpoint": ({**PORT, "fc.weight": Hostile()}, "pass that file"),
    "a hostile pickle": (HOSTILE_PICKLE, "pass that file"),
    "text": (b"404: not found\n", "pass that file"),
    "an empty file": (b"", "pass that file"),
    "no file": (None, "no file .*--pretrained takes"),
    ".": (None, "no file .*--pretrained takes"),
}


@pytest.mark.parametrize("name", USELESS)
def test_a_file_of_no_use_is_named_with_a_remedy_and_nothing_in_it_runs(
        name, tmp_path, monkeypatch):
    """Every wrong file ends in one ValueError that names it; no weight has changed; no code of the
    file has run."""
    monkeypatch.chdir(tmp_path)
    contents, says = USELESS[name]
    net = LiSiam(WIDTH)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    check_refusal(partial(load_xception_weights, net), tmp_path / name, contents, says)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key]), key


FOREIGN = {                             # files that are no checkpoints of train.py
    "an empty file": b"",
    "text": b"404: not found\n",
    "a list": [torch.ones(2)],
    "a port's weights": PORT,
    "no settings": {"model": LiSiam(WIDTH).state_dict()},
    "another network's weights": {"model": PORT, "settings": SETTINGS},
    "a hostile checkpoint": {"model": Hostile(), "settings": SETTINGS},
    "a hostile pickle": HOSTILE_PICKLE,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_refused_and_nothing_in_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refusal(load_network, tmp_path / name, FOREIGN[name], "is not a checkpoint of train.py")


def test_a_missing_checkpoint_is_answered_with_the_command_that_writes_one(tmp_path):
    for path in (tmp_path / "best.pt", tmp_path):
        check_refusal(load_network, path, None, "no checkpoint .*python train.py --data demo")


def test_with_the_safety_off_a_hostile_file_does_create_its_folder(tmp_path, monkeypatch):
    """Else the tests above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    torch.save({**PORT, "fc.weight": Hostile()}, "file.pth")
    torch.load("file.pth", weights_only=False)
    assert Path("it ran").exists()


# ---------------------------------------------------------------- Sec. IV-B: ImageNet weights
@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty: where Sec. IV-B's ImageNet weights would lie. No network."""
    def no_network(url, target):
        pytest.fail(f"download of {url}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    return tmp_path / "hub" / "checkpoints" / "xception-43020ad28.pth"


def test_imagenet_weights_are_downloaded_once(hub, monkeypatch):
    """Sec. IV-B: into torch.hub's folder under the file's own name; a second call reads the file
    that is there."""
    urls = []

    def download(url, target, hash_prefix):
        assert hash_prefix in url
        urls.append(url)
        torch.save(IMAGENET, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for net in (LiSiam(WIDTH), XceptionClassifier(2, WIDTH)):
        load_xception_weights(net, "imagenet")
        assert torch.equal(net.backbone.conv2.weight, IMAGENET["conv2.weight"])
    assert len(urls) == 1
    assert urls[0].endswith("/xception-43020ad28.pth")
    assert list(hub.parent.iterdir()) == [hub]


@pytest.mark.parametrize("failure", [URLError("no route to host"), OSError(28, "disk full")])
def test_a_failing_download_says_what_to_do_instead(failure, hub, monkeypatch):
    def download(url, target, hash_prefix):
        raise failure

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    says = "xception-43020ad28.pth.*--pretrained FILE.*--pretrained none"
    with pytest.raises(ValueError, match=says):
        load_xception_weights(LiSiam(WIDTH), "imagenet")


def test_a_folder_that_cannot_be_made_says_what_to_do_instead(hub):
    hub.parent.parent.write_text("in the way")
    says = "xception-43020ad28.pth.*--pretrained FILE.*--pretrained none"
    with pytest.raises(ValueError, match=says):
        load_xception_weights(LiSiam(WIDTH), "imagenet")


def test_a_download_that_was_cut_off_is_to_be_deleted(hub, monkeypatch):
    """A connection that closes early leaves a short file under the right name, which every later
    run meets, too."""
    def download(url, target, hash_prefix):
        torch.save(PORT, target)
        hub.write_bytes(hub.read_bytes()[:-5000])

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):                                      # this run, and a later one
        with pytest.raises(ValueError, match="xception-43020ad28.pth.*delete it"):
            load_xception_weights(LiSiam(WIDTH), "imagenet")
