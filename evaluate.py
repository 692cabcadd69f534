"""
How well a network tells real from fake, where it sees the forgery, and the paper's figures.

Read beside Sec. IV-A4 and IV-C to IV-G.
  paper         code              meaning
  frame level   frame_acc, _auc   every frame for itself (Tables I, III, VI)
  video level   video_acc, _auc   the mean P(fake) of a video's frames (Tables II, IV, V, VI, VII)
  alpha         score             P(fake) = 1 - P(real) after softmax; serves two classes and five
                iou, pixel_auc    the forgery map against X_gt on fake frames (not in the paper)
Accuracy is at P(fake) > 0.5. FF++'s test set has four fakes to each real: "all fake" scores 80 %,
so the accuracies of both classes stand beside it. AUC is n/a where only one class is there.

    python evaluate.py --checkpoint runs/NAME/best.pt --data ff++ --quality c0 c23 c40
                       [--json FILE] [--figures DIR] [--sweep]
    python evaluate.py --tables runs/*.json
    python evaluate.py --checkpoint runs/NAME/best.pt --image photo.jpg ... | --video clip.mp4
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

import data
import masks
from model import XceptionClassifier, load_network, to_input

LEVELS = 1000           # the map's P(fake) in steps of 0.001: pixel AUC needs counts, not pixels


# ---------------------------------------------------------------- Sec. IV-A4: metrics
def auc(labels, scores):
    """Area under the ROC curve: the chance that a fake scores above a real; a tie is half a win.

    labels (n,) of 0 and 1; scores (n,) any numbers. None where only one class is there.
    Example: reals 0.2 and 0.6, one fake 0.6. The fake wins against 0.2 and ties with 0.6: 1.5 wins
    of 2 pairs, AUC 0.75. In counts: the distinct scores are 0.2 and 0.6; real_counts [1, 1],
    fake_counts [0, 1].
    """
    is_fake = np.asarray(labels) == 1
    distinct, rank = np.unique(scores, return_inverse=True)     # equal scores share a rank
    real_counts = np.bincount(rank[~is_fake], minlength=len(distinct))
    fake_counts = np.bincount(rank[is_fake], minlength=len(distinct))
    return auc_of_counts(real_counts, fake_counts)


def auc_of_counts(real_counts, fake_counts):
    """AUC of how many reals and fakes have each of some rising scores. None where one is empty."""
    pairs = real_counts.sum() * fake_counts.sum()
    if pairs == 0:
        return None
    reals_below = np.cumsum(real_counts) - real_counts / 2      # a tie counts one half
    return float((fake_counts * reals_below).sum() / pairs)


def accuracy(labels, scores, of=None):
    """Share of right answers at P(fake) > 0.5; of=0, 1: among reals, fakes. None without any."""
    labels = np.asarray(labels)
    right = (np.asarray(scores) > 0.5) == (labels == 1)
    if of is not None:
        right = right[labels == of]
    return float(right.mean()) if len(right) else None


def video_scores(scores, video):
    """Frame scores (n,), video index of each frame (n,) -> mean score of each video, its index.

    READING Sec. IV-C: "averaging the accuracy and AUC of each frame" has no meaning for AUC, and
    for accuracy would give the frame accuracy again, yet Tables I and II differ (96.51, 97.57).
    Both are taken of the mean P(fake) of all frames, accuracy at 0.5. The authors' release averages
    over fixed chunks of 100 frames and votes for accuracy.
    """
    indices, inverse = np.unique(video, return_inverse=True)
    return np.bincount(inverse, scores) / np.bincount(inverse), indices


def intervals(labels, scores, video, repeats=1000):
    """95 % bootstrap intervals {"frame_acc": [low, high], "frame_auc", "video_acc", "video_auc"}.

    labels, scores (n,) of the frames, video (n,) the index of each frame's video. Frames of a video
    are alike, so it is videos that are drawn. {} with fewer than five videos of a class. Fakes made
    on one real video count as independent, so on FF++ the intervals are rather too narrow.
    """
    means, indices = video_scores(scores, video)
    video = np.searchsorted(indices, video)                     # 0 .. videos - 1, without gaps
    is_fake = np.zeros(len(indices), bool)
    is_fake[video] = labels
    if min(is_fake.sum(), (~is_fake).sum()) < 5:
        return {}
    frame_rank = np.unique(scores, return_inverse=True)[1]
    video_rank = np.unique(means, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(repeats):
        # Step 1: draw as many fake and as many real videos as there are, with replacement.
        times = np.zeros(len(indices))                          # how often each video was drawn
        for group in (np.flatnonzero(is_fake), np.flatnonzero(~is_fake)):
            np.add.at(times, rng.choice(group, len(group)), 1)
        # Step 2: the four numbers, each frame or video counted as often as it was drawn.
        row = []
        for fakes, rank, score, weight in (
                (is_fake[video], frame_rank, scores, times[video]),
                (is_fake, video_rank, means, times)):
            row.append(np.average((score > 0.5) == fakes, weights=weight))
            row.append(auc_of_counts(np.bincount(rank, weight * ~fakes),
                                     np.bincount(rank, weight * fakes)))
        samples.append(row)
    bounds = np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()
    return dict(zip(("frame_acc", "frame_auc", "video_acc", "video_auc"), bounds))


def roc(labels, scores):
    """The ROC curve: [[false positive rates], [true positive rates]]; None without both classes."""
    is_fake = np.asarray(labels) == 1
    if is_fake.all() or not is_fake.any():
        return None
    falling = np.argsort(-np.asarray(scores), kind="stable")    # the most suspicious first
    is_end_of_tie = np.append(np.diff(np.asarray(scores)[falling]) != 0, True)
    rates = []
    for chosen in (~is_fake, is_fake):
        counts = np.cumsum(chosen[falling])[is_end_of_tie]
        rates.append([0.0, *(counts / chosen.sum()).tolist()])
    return rates


# ---------------------------------------------------------------- one pass over the frames
def look(net, images):
    """Eq. (1) on (B, 3, S, S) uint8 -> P(fake) (B,), the map's P(fake) (B, S, S); baseline: None.

    Scores in double precision, as float32 would round many to 1.0, and ties cost AUC.
    """
    output = net(to_input(images))
    if torch.is_tensor(output):                                 # the baseline
        return 1 - output.double().softmax(dim=1)[:, 0], None
    scores = 1 - output.cls_logits.double().softmax(dim=1)[:, 0]
    probs = output.seg_logits.float().softmax(dim=1)[:, 1:]
    probs = F.interpolate(probs, size=images.shape[2:], mode="bilinear", align_corners=False)
    return scores, probs[:, 0]


def count_levels(probs, mask):
    """Pixels of each frame by truth and by level of the map: (B, 2, LEVELS) int64.

    probs (B, S, S) in 0..1, mask (B, S, S) of 0 and 1. All that is said of a map is read off this.
    """
    B = len(probs)
    level = (probs * LEVELS).long().clamp(0, LEVELS - 1)
    frame = torch.arange(B, device=probs.device)[:, None, None]
    place = (frame * 2 + mask.long()) * LEVELS + level
    counts = torch.zeros(B * 2 * LEVELS, dtype=torch.int64, device=probs.device)
    counts.scatter_add_(0, place.flatten(), torch.ones_like(place.flatten()))
    return counts.view(B, 2, LEVELS)


@torch.inference_mode()
def predict(net, videos, settings, limit=None, title="frames", degradation=None,
            with_features=False):
    """Every frame of the videos through Eq. (1), in eval mode, which stays on.

    settings: "size", "mask", "batch_size", "workers", "device". limit, degradation: see
    data.TestFrames. Returns NumPy arrays over the n frames:
      score (n,) P(fake); video (n,) index into videos; has_mask (n,)
      iou (n,) of the map above 0.5 and the mask; NaN without mask or map
      levels (videos, 2, LEVELS) count_levels summed over the frames that have a mask
      features (n, channels) on demand: pooled Z, or the baseline's pooled last map
    """
    device = settings["device"]
    frames = data.TestFrames(videos, settings["size"], settings["mask"], limit, degradation)
    loader = torch.utils.data.DataLoader(
        frames, settings["batch_size"], num_workers=settings["workers"],
        pin_memory=device == "cuda", generator=torch.Generator())
    levels = torch.zeros(len(videos), 2, LEVELS, dtype=torch.int64, device=device)
    found = {"score": [], "video": [], "has_mask": [], "iou": []}
    pooled = []
    hook = pool_features(net, pooled) if with_features else None
    net.eval()
    for batch in tqdm(loader, title, leave=False):
        images = batch["image"].to(device, non_blocking=True)
        has_mask = batch["has_mask"].to(device, non_blocking=True)
        video = batch["video"].to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            score, probs = look(net, images)
        iou = torch.full_like(score, float("nan"))
        if probs is not None:
            counts = count_levels(probs, batch["mask"].to(device, non_blocking=True))
            levels.index_add_(0, video, counts * has_mask[:, None, None])
            marked = counts[:, :, LEVELS // 2:].sum(dim=2)      # (B, 2) untouched, forged pixels
            union = counts[:, 1].sum(dim=1) + marked[:, 0]
            iou = (marked[:, 1] / union.double()).masked_fill(~has_mask, float("nan"))
        for name, value in zip(found, (score, video, has_mask, iou)):
            found[name].append(value)
    if hook:
        hook.remove()
    # Nothing was copied back until here, so a GPU was never waited for.
    arrays = {name: torch.cat(values).cpu().numpy() for name, values in found.items()}
    arrays["levels"] = levels.cpu().numpy()
    arrays["features"] = torch.cat(pooled).cpu().numpy() if pooled else None
    return arrays


def pool_features(net, pooled):
    """A hook that appends what the last layers read: Z (B, C, 13, 13) or the baseline's (B, C)."""
    def append(module, inputs):
        features = inputs[0].float()
        pooled.append(features.mean(dim=(2, 3)) if features.dim() == 4 else features)
    head = net.fc if isinstance(net, XceptionClassifier) else net.f_mlp
    return head.register_forward_pre_hook(append)


