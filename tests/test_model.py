"""
The network of model.py beside Sec. III-A, III-B, III-E and Fig. 1-2.

Each test computes an equation a second time: with loops over positions, by hand or in closed form.
The networks are narrow, and the images are a few pixels wide.
"""

import math
from functools import partial

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

WIDTH = 0.05            # 512, 728, 1024 and 2048 channels become 24, 40, 48 and 104


def settled(module, seed=0):
    """Returns the module in float64 and eval mode, with random weights and BatchNorm statistics.

    A fresh BatchNorm changes nothing, so no test would notice if it were missing.
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
    """Computes BatchNorm in eval mode; the channels are the first axis of x."""
    shape = [-1] + [1] * (x.ndim - 1)
    mean = bn.running_mean.view(shape)
    deviation = (bn.running_var + bn.eps).sqrt().view(shape)
    return (x - mean) / deviation * bn.weight.view(shape) + bn.bias.view(shape)


def interpolation(source, target):
    """Returns (target, source) weights; cell i reads at (i + 0.5) source / target - 0.5."""
    weights = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        at = max(0.0, (i + 0.5) * source / target - 0.5)
        below = int(at)
        above = min(below + 1, source - 1)
        weights[i, below] += 1 - at % 1
        weights[i, above] += at % 1
    return weights


def bilinear(image, height, width):
    """Resizes one map (C, h, w)."""
    rows = interpolation(image.shape[1], height)
    columns = interpolation(image.shape[2], width)
    return rows @ image @ columns.T


def positions(x):
    """Splits (C, H, W) row by row into H W vectors, the x_i of Eq. (9) to Eq. (13)."""
    return list(x.flatten(1).unbind(dim=1))


def as_map(vectors, height, width):
    return torch.stack(vectors, dim=1).reshape(-1, height, width)


def matrix(conv):
    """Returns the (out, in) matrix that a 1x1 convolution applies at every position."""
    return conv.weight[:, :, 0, 0]


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- Sec. III-E: sizes
def test_every_size_that_section_3e_states_at_299_pixels():
    """Sec. III-E states the sizes of backbone, OCR, map and X_c^1; model.py states the others."""
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
    """READING Sec. III-E: 37 x 37 needs stride 1 in blocks 3 and 12; the baseline has stride 2."""
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
    """The large numbers come from an independent build, the others from arithmetic."""
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
    """The trunk halves, subtracts 2 and halves twice; f_scu twice halves and adds 2."""
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
    """Width 1.0 is the paper's network, and the demo's width gives half a million parameters."""
    paper = [32, 64, 128, 256, 512, 728, 1024, 1536, 2048]
    half = [16, 32, 64, 128, 256, 368, 512, 768, 1024]      # 364 = 45.5 * 8 -> 46 * 8 = 368
    assert [scale_channels(count, 1.0) for count in paper] == paper
    assert [scale_channels(count, 0.5) for count in paper] == half
    assert scale_channels(728, 0.125) == 88                 # 91 = 11.4 * 8 -> 11 * 8
    assert scale_channels(32, 0.001) == 8
    assert 0.45e6 < count_parameters(LiSiam(0.125)) < 0.55e6


# ---------------------------------------------------------------- Sec. III-E: Xception, in f_cnn
# These are the places of a block's separable convolutions in `rep`. Block 1 starts without a ReLU.
# Blocks 4 to 11 have three, at 1, 4 and 7.
SEPARABLE_AT = {1: (0, 3), 2: (1, 4), 3: (1, 4), 12: (1, 4)}


def ports_names(weights):
    """Renames XceptionClassifier's weights as in the public ports, whose trunk has no prefix."""
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
    """Computes the maps of blocks 12 and 4 from weights with the names of the public ports."""
    x = F.conv2d(images, weights["conv1.weight"], stride=2)
    x = batch_norm(weights, "bn1", x).clamp(min=0)
    x = F.conv2d(x, weights["conv2.weight"])
    x = batch_norm(weights, "bn2", x).clamp(min=0)
    for number in range(1, 13):
        stride = 2 if number in strided_blocks else 1
        x = xception_block(weights, number, x, stride)
        if number == 4:
            middle = x
    return x, middle


