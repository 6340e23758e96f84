"""Fashion-MNIST in the folder that torchvision reads it from.

Lay it out there, with torchvision's download or from gzipped idx files that are on the machine:

    python fashion.py DIR
    python fashion.py DIR --from /usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
import os
import shutil
from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

VARIABLE = "FASHION_MNIST_ROOT"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


BROKEN = "holds files that are not those of Fashion-MNIST: lay them out again with fashion.py"


class DataError(Exception):
    """The images are not there; the sentence tells what to do."""


def dataset(root: str | None, *, train: bool) -> FashionMNIST:
    """Return images `(1, 28, 28)`, float32 in [0, 1], and their classes.

    Raises:
        DataError: If no folder is named, or if it does not hold readable files.
    """
    if not root:
        raise DataError(
            f"no folder of Fashion-MNIST is named: give --data-root=DIR or set {VARIABLE}; "
            "README.md tells how to get the files"
        )
    for path in (raw(Path(root)) / name for name in FILES if name.startswith("train") == train):
        if not path.is_file():
            raise DataError(
                f"{path} is missing: `python fashion.py DIR` downloads Fashion-MNIST to DIR, and "
                "README.md names a source for machines without a network"
            )
    try:
        data = FashionMNIST(root, train=train, download=False, transform=ToTensor())
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{raw(Path(root))} {BROKEN}") from error
    if data.data.shape != (len(data.targets), 28, 28):
        raise DataError(f"{raw(Path(root))} {BROKEN}")
    return data


def raw(root: Path) -> Path:
    """Return the folder in which torchvision looks for the files."""
    return root / "FashionMNIST" / "raw"


def download(root: Path) -> None:
    """Fetch the files that are not there yet, with torchvision.

    Raises:
        DataError: If they cannot be fetched.
    """
    try:
        FashionMNIST(root, download=True)
    except (OSError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"the images cannot be downloaded: {told}") from error


def unpack(source: Path, root: Path) -> None:
    """Unpack the four gzipped files of a folder to where torchvision looks for them.

    Raises:
        DataError: If one of them is missing or broken.
    """
    raw(root).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        packed, path = source / f"{name}.gz", raw(root) / name
        if not packed.is_file():
            raise DataError(f"{packed} is missing: {source} must hold the four .gz files")
        partial = path.with_suffix(".partial")
        try:
            with gzip.open(packed) as reader, partial.open("wb") as writer:
                shutil.copyfileobj(reader, writer)
        except (EOFError, OSError) as error:
            partial.unlink(missing_ok=True)
            raise DataError(f"{packed} cannot be unpacked: {error}") from error
        os.replace(partial, path)


def main() -> None:
    """Lay the files out as the command line says."""
    parser = argparse.ArgumentParser(description="Lay Fashion-MNIST out for torchvision.")
    parser.add_argument("root", type=Path, metavar="DIR", help="folder to lay it out in")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="folder with the gzipped files, such as that of Debian's dataset-fashion-mnist "
        "(default: download them)",
    )
    given = parser.parse_args()
    try:
        if given.source is None:
            download(given.root)
        else:
            unpack(given.source, given.root)
        for train in (True, False):
            dataset(str(given.root), train=train)
    except DataError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
