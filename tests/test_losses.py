"""losses.py beside Sec. III-C, III-D and Table VI: the three losses by loops, their sum by hand, and what each variant trains."""

import math

import pytest
import torch

from losses import VARIANTS, classification_loss, invariance_loss, segmentation_loss, total_loss
from model import LiSiam, LiSiamOutput
from test_model import bilinear, noise
from train import freeze


# ---------------------------------------------------------------- Sec. III-C
def test_invariance_is_the_mean_absolute_difference_of_the_logits():
    """Eq. (15): ||X_s^1 - X_s^2||_1 by loops over images, channels and cells, divided by their number; before softmax."""
    first, second = noise(2, 2, 3, 4, seed=1), noise(2, 2, 3, 4, seed=2)
    total = sum(abs(first[n, c, i, j].item() - second[n, c, i, j].item())
                for n in range(2) for c in range(2) for i in range(3) for j in range(4))
    assert invariance_loss(first, second).item() == pytest.approx(total / 48, rel=1e-6)
    assert invariance_loss(first, first + 7).item() == pytest.approx(7, rel=1e-6)           # softmax would see no difference


def test_a_literal_sum_would_be_2738_times_larger_per_image():
    """Eq. (15), READING: the norm of one 2 x 37 x 37 map is 2,738 means."""
    first, second = noise(1, 2, 37, 37, seed=3), noise(1, 2, 37, 37, seed=4)
    assert (first - second).abs().sum().item() == pytest.approx(2738 * invariance_loss(first, second).item(), rel=1e-5)


def test_invariance_pulls_both_branches():
    """Eq. (15): d L / d X_s^1 = sign(X_s^1 - X_s^2) / N and the opposite for X_s^2: neither is a fixed target."""
    first, second = (torch.tensor(cell).view(1, 2, 1, 1).requires_grad_() for cell in ([1.0, 2.0], [3.0, -1.0]))
    invariance_loss(first, second).backward()
    assert first.grad.flatten().tolist() == [-0.5, 0.5] and second.grad.flatten().tolist() == [0.5, -0.5]


# ---------------------------------------------------------------- Sec. III-D
@pytest.mark.parametrize("labels", [[0, 1, 1], [4, 0, 2]])
def test_classification_is_the_mean_negative_log_probability_of_the_label(labels):
    """Eq. (16): L_ce(alpha, alpha_gt) with softmax by hand; two classes (1 = fake) and Fig. 5's five."""
    logits = 3 * noise(3, 5 if max(labels) > 1 else 2, seed=5)
    by_hand = [-math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))
               for row, label in zip(logits.tolist(), labels)]
    assert classification_loss(logits, torch.tensor(labels)).item() == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    assert classification_loss(torch.tensor([[-9.0, 9.0]]), torch.tensor([1])) < 1e-6       # column 1 says fake


def test_segmentation_enlarges_the_logits_to_the_mask_and_scores_every_pixel():
    """Eq. (17): every mask pixel of every image, its logits by a hand-written bilinear interpolation, softmax, log, mean."""
    seg_logits = 2 * noise(2, 2, 3, 4, seed=6)
    mask = (noise(2, 7, 9, seed=7) > 0).to(torch.uint8)
    by_hand = []
    for n in range(2):
        real, fake = bilinear(seg_logits[n], 7, 9).tolist()
        for i in range(7):
            for j in range(9):
                p_fake = math.exp(fake[i][j]) / (math.exp(real[i][j]) + math.exp(fake[i][j]))
                by_hand.append(-math.log(p_fake if mask[n, i, j] else 1 - p_fake))
    assert segmentation_loss(seg_logits, mask).item() == pytest.approx(sum(by_hand) / 126, rel=1e-5)