def test_the_trunk_recomputed_from_the_names_of_the_public_ports():
    """Eq. (2), first half: each shortcut adds x as it was before the block's first ReLU."""
    net = settled(Xception(WIDTH))
    images = noise(2, 3, 35, 41, seed=2)
    last, middle = net(images)
    last_by_hand, middle_by_hand = xception_by_names(net.state_dict(), images, (1, 2))
    assert_close(last, last_by_hand)
    assert_close(middle, middle_by_hand)


def test_the_baseline_recomputed_from_the_names_of_the_public_ports():
    """[3]: the baseline goes on with two separable convolutions, the mean and a linear layer."""
    net = settled(XceptionClassifier(3, WIDTH))
    images = noise(2, 3, 35, 41, seed=2)
    weights = ports_names(net.state_dict())
    x, _ = xception_by_names(weights, images, (1, 2, 3, 12))
    x = separable(weights, "conv3", x)
    x = batch_norm(weights, "bn3", x).clamp(min=0)
    x = separable(weights, "conv4", x)
    x = batch_norm(weights, "bn4", x).clamp(min=0)
    pooled = x.mean(dim=(2, 3))
    assert_close(net(images), pooled @ weights["fc.weight"].T + weights["fc.bias"])


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR, in f_cnn
def conv_bn_relu_by_hand(x, *blocks):
    """Sends one image's x (C, H, W) through blocks of convolution, BatchNorm and ReLU."""
    for conv, bn, _ in blocks:
        x = F.conv2d(x[None], conv.weight, padding=conv.kernel_size[0] // 2)[0]
        x = normalized(x, bn).clamp(min=0)
    return x


def ocr_by_loops(ocr, backbone, middle):
    """Computes X_I and region_logits of one image position by position."""
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
    """Eq. (2), second half: one softmax of [39] runs over positions and the other over regions."""
    ocr = settled(OCR(WIDTH), seed=3)
    backbone = noise(2, 48, 3, 4, seed=4)
    middle = noise(2, 40, 3, 4, seed=5)
    feats, region_logits = ocr(backbone, middle)
    for n in range(2):
        feats_by_hand, region_logits_by_hand = ocr_by_loops(ocr, backbone[n], middle[n])
        assert_close(feats[n], feats_by_hand)
        assert_close(region_logits[n], region_logits_by_hand)


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: f_mt
def test_the_map_is_reduced_between_its_cells_and_after_the_softmax():
    """Eq. (6) reads 4 columns at 0.5 and 2.5; Eq. (7) uses the share of real, Eq. (8) of fake."""
    p_fake = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    fake_logits = (p_fake / (1 - p_fake)).log()             # softmax of (0, this) is (1 - p, p)
    seg_logits = torch.stack([torch.zeros_like(p_fake), fake_logits])[None, :, None, :]
    ones = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    x_real, x_fake = split_real_fake(ones, seg_logits)
    assert x_fake.flatten().tolist() == pytest.approx([0.15, 0.6])
    assert x_real.flatten().tolist() == pytest.approx([0.85, 0.4])


def transformer_by_loops(f_mt, cls_feats, seg_logits):
    """Computes Z (2 C, H, W) and the attention (N, N) of one image from vectors and matrices."""
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
    """Eq. (5) to Eq. (14): loops over i and j give the same Z for each image of a batch."""
    f_mt = settled(MaskGuidedTransformer(16), seed=11)
    cls_feats = 2 * noise(2, 16, 3, 4, seed=12)
    seg_logits = 2 * noise(2, 2, 7, 9, seed=13)
    fused = f_mt(cls_feats, seg_logits)
    for n in range(2):
        by_hand, attention = transformer_by_loops(f_mt, cls_feats[n], seg_logits[n])
        assert_close(fused[n], by_hand, rtol=1e-4, atol=1e-4)       # Eq. (12) is in float32
        assert attention.max() > 0.5                        # neither uniform nor symmetric
        assert not torch.allclose(attention, attention.T, atol=0.1)


def bare_transformer():
    """Makes f_q, f_k, f_v, f_m and f_se identities, so that only the attention is left."""
    f_mt = MaskGuidedTransformer(16).eval().requires_grad_(False)
    for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]):
        conv.weight.copy_(torch.eye(16)[:, :, None, None])
    f_mt.f_m[1] = nn.Identity()
    f_mt.f_se = nn.Identity()
    return f_mt


