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
Sec. III-E gives X_s^1 the size 512 x 13 x 13; that is X_c^1's. Shapes in comments are those of
width 1.0 at 299 px. At the end: a network's input, checkpoints, Xception's ImageNet weights.
Elsewhere: losses.py (Sec. III-C, III-D), masks.py (X_gt), train.py (the three freeze stages).
"""

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class LiSiamOutput(NamedTuple):
    """What one branch says about a batch. Every entry is before softmax; index 1 = fake."""

    cls_logits: torch.Tensor | None     # (B, num_classes), or None where the head did not run
    seg_logits: torch.Tensor            # (B, 2, 37, 37)
    region_logits: torch.Tensor         # (B, 2, 37, 37)


def scale_channels(channels, width):
    """Channels at a width factor: a multiple of 8, at least 8; 1.0 changes none (728 = 91 * 8)."""
    return max(8, round(channels * width / 8) * 8)


def conv_bn_relu(in_channels, out_channels, kernel_size):
    """Convolution that keeps the size, BatchNorm, ReLU: (B, in, H, W) -> (B, out, H, W)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),           # its shift replaces the bias
        nn.ReLU(inplace=True),
    )


# ---------------------------------------------------------------- Sec. III-E: Xception, in f_cnn
class SeparableConv2d(nn.Module):
    """One 3x3 filter per channel, then a 1x1 convolution that mixes the channels.

    (B, in, H, W) -> (B, out, H', W'); no biases, as BatchNorm follows. Layers are named as in the
    public ports of Xception, so that their weights load.
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
    """`reps` times (ReLU, separable convolution, BatchNorm), a max-pool if it strides, a shortcut.

    (B, in, H, W) -> (B, out, H / stride, W / stride), rounded up. The shortcut is a 1x1 convolution
    where shapes differ. Names (rep.N, skip, skipbn) and the order in `rep` are those of the ports.
    """

    def __init__(self, in_channels, out_channels, reps=2, stride=1, start_with_relu=True,
                 grow_first=True):
        super().__init__()
        widths = [in_channels] + [out_channels] * reps
        if not grow_first:                                              # block 12 grows last
            widths = [in_channels] * reps + [out_channels]
        layers = []
        for rep in range(reps):
            if rep > 0 or start_with_relu:
                # The first must not work in place: the shortcut reads x, too.
                layers.append(nn.ReLU(inplace=rep > 0))
            layers.append(SeparableConv2d(widths[rep], widths[rep + 1]))
            layers.append(nn.BatchNorm2d(widths[rep + 1]))
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*layers)
        self.skip = None
        self.skipbn = None
        if stride > 1 or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        shortcut = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + shortcut


class Xception(nn.Module):
    """Blocks 1-12: images -> backbone (B, 1024, 37, 37), and block 4's output (B, 728, 37, 37).

    READING Sec. III-E: dropping only "the last MaxPool2d layer" (block 12's) gives 19 x 19. The
    stated 37 x 37 needs stride 1 in block 3 as well: 299 -> 149 -> 147 -> 74 -> 37 -> 37 ... -> 37.
    The authors' release does the same.
    Strides 2, 2 are the original Xception's: 19 x 19 after block 3, 10 x 10 after block 12.
    """

    def __init__(self, width=1.0, block3_stride=1, block12_stride=1):
        super().__init__()
        c = partial(scale_channels, width=width)
        self.conv1 = nn.Conv2d(3, c(32), 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(c(32))
        self.conv2 = nn.Conv2d(c(32), c(64), 3, bias=False)
        self.bn2 = nn.BatchNorm2d(c(64))
        self.block1 = XceptionBlock(c(64), c(128), stride=2, start_with_relu=False)
        self.block2 = XceptionBlock(c(128), c(256), stride=2)
        self.block3 = XceptionBlock(c(256), c(728), stride=block3_stride)
        for number in range(4, 12):                                     # the middle flow
            setattr(self, f"block{number}", XceptionBlock(c(728), c(728), reps=3))
        self.block12 = XceptionBlock(c(728), c(1024), stride=block12_stride, grow_first=False)

    def forward(self, images):
        if min(images.shape[2:]) < 23:
            raise ValueError(f"images of {tuple(images.shape[2:])} pixels leave LiSiam a map under "
                             "3 x 3 cells; give at least 23 x 23")
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)          # (B, 32, 149, 149)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)               # (B, 64, 147, 147)
        x = self.block1(x)                                              # (B, 128, 74, 74)
        x = self.block2(x)                                              # (B, 256, 37, 37)
        x = self.block3(x)                                              # (B, 728, 37, 37)
        middle = self.block4(x)                                         # (B, 728, 37, 37), for OCR
        x = middle
        for number in range(5, 12):
            x = getattr(self, f"block{number}")(x)                      # (B, 728, 37, 37)
        return self.block12(x), middle                                  # (B, 1024, 37, 37)


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR, in f_cnn
class OCR(nn.Module):
    """Object-contextual representations: each position gets a summary of the region it resembles.

    backbone (B, 1024, 37, 37), middle (B, 728, 37, 37) -> X_I (B, 512, 37, 37) and region_logits
    (B, 2, 37, 37). With x_i the features at position i and K = 2 soft regions (real, fake), [39] is

      regions   f_k = sum_i m_ki x_i             m_ki = softmax over positions i of region_logits
      relation  w_ik = softmax over k of q_i . k_k / sqrt(256)   q_i: query of x_i; k_k: key of f_k
      context   y_i = up(sum_k w_ik v_k)         v_k: value of f_k;   X_I = fuse([y_i, x_i])

    READING Sec. III-E: the paper names [39] and the output size only. Layers as in the authors'
    release: regions from block 4, 3x3 fusion, no dropout.
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
        # Gather: softmax over *space*, so f_k is the mean of features where region k is likely.
        m = region_logits.flatten(2).softmax(dim=2)                     # (B, 2, 1369)
        regions = (x.flatten(2) @ m.transpose(1, 2)).unsqueeze(3)       # f_k  (B, 512, 2, 1)
        # Distribute: softmax over the two *regions*, so each position mixes their summaries.
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
    """X_I (B, 512, 37, 37) -> X_c (B, 512, 13, 13): features for the decision, a third as wide.

    READING Sec. III-E: only the output size is printed. Two strided steps give 37 -> 19 -> 10. The
    authors' release also pads the 1x1 convolutions by 1, which adds 2 to each side:
      first step    depthwise, stride 2: (37 + 2 * 1 - 3) // 2 + 1 = 19;   padded 1x1: 19 + 2 = 21
      second step   depthwise, stride 2: (21 + 2 * 1 - 3) // 2 + 1 = 11;   padded 1x1: 11 + 2 = 13
    READING Sec. III-A: one ReLU, between the two steps, and dropout 0.1 by channel, as released.
    DEPARTURE Sec. III-A: the release's 3x3 convolutions are dense, 4.7 M parameters more; the text
    says separable [32], so ours are.
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
    """Weighs each channel of (B, C, H, W) by a number in (0, 1) that all channels' means decide.

    READING Eq. (14): reduction 16 and no biases, as the authors' release; the paper cites [37].
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
    """f_att: shares X_c (B, 512, 13, 13) out by the map X_s (B, 2, 37, 37) -> X_r, X_f, as X_c."""
    probs = seg_logits.softmax(dim=1)                                   # (B, 2, 37, 37)
    probs = F.interpolate(probs, size=cls_feats.shape[2:], mode="bilinear",
                          align_corners=False)                  # Eq. (6)   X_s'  (B, 2, 13, 13)
    x_real = cls_feats * probs[:, 0:1]                          # Eq. (7)   X_r   (B, 512, 13, 13)
    x_fake = cls_feats * probs[:, 1:2]                          # Eq. (8)   X_f   (B, 512, 13, 13)
    return x_real, x_fake


class MaskGuidedTransformer(nn.Module):
    """What is fake, seen against what is real: X_c, X_s -> Z (B, 1024, 13, 13).

    READING Sec. III-B: f_q, f_k, f_v, f_m are 1x1 convolutions, as printed; that they have no bias,
    f_m BatchNorm and the attention weights dropout 0.1 is the authors' release's.
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
        # Each suspected-fake position asks: which real positions do I resemble?
        q = self.f_q(x_fake).flatten(2).transpose(1, 2)  # Eq. (9)   row i: q_i    (B, N, 512)
        k = self.f_k(x_real).flatten(2)                  # Eq. (10)  column j: k_j (B, 512, N)
        v = self.f_v(x_real).flatten(2).transpose(1, 2)  # Eq. (11)  row j: v_j    (B, N, 512)
        # READING Eq. (12): softmax over j, the positions that answer; the index is not printed.
        # Without 1 / sqrt(C) products are large, and bfloat16 has 8 bits: hence float32 here.
        with torch.autocast(q.device.type, enabled=False):
            attn = (q.float() @ k.float()).softmax(dim=2)  # Eq. (12)  a_ij          (B, N, N)
            attn = self.dropout(attn).to(v.dtype)
        # READING Eq. (13): no sum is printed; ours is over j, as in non-local attention [35].
        y = (attn @ v).transpose(1, 2).reshape(B, C, H, W)
        y = self.f_m(y)                                  # Eq. (13)  Y        (B, 512, 13, 13)
        # READING Eq. (14): the printed order and no further BatchNorm; the release swaps the halves
        # and adds one.
        both = torch.cat([y + x_fake, cls_feats], dim=1)
        return self.f_se(both)                           # Eq. (14)  Z        (B, 1024, 13, 13)


# ---------------------------------------------------------------- Sec. III-A, III-D: f_mlp
class MLPHead(nn.Module):
    """Two linear layers on the pooled features: Z (B, 1024, 13, 13) -> alpha (B, num_classes).

    READING Sec. III-A: "two linear layers"; the hidden width (the input's), BatchNorm and ReLU are
    the release's.
    READING Eq. (1): it lacks f_aap, and a bracket; Eq. (18) has f_aap, so pooling belongs here.
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
    """The Siamese network. One image batch, or the pair of Fig. 1:

    net(images)            -> LiSiamOutput: as tested, through the first branch alone, Eq. (1).
    net(clean, degraded)   -> two LiSiamOutputs: as trained; the second without cls_logits.
    heads=(first, second) says which branches run f_scu, f_mt and f_mlp (Table VI, stage 1).

    images: (B, 3, S, S) float, RGB in [-1, 1], S >= 23, else ValueError. width scales all channels;
    num_classes=5 is Fig. 5's; transformer=False is Model-F. 32.28 M parameters at width 1.0.

    READING Sec. III-A: the branches share weights, but BatchNorm sees each branch's batch on its
    own: two passes, clean first; both update the running statistics that testing uses, as in the
    release. One batch of 2B has other statistics, and gradients (cosine about 0 at the start).
    READING Sec. III-E: only f_seg's output size is given: one 1x1 convolution, as released.
    READING Table VI: Model-F, "without the Mask-guided Transformer", pools X_c (512) into f_mlp;
    the release pools the map's 2 channels.
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

    def segmentation_modules(self):
        """f_cnn (Xception and OCR) and f_seg: stage 1 trains them, stage 2 freezes (Sec. IV-B)."""
        return [self.backbone, self.ocr, self.f_seg]

    def classification_modules(self):
        """f_scu, f_mt and f_mlp: stage 1 freezes them, stage 2 trains them (Sec. IV-B)."""
        modules = [self.f_scu, self.f_mt, self.f_mlp]
        return [module for module in modules if module is not None]

    def branch(self, images, head):
        """One branch of Fig. 1: images -> LiSiamOutput; head=False leaves cls_logits None."""
        backbone, middle = self.backbone(images)
        feats, region_logits = self.ocr(backbone, middle)       # Eq. (2)  X_I^n  (B, 512, 37, 37)
        # Maps and decisions in float32: bfloat16 would round away what Eq. (15) compares.
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


# ---------------------------------------------------------------- Tables I-V: the Xception baseline
class XceptionClassifier(nn.Module):
    """The baseline [3] with its strides: (B, 3, 299, 299) -> logits (B, num_classes); 1 = fake."""

    def __init__(self, num_classes=2, width=1.0):
        super().__init__()
        c = partial(scale_channels, width=width)
        self.backbone = Xception(width, block3_stride=2, block12_stride=2)
        self.conv3 = SeparableConv2d(c(1024), c(1536))                  # the exit flow
        self.bn3 = nn.BatchNorm2d(c(1536))
        self.conv4 = SeparableConv2d(c(1536), c(2048))
        self.bn4 = nn.BatchNorm2d(c(2048))
        self.fc = nn.Linear(c(2048), num_classes)

    def forward(self, images):
        x, _ = self.backbone(images)                                    # (B, 1024, 10, 10)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)               # (B, 1536, 10, 10)
        x = F.relu(self.bn4(self.conv4(x)), inplace=True)               # (B, 2048, 10, 10)
        return self.fc(x.mean(dim=(2, 3)))                              # (B, 2)


# ---------------------------------------------------------------- what a network needs to exist
def to_input(images):
    """(B, 3, S, S) uint8 RGB -> float32 in [-1, 1], channels last, which is faster.

    READING Sec. IV-A3: mean and deviation are not said: 0.5, as all ports of Xception.
    DEPARTURE Sec. III-E: the authors' release feeds OpenCV's BGR to weights trained on RGB.
    """
    images = (images.float() * (1 / 255) - 0.5) / 0.5           # bit for bit torchvision's
    return images.contiguous(memory_format=torch.channels_last)


def precision(device):
    """bfloat16 where a GPU computes in it, else float32: on the CPU, a T4, a V100."""
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def autocast(device):
    """What runs the network.

    READING Sec. IV-B: no precision is named. Parameters, the attention weights of Eq. (12), f_seg,
    f_mlp and all losses stay in float32; convolutions in it have TF32, PyTorch's default.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)


def build_network(settings):
    """The network that a run's settings describe: model, width, num_classes, transformer."""
    if settings["model"] == "xception":
        return XceptionClassifier(settings["num_classes"], settings["width"])
    return LiSiam(settings["width"], settings["num_classes"], settings["transformer"])


def load_network(path, device="cpu"):
    """A checkpoint of train.py -> (network in eval mode on the device, the settings of its run).

    No code in the file runs. Raises ValueError with a sentence where it is missing or no such one.
    """
    if not Path(path).is_file():
        raise ValueError(f"no checkpoint {path}; python train.py --data demo writes one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        # The threshold at which the map fitted val's masks best; last.pt has none.
        settings = {**checkpoint["settings"], "threshold": checkpoint.get("threshold", 0.5)}
        check_settings(settings)
        net = build_network(settings)
        net.load_state_dict(checkpoint["model"])
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of train.py ({type(error).__name__}); "
                         "expected one with settings and weights, such as best.pt") from None
    return net.to(device, memory_format=torch.channels_last).eval(), settings


def check_settings(settings):
    """ValueError where a checkpoint's settings are none of train.py's: before anything is built."""
    kinds = dict(
        model=str, variant=str, mask=str, data=str, quality=str, out=str, seed=int, size=int,
        num_classes=int, width=float, threshold=float, iqd=bool, transformer=bool)
    for name, kind in kinds.items():
        if type(settings[name]) is not kind:
            raise ValueError(name)
    in_bounds = (0 < settings["width"] <= 2 and 23 <= settings["size"] <= 4096
                 and 0.05 <= settings["threshold"] <= 0.95 and settings["num_classes"] in (2, 5))
    if not in_bounds:
        raise ValueError("a number out of bounds")


# ---------------------------------------------------------------- Sec. IV-B: ImageNet weights
IMAGENET_URL = ("https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
                "xception-43020ad28.pth")


def load_xception_weights(network, source):
    """Fills LiSiam's trunk, or all of XceptionClassifier, from ImageNet's or another port's file.

    source: "imagenet" (91 MB, downloaded once into torch.hub's folder) or a file with a state_dict.
    The trunk is strict: every tensor must be there in our shape. The baseline's head is taken if it
    fits, else stays random. Returns a sentence on what was loaded; raises ValueError with one where
    the file or the download is of no use.
    """
    path = imagenet_file() if source == "imagenet" else Path(source)
    found = port_names(read_weights(path, source))
    is_baseline = isinstance(network, XceptionClassifier)
    target = network if is_baseline else network.backbone
    own = target.state_dict()
    shapes = {name: tensor.shape for name, tensor in found.items()}
    takes_head = is_baseline and all(
        shapes.get(name) == own[name].shape for name in ("fc.weight", "fc.bias"))
    taken = {}
    missing = []
    misfits = []
    for key in own:
        if key.endswith("num_batches_tracked"):                 # old files lack it, nothing uses it
            continue
        if key.startswith("fc.") and not takes_head:
            continue
        name = key.removeprefix("backbone.")                    # in the ports
        if name not in found:
            missing.append(name)
        elif shapes[name] != own[key].shape:
            misfits.append(name)
        else:
            taken[key] = found[name]
    for problem, names in (("lacks", missing), ("has other shapes for", misfits)):
        if names:
            raise ValueError(
                f"{path} {problem} {len(names)} tensors of the Xception trunk, the first is "
                f"{names[0]}; expected the legacy Xception (not timm's xception41/65/71 or Keras) "
                "at --width 1.0, or --pretrained none")
    if not all(tensor.isfinite().all() for tensor in taken.values()):
        raise ValueError(f"{path} holds weights that are no finite numbers; fetch it again")
    target.load_state_dict({**own, **taken})
    sentence = f"{len(taken)} tensors from {path.name}"
    if is_baseline:
        sentence += "; head too" if takes_head else "; head left random"
    return sentence


def imagenet_file():
    """Path of Sec. IV-B's ImageNet weights, downloaded at the first call."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / "xception-43020ad28.pth"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # To a temporary name; moved if the file's SHA-256 begins as its name says.
            torch.hub.download_url_to_file(IMAGENET_URL, str(path), hash_prefix="43020ad28")
        except Exception as error:                  # no network, a timeout, a full disk, no folder
            raise ValueError(
                f"could not download {IMAGENET_URL} ({error}); fetch it in another way and pass "
                "--pretrained FILE, or start from random weights: --pretrained none") from None
    return path


def read_weights(path, source):
    """The state_dict in a file, however it is wrapped; ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"no file {path}; --pretrained takes imagenet, none, or a file of weights")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)   # runs no code
    except Exception as error:
        remedy = ("if it is a whole pickled model that you trust (FaceForensics' *.p), load it "
                  "with its own code, torch.save its model.state_dict(), and pass that file")
        if source == "imagenet":
            remedy = "the download was cut off: delete it and start again"
        raise ValueError(
            f"{path} is not a file of plain tensors ({type(error).__name__}); {remedy}") from None
    for key in ("state_dict", "model", "net"):                  # checkpoints that hold more
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not any(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{path} holds no weights by name; expected a port's state_dict")
    return weights


def port_names(weights):
    """A public port's state_dict -> {name without prefixes: tensor}, the head called fc.

    The ports (Cadene, tstandley, timm, FaceForensics, DeepfakeBench, ISPL, the authors' release)
    agree on every name but for prefixes, the head's name, and pointwise kernels stored as matrices.
    """
    prefixes = r"^((module|model|backbone|backbone_net|xception|net)\.)+"     # DataParallel, ...
    found = {}
    for name, tensor in weights.items():
        if not torch.is_tensor(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            continue                                            # no numbers of use
        name = re.sub(prefixes, "", str(name))
        name = re.sub(r"^last_linear\.(1\.)?", "fc.", name)
        if name.endswith("pointwise.weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]                   # xception-b5690688.pth: (out, in)
        found[name] = tensor
    return found
