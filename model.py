"""
LiSiam's network: a face crop in, a forgery map and a real/fake decision out.

Read beside Sec. III-A, III-B, III-E, Fig. 1-2. Classes appear in the order an image travels.
  paper     code           shape (B = batch)    meaning
  I^n       images         (B, 3, 299, 299)     RGB in [-1, 1], what Xception's ImageNet weights expect; n = 1 clean, 2 degraded
  X_I^n     feats          (B, 512, 37, 37)     f_cnn: Xception blocks 1-12, then OCR
  X_s^n     seg_logits     (B, 2, 37, 37)       f_seg, before softmax; channel 0 = real, 1 = fake
            region_logits  (B, 2, 37, 37)       OCR's soft regions, before softmax; the same channels
  X_c^1     cls_feats      (B, 512, 13, 13)     f_scu
  X_r, X_f  x_real/x_fake  (B, 512, 13, 13)     X_c^1 weighted by the map's two channels
  Z         fused          (B, 1024, 13, 13)    f_mt
  alpha     cls_logits     (B, 2)               f_mlp, before softmax; column 0 = real, 1 = fake
Sec. III-E gives X_s^1 the size 512 x 13 x 13; that is X_c^1's. Shapes in comments are those of width 1.0 at 299 px.
Elsewhere: losses.py (Sec. III-C, III-D), masks.py (X_gt), train.py (the three freeze stages).
"""

from pathlib import Path
from typing import NamedTuple, Optional

import torch
from torch import nn
from torch.nn import functional as F


class LiSiamOutput(NamedTuple):
    """What one branch says about a batch. Every entry is before softmax; index 1 = fake."""

    cls_logits: Optional[torch.Tensor]  # (B, num_classes), or None where the head was not asked for
    seg_logits: torch.Tensor            # (B, 2, 37, 37)
    region_logits: torch.Tensor         # (B, 2, 37, 37)


def scale_channels(channels, width):
    """Channels at a width factor: a multiple of 8, at least 8; width 1.0 changes nothing (728 = 91 * 8)."""
    return max(8, round(channels * width / 8) * 8)


