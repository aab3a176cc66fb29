"""The embedded data set: axial brain MRI with lesions, drawn from equations and one small atlas.

A subject is a page of random numbers (`draw_subject`); an image is what a scanner would make of it
(`render`): bend the atlas, put in a lesion, apply the signal equation of the sequence, coil shading, noise.
Everything is a function of (seed, split, index), so nothing has to be downloaded or agreed upon.

World coordinates are patient space in mm, RAS+: x to the patient's right, y anterior, z superior.
Images are shown in radiological convention: the patient's right is on the image's left, anterior is up.
The anatomy comes from the ICBM 152 average brain: see ATLAS_LICENSE.txt and tools/build_atlas.py.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import SeedSequence, default_rng
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ddpm.runtime import cache
from ddpm.runtime.progress import progress

CONTRASTS = ("T1", "T2", "FLAIR")
CLASSES = {"lesion": ("background", "lesion"), "tissue": ("background", "CSF", "GM", "WM", "lesion")}
LESION_LABEL = 4  # of "tissue"
SPLITS = {"train": 8000, "val": 2000, "test": 5000}
ASSET = Path(__file__).with_name("atlas.npz")
CODE = cache.code("data/phantom.py")

FOV = 208.0  # mm across min(H, W) pixels
CENTRE = np.array([0.0, -16.0, 0.0])  # mm: the middle of the brain; the slice adds its z
KNOTS = 9  # control points of the deformation along each side of the field of view, 35 mm apart
LESION_EDGE = 3.0  # mm from all lesion to none


# ---------------------------------------------------------------- subjects: everything that is random


@dataclass(frozen=True, eq=False)
class Lesion:
    """A star-shaped body: in the unit direction n its surface is radius * (1 + size @ cos(wave @ n + phase))
    from the centre. Plane waves on the sphere: the longer the wave vector, the finer the lobes."""

    centre: np.ndarray  # (3,) world mm
    radius: float  # mm
    wave: np.ndarray  # (6, 3)
    phase: np.ndarray  # (6,)
    size: np.ndarray  # (6,)


@dataclass(frozen=True, eq=False)
class Subject:
    key: tuple  # (seed, split number, index): the noise is drawn from it too
    contrast: int  # index into CONTRASTS
    affine: np.ndarray  # (3, 4) world mm -> atlas mm
    deformation: np.ndarray  # (3, KNOTS, KNOTS) mm, B-spline coefficients of a displacement on the slice
    tilt: np.ndarray  # (3, 3) rotation of the slice; columns: right, anterior and superior of an axial one
    z: float  # mm, height of the middle of the slice
    lesion: Lesion | None
    tissue: np.ndarray  # (4, 3) factors on T1, T2, PD of CSF, GM, WM, lesion
    bias: np.ndarray  # (5,) log of the coil's shading: coefficients of u, v, u^2, v^2, uv
    gain: float  # factor on the contrast's nominal gain
    sigma: float  # noise, in units of full scale


def draw_subject(seed, split, index):
    """(seed, "train" | "val" | "test", index) -> Subject. Ranges are this function's; they fit adults."""
    _check("split", split, SPLITS)
    key = (seed, list(SPLITS).index(split), index)
    rng = default_rng(SeedSequence(key))

    # World -> atlas: small rotation, size (head +-5 %, each axis +-3 %), shear, and position in the scanner.
    turn = Rotation.from_euler("xyz", rng.uniform(-4, 4, 3), degrees=True).as_matrix()
    stretch = np.diag(rng.uniform(0.95, 1.06) * rng.uniform(0.97, 1.03, 3))
    stretch[np.triu_indices(3, 1)] = rng.uniform(-0.04, 0.04, 3)
    turn_and_stretch = turn @ stretch
    middle = CENTRE + rng.uniform(-4, 4, 3)  # the fixed point, so that nothing swings out of view
    affine = np.column_stack([turn_and_stretch, CENTRE - turn_and_stretch @ middle])

    subject = Subject(
        key=key,
        contrast=int(rng.integers(3)),
        affine=affine,
        deformation=rng.normal(0, 4, (3, KNOTS, KNOTS)),  # after the spline: about 7 mm where largest
        tilt=Rotation.from_euler("xyz", rng.uniform(-1, 1, 3) * [10, 4, 4], degrees=True).as_matrix(),
        z=rng.uniform(-20, 60),
        lesion=None,
        tissue=np.exp(rng.normal(0, 0.07, (4, 3))),
        bias=rng.uniform(-0.1, 0.1, 5),
        gain=np.exp(rng.normal(0, 0.07)),
        sigma=rng.uniform(0.01, 0.025),
    )
    if rng.random() < 0.15:
        return subject  # healthy
    return replace(subject, lesion=_draw_lesion(rng, subject))