def test_segmentation_of_a_constant_map_in_closed_form():
    """Eq. (17): logits (0, d) everywhere and a share s of fake pixels give s log(1 + e^-d) + (1 - s) log(1 + e^d)."""
    seg_logits, mask = torch.zeros(1, 2, 5, 5), torch.zeros(1, 10, 10, dtype=torch.uint8)
    seg_logits[:, 1], mask[:, :3] = 2.0, 1
    by_hand = 0.3 * math.log1p(math.exp(-2)) + 0.7 * math.log1p(math.exp(2))
    assert segmentation_loss(seg_logits, mask).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("loss", [lambda a: invariance_loss(a, a + 0.001), lambda a: segmentation_loss(a, torch.zeros(1, 4, 4)),
                                  lambda a: classification_loss(a.flatten(1), torch.tensor([0]))])
def test_losses_of_bfloat16_logits_are_computed_in_float32(loss):
    """Whatever the network ran in: a float32 scalar, equal to the loss of the same numbers in float32."""
    logits = noise(1, 2, 2, 2).bfloat16()
    assert loss(logits).dtype == torch.float32
    if loss(logits.float()) > 0.01:
        assert torch.equal(loss(logits), loss(logits.float()))


# ---------------------------------------------------------------- Sec. III-D: the sum
def constant_branches():
    """Two branches with known losses: maps (0, 1) and (0, 3), soft regions (0, 2) and (0, 4), decisions (0, 0.5) and (0, 1.5)."""
    def output(cls, seg, region):
        cells = torch.zeros(1, 2, 3, 3)
        maps = [cells.clone(), cells.clone()]
        maps[0][:, 1], maps[1][:, 1] = seg, region
        return LiSiamOutput(torch.tensor([[0.0, cls]]), *maps)

    return {1: output(0.5, 1.0, 2.0), 2: output(1.5, 3.0, 4.0)}


def softplus(x):
    return math.log1p(math.exp(x))


LABEL, MASK = torch.tensor([1]), torch.zeros(1, 6, 6, dtype=torch.uint8)         # a fake whose every pixel is untouched
BY_HAND = {     # the terms of each variant for constant_branches(), from the table's marks: li = mean(|0 - 0|, |1 - 3|) = 1
    "A": {"li": 1.0, "cls": softplus(-0.5), "seg": softplus(1), "aux": softplus(2)},
    "B": {"li": 1.0, "cls": softplus(-0.5) + softplus(-1.5), "seg": softplus(1) + softplus(3), "aux": softplus(2) + softplus(4)},
    "C": {"li": 1.0, "cls": softplus(-0.5)},
    "D": {"li": 1.0, "cls": softplus(-1.5), "seg": softplus(3), "aux": softplus(4)},
    "E": {"cls": softplus(-1.5), "seg": softplus(3), "aux": softplus(4)},
    "F": {"li": 1.0, "cls": softplus(-0.5), "seg": softplus(1), "aux": softplus(2)},
    "G": {"cls": softplus(-0.5), "seg": softplus(1), "aux": softplus(2)},
}


@pytest.mark.parametrize("name", "ABCDEFG")
def test_the_total_is_the_weighted_sum_of_the_variants_terms(name):
    """Eq. (19): lambda_li L_li + lambda_cls L_cls + lambda_seg L_seg, plus aux times OCR's loss; `parts` are unweighted."""
    by_hand = BY_HAND[name]
    loss, parts = total_loss(constant_branches(), LABEL, MASK, VARIANTS[name], lambdas=(2.0, 3.0, 5.0), aux=0.7)
    assert {term: part.item() for term, part in parts.items()} == pytest.approx(by_hand, rel=1e-5)
    weights = {"li": 2, "cls": 3, "seg": 5, "aux": 0.7}
    assert loss.item() == pytest.approx(sum(weights[term] * value for term, value in by_hand.items()))


def test_the_papers_weights_are_the_default():
    """Sec. III-E: all three lambdas are 1 in Eq. (19); READING: 0.4 for the soft regions; Model-A."""
    loss, _ = total_loss(constant_branches(), LABEL, MASK)
    assert loss.item() == pytest.approx(1 + softplus(-0.5) + softplus(1) + 0.4 * softplus(2))


