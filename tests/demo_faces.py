"""
Draws made-up faces and four forgeries of each, in FaceForensics++'s layout.

    python tests/demo_faces.py ROOT [--seed N] [--workers N]

What is drawn, and why. LiSiam's premise is that slight traces of a forgery are easily removed by
compression, while the forged place stays what it was. The demo shows what the invariance loss does
with this. So each forgery leaves two traces, besides those of its method:
- One is easy to learn and does not last. Every camera lays a grid over its frames: a checkerboard
  of one pixel, a crude model of the periodic pattern that demosaicing leaves in photographs. In a
  forged part the checkerboard is shifted by one pixel. Strong JPEG, resizing and blur erase it.
- The other is harder to learn and lasts: each forged part has a colour cast, another one each time.
The grid lies at the same pixels in every frame, like a watermark, and the strengths were tuned
until a network takes it as a shortcut. So the demo shows the mechanism of the loss. It proves
nothing about real forgeries, whose lasting trace may be another, or may not exist.

Everything else keeps shortcuts away. Faces stand anywhere, and every method forges any part of
them, so that no constant mask fits. People, walls and cameras differ more than a forgery changes,
so that the colour and sharpness of a whole frame say less than the forged part (frame AUC about
.72). Outside its forged part a fake equals its real frame (at c0, bit for bit), as SSIM masks
presume.
"""

import argparse
import io
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

GRID = (8, 12)  # grey levels of a camera's grid, from and to; 0, 0 takes the first trace away
CAST = 36       # grey levels of a forgery's colour cast; 0 takes the second trace away, but not
                # the wrong skin colours of Deepfakes and FaceSwap
SIZE = 107      # side of a frame in px, about a third of the paper's 299
CHECKS = 2 * (np.indices((SIZE, SIZE)).sum(0) % 2)[..., None] - 1       # -1 and 1, in turn
QUALITIES = {"c0": None, "c23": (0.3, 88), "c40": (0.5, 30)}     # px of blur, level of JPEG
METHODS = {     # resolution of the face that a method makes, and how it is enlarged again
    "Deepfakes": (0.2, Image.Resampling.BICUBIC),       # smooth, without pores
    "FaceSwap": (0.33, Image.Resampling.NEAREST),       # in blocks
    "Face2Face": (0.6, Image.Resampling.BICUBIC),
    "NeuralTextures": (1, Image.Resampling.BICUBIC),
}
# People, and frames of each. 0 and 1, 2 and 3, ... are the pairs; nobody is in two splits.
SPLITS = {"train": (range(250), 2), "val": (range(250, 268), 2), "test": (range(268, 328), 3)}

# Portraits are drawn upright on a canvas, then tilted, reduced and set into the frame. (0, 0) lies
# between eyes and nose; the chin is at y = 1, the cheeks at about x = -0.7 and 0.7.
UNIT = 60       # canvas px of a length of 1
MIDDLE = 210    # canvas px of (0, 0), with as much again beyond
REGIONS = [     # what a forgery may replace: x, y, half its width, half its height
    (0, 0.1, 0.66, 0.8), (-0.34, 0.1, 0.38, 0.76), (0.34, 0.1, 0.38, 0.76),         # face, halves
    (0, -0.2, 0.66, 0.38), (-0.32, -0.2, 0.38, 0.38), (0.32, -0.2, 0.38, 0.38),     # eyes
    (-0.38, 0.35, 0.34, 0.4), (0.38, 0.35, 0.34, 0.4),                              # cheeks
    (0, 0.1, 0.34, 0.46), (0, 0.55, 0.5, 0.4),                                      # nose, mouth
]


# ---------------------------------------------------------------- who, and how in this frame
def to_bytes(pixels):
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def new_wall(rng):
    """Things of many colours, in focus or not."""
    wall = np.zeros((SIZE, SIZE, 3)) + rng.uniform(40, 215)
    for _ in range(rng.integers(4, 24)):
        x, y = rng.integers(0, SIZE, 2)
        width, height = rng.integers(4, 54, 2)
        wall[y:y + height, x:x + width] = rng.uniform(40, 215) + rng.normal(0, 16, 3)
    return Image.fromarray(to_bytes(wall)).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 4)))


