"""model.py beside Sec. III-A, III-B, III-E and Fig. 1-2: every equation again, with loops, by hand or in closed form."""

import math
import os
import pickle
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import (LiSiam, MaskGuidedTransformer, MLPHead, OCR, SeparableConv2d, SeparableConvUnit, SqueezeExcitation, Xception,
                   XceptionBlock, XceptionClassifier, load_xception_weights, scale_channels, split_real_fake)

WIDTH = 0.05                    # 32, 64, 128, 256, 512, 728, 1024, 2048 channels become 8, 8, 8, 16, 24, 40, 48, 104


def settled(module, seed=0):
    """The module in float64 and eval mode, weights and BatchNorm statistics random: a fresh BatchNorm does nothing."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            fan_in = part.weight[0].numel()
            part.weight.data = torch.randn(part.weight.shape, generator=generator, dtype=torch.float64) / fan_in ** 0.5
            if part.bias is not None:
                part.bias.data = torch.randn(part.bias.shape, generator=generator, dtype=torch.float64)
        elif isinstance(part, (nn.BatchNorm2d, nn.BatchNorm1d)):
            for tensor in (part.weight.data, part.bias.data, part.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator, dtype=torch.float64))
    return module


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def normalized(x, bn):
    """BatchNorm in eval mode, written out; channels are the first axis of x."""
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shape = (-1, *[1] * (x.ndim - 1))
    return (x - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)


def bilinear(image, height, width):
    """One (C, h, w) map at another size: target cell i reads source coordinate (i + 0.5) h / height - 0.5."""
    C, h, w = image.shape
    out = torch.zeros(C, height, width, dtype=image.dtype)
    for i in range(height):
        for j in range(width):
            y, x = max(0.0, (i + 0.5) * h / height - 0.5), max(0.0, (j + 0.5) * w / width - 0.5)
            top, left = int(y), int(x)
            bottom, right, dy, dx = min(top + 1, h - 1), min(left + 1, w - 1), y - top, x - left
            out[:, i, j] = ((1 - dy) * ((1 - dx) * image[:, top, left] + dx * image[:, top, right])
                            + dy * ((1 - dx) * image[:, bottom, left] + dx * image[:, bottom, right]))
    return out


def positions(x):
    """(C, H, W) -> list of H W vectors, row by row: the x_i of Eq. (9) to Eq. (13)."""
    return [x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])]


def as_map(vectors, height, width):
    return torch.stack(vectors, dim=1).reshape(-1, height, width)


def shapes_of(modules, run):
    """(C, H, W) of each named module's (first) output while `run` runs."""
    shapes, hooks = {}, []
    for name, module in modules.items():
        def note(module, inputs, output, name=name):
            shapes[name] = tuple((output[0] if isinstance(output, tuple) else output).shape[1:])
        hooks.append(module.register_forward_hook(note))
    with torch.inference_mode():
        run()
    for hook in hooks:
        hook.remove()
    return shapes


# ---------------------------------------------------------------- Sec. III-E: sizes
@pytest.fixture(scope="module")
def full():
    torch.manual_seed(0)
    return LiSiam().eval()


def test_every_size_that_section_3e_states_at_299_pixels(full):
    """Sec. III-E: 1024 x 37 x 37 (backbone), 512 x 37 x 37 (OCR), 2 x 37 x 37 (map), 512 x 13 x 13 (X_c^1); and the comments."""
    trunk = full.backbone
    modules = {"conv1": trunk.conv1, "conv2": trunk.conv2, "block1": trunk.block1, "block2": trunk.block2, "block3": trunk.block3,
               "block4": trunk.block4, "block11": trunk.block11, "f_cnn: Xception": trunk, "X_I": full.ocr, "X_s": full.f_seg,
               "inside f_scu": full.f_scu.layers[0], "X_c": full.f_scu, "Z": full.f_mt, "alpha": full.f_mlp}
    assert shapes_of(modules, lambda: full(torch.zeros(1, 3, 299, 299))) == {
        "conv1": (32, 149, 149), "conv2": (64, 147, 147), "block1": (128, 74, 74), "block2": (256, 37, 37),
        "block3": (728, 37, 37), "block4": (728, 37, 37), "block11": (728, 37, 37), "f_cnn: Xception": (1024, 37, 37),
        "X_I": (512, 37, 37), "X_s": (2, 37, 37), "inside f_scu": (512, 21, 21), "X_c": (512, 13, 13),
        "Z": (1024, 13, 13), "alpha": (2,)}


def test_removing_only_the_last_max_pool_would_give_19_by_19():
    """READING Sec. III-E: block 3's stride has to go as well as block 12's; either of them left alone gives 19."""
    sizes = {}
    for strides in ((2, 2), (2, 1), (1, 2), (1, 1)):
        with torch.inference_mode():
            sizes[strides] = Xception(WIDTH, *strides).eval()(torch.zeros(1, 3, 299, 299))[0].shape[2:]
    assert sizes == {(2, 2): (10, 10), (2, 1): (19, 19), (1, 2): (19, 19), (1, 1): (37, 37)}


def test_the_xception_baseline_keeps_the_original_strides():
    """Tables I-V: the unchanged Xception [3] ends in a 10 x 10 map; block 4 works at 19 x 19."""
    net = XceptionClassifier(width=WIDTH).eval()
    modules = {"block3": net.backbone.block3, "block4": net.backbone.block4, "block12": net.backbone.block12, "conv4": net.conv4}
    sizes = shapes_of(modules, lambda: net(torch.zeros(1, 3, 299, 299)))
    assert {name: shape[1:] for name, shape in sizes.items()} == {
        "block3": (19, 19), "block4": (19, 19), "block12": (10, 10), "conv4": (10, 10)}