def test_a_weight_of_zero_leaves_its_term_out_and_uncomputed():
    """Eq. (19) in stages 1 and 2: what a term with weight 0 would need may be absent altogether."""
    branches = constant_branches()
    _, parts = total_loss({1: branches[1]}, LABEL, None, lambdas=(0, 1.0, 0), aux=0)         # stage 2: one branch, no mask
    assert list(parts) == ["cls"]
    headless = {n: output._replace(cls_logits=None) for n, output in branches.items()}
    loss, parts = total_loss(headless, None, MASK, lambdas=(1.0, 1.0, 1.0), aux=0.4)         # stage 1: no head ran
    assert set(parts) == {"li", "seg", "aux"} and loss.item() == pytest.approx(1 + softplus(1) + 0.4 * softplus(2))
    for term, lambdas, aux in (("li", (0, 1, 1), 1), ("cls", (1, 0, 1), 1), ("seg", (1, 1, 0), 1), ("aux", (1, 1, 1), 0)):
        _, parts = total_loss(branches, LABEL, MASK, lambdas=lambdas, aux=aux)
        assert set(parts) == {"li", "cls", "seg", "aux"} - {term}


# ---------------------------------------------------------------- Sec. IV-F, Table VI
def test_the_variants_are_the_rows_of_table_6():
    """Table VI's check marks, in its columns' order: seg1 seg2 cls1 cls2 li MT. READING: row D is the text's."""
    printed = {"A": "x.x.xx", "B": "xxxxxx", "C": "..x.xx", "D": "x.xxxx", "E": ".x.x.x", "F": "x.x.x.", "G": "x.x..x"}
    marks = {name: "".join("x" if mark else "." for mark in (1 in v.seg, 2 in v.seg, 1 in v.cls, 2 in v.cls, v.li, v.transformer))
             for name, v in VARIANTS.items()}
    assert marks == {**printed, "D": ".x.xxx"}
    assert {name: v.images for name, v in VARIANTS.items()} == {**dict.fromkeys("ABCDF", "pair"), "E": "degraded", "G": "both"}


def run_branches(net, variant, stage, clean, degraded):
    """{branch: output} of one batch, as Table VI and Sec. IV-B say. That train.py's loop runs the same is tested in test_train.py."""
    heads = [stage > 1 and n in variant.cls for n in (1, 2)]
    runs = variant.cls if stage == 2 else {"pair": (1, 2), "degraded": (2,), "both": (1,)}[variant.images]
    if variant.images == "both":
        return {1: net(torch.cat([clean, degraded]), heads=heads)}
    if len(runs) == 2:
        return dict(zip((1, 2), net(clean, degraded, heads=heads)))
    return {n: net((clean, degraded)[n - 1], heads=(heads[n - 1], False)) for n in runs}


def example(name, stage):
    """A tiny network of the variant in a stage, and one batch of four pairs of 35 px: parts of the loss, images."""
    torch.manual_seed(0)
    net, variant = LiSiam(0.05, transformer=VARIANTS[name].transformer), VARIANTS[name]
    freeze(net, stage)
    clean = noise(4, 3, 35, 35, seed=8).float().requires_grad_()
    degraded = noise(4, 3, 35, 35, seed=9).float().requires_grad_()
    labels, mask = torch.tensor([0, 1, 0, 1]), (noise(4, 35, 35, seed=10) > 0).to(torch.uint8)
    if variant.images == "both":
        labels, mask = labels.repeat(2), mask.repeat(2, 1, 1)
    lambdas, aux = ((1, 1, 1), 0.4) if stage != 2 else ((0, 1, 0), 0)
    loss, parts = total_loss(run_branches(net, variant, stage, clean, degraded), labels, mask, variant, lambdas, aux)
    return net, loss, parts, {"clean": clean, "degraded": degraded}


