"""
losses.py beside Sec. III-C, III-D, IV-B and Table VI.

The three losses by loops, their sum by hand, what each variant runs and what its losses train.
"""

import math

import pytest
import torch

from losses import (
    VARIANTS, StagePlan, classification_loss, invariance_loss, run_branches, segmentation_loss,
    stage_plan, total_loss)
from model import LiSiam, LiSiamOutput
from test_model import bilinear, noise
from train import freeze


# ---------------------------------------------------------------- Sec. III-C
def test_invariance_is_the_mean_absolute_difference_of_the_logits():
    """Eq. (15): ||X_s^1 - X_s^2||_1 over images, channels and cells, divided by their number; of
    logits: softmax would see no difference between x and x + 7."""
    first = noise(2, 2, 3, 4, seed=1)
    second = noise(2, 2, 3, 4, seed=2)
    total = 0.0
    for n in range(2):
        for c in range(2):
            for i in range(3):
                for j in range(4):
                    total += abs(first[n, c, i, j].item() - second[n, c, i, j].item())
    assert invariance_loss(first, second).item() == pytest.approx(total / 48, rel=1e-6)
    assert invariance_loss(first, first + 7).item() == pytest.approx(7, rel=1e-6)


def test_a_literal_sum_would_be_2738_times_larger_per_image():
    """Eq. (15), READING: the norm of one 2 x 37 x 37 map is 2,738 means."""
    first = noise(1, 2, 37, 37, seed=3)
    second = noise(1, 2, 37, 37, seed=4)
    norm = (first - second).abs().sum().item()
    assert norm == pytest.approx(2738 * invariance_loss(first, second).item(), rel=1e-5)


def test_invariance_pulls_both_branches():
    """Eq. (15): d L / d X_s^1 = sign(X_s^1 - X_s^2) / N and the opposite for X_s^2: neither is a
    fixed target."""
    first = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).requires_grad_()
    second = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).requires_grad_()
    invariance_loss(first, second).backward()
    assert first.grad.flatten().tolist() == [-0.5, 0.5]
    assert second.grad.flatten().tolist() == [0.5, -0.5]


# ---------------------------------------------------------------- Sec. III-D
@pytest.mark.parametrize("num_classes, labels", [(2, [0, 1, 1]), (5, [4, 0, 2])])
def test_classification_is_the_mean_negative_log_probability_of_the_label(num_classes, labels):
    """Eq. (16): L_ce(alpha, alpha_gt) with softmax by hand; two classes and Fig. 5's five."""
    logits = 3 * noise(3, num_classes, seed=5)
    by_hand = []
    for row, label in zip(logits.tolist(), labels):
        scores = [math.exp(value) for value in row]
        by_hand.append(-math.log(scores[label] / sum(scores)))
    loss = classification_loss(logits, torch.tensor(labels))
    assert loss.item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)


def test_column_1_of_the_decision_says_fake():
    """Eq. (16): alpha_gt = 1 is fake."""
    says_fake = torch.tensor([[-9.0, 9.0]])
    assert classification_loss(says_fake, torch.tensor([1])) < 1e-6


def test_segmentation_enlarges_the_logits_to_the_mask_and_scores_every_pixel():
    """Eq. (17): every mask pixel of every image, its logits by a hand-written bilinear
    interpolation, softmax, log, mean."""
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


def test_segmentation_of_a_constant_map_in_closed_form():
    """Eq. (17): logits (0, d) everywhere and a share s of fake pixels give
    s log(1 + e^-d) + (1 - s) log(1 + e^d)."""
    seg_logits = torch.zeros(1, 2, 5, 5)
    seg_logits[:, 1] = 2.0
    mask = torch.zeros(1, 10, 10, dtype=torch.uint8)
    mask[:, :3] = 1
    by_hand = 0.3 * math.log1p(math.exp(-2)) + 0.7 * math.log1p(math.exp(2))
    assert segmentation_loss(seg_logits, mask).item() == pytest.approx(by_hand)