def test_the_parts_have_as_many_parameters_as_their_layers_say(full):
    """Numbers counted on an independent build; the small ones once more as arithmetic."""
    ocr, f_mt, C = full.ocr, full.f_mt, 512
    assert count(full.backbone) == 16_058_152
    assert count(ocr.region_head) == 3_356_674 == 9 * 728 * C + 2 * C + (2 * C + 2)
    assert count(ocr.bottleneck) == 4_719_616 == 9 * 1024 * C + 2 * C
    assert count(ocr) == 3_356_674 + 4_719_616 + 5_378_560
    assert count(full.f_seg) == 1_026 == 2 * C + 2
    assert count(full.f_scu) == 535_552 == 2 * (9 * C + C * C + 2 * C)           # no biases
    assert count(f_mt.f_q) + count(f_mt.f_k) + count(f_mt.f_v) == 786_432 == 3 * C * C
    assert count(f_mt.f_m) == 263_168 == C * C + 2 * C
    assert count(f_mt.f_se) == 131_072 == 2 * 1024 * 64
    assert count(full.f_mlp) == 1_053_698 == (1024 * 1024 + 1024) + 2 * 1024 + (2 * 1024 + 2)
    assert count(full) == 32_283_950


@pytest.mark.parametrize("pixels, map_side, scu_side", [(107, 13, 7), (139, 17, 8), (147, 18, 8), (224, 28, 10), (256, 32, 11),
                                                        (299, 37, 13), (23, 3, 4)])