def conv_bn_relu(in_channels, out_channels, kernel_size):
    """Convolution that keeps the size, BatchNorm, ReLU: (B, in, H, W) -> (B, out, H, W). BN's shift replaces the bias."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
                         nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


# ---------------------------------------------------------------- Sec. III-E: Xception, the backbone of f_cnn
class SeparableConv2d(nn.Module):
    """One 3x3 filter per channel, then a 1x1 convolution that mixes the channels: (B, in, H, W) -> (B, out, H', W')."""

    def __init__(self, in_channels, out_channels, stride=1, pointwise_padding=0):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)     # depthwise
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, padding=pointwise_padding, bias=False)

    def forward(self, x):
        return self.pointwise(self.conv1(x))


class XceptionBlock(nn.Module):
    """`reps` times (ReLU, separable convolution, BN), then a max-pool if it strides; a 1x1 shortcut where shapes differ.

    The names (rep.N, skip, skipbn) and the order within `rep` are those of every public port, so that their weights load.
    """

    def __init__(self, in_channels, out_channels, reps, stride=1, start_with_relu=True, grow_first=True):
        super().__init__()
        widths = [in_channels] + [out_channels] * reps if grow_first else [in_channels] * reps + [out_channels]
        layers = []
        for rep in range(reps):
            layers += [nn.ReLU(inplace=rep > 0),                     # the first must spare x: the shortcut reads it too
                       SeparableConv2d(widths[rep], widths[rep + 1]),
                       nn.BatchNorm2d(widths[rep + 1])]
        if not start_with_relu:
            layers = layers[1:]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*layers)
        self.skip = self.skipbn = None
        if stride > 1 or in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        shortcut = x if self.skip is None else self.skipbn(self.skip(x))
        return self.rep(x) + shortcut


class Xception(nn.Module):
    """Blocks 1-12: images (B, 3, 299, 299) -> features (B, 1024, 37, 37) and block 4's output (B, 728, 37, 37).

    READING Sec. III-E: dropping only "the last MaxPool2d" (block 12's) gives 19 x 19. The stated 37 x 37 needs stride 1 in
    block 3 as well: 299 -> 149 -> 147 -> 74 -> 37 -> 37 -> ... -> 37. The authors' release does the same.
    Strides 2, 2 are the original Xception's: 19 x 19 after block 3, 10 x 10 after block 12.
    """

    def __init__(self, width=1.0, block3_stride=1, block12_stride=1):
        super().__init__()
        c32, c64, c128, c256, c728, c1024 = (scale_channels(c, width) for c in (32, 64, 128, 256, 728, 1024))
        self.conv1 = nn.Conv2d(3, c32, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(c32)
        self.conv2 = nn.Conv2d(c32, c64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(c64)
        self.block1 = XceptionBlock(c64, c128, reps=2, stride=2, start_with_relu=False)
        self.block2 = XceptionBlock(c128, c256, reps=2, stride=2)
        self.block3 = XceptionBlock(c256, c728, reps=2, stride=block3_stride)
        for number in range(4, 12):                                  # the middle flow
            setattr(self, f"block{number}", XceptionBlock(c728, c728, reps=3))
        self.block12 = XceptionBlock(c728, c1024, reps=2, stride=block12_stride, grow_first=False)

    def forward(self, images):
        if min(images.shape[2:]) < 23:
            raise ValueError(f"images of {tuple(images.shape[2:])} pixels leave LiSiam a map under 3 x 3 cells; give at least 23 x 23")
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)       # (B, 32, 149, 149)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)            # (B, 64, 147, 147)
        x = self.block1(x)                                           # (B, 128, 74, 74)
        x = self.block2(x)                                           # (B, 256, 37, 37)
        x = self.block3(x)                                           # (B, 728, 37, 37)
        middle = x = self.block4(x)                                  # (B, 728, 37, 37)
        for number in range(5, 12):
            x = getattr(self, f"block{number}")(x)                   # (B, 728, 37, 37)
        return self.block12(x), middle                               # (B, 1024, 37, 37)


# ---------------------------------------------------------------- Sec. III-E, [39]: OCR, the second half of f_cnn
class OCR(nn.Module):
    """Object-contextual representations: each position gets, beside itself, a summary of the region it resembles.

    Two soft regions (real, fake) are guessed from block 4, averaged into one vector each, and handed back to every position
    by attention. backbone (B, 1024, 37, 37), middle (B, 728, 37, 37) -> X_I (B, 512, 37, 37), region_logits (B, 2, 37, 37).

    READING Sec. III-E: the paper names [39] and the output size only. Layers as in the authors' release: regions from block 4,
    3x3 fusion convolution, no dropout. Parameters: 3,356,674 region head, 4,719,616 bottleneck, 5,378,560 attention and fusion.
    """

    def __init__(self, width=1.0):
        super().__init__()
        c728, c1024, channels, keys = (scale_channels(c, width) for c in (728, 1024, 512, 256))
        self.region_head = nn.Sequential(conv_bn_relu(c728, channels, 3), nn.Conv2d(channels, 2, 1))
        self.bottleneck = conv_bn_relu(c1024, channels, 3)
        self.query = nn.Sequential(conv_bn_relu(channels, keys, 1), conv_bn_relu(keys, keys, 1))
        self.key = nn.Sequential(conv_bn_relu(channels, keys, 1), conv_bn_relu(keys, keys, 1))
        self.value = conv_bn_relu(channels, keys, 1)
        self.up = conv_bn_relu(keys, channels, 1)
        self.fuse = conv_bn_relu(2 * channels, channels, 3)

    def forward(self, backbone, middle):
        region_logits = self.region_head(middle)                     # (B, 2, 37, 37)
        x = self.bottleneck(backbone)                                # (B, 512, 37, 37)
        B, _, H, W = x.shape
        # Gather: softmax over *space*, so each region is a weighted mean of the features where it is likely.
        where = region_logits.flatten(2).softmax(dim=2)              # (B, 2, 1369)
        regions = (x.flatten(2) @ where.transpose(1, 2)).unsqueeze(3)  # (B, 512, 2, 1)
        # Distribute: softmax over the two *regions*, so each position mixes their summaries.
        q = self.query(x).flatten(2).transpose(1, 2)                 # (B, 1369, 256)
        k = self.key(regions).flatten(2)                             # (B, 256, 2)
        v = self.value(regions).flatten(2).transpose(1, 2)           # (B, 2, 256)
        attn = (q @ k * k.shape[1] ** -0.5).softmax(dim=2)           # (B, 1369, 2)
        context = self.up((attn @ v).transpose(1, 2).reshape(B, -1, H, W))  # (B, 512, 37, 37)
        return self.fuse(torch.cat([context, x], dim=1)), region_logits


# ---------------------------------------------------------------- Sec. III-A: separable convolution unit (f_scu)
class SeparableConvUnit(nn.Module):
    """X_I (B, 512, 37, 37) -> X_c (B, 512, 13, 13): features for the decision, at a third of the map's side.

    READING Sec. III-E: only the output size is printed. Two strided steps give 37 -> 19 -> 10; padding the 1x1 convolutions by
    one, as the authors' release does, gives 37 -> 19 -> 21 -> 11 -> 13. One ReLU, between the two; dropout 0.1 by channel.
    DEPARTURE Sec. III-A: the release has dense 3x3 convolutions, 4.7 M parameters more; the text says separable [32], so ours are.
    """

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            SeparableConv2d(channels, channels, stride=2, pointwise_padding=1),     # (B, 512, 21, 21)
            nn.BatchNorm2d(channels), nn.Dropout2d(0.1), nn.ReLU(inplace=True),
            SeparableConv2d(channels, channels, stride=2, pointwise_padding=1),     # (B, 512, 13, 13)
            nn.BatchNorm2d(channels), nn.Dropout2d(0.1))

    def forward(self, feats):
        return self.layers(feats)


# ---------------------------------------------------------------- Sec. III-B: squeeze and excitation (f_se) [37]
class SqueezeExcitation(nn.Module):
    """Weighs each channel by a number in (0, 1) that all channels' means decide: (B, C, H, W) -> (B, C, H, W).

    READING Eq. (14): reduction 16 and no biases, as the authors' release; the paper cites [37] alone.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // reduction), bias=False)
        self.excite = nn.Linear(max(1, channels // reduction), channels, bias=False)

    def forward(self, x):
        weights = self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))).sigmoid()   # (B, 1024)
        return x * weights[:, :, None, None]


