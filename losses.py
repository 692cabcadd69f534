"""
LiSiam's three losses, their sum, the variants of Table VI, and what runs in which stage.

Read beside Sec. III-C, III-D, IV-B and Table VI.
  paper     code        shape        meaning
  X_s^n     seg_logits  (B, 2, h, w) the map of branch n before softmax; n = 1 clean, 2 degraded;
                                     channel 1 = fake
  X_gt      mask        (B, H, W)    1 = manipulated, 0 = untouched; all zeros for a real frame
  alpha     cls_logits  (B, 2)       before softmax; column 1 = fake
  alpha_gt  labels      (B,)         int64, 1 = fake, 0 = real; 0..4 with five classes
  lambda    lambdas     3 floats     weights of L_li, L_cls, L_seg
"""

from typing import NamedTuple

from torch.nn import functional as F


# ---------------------------------------------------------------- Sec. III-C: invariance
def invariance_loss(seg_logits, degraded_seg_logits):
    """L_li: how far apart the maps of the two branches are. (B, 2, h, w) each -> scalar, float32.

    Gradients flow into both branches.
    READING Eq. (15): we take the mean over all elements, as the authors' release does. A literal
    L1 norm is 2 * 37 * 37 = 2,738 times larger for each image. All weights in Eq. (19) are 1, so it
    would drown the other two terms.
    """
    return F.l1_loss(seg_logits.float(), degraded_seg_logits.float())   # Eq. (15)  L_li   scalar


# ---------------------------------------------------------------- Sec. III-D: cls and seg
def classification_loss(cls_logits, labels):
    """L_cls: cross-entropy of alpha (B, num_classes) and alpha_gt (B,) int64 -> scalar, float32."""
    return F.cross_entropy(cls_logits.float(), labels)                  # Eq. (16)  L_cls  scalar


def segmentation_loss(seg_logits, mask):
    """L_seg: cross-entropy of a map (B, 2, h, w) and masks (B, H, W) of 0, 1 -> scalar, float32.

    READING Eq. (17): X_s is 37 x 37, but X_gt is 299 x 299. We enlarge the logits bilinearly, as
    the authors' release does. To reduce the mask instead would lose the detail that Fig. 3 shows.
    """
    logits = F.interpolate(seg_logits.float(), size=mask.shape[1:], mode="bilinear",
                           align_corners=False)                         # (B, 2, 299, 299)
    return F.cross_entropy(logits, mask.long())                         # Eq. (17)  L_seg  scalar


# ---------------------------------------------------------------- Sec. IV-F, Table VI: variants
class Variant(NamedTuple):
    """One row of Table VI. Branch 1 is the clean image, branch 2 its degraded copy."""

    seg: tuple             # the branches with L_seg (and the soft-region loss)
    cls: tuple             # the branches with L_cls, which also run f_scu, f_mt and f_mlp
    li: bool               # L_li between the two branches
    transformer: bool      # f_mt, column MT
    joined: bool = False   # Model-G: clean and degraded images form one batch for branch 1


# What each row runs in each stage. c is the clean branch, d the degraded one. A capital letter
# means that the branch also goes through f_scu, f_mt and f_mlp.
#        stage 1   stage 2   stage 3
#   A    c d       C         C d         LiSiam
#   B    c d       C D       C D
#   C    -         -         C d         no mask supervision, see train.stage_iterations
#   D    c d       D         c D
#   E    d         D         D
#   F    c d       C         C d         without f_mt
#   G    c+d       C+D       C+D         one batch of 2B images
VARIANTS = {
    "A": Variant(seg=(1,), cls=(1,), li=True, transformer=True),
    "B": Variant(seg=(1, 2), cls=(1, 2), li=True, transformer=True),
    # READING Table VI: in Sec. IV-F, Model-C is "without pixel-level segmentation map supervision".
    # OCR's soft-region loss uses the same mask, so we leave it out as well.
    "C": Variant(seg=(), cls=(1,), li=True, transformer=True),
    # READING Table VI: text and table disagree about Model-D. The text moves L_seg and L_cls from
    # branch 1 to branch 2; the table marks seg1, cls1 and cls2. We follow the text, as the release
    # does. D and E are tested on clean images like all others, because the branches share weights.
    "D": Variant(seg=(2,), cls=(2,), li=True, transformer=True),
    "E": Variant(seg=(2,), cls=(2,), li=False, transformer=True),
    "F": Variant(seg=(1,), cls=(1,), li=True, transformer=False),
    # READING Table VI: Model-G has one branch and includes "both the original and quality-degraded
    # images". We put them into one batch of 2B.
    "G": Variant(seg=(1,), cls=(1,), li=False, transformer=True, joined=True),
}


