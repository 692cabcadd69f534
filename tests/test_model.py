"""model.py beside Sec. III-A, III-B, III-E and Fig. 1-2: every equation again, with loops, by hand or in closed form."""

import functools
import math
import os
import pickle
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from model import (LiSiam, MaskGuidedTransformer, OCR, SeparableConvUnit, Xception, XceptionClassifier, load_xception_weights,
                   scale_channels, split_real_fake)

WIDTH = 0.05                    # 32, 64, 128, 256, 512, 728, 1024, 2048 channels become 8, 8, 8, 16, 24, 40, 48, 104


def settled(module, seed=0):
    """The module in float64 and eval mode, weights and BatchNorm statistics random: a fresh BatchNorm does nothing."""
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
    mean, var, weight, bias = (t.view(-1, *[1] * (x.ndim - 1)) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / (var + bn.eps).sqrt() * weight + bias


def bilinear(image, height, width):
    """One (C, h, w) map at another size: target cell i reads source coordinate (i + 0.5) h / height - 0.5."""
    def mix(source, target):
        rows = torch.zeros(target, source, dtype=image.dtype)
        for i in range(target):
            at = max(0.0, (i + 0.5) * source / target - 0.5)
            rows[i, int(at)] += 1 - at % 1
            rows[i, min(int(at) + 1, source - 1)] += at % 1
        return rows
    return mix(image.shape[1], height) @ image @ mix(image.shape[2], width).T


def positions(x):
    """(C, H, W) -> list of H W vectors, row by row: the x_i of Eq. (9) to Eq. (13)."""
    return list(x.flatten(1).unbind(dim=1))


def as_map(vectors, height, width):
    return torch.stack(vectors, dim=1).reshape(-1, height, width)


# ---------------------------------------------------------------- Sec. III-E: sizes
def test_every_size_that_section_3e_states_at_299_pixels():
    """Sec. III-E: 1024 x 37 x 37 (backbone), 512 x 37 x 37 (OCR), 2 x 37 x 37 (map), 512 x 13 x 13 (X_c^1); and the comments."""
    net, got = LiSiam().eval(), {}
    expected = {"backbone.conv1": (32, 149, 149), "backbone.conv2": (64, 147, 147), "backbone.block1": (128, 74, 74),
                "backbone.block2": (256, 37, 37), "backbone.block3": (728, 37, 37), "backbone.block4": (728, 37, 37),
                "backbone.block11": (728, 37, 37), "backbone": (1024, 37, 37), "ocr": (512, 37, 37), "f_seg": (2, 37, 37),
                "f_scu.layers.0": (512, 21, 21), "f_scu": (512, 13, 13), "f_mt": (1024, 13, 13), "f_mlp": (2,)}
    for name in expected:
        def note(module, inputs, output, name=name):
            got[name] = tuple((output[0] if isinstance(output, tuple) else output).shape[1:])
        net.get_submodule(name).register_forward_hook(note)
    with torch.inference_mode():
        net(torch.zeros(1, 3, 299, 299))
    assert got == expected


def test_removing_only_the_last_max_pool_would_give_19_by_19():
    """READING Sec. III-E: block 3's stride has to go as well as block 12's. Tables I-V: the baseline keeps both."""
    nets = XceptionClassifier(width=WIDTH).backbone, Xception(WIDTH, 2, 1), Xception(WIDTH, 1, 2), Xception(WIDTH)
    with torch.inference_mode():
        sides = [[x.shape[-1] for x in net.eval()(torch.zeros(1, 3, 299, 299))] for net in nets]
    assert sides == [[10, 19], [19, 19], [19, 37], [37, 37]]         # block 12's map, block 4's map


def test_the_parts_have_as_many_parameters_as_their_layers_say():
    """Numbers counted on an independent build; the small ones once more as arithmetic."""
    with torch.device("meta"):
        net, C = LiSiam(), 512
    by_hand = {"backbone": 16_058_152, "ocr.region_head": 9 * 728 * C + 2 * C + (2 * C + 2), "ocr.bottleneck": 9 * 1024 * C + 2 * C,
               "ocr": 3_356_674 + 4_719_616 + 5_378_560, "f_seg": 2 * C + 2, "f_scu": 2 * (9 * C + C * C + 2 * C),
               "f_mt.f_q": C * C, "f_mt.f_k": C * C, "f_mt.f_v": C * C, "f_mt.f_m": C * C + 2 * C, "f_mt.f_se": 2 * 1024 * 64,
               "f_mlp": (1024 * 1024 + 1024) + 2 * 1024 + (2 * 1024 + 2), "": 32_283_950}
    assert {name: sum(p.numel() for p in net.get_submodule(name).parameters()) for name in by_hand} == by_hand


@pytest.mark.parametrize("pixels, map_side, scu_side", [(23, 3, 4), (107, 13, 7), (139, 17, 8), (256, 32, 11)])
def test_other_image_sizes(pixels, map_side, scu_side):
    """Sec. III-E at other sizes: conv1 halves, conv2 takes 2, blocks 1 and 2 halve; f_scu halves and adds 2, twice.
    Images that leave no 3 x 3 map are refused by a sentence."""
    net = LiSiam(WIDTH).eval()
    with torch.inference_mode():
        feats, _ = net.ocr(*net.backbone(torch.zeros(1, 3, pixels, pixels)))
        assert (feats.shape[2:], net.f_scu(feats).shape[2:]) == ((map_side, map_side), (scu_side, scu_side))
    for height, width in ((22, pixels), (pixels, 22)):
        with pytest.raises(ValueError, match=rf"\({height}, {width}\).*at least 23"):
            net(torch.zeros(1, 3, height, width))


def test_width_scales_every_channel_count_to_a_multiple_of_8():
    """Width 1.0 changes nothing (728 = 91 * 8); others round to the nearest multiple of 8, never below 8."""
    paper = [32, 64, 128, 256, 512, 728, 1024, 1536, 2048]
    assert [scale_channels(c, 1.0) for c in paper] == paper
    assert [scale_channels(c, 0.5) for c in paper] == [16, 32, 64, 128, 256, 368, 512, 768, 1024]      # 364 -> 368 (45.5 -> 46)
    assert scale_channels(728, 0.125) == 88 and scale_channels(32, 0.001) == 8                         # 91 -> 88 (11.4 -> 11)
    assert 0.45e6 < sum(p.numel() for p in LiSiam(0.125).parameters()) < 0.55e6                        # "0.5 of 32.3 million"


# ---------------------------------------------------------------- Sec. III-E: f_cnn, Xception and OCR [39]
@pytest.mark.parametrize("baseline", [False, True])
def test_xception_recomputed_from_the_names_of_the_public_ports(baseline):
    """Eq. (2), first half: Xception from its state_dict alone; the second result is block 4's output.
    Blocks 5 to 11 add x as it was before the ReLU: an in-place first ReLU would clip it, and block 4's output with it.
    [3]: the baseline adds two separable convolutions, each with BatchNorm and ReLU, the mean over the map, one linear layer."""
    net = settled(XceptionClassifier(3, WIDTH) if baseline else Xception(WIDTH))
    images, state = noise(2, 3, 35, 41, seed=2), {name.removeprefix("backbone."): tensor for name, tensor in net.state_dict().items()}

    def norm(y, name):
        return F.batch_norm(y, *(state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def separable(y, name):
        depthwise = state[f"{name}.conv1.weight"]
        return F.conv2d(F.conv2d(y, depthwise, padding=1, groups=len(depthwise)), state[f"{name}.pointwise.weight"])

    y = norm(F.conv2d(images, state["conv1.weight"], stride=2), "bn1").clamp(min=0)
    outputs = [norm(F.conv2d(y, state["conv2.weight"]), "bn2").clamp(min=0)]
    for n in range(1, 13):
        x = y = outputs[-1]
        stride = 2 if n in (1, 2) or baseline and n in (3, 12) else 1
        for index in (0, 3) if n == 1 else (1, 4) if n in (2, 3, 12) else (1, 4, 7):               # within rep
            y = separable(y.clamp(min=0) if index else y, f"block{n}.rep.{index}")                 # block 1 starts without ReLU
            y = norm(y, f"block{n}.rep.{index + 1}")
        y = F.max_pool2d(y, 3, stride, 1) if stride > 1 else y
        if n in (1, 2, 3, 12):
            x = norm(F.conv2d(x, state[f"block{n}.skip.weight"], stride=stride), f"block{n}.skipbn")
        outputs.append(y + x)
    for got, by_hand in zip((net.backbone if baseline else net)(images), (outputs[12], outputs[4])):
        assert_close(got, by_hand)
    if baseline:
        y = norm(separable(outputs[12], "conv3"), "bn3").clamp(min=0)
        y = norm(separable(y, "conv4"), "bn4").clamp(min=0)
        assert_close(net(images), y.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"])


def test_ocr_gathers_over_space_and_distributes_over_two_regions():
    """Eq. (2), second half; [39]: each region is a mean of features weighted by a softmax over *space*; each position mixes
    the regions' values by a softmax over *regions* of query . key / sqrt(keys); the mix goes before the features, both are fused."""
    ocr = settled(OCR(WIDTH), seed=3)
    backbone, middle = noise(2, 48, 3, 4, seed=4), noise(2, 40, 3, 4, seed=5)
    feats, region_logits = ocr(backbone, middle)

    def conv_bn_relu(layers, x):                                     # one convolution (1x1 or 3x3) at a time, in the order given
        for conv, bn, _ in zip(layers[0::3], layers[1::3], layers[2::3]):
            x = normalized(F.conv2d(x[None], conv.weight, padding=conv.kernel_size[0] // 2)[0], bn).clamp(min=0)
        return x

    for n in range(2):                                               # one image at a time: images must not mix
        hidden = conv_bn_relu(ocr.region_head[0], middle[n])
        regions_at = [ocr.region_head[1].weight[:, :, 0, 0] @ vector + ocr.region_head[1].bias for vector in positions(hidden)]
        assert_close(region_logits[n], as_map(regions_at, 3, 4))
        x, keys, values, mixes = conv_bn_relu(ocr.bottleneck, backbone[n]), [], [], []
        for region in (0, 1):                                        # gather
            weights = [at[region].exp() for at in regions_at]
            mean = as_map([sum(w * vector for w, vector in zip(weights, positions(x))) / sum(weights)], 1, 1)
            keys.append(conv_bn_relu([*ocr.key[0], *ocr.key[1]], mean).flatten())
            values.append(conv_bn_relu(ocr.value, mean).flatten())
        for query in positions(conv_bn_relu([*ocr.query[0], *ocr.query[1]], x)):                   # distribute
            a, b = (math.exp(query @ key / math.sqrt(16)) for key in keys)
            mixes.append((a * values[0] + b * values[1]) / (a + b))
        context = conv_bn_relu(ocr.up, as_map(mixes, 3, 4))
        assert_close(feats[n], conv_bn_relu(ocr.fuse, torch.cat([context, x])))


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: mask-guided transformer
def test_real_and_fake_share_the_features_and_channel_1_is_fake():
    """Eq. (5), Eq. (7), Eq. (8): softmax sums to 1 and f_bi keeps that, so X_r + X_f = X_c; channel 0 is real, 1 is fake.
    Eq. (6): f_bi reads a map of 4 columns at 2 columns at coordinates 0.5 and 2.5, not at its corners 0 and 3."""
    cls_feats, says_fake = noise(2, 8, 13, 13), torch.zeros(2, 2, 37, 37, dtype=torch.float64)
    says_fake[:, 1] = 5.0
    x_real, x_fake = split_real_fake(cls_feats, says_fake)
    assert_close(x_real + x_fake, cls_feats)
    assert_close(x_fake, cls_feats / (1 + math.exp(-5.0)))                       # Eq. (8): softmax([0, 5])[1], by hand
    p = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    seg_logits = torch.stack([torch.zeros_like(p), (p / (1 - p)).log()])[None, :, None, :]      # softmax gives 1 - p, p
    x_real, x_fake = split_real_fake(torch.ones(1, 1, 1, 2, dtype=torch.float64), seg_logits)
    assert x_fake.flatten().tolist() == pytest.approx([0.15, 0.6]) and x_real.flatten().tolist() == pytest.approx([0.85, 0.4])


def transformer_by_loops(f_mt, cls_feats, seg_logits):
    """Z of one image and the attention, position by position: Eq. (6) to Eq. (14) with vectors and matrices only."""
    w_q, w_k, w_v, w_m = (conv.weight[:, :, 0, 0] for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]))
    probs = bilinear(seg_logits.exp() / seg_logits.exp().sum(0), *cls_feats.shape[1:])      # Eq. (6)
    x_c, x_r = positions(cls_feats), positions(cls_feats * probs[0])             # Eq. (7)
    x_f = positions(cls_feats * probs[1])                                        # Eq. (8)
    q = [w_q @ x for x in x_f]                                                   # Eq. (9)
    k = [w_k @ x for x in x_r]                                                   # Eq. (10)
    v = [w_v @ x for x in x_r]                                                   # Eq. (11)
    attention, halves = [], []
    for i in range(len(x_c)):
        scores = torch.stack([(q[i] @ k_j).exp() for k_j in k])
        attention.append(scores / scores.sum())                                  # Eq. (12)  over j
        y_i = normalized(w_m @ sum(a_ij * v_j for a_ij, v_j in zip(attention[i], v)), f_mt.f_m[1])         # Eq. (13)
        halves.append(torch.cat([y_i + x_f[i], x_c[i]]))                         # Eq. (14)  concat(Y + X_f, X_c)
    hidden = (f_mt.f_se.squeeze.weight @ (sum(halves) / len(halves))).clamp(min=0)
    weights = 1 / (1 + (-f_mt.f_se.excite.weight @ hidden).exp())
    return as_map([weights * half for half in halves], *cls_feats.shape[1:]), torch.stack(attention)       # Eq. (14)  f_se


def test_mask_guided_transformer_against_loops_over_positions():
    """Eq. (6) and Eq. (9), Eq. (10), Eq. (11), Eq. (12), Eq. (13), Eq. (14): a loop over i and j, one image at a time."""
    f_mt = settled(MaskGuidedTransformer(16), seed=11)
    cls_feats, seg_logits = 2 * noise(2, 16, 3, 4, seed=12), 2 * noise(2, 2, 7, 9, seed=13)
    fused = f_mt(cls_feats, seg_logits)
    for n in range(2):
        by_hand, attention = transformer_by_loops(f_mt, cls_feats[n], seg_logits[n])
        assert_close(fused[n], by_hand, rtol=1e-4, atol=1e-4)                    # its softmax is in float32
        assert attention.max() > 0.5 and not torch.allclose(attention, attention.T, atol=0.1)      # neither uniform nor symmetric


def bare_transformer():
    """f_q, f_k, f_v, f_m the identity, no re-weighting: what is left of Fig. 2 is the attention itself."""
    f_mt = MaskGuidedTransformer(16).eval().requires_grad_(False)
    for conv in (f_mt.f_q, f_mt.f_k, f_mt.f_v, f_mt.f_m[0]):
        conv.weight.copy_(torch.eye(16)[:, :, None, None])
    f_mt.f_m[1] = f_mt.f_se = nn.Identity()
    return f_mt


@pytest.mark.parametrize("first, second, y", [
    ((2, 0), (0, 0), [2 / (1 + math.exp(-4)), 1]),                   # q . k = 4 or 0; 1 / sqrt(16) would make the first number 1.46
    ((16, 0), (16, 1), [16, 16, 0.5, 1 / (1 + math.exp(-1))]),       # q . k = 256 or 257; bfloat16 has no 257 and would give 0.5, 0.5
])
def test_attention_has_no_scale_by_the_square_root_of_the_channels(first, second, y):
    """Eq. (12), READING: softmax(q_i . k_j) as printed, in float32 even under autocast. Two positions, X_f = X_r."""
    cls_feats = torch.zeros(1, 16, 1, 2)
    cls_feats[0, :2, 0] = 2.0 * torch.tensor([first, second]).T                  # halved by a map that knows nothing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = bare_transformer()(cls_feats, torch.zeros(1, 2, 1, 2))[0, :2, 0]
    got = fused.float() - cls_feats[0, :2, 0] / 2                                # Y = Z's first half - X_f
    assert got.flatten().tolist()[:len(y)] == pytest.approx(y, rel=0.01)


def test_fake_positions_ask_and_real_positions_answer():
    """Eq. (9) to Eq. (13): where the map says fake everywhere there is nothing real to attend to, so Y = f_m(0); where it
    says real everywhere X_f = 0, every query is 0, and each position gets the plain mean of the real features.
    Eq. (14): the second half of Z is X_c itself."""
    f_mt, cls_feats, all_fake = bare_transformer(), noise(1, 16, 3, 3, seed=14).float(), torch.zeros(1, 2, 5, 5)
    all_fake[:, 1] = 60.0
    mean = cls_feats.mean(dim=(2, 3), keepdim=True).expand(1, 16, 3, 3)
    assert_close(f_mt(cls_feats, all_fake), torch.cat([cls_feats, cls_feats], dim=1))              # Y = 0, X_f = X_c
    assert_close(f_mt(cls_feats, all_fake.flip(1)), torch.cat([mean, cls_feats], dim=1))           # Y = mean, X_f = 0


def test_dropout_takes_one_in_ten_whole_channels_in_f_scu_and_attention_weights_in_f_mt():
    """Sec. III-A names dropout in f_scu; READING: after each BatchNorm, p = 0.1, what is kept is divided by 0.9. READING
    Sec. III-B: also on a_ij; with X_f = 0 and X_r = 1 a position's Y is its kept share of N = 100, over 0.9."""
    torch.manual_seed(0)
    for dropout in (SeparableConvUnit(1000).layers[index] for index in (2, 6)):
        got = dropout(torch.ones(1, 1000, 2, 2))[0].flatten(1)
        assert torch.equal(got, got[:, :1].expand(-1, 4)) and 0.07 < (got == 0).float().mean() < 0.13
        assert_close(got.max(), torch.tensor(1 / 0.9))
    all_real = torch.tensor([60.0, 0.0])[None, :, None, None].expand(1, 2, 10, 10)
    y = bare_transformer().train()(torch.ones(1, 16, 10, 10), all_real)[0, :16]
    assert_close(y, y[:1].expand(16, 10, 10))
    assert 0.98 < y.mean() < 1.02 and y.min() > 0.8 and 0.02 < y.std() < 0.05                       # sqrt(0.1 / 0.9 / 100) = 0.03


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: the whole network
def separable_by_hand(layer, x):
    """[32], stride 2: a filter per channel, then a mix of channels, position by position; the padded 1x1's border stays zero."""
    (_, H, W), padded, mix = x.shape, F.pad(x, [1] * 4), layer.pointwise.weight[:, :, 0, 0]
    mixed = [mix @ (padded[:, i:i + 3, j:j + 3] * layer.conv1.weight[:, 0]).sum(dim=(1, 2))
             for i in range(0, H, 2) for j in range(0, W, 2)]
    return F.pad(as_map(mixed, (H + 1) // 2, (W + 1) // 2), [1] * 4)


@pytest.mark.parametrize("num_classes, transformer", [(2, True), (5, True), (2, False)])
def test_inference_is_the_composition_of_the_parts(num_classes, transformer):
    """Eq. (1): alpha = f_mlp(f_mt(f_seg(f_cnn(I)), f_scu(f_cnn(I)))); READING Table VI, Model-F: alpha = f_mlp(X_c).
    Eq. (3): f_seg is one and the same 2 x C matrix at every position. Eq. (4): f_scu is twice a separable convolution and
    BatchNorm, one ReLU between the two. Eq. (18): f_mlp works on the mean over positions.
    The decision's gradient reaches f_seg through the transformer; Model-F's does not."""
    net, images = settled(LiSiam(WIDTH, num_classes, transformer), seed=20), noise(2, 3, 35, 43, seed=21)
    net.f_seg.weight.requires_grad_()
    out = net(images)
    assert out.cls_logits.shape == (2, num_classes) and out.cls_logits.requires_grad == transformer
    feats, region_logits = net.requires_grad_(False).ocr(*net.backbone(images))  # Eq. (2)
    (conv1, bn1, _, _, conv2, bn2, _), (first, bn, _, last) = net.f_scu.layers, net.f_mlp.f_mlp
    for n in range(2):
        seg_logits = as_map([net.f_seg.weight[:, :, 0, 0] @ x_i + net.f_seg.bias for x_i in positions(feats[n])], 4, 5)     # Eq. (3)
        cls_feats = normalized(separable_by_hand(conv1, feats[n]), bn1).clamp(min=0)
        cls_feats = normalized(separable_by_hand(conv2, cls_feats), bn2)         # Eq. (4)
        fused = transformer_by_loops(net.f_mt, cls_feats, seg_logits)[0] if transformer else cls_feats
        pooled = sum(positions(fused)) / len(positions(fused))                   # Eq. (18)  f_aap
        hidden = normalized(first.weight @ pooled + first.bias, bn).clamp(min=0)
        assert_close(out.cls_logits[n], last.weight @ hidden + last.bias, rtol=1e-4, atol=1e-4)
        assert_close(out.seg_logits[n], seg_logits)
        assert_close(out.region_logits[n], region_logits[n])


@pytest.mark.parametrize("heads", [None, (True, True), (False, True), (False, False)])
def test_a_pair_is_two_calls_of_the_same_network_and_heads_say_which_branches_decide(heads):
    """Fig. 1: the branches share every weight, clean comes out first, only the first decides. Table VI: B reads both branches,
    D and E the degraded one, stage 1 none; a head that is not asked for does not run. Bit-equal: a call has no memory."""
    net = settled(LiSiam(WIDTH), seed=27)
    images, keyword, runs = (noise(1, 3, 35, 35, seed=28), noise(1, 3, 35, 35, seed=29)), {"heads": heads} if heads else {}, []
    alone = [net(image) for image in images]
    for module in net.classification_modules():
        module.register_forward_hook(lambda module, inputs, output: runs.append(module))
    pair, heads = net(*images, **keyword), heads or (True, False)
    assert len(runs) == 3 * sum(heads) and not torch.allclose(pair[0].seg_logits, pair[1].seg_logits)
    for asked, branch, single in zip(heads, pair, alone):
        assert torch.equal(branch.seg_logits, single.seg_logits) and torch.equal(branch.region_logits, single.region_logits)
        assert torch.equal(branch.cls_logits, single.cls_logits) if asked else branch.cls_logits is None
    assert (net(images[0], **keyword).cls_logits is None) == (not heads[0])


def test_batchnorm_sees_each_branch_on_its_own_clean_first():
    """READING Sec. III-A: after one pair bn1's running mean is 0.9 (0.9 * 0 + 0.1 m1) + 0.1 m2 = 0.09 m1 + 0.1 m2, its variance
    0.81 + 0.09 v1 + 0.1 v2. One joined batch, or degraded first, would give other numbers. Each map is the one its image has alone."""
    torch.manual_seed(0)
    net = LiSiam(WIDTH).double().train()
    clean, degraded = noise(2, 3, 35, 35, seed=30), 1 + 3 * noise(2, 3, 35, 35, seed=31)
    (v1, m1), (v2, m2) = (torch.var_mean(F.conv2d(x, net.backbone.conv1.weight, stride=2), dim=(0, 2, 3)) for x in (clean, degraded))
    first, second = net(clean, degraded)
    assert_close(net.backbone.bn1.running_mean, 0.09 * m1 + 0.1 * m2)
    assert_close(net.backbone.bn1.running_var, 0.81 + 0.09 * v1 + 0.1 * v2)
    assert net.f_scu.layers[1].num_batches_tracked == 1              # only the first branch has a head
    for branch, images in ((first, clean), (second, degraded)):
        assert torch.equal(branch.seg_logits, net(images, heads=(False, False)).seg_logits)


@pytest.mark.parametrize("transformer", [True, False])
def test_the_stages_modules_split_every_parameter(transformer):
    """Sec. IV-B: segmentation (f_cnn, f_seg) and classification (f_scu, f_mt, f_mlp); none left over, none shared."""
    net = LiSiam(WIDTH, transformer=transformer)
    assert net.segmentation_modules() == [net.backbone, net.ocr, net.f_seg]
    assert net.classification_modules() == [net.f_scu, net.f_mt, net.f_mlp][::1 if transformer else 2]
    parts = net.segmentation_modules() + net.classification_modules()
    assert sum(len(part.state_dict()) for part in parts) == len(net.state_dict())


# ---------------------------------------------------------------- Sec. IV-B: ImageNet weights and the public ports
TRUNK = ("conv1.", "bn1.", "conv2.", "bn2.", "block")


@functools.cache
def port(num_classes=3):
    """The state_dict of a public port of Xception, at our small width: the same names, head fc."""
    weights = settled(XceptionClassifier(num_classes, WIDTH), seed=40).float().state_dict()
    return {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}


def renamed(weights, prefix, head="fc."):
    return {prefix + (head + name[3:] if name.startswith("fc.") else name): tensor for name, tensor in weights.items()}


FORMATS = {
    "tstandley, timm legacy_xception": lambda w: w,
    "xception-b5690688: matrices, no counters": lambda w: {
        key: tensor[:, :, 0, 0] if key.endswith("pointwise.weight") else tensor for key, tensor in w.items() if "num_b" not in key},
    "FaceForensics as a state_dict": lambda w: renamed(w, "model.", "last_linear.1."),
    "DeepfakeBench, DistributedDataParallel": lambda w: {
        **renamed(w, "module.backbone.", "last_linear."), "module.backbone.adjust_channel.0.weight": torch.ones(5, 7, 1, 1)},
    "ISPL": lambda w: {"net": renamed(w, "xception.", "last_linear."), "epoch": 3},
    "a training script's checkpoint": lambda w: {"epoch": 7, "state_dict": renamed(w, "module."), "best": 0.5},
    "ours: best.pt": lambda w: {"model": {"backbone." * name.startswith(TRUNK) + name: w[name] for name in w}, "iteration": 9},
    "half precision": lambda w: {name: tensor.half() for name, tensor in w.items()},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_public_format_fills_the_same_trunk(name, tmp_path):
    """Whatever the prefix, the head's name or the pointwise kernels' rank: bit-equal weights and statistics in both networks,
    and in LiSiam nothing else changes. 236 tensors without BatchNorm's counters, as in seven public ports; 222 in the trunk."""
    path = tmp_path / "weights.pth"
    torch.save(FORMATS[name](port()), path)
    lisiam, baseline = LiSiam(WIDTH), XceptionClassifier(3, WIDTH)
    before = {key: tensor.clone() for key, tensor in lisiam.state_dict().items()}
    assert load_xception_weights(lisiam, path) == "222 tensors from weights.pth"
    assert load_xception_weights(baseline, str(path)) == "236 tensors from weights.pth; head too"
    first, second = lisiam.state_dict(), baseline.state_dict()
    for key, tensor in port().items():
        expected = tensor.half().float() if name == "half precision" else tensor
        for own in [first["backbone." + key], second["backbone." + key]] if key.startswith(TRUNK) else [second[key]]:
            assert "num_b" in key or torch.equal(own, expected) and own.dtype == torch.float32
    assert all(torch.equal(tensor, before[key]) for key, tensor in first.items() if not key.startswith("backbone."))


def test_a_head_that_does_not_fit_stays_random_and_a_missing_exit_flow_is_refused(tmp_path):
    """ImageNet's 1000 classes do not fit a decision of 2: all but the head is taken, and it is said; a bias that happens to
    fit is not taken alone. The authors' release holds blocks 1-12 only, as backbone_net.*: enough for LiSiam."""
    path, baseline, lisiam = tmp_path / "file.pth", XceptionClassifier(2, WIDTH), LiSiam(WIDTH)
    head = baseline.fc.weight.clone(), baseline.fc.bias.clone()
    for weights in (port(1000), {**port(1000), "fc.bias": torch.ones(2)}):
        torch.save(weights, path)
        assert load_xception_weights(baseline, path) == "234 tensors from file.pth; head left random"
        assert torch.equal(baseline.fc.weight, head[0]) and torch.equal(baseline.fc.bias, head[1])
        assert torch.equal(baseline.conv4.pointwise.weight, weights["conv4.pointwise.weight"])
    torch.save(renamed({name: tensor for name, tensor in port().items() if name.startswith(TRUNK)}, "backbone_net."), path)
    load_xception_weights(lisiam, path)
    assert torch.equal(lisiam.backbone.block12.skip.weight, port()["block12.skip.weight"])
    with pytest.raises(ValueError, match=r"file\.pth lacks 12 tensors .* first is conv3\.conv1\.weight.*--pretrained none"):
        load_xception_weights(baseline, path)


class Hostile:
    """Unpickled without care it creates a folder."""

    def __reduce__(self):
        return os.mkdir, ("it ran",)


USELESS = {                     # what is saved (or, as bytes, written), and what the error says
    "a missing tensor": ({name: tensor for name, tensor in port().items() if name != "block7.rep.4.conv1.weight"},
                         "lacks 1 tensors .*first is block7.rep.4.conv1.weight.*--pretrained none"),
    "a wrong shape": ({**port(), "block12.skip.weight": torch.ones(48, 41, 1, 1)}, "other shapes for 1 tensors .*block12.skip.weight"),
    "another architecture": ({"stem.0.weight": torch.ones(3), "head.fc.bias": torch.ones(2)}, "lacks 222 tensors"),
    "a number for a tensor": ({**port(), "conv1.weight": 3}, "other shapes for 1 tensors .*conv1.weight"),
    "no tensors": ({"epoch": 3, "state_dict": {}}, "expected a state_dict"),
    "a list": ([torch.ones(2)], "expected a state_dict"),
    "a pickled network": (XceptionClassifier(2, WIDTH), "save model.state_dict.*pass that file"),
    "a hostile checkpoint": ({**port(), "fc.weight": Hostile()}, "pass that file"),
    "a hostile pickle": (pickle.dumps(Hostile()), "pass that file"),
    "text": (b"404: not found\n", "pass that file"),
    "an empty file": (b"", "pass that file"),
    "no file": (None, "no file .*--pretrained takes"),
    ".": (None, "no file .*--pretrained takes"),
}


@pytest.mark.parametrize("name", USELESS)
@pytest.mark.filterwarnings("ignore")
def test_a_file_of_no_use_is_named_with_a_remedy_and_nothing_in_it_runs(name, tmp_path, monkeypatch):
    """Every wrong file ends in one ValueError that names it; no weight has changed; no code of the file has run."""
    monkeypatch.chdir(tmp_path)
    (contents, says), path, trace, net = USELESS[name], tmp_path / name, tmp_path / "it ran", LiSiam(WIDTH)
    if contents is not None:
        path.write_bytes(contents) if isinstance(contents, bytes) else torch.save(contents, path)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=says) as error:
        load_xception_weights(net, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and not trace.exists()
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in before.items())
    if name == "a hostile checkpoint":                               # with the safety off the same file does create its folder
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's folder, empty, and the file that Sec. IV-B's ImageNet weights have there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / "xception-43020ad28.pth"


def test_imagenet_weights_are_downloaded_once(hub, monkeypatch):
    """Sec. IV-B: into torch.hub's folder under the file's own name; a second call reads the file that is there."""
    urls = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target: (urls.append(url), torch.save(port(1000), target)))
    for net in (LiSiam(WIDTH), XceptionClassifier(2, WIDTH)):
        load_xception_weights(net, "imagenet")
        assert torch.equal(net.backbone.conv2.weight, port(1000)["conv2.weight"])
    assert len(urls) == 1 and urls[0].endswith("/xception-43020ad28.pth") and list(hub.parent.iterdir()) == [hub]


@pytest.mark.parametrize("failure", [URLError("no route to host"), OSError(28, "disk full"), "no folder", "cut off"])
@pytest.mark.filterwarnings("ignore")
def test_a_failing_download_says_what_to_do_instead(failure, hub, monkeypatch):
    """A connection that closes early leaves a short file under the right name, which every later run would meet: delete it."""
    def download(url, target, *args, **kwargs):
        if failure != "cut off":
            raise failure
        torch.save(port(), target)
        hub.write_bytes(hub.read_bytes()[:-5000])

    if failure == "no folder":
        hub.parent.parent.write_text("in the way")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    says = "delete it" if failure == "cut off" else "--pretrained FILE.*--pretrained none"
    with pytest.raises(ValueError, match="(?s)xception-43020ad28.pth.*" + says):
        load_xception_weights(LiSiam(WIDTH), "imagenet")
