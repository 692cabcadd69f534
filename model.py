"""
LiSiam's network: a face crop in, a forgery map and a real/fake decision out.

Read beside Sec. III-A, III-B, III-E, Fig. 1-2. Classes appear in the order an image travels.
  paper     code           shape (B = batch)   meaning
  I^n       images         (B, 3, 299, 299)    RGB in [-1, 1]; n = 1 clean, 2 degraded
  X_I^n     feats          (B, 512, 37, 37)    f_cnn: Xception blocks 1-12, then OCR
  X_s^n     seg_logits     (B, 2, 37, 37)      f_seg, before softmax; channel 0 = real, 1 = fake
            region_logits  (B, 2, 37, 37)      OCR's soft regions, before softmax; same channels
  X_c^1     cls_feats      (B, 512, 13, 13)    f_scu
  X_r, X_f  x_real/x_fake  (B, 512, 13, 13)    X_c^1 weighted by the map's two channels
  Z         fused          (B, 1024, 13, 13)   f_mt
  alpha     cls_logits     (B, 2)              f_mlp, before softmax; column 0 = real, 1 = fake
                                               (with five classes: 0 = real, 1 to 4 = the methods)
Shapes in comments are those of width 1.0 at 299 px. Sec. III-E prints "512 x 13 x 13" for X_s^1;
the size belongs to X_c^1. The file ends with what a network needs around it: its input, its
precision, checkpoints and ImageNet weights.
Elsewhere: losses.py (Sec. III-C, III-D), masks.py (X_gt), train.py (the three freeze stages).
"""

import re
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class LiSiamOutput(NamedTuple):
    """The output of one branch for a batch. Every entry is before softmax."""

    cls_logits: torch.Tensor | None     # (B, num_classes); None if the head did not run
    seg_logits: torch.Tensor            # (B, 2, 37, 37), channel 1 = fake
    region_logits: torch.Tensor         # (B, 2, 37, 37), channel 1 = fake


def scale_channels(channels, width):
    """The number of channels at a width factor, rounded to a multiple of 8, but at least 8.

    Width 1.0 leaves every layer of the paper as it is, because 728 = 91 * 8.
    """
    return max(8, round(channels * width / 8) * 8)


