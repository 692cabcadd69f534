"""
The losses of losses.py beside Sec. III-C, III-D, IV-B and Table VI.

The three losses are computed again by loops and their sum by hand. Gradients tell what the losses
of each variant train.
"""

import math

import pytest
import torch

from losses import (
    VARIANTS, StagePlan, classification_loss, invariance_loss, run_branches, segmentation_loss,
    stage_plan, total_loss)
from model import LiSiam, LiSiamOutput
from test_model import bilinear, noise
from train import freeze, step_loss


# ---------------------------------------------------------------- Sec. III-C
def test_invariance_is_the_mean_absolute_difference_of_the_logits():
    """READING Eq. (15): the mean over images, channels and cells is of logits, before softmax."""
    first = noise(2, 2, 3, 4, seed=1)
    second = noise(2, 2, 3, 4, seed=2)
    differences = []
    for a, b in zip(first.flatten().tolist(), second.flatten().tolist()):
        differences.append(abs(a - b))
    assert invariance_loss(first, second).item() == pytest.approx(sum(differences) / 48, rel=1e-6)
    assert invariance_loss(first, first + 7).item() == pytest.approx(7, rel=1e-6)


def test_invariance_pulls_both_branches():
    """Eq. (15): the gradients are sign(X_s^1 - X_s^2) / N and its opposite, so no map is fixed."""
    first = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).requires_grad_()
    second = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).requires_grad_()
    invariance_loss(first, second).backward()
    assert first.grad.flatten().tolist() == [-0.5, 0.5]
    assert second.grad.flatten().tolist() == [0.5, -0.5]