def test_attention_has_no_scale_and_is_in_float32_even_under_autocast():
    """Eq. (12): position 1 finds 256 and 257; bfloat16 has no 257, and 1 / sqrt(16) gives 0.56."""
    cls_feats = torch.zeros(1, 16, 1, 2)
    cls_feats[0, :2, 0, 0] = torch.tensor([32.0, 0.0])
    cls_feats[0, :2, 0, 1] = torch.tensor([32.0, 2.0])      # halved by a map of equal shares
    equal_shares = torch.zeros(1, 2, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = bare_transformer()(cls_feats, equal_shares)
    y = fused[0, :2, 0].float() - cls_feats[0, :2, 0] / 2   # the first half of Z is Y + X_f
    assert y[0].tolist() == pytest.approx([16, 16], rel=0.01)
    assert y[1].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))], rel=0.01)


# ---------------------------------------------------------------- Sec. III-A, III-B: dropout
@pytest.mark.parametrize("index", [2, 6])
def test_dropout_in_f_scu_takes_one_in_ten_whole_channels(index):
    """READING Sec. III-A: the dropout after each BatchNorm loses one channel in ten as a whole."""
    torch.manual_seed(0)
    dropout = SeparableConvUnit(1000).layers[index]
    got = dropout(torch.ones(1, 1000, 2, 2))[0].flatten(1)
    assert torch.equal(got, got[:, :1].expand(-1, 4))
    assert 0.07 < (got == 0).float().mean() < 0.13
    assert_close(got.max(), torch.tensor(1 / 0.9))


def test_dropout_in_f_mt_takes_one_in_ten_attention_weights():
    """READING Sec. III-B: Y of X_r = 1 is the kept share of 100 weights, over 0.9."""
    torch.manual_seed(0)
    all_real = torch.zeros(1, 2, 10, 10)
    all_real[:, 0] = 60.0
    f_mt = bare_transformer().train()
    y = f_mt(torch.ones(1, 16, 10, 10), all_real)[0, :16]
    assert_close(y, y[:1].expand(16, 10, 10))               # a weight is lost for all channels
    assert 0.98 < y.mean() < 1.02
    assert y.min() > 0.8
    assert 0.02 < y.std() < 0.05                            # sqrt(0.1 / 0.9 / 100) = 0.03


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: all of it
def separable_by_hand(layer, x):
    """Filters and mixes channels at every second position [32]; the padding stays zero."""
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
    """Eq. (1): alpha = f_mlp(f_mt(f_seg(f_cnn(I)), f_scu(f_cnn(I)))), in Model-F f_mlp(X_c)."""
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
        cls_logits = last.weight @ hidden + last.bias                       # Eq. (1)
        assert_close(out.cls_logits[n], cls_logits, rtol=1e-4, atol=1e-4)
        assert_close(out.seg_logits[n], seg_logits)
        assert_close(out.region_logits[n], region_logits[n])


@pytest.mark.parametrize("heads", [None, (True, True), (False, True), (False, False)])
def test_a_pair_is_two_calls_and_heads_say_which_branches_decide(heads):
    """Fig. 1: the branches share all weights, the clean one comes first, and it alone decides."""
    net = settled(LiSiam(WIDTH), seed=27)
    clean = noise(1, 3, 35, 35, seed=28)
    degraded = noise(1, 3, 35, 35, seed=29)
    alone = [net(clean), net(degraded)]
    assert not torch.allclose(alone[0].seg_logits, alone[1].seg_logits)

    ran = []

    def note(module, inputs, output):
        ran.append(module)

    for module in (net.f_scu, net.f_mt, net.f_mlp):
        module.register_forward_hook(note)
    pair = net(clean, degraded) if heads is None else net(clean, degraded, heads=heads)
    heads = heads or (True, False)                          # the default
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