def _draw_lesion(rng, subject):
    """Its centre is the first of some random points of the slice that lies in the brain, moved off the
    slice by up to 0.6 radii: most lesions are not cut through the middle."""
    radius = rng.uniform(6, 24)
    uv = rng.uniform(-90, 90, (2, 64))
    inside = _tissue_at(subject, uv[0], uv[1], _atlas(FOV / 128)).sum(0) > 0.95
    u, v = uv[:, np.argmax(inside)]
    off = rng.uniform(-0.6, 0.6) * radius
    return Lesion(
        centre=_world(subject, u, v) + off * subject.tilt[:, 2],
        radius=radius,
        wave=rng.normal(0, 2, (6, 3)),
        phase=rng.uniform(0, 2 * np.pi, 6),
        size=rng.normal(0, 0.1, 6),
    )


# ---------------------------------------------------------------- anatomy: pixel -> world -> atlas


@lru_cache(maxsize=4)
def _atlas(pixel):
    """Pixel in mm -> CSF, GM, WM fractions (3, X, Y, Z) float32 as seen by pixels of that size, the atlas
    mm (3,) of the first voxel, and the voxel's size in mm."""
    with np.load(ASSET) as asset:
        half, affine = asset["tissue"], asset["affine"]
    tissue = np.concatenate([half[:, :0:-1], half], 1).astype(np.float32) / 255  # the left mirrors the right
    spacing = affine[0, 0]
    # A pixel is the average over its area; looking up its middle alone would alias folds finer than it.
    # A Gaussian whose full width at half maximum is the pixel makes that average once for all lookups.
    sigma = pixel / 2.355 / spacing
    pad = int(np.ceil(4 * sigma)) + 1  # room for the blur to run out, and a border of air
    tissue = np.pad(tissue, ((0, 0), (pad, pad), (pad, pad), (pad, pad)))
    tissue = np.stack([ndimage.gaussian_filter(t, sigma, mode="constant") for t in tissue])
    origin = affine[:3, 3] - spacing * np.array([half.shape[1] - 1, 0, 0]) - spacing * pad
    return tissue, origin, spacing


@lru_cache(maxsize=4)
def _grid(height, width):
    """Size -> u (1, W) and v (H, 1): mm to the image's right and downwards from its middle; pixel in mm."""
    pixel = FOV / min(height, width)
    u = (np.arange(width) - (width - 1) / 2) * pixel
    v = (np.arange(height) - (height - 1) / 2) * pixel
    return u[None], v[:, None], pixel


def _world(subject, u, v):
    """In-plane mm (broadcast together) -> world mm (3, ...). Rightwards in the image is the patient's
    left (-x), downwards is posterior (-y): the radiological convention, here and nowhere else."""
    x, y, _ = subject.tilt.T  # the rows of the transpose: columns of the rotation
    middle = CENTRE + [0, 0, subject.z]
    return np.stack([middle[i] - u * x[i] - v * y[i] for i in range(3)])


def _spline(position):
    """mm in the plane (N,) -> cubic B-spline weights (N, KNOTS), rows summing to 1."""
    knot = (np.clip(position / FOV, -0.5, 0.5) + 0.5) * (KNOTS - 3) + 1  # one control point beyond each end
    d = np.abs(knot[:, None] - np.arange(KNOTS))
    return np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)


def _tissue_at(subject, u, v, atlas):
    """In-plane mm, u (1, W) and v (H, 1) or both (N,) -> CSF, GM, WM fractions (3, H, W) or (3, N).

    A smooth field in space, cut by a plane, is a smooth map of the plane: so the displacement is drawn
    on the slice alone, as a tensor product of splines, B_v C B_u^T. It makes left differ from right."""
    tissue, origin, spacing = atlas
    b_u, b_v = _spline(np.ravel(u)), _spline(np.ravel(v))
    if np.ndim(u) == 2:
        shift = b_v @ subject.deformation @ b_u.T  # (3, H, W)
    else:
        shift = np.einsum("ni,cij,nj->cn", b_v, subject.deformation, b_u)
    world = _world(subject, u, v)
    column = (3, *[1] * (world.ndim - 1))  # lets a vector broadcast against world
    offset = (subject.affine[:, 3] - origin) / spacing
    where = np.tensordot(subject.affine[:, :3] / spacing, world, 1) + shift / spacing + offset.reshape(column)
    return _trilinear(tissue, where.reshape(3, -1)).reshape(world.shape)


