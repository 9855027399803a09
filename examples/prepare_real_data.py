"""Turn three real data sets that Python packages ship into Parquet files with a fixed train/validation/test split.

    python examples/prepare_real_data.py [digits peptides movies] [--output_dir data]

- digits: scikit-learn's 1,797 scanned digits (UCI, CC BY 4.0) as sequences of 64 grey levels from 0 to 16, row by row.
- peptides: `AMPvsUniProt.csv` of modlamp (BSD-3): antimicrobial peptides against others, one letter an amino acid.
- movies: the sentences of movie reviews in vaderSentiment's source distribution (MIT), positive or negative by the
  sign of the mean of their human ratings; those with a mean of 0 are left out.

Rows that occur twice are taken once, and those that occur with both labels not at all, so that no row of the test set
is one of the training set. The package files are fetched with `pip download`, or taken from `--packages_dir`.

    load_dataset("data/peptides")
"""

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, disable_progress_bars

SPLIT_SEED = 0
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


def digits(packages_dir: Path) -> Dataset:
    """The digits: columns `pixels` and `label`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit('The digits come with scikit-learn: `pip install -e ".[real-data]"`.') from error

    images = load_digits()
    rows = [
        (pixels, int(label)) for pixels, label in zip(images.data.astype(int).tolist(), images.target, strict=True)
    ]
    return to_dataset("pixels", List(Value("int8")), [str(digit) for digit in range(10)], rows)


def peptides(packages_dir: Path) -> Dataset:
    """The peptides: columns `sequence` and `label`."""
    archive = package_file(
        packages_dir,
        "modlamp==4.3.3",
        "modlamp-4.3.3-py3-none-any.whl",
        "6948bcbc4a9614d10b6b47a051d4576c42fe8e5487fbbeb3cfe0d8033eb27f91",
        "--only-binary",
    )
    with zipfile.ZipFile(archive) as wheel:
        text = wheel.read("modlamp/data/AMPvsUniProt.csv").decode()
    return to_dataset("sequence", Value("string"), ["other", "antimicrobial"], parse_peptides(text))


def movies(packages_dir: Path) -> Dataset:
    """The movie sentences: columns `text` and `label`."""
    archive = package_file(
        packages_dir,
        "vaderSentiment==3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "--no-binary",
    )
    with tarfile.open(archive) as source:
        inner = source.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz").read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as resources:
        text = resources.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read().decode()
    return to_dataset("text", Value("string"), ["negative", "positive"], parse_movies(text))


DATA_SETS: dict[str, Callable[[Path], Dataset]] = {"digits": digits, "peptides": peptides, "movies": movies}


def parse_peptides(text: str) -> list[tuple[str, int]]:
    """(sequence, label) of every line `sequence, label` but the first, a header."""
    _, *lines = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [(sequence, int(label)) for sequence, label in lines]


def parse_movies(text: str) -> list[tuple[str, int]]:
    """(sentence, label) of every line `id <tab> mean rating <tab> sentence` whose mean is not 0."""
    lines = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    rated = [(sentence.strip(), float(mean)) for _, mean, sentence in lines]
    return [(sentence, int(mean > 0)) for sentence, mean in rated if mean]


def package_file(packages_dir: Path, requirement: str, name: str, sha256: str, binary: str) -> Path:
    """The path of a package's file in `packages_dir`, downloaded with pip if it is not there.

    Raises:
        ValueError: its SHA-256 is another.
        subprocess.CalledProcessError: pip could not download it.
    """
    path = packages_dir / name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", binary, ":all:", requirement]
        subprocess.run([*command, "--dest", str(packages_dir)], check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, expected {sha256}. Delete it to download it again.")
    return path


def to_dataset(column: str, feature: Any, names: list[str], rows: Iterable[tuple[Any, int]]) -> Dataset:
    """A data set with an input `column` and `label`, of the distinct rows that have one label, in order."""
    labels: dict[Any, set[int]] = {}
    for value, label in rows:
        labels.setdefault(tuple(value) if isinstance(value, list) else value, set()).add(label)
    kept = {value: next(iter(found)) for value, found in labels.items() if len(found) == 1}
    return Dataset.from_dict(
        {column: list(kept), "label": list(kept.values())},
        features=Features({column: feature, "label": ClassLabel(names=names)}),
    )


def split(rows: Dataset) -> DatasetDict:
    """Train, validation and test rows, each with the same shares of the labels."""
    share = {"stratify_by_column": "label", "seed": SPLIT_SEED}
    rest = rows.train_test_split(TEST_SHARE, **share)
    parts = rest["train"].train_test_split(VALIDATION_SHARE / (1 - TEST_SHARE), **share)
    return DatasetDict(train=parts["train"], validation=parts["test"], test=rest["test"])


def prepare(name: str, output_dir: Path, packages_dir: Path) -> DatasetDict:
    """Write a data set's splits as `output_dir`/name/split.parquet and return them."""
    splits = split(DATA_SETS[name](packages_dir))
    folder = output_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in splits.items():
        rows.to_parquet(folder / f"{part}.parquet")
    return splits


def main() -> None:
    """Write the data sets asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", default=list(DATA_SETS), help="data sets (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--packages_dir", type=Path, help="folder with the downloaded package files (default: download them)"
    )
    chosen = parser.parse_args()
    for name in chosen.name:
        if name not in DATA_SETS:
            parser.error(f"name must be among {', '.join(DATA_SETS)}, got {name!r}")
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as downloads:
        for name in chosen.name:
            splits = prepare(name, chosen.output_dir, chosen.packages_dir or Path(downloads))
            sizes = ", ".join(f"{part} {len(rows):,}" for part, rows in splits.items())
            print(f"{chosen.output_dir / name}: {sizes} rows")


if __name__ == "__main__":
    main()