# ---------------------------------------------------------------- Sec. III-D
@pytest.mark.parametrize("num_classes, labels", [(2, [0, 1, 1]), (5, [4, 0, 2])])
def test_classification_is_the_mean_negative_log_probability_of_the_label(num_classes, labels):
    """Eq. (16) is computed with softmax by hand, for two classes and for the five of Fig. 5."""
    logits = 3 * noise(3, num_classes, seed=5)
    by_hand = []
    for row, label in zip(logits.tolist(), labels):
        scores = [math.exp(value) for value in row]
        by_hand.append(-math.log(scores[label] / sum(scores)))
    loss = classification_loss(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def test_segmentation_enlarges_the_logits_and_scores_every_pixel():
    """Eq. (17) is the mean over all pixels of the masks, with a map enlarged by hand."""
    seg_logits = 2 * noise(2, 2, 3, 4, seed=6)
    mask = (noise(2, 7, 9, seed=7) > 0).to(torch.uint8)
    by_hand = []
    for n in range(2):
        real, fake = bilinear(seg_logits[n], 7, 9).tolist()
        for i in range(7):
            for j in range(9):
                p_fake = math.exp(fake[i][j]) / (math.exp(real[i][j]) + math.exp(fake[i][j]))
                p_right = p_fake if mask[n, i, j] else 1 - p_fake
                by_hand.append(-math.log(p_right))
    assert segmentation_loss(seg_logits, mask).item() == pytest.approx(sum(by_hand) / 126, rel=1e-5)


@pytest.mark.parametrize("loss_of, logits, target", [
    (invariance_loss, noise(1, 2, 2, 2, seed=1), noise(1, 2, 2, 2, seed=2).bfloat16()),
    (classification_loss, noise(1, 2, seed=1), torch.tensor([0])),
    (segmentation_loss, noise(1, 2, 2, 2, seed=1), torch.zeros(1, 4, 4)),
], ids=["li", "cls", "seg"])
def test_losses_of_bfloat16_logits_are_computed_in_float32(loss_of, logits, target):
    """The loss of bfloat16 logits is bit-equal to the loss of the same numbers in float32."""
    logits = logits.bfloat16()
    loss = loss_of(logits, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(logits.float(), target))


# ---------------------------------------------------------------- Sec. III-D: the sum
def constant_branch(cls, seg, region):
    """Makes the output of a branch whose real logits are 0 and whose fake logits are as given."""
    seg_logits = torch.zeros(1, 2, 3, 3)
    seg_logits[:, 1] = seg
    region_logits = torch.zeros(1, 2, 3, 3)
    region_logits[:, 1] = region
    return LiSiamOutput(torch.tensor([[0.0, cls]]), seg_logits, region_logits)


def constant_branches():
    return {
        1: constant_branch(cls=0.5, seg=1.0, region=2.0),
        2: constant_branch(cls=1.5, seg=3.0, region=4.0),
    }


LABEL = torch.tensor([1])                               # fake
MASK = torch.zeros(1, 6, 6, dtype=torch.uint8)          # every pixel is untouched

# These are the losses of constant_branches() by hand. Logits (0, x) cost log(1 + e^-x) where the
# answer is fake and log(1 + e^x) where it is real.
LI = 1.0                                                # mean of |0 - 0| and |1 - 3|
CLS_1 = math.log1p(math.exp(-0.5))
CLS_2 = math.log1p(math.exp(-1.5))
SEG_1 = math.log1p(math.exp(1.0))
SEG_2 = math.log1p(math.exp(3.0))
AUX_1 = math.log1p(math.exp(2.0))
AUX_2 = math.log1p(math.exp(4.0))
BY_HAND = {                                             # the terms of each row of Table VI
    "A": {"li": LI, "cls": CLS_1, "seg": SEG_1, "aux": AUX_1},
    "B": {"li": LI, "cls": CLS_1 + CLS_2, "seg": SEG_1 + SEG_2, "aux": AUX_1 + AUX_2},
    "C": {"li": LI, "cls": CLS_1},
    "D": {"li": LI, "cls": CLS_2, "seg": SEG_2, "aux": AUX_2},
    "E": {"cls": CLS_2, "seg": SEG_2, "aux": AUX_2},
    "F": {"li": LI, "cls": CLS_1, "seg": SEG_1, "aux": AUX_1},
    "G": {"cls": CLS_1, "seg": SEG_1, "aux": AUX_1},
}


@pytest.mark.parametrize("name", "ABCDEFG")
def test_the_total_is_the_weighted_sum_of_the_variants_terms(name):
    """Eq. (19): each weight multiplies its own term, and `parts` holds the terms unweighted."""
    loss, parts = total_loss(constant_branches(), LABEL, MASK, VARIANTS[name],
                             lambdas=(2.0, 3.0, 5.0), aux=0.7)
    got = {term: part.item() for term, part in parts.items()}
    assert got == pytest.approx(BY_HAND[name], rel=1e-5)
    weights = {"li": 2.0, "cls": 3.0, "seg": 5.0, "aux": 0.7}
    total = sum(weights[term] * value for term, value in BY_HAND[name].items())
    assert loss.item() == pytest.approx(total)


def test_the_papers_weights_are_the_default():
    """Sec. III-E: all three lambdas are 1; READING Eq. (19): the soft regions count 0.4."""
    loss, _ = total_loss(constant_branches(), LABEL, MASK)
    assert loss.item() == pytest.approx(LI + CLS_1 + SEG_1 + 0.4 * AUX_1)
    assert stage_plan(VARIANTS["A"], 3) == StagePlan((1, 2), (1,), (1.0, 1.0, 1.0), 0.4)


@pytest.mark.parametrize("term, lambdas, aux", [
    ("li", (0, 1, 1), 1), ("cls", (1, 0, 1), 1), ("seg", (1, 1, 0), 1), ("aux", (1, 1, 1), 0)])
def test_a_weight_of_zero_leaves_its_term_out(term, lambdas, aux):
    """Eq. (19): --lambdas and --aux switch a term off by the weight 0."""
    _, parts = total_loss(constant_branches(), LABEL, MASK, lambdas=lambdas, aux=aux)
    assert set(parts) == {"li", "cls", "seg", "aux"} - {term}


# ---------------------------------------------------------------- Sec. IV-B, Table VI: what runs
def test_the_variants_are_the_rows_of_table_6():
    """READING Table VI: the rows carry its check marks, except for D, which follows the text."""
    rows = {        # seg1, seg2, cls1, cls2, li, MT
        "A": (True, False, True, False, True, True),
        "B": (True, True, True, True, True, True),
        "C": (False, False, True, False, True, True),
        "D": (False, True, False, True, True, True),
        "E": (False, True, False, True, False, True),
        "F": (True, False, True, False, True, False),
        "G": (True, False, True, False, False, True),
    }
    marks = {}
    for name in rows:
        variant = VARIANTS[name]
        marks[name] = (1 in variant.seg, 2 in variant.seg, 1 in variant.cls, 2 in variant.cls,
                       variant.li, variant.transformer)
    assert marks == rows
    assert [name for name in rows if VARIANTS[name].joined] == ["G"]


# This is the table above VARIANTS in losses.py in numbers: (branches, heads) of stages 1, 2 and 3.
RUNS = {
    "A": [((1, 2), ()), ((1,), (1,)), ((1, 2), (1,))],
    "B": [((1, 2), ()), ((1, 2), (1, 2)), ((1, 2), (1, 2))],
    "C": [None, None, ((1, 2), (1,))],                  # train.stage_iterations skips stages 1, 2
    "D": [((1, 2), ()), ((2,), (2,)), ((1, 2), (2,))],
    "E": [((2,), ()), ((2,), (2,)), ((2,), (2,))],
    "F": [((1, 2), ()), ((1,), (1,)), ((1, 2), (1,))],
    "G": [((1,), ()), ((1,), (1,)), ((1,), (1,))],
}
EACH_STAGE = [(name, stage) for name in RUNS for stage in (1, 2, 3) if RUNS[name][stage - 1]]


@pytest.mark.parametrize("name, stage", EACH_STAGE)
def test_the_plan_of_each_stage_of_each_variant(name, stage):
    """READING Sec. IV-B: stage 1 leaves out L_cls, stage 2 has it alone, stage 3 has all."""
    plan = stage_plan(VARIANTS[name], stage, lambdas=(2.0, 3.0, 5.0), aux=0.7)
    branches, heads = RUNS[name][stage - 1]
    lambdas_of_stage = {1: (2.0, 0, 5.0), 2: (0, 3.0, 0), 3: (2.0, 3.0, 5.0)}
    aux_of_stage = {1: 0.7, 2: 0, 3: 0.7}
    assert plan == StagePlan(branches, heads, lambdas_of_stage[stage], aux_of_stage[stage])


@pytest.mark.parametrize("name, stage", EACH_STAGE)
def test_run_branches_runs_what_the_plan_says(name, stage):
    """Fig. 1: branch 1 sees the clean images, 2 the degraded; in Model-G branch 1 sees both."""
    variant = VARIANTS[name]
    torch.manual_seed(0)
    net = LiSiam(0.05, transformer=variant.transformer).eval()
    clean = noise(2, 3, 35, 35, seed=8).float()
    degraded = noise(2, 3, 35, 35, seed=9).float()
    seen = {1: clean, 2: degraded}
    if variant.joined:
        seen[1] = torch.cat([clean, degraded])

    plan = stage_plan(variant, stage)
    branches = run_branches(net, plan, seen[1], degraded)
    assert set(branches) == set(plan.branches)
    for number, output in branches.items():
        alone = net(seen[number])
        assert torch.equal(output.seg_logits, alone.seg_logits)
        if number in plan.heads:
            assert torch.equal(output.cls_logits, alone.cls_logits)
        else:
            assert output.cls_logits is None


def says_what_it_sees(images, heads):
    """Stands for a network that takes white images for fake and black ones for real."""
    fake_logits = 30 * images[:, :1]
    maps = torch.cat([-fake_logits, fake_logits], dim=1)
    return LiSiamOutput(maps.mean(dim=(2, 3)), maps, maps)


def test_model_g_keeps_labels_and_masks_beside_their_images():
    """Table VI: a batch of Model-G holds B clean images, then their B degraded copies."""
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 5, 5)
    labels = torch.tensor([0, 1])
    mask = labels.view(2, 1, 1).expand(2, 5, 5)
    batch = {"clean": images, "degraded": images, "mask": mask, "label": labels}
    settings = dict(model="lisiam", variant="G", lambdas=[1, 1, 1], aux=1, device="cpu")
    loss, parts = step_loss(says_what_it_sees, batch, settings, stage=3)
    assert set(parts) == {"cls", "seg", "aux"}
    assert loss < 1e-6