def summarize(found, videos, method=None):
    """The numbers of a row: all videos, or one method's fakes against all real ones; None = n/a."""
    wanted = np.array([video.label == 0 or method in (None, video.method) for video in videos])
    frames = wanted[found["video"]]
    scores = found["score"][frames]
    video = found["video"][frames]
    labels = np.array([video.label for video in videos])
    means, indices = video_scores(scores, video)
    row = {"videos": len(indices), "real_videos": int((labels[indices] == 0).sum()),
           "frames": len(scores), "real_frames": int((labels[video] == 0).sum())}
    levels = (("frame", labels[video], scores), ("video", labels[indices], means))
    for level, truth, score in levels:
        row[f"{level}_acc"] = accuracy(truth, score)
        row[f"{level}_auc"] = auc(truth, score)
        row[f"{level}_acc_real"] = accuracy(truth, score, of=0)
        row[f"{level}_acc_fake"] = accuracy(truth, score, of=1)
    iou = found["iou"][frames]
    row["masked_frames"] = int((~np.isnan(iou)).sum())
    row["iou"] = float(np.nanmean(iou)) if row["masked_frames"] else None
    row["pixel_auc"] = auc_of_counts(*found["levels"][wanted].sum(axis=0))
    return row


def evaluate(net, settings, dataset, root, quality, split="test", limit=None):
    """One network on one data set, quality (None: Celeb-DF) and split: what --json writes.

    Numbers over all frames and for each method, intervals, ROC curves.
    """
    videos = data.require_videos(dataset, root, quality, split, settings["mask"])
    found = predict(net, videos, settings, limit, title=f"{dataset} {quality or ''} {split}")
    methods = {}
    for video in videos:
        if video.label and video.method not in methods:
            methods[video.method] = summarize(found, videos, video.method)
    labels = np.array([video.label for video in videos])
    means, indices = video_scores(found["score"], found["video"])
    frame_labels = labels[found["video"]]
    return {"data": dataset, "quality": quality, "split": split, "limit": limit,
            "mask": settings["mask"], **summarize(found, videos), "methods": methods,
            "intervals": intervals(frame_labels, found["score"], found["video"]),
            "roc": {"frame": roc(frame_labels, found["score"]),
                    "video": roc(labels[indices], means)}}


