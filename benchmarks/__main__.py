"""Speed, always as a ratio to a peer in the same run: `make bench`, or `python -m benchmarks NAME [options]` for one.

Run it on a machine that does nothing else. Each benchmark prints its table and explains its options with --help.
"""

import runpy
import sys

NAMES = {
    "images_decode": "reading and resizing JPEGs, against PIL + torchvision transforms + DataLoader",
    "eval_knn": "k-NN evaluation, against faiss alone, DINO's loop and lightly's",
    "eval_probe": "linear probes, against scikit-learn",
}


def main(argv: list[str]) -> int:
    if argv and argv[0] not in NAMES:
        print(__doc__, *(f"  {name:<16}{what}" for name, what in NAMES.items()), sep="\n")
        return 0 if argv[0] in ("-h", "--help") else 2
    for name in argv[:1] or NAMES:
        print(f"== {name}: {NAMES[name]}", flush=True)
        sys.argv = [f"benchmarks.{name}", *argv[1:]]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