def test_losses_of_bfloat16_logits_are_computed_in_float32():
    """Whatever the network ran in: a float32 scalar, equal to the loss of the same numbers in
    float32."""
    first = noise(1, 2, 2, 2, seed=1).bfloat16()
    second = noise(1, 2, 2, 2, seed=2).bfloat16()
    labels = torch.tensor([0])
    mask = torch.zeros(1, 4, 4)
    pairs = [
        (invariance_loss(first, second), invariance_loss(first.float(), second.float())),
        (classification_loss(first.flatten(1), labels),
         classification_loss(first.flatten(1).float(), labels)),
        (segmentation_loss(first, mask), segmentation_loss(first.float(), mask)),
    ]
    for loss, in_float32 in pairs:
        assert loss.dtype == torch.float32
        assert torch.equal(loss, in_float32)


# ---------------------------------------------------------------- Sec. III-D: the sum
def constant_branch(cls, seg, region):
    """What a branch says whose real logits are all 0 and whose fake logits are these."""
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


LABEL = torch.tensor([1])                               # a fake ...
MASK = torch.zeros(1, 6, 6, dtype=torch.uint8)          # ... whose every pixel is untouched

# The losses of constant_branches(), by hand: logits (0, x) cost log(1 + e^-x) where the answer is
# fake and log(1 + e^x) where it is real.
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
    """Eq. (19): lambda_li L_li + lambda_cls L_cls + lambda_seg L_seg, plus aux times OCR's loss;
    `parts` are unweighted."""
    loss, parts = total_loss(constant_branches(), LABEL, MASK, VARIANTS[name],
                             lambdas=(2.0, 3.0, 5.0), aux=0.7)
    got = {term: part.item() for term, part in parts.items()}
    assert got == pytest.approx(BY_HAND[name], rel=1e-5)
    weights = {"li": 2.0, "cls": 3.0, "seg": 5.0, "aux": 0.7}
    total = sum(weights[term] * value for term, value in BY_HAND[name].items())
    assert loss.item() == pytest.approx(total)


def test_the_papers_weights_are_the_default():
    """Sec. III-E: all three lambdas are 1 in Eq. (19); READING: 0.4 for the soft regions;
    Model-A."""
    loss, _ = total_loss(constant_branches(), LABEL, MASK)
    assert loss.item() == pytest.approx(LI + CLS_1 + SEG_1 + 0.4 * AUX_1)
    assert stage_plan(VARIANTS["A"], 3) == StagePlan((1, 2), (1,), (1.0, 1.0, 1.0), 0.4)


@pytest.mark.parametrize("term, lambdas, aux", [
    ("li", (0, 1, 1), 1),
    ("cls", (1, 0, 1), 1),
    ("seg", (1, 1, 0), 1),
    ("aux", (1, 1, 1), 0),
])
def test_a_weight_of_zero_leaves_its_term_out(term, lambdas, aux):
    """Eq. (19), as --lambdas and --aux use it."""
    _, parts = total_loss(constant_branches(), LABEL, MASK, lambdas=lambdas, aux=aux)
    assert set(parts) == {"li", "cls", "seg", "aux"} - {term}


def test_what_only_a_term_of_weight_zero_needs_may_be_absent():
    """Eq. (19) in stages 1 and 2, which do not run the heads, or one branch and no mask."""
    first = constant_branches()[1]
    second = constant_branches()[2]

    plan = stage_plan(VARIANTS["A"], 1)
    headless = {1: first._replace(cls_logits=None), 2: second._replace(cls_logits=None)}
    loss, parts = total_loss(headless, None, MASK, lambdas=plan.lambdas, aux=plan.aux)
    assert set(parts) == {"li", "seg", "aux"}
    assert loss.item() == pytest.approx(LI + SEG_1 + 0.4 * AUX_1)

    plan = stage_plan(VARIANTS["A"], 2)
    loss, parts = total_loss({1: first}, LABEL, None, lambdas=plan.lambdas, aux=plan.aux)
    assert set(parts) == {"cls"}
    assert loss.item() == pytest.approx(CLS_1)