# ---------------------------------------------------------------- Table VI: what each loss trains
def example(name, stage):
    """Returns a tiny network of a variant, and the loss, its parts and the images of four pairs."""
    variant = VARIANTS[name]
    torch.manual_seed(0)
    net = LiSiam(0.05, transformer=variant.transformer)
    freeze(net, stage)
    clean = noise(4, 3, 35, 35, seed=8).float().requires_grad_()
    degraded = noise(4, 3, 35, 35, seed=9).float().requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    mask = (noise(4, 35, 35, seed=10) > 0).to(torch.uint8)
    first = clean
    if variant.joined:
        first = torch.cat([clean, degraded])
        labels = labels.repeat(2)
        mask = mask.repeat(2, 1, 1)
    plan = stage_plan(variant, stage)
    branches = run_branches(net, plan, first, degraded)
    loss, parts = total_loss(branches, labels, mask, variant, plan.lambdas, plan.aux)
    return net, loss, parts, {"clean": clean, "degraded": degraded}


EARLY = ("conv1.", "bn1.", "conv2.", "bn2.", "block1.", "block2.", "block3.", "block4.")


def group_of(name):
    """Names the group of a parameter; a loss reaches all of a group or nothing of it."""
    if name.startswith("backbone."):
        is_early = name.removeprefix("backbone.").startswith(EARLY)
        return "blocks 1-4" if is_early else "blocks 5-12"
    if name == "ocr.region_head.1.bias":
        return "regions' bias"
    if name.startswith("ocr.region_head."):
        return "regions"
    if name == "f_seg.bias":
        return "f_seg's bias"
    return name.split(".")[0]