def conv_bn_relu(in_channels, out_channels, kernel_size):
    """Convolution that keeps the size, BatchNorm, ReLU: (B, in, H, W) -> (B, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),           # its shift takes the place of a bias
        nn.ReLU(inplace=True),
    )


# ---------------------------------------------------------------- Sec. III-E: Xception, in f_cnn
class SeparableConv2d(nn.Module):
    """A 3x3 filter for each channel, then a 1x1 convolution that mixes the channels.

    (B, in, H, W) -> (B, out, H', W'). Neither layer has a bias. The layers carry the names of the
    public ports of Xception, so that their weights can be loaded.
    """

    def __init__(self, in_channels, out_channels, stride=1, pointwise_padding=0):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1,
                               groups=in_channels, bias=False)          # depthwise
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, padding=pointwise_padding,
                                   bias=False)

    def forward(self, x):
        return self.pointwise(self.conv1(x))


class XceptionBlock(nn.Module):
    """(ReLU, separable convolution, BatchNorm) from each width to the next, plus a shortcut.

    widths: numbers of channels, such as [728, 728, 1024] in block 12. (B, first, H, W) -> (B, last,
    H / stride, W / stride), rounded up. A strided block ends in a max-pool. The shortcut is a 1x1
    convolution if input and output differ in shape. Layer names and their order in `rep` are those
    of the public ports.
    """

    def __init__(self, widths, stride=1, start_with_relu=True):
        super().__init__()
        layers = []
        for rep in range(len(widths) - 1):
            if rep > 0 or start_with_relu:
                # The first ReLU must not work in place, because the shortcut reads x as well.
                layers.append(nn.ReLU(inplace=rep > 0))
            layers.append(SeparableConv2d(widths[rep], widths[rep + 1]))
            layers.append(nn.BatchNorm2d(widths[rep + 1]))
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*layers)
        self.skip = None
        if stride > 1 or widths[0] != widths[-1]:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])

    def forward(self, x):
        shortcut = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + shortcut


class Xception(nn.Module):
    """Blocks 1-12: images -> backbone (B, 1024, 37, 37), and block 4's output (B, 728, 37, 37).

    READING Sec. III-E: the paper removes "the last MaxPool2d layer", which is block 12's. That
    alone gives a map of 19 x 19. The stated 37 x 37 needs stride 1 in block 3 as well:
    299 -> 149 -> 147 -> 74 -> 37 -> 37 ... -> 37. The authors' release does the same.
    The original Xception has stride 2 in both: 19 x 19 after block 3, 10 x 10 after block 12.
    """

    def __init__(self, width=1.0, block3_stride=1, block12_stride=1):
        super().__init__()
        c = partial(scale_channels, width=width)
        self.conv1 = nn.Conv2d(3, c(32), 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(c(32))
        self.conv2 = nn.Conv2d(c(32), c(64), 3, bias=False)
        self.bn2 = nn.BatchNorm2d(c(64))
        self.block1 = XceptionBlock([c(64), c(128), c(128)], stride=2, start_with_relu=False)
        self.block2 = XceptionBlock([c(128), c(256), c(256)], stride=2)
        self.block3 = XceptionBlock([c(256), c(728), c(728)], block3_stride)
        for number in range(4, 12):                                     # the middle flow
            setattr(self, f"block{number}", XceptionBlock([c(728)] * 4))
        self.block12 = XceptionBlock([c(728), c(728), c(1024)], block12_stride)

    def forward(self, images):
        if min(images.shape[2:]) < 23:      # 23 leave a map of 3 x 3: 23 -> 11 -> 9 -> 5 -> 3
            raise ValueError(f"images of {tuple(images.shape[2:])} pixels are too small for this "
                             "network; give at least 23 x 23 pixels")
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)          # (B, 32, 149, 149)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)               # (B, 64, 147, 147)
        x = self.block1(x)                                              # (B, 128, 74, 74)
        x = self.block2(x)                                              # (B, 256, 37, 37)
        x = self.block3(x)                                              # (B, 728, 37, 37)
        middle = self.block4(x)                                         # (B, 728, 37, 37)
        x = middle
        for number in range(5, 12):
            x = getattr(self, f"block{number}")(x)                      # (B, 728, 37, 37)
        return self.block12(x), middle                                  # (B, 1024, 37, 37)


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR, in f_cnn
class OCR(nn.Module):
    """Object-contextual representations: each position also sees a summary of its region.

    backbone (B, 1024, 37, 37), middle (B, 728, 37, 37) -> X_I (B, 512, 37, 37) and region_logits
    (B, 2, 37, 37). Let x_i be the features at position i. There are two soft regions r, real and
    fake. [39] computes

      regions   f_r = sum_i m_ri x_i             m_ri = softmax over positions i of region_logits
      relation  w_ir = softmax over r of query(x_i) . key(f_r) / sqrt(256)
      context   y_i = up(sum_r w_ir value(f_r))             X_I = fuse([y_i, x_i])

    READING Sec. III-E: the paper gives [39], the backbone's output as the input, and the output
    size. The layers follow the authors' release: the soft regions come from block 4 instead, the
    fusion is 3x3, and there is no dropout.
    """

    def __init__(self, width=1.0):
        super().__init__()
        c = partial(scale_channels, width=width)
        channels = c(512)
        keys = c(256)
        self.region_head = nn.Sequential(
            conv_bn_relu(c(728), channels, 3), nn.Conv2d(channels, 2, 1))
        self.bottleneck = conv_bn_relu(c(1024), channels, 3)
        self.query = nn.Sequential(conv_bn_relu(channels, keys, 1), conv_bn_relu(keys, keys, 1))
        self.key = nn.Sequential(conv_bn_relu(channels, keys, 1), conv_bn_relu(keys, keys, 1))
        self.value = conv_bn_relu(channels, keys, 1)
        self.up = conv_bn_relu(keys, channels, 1)
        self.fuse = conv_bn_relu(2 * channels, channels, 3)

    def forward(self, backbone, middle):
        region_logits = self.region_head(middle)                        # (B, 2, 37, 37)
        x = self.bottleneck(backbone)                                   # (B, 512, 37, 37)
        B, _, H, W = x.shape
        # Gather: a softmax over *space* makes f_r the mean feature of where region r is likely.
        m = region_logits.flatten(2).softmax(dim=2)                     # (B, 2, 1369)
        regions = (x.flatten(2) @ m.transpose(1, 2)).unsqueeze(3)       # f_r  (B, 512, 2, 1)
        # Distribute: a softmax over the two *regions* mixes their summaries at each position.
        q = self.query(x).flatten(2).transpose(1, 2)                    # (B, 1369, 256)
        k = self.key(regions).flatten(2)                                # (B, 256, 2)
        v = self.value(regions).flatten(2).transpose(1, 2)              # (B, 2, 256)
        scale = k.shape[1] ** -0.5
        w = (q @ k * scale).softmax(dim=2)                              # (B, 1369, 2)
        mixed = (w @ v).transpose(1, 2).reshape(B, -1, H, W)            # (B, 256, 37, 37)
        context = self.up(mixed)                                        # y_i  (B, 512, 37, 37)
        return self.fuse(torch.cat([context, x], dim=1)), region_logits


# ---------------------------------------------------------------- Sec. III-A: f_scu
class SeparableConvUnit(nn.Module):
    """X_I (B, 512, 37, 37) -> X_c (B, 512, 13, 13): features for the decision, on a coarser grid.

    READING Sec. III-E: the paper prints only the output size. Two strided steps alone would give
    37 -> 19 -> 10. The authors' release also pads the 1x1 convolutions by 1, and so do we:
      first step    depthwise, stride 2: (37 + 2 * 1 - 3) // 2 + 1 = 19;   padded 1x1: 19 + 2 = 21
      second step   depthwise, stride 2: (21 + 2 * 1 - 3) // 2 + 1 = 11;   padded 1x1: 11 + 2 = 13
    READING Sec. III-A: the order of the layers follows the release: one ReLU, between the two
    steps, and dropout 0.1 of whole channels.
    READING Sec. III-A: "separable convolutions [32]". We use Xception's form: nothing stands
    between the 3x3 and the 1x1, where [32] has BatchNorm and ReLU. The release has dense 3x3
    convolutions instead of depthwise ones, which cost 4.7 million more parameters.
    READING Sec. III-A: no biases, as in Xception. In the 1x1, BatchNorm makes a bias superfluous.
    In the 3x3, a bias would shift the inside, but not the zeros with which the 1x1 is padded.
    """

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            SeparableConv2d(channels, channels, stride=2, pointwise_padding=1),  # (B, 512, 21, 21)
            nn.BatchNorm2d(channels),
            nn.Dropout2d(0.1),
            nn.ReLU(inplace=True),
            SeparableConv2d(channels, channels, stride=2, pointwise_padding=1),  # (B, 512, 13, 13)
            nn.BatchNorm2d(channels),
            nn.Dropout2d(0.1),
        )

    def forward(self, feats):
        return self.layers(feats)


# ---------------------------------------------------------------- Sec. III-B: f_se [37]
class SqueezeExcitation(nn.Module):
    """Multiplies each channel of (B, C, H, W) by a weight in (0, 1), computed from all channels.

    READING Eq. (14): the paper cites [37] alone. Reduction 16 and no biases follow the release.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, x):
        means = x.mean(dim=(2, 3))                                      # (B, 1024)
        weights = self.excite(F.relu(self.squeeze(means))).sigmoid()    # (B, 1024)
        return x * weights[:, :, None, None]


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: f_mt
def split_real_fake(cls_feats, seg_logits):
    """f_att: X_c (B, 512, 13, 13) weighted by P(real) and by P(fake) of X_s -> X_r and X_f.

    READING Eq. (6): f_bi is PyTorch's bilinear interpolation, which does not average over the cells
    that it skips (no antialiasing). The paper says only "bilinear".
    """
    probs = seg_logits.softmax(dim=1)                                   # (B, 2, 37, 37)
    probs = F.interpolate(probs, size=cls_feats.shape[2:], mode="bilinear",
                          align_corners=False)                  # Eq. (6)   X_s'  (B, 2, 13, 13)
    x_real = cls_feats * probs[:, 0:1]                          # Eq. (7)   X_r   (B, 512, 13, 13)
    x_fake = cls_feats * probs[:, 1:2]                          # Eq. (8)   X_f   (B, 512, 13, 13)
    return x_real, x_fake


