"""Make ddpm/data/atlas.npz, the tissue map behind the phantom, from the ICBM 152 average brain.

    python tools/build_atlas.py [FOLDER]

FOLDER holds the three volumes mni_icbm152_{t1,gm,wm}_tal_nlin_sym_09a_converted.nii.gz; without it they
are taken from the installed nilearn package. Nobody needs this to train: the result is in the repository.
The same volumes give the same file, byte for byte; its sha256 is printed (and kept in ATLAS_LICENSE.txt).
"""

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import reading

OUT = Path(__file__).resolve().parents[1] / "ddpm" / "data" / "atlas.npz"
SPACING = 1.5  # mm; the finest pixel a phantom is usually asked for (128 x 128) is 1.6 mm


def read_volumes(folder):
    """Folder -> T1, GM, WM as uint8 (197, 233, 189) and the affine from voxel to mm (RAS+). Raises UserError."""
    try:
        import nibabel

        if folder is None:
            import nilearn

            folder = Path(nilearn.__file__).parent / "datasets" / "data"
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install -r requirements/data.txt") from None
    volumes = []
    for kind in ("t1", "gm", "wm"):
        path = Path(folder) / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            remedy = "give the folder, or install the pinned nilearn: pip install -r requirements/data.txt"
            raise UserError(f"no {path.name} in {folder}; {remedy}")
        with reading(path, "a NIfTI volume", "fetch it again"):
            image = nibabel.load(path)
            volumes.append(np.asarray(image.dataobj))
    return volumes, image.affine


def tissue_fractions(t1, gm, wm):
    """Volumes (X, Y, Z) -> brain mask (X, Y, Z) and CSF, GM, WM (3, X, Y, Z), sum 1 in the brain."""
    brain = ndimage.binary_fill_holes(t1 > 0)  # the T1 is skull-stripped; holes are dark ventricles
    brain = ndimage.binary_opening(brain, iterations=3)  # drops thin scraps of dura behind the eyes
    gm, wm = gm / 255 * brain, wm / 255 * brain
    csf = np.clip(1 - gm - wm, 0, None) * brain
    # These are shares of 152 people ("here 60 % have grey matter"), so every border is smeared by how
    # much people differ. One person's voxel is nearly pure. Squaring and normalising moves each voxel
    # towards its most probable tissue (0.6/0.4 -> 0.69/0.31) without the stairs that argmax would leave.
    p = np.stack([csf, gm, wm]) ** 2
    p[0] *= 2  # CSF lies in thin sheets and would lose every vote: twice the weight keeps its 0.22 litres
    return brain, p / np.maximum(p.sum(0), 1e-12) * brain


def right_half(fractions, brain, affine):
    """(3, X, Y, Z) at 1 mm -> (3, x, y, z) at SPACING, x >= 0 only, cropped, and its affine."""
    origin, upper = affine[:3, 3], affine[:3, 3] + np.array(brain.shape) - 1
    box = [np.flatnonzero(brain.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    axes = []
    for axis in range(3):
        low = 0 if axis == 0 else origin[axis] + box[axis][0] - SPACING  # x starts on the mirror plane
        high = origin[axis] + box[axis][-1] + 2 * SPACING
        axes.append(np.arange(low, min(high, upper[axis]), SPACING))
    index = np.stack(np.meshgrid(*axes, indexing="ij")) - origin.reshape(3, 1, 1, 1)
    halves = []
    for channel in fractions:  # a voxel of SPACING mm is an average: blur by its own width, then sample
        smooth = ndimage.gaussian_filter(channel, SPACING / 2.355, mode="constant")
        halves.append(ndimage.map_coordinates(smooth, index, order=1))
    half_affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    half_affine[:3, 3] = [axis[0] for axis in axes]
    return np.stack(halves), half_affine


def write_npz(path, **arrays):
    """An .npz whose bytes depend on the arrays alone: np.savez would write the time of day, and the
    output of a compressor depends on its version (git compresses the file anyway)."""
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # else it names the operating system
            archive.writestr(info, member.getvalue())
    os.replace(temporary, path)


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/build_atlas.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the volumes lie (default: in nilearn)")
    (t1, gm, wm), affine = read_volumes(parser.parse_args(argv).folder)
    for name, volume in (("T1", t1), ("GM", gm), ("WM", wm)):
        # only one half is stored, so the other must be its mirror image: x = 0 is the middle voxel
        in_place = volume.shape[0] // 2 + affine[0, 3] == 0 and np.array_equal(affine[:3, :3], np.eye(3))
        if not in_place or not np.array_equal(volume, volume[::-1]):
            wanted = "voxels of 1 mm, mirrored in x = 0"
            raise UserError(f"{name}: not of the symmetric ICBM 152 2009a ({wanted}); fetch the three volumes again")
    brain, fractions = tissue_fractions(t1, gm, wm)
    half, half_affine = right_half(fractions, brain, affine)
    write_npz(OUT, tissue=np.rint(half * 255).clip(0, 255).astype(np.uint8), affine=half_affine)
    data = OUT.read_bytes()
    print(f"{OUT.name}: tissue {half.shape}, {len(data)} bytes\nsha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    sys.exit(main())