def reached(loss, tensors):
    """Lists the tensors for which the loss has a gradient that is more than rounding."""
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True,
                                    allow_unused=True)
    names = []
    for name, gradient in zip(tensors, gradients):
        if gradient is not None and gradient.abs().max() > 1e-5:
            names.append(name)
    return names


def reached_groups(loss, net):
    return {group_of(name) for name in reached(loss, dict(net.named_parameters()))}


# These make X_s, together with two biases.
MAP = {"blocks 1-4", "blocks 5-12", "regions", "ocr", "f_seg"}
REACHED = {
    "li": MAP,                                          # the same bias on both maps cancels
    "seg": MAP | {"f_seg's bias"},
    "cls": MAP | {"f_seg's bias", "f_scu", "f_mt", "f_mlp"},
    "aux": {"blocks 1-4", "regions", "regions' bias"},  # that bias: softmax over space ignores it
}


CLEAN = ["clean"]
DEGRADED = ["degraded"]
BOTH = ["clean", "degraded"]


@pytest.mark.parametrize("name, looks_at", [
    ("A", {"li": BOTH, "cls": CLEAN, "seg": CLEAN, "aux": CLEAN}),
    ("B", {"li": BOTH, "cls": BOTH, "seg": BOTH, "aux": BOTH}),
    ("C", {"li": BOTH, "cls": CLEAN}),
    ("D", {"li": BOTH, "cls": DEGRADED, "seg": DEGRADED, "aux": DEGRADED}),
    ("E", {"cls": DEGRADED, "seg": DEGRADED, "aux": DEGRADED}),
    ("F", {"li": BOTH, "cls": CLEAN, "seg": CLEAN, "aux": CLEAN}),
    ("G", {"cls": BOTH, "seg": BOTH, "aux": BOTH}),
])
def test_what_each_loss_of_each_variant_trains_and_looks_at_in_stage_3(name, looks_at):
    """Table VI: L_cls trains everything, the map included, but in Model-F it ignores the map."""
    net, _, parts, images = example(name, stage=3)
    assert {term: reached(loss, images) for term, loss in parts.items()} == looks_at
    for term, loss in parts.items():
        expected = REACHED[term]
        if name == "F" and term == "cls":
            expected = expected - {"f_seg", "f_seg's bias", "f_mt"}
        assert reached_groups(loss, net) == expected, term


@pytest.mark.parametrize("name", "ABDEFG")
def test_stage_1_trains_the_map_and_computes_no_decision(name):
    """Sec. IV-B: stage 1 trains f_cnn and f_seg by Eq. (19) without L_cls."""
    net, loss, parts, _ = example(name, stage=1)
    assert set(parts) == set(BY_HAND[name]) - {"cls"}
    assert reached_groups(loss, net) == MAP | {"f_seg's bias", "regions' bias"}


@pytest.mark.parametrize("name", "ABDEFG")
def test_stage_2_trains_the_decision_alone(name):
    """Sec. IV-B: stage 2 trains f_scu, f_mt and f_mlp by L_cls; Model-F has no f_mt."""
    net, loss, parts, _ = example(name, stage=2)
    assert set(parts) == {"cls"}
    expected = {"f_scu", "f_mlp"} if name == "F" else {"f_scu", "f_mt", "f_mlp"}
    assert reached_groups(loss, net) == expected