def test_batchnorm_sees_each_branch_on_its_own_clean_first():
    """READING Sec. III-A: BatchNorm first moves by 0.1 to the clean branch, then to the other."""
    torch.manual_seed(0)
    net = LiSiam(WIDTH).double().train()
    clean = noise(2, 3, 35, 35, seed=30)
    degraded = 1 + 3 * noise(2, 3, 35, 35, seed=31)
    kernel = net.backbone.conv1.weight
    v1, m1 = torch.var_mean(F.conv2d(clean, kernel, stride=2), dim=(0, 2, 3))
    v2, m2 = torch.var_mean(F.conv2d(degraded, kernel, stride=2), dim=(0, 2, 3))

    net(clean, degraded)
    # The mean starts at 0, the variance at 1; 0.09 = 0.9 * 0.1 is left of the clean branch's.
    assert_close(net.backbone.bn1.running_mean, 0.09 * m1 + 0.1 * m2)
    assert_close(net.backbone.bn1.running_var, 0.81 + 0.09 * v1 + 0.1 * v2)
    assert net.f_scu.layers[1].num_batches_tracked == 1     # only the first branch has a head


# ---------------------------------------------------------------- what a network needs around it
SETTINGS = {"model": "lisiam", "width": WIDTH, "num_classes": 5, "transformer": True, "size": 48}


def test_to_input_is_torchvisions_scaling_and_keeps_rgb_in_order():
    """READING Sec. IV-A3: RGB in [-1, 1] is bit-equal to torchvision's for each of 256 bytes."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    images = torch.cat([levels, levels.flip(1), levels.flip(2)], dim=3)
    got = to_input(images)
    scaled = TF.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    assert torch.equal(got, TF.normalize(scaled, [0.5] * 3, [0.5] * 3))
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert tuple(got.aminmax()) == (-1, 1)


def test_build_network_does_what_the_settings_say():
    """Fig. 5 has five classes, Model-F of Table VI has no f_mt, Tables I-V have the baseline."""
    lisiam = build_network(SETTINGS)
    assert isinstance(lisiam, LiSiam)
    assert lisiam.backbone.conv1.out_channels == 8
    assert lisiam.f_mlp.f_mlp[-1].out_features == 5
    assert build_network({**SETTINGS, "transformer": False}).f_mt is None
    baseline = build_network({**SETTINGS, "model": "xception"})
    assert isinstance(baseline, XceptionClassifier)
    assert baseline.backbone.conv1.out_channels == 8
    assert baseline.fc.out_features == 5


@pytest.mark.parametrize("model", ["lisiam", "xception"])
def test_a_checkpoint_comes_back_as_the_network_of_its_run(model, tmp_path):
    """best.pt knows the threshold that fitted the map on val; last.pt does not."""
    settings = {**SETTINGS, "model": model}
    net = settled(build_network(settings)).float()
    checkpoint = {"model": net.state_dict(), "settings": settings, "iteration": 9}
    torch.save({**checkpoint, "threshold": 0.35}, tmp_path / "best.pt")
    torch.save(checkpoint, tmp_path / "last.pt")
    loaded, got = load_network(tmp_path / "best.pt")
    assert got == {**settings, "threshold": 0.35}
    assert load_network(tmp_path / "last.pt")[1] == {**settings, "threshold": None}
    assert type(loaded) is type(net)
    assert not loaded.training
    assert loaded.backbone.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


def test_on_the_cpu_the_network_runs_in_float32():
    assert precision("cpu") == torch.float32
    with autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


# ---------------------------------------------------------------- Sec. IV-B: weights that fit
OURS = settled(XceptionClassifier(3, WIDTH), seed=40).float().state_dict()
PORT = ports_names(OURS)


def renamed(prefix, head="fc."):
    """Puts a prefix before every name of PORT, and gives the head another name."""
    weights = {}
    for name, tensor in PORT.items():
        if name.startswith("fc."):
            name = head + name.removeprefix("fc.")
        weights[prefix + name] = tensor
    return weights


def old():
    """Stores PORT as xception-b5690688.pth does: kernels are matrices, counters are missing."""
    weights = {}
    for name, tensor in PORT.items():
        if name.endswith("pointwise.weight"):
            tensor = tensor[:, :, 0, 0]
        if not name.endswith("num_batches_tracked"):
            weights[name] = tensor
    return weights


OLD = old()
IMAGENET = {**OLD, "fc.weight": torch.ones(1000, 104), "fc.bias": torch.ones(1000)}
FORMATS = {
    "tstandley, timm legacy_xception": PORT,
    "Cadene": renamed("", head="last_linear."),
    "xception-b5690688": OLD,
    "FaceForensics as a state_dict": renamed("model.", head="last_linear.1."),
    "DeepfakeBench": {
        **renamed("backbone.", head="last_linear."),
        "backbone.adjust_channel.0.weight": torch.ones(5, 7, 1, 1),
    },
    "ISPL": {"net": renamed("xception.", head="last_linear."), "epoch": 3},
    "DataParallel": {"epoch": 7, "state_dict": renamed("module.backbone."), "best": 0.5},
    "train.py": {"model": OURS, "iteration": 9},
}


def saved(weights, folder):
    path = folder / "file.pth"
    torch.save(weights, path)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_public_format_fills_the_same_trunk(name, tmp_path):
    """Each format fills LiSiam's trunk and the whole baseline bit-equal, and changes no more."""
    path = saved(FORMATS[name], tmp_path)
    lisiam = LiSiam(WIDTH)
    baseline = XceptionClassifier(3, WIDTH)
    before = {key: tensor.clone() for key, tensor in lisiam.state_dict().items()}
    load_xception_weights(lisiam, path)
    load_xception_weights(baseline, str(path))
    after = lisiam.state_dict()
    for key, tensor in OURS.items():
        assert torch.equal(baseline.state_dict()[key], tensor), key
        if key.startswith("backbone."):
            assert torch.equal(after[key], tensor), key
    for key, tensor in after.items():
        if not key.startswith("backbone."):
            assert torch.equal(tensor, before[key]), key


