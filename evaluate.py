"""
How well a network tells real from fake, where it sees the forgery, and the paper's figures.

Read beside Sec. IV-A4 and IV-C to IV-G.
  paper         code              meaning
  frame level   frame_acc, _auc   every frame for itself (Tables I, III, VI)
  video level   video_acc, _auc   the mean P(fake) of a video's frames (Tables II, IV, V, VI, VII)
  alpha         score             P(fake) = 1 - P(real) after softmax; serves two classes and five
                iou, pixel_auc    the forgery map against X_gt on fake frames, beside what one
                                  constant mask reaches (not in the paper)
Accuracy is at P(fake) > 0.5. FF++'s test set has four fakes to each real: "all fake" scores 80 %,
so the accuracies of both classes stand beside it. AUC is n/a where only one class is there.

    python evaluate.py --checkpoint runs/NAME/best.pt --data ff++ --quality c0 c23 c40
                       [--json FILE] [--figures DIR] [--sweep]
    python evaluate.py --tables runs/*.json
    python evaluate.py --checkpoint runs/NAME/best.pt --image photo.jpg ... | --video clip.mp4
"""

import signal

if __name__ == "__main__":          # Ctrl-C while torch loads ends in no traceback; see data.run
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import collections
import functools
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F
from tqdm import tqdm

import data
import masks
from model import XceptionClassifier, autocast, load_network, to_input

STEPS = 1000                            # of the map's P(fake), 0.001 each, to count pixels by
THRESHOLDS = np.arange(1, 20) / 20      # of the map: 0.05, 0.10, ... 0.95
MIDDLE = 9                              # THRESHOLDS[9] is 0.5


# ---------------------------------------------------------------- Sec. IV-A4: metrics
def auc(labels, scores):
    """Area under the ROC curve: the chance that a fake scores above a real; a tie is half a win.

    labels (n,) of 0 and 1; scores (n,) any numbers. None where only one class is there.
    Example: reals 0.2 and 0.6, one fake 0.6, which wins against 0.2 and ties with 0.6: 1.5 of 2,
    AUC 0.75. In counts of the distinct scores: real_counts [1, 1], fake_counts [0, 1].
    """
    is_fake = np.asarray(labels) == 1
    distinct, rank = np.unique(scores, return_inverse=True)     # equal scores share a rank
    real_counts = np.bincount(rank[~is_fake], minlength=len(distinct))
    fake_counts = np.bincount(rank[is_fake], minlength=len(distinct))
    return auc_of_counts(real_counts, fake_counts)


def auc_of_counts(real_counts, fake_counts):
    """AUC of how many reals and fakes have each of some rising scores. None where one is empty."""
    pairs = float(real_counts.sum()) * float(fake_counts.sum())     # of pixels, past 64 bits
    if pairs == 0:
        return None
    reals_below = np.cumsum(real_counts) - real_counts / 2      # a tie counts one half
    return float((fake_counts * reals_below).sum() / pairs)


def accuracy(labels, scores, of=None):
    """Share of right answers at P(fake) > 0.5; of=0, 1: among reals, fakes. None without any.

    READING Sec. IV-A4: the threshold of "Acc" is not said; 0.5, where the larger logit decides.
    """
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


def intervals(labels, scores, video):
    """95 % bootstrap intervals {"frame_acc": [low, high], "frame_auc", "video_acc", "video_auc"}.

    labels, scores (n,) of the frames, video (n,) the index of each frame's video. Frames of a video
    are alike, so it is videos that are drawn. {} with fewer than five videos of a class. Fakes made
    on one real video count as independent, so on FF++ the intervals are rather too narrow.
    """
    means, indices = video_scores(scores, video)                        # (v,), (v,)
    frames = [np.flatnonzero(video == index) for index in indices]      # of each video
    video_labels = np.array([labels[rows[0]] for rows in frames])       # (v,)
    fakes = np.flatnonzero(video_labels == 1)
    reals = np.flatnonzero(video_labels == 0)
    if min(len(fakes), len(reals)) < 5:
        return {}
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(1000):
        # Step 1: draw as many fake and as many real videos as there are, with replacement.
        drawn = np.append(rng.choice(fakes, len(fakes)), rng.choice(reals, len(reals)))
        # Step 2: the four numbers of the frames and of the videos drawn.
        rows = np.concatenate([frames[place] for place in drawn])
        levels = ((labels[rows], scores[rows]), (video_labels[drawn], means[drawn]))
        samples.append([metric(*level) for level in levels for metric in (accuracy, auc)])
    bounds = np.percentile(samples, [2.5, 97.5], axis=0).T.tolist()
    return dict(zip(("frame_acc", "frame_auc", "video_acc", "video_auc"), bounds))