def _trilinear(volume, where):
    """Volume (C, X, Y, Z), voxel coordinates (3, N) -> (C, N) float32. The border counts for all beyond it.
    Three channels share one set of weights: four times as fast here as scipy's map_coordinates."""
    shape = np.array(volume.shape[1:])
    where = np.clip(where, 0, shape[:, None] - 1.001)  # so that the upper neighbour exists
    low = where.astype(np.int64)
    high_weight = (where - low).astype(np.float32)
    weight = 1 - high_weight, high_weight  # each (3, N)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    first, flat = strides @ low, volume.reshape(len(volume), -1)
    total = 0
    for i, j, k in np.ndindex(2, 2, 2):  # the eight corners of the voxel's cell
        share = weight[i][0] * weight[j][1] * weight[k][2]
        total += share * flat.take(first + strides @ (i, j, k), axis=1)
    return total


def _lesion_fraction(lesion, world, pixel):
    """World mm (3, H, W) -> how much of each pixel is lesion, 0..1 (before the brain's edge cuts it)."""
    d = (world - lesion.centre[:, None, None]).astype(np.float32)
    fraction = np.zeros(d.shape[1:], np.float32)
    near = (d * d).sum(0) < (2.5 * lesion.radius + pixel) ** 2  # skip the harmonics where they cannot matter
    d = d[:, near]  # (3, M)
    r = np.sqrt((d * d).sum(0)) + 1e-6
    surface = lesion.radius * (1 + lesion.size @ np.cos(lesion.wave @ (d / r) + lesion.phase[:, None]))
    fraction[near] = np.clip(0.5 + (surface - r) / max(LESION_EDGE, pixel), 0, 1)
    return fraction


def _anatomy(subject, size):
    """Subject, size -> CSF, GM, WM, lesion fractions (4, H, W) float32 (the rest is air), labels (H, W)."""
    u, v, pixel = _grid(*size)
    fractions = np.empty((4, *size), np.float32)
    fractions[:3] = _tissue_at(subject, u, v, _atlas(pixel))
    brain = fractions[:3].sum(0)
    fractions[3] = 0
    if subject.lesion is not None:
        share = _lesion_fraction(subject.lesion, _world(subject, u, v), pixel)
        fractions[3] = share * brain
        fractions[:3] *= 1 - share  # the lesion replaces tissue; what is left keeps its proportions
    labels = fractions[:3].argmax(0).astype(np.uint8) + 1
    labels[brain < 0.5] = 0
    labels[fractions[3] > 0.5] = LESION_LABEL
    return fractions, labels


# ---------------------------------------------------------------- physics: tissue -> signal -> image

# T1 [ms], T2 [ms], proton density at 1.5 T: BrainWeb (Cocosco et al. 1997; Kwan, Evans, Pike 1999).
# The lesion stands for oedema, watery tissue: in between GM and CSF.
CSF, GM, WM, LESION = (2569, 329, 1.00), (833, 83, 0.86), (500, 70, 0.77), (1300, 150, 0.92)
TISSUE = np.array([CSF, GM, WM, LESION])
FLAIR_TR, FLAIR_TE = 9000, 120  # ms
# The inversion time at which 1 - 2 exp(-TI/T1) + exp(-TR/T1) = 0 for CSF: solve for TI.
FLAIR_TI = TISSUE[0, 0] * np.log(2 / (1 + np.exp(-FLAIR_TR / TISSUE[0, 0])))


def signal(contrast, t1, t2, pd):
    """Contrast name, T1 and T2 in ms, proton density (broadcast) -> signal (Bernstein, King, Zhou 2004,
    "Handbook of MRI Pulse Sequences"): spin echo and inversion recovery, magnitude."""
    if contrast == "FLAIR":  # S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)
        recovery = 1 - 2 * np.exp(-FLAIR_TI / t1) + np.exp(-FLAIR_TR / t1)
        return pd * np.abs(recovery) * np.exp(-FLAIR_TE / t2)
    tr, te = {"T1": (500, 15), "T2": (4500, 100)}[contrast]  # ms
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)  # S = PD (1 - exp(-TR/T1)) exp(-TE/T2)


