"""Write the masks to try in examples/masks: four subjects of the phantom's test split, in both label sets.

    python tools/example_masks.py

lesion/NAME.png is black and white (0, 255); tissue/NAME.png has a palette, its pixels are the labels 0..4.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from ddpm.data.phantom import draw_subject, render, to_label_set  # noqa: E402
from ddpm.runtime.command_line import Parser, one_line_errors  # noqa: E402

SIZE = 64
SUBJECTS = {"small_right": 20, "medium_left": 7, "large_left": 17, "healthy": 22}  # side: the patient's
PALETTE = [0, 0, 0, 60, 110, 220, 150, 150, 150, 240, 240, 240, 220, 50, 47]  # air, CSF, GM, WM, lesion: RGB


@one_line_errors
def main(argv):
    Parser(prog="tools/example_masks.py", description=__doc__).parse_args(argv)
    for name, index in SUBJECTS.items():
        _, tissue = render(draw_subject(0, "test", index), SIZE)
        lesion = Image.fromarray(to_label_set(tissue, "lesion") * np.uint8(255))
        labels = Image.frombytes("P", (SIZE, SIZE), tissue.tobytes())
        labels.putpalette(PALETTE)
        for kind, picture in (("lesion", lesion), ("tissue", labels)):
            path = ROOT / "examples" / "masks" / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            print(path.relative_to(ROOT), (tissue == 4).sum(), "lesion pixels")


if __name__ == "__main__":
    sys.exit(main())
