"""Small data sets in exactly the formats of docs/data.md, for the tests to read and to break."""

import json

import h5py
import nibabel
import numpy as np
from PIL import Image

from ddpm.data import folders
from ddpm.runtime.config import Config

SIZE = (20, 24)
SLICE_SIZE = (14, 12)  # of the axial slices of the small volumes


def load(root, split="train", size=SIZE, **options):
    return folders.load(Config(data=str(root), image_size=list(size), **options), split)


def noise(*key, size=SIZE, top=256, dtype=np.uint8):
    """Random pixels of a key's own."""
    return np.random.default_rng([3, *key]).integers(0, top, size, dtype=dtype)


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def split_set(root, n=3, masks=True, splits=("train", "val"), top=256, dtype=np.uint8):
    """DIR/{train,val}/{images,masks}/sI.png; masks of 0 and 255, the first of each split empty."""
    for s, split in enumerate(splits):
        for i in range(n):
            write(root / split / "images" / f"s{i}.png", noise(s, i, top=top, dtype=dtype))
            if masks:
                write(root / split / "masks" / f"s{i}.png", 255 * noise(s, i, 1, top=2) * np.uint8(i > 0))
    return root


def subject_set(root, subjects=6, n=2, nested=True):
    """DIR/{images,masks}/SUBJECT/I.png, or SUBJECT_I.png."""
    for s in range(subjects):
        for i in range(n):
            name = f"p{s}/{i}.png" if nested else f"p{s}_{i}.png"
            write(root / "images" / name, noise(s, i))
            write(root / "masks" / name, noise(s, i, 1, top=2))
    return root


def lgg_set(root, cases=5, n=2):
    """kaggle_3m/CASE/CASE_I.tif, three channels, and CASE_I_mask.tif, 0 and 255."""
    for c in range(cases):
        case = f"TCGA_CS_{4941 + c}_19960909"
        for i in range(1, n + 1):
            write(root / "kaggle_3m" / case / f"{case}_{i}.tif", noise(c, i, size=(*SIZE, 3)))
            write(root / "kaggle_3m" / case / f"{case}_{i}_mask.tif", 255 * noise(c, i, 1, top=2) * np.uint8(i > 1))
    (root / "kaggle_3m" / "data.csv").write_text("Patient,RNASeqCluster\n")
    return root


def save_nifti(path, volume, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 1, 1]) if affine is None else affine), path)
    return path


def brats_case(root, number, ending=".nii", shape=(12, 14, 10)):
    """BraTS20_Training_NNN/..._{t1,t1ce,t2,flair,seg}.nii: stripped of the skull, axes as theirs (left, posterior,
    superior), brain in the slices 2 to 7, the labels 0, 1, 2 and 4."""
    name = f"BraTS20_Training_{number:03d}"
    inside = np.zeros(shape, bool)
    inside[2:-2, 2:-2, 2:8] = True
    for kind, contrast in enumerate(("t1", "t1ce", "t2", "flair")):
        volume = (1 + noise(number, kind, size=shape, top=900, dtype=np.int16)) * inside
        save_nifti(root / name / f"{name}_{contrast}{ending}", volume.astype(np.int16))
    labels = np.array([0, 1, 2, 4], np.uint8)[noise(number, 9, size=shape, top=4)] * inside
    labels[:, :, 3] = 0
    save_nifti(root / name / f"{name}_seg{ending}", labels.astype(np.uint8))
    return root


def brats_set(root, cases=3):
    for number in range(1, cases + 1):
        brats_case(root, number, ".nii" if number % 2 else ".nii.gz")
    return root