def new_person(seed, number):
    """What stays the same in video `number`: the person, the wall, the light, the camera."""
    rng = np.random.default_rng([seed, number, 0])
    hairs = np.array([(28, 22, 20), (62, 40, 26), (110, 72, 40), (176, 132, 76), (150, 148, 146)])
    return {
        "skin": np.array([104, 68, 48]) + rng.uniform(0, 130) + rng.normal(0, 6, 3),
        "hair": rng.choice(hairs),
        "shirt": rng.uniform(20, 230, 3),
        "iris": rng.uniform(40, 140, 3),
        "head": rng.uniform(0.66, 0.8),         # half its width
        "eye": rng.uniform(0.13, 0.19),         # half its width
        "nose": rng.uniform(0.16, 0.28),        # how far down it reaches
        "wall": new_wall(rng),
        "light": rng.uniform(-0.3, 0.3),        # from the left or from the right
        "pores": rng.uniform(0.1, 0.2),         # how rough the skin is
        "focus": rng.uniform(0.2, 1.3),         # px of blur
        "grain": rng.uniform(0.5, 1.2),         # in grey levels
        "grid": rng.uniform(*GRID),             # in grey levels; each camera has its own
    }


def new_pose(rng):
    """Any size, tilt and place that leave the face whole; the side of the frame is 1."""
    scale = rng.uniform(0.28, 0.42)
    x = rng.uniform(0.9 * scale, 1 - 0.9 * scale)
    y = rng.uniform(0.95 * scale, 1 - 1.05 * scale)
    return {"scale": scale, "x": x, "y": y, "roll": rng.uniform(-0.45, 0.45)}


def new_expression(rng):
    """How far the mouth is open, how wide it is, how far the eyes are open."""
    return rng.uniform(0, 0.18), rng.uniform(0.18, 0.34), rng.uniform(0.03, 0.12)


# ---------------------------------------------------------------- a real frame
def box(x, y, half_width, half_height):
    """Left, top, right and bottom on the canvas, as ImageDraw wants them."""
    corners = x - half_width, y - half_height, x + half_width, y + half_height
    return [MIDDLE + UNIT * corner for corner in corners]


def draw_person(who, expression, rng):
    """A portrait on the canvas, RGBA, transparent where the wall will show."""
    image = Image.new("RGBA", (2 * MIDDLE, 2 * MIDDLE))

    def spot(x, y, half_width, half_height, colour):
        area = box(x, y, half_width, half_height)
        ImageDraw.Draw(image).ellipse(area, tuple(to_bytes(colour).tolist()))

    skin, hair = who["skin"], who["hair"]
    mouth, smile, lid = expression
    spot(0, -0.2, who["head"] + 0.12, 1.2, hair * 0.85)         # from back to front
    spot(0, 3.4, 2.1, 2.0, who["shirt"])
    spot(0, 0.9, 0.36, 0.7, skin * 0.75)
    spot(0, -0.1, who["head"], 1.0, hair)
    spot(0, 0.12, who["head"] * 0.95, 0.88, skin)
    spot(0.04, 0, 0.06, who["nose"] + 0.02, skin * 0.85)
    for side in (-1, 1):
        spot(side * 0.31, -0.17, who["eye"] + 0.03, lid + 0.04, skin * 0.55)
        spot(side * 0.31, -0.15, who["eye"], lid, np.array([238, 234, 228]))
        spot(side * 0.31, -0.15, min(0.08, lid), min(0.08, lid), who["iris"])
        spot(side * 0.31, -0.15, min(0.04, lid), min(0.04, lid), np.array([12, 10, 10]))
        spot(side * 0.31, -0.35 - lid, 0.2, 0.04, hair * 0.75)
        spot(side * 0.07, who["nose"], 0.045, 0.025, skin * 0.45)
    spot(0, 0.55, smile, mouth + 0.06, skin * np.array([0.86, 0.58, 0.58]))
    spot(0, 0.55, smile * 0.85, mouth, np.array([58, 20, 22]))
    spot(0, 0.55 - mouth / 2, smile * 0.6, mouth * 0.4, np.array([226, 220, 208]))

    # Light from one side on a round head, and pores. Each drawing has new pores.
    y, x = (np.mgrid[:2 * MIDDLE, :2 * MIDDLE] - MIDDLE) / UNIT
    roundness = np.sqrt(np.clip(1 - (x / 0.95) ** 2 - (y / 1.3) ** 2, 0, 1))
    pores = who["pores"] * rng.normal(size=x.shape)
    light = 0.75 + (0.35 + pores) * roundness + who["light"] * np.clip(x, -1, 1)
    pixels = np.array(image, dtype=np.float32)
    pixels[..., :3] *= light[..., None]
    return Image.fromarray(to_bytes(pixels))