class MaskGuidedTransformer(nn.Module):
    """Compares what looks fake with what looks real: X_c, X_s -> Z (B, 1024, 13, 13).

    READING Sec. III-B: the paper says only "1x1 convolutions". We follow the authors' release: no
    bias, 512 channels in q, k and v, BatchNorm in f_m, dropout 0.1 on the attention weights.
    """

    def __init__(self, channels):
        super().__init__()
        self.f_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_k = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_m = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.dropout = nn.Dropout(0.1)
        self.f_se = SqueezeExcitation(2 * channels)

    def forward(self, cls_feats, seg_logits):
        B, C, H, W = cls_feats.shape                            # H = W = 13, so N = 169 positions
        x_real, x_fake = split_real_fake(cls_feats, seg_logits)  # Eq. (5)  X_r, X_f
        # Each position asks with its fake share: which real positions do I resemble?
        q = self.f_q(x_fake).flatten(2).transpose(1, 2)  # Eq. (9)   row i: q_i    (B, N, 512)
        k = self.f_k(x_real).flatten(2)                  # Eq. (10)  column j: k_j (B, 512, N)
        v = self.f_v(x_real).flatten(2).transpose(1, 2)  # Eq. (11)  row j: v_j    (B, N, 512)
        # READING Eq. (12): the softmax runs over j, the real positions. The paper prints no index.
        # It prints no 1 / sqrt(C) either, so the products are large. The 7-bit mantissa of bfloat16
        # is too coarse for them, so products and softmax are computed in float32.
        with torch.autocast(q.device.type, enabled=False):
            attn = (q.float() @ k.float()).softmax(dim=2)  # Eq. (12)  a_ij          (B, N, N)
            attn = self.dropout(attn).to(v.dtype)
        # READING Eq. (13): the paper prints no sum. We sum over j, as [35] does.
        y = (attn @ v).transpose(1, 2).reshape(B, C, H, W)
        y = self.f_m(y)                                  # Eq. (13)  Y        (B, 512, 13, 13)
        # READING Eq. (14): we concatenate in the printed order. The release puts X_c first and
        # applies one more BatchNorm to Y + X_f.
        both = torch.cat([y + x_fake, cls_feats], dim=1)
        return self.f_se(both)                           # Eq. (14)  Z        (B, 1024, 13, 13)