class StagePlan(NamedTuple):
    """What one stage of one variant computes.

    Example: LiSiam (A) with the default weights has the plans
      stage 1   branches (1, 2)   heads ()     lambdas (1, 0, 1)   aux 0.4
      stage 2   branches (1,)     heads (1,)   lambdas (0, 1, 0)   aux 0
      stage 3   branches (1, 2)   heads (1,)   lambdas (1, 1, 1)   aux 0.4
    """

    branches: tuple    # the branches that run f_cnn and f_seg
    heads: tuple       # those among them that also run f_scu, f_mt and f_mlp
    lambdas: tuple     # the weights of L_li, L_cls and L_seg; a loss with weight 0 is not computed
    aux: float         # the weight of the soft-region loss


def stage_plan(variant, stage, lambdas=(1.0, 1.0, 1.0), aux=0.4):
    """The StagePlan of stage 1, 2 or 3 (Sec. IV-B).

    READING Sec. IV-B: the paper does not say which losses each stage uses. Stage 1 uses Eq. (19)
    without L_cls, because f_scu, f_mt and f_mlp are frozen. Stage 2 uses only L_cls, because the
    other losses do not depend on the layers it trains. Stage 3 uses all of them. A branch that no
    loss looks at does not run; with lambda_li = 0, LiSiam never sees a degraded image.
    READING Table VI: the soft-region loss is computed where L_seg is: on branch 2 in D and E, on
    both branches in B.
    """
    lambda_li, lambda_cls, lambda_seg = lambdas
    if stage == 2:
        return StagePlan(variant.cls, variant.cls, (0, lambda_cls, 0), 0)
    heads = variant.cls
    if stage == 1:
        heads = ()
        lambda_cls = 0
    branches = {*variant.seg, *heads}
    if variant.li and lambda_li > 0:
        branches = {1, 2}
    return StagePlan(tuple(sorted(branches)), heads, (lambda_li, lambda_cls, lambda_seg), aux)


def run_branches(net, plan, clean, degraded):
    """Runs the branches of a plan. Returns {branch number: LiSiamOutput}.

    clean, degraded: (B, 3, S, S), as model.to_input gives them; for Model-G, clean has 2B.
    """
    if plan.branches == (1, 2):                             # Fig. 1
        heads = (1 in plan.heads, 2 in plan.heads)
        return dict(zip((1, 2), net(clean, degraded, heads=heads)))
    (number,) = plan.branches           # alone, either one goes through the network's first branch
    images = clean if number == 1 else degraded
    return {number: net(images, heads=(number in plan.heads, False))}


# ---------------------------------------------------------------- Sec. III-D: the sum
def total_loss(outputs, labels, mask, variant=VARIANTS["A"], lambdas=(1.0, 1.0, 1.0), aux=0.4):
    """Eq. (19) for one batch: (loss, parts), a float32 scalar and its terms before weighting.

    outputs: {1: LiSiamOutput, 2: LiSiamOutput} of the branches that ran. labels: (B,) int64. mask:
    (B, H, W) of 0 and 1. lambdas: weights of L_li, L_cls and L_seg, all 1 in Sec. III-E; a term
    with weight 0 is not computed. parts: {"li", "cls", "seg", "aux"}.
    DEPARTURE Eq. (19): the paper prints three terms. We add aux = 0.4 times the cross-entropy of
    OCR's soft regions, which belongs to [39] and is in the authors' release; --aux 0 switches it
    off. lambda_seg does not scale it, so training without any mask is --lambdas 1 1 0 --aux 0.
    """
    lambda_li, lambda_cls, lambda_seg = lambdas
    weights = {"li": lambda_li, "cls": lambda_cls, "seg": lambda_seg, "aux": aux}
    parts = {}
    if variant.li and lambda_li:
        parts["li"] = invariance_loss(outputs[1].seg_logits, outputs[2].seg_logits)
    if lambda_cls:
        parts["cls"] = sum(classification_loss(outputs[n].cls_logits, labels) for n in variant.cls)
    if variant.seg and lambda_seg:
        parts["seg"] = sum(segmentation_loss(outputs[n].seg_logits, mask) for n in variant.seg)
    if variant.seg and aux:
        parts["aux"] = sum(segmentation_loss(outputs[n].region_logits, mask) for n in variant.seg)
    loss = sum(weights[name] * part for name, part in parts.items())    # Eq. (19)  L      scalar
    return loss, parts