# ---------------------------------------------------------------- Sec. III-B, Fig. 2: mask-guided transformer (f_mt)
def split_real_fake(cls_feats, seg_logits):
    """f_att: shares X_c (B, 512, 13, 13) out by the map X_s (B, 2, 37, 37). Returns x_real, x_fake, each (B, 512, 13, 13)."""
    probs = F.interpolate(seg_logits.softmax(dim=1), size=cls_feats.shape[2:],
                          mode="bilinear", align_corners=False)      # Eq. (6)   X_s'  (B, 2, 13, 13)
    x_real = cls_feats * probs[:, 0:1]                               # Eq. (7)   X_r   (B, 512, 13, 13)
    x_fake = cls_feats * probs[:, 1:2]                               # Eq. (8)   X_f   (B, 512, 13, 13)
    return x_real, x_fake


class MaskGuidedTransformer(nn.Module):
    """X_c (B, 512, 13, 13), X_s (B, 2, 37, 37) -> Z (B, 1024, 13, 13): what is suspected fake, seen against what is real.

    READING Sec. III-B: f_q, f_k, f_v are 1x1 convolutions without bias, f_m one with BatchNorm; dropout 0.1 on the attention
    weights. The paper gives the 1x1 convolutions; the rest is the authors' release's.
    """

    def __init__(self, channels):
        super().__init__()
        self.f_q = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_k = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_v = nn.Conv2d(channels, channels, 1, bias=False)
        self.f_m = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.dropout = nn.Dropout(0.1)
        self.f_se = SqueezeExcitation(2 * channels)

    def forward(self, cls_feats, seg_logits):
        B, C, H, W = cls_feats.shape                                 # H = W = 13, so N = 169 positions
        x_real, x_fake = split_real_fake(cls_feats, seg_logits)      # Eq. (5)   X_r, X_f
        # Each suspected-fake position asks: which real positions do I resemble?
        q = self.f_q(x_fake).flatten(2).transpose(1, 2)              # Eq. (9)   row i is q_i     (B, N, 512)
        k = self.f_k(x_real).flatten(2)                              # Eq. (10)  column j is k_j  (B, 512, N)
        v = self.f_v(x_real).flatten(2).transpose(1, 2)              # Eq. (11)  row j is v_j     (B, N, 512)
        # Over j; the paper has no 1/sqrt(C), so the products are large: autocast would round them to bfloat16's 8 bits.
        with torch.autocast(q.device.type, enabled=False):
            attn = self.dropout((q.float() @ k.float()).softmax(dim=2)).to(v.dtype)  # Eq. (12)  a_ij  (B, N, N)
        # READING Eq. (13): no sum is printed; we sum a_ij v_j over j, as in non-local attention [35].
        y = self.f_m((attn @ v).transpose(1, 2).reshape(B, C, H, W))     # Eq. (13)  Y            (B, 512, 13, 13)
        # READING Eq. (14): the printed order and no further BatchNorm; the authors' release swaps the halves and adds one.
        return self.f_se(torch.cat([y + x_fake, cls_feats], dim=1))      # Eq. (14)  Z            (B, 1024, 13, 13)