# ---------------------------------------------------------------- Sec. III-A, III-D: f_mlp
class MLPHead(nn.Module):
    """Two linear layers on the pooled features: Z (B, 1024, 13, 13) -> alpha (B, num_classes).

    READING Sec. III-A: "two linear layers". Their width, BatchNorm and ReLU follow the release.
    READING Eq. (1): it omits f_aap and a bracket. Eq. (18) has f_aap, so the pooling is done here.
    """

    def __init__(self, channels, num_classes=2):
        super().__init__()
        self.f_mlp = nn.Sequential(
            nn.Linear(channels, channels),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, num_classes),
        )

    def forward(self, fused):
        pooled = fused.mean(dim=(2, 3))                         # f_aap: the mean over 13 x 13 cells
        return self.f_mlp(pooled)                               # Eq. (18)  alpha           (B, 2)


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: all of it
class LiSiam(nn.Module):
    """The Siamese network. It takes one batch of images, or the pair of Fig. 1:

    net(images)            -> one LiSiamOutput; testing runs the first branch alone, Eq. (1).
    net(clean, degraded)   -> two LiSiamOutputs, one for each branch.
    heads=(first, second) says which branches run f_scu, f_mt and f_mlp; by default the first.

    images: (B, 3, S, S) float, RGB in [-1, 1]; S must be at least 23, else ValueError. width scales
    all channels. num_classes=5 is for Fig. 5, transformer=False is Model-F. The network has 32.28
    million parameters at width 1.0.

    READING Sec. III-A: the two branches share weights but run one after the other, the clean images
    first. Each BatchNorm layer therefore normalizes one branch at a time, and both branches update
    the running statistics that testing uses. The authors' release does the same. One batch of 2B
    images would give other statistics; at initialization its gradient is about orthogonal to ours.
    READING Sec. III-E: the paper gives only f_seg's output size. It is one 1x1 convolution, as in
    the release.
    READING Table VI: Model-F is "without the Mask-guided Transformer". Ours feeds the pooled X_c
    (512 channels) to f_mlp. The release feeds it the map's two channels.
    """

    def __init__(self, width=1.0, num_classes=2, transformer=True):
        super().__init__()
        channels = scale_channels(512, width)
        self.backbone = Xception(width)
        self.ocr = OCR(width)
        self.f_seg = nn.Conv2d(channels, 2, 1)
        self.f_scu = SeparableConvUnit(channels)
        self.f_mt = MaskGuidedTransformer(channels) if transformer else None
        self.f_mlp = MLPHead(2 * channels if transformer else channels, num_classes)

    def branch(self, images, head):
        """One branch of Fig. 1: images -> LiSiamOutput; head=False leaves cls_logits None."""
        backbone, middle = self.backbone(images)
        feats, region_logits = self.ocr(backbone, middle)       # Eq. (2)  X_I^n  (B, 512, 37, 37)
        # f_seg and f_mlp compute in float32, because logits in bfloat16 are too coarse for Eq. (15)
        # and for the score.
        dtype = self.f_seg.weight.dtype
        with torch.autocast(images.device.type, enabled=False):
            seg_logits = self.f_seg(feats.to(dtype))            # Eq. (3)  X_s^n  (B, 2, 37, 37)
        if not head:
            return LiSiamOutput(None, seg_logits, region_logits)
        cls_feats = self.f_scu(feats)                           # Eq. (4)  X_c^1  (B, 512, 13, 13)
        fused = cls_feats
        if self.f_mt is not None:
            fused = self.f_mt(cls_feats, seg_logits)            # Eq. (5) to Eq. (14)  Z
        with torch.autocast(images.device.type, enabled=False):
            cls_logits = self.f_mlp(fused.to(dtype))            # Eq. (1)  alpha  (B, 2)
        return LiSiamOutput(cls_logits, seg_logits, region_logits)

    def forward(self, images, degraded=None, heads=(True, False)):
        first = self.branch(images, heads[0])
        if degraded is None:
            return first
        return first, self.branch(degraded, heads[1])


