"""
Draws the made-up data set of `python train.py --data demo`, in FF++'s layout.

    python tests/demo_faces.py ROOT
"""

import io
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

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
DEMO_QUALITIES = {"c0": (0, 0), "c23": (0.3, 88), "c40": (0.5, 30)}  # blur (px), JPEG quality


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
        for quality, (blur, level) in DEMO_QUALITIES.items():
            for folder, frame in videos.items():
                at = root / folder.format(quality)
                at.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur))
                if level:
                    buffer = io.BytesIO()
                    image.save(buffer, "JPEG", quality=level)
                    image = Image.open(buffer)
                image.save(at / f"{k:04d}.png", compress_level=1)


def write_demo(root, size=DEMO_SIZE, seed=1, workers=None):
    """Writes the demo's tree to `root` unless it is there. The same bytes for any `workers`; all of it or nothing."""
    root = Path(root).absolute()
    if (root / "original_sequences").is_dir():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        print(f"{root} is not empty and holds no demo; name another --root", file=sys.stderr)
        raise SystemExit(2)
    part = root.with_name(f".{root.name}.part")           # renamed at the end; what a killed run left is swept away
    shutil.rmtree(part, ignore_errors=True)
    pairs = {split: [pair.split("_") for pair in text.split()] for split, text in DEMO_PAIRS.items()}
    tasks = [(part, size, seed, *ids, DEMO_FRAMES[split]) for split in pairs for a, b in pairs[split] for ids in ((a, b), (b, a))]
    try:
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            list(tqdm(pool.map(write_demo_person, tasks), f"made-up faces to {root}", len(tasks), unit="person"))
        (part / "splits").mkdir()
        for split in pairs:
            (part / "splits" / f"{split}.json").write_text(json.dumps(pairs[split]))
        if root.is_dir():
            root.rmdir()
        part.rename(root)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


if __name__ == "__main__":
    write_demo(sys.argv[1])