# ---------------------------------------------------------------- one pass over the frames
def scores_and_maps(net, images):
    """Eq. (1) on (B, 3, S, S) uint8 -> P(fake) (B,), the map's P(fake) (B, S, S); baseline: None.

    Scores in double precision, as float32 would round many to 1.0, and ties cost AUC.
    """
    with autocast(images.device.type):
        output = net(to_input(images))
    if torch.is_tensor(output):                                 # the baseline
        return 1 - output.double().softmax(dim=1)[:, 0], None
    scores = 1 - output.cls_logits.double().softmax(dim=1)[:, 0]
    probs = output.seg_logits.softmax(dim=1)[:, 1:]             # (B, 1, 37, 37)
    probs = F.interpolate(probs, size=images.shape[2:], mode="bilinear", align_corners=False)
    return scores, probs[:, 0]


def count_pixels(probs, mask):
    """Pixels of each frame by truth and by step of the map: (B, 2, STEPS) int64.

    probs (B, S, S) in 0..1, mask (B, S, S) of 0 and 1. All that is said of a map is read off this.
    """
    B = len(probs)
    step = (probs * STEPS).long().clamp(0, STEPS - 1)           # (B, S, S)
    frame = torch.arange(B, device=probs.device)[:, None, None]
    place = ((frame * 2 + mask.long()) * STEPS + step).flatten()        # in the result, flat
    # torch.bincount would do the same, but a GPU would be waited for.
    counts = place.new_zeros(B * 2 * STEPS).scatter_add_(0, place, torch.ones_like(place))
    return counts.view(B, 2, STEPS)