# ---------------------------------------------------------------- Sec. IV-B, Table VI: what runs
def test_the_variants_are_the_rows_of_table_6():
    """Table VI's check marks, in its columns' order. READING: row D is the text's; the table marks
    seg1, cls1, cls2."""
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
    for name, variant in VARIANTS.items():
        marks[name] = (1 in variant.seg, 2 in variant.seg, 1 in variant.cls, 2 in variant.cls,
                       variant.li, variant.transformer)
    assert marks == rows
    assert [name for name, variant in VARIANTS.items() if variant.joined] == ["G"]


# The table above VARIANTS in losses.py, in numbers: (branches, heads) of stages 1, 2 and 3.
# Model-C skips stage 1, see train.stage_iterations.
RUNS = {
    "A": [((1, 2), ()), ((1,), (1,)), ((1, 2), (1,))],
    "B": [((1, 2), ()), ((1, 2), (1, 2)), ((1, 2), (1, 2))],
    "C": [((1, 2), ()), ((1,), (1,)), ((1, 2), (1,))],
    "D": [((1, 2), ()), ((2,), (2,)), ((1, 2), (2,))],
    "E": [((2,), ()), ((2,), (2,)), ((2,), (2,))],
    "F": [((1, 2), ()), ((1,), (1,)), ((1, 2), (1,))],
    "G": [((1,), ()), ((1,), (1,)), ((1,), (1,))],
}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", "ABCDEFG")
def test_the_plan_of_each_stage_of_each_variant(name, stage):
    """READING Sec. IV-B: stage 1 is Eq. (19) without L_cls, stage 2 L_cls alone, stage 3 all."""
    plan = stage_plan(VARIANTS[name], stage, lambdas=(2.0, 3.0, 5.0), aux=0.7)
    branches, heads = RUNS[name][stage - 1]
    lambdas_of_stage = {1: (2.0, 0, 5.0), 2: (0, 3.0, 0), 3: (2.0, 3.0, 5.0)}
    aux_of_stage = {1: 0.7, 2: 0, 3: 0.7}
    assert plan == StagePlan(branches, heads, lambdas_of_stage[stage], aux_of_stage[stage])


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", "ABCDEFG")
def test_run_branches_runs_what_the_plan_says(name, stage):
    """Fig. 1: branch 1 sees the clean images, 2 the degraded; Model-G: 1 sees all 2B of them."""
    variant = VARIANTS[name]
    torch.manual_seed(0)
    net = LiSiam(0.05, transformer=variant.transformer).eval()
    clean = noise(2, 3, 35, 35, seed=8).float()
    degraded = noise(2, 3, 35, 35, seed=9).float()
    seen = {1: clean, 2: degraded}
    if variant.joined:
        seen[1] = torch.cat([clean, degraded])

    plan = stage_plan(variant, stage)
    branches = run_branches(net, variant, plan, clean, degraded)
    assert set(branches) == set(plan.branches)
    for number, output in branches.items():
        alone = net(seen[number])
        assert torch.equal(output.seg_logits, alone.seg_logits)
        if number in plan.heads:
            assert torch.equal(output.cls_logits, alone.cls_logits)
        else:
            assert output.cls_logits is None


# ---------------------------------------------------------------- Table VI: what each loss trains
def example(name, stage):
    """A tiny network of a variant in a stage, and one batch of four pairs of 35 px.

    Returns the network, the loss, its parts, and the images as {"clean": ..., "degraded": ...}.
    """
    variant = VARIANTS[name]
    torch.manual_seed(0)
    net = LiSiam(0.05, transformer=variant.transformer)
    freeze(net, stage)
    clean = noise(4, 3, 35, 35, seed=8).float().requires_grad_()
    degraded = noise(4, 3, 35, 35, seed=9).float().requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    mask = (noise(4, 35, 35, seed=10) > 0).to(torch.uint8)
    if variant.joined:
        labels = labels.repeat(2)
        mask = mask.repeat(2, 1, 1)
    plan = stage_plan(variant, stage)
    branches = run_branches(net, variant, plan, clean, degraded)
    loss, parts = total_loss(branches, labels, mask, variant, plan.lambdas, plan.aux)
    return net, loss, parts, {"clean": clean, "degraded": degraded}