def brats_2023_set(root, cases=3, times=2):
    """BraTS-GLI-NNNNN-TTT/BraTS-GLI-NNNNN-TTT-{t1n,t1c,t2w,t2f,seg}.nii.gz: some time points a patient, labels 0 .. 3."""
    for number in range(cases):
        for time in range(times):
            name, inside = f"BraTS-GLI-{number:05d}-{time:03d}", box((12, 14, 10))
            for kind, contrast in enumerate(("t1n", "t1c", "t2w", "t2f")):
                values = (1 + noise(number, time, kind, size=inside.shape, top=900, dtype=np.int16)) * inside
                save_nifti(root / name / f"{name}-{contrast}.nii.gz", values.astype(np.int16))
            labels = noise(number, time, 9, size=inside.shape, top=4) * inside
            save_nifti(root / name / f"{name}-seg.nii.gz", labels.astype(np.uint8))
    return root


def box(shape):
    """True in a box that touches no side, and is two voxels shorter at both ends of the last axis."""
    inside = np.zeros(shape, bool)
    inside[2:-2, 2:-2, 2:-2] = True
    return inside


def brain(*key, shape=(12, 14, 10)):
    """A volume (X, Y, Z) int16 of a key's own, 0 outside the box."""
    return ((1 + noise(*key, size=shape, top=900, dtype=np.int16)) * box(shape)).astype(np.int16)


def label_volume(*key, shape=(12, 14, 10), top=2):
    return (noise(*key, size=shape, top=top) * box(shape)).astype(np.uint8)


def decathlon_set(root, cases=4):
    """Task01_BrainTumour: dataset.json, imagesTr/BRATS_NNN.nii.gz (X, Y, Z, 4), labelsTr/BRATS_NNN.nii.gz, imagesTs."""
    task, names = root / "Task01_BrainTumour", [f"BRATS_{c:03d}" for c in range(1, cases + 1)]
    for c, name in enumerate(names):
        save_nifti(task / "imagesTr" / f"{name}.nii.gz", np.stack([brain(c, m) for m in range(4)], -1))
        save_nifti(task / "labelsTr" / f"{name}.nii.gz", label_volume(c, 9, top=4))
    save_nifti(task / "imagesTs" / "BRATS_485.nii.gz", np.stack([brain(99, m) for m in range(4)], -1))
    (task / "imagesTr" / f"._{names[0]}.nii.gz").write_bytes(b"macOS left these in the published archive")
    about = {"name": "BRATS", "tensorImageSize": "4D", "numTraining": cases, "numTest": 1}
    about["modality"] = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    about["labels"] = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    about["training"] = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    about["test"] = ["./imagesTs/BRATS_485.nii.gz"]
    write_json(task / "dataset.json", about)
    return root


def nnunet_set(root, cases=4):
    """Dataset042_Name: dataset.json, imagesTr/CASE_{0000,0001}.nii.gz, labelsTr/CASE.nii.gz with the labels 0, 1, 2."""
    folder = root / "Dataset042_Name"
    for c in range(cases):
        for channel in range(2):
            save_nifti(folder / "imagesTr" / f"case_{c:02d}_{channel:04d}.nii.gz", brain(c, channel))
        save_nifti(folder / "labelsTr" / f"case_{c:02d}.nii.gz", label_volume(c, 9, top=3))
    about = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "PZ": 1, "TZ": 2}}
    write_json(folder / "dataset.json", about | {"numTraining": cases, "file_ending": ".nii.gz"})
    return root