def test_a_trunk_without_a_head_is_enough_for_lisiam(tmp_path):
    """The authors' release holds blocks 1 to 12 only, as backbone_net.*, and no head."""
    weights = {}
    for name, tensor in OURS.items():
        if name.startswith("backbone."):
            weights[name.replace("backbone.", "backbone_net.")] = tensor
    path = saved(weights, tmp_path)
    lisiam = LiSiam(WIDTH)
    load_xception_weights(lisiam, path)
    for name, tensor in lisiam.backbone.state_dict().items():
        assert torch.equal(tensor, PORT[name]), name
    with pytest.raises(RuntimeError, match="Missing key.*conv3.conv1.weight"):
        load_xception_weights(XceptionClassifier(2, WIDTH), path)


@pytest.mark.parametrize("build", [LiSiam, partial(XceptionClassifier, 3)])
@pytest.mark.parametrize("name, tensor, says", [
    ("block7.rep.4.conv1.weight", None, "Missing key"),
    ("bn1.running_var", None, "Missing key"),
    ("block12.skip.weight", torch.ones(48, 41, 1, 1), "size mismatch"),
])
def test_a_trunk_that_lacks_a_tensor_is_refused(build, name, tensor, says, tmp_path):
    """A missing tensor, or one of another shape, is named instead of being left random."""
    weights = {**PORT, name: tensor}
    if tensor is None:
        del weights[name]
    with pytest.raises(RuntimeError, match=rf"(?s){says}.*{name}"):
        load_xception_weights(build(width=WIDTH), saved(weights, tmp_path))


@pytest.mark.parametrize("bias_length", [1000, 2])
def test_a_head_that_does_not_fit_stays_random(bias_length, tmp_path):
    """Sec. IV-B: ImageNet's head has 1000 classes, and a bias that fits is not taken alone."""
    baseline = XceptionClassifier(2, WIDTH)
    before = {name: tensor.clone() for name, tensor in baseline.state_dict().items()}
    path = saved({**IMAGENET, "fc.bias": torch.ones(bias_length)}, tmp_path)
    sentence = load_xception_weights(baseline, path)
    # The public ports have 236 tensors without BatchNorm's counters; two of them are the head.
    assert f"from 234 tensors of {path}; the head is random" in sentence
    for name, tensor in baseline.state_dict().items():
        expected = before if name.startswith("fc.") else OURS
        assert torch.equal(tensor, expected[name]), name


def test_imagenet_weights_are_downloaded_and_checked_by_torch_hub(monkeypatch):
    """Sec. IV-B: the file is checked against the hash in its name, and no code in it runs."""
    calls = []

    def download(url, **options):
        calls.append((url, options))
        return IMAGENET

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    net = LiSiam(WIDTH)
    assert "from 222 tensors of imagenet" in load_xception_weights(net, "imagenet")
    assert torch.equal(net.backbone.conv2.weight, PORT["conv2.weight"])
    url, options = calls[0]
    assert url.endswith("/xception-43020ad28.pth")
    assert options == {"map_location": "cpu", "check_hash": True, "weights_only": True}