def test_other_image_sizes(pixels, map_side, scu_side):
    """Sec. III-E at other sizes: conv1 halves, conv2 takes 2, blocks 1 and 2 halve; f_scu halves and adds 2, twice."""
    halved = lambda side: (side + 1) // 2  # noqa: E731
    by_hand = halved(halved((pixels - 3) // 2 + 1 - 2))
    assert by_hand == map_side and halved(halved(by_hand) + 2) + 2 == scu_side
    net = LiSiam(WIDTH).eval()
    sizes = shapes_of({"X_c": net.f_scu, "X_s": net.f_seg}, lambda: net(torch.zeros(1, 3, pixels, pixels)))
    assert sizes["X_s"] == (2, map_side, map_side) and sizes["X_c"][1:] == (scu_side, scu_side)


@pytest.mark.parametrize("height, width", [(22, 22), (64, 22), (22, 64), (1, 1)])
def test_an_image_too_small_for_a_map_is_named(height, width):
    with pytest.raises(ValueError, match=rf"\({height}, {width}\).*at least 23"):
        LiSiam(WIDTH).eval()(torch.zeros(1, 3, height, width))


def test_width_scales_every_channel_count_to_a_multiple_of_8():
    """Width 1.0 changes nothing (728 = 91 * 8); others round to the nearest multiple of 8, never below 8."""
    paper = (32, 64, 128, 256, 512, 728, 1024, 1536, 2048)
    assert tuple(scale_channels(c, 1.0) for c in paper) == paper
    assert [scale_channels(c, 0.125) for c in paper] == [8, 8, 16, 32, 64, 88, 128, 192, 256]          # 728 / 8 = 91 -> 88
    assert [scale_channels(c, 0.5) for c in paper] == [16, 32, 64, 128, 256, 368, 512, 768, 1024]      # 364 -> 368 (45.5 -> 46)
    assert scale_channels(32, 0.001) == 8
    net = LiSiam(0.125)
    assert (net.backbone.block12.skip.out_channels, net.f_seg.in_channels, net.f_mlp.f_mlp[0].in_features) == (128, 64, 128)
    assert 0.45e6 < count(net) < 0.55e6                              # "0.5 of 32.3 million"


# ---------------------------------------------------------------- Sec. III-E: Xception
def test_separable_convolution_is_a_filter_per_channel_then_a_mix_of_channels():
    """[32] by loops over positions, with stride 2 and the padded 1x1 convolution whose border stays zero."""
    layer = settled(SeparableConv2d(3, 4, stride=2, pointwise_padding=1))
    x = noise(1, 3, 5, 6)
    torch.testing.assert_close(layer(x)[0], separable_by_hand(layer, x[0], stride=2, pad=1))


def separable_by_hand(layer, x, stride=1, pad=0):
    C, H, W = x.shape
    padded = torch.zeros(C, H + 2, W + 2, dtype=x.dtype)
    padded[:, 1:-1, 1:-1] = x
    height, width = (H - 1) // stride + 1, (W - 1) // stride + 1
    mix = layer.pointwise.weight[:, :, 0, 0]
    out = torch.zeros(mix.shape[0], height + 2 * pad, width + 2 * pad, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            patch = padded[:, i * stride:i * stride + 3, j * stride:j * stride + 3]
            filtered = torch.stack([(patch[c] * layer.conv1.weight[c, 0]).sum() for c in range(C)])
            out[:, i + pad, j + pad] = mix @ filtered
    return out


def block_by_hand(state, prefix, x, convolutions, stride, relu_first=True):
    """One Xception block from a port's names alone. convolutions: index within rep of each separable convolution."""
    def norm(y, name):
        return F.batch_norm(y, *(state[f"{prefix}.{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    y = x
    for number, index in enumerate(convolutions):
        y = y.clamp(min=0) if relu_first or number else y
        depthwise, pointwise = state[f"{prefix}.rep.{index}.conv1.weight"], state[f"{prefix}.rep.{index}.pointwise.weight"]
        y = norm(F.conv2d(F.conv2d(y, depthwise, padding=1, groups=len(depthwise)), pointwise), f"rep.{index + 1}")
    y = F.max_pool2d(y, 3, stride, 1) if stride > 1 else y
    if f"{prefix}.skip.weight" in state:
        x = norm(F.conv2d(x, state[f"{prefix}.skip.weight"], stride=stride), "skipbn")
    return y + x


@pytest.mark.parametrize("arguments, convolutions, relu_first, widths", [
    (dict(in_channels=4, out_channels=6, reps=2, stride=2, start_with_relu=False), (0, 3), False, (6, 6)),     # block 1
    (dict(in_channels=4, out_channels=6, reps=2, stride=2), (1, 4), True, (6, 6)),                             # blocks 2, 3
    (dict(in_channels=4, out_channels=6, reps=2, stride=1), (1, 4), True, (6, 6)),                             # block 3, ours
    (dict(in_channels=5, out_channels=5, reps=3), (1, 4, 7), True, (5, 5, 5)),                                 # blocks 4 to 11
    (dict(in_channels=4, out_channels=6, reps=2, grow_first=False), (1, 4), True, (4, 6)),                     # block 12, ours
])
def test_a_block_is_its_convolutions_plus_the_shortcut(arguments, convolutions, relu_first, widths):
    """The five kinds of block, recomputed from the names of the public ports."""
    block = settled(XceptionBlock(**arguments))
    state, x = block.state_dict(), noise(2, arguments["in_channels"], 9, 7, seed=1)
    state = {"block." + name: tensor for name, tensor in state.items()}
    before = x.clone()
    torch.testing.assert_close(block(x), block_by_hand(state, "block", x, convolutions, arguments.get("stride", 1), relu_first))
    assert torch.equal(x, before)                                    # no ReLU worked in place on the input
    assert tuple(state[f"block.rep.{index}.pointwise.weight"].shape[0] for index in convolutions) == widths


def test_the_shortcut_reads_x_before_the_relu():
    """With the convolutions silenced a middle block is the identity; an in-place first ReLU would clip negative numbers."""
    block = settled(XceptionBlock(5, 5, reps=3))
    nn.init.zeros_(block.rep[-1].weight), nn.init.zeros_(block.rep[-1].bias)
    x = noise(1, 5, 4, 4)
    assert (x < 0).any() and torch.equal(block(x.clone()), x)


def test_xception_recomputed_from_the_names_of_the_public_ports():
    """Eq. (2), first half: Xception from its state_dict alone; the second result is block 4's output."""
    net = settled(Xception(WIDTH))
    state, x = net.state_dict(), noise(1, 3, 35, 41, seed=2)

    def norm_relu(y, name):
        return F.batch_norm(y, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))).clamp(min=0)

    y = norm_relu(F.conv2d(x, state["conv1.weight"], stride=2), "bn1")
    y = norm_relu(F.conv2d(y, state["conv2.weight"]), "bn2")
    y = block_by_hand(state, "block1", y, (0, 3), stride=2, relu_first=False)
    y = block_by_hand(state, "block2", y, (1, 4), stride=2)
    y = block_by_hand(state, "block3", y, (1, 4), stride=1)
    y = middle = block_by_hand(state, "block4", y, (1, 4, 7), stride=1)
    for number in range(5, 12):
        y = block_by_hand(state, f"block{number}", y, (1, 4, 7), stride=1)
    y = block_by_hand(state, "block12", y, (1, 4), stride=1)
    got, got_middle = net(x)
    torch.testing.assert_close(got, y)
    torch.testing.assert_close(got_middle, middle)


def test_the_baselines_exit_flow_and_head():
    """[3]: two more separable convolutions, each with BatchNorm and ReLU, the mean over the map, one linear layer."""
    net = settled(XceptionClassifier(num_classes=3, width=WIDTH))
    x = noise(1, 3, 40, 40)
    y = net.backbone(x)[0][0]
    for conv, bn in ((net.conv3, net.bn3), (net.conv4, net.bn4)):
        y = normalized(separable_by_hand(conv, y), bn).clamp(min=0)
    mean = sum(positions(y)) / len(positions(y))
    torch.testing.assert_close(net(x)[0], net.fc.weight @ mean + net.fc.bias)


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR
def test_ocr_gathers_over_space_and_distributes_over_two_regions():
    """Eq. (2), second half; [39]: each region is a mean of features weighted by a softmax over *space*; each position mixes
    the two regions' values by a softmax over *regions* of query . key / sqrt(keys);
    the mix goes before the features, and both are fused."""
    ocr = settled(OCR(WIDTH), seed=3)
    backbone, middle = noise(2, 48, 3, 4, seed=4), noise(2, 40, 3, 4, seed=5)
    feats, region_logits = ocr(backbone, middle)

    def conv_bn_relu(layers, x):                                     # one convolution (1x1 or 3x3) at a time, in the order given
        for conv, bn, _ in zip(layers[0::3], layers[1::3], layers[2::3]):
            x = normalized(F.conv2d(x[None], conv.weight, padding=conv.kernel_size[0] // 2)[0], bn).clamp(min=0)
        return x

    for n in range(2):                                               # one image at a time: images must not mix
        hidden = conv_bn_relu(list(ocr.region_head[0]), middle[n])
        regions_at = [ocr.region_head[1].weight[:, :, 0, 0] @ vector + ocr.region_head[1].bias for vector in positions(hidden)]
        torch.testing.assert_close(region_logits[n], as_map(regions_at, 3, 4))
        x = conv_bn_relu(list(ocr.bottleneck), backbone[n])
        summaries = []
        for region in (0, 1):                                        # gather
            weights = [math.exp(at[region]) for at in regions_at]
            summaries.append(sum(w * vector for w, vector in zip(weights, positions(x))) / sum(weights))
        columns = [summary[:, None, None] for summary in summaries]
        keys = [conv_bn_relu([*ocr.key[0], *ocr.key[1]], column)[:, 0, 0] for column in columns]
        values = [conv_bn_relu(list(ocr.value), column)[:, 0, 0] for column in columns]
        mixes = []
        for vector in positions(x):                                  # distribute
            query = conv_bn_relu([*ocr.query[0], *ocr.query[1]], vector[:, None, None])[:, 0, 0]
            a, b = (math.exp(query @ key / math.sqrt(len(key))) for key in keys)
            mixes.append((a * values[0] + b * values[1]) / (a + b))
        context = conv_bn_relu(list(ocr.up), as_map(mixes, 3, 4))
        torch.testing.assert_close(feats[n], conv_bn_relu(list(ocr.fuse), torch.cat([context, x])))
    assert len(keys[0]) == 16 and x.shape[0] == 24


# ---------------------------------------------------------------- Sec. III-A: f_seg and f_scu
def test_segmentation_decoder_is_a_linear_map_at_every_position():
    """Eq. (3): X_s = f_seg(X_I), a 1x1 convolution: one and the same 2 x C matrix for each position, before softmax."""
    net = settled(LiSiam(WIDTH), seed=6)
    images = noise(1, 3, 35, 35)
    feats = net.ocr(*net.backbone(images))[0][0]
    by_hand = as_map([net.f_seg.weight[:, :, 0, 0] @ vector + net.f_seg.bias for vector in positions(feats)], 4, 4)
    torch.testing.assert_close(net(images).seg_logits[0], by_hand)
    assert (by_hand < 0).any()                                       # no probabilities


def test_separable_convolution_unit_by_loops():
    """Eq. (4): X_c = f_scu(X_I): twice a separable convolution, stride 2, and BatchNorm; one ReLU, between the two."""
    f_scu = settled(SeparableConvUnit(4), seed=7)
    x = noise(1, 4, 7, 6, seed=8)
    layers = f_scu.layers
    first = normalized(separable_by_hand(layers[0], x[0], stride=2, pad=1), layers[1]).clamp(min=0)
    second = normalized(separable_by_hand(layers[4], first, stride=2, pad=1), layers[5])
    got = f_scu(x)[0]
    torch.testing.assert_close(got, second)
    assert (got < 0).any()


def test_dropout_of_f_scu_takes_whole_channels_and_one_in_ten():
    """Sec. III-A names dropout; READING: by channel, p = 0.1. What is kept is divided by 0.9."""
    f_scu = settled(SeparableConvUnit(1000), seed=9)
    x = noise(1, 1000, 2, 2)
    plain = f_scu(x)[0]
    f_scu.layers[-1].train()
    torch.manual_seed(0)
    ratio = f_scu(x)[0] / plain
    dropped = (ratio == 0).flatten(1)
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1)) and 0.07 < dropped.double().mean() < 0.13
    torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], 1 / 0.9))


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: mask-guided transformer
def test_bilinear_interpolation_takes_cell_centres_not_corners():
    """Eq. (6), f_bi: a map of 4 columns at 2 columns is read at coordinates 0.5 and 2.5, not at its corners 0 and 3."""
    p = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    seg_logits = torch.stack([torch.zeros_like(p), (p / (1 - p)).log()])[None, :, None, :]      # softmax gives 1 - p, p
    _, x_fake = split_real_fake(torch.ones(1, 1, 1, 2, dtype=torch.float64), seg_logits)
    torch.testing.assert_close(x_fake.flatten(), torch.tensor([0.15, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("map_size, size", [((7, 9), (3, 4)), ((3, 4), (4, 7)), ((37, 37), (13, 13))])
def test_softmax_comes_before_the_interpolation(map_size, size):
    """Eq. (6): X_s' = f_bi(softmax(X_s)), in this order, against a hand-written softmax and interpolation."""
    seg_logits = 3 * noise(2, 2, *map_size, seed=10)
    x_real, x_fake = split_real_fake(torch.ones(2, 1, *size, dtype=torch.float64), seg_logits)
    for n in range(2):
        exponentials = seg_logits[n].exp()
        probs = bilinear(exponentials / (exponentials[0] + exponentials[1]), *size)
        torch.testing.assert_close(torch.cat([x_real[n], x_fake[n]]), probs)


def test_real_and_fake_share_the_features_and_channel_1_is_fake():
    """Eq. (5), Eq. (7), Eq. (8): softmax sums to 1 and f_bi keeps that, so X_r + X_f = X_c; channel 0 is real, 1 is fake."""
    cls_feats, says_fake = noise(2, 8, 13, 13), torch.zeros(2, 2, 37, 37, dtype=torch.float64)
    says_fake[:, 1] = 5.0
    x_real, x_fake = split_real_fake(cls_feats, says_fake)
    torch.testing.assert_close(x_real + x_fake, cls_feats)
    torch.testing.assert_close(x_fake, cls_feats / (1 + math.exp(-5.0)))         # Eq. (8): softmax([0, 5])[1], by hand
    torch.testing.assert_close(x_real, cls_feats / (1 + math.exp(5.0)))          # Eq. (7)
    half = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    half[:, 1, :, :4], half[:, 0, :, 4:] = 50.0, 50.0                            # left half fake, right half real
    x_real, x_fake = split_real_fake(torch.ones(1, 3, 4, 4, dtype=torch.float64), half)
    assert x_fake[0, :, :, :2].min() > 0.999 > 0.001 > x_fake[0, :, :, 2:].max()
    assert x_real[0, :, :, 2:].min() > 0.999 > 0.001 > x_real[0, :, :, :2].max()


def transformer_by_loops(f_mt, cls_feats, seg_logits):
    """Z of one image and the attention, position by position: Eq. (6) to Eq. (14) with vectors and matrices only."""
    C, H, W = cls_feats.shape
    w_q, w_k, w_v, w_m = (conv.weight[:, :, 0, 0] for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]))
    exponentials = seg_logits.exp()
    probs = bilinear(exponentials / exponentials.sum(0), H, W)                   # Eq. (6)
    x_r = positions(cls_feats * probs[0])                                        # Eq. (7)
    x_f = positions(cls_feats * probs[1])                                        # Eq. (8)
    y, attention = [], torch.zeros(H * W, H * W, dtype=cls_feats.dtype)
    for i in range(H * W):
        q_i = w_q @ x_f[i]                                                       # Eq. (9)
        for j in range(H * W):
            k_j = w_k @ x_r[j]                                                   # Eq. (10)
            attention[i, j] = math.exp(q_i @ k_j)
        attention[i] /= attention[i].sum()                                       # Eq. (12)  over j
        attended = torch.zeros(C, dtype=cls_feats.dtype)
        for j in range(H * W):
            v_j = w_v @ x_r[j]                                                   # Eq. (11)
            attended += attention[i, j] * v_j                                    # Eq. (13)  the sum over j
        y.append(normalized(w_m @ attended, f_mt.f_m[1]))                        # Eq. (13)  f_m
    halves = [torch.cat([y[i] + x_f[i], cls_feats[:, i // W, i % W]]) for i in range(H * W)]    # Eq. (14)  concat(Y + X_f, X_c)
    squeezed = sum(halves) / (H * W)
    hidden = [max(0.0, float(row @ squeezed)) for row in f_mt.f_se.squeeze.weight]
    weights = [1 / (1 + math.exp(-sum(w * h for w, h in zip(row.tolist(), hidden)))) for row in f_mt.f_se.excite.weight]
    weights = torch.tensor(weights, dtype=cls_feats.dtype)
    return as_map([weights * vector for vector in halves], H, W), attention      # Eq. (14)  f_se


def test_mask_guided_transformer_against_loops_over_positions():
    """Eq. (9), Eq. (10), Eq. (11), Eq. (12), Eq. (13), Eq. (14): a loop over i and j, one image at a time."""
    f_mt = settled(MaskGuidedTransformer(16), seed=11)
    cls_feats, seg_logits = 2 * noise(2, 16, 3, 4, seed=12), 2 * noise(2, 2, 7, 9, seed=13)
    fused = f_mt(cls_feats, seg_logits)
    for n in range(2):
        by_hand, attention = transformer_by_loops(f_mt, cls_feats[n], seg_logits[n])
        torch.testing.assert_close(fused[n], by_hand, rtol=1e-4, atol=1e-4)      # its softmax is in float32
        assert attention.max() > 0.5 and not torch.allclose(attention, attention.T, atol=0.1)      # neither uniform nor symmetric


def bare_transformer(channels):
    """f_q, f_k, f_v, f_m the identity, no re-weighting: what is left of Fig. 2 is the attention itself."""
    f_mt = MaskGuidedTransformer(channels).double().eval().requires_grad_(False)
    for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]):
        conv.weight.data = torch.eye(channels, dtype=torch.float64)[:, :, None, None]
    f_mt.f_m[1] = nn.Identity()
    f_mt.f_se = nn.Identity()
    return f_mt


def test_attention_has_no_scale_by_the_square_root_of_the_channels():
    """Eq. (12), READING: softmax(q_i . k_j) as printed. Two positions, 16 channels: X_f = X_r = (2, 0), so q . k is 4 or 0;
    1 / sqrt(16) would turn weights of 0.982 and 0.018 into 0.731 and 0.269."""
    f_mt, cls_feats = bare_transformer(16), torch.zeros(1, 16, 1, 2, dtype=torch.float64)
    cls_feats[0, 0, 0, 0] = 4.0                                                  # halved by a map that knows nothing
    fused = f_mt(cls_feats, torch.zeros(1, 2, 1, 2, dtype=torch.float64))
    y = fused[0, 0, 0] - torch.tensor([2.0, 0.0])                                # Y = Z's first half - X_f
    assert y.tolist() == pytest.approx([2 / (1 + math.exp(-4)), 2 * 0.5])        # row 1: q = 0, both positions alike
    assert abs(y[0] - 2 / (1 + math.exp(-1))) > 0.4


def test_fake_positions_ask_and_real_positions_answer():
    """Eq. (9) to Eq. (13): where the map says fake everywhere there is nothing real to attend to, so Y = f_m(0); where it
    says real everywhere X_f = 0, every query is 0, and each position gets the plain mean of the real features."""
    f_mt, cls_feats = bare_transformer(16), noise(1, 16, 3, 3, seed=14)
    all_fake = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    all_fake[:, 1] = 60.0
    torch.testing.assert_close(f_mt(cls_feats, all_fake)[0, :16], cls_feats[0])             # Y = 0, X_f = X_c
    mean = cls_feats[0].mean(dim=(1, 2))[:, None, None].expand(16, 3, 3)
    torch.testing.assert_close(f_mt(cls_feats, all_fake.flip(1))[0, :16], mean)             # Y = mean, X_f = 0


def test_the_second_half_of_z_is_the_untouched_features():
    """Eq. (14): concat(Y + X_f, X_c), in the printed order."""
    f_mt, cls_feats = bare_transformer(16), noise(1, 16, 3, 3, seed=15)
    assert torch.equal(f_mt(cls_feats, noise(1, 2, 5, 5))[:, 16:], cls_feats)


def test_squeeze_and_excitation_weighs_whole_channels():
    """Eq. (14), f_se [37], READING: reduction 16, no biases; weights = sigmoid(W2 relu(W1 mean))."""
    f_se = settled(SqueezeExcitation(32), seed=16)
    x = 3 + 3 * noise(2, 32, 2, 5, seed=17)
    assert f_se.squeeze.weight.shape == (2, 32) and f_se.squeeze.bias is None and f_se.excite.bias is None
    got = f_se(x)
    for n in range(2):
        hidden = (f_se.squeeze.weight @ (sum(positions(x[n])) / 10)).clamp(min=0)
        for c in range(32):
            weight = 1 / (1 + math.exp(-(f_se.excite.weight[c] @ hidden)))
            torch.testing.assert_close(got[n, c], weight * x[n, c])


# ---------------------------------------------------------------- Sec. III-A, III-D: classifier
@pytest.mark.parametrize("num_classes", [2, 5])
def test_classifier_pools_and_then_applies_two_linear_layers(num_classes):
    """Eq. (18): alpha = f_mlp(f_aap(Z)): the mean over positions, a linear layer, BatchNorm, ReLU, a linear layer."""
    head = settled(MLPHead(6, num_classes), seed=18)
    fused = noise(3, 6, 2, 4, seed=19)
    first, bn, _, last = head.f_mlp
    got = head(fused)
    for n in range(3):
        pooled = torch.tensor([sum(fused[n, c].flatten().tolist()) / 8 for c in range(6)], dtype=torch.float64)
        hidden = normalized(first.weight @ pooled + first.bias, bn).clamp(min=0)
        torch.testing.assert_close(got[n], last.weight @ hidden + last.bias)


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: the whole network
@pytest.mark.parametrize("num_classes", [2, 5])
def test_inference_is_the_composition_of_the_parts(num_classes):
    """Eq. (1): alpha = f_mlp(f_mt(f_seg(f_cnn(I)), f_scu(f_cnn(I)))), the transformer and the classifier once more by hand."""
    net = settled(LiSiam(WIDTH, num_classes), seed=20)
    images = noise(2, 3, 35, 35, seed=21)
    out = net(images)
    feats, region_logits = net.ocr(*net.backbone(images))                        # Eq. (2)
    seg_logits = net.f_seg(feats)                                                # Eq. (3)
    cls_feats = net.f_scu(feats)                                                 # Eq. (4)
    assert out.cls_logits.shape == (2, num_classes)
    for n in range(2):
        fused, _ = transformer_by_loops(net.f_mt, cls_feats[n], seg_logits[n])   # Eq. (5) to Eq. (14)
        first, bn, _, last = net.f_mlp.f_mlp
        hidden = normalized(first.weight @ (sum(positions(fused)) / 16) + first.bias, bn).clamp(min=0)
        torch.testing.assert_close(out.cls_logits[n], last.weight @ hidden + last.bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.seg_logits, seg_logits)
    torch.testing.assert_close(out.region_logits, region_logits)


def test_model_f_classifies_the_features_without_the_map():
    """READING Table VI, Model-F: alpha = f_mlp(f_aap(X_c)); changing f_seg changes the map and not the decision."""
    net = settled(LiSiam(WIDTH, transformer=False), seed=22)
    images = noise(2, 3, 35, 35)
    before = net(images)
    cls_feats = net.f_scu(net.ocr(*net.backbone(images))[0])
    first, bn, _, last = net.f_mlp.f_mlp
    for n in range(2):
        hidden = normalized(first.weight @ (sum(positions(cls_feats[n])) / 16) + first.bias, bn).clamp(min=0)
        torch.testing.assert_close(before.cls_logits[n], last.weight @ hidden + last.bias)
    net.f_seg.weight.data.neg_()
    after = net(images)
    assert torch.equal(after.cls_logits, before.cls_logits) and not torch.allclose(after.seg_logits, before.seg_logits)


def test_the_map_steers_the_decision():
    """Fig. 1: the transformer takes X_s, so turning the map round changes alpha (it would not if the map were computed aside)."""
    net = settled(LiSiam(WIDTH), seed=23)
    images = noise(2, 3, 35, 35)
    before = net(images).cls_logits
    net.f_seg.weight.data.neg_()
    assert (net(images).cls_logits - before).abs().max() > 1e-3


def test_a_pair_is_two_calls_of_the_same_network():
    """Fig. 1: the branches share every weight; clean comes out first; only the first has a decision."""
    net = settled(LiSiam(WIDTH), seed=24)
    clean, degraded = noise(2, 3, 35, 35, seed=25), noise(2, 3, 35, 35, seed=26)
    first, second = net(clean, degraded)
    for pair, alone in ((first, net(clean)), (second, net(degraded))):
        assert torch.equal(pair.seg_logits, alone.seg_logits) and torch.equal(pair.region_logits, alone.region_logits)
    assert torch.equal(first.cls_logits, net(clean).cls_logits) and second.cls_logits is None
    assert not torch.allclose(first.seg_logits, second.seg_logits)


@pytest.mark.parametrize("heads", [(True, True), (True, False), (False, True), (False, False)])
def test_heads_say_which_branches_decide_and_a_head_not_asked_for_does_not_run(heads):
    """Table VI: B reads both branches, D and E the degraded one, stage 1 none."""
    net = settled(LiSiam(WIDTH), seed=27)
    clean, degraded = noise(1, 3, 35, 35, seed=28), noise(1, 3, 35, 35, seed=29)
    alone = net(clean).cls_logits, net(degraded).cls_logits
    runs = []
    for module in net.classification_modules():
        module.register_forward_hook(lambda module, inputs, output: runs.append(module))
    for asked, expected, branch in zip(heads, alone, net(clean, degraded, heads=heads)):
        assert torch.equal(branch.cls_logits, expected) if asked else branch.cls_logits is None
    assert len(runs) == 3 * sum(heads)
    assert (net(clean, heads=heads).cls_logits is None) == (not heads[0])


def test_batchnorm_sees_each_branch_on_its_own_clean_first():
    """READING Sec. III-A: after one pair bn1's running mean is 0.9 (0.9 * 0 + 0.1 m1) + 0.1 m2 = 0.09 m1 + 0.1 m2, its variance
    0.81 + 0.09 v1 + 0.1 v2 with v over n - 1. One joined batch, or degraded first, would give other numbers."""
    torch.manual_seed(0)
    net = LiSiam(WIDTH).double().train()
    clean, degraded = noise(2, 3, 35, 35, seed=30), 1 + 3 * noise(2, 3, 35, 35, seed=31)
    first, second = ([channel.flatten().tolist() for channel in F.conv2d(x, net.backbone.conv1.weight, stride=2).transpose(0, 1)]
                     for x in (clean, degraded))
    net(clean, degraded)
    bn1 = net.backbone.bn1
    for c in range(8):
        (m1, v1), (m2, v2) = ((mean := sum(x) / len(x), sum((value - mean) ** 2 for value in x) / (len(x) - 1))
                              for x in (first[c], second[c]))
        assert bn1.running_mean[c].item() == pytest.approx(0.09 * m1 + 0.1 * m2)
        assert bn1.running_var[c].item() == pytest.approx(0.81 + 0.09 * v1 + 0.1 * v2)
    assert bn1.num_batches_tracked == 2
    assert net.f_scu.layers[1].num_batches_tracked == 1              # only the first branch has a head


def test_in_training_neither_branch_changes_what_the_other_says():
    """READING Sec. III-A: the clean branch's map is the one it has alone, whatever the degraded image is; and back."""
    torch.manual_seed(0)
    net = LiSiam(WIDTH).train()
    clean, degraded = noise(2, 3, 35, 35, seed=32).float(), 5 * noise(2, 3, 35, 35, seed=33).float()
    first, second = net(clean, degraded, heads=(False, False))
    assert torch.equal(first.seg_logits, net(clean, heads=(False, False)).seg_logits)
    assert torch.equal(second.seg_logits, net(degraded, heads=(False, False)).seg_logits)


@pytest.mark.parametrize("transformer", [True, False])
def test_the_stages_modules_split_every_parameter(transformer):
    """Sec. IV-B: segmentation (f_cnn, f_seg) and classification (f_scu, f_mt, f_mlp); none left over, none shared."""
    net = LiSiam(WIDTH, transformer=transformer)

    def tensors(modules):
        return [id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())]

    seg, cls = tensors(net.segmentation_modules()), tensors(net.classification_modules())
    assert not set(seg) & set(cls) and sorted(seg + cls) == sorted(tensors([net]))
    assert {id(p) for p in net.f_seg.parameters()} | {id(p) for p in net.ocr.parameters()} <= set(seg)
    parts = [net.f_scu, net.f_mt, net.f_mlp] if transformer else [net.f_scu, net.f_mlp]
    assert net.classification_modules() == parts


# ---------------------------------------------------------------- Sec. IV-B: ImageNet weights and the public ports
def port(num_classes=3, seed=40):
    """The state_dict of a public port of Xception, at our small width: the same names, head fc."""
    weights = settled(XceptionClassifier(num_classes, WIDTH), seed).float().state_dict()
    return {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}


def with_prefix(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def renamed_head(head, weights):
    return {head + name[2:] if name.startswith("fc.") else name: tensor for name, tensor in weights.items()}


def flat_pointwise(weights):
    return {name: tensor[:, :, 0, 0] if name.endswith("pointwise.weight") else tensor for name, tensor in weights.items()}


def without_counters(weights):
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


FORMATS = {
    "tstandley, timm legacy_xception": lambda w: w,
    "xception-b5690688: matrices, no counters": lambda w: without_counters(flat_pointwise(w)),
    "xception-43020ad28: no counters": without_counters,
    "Cadene: last_linear": lambda w: renamed_head("last_linear", w),
    "FaceForensics as a state_dict": lambda w: with_prefix("model.", renamed_head("last_linear.1", w)),
    "DeepfakeBench": lambda w: {**with_prefix("backbone.", renamed_head("last_linear", w)), "backbone.adjust_channel.0.weight":
                                torch.ones(5, 7, 1, 1), "backbone.adjust_channel.1.running_mean": torch.ones(5)},
    "DeepfakeBench, DistributedDataParallel": lambda w: with_prefix("module.backbone.", renamed_head("last_linear", w)),
    "ISPL": lambda w: {"net": with_prefix("xception.", renamed_head("last_linear", w)), "epoch": 3},
    "ISPL as hosted": lambda w: with_prefix("xception.", renamed_head("last_linear", w)),
    "a training script's checkpoint": lambda w: {"epoch": 7, "state_dict": with_prefix("module.", w), "best": 0.5},
    "ours: best.pt": lambda w: {"model": {"backbone." * name.startswith(("conv1", "bn1", "conv2", "bn2", "block")) + name: tensor
                                          for name, tensor in w.items()}, "iteration": 9, "settings": {"width": WIDTH}},
    "half precision": lambda w: {name: tensor.half() for name, tensor in w.items()},
}


def is_trunk(name):
    return name.startswith(("conv1.", "bn1.", "conv2.", "bn2.", "block")) and not name.endswith("num_batches_tracked")


@pytest.mark.parametrize("name", FORMATS)
def test_every_public_format_fills_the_same_trunk(name, tmp_path):
    """Whatever the prefix, the head's name or the pointwise kernels' rank: bit-equal weights and statistics in both networks."""
    weights, path = port(), tmp_path / "weights.pth"
    torch.save(FORMATS[name](weights), path)
    if name == "half precision":                                     # stored narrow, loaded as float32
        weights = {key: tensor.half().float() for key, tensor in weights.items()}
    lisiam, baseline = LiSiam(WIDTH), XceptionClassifier(3, WIDTH)
    untouched = {key: tensor.clone() for key, tensor in lisiam.state_dict().items() if not key.startswith("backbone.")}
    said = load_xception_weights(lisiam, path), load_xception_weights(baseline, str(path))
    for network in (lisiam, baseline):
        trunk = network.backbone.state_dict()
        assert len([key for key in weights if is_trunk(key)]) == 222
        assert all(torch.equal(trunk[key], tensor) and trunk[key].dtype == torch.float32
                   for key, tensor in weights.items() if is_trunk(key))
    own = baseline.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own if key.startswith(("conv3.", "bn3.", "conv4.", "bn4.", "fc."))
               and not key.endswith("num_batches_tracked"))
    assert all(torch.equal(tensor, lisiam.state_dict()[key]) for key, tensor in untouched.items())
    assert said[0].startswith("222 tensors from weights.pth") and said[1] == "236 tensors from weights.pth; head too"


def test_at_full_width_the_names_are_those_that_seven_public_ports_share():
    """236 tensors without BatchNorm's counters, 34 of them pointwise; 222 in the trunk. Built without memory."""
    with torch.device("meta"):
        names = [name.removeprefix("backbone.") for name in without_counters(XceptionClassifier(1000).state_dict())]
    by_hand = [f"conv{n}.weight" for n in (1, 2)] + [f"conv{n}.{part}.weight" for n in (3, 4) for part in ("conv1", "pointwise")]
    norms = ["bn1", "bn2", "bn3", "bn4"]
    for n in range(1, 13):
        convolutions = (0, 3) if n == 1 else (1, 4) if n in (2, 3, 12) else (1, 4, 7)
        by_hand += [f"block{n}.rep.{index}.{part}.weight" for index in convolutions for part in ("conv1", "pointwise")]
        norms += [f"block{n}.rep.{index + 1}" for index in convolutions]
        if n in (1, 2, 3, 12):
            by_hand.append(f"block{n}.skip.weight")
            norms.append(f"block{n}.skipbn")
    by_hand += [f"{norm}.{part}" for norm in norms for part in ("weight", "bias", "running_mean", "running_var")]
    assert sorted(names) == sorted(by_hand + ["fc.weight", "fc.bias"]) and len(names) == 236
    assert sum(name.endswith("pointwise.weight") for name in names) == 34
    with torch.device("meta"):
        assert len(without_counters(LiSiam().backbone.state_dict())) == 222


def test_a_head_with_another_class_count_stays_random(tmp_path):
    """ImageNet's 1000 classes do not fit a decision of 2: trunk and exit flow are taken, the head is not, and it is said."""
    weights = port(num_classes=1000)
    torch.save(weights, tmp_path / "imagenet.pth")
    net = XceptionClassifier(2, WIDTH)
    head = net.fc.weight.clone(), net.fc.bias.clone()
    assert load_xception_weights(net, tmp_path / "imagenet.pth") == "234 tensors from imagenet.pth; head left random"
    assert torch.equal(net.fc.weight, head[0]) and torch.equal(net.fc.bias, head[1])
    assert torch.equal(net.conv4.pointwise.weight, weights["conv4.pointwise.weight"])


def test_a_backbone_without_exit_flow_serves_lisiam_and_is_refused_for_the_baseline(tmp_path):
    """The authors' release holds blocks 1-12 only, as backbone_net.*"""
    weights = {name: tensor for name, tensor in port().items() if is_trunk(name)}
    path = tmp_path / "lisiam.pth"
    torch.save({**with_prefix("backbone_net.", weights), "seg_head.weight": torch.ones(2)}, path)
    net = LiSiam(WIDTH)
    load_xception_weights(net, path)
    assert all(torch.equal(net.backbone.state_dict()[name], tensor) for name, tensor in weights.items())
    with pytest.raises(ValueError, match=r"lisiam\.pth lacks 12 tensors .* first is conv3\.conv1\.weight.*--pretrained none"):
        load_xception_weights(XceptionClassifier(2, WIDTH), path)


class Hostile:
    """Unpickled without care it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damage(kind, path):
    """Writes one kind of useless file."""
    weights = port()
    if kind == "a missing tensor":
        del weights["block7.rep.4.conv1.weight"]
    elif kind == "a wrong shape":
        weights["block12.skip.weight"] = torch.ones(48, 41, 1, 1)
    elif kind == "another architecture":
        weights = {"stem.0.weight": torch.ones(3), "head.fc.bias": torch.ones(2)}
    elif kind == "a number for a tensor":
        weights["conv1.weight"] = 3
    elif kind == "no tensors":
        weights = {"epoch": 3, "state_dict": {}}
    elif kind == "a list":
        weights = [torch.ones(2)]
    elif kind == "a pickled network":
        weights = XceptionClassifier(2, WIDTH)
    elif kind == "a hostile checkpoint":
        weights["fc.weight"] = Hostile(path.with_name("it ran"))
    torch.save(weights, path)
    if kind == "garbage":
        path.write_bytes(bytes(range(256)) * 9)
    elif kind == "text":
        path.write_text("404: not found\n")
    elif kind == "an empty file":
        path.write_bytes(b"")
    elif kind == "a torn file":
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "a hostile pickle":
        path.write_bytes(pickle.dumps(Hostile(path.with_name("it ran"))))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "no file":
        path.unlink()


@pytest.mark.parametrize("kind, says", [
    ("a missing tensor", "lacks 1 tensors .*first is block7.rep.4.conv1.weight"),
    ("a wrong shape", "other shapes for 1 tensors .*first is block12.skip.weight"),
    ("another architecture", "lacks 222 tensors"), ("a number for a tensor", "other shapes for 1 tensors .*conv1.weight"),
    ("no tensors", "expected a state_dict"), ("a list", "expected a state_dict"), ("a pickled network", "save model.state_dict"),
    ("a hostile checkpoint", "state_dict"), ("a hostile pickle", "state_dict"), ("garbage", "state_dict"), ("text", "state_dict"),
    ("an empty file", ""), ("a torn file", ""), ("a folder", "no file .*--pretrained takes"),
    ("no file", "no file .*--pretrained takes"),
])
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_no_use_is_named_with_a_remedy_and_nothing_in_it_runs(kind, says, tmp_path):
    """Every wrong file ends in one ValueError that names it; no weight has changed; no code of the file has run."""
    path = tmp_path / "weights.pth"
    damage(kind, path)
    net = LiSiam(WIDTH)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=says) as error:
        load_xception_weights(net, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert any(remedy in str(error.value) for remedy in ("--pretrained", "expected", "pass that file"))
    assert not (tmp_path / "it ran").exists()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.filterwarnings("ignore")
def test_the_hostile_pickle_would_have_run(tmp_path):
    """The test above can fail: with the safety off the same file does create its folder."""
    path = tmp_path / "weights.pth"
    damage("a hostile checkpoint", path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "it ran").exists()


def test_imagenet_weights_are_downloaded_once(tmp_path, monkeypatch):
    """Sec. IV-B: into torch.hub's folder under the file's own name; a second call reads the file that is there."""
    weights, downloads = port(num_classes=1000), []

    def download(url, target, *args, **kwargs):
        downloads.append(url)
        torch.save(weights, target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for net in (LiSiam(WIDTH), XceptionClassifier(2, WIDTH)):
        load_xception_weights(net, "imagenet")
        assert torch.equal(net.backbone.conv2.weight, weights["conv2.weight"])
    assert len(downloads) == 1 and downloads[0].endswith("/xception-43020ad28.pth")
    assert [file.name for file in (tmp_path / "hub" / "checkpoints").iterdir()] == ["xception-43020ad28.pth"]


@pytest.mark.parametrize("failure", [URLError("no route to host"), TimeoutError("timed out"), OSError(28, "disk full"),
                                     "a folder that cannot be made"])
def test_a_failing_download_says_what_to_do_instead(failure, tmp_path, monkeypatch):
    def download(url, target, *args, **kwargs):
        raise failure

    if isinstance(failure, str):
        (tmp_path / "hub").write_text("in the way")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match="(?s)could not download .*xception-43020ad28.pth.*--pretrained FILE.*--pretrained none"):
        load_xception_weights(LiSiam(WIDTH), "imagenet")


@pytest.mark.filterwarnings("ignore")
def test_a_download_that_was_cut_off_is_to_be_deleted(tmp_path, monkeypatch):
    """A connection that closes early leaves a short file under the right name; every later run would meet it again."""
    path = tmp_path / "hub" / "checkpoints" / "xception-43020ad28.pth"
    path.parent.mkdir(parents=True)
    torch.save(port(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="xception-43020ad28.pth.*delete it"):
        load_xception_weights(LiSiam(WIDTH), "imagenet")