# ---------------------------------------------------------------- Tables I-VI: Xception baseline
class XceptionClassifier(nn.Module):
    """The baseline [3]: the whole Xception with its own strides.

    (B, 3, 299, 299) -> logits before softmax (B, num_classes), columns as in LiSiam.
    """

    def __init__(self, num_classes=2, width=1.0):
        super().__init__()
        c = partial(scale_channels, width=width)
        self.backbone = Xception(width, block3_stride=2, block12_stride=2)
        self.conv3 = SeparableConv2d(c(1024), c(1536))                  # the exit flow
        self.bn3 = nn.BatchNorm2d(c(1536))
        self.conv4 = SeparableConv2d(c(1536), c(2048))
        self.bn4 = nn.BatchNorm2d(c(2048))
        self.relu4 = nn.ReLU(inplace=True)      # a module, so that Grad-CAM can read its output
        self.fc = nn.Linear(c(2048), num_classes)

    def forward(self, images):
        x, _ = self.backbone(images)                                    # (B, 1024, 10, 10)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)               # (B, 1536, 10, 10)
        x = self.relu4(self.bn4(self.conv4(x)))                         # (B, 2048, 10, 10)
        pooled = x.mean(dim=(2, 3)).to(self.fc.weight.dtype)            # (B, 2048)
        with torch.autocast(images.device.type, enabled=False):         # as LiSiam's head
            return self.fc(pooled)                                      # (B, 2)


