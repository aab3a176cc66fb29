"""Vectors of texts for `train.py --words --text-embeddings FILE` and `sample.py --prompt`: `make embeddings`.

    make embeddings                                            every description of the embedded data
    make embeddings ARGS="--texts mine.txt --out mine.npz"     and these, a line each, to be prompts of

A worked example of the format, a .npz of `texts` (N,) and `vectors` (N, D): write such a file from CLIP or a sentence
encoder, and it works as well. Here a text is the mean of its words' vectors in wordllama's table (256 numbers, distilled
from a language model; the package holds it, so nothing is fetched). Such a mean hardly tells left from right (their
cosine is 0.9), and the network learns two layers of its own on top.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data import descriptions
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import check_file, reading, write_whole


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/embed.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--texts", metavar="FILE", help="texts of your own, a line each, beside the data's descriptions"
    )
    parser.add_argument("--out", default="results/embeddings.npz", help="(default results/embeddings.npz)")
    args = parser.parse_args(argv)
    if args.texts == "":
        raise UserError("--texts: an empty name (an unset variable?); name a file, or leave it out")
    check_file(args.out)
    texts = [descriptions.text(said) for said in descriptions.all_said()]
    if args.texts is not None:
        with reading(args.texts, "a text file", "save it as UTF-8"):
            texts += [line.strip() for line in Path(args.texts).read_text("utf-8").splitlines() if line.strip()]
    texts = list(dict.fromkeys(texts))
    vectors = embed(texts)
    write_whole(args.out, lambda file: np.savez(file, texts=np.array(texts), vectors=vectors))
    left, right = vectors[[texts.index("axial, lesion, left"), texts.index("axial, lesion, right")]]
    cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
    print(f"{args.out}: {len(texts)} texts, vectors of {vectors.shape[1]} numbers; left and right: cosine {cosine:.2f}")


def embed(texts: list[str]) -> np.ndarray:
    """The mean of the vectors of a text's parts, (N, D) float32. Raises UserError."""
    place = importlib.util.find_spec("wordllama")  # its own loader would look for its tokenizer on the network
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError:
        place = None
    if place is None:
        raise UserError("wordllama is not installed; run: pip install -r requirements/text.txt")
    folder = Path(place.origin).parent
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    parts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return np.stack([table[ids].astype(np.float32).mean(axis=0) for ids in parts])


if __name__ == "__main__":
    sys.exit(main())