def map_numbers(counts):
    """count_pixels (B, 2, STEPS) -> iou (B, 19) at THRESHOLDS, marked (B,), inside (B,).

    marked: the share of the picture at 0.5 or more; inside: the share of that which is forged.
    iou and inside are NaN where no pixel is forged, inside also where none is marked.
    """
    above = counts.flip(2).cumsum(2).flip(2)                    # pixels at this step or above it
    above = above[:, :, STEPS // 20::STEPS // 20].double()      # (B, 2, 19) at THRESHOLDS
    forged = counts[:, 1].sum(dim=1).double()                   # (B,)
    forged[forged == 0] = float("nan")
    iou = above[:, 1] / (forged[:, None] + above[:, 0])
    area = above[:, :, MIDDLE].sum(dim=1)
    inside = above[:, 1, MIDDLE] / area + 0 * forged            # NaN where none is forged
    return iou, area / counts.sum(dim=(1, 2)), inside


@torch.inference_mode()
def predict(net, videos, settings, limit=None, title="frames", degradation=None, keep=()):
    """Every frame of the videos through Eq. (1), in eval mode, which stays on.

    settings: "size", "mask", "batch_size", "workers", "device". limit, degradation: see
    data.TestFrames. Returns NumPy arrays over the n frames:
      score (n,) P(fake); video (n,) index into videos; has_mask (n,) bool
      iou, marked, inside of the map as map_numbers has them, and counts (videos, 2, STEPS),
      count_pixels of a video's frames that have a mask; the baseline, without a map, has none
    and what `keep` asks for: "masks", "marks" (n, P) bool, mask and map of 0.5 or more on a grid of
    about 100 x 100 pixels.
    """
    device = settings["device"]
    grid = max(1, settings["size"] // 75)
    mask_kind = None if isinstance(net, XceptionClassifier) else settings["mask"]
    frames = data.TestFrames(videos, settings["size"], mask_kind, limit, degradation)
    loader = torch.utils.data.DataLoader(
        frames, settings["batch_size"], num_workers=settings["workers"],
        pin_memory=device == "cuda", generator=torch.Generator())
    counts = torch.zeros(len(videos), 2, STEPS, dtype=torch.int64, device=device)
    found = collections.defaultdict(list)
    net.eval()
    for batch in data.each_batch(tqdm(loader, title, leave=False)):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        score, probs = scores_and_maps(net, batch["image"])
        found["score"].append(score)
        found["video"].append(batch["video"])
        found["has_mask"].append(batch["has_mask"])
        if "masks" in keep:
            found["masks"].append(batch["mask"][:, ::grid, ::grid].flatten(1).bool())
        if probs is None:                       # the baseline
            continue
        if "marks" in keep:
            found["marks"].append((probs >= 0.5)[:, ::grid, ::grid].flatten(1))
        pixels = count_pixels(probs, batch["mask"])
        for name, numbers in zip(("iou", "marked", "inside"), map_numbers(pixels)):
            found[name].append(numbers)
        pixels[~batch["has_mask"]] = 0
        counts.index_add_(0, batch["video"], pixels)
    # Nothing was copied back until here, so a GPU was never waited for.
    arrays = {name: torch.cat(values).cpu().numpy() for name, values in found.items()}
    arrays["counts"] = counts.cpu().numpy()
    require_finite(arrays["score"])
    return arrays


def require_finite(scores):
    if not np.isfinite(scores).all():
        data.stop("the scores are no finite numbers: weights or BatchNorm statistics are damaged")


def summarize(found, videos, method=None):
    """The numbers of a row: all videos, or one method's fakes against all real ones; None = n/a."""
    labels = np.array([video.label for video in videos])
    wanted = np.array([video.label == 0 or method in (None, video.method) for video in videos])
    frames = wanted[found["video"]]                             # (n,) bool
    is_fake = labels[found["video"]] == 1                       # (n,) bool, as frames
    scores = found["score"][frames]                             # (m,) of the wanted frames
    video = found["video"][frames]
    means, indices = video_scores(scores, video)
    row = {"videos": len(indices), "real_videos": int((labels[indices] == 0).sum()),
           "frames": len(scores), "real_frames": int((frames & ~is_fake).sum())}
    levels = {"frame": (labels[video], scores), "video": (labels[indices], means)}
    for level, (truth, score) in levels.items():
        row[f"{level}_acc"] = accuracy(truth, score)
        row[f"{level}_auc"] = auc(truth, score)
        row[f"{level}_acc_real"] = accuracy(truth, score, of=0)
        row[f"{level}_acc_fake"] = accuracy(truth, score, of=1)
    row["masked_frames"] = int((frames & found["has_mask"]).sum())
    if "iou" in found:
        row["iou_by_threshold"] = [mean_or_none(column) for column in found["iou"][frames].T]
        row["iou"] = row["iou_by_threshold"][MIDDLE]
        row["inside"] = mean_or_none(found["inside"][frames])
        row["marked_real"] = mean_or_none(found["marked"][frames & ~is_fake])
        row["pixel_auc"] = auc_of_counts(*found["counts"][wanted].sum(axis=0))      # (2, STEPS)
    else:                                       # the baseline has no map
        row.update(dict.fromkeys(("iou", "iou_by_threshold", "inside", "marked_real", "pixel_auc")))
    if "masks" in found:
        row.update(constant_mask(found["masks"][frames & is_fake]))
    return row


def best_threshold(row):
    """The threshold at which the map of a row of summarize fits the masks best; 0.5 without any."""
    ious = row["iou_by_threshold"] or [None]    # the baseline has none
    return 0.5 if None in ious else float(THRESHOLDS[np.argmax(ious)])


def mean_or_none(values):
    """The mean of the numbers that are neither None nor NaN; None without any."""
    values = np.asarray(values, float)          # None becomes NaN
    count = int((~np.isnan(values)).sum())
    return float(np.nansum(values) / count) if count else None


def overlap(first, second):
    """Mean IoU of (n, P) bool masks and (n, P) others, or one (P,); None where all are empty."""
    union = (first | second).sum(axis=1)                        # (n,) pixels
    both = (first & second).sum(axis=1)
    return mean_or_none(both[union > 0] / union[union > 0])


def constant_mask(forged):
    """What one and the same mask reaches on (n, P) bool masks: {"iou_constant", ...}.

    The best of the level sets of their mean, and the mean as a map. Taken from the very frames it
    is compared on, it knows all but the single frame: a map that does not beat it has found nothing
    in the picture.
    """
    forged = forged[forged.any(axis=1)]         # as for the map: frames with something to find
    if len(forged) == 0:
        return dict.fromkeys(("iou_constant", "inside_constant", "pixel_auc_constant"))
    share = forged.mean(axis=0)                 # of the frames, how many are forged at a pixel
    level_sets = [share > level for level in (0, *THRESHOLDS) if share.max() > level]   # (P,)
    ious = [overlap(forged, level_set) for level_set in level_sets]
    best = level_sets[np.argmax(ious)]
    shares, pixels = np.unique(share, return_counts=True)       # how many pixels have each share
    return {"iou_constant": max(ious), "inside_constant": float(forged[:, best].mean()),
            "pixel_auc_constant": auc_of_counts(pixels * (1 - shares), pixels * shares)}


def evaluate(net, settings, dataset, root, quality, split="test", limit=None):
    """One network on one data set, quality (None: Celeb-DF) and split: a result in --json."""
    videos = data.require_videos(dataset, root, quality, split, settings["mask"])
    title = f"{dataset} {quality or ''} {split}"
    found = predict(net, videos, settings, limit, title, keep=("masks",))       # of n frames
    names = dict.fromkeys(video.method for video in videos if video.label)
    methods = {name: summarize(found, videos, name) for name in names}
    labels = np.array([video.label for video in videos])[found["video"]]        # (n,)
    return {"data": dataset, "quality": quality, "split": split, "limit": limit,
            "mask": settings["mask"], "threshold": settings["threshold"],
            **summarize(found, videos),
            "iou_constant_each": mean_or_none([row["iou_constant"] for row in methods.values()]),
            "methods": methods,
            "intervals": intervals(labels, found["score"], found["video"])}


# ---------------------------------------------------------------- tables
COLUMNS = {"frames": "frames", "videos": "videos", "frame_acc": "Acc frame",
           "frame_auc": "AUC frame", "video_acc": "Acc video", "video_auc": "AUC video",
           "frame_acc_real": "Acc real", "frame_acc_fake": "Acc fake"}      # of frames
MAP_COLUMNS = {"masked_frames": "frames", "iou": "IoU", "iou_val": "IoU, val's threshold",
               "iou_constant": "IoU of a constant mask", "iou_constant_each": "one a method",
               "pixel_auc": "AUC pixel", "pixel_auc_constant": "of the mean mask",
               "inside": "marked and forged", "inside_constant": "of a constant mask",
               "marked_real": "marked of reals"}


def show(value):
    """A cell of a table: text and whole numbers as they are, others to three digits."""
    if value is None:
        return "n/a"
    return str(value) if isinstance(value, (int, str)) else f"{value:.3f}"


def markdown(head, columns, rows):
    """rows [(first cells, numbers)]; head: the first cells' titles; columns {key: title}."""
    lines = [[*head, *columns.values()], ["---"] * (len(head) + len(columns))]
    for cells, numbers in rows:
        lines.append([*cells, *(show(numbers[key]) for key in columns)])
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


def table(result):
    """A result of evaluate -> Markdown tables of the decision and of the map, and notes."""
    name = f"{test_set(result)} {result['split']}"
    place = round(20 * result["threshold"]) - 1     # in THRESHOLDS, of the best one on val
    decisions = []
    maps = []
    for method, row in {"all": result, **result["methods"]}.items():
        decisions.append(((name, method), row))
        if row["iou"] is not None:
            row = {"iou_constant_each": row["iou_constant"], **row,
                   "iou_val": row["iou_by_threshold"][place]}
            maps.append(((name, method), row))
    lines = [markdown(("test set", "fakes"), COLUMNS, decisions)]
    if result["intervals"]:
        spans = [f"{COLUMNS[column]} {low:.3f} to {high:.3f}"
                 for column, (low, high) in result["intervals"].items()]
        lines.append(f"{name}, 95 % intervals over videos: {', '.join(spans)}")
    if maps:
        lines += ["", markdown(("test set", "fakes"), MAP_COLUMNS, maps)]
        lines.append("A map finds forgeries as far as it beats a constant mask: the best level set "
                     "of the mean mask of a row's frames, or one a method, from these very frames.")
    return "\n".join(lines)


TABLE_COLUMNS = {"frame_acc": "Acc frame", "frame_auc": "AUC frame", "video_acc": "Acc video",
                 "video_auc": "AUC video", "iou": "IoU", "iou_constant_each": "constant masks",
                 "marked_real": "marked of reals", "agreement": "agreement of maps"}


def rows_of(run):
    """An entry of --json -> ((model, trained on, tested on), settings, numbers) of each row."""
    settings = run["settings"]
    model = model_name(settings)
    trained = f"{settings['data']} {settings['quality']}"
    tests = []
    for result in run["results"]:
        tested = f"{test_set(result)} {result['split']}"
        if result["limit"]:
            tested += f", {result['limit']} frames a video"
        if result["mask"] != settings["mask"]:
            tested += f", {result['mask']} masks"
        tests.append(tested)
        yield (model, trained, tested), settings, result
    for point in run.get("sweep", []):          # of the first test set
        tested = f"{tests[0]}, {point['operation']} {point['strength']:.3g}"
        yield (model, trained, tested), settings, point


def tables(paths):
    """Files of --json -> a Markdown row for each model, training and test set, in percent.

    Runs that differ in nothing but the seed share a row: mean and standard deviation over runs.
    Other settings that differ between the files stand beside the model's name.
    """
    rows = []
    for path in paths:
        try:
            for run in json.loads(Path(path).read_text()):
                rows += rows_of(run)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            data.stop(f"{path} holds no results ({type(error).__name__}); make them with --json")
    varied = []
    for key in ("iterations", "batch_size", "width", "size", "lr", "lambdas", "aux", "pretrained"):
        if len({str(settings.get(key)) for _, settings, _ in rows}) > 1:
            varied.append(key)
    groups = collections.defaultdict(dict)      # {row's first cells: {(seed, folder): numbers}}
    for (model, trained, tested), settings, numbers in rows:
        model = ", ".join([model, *(f"{key} {settings.get(key)}" for key in varied)])
        groups[model, trained, tested][settings.get("seed"), settings.get("out")] = numbers
    lines = []
    for key, runs in groups.items():
        cells = {}
        for column in TABLE_COLUMNS:
            values = [numbers.get(column) for numbers in runs.values()]
            percent = [100 * value for value in values if value is not None]
            cells[column] = f"{np.mean(percent):.2f}" if percent else None
            if len(percent) > 1:
                cells[column] += f" ± {np.std(percent, ddof=1):.2f}"
        lines.append(((*key, str(len(runs))), cells))
    return markdown(("model", "trained on", "tested on", "runs"), TABLE_COLUMNS, lines)


# ---------------------------------------------------------------- drawing
def grey(values):
    """(S, S) of 0..1 -> a Pillow image, 1 = white."""
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def save_png(image, path):
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


def matplotlib_figure():
    """The class of figures of matplotlib, an optional package; None and a line without it."""
    try:
        from matplotlib.figure import Figure    # without pyplot: no screen, nothing to close
    except ImportError:
        Figure = None
        print("diagrams are not drawn: they need an optional package, pip install matplotlib")
    return Figure


def save_figure(figure, path):
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(f"drawn: {path}")


def panel(net, batch, settings, path):
    """A PNG of what training sees: four fakes and two reals of a batch. White = fake."""
    labels = batch["label"].numpy()
    net.eval()
    rows = []
    for k in [*np.flatnonzero(labels)[:4], *np.flatnonzero(labels == 0)[:2]]:
        pair = [Image.fromarray(batch[name][k].permute(1, 2, 0).numpy())
                for name in ("clean", "degraded")]
        _, maps = judge(net, pair, settings)
        images = [*pair, grey(batch["mask"][k].numpy()), *map(grey, maps)]
        rows.append(("fake" if labels[k] else "real", images))
    columns = ("clean", "degraded", "mask", "map of clean", "map of degraded")
    sheet(f"training batch, {path.stem}", columns, rows).save(path)


def training_curves(folder):
    """curves.png of a run's log.jsonl: the losses through the stages, and what validation gave."""
    Figure = matplotlib_figure()
    whole, _, _ = (folder / "log.jsonl").read_text().rpartition("\n")       # no torn last line
    lines = [json.loads(line) for line in whole.splitlines()]
    steps = [line for line in lines if "loss" in line]
    checks = [line for line in lines if "val" in line]
    if Figure is None or not steps:
        return
    figure = Figure(figsize=(12, 4))
    left, right = figure.subplots(1, 2)
    for name in ("loss", "li", "cls", "seg", "aux"):
        points = [(line["iteration"], line[name]) for line in steps if name in line]
        if points:
            left.plot(*zip(*points), ".", markersize=3, label=name)
    iterations = [line["iteration"] for line in checks]
    for name in ("frame_auc", "video_auc", "iou"):
        right.plot(iterations, [line["val"][name] for line in checks], label=name)
    middle = [line["iteration"] for line in steps if line["stage"] == 2]
    if middle:
        left.axvspan(middle[0], middle[-1], color="0.9", label="stage 2")
    left.set(title="training losses", xlabel="iteration", yscale="log")
    right.set(title="validation", xlabel="iteration", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend()
    save_figure(figure, folder / "curves.png")


# ---------------------------------------------------------------- robustness: a sweep
SWEEP = (       # name, operation, its argument, strengths from none to much, the training's range
    ("JPEG quality", data.jpeg, "quality", (100, 80, 60, 40, 20, 5), data.JPEG_QUALITY),
    ("resized to this share of the side", data.resize, "fraction", (1.0, 0.8, 0.6, 0.4, 0.2),
     data.RESIZE_SIDE),
    ("blur sigma, px at 299 px", data.blur, "sigma", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0),
     data.BLUR_SIGMA),
)
SWEEP_COLUMNS = {"frame_auc": "AUC frame", "video_auc": "AUC video", "iou": "IoU",
                 "agreement": "IoU with the map of the frame as it is"}


def sweep(net, settings, videos, limit=None):
    """One network while the pictures get worse: [{"operation", "strength", "frame_auc", ...}]."""
    as_it_is = predict(net, videos, settings, limit, "as it is", keep=("marks",))
    fakes = np.array([video.label for video in videos])[as_it_is["video"]] == 1     # (n,) bool
    rows = []
    for name, operation, argument, strengths, _ in SWEEP:
        for strength in strengths:
            # No lambda: a loading process may have to unpickle it.
            degradation = functools.partial(operation, **{argument: strength})
            title = f"{name} {strength:.3g}"
            found = predict(net, videos, settings, limit, title, degradation, keep=("marks",))
            row = {"operation": name, "strength": strength, **summarize(found, videos)}
            row["agreement"] = None             # the baseline has no map
            if "marks" in found:
                row["agreement"] = overlap(found["marks"][fakes], as_it_is["marks"][fakes])
            rows.append({key: row[key] for key in ("operation", "strength", *SWEEP_COLUMNS)})
    return rows


def sweep_plot(figure, title, sweeps, path):
    """sweeps [(name, rows of sweep)] -> a diagram for each operation; worse to the right."""
    all_axes = figure.subplots(1, len(SWEEP))
    for axes, (operation, _, _, strengths, trained) in zip(all_axes, SWEEP):
        axes.axvspan(*trained, color="0.92", label="range of the training's degraded copies")
        for k, (name, rows) in enumerate(sweeps):
            for column, style in (("frame_auc", "-"), ("iou", "--")):
                values = [row[column] for row in rows if row["operation"] == operation]
                if None not in values:          # the baseline has no IoU
                    label = f"{name}: {column}"
                    axes.plot(strengths, values, style, color=f"C{k}", label=label)
        axes.set(title=f"{title}: {operation}", xlim=(strengths[0], strengths[-1]), ylim=(0, 1.02))
    all_axes[0].legend(fontsize="small")
    save_figure(figure, path)


# ---------------------------------------------------------------- Sec. IV-G: Grad-CAM
def grad_cam(net, images):
    """What spoke for fake: (B, 3, S, S) in [-1, 1] -> (B, S, S) float32 in 0..1, the hottest is 1.

    Each channel of a feature map is weighted by the mean gradient of the logit of the likeliest
    forgery. All 0 where nothing speaks for fake.
    READING Sec. IV-G: layer and class are not said. X_I (512 x 37 x 37), from which the map and the
    decision are both made; the baseline's last map (2048 x 10 x 10), which is all it decides by.
    """
    kept = []

    def keep(module, inputs, output):
        # Of bn4 its output, which F.relu(inplace=True) then turns into the map that is wanted.
        kept.append(output[0] if isinstance(output, tuple) else output)

    layer = net.bn4 if isinstance(net, XceptionClassifier) else net.ocr
    with layer.register_forward_hook(keep):
        output = net(images)
    cls_logits = output if torch.is_tensor(output) else output.cls_logits
    fake_logits = cls_logits[:, 1:].max(dim=1).values                       # (B,)
    gradient, = torch.autograd.grad(fake_logits.sum(), kept[0])             # (B, 512, 37, 37)
    weights = gradient.mean(dim=(2, 3), keepdim=True)                       # (B, 512, 1, 1)
    heat = (weights * kept[0]).sum(dim=1, keepdim=True).relu()              # (B, 1, 37, 37)
    heat = F.interpolate(heat.detach().float(), images.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def heat_colour(image, heat):
    """The Pillow picture (S, S) under its heat (S, S) in 0..1, blue (cold) to red (hot)."""
    ramp = Image.merge("RGB", [grey(1.5 - np.abs(4 * heat - peak)) for peak in (3, 2, 1)])
    return Image.blend(image, ramp, 0.45)


# ---------------------------------------------------------------- Figures 3 to 8
SHORT = {"Deepfakes": "DF", "FaceSwap": "FS", "Face2Face": "F2F", "NeuralTextures": "NT"}


def examples(videos, size, number=0):
    """The middle frame of a real face, of its fakes' source, and of the fakes made on it.

    Returns {"target", "source": face}, {"DF", "FS", ...: (fake, real)}; number: of which real
    video; {}, {} where there are no more.
    """
    middle = {(video.method, video.id): video.frames[len(video.frames) // 2] for video in videos}
    fakes = {key: frame for key, frame in middle.items()
             if key[0] != "real" and data.twin_path(frame).exists()}
    ids = list(dict.fromkeys(pair_id for _, pair_id in fakes))  # <target>_<source>
    if number >= len(ids):
        return {}, {}
    pairs = {}
    for (method, pair_id), frame in fakes.items():
        if pair_id == ids[number]:
            pairs[SHORT[method]] = [data.read_face(path, size)
                                    for path in (frame, data.twin_path(frame))]
    people = {"target": next(iter(pairs.values()))[1]}
    source = ("real", ids[number].split("_")[1])
    if source in middle:
        people["source"] = data.read_face(middle[source], size)
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
    rows = [("real", [real]), (short, [fake])]                  # the original comes first
    for column in columns[1:]:
        for _, images in rows:
            image = images[0]
            for letter in column.split("&"):
                image = operations[letter](image)
            images.append(image)
    return sheet(f"Fig. 4: R resized to {data.RESIZE_SIDE[0]:.2f} and back, C JPEG "
                 f"{data.JPEG_QUALITY[0]}, G blur {data.BLUR_SIGMA[1]} px; {where}", columns, rows)


def pooled_features(net, videos, settings, limit=None):
    """What the last layers read of n frames: (n, C) float32, pooled Z or the baseline's last map.

    Also the index (n,) of each frame's video.
    """
    pooled = []                                 # (B, C) of each batch
    last_layers = net.fc if isinstance(net, XceptionClassifier) else net.f_mlp.f_mlp
    with last_layers.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0])):
        found = predict(net, videos, settings, limit, "t-SNE")
    return torch.cat(pooled).float().cpu().numpy(), found["video"]


def figure_5(figure, runs, videos_of, path):
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
    grid = figure.subplots(len(runs), len(videos_of), squeeze=False)
    for row, (name, net, settings) in zip(grid, runs):
        for axes, (quality, videos) in zip(row, videos_of.items()):
            features, video = pooled_features(net, videos, settings, limit=4)
            tsne = TSNE(init="pca", random_state=0, perplexity=min(30, (len(features) - 1) / 3))
            points = tsne.fit_transform(features)
            method = np.array([videos[index].method for index in video])
            for which, colour in colours.items():
                axes.scatter(*points[method == which].T, s=6, c=colour, label=which)
            axes.set(title=f"{name}: {settings['quality']}-{quality}", xticks=[], yticks=[])
    grid[0][0].legend()
    save_figure(figure, path)


def figure_6(where, runs, people, fakes):
    """Fig. 6: target, source and fakes: input, SSIM map, each network's map and mask.

    READING Fig. 6: the mask's threshold is not said: 0.5, where the larger logit decides.
    """
    pairs = {**{name: (face, face) for name, face in people.items()}, **fakes}
    faces = [face for face, _ in pairs.values()]
    rows = [("input", faces), ("SSIM map", [ssim_image(*pair) for pair in pairs.values()])]
    for name, net, settings in runs:
        _, maps = judge(net, faces, settings)
        if maps[0] is not None:
            rows.append((f"{name}: map", [grey(probs) for probs in maps]))
            rows.append((f"{name}: mask", [grey(probs >= 0.5) for probs in maps]))
    return sheet(f"Fig. 6: segmentation, {where}", list(pairs), rows)


def figures_7_and_8(title, runs, fakes):
    """Figs. 7, 8: input, SSIM, each network's Grad-CAM in grey, then over the picture."""
    faces = [fake for fake, _ in fakes.values()]
    rows = [("input", faces), ("SSIM", [ssim_image(*pair) for pair in fakes.values()])]
    over = []
    for name, net, settings in runs:
        images = torch.stack([data.to_tensor(face) for face in faces]).to(settings["device"])
        heats = grad_cam(net, to_input(images)).cpu().numpy()
        name = f"{name} ({settings['quality']})"
        rows.append((f"grey map, {name}", [grey(heat) for heat in heats]))
        over.append((f"Grad-CAM, {name}", list(map(heat_colour, faces, heats))))
    return sheet(title, list(fakes), rows + over, side=104)


def draw_figures(runs, dataset, root, qualities, split, folder):
    """Figs. 3 to 8 as PNG; 3 and 4 need no network. runs: [(name, network, settings)]."""
    where = f"{dataset} {qualities[0]} {split}"
    size, mask = (runs[0][2]["size"], runs[0][2]["mask"]) if runs else (299, "ssim")
    videos_of = {name: data.require_videos(dataset, root, name, split, mask) for name in qualities}
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
    across = {f"{name} {quality}": pair for quality, videos in videos_of.items()
              for name, pair in examples(videos, size)[1].items()}
    title = f"Fig. 8: Grad-CAM across qualities, {dataset} {split}"
    save_png(figures_7_and_8(title, runs, across), folder / "fig8_gradcam_quality.png")
    Figure = matplotlib_figure()
    if Figure:
        side = (5 * len(videos_of), 5 * len(runs))
        figure_5(Figure(figsize=side), runs, videos_of, folder / "fig5_tsne.png")


# ---------------------------------------------------------------- one picture, one video
@torch.inference_mode()
def judge(net, crops, settings):
    """Face crops (Pillow RGB), one by one -> [P(fake)], [its map (S, S), None for the baseline]."""
    size = settings["size"]
    scores = []
    maps = []
    for crop in crops:                          # a video may have 500: not in one batch
        image = data.to_tensor(crop.resize((size, size), Image.Resampling.BILINEAR))
        score, probs = scores_and_maps(net, image[None].to(settings["device"]))
        scores.append(score.item())
        maps.append(None if probs is None else probs[0].cpu().numpy())
    require_finite(scores)
    return scores, maps


def report_face(net, settings, name, frames, boxes, path):
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


def frames_and_boxes(name, args, detect):
    """Frames [Pillow RGB], boxes [(x, y, side)]; ValueError says why there is nothing to judge."""
    if args.image:
        frames = {0: np.asarray(data.read_image(name))}
    else:
        wanted = data.evenly_spread(range(data.count_frames(name)), args.frames or 100)
        frames = dict(data.read_frames(name, wanted))
        if len(frames) < len(wanted):
            raise ValueError(f"{name} is damaged: download it again")
    if detect:
        boxes = data.find_boxes(frames.items(), detect)
        if not boxes:
            raise ValueError(f"{name}: no face found; is it a crop already? Then --crop none")
    else:
        height, width = frames[0].shape[:2]
        if height != width:
            raise ValueError(f"{name} is not square, so no face crop; leave out --crop none")
        boxes = {0: (0, 0, width)}
    return ([Image.fromarray(frame) for frame in frames.values()],
            [box[:3] for box in boxes.values()])


def report_faces(net, settings, args, folder):
    """--image and --video. What cannot be judged is named; then the exit status is 2."""
    detect = None if args.crop == "none" else data.load_detector()
    failed = False
    for name in args.image or [args.video]:
        try:
            frames, boxes = frames_and_boxes(name, args, detect)
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            path = Path(name).absolute()
            drawn = folder / f"{path.parent.name}_{path.name}_map.png"
            report_face(net, settings, name, frames, boxes, drawn)
    print("A score is no proof: it tells how much a face resembles the fakes this network was "
          f"trained on ({settings['data']}).")
    if failed:
        data.stop("not everything could be judged, for the reasons above")


# ---------------------------------------------------------------- command line
def parse_arguments(argv):
    parser = data.new_parser("Accuracy and AUC by frame and video, localization, tables, figures.")
    flag = parser.add_argument
    flag("--checkpoint", nargs="+", default=[], help="best.pt of one or several runs of train.py")
    flag("--data", nargs="+", choices=list(data.ROOTS), default=["ff++"], help="default ff++")
    flag("--root", type=data.some_path, nargs="+", help="of each data set, default datasets/...")
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
    flag("--json", type=data.some_path, help="also write the numbers to this file")
    flag("--figures", type=data.some_path, metavar="DIR",
         help="also Figs. 3 to 8 as PNG; 3 and 4 need no --checkpoint")
    flag("--sweep", action="store_true",
         help="also AUC and IoU as JPEG, resizing and blur grow, at the first --quality")
    flag("--tables", nargs="+", metavar="JSON", help="instead: a row for each run of these files")
    flag("--image", nargs="+", help="instead: P(fake) of the largest face in each picture")
    flag("--video", help="instead: P(fake) of this video, the mean over --frames (100) frames")
    flag("--crop", choices=["auto", "none"], default="auto", help="none: --image is a face crop")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        data.stop("--device cuda, but PyTorch finds no GPU here; use --device cpu")
    if not args.checkpoint and not args.tables and (not args.figures or args.sweep or args.json):
        data.stop("--checkpoint FILE is missing")
    if sum(map(bool, (args.image, args.video, args.tables))) > 1:
        data.stop("--image, --video and --tables cannot be given together")
    if (args.image or args.video) and len(args.checkpoint) != 1:
        data.stop("--image and --video take one --checkpoint")
    if args.video and (args.crop == "none" or (args.frames or 0) > 500):
        data.stop("a --video takes at most 500 --frames, and no --crop none")
    if args.figures and not (args.image or args.video) and args.data[0] not in data.TRAINABLE:
        data.stop("--figures needs ff++ or demo first in --data: real and fake frames in pairs")
    if args.root is not None and len(args.root) != len(args.data):
        data.stop(f"give one --root for each --data: {len(args.data)}, not {len(args.root)}")
    return args


def load_runs(args):
    """The checkpoints: [(name, network, settings of this call)], [their entries in --json]."""
    runs = []
    report = []
    for path in args.checkpoint:
        try:
            net, trained = load_network(path, args.device)
        except ValueError as error:
            data.stop(str(error))
        name = model_name(trained)
        if len(args.checkpoint) > 1:
            name += f", {Path(path).absolute().parent.name}"
        settings = {**trained, "device": args.device, "workers": args.workers,
                    "batch_size": args.batch_size, "mask": args.mask or trained["mask"]}
        runs.append((name, net, settings))
        report.append({"settings": trained, "results": []})
    if args.figures and len({settings["size"] for _, _, settings in runs}) > 1:
        data.stop("these networks take crops of different sizes; draw figures in separate calls")
    return runs, report


def find_tests(args, runs):
    """[(data set, root, quality)], after all of them were found there and whole."""
    tests = []
    for name, root in zip(args.data, args.root or [data.ROOTS[name] for name in args.data]):
        for quality in [None] if name.startswith("celeb") else args.quality:
            tests.append((name, root, quality))
    # Masks of one kind are opened once for all networks; the baseline needs none.
    kinds = {(settings["mask"], settings["model"] == "lisiam") for _, _, settings in runs}
    for test in tests:
        for mask, is_used in kinds or {(args.mask or "ssim", True)}:
            videos = data.require_videos(*test, args.split, mask)
            data.stop_if_broken(videos, mask if is_used else None, args.workers or 1)
    return tests


def sweep_all(runs, report, test, args, path):
    """--sweep: every network on the first test set while it gets worse; a table and a diagram."""
    where = f"{test_set(report[0]['results'][0])} {args.split}"
    for (name, net, settings), entry in zip(runs, report):
        videos = data.require_videos(*test, args.split, settings["mask"])
        entry["sweep"] = sweep(net, settings, videos, args.frames)
        rows = [((row["operation"], f"{row['strength']:.3g}"), row) for row in entry["sweep"]]
        print(f"{name}, {where}")
        print(markdown(("operation", "strength"), SWEEP_COLUMNS, rows), flush=True)
    if args.json:                               # once more, now with the sweep
        data.write_whole(args.json, json.dumps(report, indent=1).encode())
    Figure = matplotlib_figure()
    if Figure:
        sweeps = [(name, entry["sweep"]) for (name, _, _), entry in zip(runs, report)]
        sweep_plot(Figure(figsize=(18, 4.5)), where, sweeps, path)


def main(argv=None):
    args = parse_arguments(argv)
    if args.tables:
        print(tables(args.tables))
        return
    runs, report = load_runs(args)
    folder = args.figures or Path(args.checkpoint[0]).parent
    for place in (folder, args.json.parent if args.json else folder):
        place.mkdir(parents=True, exist_ok=True)            # what cannot be is said before the work
    if args.image or args.video:
        _, net, settings = runs[0]
        report_faces(net, settings, args, folder)
        return
    tests = find_tests(args, runs)
    for (name, net, settings), entry, path in zip(runs, report, args.checkpoint):
        print(f"{name}, trained on {settings['data']} {settings['quality']} ({path})")
        for test in tests:
            result = evaluate(net, settings, *test, args.split, args.frames)
            entry["results"].append(result)
            print(f"{table(result)}\n", flush=True)
    if args.json:
        data.write_whole(args.json, json.dumps(report, indent=1).encode())
    if args.sweep:
        sweep_all(runs, report, tests[0], args, folder / "sweep.png")
    if args.figures:
        draw_figures(runs, *tests[0][:2], args.quality, args.split, folder)


if __name__ == "__main__":
    data.run(main, "what is printed and drawn stays")