# ---------------------------------------------------------------- Sec. III-A, III-D: classifier (f_mlp)
class MLPHead(nn.Module):
    """Two linear layers on the pooled features: Z (B, 1024, 13, 13) -> alpha (B, num_classes).

    READING Sec. III-A: "two linear layers"; the hidden width (that of the input) with BatchNorm and ReLU is the release's.
    READING Eq. (1): it has no f_aap, and its brackets do not balance; Eq. (18) has it, so pooling belongs here.
    """

    def __init__(self, channels, num_classes=2):
        super().__init__()
        self.f_mlp = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(inplace=True),
                                   nn.Linear(channels, num_classes))

    def forward(self, fused):
        return self.f_mlp(fused.mean(dim=(2, 3)))                    # Eq. (18)  alpha (B, 2); f_aap is a mean over 13 x 13


# ---------------------------------------------------------------- Sec. III-A, Fig. 1: the whole network
class LiSiam(nn.Module):
    """The Siamese network. One image batch, or the pair of Fig. 1:

    net(images)            -> LiSiamOutput: how it is tested, through the first branch alone, Eq. (1).
    net(clean, degraded)   -> two LiSiamOutputs: how it is trained; the second without cls_logits.
    heads=(first, second) says which branches run f_scu, f_mt and f_mlp (Table VI's variants B, D, E; stage 1 needs none).

    images: (B, 3, S, S) float, RGB in [-1, 1], S >= 23. width scales every channel count; num_classes=5 is Fig. 5's;
    transformer=False is Model-F. 32.28 million parameters at width 1.0.

    READING Sec. III-A: the branches share weights, but BatchNorm sees each branch's batch on its own: two passes, clean first.
    Joined into one batch of 2B the statistics differ, and with them the gradients (cosine about 0 at the start of training).
    READING Table VI: Model-F, "without the Mask-guided Transformer" pools X_c (512) into f_mlp; the release has only 2 map channels.
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
        """f_cnn (Xception and OCR) and f_seg: what stage 1 trains and stage 2 freezes (Sec. IV-B)."""
        return [self.backbone, self.ocr, self.f_seg]

    def classification_modules(self):
        """f_scu, f_mt and f_mlp: what stage 1 freezes and stage 2 trains (Sec. IV-B)."""
        return [module for module in (self.f_scu, self.f_mt, self.f_mlp) if module is not None]

    def branch(self, images, head):
        """One branch of Fig. 1: images (B, 3, 299, 299) -> LiSiamOutput; head=False leaves cls_logits None."""
        feats, region_logits = self.ocr(*self.backbone(images))      # Eq. (2)   X_I^n (B, 512, 37, 37)
        seg_logits = self.f_seg(feats)                               # Eq. (3)   X_s^n (B, 2, 37, 37)
        if not head:
            return LiSiamOutput(None, seg_logits, region_logits)
        cls_feats = self.f_scu(feats)                                # Eq. (4)   X_c^1 (B, 512, 13, 13)
        fused = cls_feats if self.f_mt is None else self.f_mt(cls_feats, seg_logits)     # Z (B, 1024, 13, 13)
        return LiSiamOutput(self.f_mlp(fused), seg_logits, region_logits)  # Eq. (1)  alpha (B, 2)

    def forward(self, images, degraded=None, heads=(True, False)):
        first = self.branch(images, heads[0])
        if degraded is None:
            return first
        return first, self.branch(degraded, heads[1])


# ---------------------------------------------------------------- Tables I-V: the Xception baseline [3]
class XceptionClassifier(nn.Module):
    """The paper's baseline: images (B, 3, 299, 299) -> logits (B, num_classes). Original strides: the last map is 10 x 10."""

    def __init__(self, num_classes=2, width=1.0):
        super().__init__()
        c1024, c1536, c2048 = (scale_channels(c, width) for c in (1024, 1536, 2048))
        self.backbone = Xception(width, block3_stride=2, block12_stride=2)
        self.conv3 = SeparableConv2d(c1024, c1536)                   # the exit flow
        self.bn3 = nn.BatchNorm2d(c1536)
        self.conv4 = SeparableConv2d(c1536, c2048)
        self.bn4 = nn.BatchNorm2d(c2048)
        self.fc = nn.Linear(c2048, num_classes)

    def forward(self, images):
        x, _ = self.backbone(images)                                 # (B, 1024, 10, 10)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)            # (B, 1536, 10, 10)
        x = F.relu(self.bn4(self.conv4(x)), inplace=True)            # (B, 2048, 10, 10)
        return self.fc(x.mean(dim=(2, 3)))                           # (B, 2); column 1 = fake