def place(image, pose):
    """What is on the canvas, tilted, reduced and moved to its place in the frame."""
    side = 2 * SIZE                 # twice too large at first, for smooth outlines
    zoom = UNIT / (pose["scale"] * side)
    cos, sin = zoom * np.cos(pose["roll"]), zoom * np.sin(pose["roll"])
    x, y = side * pose["x"], side * pose["y"]
    # Pillow asks where on the canvas a pixel of the frame comes from.
    origin = cos, sin, MIDDLE - cos * x - sin * y, -sin, cos, MIDDLE + sin * x - cos * y
    kernel = Image.Resampling.BILINEAR
    return image.transform((side, side), Image.Transform.AFFINE, origin, kernel).reduce(2)


def photograph(portrait, who, pose):
    """The portrait in front of the wall of `who`, seen by the camera, without grid and grain."""
    frame = who["wall"].copy()
    placed = place(portrait, pose)
    frame.paste(placed, mask=placed)
    return frame.filter(ImageFilter.GaussianBlur(who["focus"]))


# ---------------------------------------------------------------- its forgeries
def render(method, face):
    """A photographed face as a method would make it, with the traces that it leaves."""
    fraction, kernel = METHODS[method]
    few = round(SIZE * fraction)
    face = face.resize((few, few), Image.Resampling.LANCZOS).resize((SIZE, SIZE), kernel)
    if method == "Face2Face":                                   # rims round eyes, lips and pores
        face = face.filter(ImageFilter.UnsharpMask(2.5, 170, 0))
    face = np.asarray(face, dtype=np.float32)
    if method == "NeuralTextures":                              # the faint grid of up-convolutions
        checks = (np.indices((SIZE, SIZE)) // 3).sum(0) % 2
        face = np.clip(face + 16 * checks[..., None] - 8, 0, 255)
    return face


def forge(method, real, face, pose, grid, rng):
    """The fake of a real frame, (SIZE, SIZE, 3) uint8: `face` set into one part of it.

    grid: the strength of the camera's grid, which `real` has and `face` has not.
    """
    region = np.array(REGIONS[rng.integers(len(REGIONS))])
    area = Image.new("L", (2 * MIDDLE, 2 * MIDDLE))
    if method == "FaceSwap":            # a hard edge with corners
        ImageDraw.Draw(area).rectangle(box(*region * (1, 1, 0.9, 0.9)), 255)
        area = place(area, pose)
    else:
        ImageDraw.Draw(area).ellipse(box(*region), 255)
        area = place(area, pose).filter(ImageFilter.GaussianBlur(1))
    share = np.asarray(area, dtype=np.float32)[..., None] / 255         # of the fake, 0 to 1
    face = render(method, face)
    if method in ("Deepfakes", "FaceSwap"):     # another skin, whose mean is fitted roughly
        inside = share[..., 0] > 0.5
        face = face - face[inside].mean(0) + real[inside].mean(0) + rng.normal(0, 14, 3)
    if method == "FaceSwap":            # a bad fit: too dark or too light, equally often
        face = face + rng.choice([-1, 1]) * rng.uniform(30, 46)
    cast = rng.normal(size=3)
    cast = cast - 0.5 * cast.mean()             # more a tint than a brightness
    # Last, because fitting the mean of the skin would take the cast away again.
    face = face - grid * CHECKS + CAST * cast / abs(cast).max()
    return to_bytes(real + share * (face - real))


# ---------------------------------------------------------------- the tree
def draw_frame(who, source, rng):
    """{folder: picture}: a real frame and its four fakes.

    Two methods set in the face of `source`, the others the same person with another expression.
    """
    pose, expression = new_pose(rng), new_expression(rng)
    real = photograph(draw_person(who, expression, rng), who, pose)
    real = real + who["grid"] * CHECKS
    real = to_bytes(real + who["grain"] * rng.normal(size=(SIZE, SIZE, 3)))
    swapped = photograph(draw_person(source, expression, rng), who, pose)
    reenacted = photograph(draw_person(who, new_expression(rng), rng), who, pose)
    frames = {"original_sequences/youtube": real}
    for method in METHODS:
        face = swapped if method in ("Deepfakes", "FaceSwap") else reenacted
        fake = forge(method, real, face, pose, who["grid"], rng)
        frames[f"manipulated_sequences/{method}"] = fake
    return frames


def save(frame, path, quality):
    """A PNG of the frame, first blurred and compressed to JPEG unless at c0."""
    image = Image.fromarray(frame)
    if QUALITIES[quality] is not None:
        blur, level = QUALITIES[quality]
        memory = io.BytesIO()
        image.filter(ImageFilter.GaussianBlur(blur)).save(memory, "JPEG", quality=level)
        image = Image.open(memory)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)