# ---------------------------------------------------------------- tables
COLUMNS = {"frames": "frames", "videos": "videos", "frame_acc": "Acc frame",
           "frame_auc": "AUC frame", "video_acc": "Acc video", "video_auc": "AUC video",
           "frame_acc_real": "Acc real", "frame_acc_fake": "Acc fake",      # of frames
           "iou": "IoU", "pixel_auc": "AUC pixel"}


def show(value):
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_set(result):
    """"ff++ c23"; without a quality for Celeb-DF."""
    return " ".join(filter(None, (result["data"], result["quality"])))


def model_name(settings):
    """A run's name in the paper's tables: LiSiam, Model-B .. G, Xception, Xception+IQD, ..."""
    if settings["model"] == "xception":
        name = "Xception+IQD" if settings["iqd"] else "Xception"
    else:
        name = "LiSiam" if settings["variant"] == "A" else f"Model-{settings['variant']}"
        if settings["mask"] != "ssim":
            name += f"+{settings['mask'].upper()}"
    return f"{name}, 5 classes" if settings["num_classes"] == 5 else name


def table(results):
    """A run's results of evaluate -> a Markdown table: a row for all methods, and one for each."""
    rows = []
    notes = []
    for result in results:
        name = f"{test_set(result)} {result['split']}"
        for method, row in {"all": result, **result["methods"]}.items():
            rows.append([name, method, *(show(row[column]) for column in COLUMNS)])
        if result["intervals"]:
            spans = [f"{COLUMNS[column]} {low:.3f} to {high:.3f}"
                     for column, (low, high) in result["intervals"].items()]
            notes.append(f"{name}, 95 % intervals over videos: {', '.join(spans)}")
    if any(result["iou"] is None for result in results):
        notes.append("IoU and pixel AUC are n/a for the baseline, and without masks on disk "
                     "(python masks.py; Celeb-DF has none)")
    return "\n".join([markdown(["test set", "fakes", *COLUMNS.values()], rows), *notes])