# One gain a contrast, not one an image: a scanner does not know which slice it is in. The brightest
# nominal tissue (T1: WM, T2: CSF, FLAIR: lesion) lands at 0.8 of full scale.
GAIN = {name: 0.8 / signal(name, *TISSUE.T).max() for name in CONTRASTS}


def rician(magnitude, sigma, rng):
    """Noiseless signal -> |S + n1 + i n2|, n ~ N(0, sigma^2): a magnitude image (Gudbjartsson, Patz 1995)."""
    n1, n2 = rng.standard_normal((2, *magnitude.shape), np.float32) * np.float32(sigma)
    return np.sqrt((magnitude + n1) ** 2 + n2**2)


def _scan(subject, fractions, name):
    """Fractions (4, H, W), contrast name -> image (H, W) uint8."""
    per_tissue = signal(name, *(TISSUE * subject.tissue).T) * GAIN[name] * subject.gain  # (4,)
    image = np.tensordot(per_tissue.astype(np.float32), fractions, 1)  # a mixed pixel adds up its parts
    u, v, _ = _grid(*image.shape)
    u, v = np.clip(2 * u / FOV, -1, 1), np.clip(2 * v / FOV, -1, 1)
    a, b, c, d, e = subject.bias
    shading = np.exp((a * u + c * u**2) + (b * v + d * v**2) + e * u * v)
    # +1: a SeedSequence pads its key with zeros, so (..., 0) would repeat the numbers of the anatomy
    rng = default_rng(SeedSequence((*subject.key, CONTRASTS.index(name) + 1)))
    image = rician(image * shading.astype(np.float32), subject.sigma, rng)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------- what others call


def render(subject, size, contrast=None):
    """Subject, size (S or (H, W), 16 to 256), contrast name (default: the subject's own) ->
    image (H, W) uint8, labels (H, W) uint8 numbered as CLASSES["tissue"]."""
    name = CONTRASTS[subject.contrast] if contrast is None else contrast
    _check("contrast", name, CONTRASTS)
    fractions, labels = _anatomy(subject, _size(size))
    return _scan(subject, fractions, name), labels


def to_label_set(tissue_labels, name):
    """Tissue labels (any shape) -> labels numbered as CLASSES[name]."""
    _check("label set", name, CLASSES)
    return tissue_labels if name == "tissue" else (tissue_labels == LESION_LABEL).astype(np.uint8)


def load(split, size, seed=0, n=None, contrast=None):
    """The first n subjects of a split (default: those of SPLITS; of train there are as many as asked for), each in its
    own contrast, or all in the one that is named -> images (N, 1, H, W) uint8, tissue labels (N, H, W)
    uint8, contrasts (N,) int64. Rendered once, then read from the cache."""
    height, width = _size(size)
    _check("split", split, SPLITS)
    n = SPLITS[split] if n is None else n
    if n < 1 or (n > SPLITS[split] and split != "train"):
        raise ValueError(f"n = {n} is out of range: {split} has 1 to {SPLITS[split]} subjects")

    def rendered():
        images, labels = np.empty((2, n, height, width), np.uint8)
        kinds = np.empty(n, np.int64)
        for i in progress(range(n), desc=f"rendering {split}", unit="image"):
            subject = draw_subject(seed, split, i)
            images[i], labels[i] = render(subject, (height, width), contrast)
            kinds[i] = subject.contrast if contrast is None else CONTRASTS.index(contrast)
        return images[:, None], labels, kinds

    key = cache.key(CODE, ASSET.read_bytes(), split, height, width, seed, n, *[contrast] * (contrast is not None))
    return cache.kept(f"phantom-{key}.npz", rendered)


def _check(what, name, known):
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose from {', '.join(known)}")


def _size(size):
    """S or (H, W) -> (H, W), checked."""
    height, width = (size, size) if np.ndim(size) == 0 else size
    if not (16 <= height <= 256 and 16 <= width <= 256):
        raise ValueError(f"size {height} x {width} is out of range: each side must be 16 to 256 pixels")
    return int(height), int(width)