def write_person(root, seed, a, b, count):
    """The real video a and its fakes a_b in every quality; the same for the same arguments."""
    who, source = new_person(seed, a), new_person(seed, b)
    for k in range(count):
        rng = np.random.default_rng([seed, a, 1 + k])               # 0 is the person's own
        for folder, frame in draw_frame(who, source, rng).items():
            video = f"{a:03d}" if folder.startswith("original") else f"{a:03d}_{b:03d}"
            for quality in QUALITIES:
                path = root / folder / quality / "faces" / video / f"{k:04d}.png"
                save(frame, path, quality)


def draw_tree(root, seed, workers):
    (root / "splits").mkdir(parents=True)
    tasks = []
    for split, (people, count) in SPLITS.items():
        pairs = []
        for a in people[::2]:
            pairs.append([f"{a:03d}", f"{a + 1:03d}"])
            tasks += [(root, seed, a, a + 1, count), (root, seed, a + 1, a, count)]
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs) + "\n")
    with ProcessPoolExecutor(workers) as pool:
        drawn = [pool.submit(write_person, *task) for task in tasks]
        for person in tqdm(drawn, "made-up faces", unit="person"):
            person.result()


def main():
    parser = argparse.ArgumentParser(description="Draws faces and forgeries in FF++'s layout.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=12, help="who is drawn, default %(default)s")
    parser.add_argument("--workers", type=int, help="processes, default one a core")
    args = parser.parse_args()
    root = args.root.absolute()
    if (root / "original_sequences").is_dir():
        print(f"{root} is drawn already; to draw other people or traces, name a new folder")
        return
    if root.is_file() or root.is_dir() and any(root.iterdir()):
        parser.error(f"{root} holds something else; name a new folder")
    part = root.with_name(f".{root.name}.part")             # renamed at the end: all or nothing
    shutil.rmtree(part, ignore_errors=True)                 # what a killed run has left
    draw_tree(part, args.seed, args.workers)
    part.replace(root)


if __name__ == "__main__":
    main()