def tables(paths):
    """Files of --json -> a Markdown row for each model, training and test set, in percent.

    Runs that differ in nothing but the seed share a row: mean and standard deviation over runs.
    Other settings that differ between the files stand beside the model's name.
    """
    runs = []
    for path in paths:
        try:
            for run in json.loads(Path(path).read_text()):
                runs.append((run["settings"], run["results"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            data.stop(f"{path} is no result of evaluate.py --json ({type(error).__name__}); make one "
                      "with --checkpoint ... --json FILE")
    compared = ("iterations", "batch_size", "width", "size", "optimizer", "lr", "lambdas", "aux",
                "pretrained")
    groups = {}
    for settings, results in runs:
        name = model_name(settings)
        for key in compared:
            if any(other[key] != settings[key] for other, _ in runs):
                name += f", {key} {settings[key]}"
        for result in results:
            trained = f"{settings['data']} {settings['quality']}"
            where = f"{test_set(result)} {result['split']}"
            if result["limit"]:
                where += f", {result['limit']} frames a video"
            group = groups.setdefault((name, trained, where), {})
            group[settings["seed"], settings["out"]] = result       # the same run twice counts once
    columns = ("frame_acc", "frame_auc", "video_acc", "video_auc", "iou")
    rows = []
    for (name, trained, where), results in sorted(groups.items()):
        cells = []
        for column in columns:
            values = [100 * row[column] for row in results.values() if row[column] is not None]
            cell = f"{np.mean(values):.2f}" if values else "n/a"
            if len(values) > 1:
                cell += f" ± {np.std(values, ddof=1):.2f}"
            cells.append(cell)
        rows.append([name, trained, where, str(len(results)), *cells])
    head = ["model", "trained on", "tested on", "runs", *(COLUMNS[column] for column in columns)]
    return markdown(head, rows)


# ---------------------------------------------------------------- drawing
def grey(values):
    """(S, S) of 0..1 -> a Pillow image, 1 = white."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def save_png(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    print(f"drawn: {path}")


def sheet(title, columns, rows, side=128):
    """Pictures in a grid, as a Pillow image. columns: titles; rows: [(title, [image, ...])]."""
    font = ImageFont.load_default(13)
    left = 12 + max(int(font.getlength(name)) for name, _ in rows)
    top = 48
    step = side + 4
    width = max(left + len(columns) * step, int(font.getlength(title)) + 12)
    picture = Image.new("RGB", (width, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((6, 5), title, "black", font)
    for column, name in enumerate(columns):
        draw.text((left + column * step, 28), name, "black", font)
    for row, (name, images) in enumerate(rows):
        draw.text((6, top + row * step + side // 2), name, "black", font, anchor="lm")
        for column, image in enumerate(images):
            image = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
            picture.paste(image, (left + column * step, top + row * step))
    return picture


def pyplot():
    """matplotlib, an optional package, for diagrams; None and a line where it is missing."""
    try:
        import matplotlib
    except ImportError:
        print("diagrams are not drawn: they need an optional package, pip install matplotlib")
        return None
    matplotlib.use("Agg")                       # files only, no screen
    from matplotlib import pyplot
    return pyplot


def save_figure(figure, path):
    figure.savefig(path, dpi=100, bbox_inches="tight")
    figure.clear()
    print(f"drawn: {path}")


@torch.inference_mode()
def panel(net, batch, device, path):
    """A PNG of what training sees: four fakes and two reals of a batch. White = fake."""
    labels = batch["label"].tolist()
    fakes = [k for k, label in enumerate(labels) if label > 0][:4]
    reals = [k for k, label in enumerate(labels) if label == 0][:2]
    net.eval()
    rows = []
    for k in fakes + reals:
        pictures = [batch["clean"][k], batch["degraded"][k]]
        maps = []
        for picture in pictures:
            _, probs = look(net, picture[None].to(device))
            maps.append(grey(probs[0].cpu().numpy()))
        images = [*map(to_pil_image, pictures), grey(batch["mask"][k].numpy()), *maps]
        rows.append(("fake" if labels[k] else "real", images))
    columns = ("clean", "degraded", "mask", "map of clean", "map of degraded")
    sheet(f"training batch, {path.stem}", columns, rows).save(path)


def training_curves(folder):
    """curves.png of a run's log.jsonl: the losses through the stages, and what validation gave."""
    plt = pyplot()
    whole, _, _ = (folder / "log.jsonl").read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "val" in line]
    if plt is None or not steps:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
    for name in ("loss", "li", "cls", "seg", "aux"):
        points = [(line["iteration"], line[name]) for line in steps if name in line]
        if points:
            left.plot(*zip(*points), ".", markersize=3, label=name)
    for name in ("frame_auc", "video_auc", "iou"):
        points = [(line["iteration"], line["val"][name]) for line in checks]
        right.plot(*zip(*points) if points else ([], []), label=COLUMNS[name])
    middle = [line["iteration"] for line in steps if line["stage"] == 2]
    if middle:
        left.axvspan(middle[0], middle[-1], color="0.9", label="stage 2")
    left.set(title="training losses", xlabel="iteration", yscale="log")
    right.set(title="validation", xlabel="iteration", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend()
    save_figure(figure, folder / "curves.png")


def roc_curves(plt, runs, path):
    """runs [(name, results)] -> the ROC curves by frame and by video, one for each test set."""
    figure, both = plt.subplots(1, 2, figsize=(12, 5))
    for axes, level in zip(both, ("frame", "video")):
        for name, results in runs:
            for result in results:
                if result["roc"][level]:
                    label = f"{name}, {test_set(result)}: {result[f'{level}_auc']:.3f}"
                    axes.plot(*result["roc"][level], label=label)
        axes.plot((0, 1), (0, 1), "--", color="grey", label="chance: 0.5")
        axes.set(title=f"ROC by {level}", xlabel="reals called fake", ylabel="fakes called fake")
        axes.legend()
    save_figure(figure, path)


# ---------------------------------------------------------------- robustness: a sweep
SWEEP = (       # name, operation, its argument, strengths from none to much, the training's range
    ("JPEG quality", data.jpeg, "quality", (100, 80, 60, 40, 20, 5), data.JPEG_QUALITY),
    ("resized to this share of the side", data.resize, "fraction", (1.0, 0.8, 0.6, 0.4, 0.2),
     data.RESIZE_SIDE),
    ("blur sigma, px at 299 px", data.blur, "sigma", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
     data.BLUR_SIGMA),
)


def sweep(net, settings, videos, limit=None):
    """One network while the pictures get worse: [{"operation", "strength", "frame_auc", ...}]."""
    rows = []
    for name, operation, argument, strengths, _ in SWEEP:
        for strength in strengths:
            degradation = functools.partial(operation, **{argument: strength})
            found = predict(net, videos, settings, limit, f"{name} {strength:.3g}", degradation)
            row = summarize(found, videos)
            rows.append({"operation": name, "strength": strength, "frame_auc": row["frame_auc"],
                         "video_auc": row["video_auc"], "iou": row["iou"]})
    return rows


def sweep_plot(plt, title, sweeps, path):
    """sweeps [(name, rows of sweep)] -> a diagram for each operation; worse to the right."""
    figure, all_axes = plt.subplots(1, len(SWEEP), figsize=(6 * len(SWEEP), 4.5))
    for axes, (operation, _, _, strengths, trained) in zip(all_axes, SWEEP):
        axes.axvspan(*trained, color="0.92", label="range of the training's degraded copies")
        for number, (name, rows) in enumerate(sweeps):
            rows = [row for row in rows if row["operation"] == operation]
            for column, style in (("frame_auc", "-"), ("iou", "--")):
                values = [row[column] for row in rows]
                if None not in values:
                    axes.plot(strengths, values, style, color=f"C{number}",
                              label=f"{name}: {COLUMNS[column]}")
        axes.set(title=f"{title}: {operation}", xlim=(strengths[0], strengths[-1]), ylim=(0, 1.02))
    all_axes[0].legend(fontsize="small")
    save_figure(figure, path)


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM [59], [60]
def grad_cam(net, images):
    """What spoke for fake: (B, 3, S, S) in [-1, 1] -> (B, S, S) float32 in 0..1, the hottest is 1.

    Each channel of the last feature map is weighted by the mean gradient of the logit of the
    likeliest forgery. All 0 where nothing speaks for fake.
    READING Sec. IV-G: the layer is not said: the last convolution's map, X_I (512 x 37 x 37), or
    the baseline's (2048 x 10 x 10).
    """
    kept = []

    def keep(module, inputs, output):           # the baseline's ReLU then works on it in place
        kept.append(output[0] if isinstance(output, tuple) else output)

    layer = net.bn4 if isinstance(net, XceptionClassifier) else net.ocr
    with layer.register_forward_hook(keep):
        output = net(images)
    cls_logits = output if torch.is_tensor(output) else output.cls_logits
    fake_logits = cls_logits[:, 1:].max(dim=1).values
    gradient, = torch.autograd.grad(fake_logits.sum(), kept[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True)                       # (B, 512, 1, 1)
    heat = (weights * kept[0]).sum(dim=1, keepdim=True).relu()              # (B, 1, 37, 37)
    heat = F.interpolate(heat.detach().float(), size=images.shape[2:], mode="bilinear",
                         align_corners=False)[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def heat_colour(image, heat):
    """The Pillow picture (S, S) under its heat (S, S) in 0..1, blue (cold) to red (hot)."""
    channels = [np.clip(1.5 - np.abs(4 * heat - peak), 0, 1) for peak in (3, 2, 1)]
    ramp = Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))
    return Image.blend(image, ramp, 0.45)


# ---------------------------------------------------------------- Figures 3 to 8
SHORT = {"Deepfakes": "DF", "FaceSwap": "FS", "Face2Face": "F2F", "NeuralTextures": "NT"}


def examples(videos, size, number=0):
    """The middle frame of a real face, of the fakes' source, and of the fakes made on it.

    Returns {"target", "source": face}, {"DF", "FS", ...: (fake, real)}. number: which of the real
    videos that were forged by the most methods; {}, {} where there are no more.
    """
    made = {}                                   # {id of the real video: its fakes}
    for video in videos:
        middle = video.frames[len(video.frames) // 2]
        if video.label and data.twin_path(middle).exists():
            made.setdefault(video.id.split("_")[0], []).append(video)
    groups = sorted(made.values(), key=len, reverse=True)
    if number >= len(groups):
        return {}, {}
    fakes = groups[number]
    frame = fakes[0].frames[len(fakes[0].frames) // 2]
    real = data.read_face(data.twin_path(frame), size)
    people = {"target": real}
    for video in videos:
        if video.method == "real" and video.id == fakes[0].id.split("_")[-1]:
            people["source"] = data.read_face(video.frames[len(video.frames) // 2], size)
    pairs = {}
    for method, short in SHORT.items():
        for video in fakes:
            path = frame.parents[4] / method / Path(*frame.parts[-4:])
            if video.method == method and path.exists():
                pairs[short] = (data.read_face(path, size), real)
    return people, pairs


def ssim_image(fake, real):
    """Fig. 3's SSIM map in grey."""
    return grey(masks.ssim_map(np.asarray(real), np.asarray(fake)) / 255)


def figure_3(where, fakes):
    """Fig. 3: for each method the fake, its DIFF mask, its SSIM map and its SSIM mask."""
    rows = []
    for name, (fake, real) in fakes.items():
        pair = np.asarray(real), np.asarray(fake)
        rows.append((name, [fake, grey(masks.diff_mask(*pair)), ssim_image(fake, real),
                            grey(masks.ssim_mask(*pair))]))
    return sheet(f"Fig. 3: masks, {where}", ("fake", "DIFF mask", "SSIM map", "SSIM mask"), rows)


def figure_4(where, fakes):
    """Fig. 4: a real face and its first fake (DF) under the degradations at their strongest."""
    operations = {"R": lambda image: data.resize(image, data.RESIZE_SIDE[0]),
                  "C": lambda image: data.jpeg(image, data.JPEG_QUALITY[0]),
                  "G": lambda image: data.blur(image, data.BLUR_SIGMA[1])}
    columns = ("original", "R", "C", "G", "R&C", "R&G", "C&G", "R&C&G")
    short, (fake, real) = next(iter(fakes.items()))
    rows = []
    for name, face in (("real", real), (short, fake)):
        images = []
        for column in columns:
            image = face
            for letter in column.split("&"):
                if letter in operations:
                    image = operations[letter](image)
            images.append(image)
        rows.append((name, images))
    return sheet(f"Fig. 4: R resized to {data.RESIZE_SIDE[0]:.2f} and back, C JPEG "
                 f"{data.JPEG_QUALITY[0]}, G blur {data.BLUR_SIGMA[1]} px; {where}", columns, rows)


def figure_5(plt, runs, videos_of, path):
    """Fig. 5: t-SNE of pooled features by forgery; a row a network, a column a quality.

    READING Fig. 5: which features is not said: pooled Z against Xception's pooled last map, of four
    frames a video.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        print("Fig. 5 is not drawn: it needs an optional package, pip install scikit-learn")
        return
    colours = {"real": "red", "Deepfakes": "blue", "FaceSwap": "green", "Face2Face": "purple",
               "NeuralTextures": "orange"}
    figure, grid = plt.subplots(len(runs), len(videos_of), squeeze=False,
                                figsize=(5 * len(videos_of), 5 * len(runs)))
    for row, (name, net, settings) in zip(grid, runs):
        for axes, (quality, videos) in zip(row, videos_of.items()):
            found = predict(net, videos, settings, limit=4, title="t-SNE", with_features=True)
            perplexity = min(30, (len(found["score"]) - 1) / 3)
            tsne = TSNE(init="pca", random_state=0, perplexity=perplexity)
            points = tsne.fit_transform(found["features"])
            method = np.array([videos[index].method for index in found["video"]])
            for which, colour in colours.items():
                axes.scatter(*points[method == which].T, s=6, c=colour, label=which)
            axes.set(title=f"{name}: {settings['quality']}-{quality}", xticks=[], yticks=[])
    grid[0][0].legend()
    save_figure(figure, path)


def figure_6(where, runs, people, fakes):
    """Fig. 6: target, source and fakes: input, SSIM map, each network's map and mask (> 0.5)."""
    pairs = {**{name: (face, face) for name, face in people.items()}, **fakes}
    rows = [("input", [face for face, _ in pairs.values()]),
            ("SSIM map", [ssim_image(*pair) for pair in pairs.values()])]
    for name, net, settings in runs:
        _, maps = judge(net, [face for face, _ in pairs.values()], settings)
        if maps[0] is not None:
            rows.append((f"{name}: map", [grey(probs) for probs in maps]))
            rows.append((f"{name}: mask", [grey(probs > 0.5) for probs in maps]))
    return sheet(f"Fig. 6: segmentation, {where}", list(pairs), rows)


def figures_7_and_8(title, runs, fakes):
    """Figs. 7, 8: input, SSIM, each network's Grad-CAM in grey, then over the picture."""
    rows = [("input", [fake for fake, _ in fakes.values()]),
            ("SSIM", [ssim_image(*pair) for pair in fakes.values()])]
    over = []
    for name, net, settings in runs:
        images = torch.stack([data.to_tensor(fake) for fake, _ in fakes.values()])
        heats = grad_cam(net, to_input(images.to(settings["device"]))).cpu().numpy()
        name = f"{name} ({settings['quality']})"
        rows.append((f"grey map, {name}", [grey(heat) for heat in heats]))
        over.append((f"Grad-CAM, {name}", [heat_colour(fake, heat)
                                           for (fake, _), heat in zip(fakes.values(), heats)]))
    return sheet(title, list(fakes), rows + over, side=104)


def draw_figures(plt, runs, dataset, root, qualities, split, folder):
    """Figs. 3 to 8 as PNG; 3 and 4 need no network. runs: [(name, network, settings)]."""
    where = f"{dataset} {qualities[0]} {split}"
    sizes = {settings["size"] for _, _, settings in runs} or {299}
    if len(sizes) > 1:
        data.stop("the networks were trained on crops of different sizes; draw their figures in "
                  "separate calls")
    size = sizes.pop()
    videos_of = {}
    for quality in qualities:
        videos_of[quality] = data.require_videos(dataset, root, quality, split)
    people, fakes = examples(videos_of[qualities[0]], size)
    if not fakes:
        data.stop(f"Figs. 3 to 8 need a fake {split} video with its real video; there is none "
                  f"under {root} for {qualities[0]}")
    save_png(figure_3(where, fakes), folder / "fig3_masks.png")
    save_png(figure_4(where, fakes), folder / "fig4_degradations.png")
    if not runs:
        return
    save_png(figure_6(where, runs, people, fakes), folder / "fig6_segmentation.png")
    _, second = examples(videos_of[qualities[0]], size, number=1)
    two = {**fakes, **{f"{name} (2)": pair for name, pair in second.items()}}
    save_png(figures_7_and_8(f"Fig. 7: Grad-CAM, {where}", runs, two), folder / "fig7_gradcam.png")
    across = {}
    for quality, videos in videos_of.items():
        for name, pair in examples(videos, size)[1].items():
            across[f"{name} {quality}"] = pair
    save_png(figures_7_and_8(f"Fig. 8: Grad-CAM across qualities, {dataset} {split}", runs, across),
             folder / "fig8_gradcam_quality.png")
    if plt:
        figure_5(plt, runs, videos_of, folder / "fig5_tsne.png")


# ---------------------------------------------------------------- one picture, one video
@torch.inference_mode()
def judge(net, crops, settings):
    """Face crops (Pillow RGB), one by one -> [P(fake)], [its map (S, S), None for the baseline]."""
    size = settings["size"]
    scores = []
    maps = []
    for crop in crops:
        image = data.to_tensor(crop.resize((size, size), Image.Resampling.BILINEAR))
        score, probs = look(net, image[None].to(settings["device"]))
        scores.append(score.item())
        maps.append(None if probs is None else probs[0].cpu().numpy())
    return scores, maps


def look_at(net, settings, name, frames, boxes, path):
    """Prints the mean P(fake) of the largest face in a picture or a video's frames, its spread.

    frames: [Pillow RGB]; boxes: [(x, y, side)], one each. Draws the map over the most suspicious
    frame, to path: the redder, the likelier forged.
    """
    crops = [frame.crop((x, y, x + side, y + side)) for frame, (x, y, side) in zip(frames, boxes)]
    scores, maps = judge(net, crops, settings)
    worst = int(np.argmax(scores))
    x, y, side = boxes[worst]
    print(f"{name}: P(fake) {np.mean(scores):.3f}", end="")
    if len(frames) > 1:
        print(f", the mean of {len(frames)} frames ({min(scores):.3f} to {max(scores):.3f}, "
              f"standard deviation {np.std(scores):.3f}); the highest has its face", end="")
    print(f" at x {x}, y {y}, side {side}")
    if maps[worst] is not None:
        strength = grey(0.63 * maps[worst]).resize((side, side))
        frames[worst].paste(Image.new("RGB", (side, side), (255, 0, 0)), (x, y), strength)
        save_png(frames[worst], path)


def look_at_all(net, settings, args, folder):
    """--image and --video. What cannot be judged is named; then the exit status is 2."""
    detect = None if args.crop == "none" else data.load_detector()
    failed = False
    for name in args.image or [args.video]:
        try:
            if args.video:
                count = data.count_frames(name)
                wanted = data.evenly_spread(range(count), args.frames or 100)
                frames = dict(data.read_frames(name, wanted))
            else:
                frames = {0: np.asarray(data.read_image(name))}
            if detect:
                boxes = data.find_boxes(frames.items(), detect)
            else:
                boxes = {0: (0, 0, min(frames[0].shape[:2]))}
                if frames[0].shape[0] != frames[0].shape[1]:
                    raise ValueError(f"{name} is not square: no face crop; leave out --crop none")
            if not boxes:
                raise ValueError(f"{name}: no face found; is it a crop already? Then --crop none")
        except ValueError as error:
            print(error)
            failed = True
            continue
        look_at(net, settings, name, [Image.fromarray(frame) for frame in frames.values()],
                [box[:3] for box in boxes.values()], folder / f"{Path(name).stem}_map.png")
    print("A score is no proof: it tells how much a face resembles the fakes this network was "
          f"trained on ({settings['data']}).")
    if failed:
        data.stop("not everything could be judged, for the reasons above")


# ---------------------------------------------------------------- command line
def parse_arguments():
    parser = data.new_parser("Accuracy and AUC by frame and video, localization, tables, figures.")
    flag = parser.add_argument
    flag("--checkpoint", nargs="+", default=[], help="best.pt of one or several runs of train.py")
    flag("--data", nargs="+", choices=list(data.ROOTS), default=["ff++"], help="default ff++")
    flag("--root", nargs="+", help="folder of each data set, default datasets/...")
    flag("--quality", nargs="+", choices=data.QUALITIES, default=["c23"],
         help="FF++ compression (Sec. IV-E), default c23")
    flag("--split", choices=["train", "val", "test"], default="test", help="default %(default)s")
    flag("--mask", choices=[*masks.MASKS, "given"],
         help="what the map is compared with, default as trained with")
    flag("--frames", type=data.whole_number(1),
         help="at most so many frames a video, evenly spread; default all")
    flag("--batch-size", type=data.whole_number(1), default=32, help="default %(default)s")
    flag("--workers", type=data.whole_number(0), default=min(8, os.cpu_count()),
         help="loading processes, default %(default)s")
    flag("--device", choices=["cpu", "cuda"],
         default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    flag("--json", type=Path, help="also write the numbers to this file")
    flag("--figures", type=Path, metavar="DIR",
         help="also Figs. 3 to 8, ROC, training curves as PNG; 3 and 4 need no --checkpoint")
    flag("--sweep", action="store_true",
         help="also AUC and IoU as JPEG, resizing and blur grow, at the first --quality")
    flag("--tables", nargs="+", metavar="JSON", help="instead: a row for each run of these files")
    flag("--image", nargs="+", help="instead: P(fake) of the largest face in each picture")
    flag("--video", help="instead: P(fake) of this video, the mean over --frames (100) frames")
    flag("--crop", choices=["auto", "none"], default="auto",
         help="none: --image is a face crop already")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        data.stop("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if not args.checkpoint and not args.tables and (not args.figures or args.sweep or args.json):
        data.stop("--checkpoint FILE is missing")
    if (args.image or args.video) and len(args.checkpoint) != 1:
        data.stop("--image and --video take one --checkpoint")
    if args.video and args.crop == "none":
        data.stop("--crop none is for --image; in a video the face is always looked for")
    if args.root is not None and len(args.root) != len(args.data):
        data.stop(f"--data names {len(args.data)} data sets, --root {len(args.root)} folders; give "
                  "one folder for each")
    return args


def load_runs(args):
    """[(name, network, settings)] of the checkpoints, with this call's settings where given."""
    runs = []
    for path in args.checkpoint:
        try:
            net, settings = load_network(path, args.device)
        except ValueError as error:
            data.stop(str(error))
        settings = {**settings, "device": args.device, "workers": args.workers,
                    "batch_size": args.batch_size, "mask": args.mask or settings["mask"]}
        runs.append((model_name(settings), net, settings))
    names = [name for name, _, _ in runs]
    for number, path in enumerate(args.checkpoint):
        if names.count(names[number]) > 1:
            runs[number] = (f"{names[number]}, {Path(path).parent.name}", *runs[number][1:])
    return runs


def main():
    args = parse_arguments()
    if args.tables:
        print(tables(args.tables))
        return
    runs = load_runs(args)
    if args.image or args.video:
        _, net, settings = runs[0]
        look_at_all(net, settings, args, args.figures or Path(args.checkpoint[0]).parent)
        return

    # ------------------------------------------------------------ every network on every test set
    roots = args.root or [data.ROOTS[name] for name in args.data]
    tests = []
    for name, root in zip(args.data, roots):
        for quality in [None] if name.startswith("celeb") else args.quality:
            tests.append((name, root, quality))
    report = []
    for (name, net, settings), path in zip(runs, args.checkpoint):
        for test in tests:                      # all of them are there and whole, before the first
            videos = data.require_videos(*test, args.split, settings["mask"])
            data.stop_if_broken(videos, settings["mask"], args.workers or 1)
        results = [evaluate(net, settings, *test, args.split, args.frames) for test in tests]
        print(f"{name}, trained on {settings['data']} {settings['quality']} ({path})")
        print(f"{table(results)}\n")
        report.append({"settings": settings, "results": results})
    where = " ".join(filter(None, (tests[0][0], tests[0][2], args.split)))
    for run, (name, net, settings) in zip(report, runs if args.sweep else []):
        videos = data.require_videos(*tests[0], args.split, settings["mask"])
        run["sweep"] = sweep(net, settings, videos, args.frames)
        rows = [[row["operation"], f"{row['strength']:.3g}", *map(show, list(row.values())[2:])]
                for row in run["sweep"]]
        print(f"{name}, {where}")
        print(markdown(["operation", "strength", "AUC frame", "AUC video", "IoU"], rows))
    if args.json:
        data.write_whole(args.json, json.dumps(report, indent=1).encode())

    # ------------------------------------------------------------ figures
    if not args.sweep and not args.figures:
        return
    folder = args.figures or Path(args.checkpoint[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    plt = pyplot()
    names = [name for name, _, _ in runs]
    if plt and args.sweep:
        sweeps = [(name, run["sweep"]) for name, run in zip(names, report)]
        sweep_plot(plt, where, sweeps, folder / "sweep.png")
    if plt and args.figures and runs:
        results = [(name, run["results"]) for name, run in zip(names, report)]
        roc_curves(plt, results, folder / "roc.png")
    if args.figures and args.data[0] in data.TRAINABLE:
        draw_figures(plt, runs, args.data[0], roots[0], args.quality, args.split, folder)
    elif args.figures:
        print("Figs. 3 to 8 need ff++ or demo first in --data")


if __name__ == "__main__":
    data.run(main, "what is printed and drawn stays")