EARLY = ("conv1.", "bn1.", "conv2.", "bn2.", "block1.", "block2.", "block3.", "block4.")


def group_of(name):
    """The group of a parameter: a part of the network that a loss reaches as a whole."""
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
    """Names of those tensors for which the loss has a gradient, beyond rounding."""
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


# All that makes X_s, but for two biases.
MAP = {"blocks 1-4", "blocks 5-12", "regions", "ocr", "f_seg"}
REACHED = {
    "li": MAP,                                          # the same bias on both maps cancels
    "seg": MAP | {"f_seg's bias"},
    "cls": MAP | {"f_seg's bias", "f_scu", "f_mt", "f_mlp"},
    "aux": {"blocks 1-4", "regions", "regions' bias"},  # that bias: softmax over space ignores it
}


@pytest.mark.parametrize("name", "ABCDEFG")
def test_which_parameters_each_loss_of_each_variant_trains_in_stage_3(name):
    """Table VI: L_li and L_seg shape the map and all before it; L_cls everything, the map included,
    except in Model-F, where the decision ignores the map."""
    net, _, parts, _ = example(name, stage=3)
    assert set(parts) == set(BY_HAND[name])
    for term, loss in parts.items():
        expected = REACHED[term]
        if name == "F" and term == "cls":
            expected = expected - {"f_seg", "f_seg's bias", "f_mt"}
        assert reached_groups(loss, net) == expected, term


CLEAN = ["clean"]
DEGRADED = ["degraded"]
BOTH = ["clean", "degraded"]


@pytest.mark.parametrize("name, expected", [
    ("A", {"li": BOTH, "cls": CLEAN, "seg": CLEAN, "aux": CLEAN}),
    ("B", {"li": BOTH, "cls": BOTH, "seg": BOTH, "aux": BOTH}),
    ("C", {"li": BOTH, "cls": CLEAN}),
    ("D", {"li": BOTH, "cls": DEGRADED, "seg": DEGRADED, "aux": DEGRADED}),
    ("E", {"cls": DEGRADED, "seg": DEGRADED, "aux": DEGRADED}),
    ("F", {"li": BOTH, "cls": CLEAN, "seg": CLEAN, "aux": CLEAN}),
    ("G", {"cls": BOTH, "seg": BOTH, "aux": BOTH}),
])
def test_which_images_each_loss_of_each_variant_looks_at(name, expected):
    """Table VI: gradients with respect to the clean and the degraded images say which branch a loss
    belongs to."""
    _, _, parts, images = example(name, stage=3)
    assert {term: reached(loss, images) for term, loss in parts.items()} == expected


@pytest.mark.parametrize("name", "ABCDEFG")
def test_stage_1_trains_the_map_and_computes_no_decision(name):
    """Sec. IV-B: stage 1 is Eq. (19) without L_cls and trains f_cnn and f_seg. (Model-C skips it:
    only L_li is left.)"""
    net, loss, parts, _ = example(name, stage=1)
    assert set(parts) == set(BY_HAND[name]) - {"cls"}
    expected = MAP
    if name != "C":
        expected = MAP | {"f_seg's bias", "regions' bias"}
    assert reached_groups(loss, net) == expected

    loss.backward()
    for module in net.classification_modules():
        assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", "ABCDEFG")
def test_stage_2_trains_the_decision_alone(name):
    """Sec. IV-B: stage 2 is L_cls alone and trains f_scu, f_mt and f_mlp (Model-F has no f_mt)."""
    net, loss, parts, _ = example(name, stage=2)
    assert set(parts) == {"cls"}
    expected = {"f_scu", "f_mt", "f_mlp"}
    if name == "F":
        expected = {"f_scu", "f_mlp"}
    assert reached_groups(loss, net) == expected

    loss.backward()
    for module in net.segmentation_modules():
        assert all(parameter.grad is None for parameter in module.parameters())