# ---------------------------------------------------------------- Sec. IV-B: "we use ImageNet weights for the initialization"
IMAGENET_URL = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/xception-43020ad28.pth"


def load_xception_weights(network, source):
    """Fills the trunk of LiSiam, or the whole XceptionClassifier, from the ImageNet weights or from a public port's file.

    source: "imagenet" (91 MB, downloaded once into torch.hub's folder) or a file holding a state_dict. The ports agree on
    every name but for prefixes, the head's name, and pointwise kernels that older files store as matrices. The trunk is
    strict: every tensor must be there in our shape. The head is taken if its shape fits, else it stays random.
    Returns a sentence saying what was loaded. Raises ValueError with a sentence where the file or the download is of no use.
    """
    path = Path(source)
    if source == "imagenet":
        path = Path(torch.hub.get_dir()) / "checkpoints" / "xception-43020ad28.pth"
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(IMAGENET_URL, str(path))     # to a temporary name, then moved
            except Exception as error:                                       # URLError, timeout, full disk, no folder, ...
                raise ValueError(f"could not download the ImageNet weights from {IMAGENET_URL} ({error}); fetch the file in "
                                 "another way and pass --pretrained FILE, or start from random weights with --pretrained none")
    if not path.is_file():
        raise ValueError(f"no file {path}; --pretrained takes imagenet, none, or a file with Xception weights")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)    # never runs code from the file
    except Exception as error:
        remedy = ("the download was cut off: delete it and start again" if source == "imagenet" else
                  "if it is a whole pickled model that you trust (FaceForensics' *.p), load it with its own code, save "
                  "model.state_dict() with torch.save, and pass that file")
        raise ValueError(f"{path} is not a file of plain tensors ({type(error).__name__}); {remedy}")
    for key in ("state_dict", "model", "net"):                       # checkpoints that hold more than the weights
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not any(torch.is_tensor(value) for value in weights.values()):
        raise ValueError(f"{path} holds no weights by name; expected a state_dict of an Xception port")

    found = {}
    for name, tensor in weights.items():
        name = str(name)
        while "." in name and name.split(".")[0] in ("module", "model", "backbone", "backbone_net", "xception", "net"):
            name = name.split(".", 1)[1]                             # DataParallel, TransferModel, DeepfakeBench, ...
        for head in ("last_linear.1.", "last_linear."):
            name = "fc." + name[len(head):] if name.startswith(head) else name
        if torch.is_tensor(tensor) and name.endswith("pointwise.weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]                        # xception-b5690688.pth: (out, in) -> (out, in, 1, 1)
        found[name] = tensor

    own = network.state_dict()
    ours = {key.removeprefix("backbone."): key for key in own        # e.g. block1.skip.weight -> backbone.block1.skip.weight
            if key.startswith("backbone.") or isinstance(network, XceptionClassifier)}
    missing, wrong_shape, taken = [], [], {}
    for name, key in ours.items():
        if name.endswith("num_batches_tracked"):                     # absent from old files, and never used
            continue
        if name not in found:
            missing.append(name)
        elif not torch.is_tensor(found[name]) or found[name].shape != own[key].shape:
            wrong_shape.append(name)
        else:
            taken[key] = found[name]
    head_missing = {name for name in missing + wrong_shape if name.startswith("fc.")}
    for problem, names in (("lacks", missing), ("has other shapes for", wrong_shape)):
        names = [name for name in names if name not in head_missing]
        if names:
            raise ValueError(f"{path} {problem} {len(names)} tensors of the Xception trunk, the first is {names[0]}; expected the "
                             "legacy Xception (not timm's xception41/65/71, not Keras) at --width 1.0, or --pretrained none")
    taken = {key: tensor for key, tensor in taken.items() if not (head_missing and key.startswith("fc."))}
    network.load_state_dict({**own, **taken})
    head = "" if not isinstance(network, XceptionClassifier) else "; head left random" if head_missing else "; head too"
    return f"{len(taken)} tensors from {path.name}{head}"