def groups(net):
    """The network's parameters in groups that some loss reaches as a whole."""
    early = [f"{part}." for part in ("conv1", "bn1", "conv2", "bn2", "block1", "block2", "block3", "block4")]
    found = {}
    for name, parameter in net.named_parameters():
        part, rest = name.split(".", 1)
        if part == "backbone":
            part = "blocks 1-4" if rest.startswith(tuple(early)) else "blocks 5-12"
        elif part == "ocr":
            part = "regions' bias" if rest == "region_head.1.bias" else "regions" if rest.startswith("region_head") else "ocr"
        elif name == "f_seg.bias":
            part = "f_seg's bias"
        found.setdefault(part, []).append(parameter)
    return found


def reached(loss, tensors):
    """Whether the loss has a gradient, beyond rounding, with respect to any of the tensors."""
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) if tensors else []
    return any(gradient is not None and gradient.abs().max() > 1e-5 for gradient in gradients)


MAP = {"blocks 1-4", "blocks 5-12", "regions", "ocr", "f_seg"}       # all that makes X_s, but for two biases
REACHED = {
    "li": MAP,                                   # the same bias on both maps cancels
    "seg": MAP | {"f_seg's bias"},
    "cls": MAP | {"f_seg's bias", "f_scu", "f_mt", "f_mlp"},
    "aux": {"blocks 1-4", "regions", "regions' bias"},               # that bias: softmax over space ignores it
}


@pytest.mark.parametrize("name", "ABCDEFG")
def test_which_parameters_each_loss_of_each_variant_trains_in_stage_3(name):
    """Table VI: L_li and L_seg shape the map and all before it; L_cls everything, the map included, except in Model-F, where the
    decision ignores the map."""
    net, _, parts, _ = example(name, stage=3)
    assert set(parts) == set(BY_HAND[name])
    expected = {**REACHED, "cls": REACHED["cls"] - {"f_seg", "f_seg's bias", "f_mt"}} if name == "F" else REACHED
    for term, loss in parts.items():
        assert {group for group, tensors in groups(net).items() if reached(loss, tensors)} == expected[term], term


@pytest.mark.parametrize("name, li, cls, seg", [
    ("A", "both", "clean", "clean"), ("B", "both", "both", "both"), ("C", "both", "clean", None),
    ("D", "both", "degraded", "degraded"), ("E", None, "degraded", "degraded"), ("F", "both", "clean", "clean"),
    ("G", None, "both", "both")])
def test_which_images_each_loss_of_each_variant_looks_at(name, li, cls, seg):
    """Table VI: gradients with respect to the clean and the degraded images say which branch a loss belongs to."""
    _, _, parts, images = example(name, stage=3)
    looks_at = {term: [which for which, tensor in images.items() if reached(loss, [tensor])] for term, loss in parts.items()}
    expected = {"li": li, "cls": cls, "seg": seg, "aux": seg}
    assert looks_at == {term: ["clean", "degraded"] if which == "both" else [which] for term, which in expected.items() if which}


@pytest.mark.parametrize("name", "ABCDEFG")
@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_train_one_half_and_compute_nothing_for_the_other(name, stage):
    """Sec. IV-B: stage 1 is Eq. (19) without L_cls and trains f_cnn and f_seg; stage 2 is L_cls alone and trains the rest."""
    net, loss, parts, _ = example(name, stage)
    assert set(parts) == (set(BY_HAND[name]) - {"cls"} if stage == 1 else {"cls"})
    loss.backward()
    moved = {group for group, tensors in groups(net).items()
             if any(tensor.grad is not None and tensor.grad.abs().max() > 1e-5 for tensor in tensors)}
    if stage == 2:
        assert moved == ({"f_scu", "f_mlp"} if name == "F" else {"f_scu", "f_mt", "f_mlp"})
    else:
        assert moved == (MAP if name == "C" else MAP | {"f_seg's bias", "regions' bias"})   # C skips stage 1: only L_li is left
    half = net.segmentation_modules() if stage == 2 else net.classification_modules()
    assert all(parameter.grad is None for module in half for parameter in module.parameters())