# ---------------------------------------------------------------- what a network needs around it
def to_input(images):
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32 in [-1, 1].

    In memory, the three colours of a pixel stay side by side (channels_last), which is faster.
    READING Sec. IV-A3: the paper does not name the normalization. Mean and standard deviation 0.5
    are those of nearly all public ports of Xception. Our input is RGB, the order that the ImageNet
    weights were trained on; the release feeds OpenCV's BGR.
    """
    images = images.permute(0, 3, 1, 2)                         # (B, 3, S, S)
    return (images.float() * (1 / 255) - 0.5) / 0.5             # bit-equal to torchvision's v2


def precision(device):
    """bfloat16 on a GPU that computes in it; float32 on a CPU and on older GPUs (T4, V100)."""
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def autocast(device):
    """The context in which the network runs.

    READING Sec. IV-B: the paper does not name a precision. Parameters are stored in float32. The
    attention weights of Eq. (12), f_seg, f_mlp and all losses are computed in float32. On a GPU,
    PyTorch may compute float32 convolutions, such as f_seg, in TF32 with its 10-bit mantissa.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)


def build_network(settings):
    """The network that a run's settings describe: model, width, num_classes, transformer."""
    if settings["model"] == "xception":
        return XceptionClassifier(settings["num_classes"], settings["width"])
    return LiSiam(settings["width"], settings["num_classes"], settings["transformer"])


def load_network(path, device="cpu"):
    """A checkpoint of train.py -> (its network in eval mode on the device, the run's settings)."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)    # no code in it runs
    net = build_network(checkpoint["settings"])
    net.load_state_dict(checkpoint["model"])
    # best.pt knows at which threshold the map fitted the val masks best; last.pt does not.
    settings = {"threshold": checkpoint.get("threshold"), **checkpoint["settings"]}
    return net.to(device, memory_format=torch.channels_last).eval(), settings


# ---------------------------------------------------------------- Sec. IV-B: ImageNet weights
IMAGENET_URL = ("https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
                "xception-43020ad28.pth")


def load_xception_weights(network, source):
    """Fills LiSiam's trunk, or the whole XceptionClassifier, with the weights of a public port.

    source: "imagenet" (91 MB, downloaded once and checked against the hash in its name), or a file
    with a state_dict. Every tensor of the trunk must exist and have our shape. The baseline keeps
    its random head if the file has none of that shape. Returns a sentence about what was loaded.
    """
    if source == "imagenet":
        weights = torch.hub.load_state_dict_from_url(
            IMAGENET_URL, map_location="cpu", check_hash=True, weights_only=True)
    else:
        weights = torch.load(source, map_location="cpu", weights_only=True)
    found = port_names(weights)
    target = network.backbone if isinstance(network, LiSiam) else network
    own = target.state_dict()
    ports = {name: name.removeprefix("backbone.") for name in own}
    taken = {name: found[port] for name, port in ports.items() if port in found}
    head = {name: own[name] for name in ("fc.weight", "fc.bias") if name in own}    # the baseline's
    fits = all(name in taken and taken[name].shape == own[name].shape for name in head)
    if not fits:                                                # another number of classes
        taken = {name: tensor for name, tensor in taken.items() if name not in head}
    target.load_state_dict({**head, **taken})                   # strict: names what is missing
    sentence = f"training starts from {len(taken)} tensors of {source}"
    return sentence if fits else f"{sentence}; the head is random"


def port_names(weights):
    """The state_dict of a public port -> {name without prefixes: tensor}; the head is called fc.

    The ports (Cadene, tstandley, timm, FaceForensics, DeepfakeBench, ISPL, the authors' release)
    use the same names. They differ in the dictionary around the weights, in prefixes, in the name
    of the head, and in how pointwise kernels are stored.
    """
    for key in ("state_dict", "model", "net"):
        if key in weights and not torch.is_tensor(weights[key]):
            weights = weights[key]
    prefixes = r"^((module|model|backbone|backbone_net|xception|net)\.)+"
    found = {}
    for name, tensor in weights.items():
        name = re.sub(prefixes, "", name)
        name = re.sub(r"^last_linear\.(1\.)?", "fc.", name)
        if name.endswith("pointwise.weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]                   # xception-b5690688.pth: (out, in)
        found[name] = tensor
    return found