def bids_set(root, subjects=5, masks=True):
    """BIDS: sub-NN/ses-{1,2}/anat with a T1w and, on the same grid, a FLAIR (sub-05 has no sessions and no FLAIR);
    derivatives/lesions with label-lesion masks, and one of the brain; dataset_description.json, participants.tsv."""
    for s in range(1, subjects + 1):
        for session in ("1", "2") if s < 5 else ("",):
            below = f"sub-{s:02d}/" + (f"ses-{session}/" if session else "") + "anat"
            name = f"sub-{s:02d}" + (f"_ses-{session}" if session else "")
            save_nifti(root / below / f"{name}_T1w.nii.gz", brain(s, len(session), int(session or 0), 0))
            write_json(root / below / f"{name}_T1w.json", {"EchoTime": 0.003})
            if session:
                save_nifti(root / below / f"{name}_FLAIR.nii", brain(s, len(session), int(session), 1))
            if masks:
                folder = root / "derivatives" / "lesions" / below
                save_nifti(folder / f"{name}_label-lesion_mask.nii.gz", label_volume(s, int(session or 0), 9))
                save_nifti(folder / f"{name}_desc-brain_mask.nii.gz", box((12, 14, 10)).astype(np.uint8))
                save_nifti(folder / f"{name}_space-MNI152_label-lesion_mask.nii.gz", label_volume(7, shape=(9, 9, 9)))
    write_json(root / "dataset_description.json", {"Name": "small", "BIDSVersion": "1.9.0"})
    rows = ["participant_id\tage", *(f"sub-{s:02d}\t40" for s in range(1, subjects + 2))]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def nifti_set(root, subjects=4, masks=True):
    """NAME.nii.gz, or .nii, and NAME_mask.nii.gz or NAME_seg.nii."""
    for s in range(subjects):
        ending, kind = (".nii", "seg") if s % 2 else (".nii.gz", "mask")
        save_nifti(root / f"IXI{s:03d}-T1{ending}", brain(s))
        if masks:
            save_nifti(root / f"IXI{s:03d}-T1_{kind}{ending}", label_volume(s, 9))
    return root


def series_set(root, subjects=3, b=(0, 1000, 5, 2000)):
    """SUBJECT/dwi.nii.gz (X, Y, Z, N), dwi.bval and dwi.bvec."""
    for s in range(subjects):
        save_nifti(root / f"s{s}" / "dwi.nii.gz", np.stack([brain(s, i) for i in range(len(b))], -1))
        (root / f"s{s}" / "dwi.bval").write_text(" ".join(map(str, b)) + "\n")
        (root / f"s{s}" / "dwi.bvec").write_text("0 0 0\n")
    return root


def write_hdf5(path, attributes=None, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attributes or {})
    return path


def brats_slice_set(root, volumes=3, n=3):
    """volume_V_slice_S.h5: image (H, W, 4) float64 around 0, mask (H, W, 3) uint8; slice 0 is air."""
    for v in range(1, volumes + 1):
        for s in range(n):
            image = np.random.default_rng([v, s]).normal(size=(*SIZE, 4)) * (s > 0)
            image[:2] = -9.0
            if s == 0:
                image[:] = -9.0
            labels = noise(v, s, top=4) * np.uint8(s > 0)
            mask = (labels[..., None] == [1, 2, 3]).astype(np.uint8)
            write_hdf5(root / "content" / "data" / f"volume_{v}_slice_{s}.h5", image=image, mask=mask)
    return root


def fastmri_set(root, folders=("singlecoil_train", "singlecoil_val"), n=2, slices=3):
    """FILE.h5 with kspace (slices, H, W) complex64 and reconstruction_rss (slices, h, w) float32."""
    for f, folder in enumerate(folders):
        for i in range(n):
            rss = np.random.default_rng([f, i]).random((slices, *SIZE)).astype(np.float32) * 1e-4
            kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(rss, (1, 2)), norm="ortho"), (1, 2))
            attributes = {"max": rss.max(), "norm": np.linalg.norm(rss), "patient_id": f"patient{f}{i // 2}"}
            arrays = {"kspace": kspace.astype(np.complex64), "reconstruction_rss": rss}
            write_hdf5(root / folder / f"file100000{f}{i}.h5", attributes, **arrays)
    return root


def yes_no_set(root, n=6):
    """brain_tumor_dataset/{yes,no}/*.jpg, of different sizes, no masks."""
    for k, kind in enumerate(("yes", "no")):
        for i in range(n):
            name = f"Y{i}.jpg" if kind == "yes" else f"{i} no.jpeg"
            write(root / "brain_tumor_dataset" / kind / name, noise(k, i, size=(30 + i, 26)))
    return root
