"""Speed, always as a ratio to a peer in the same run: `make bench`, or `python -m benchmarks NAME [options]` for one.

Run it on a machine that does nothing else. Each benchmark prints its table and explains its options with --help. Those
that need more than this installation, or longer than some minutes, run only when named.
"""

import runpy
import sys

NAMES = {
    "images_decode": "reading and resizing JPEGs, against PIL + torchvision transforms + DataLoader",
    "eval_extract": "features of a folder of JPEGs, against eager fp32, PIL and a DataLoader",
    "eval_knn": "k-NN evaluation, against faiss alone, DINO's loop and lightly's",
    "eval_probe": "linear probes, against scikit-learn",
    "distill_speed": "the training loop, against the networks alone, the usual script and lightly-train",
}
WHEN_NAMED = {
    "students_speed": "several students on one pass of the teacher, against one after another and the networks alone",
    "embed_speed": "embedding a folder of JPEGs, against the bare engine on pixels in memory",
    "eval_workers": "the cells of an evaluation in several processes, against one",
    "health": "how well label-free health ranks students, against labelled k-NN",
    "index": "a million made-up vectors in an index, against bare faiss",
    "int8_speed": "int8 files of students against their float ONNX file, in onnxruntime and OpenVINO",
    "index_kill": "an index killed again and again while it is changed",
    "kill": "a run killed again and again, against one that was left alone",
    "memory": "seconds and bytes of an index, and whether a run's memory grows",
    "lightly_train": "lightly-train beside us: its losses against our presets, its own recipe on our teacher",
}


def main(argv: list[str]) -> int:
    known = NAMES | WHEN_NAMED
    if argv and argv[0] not in known:
        print(__doc__, *(f"  {name:<16}{what}" for name, what in known.items()), sep="\n")
        return 0 if argv[0] in ("-h", "--help") else 2
    for name in argv[:1] or NAMES:
        print(f"== {name}: {known[name]}", flush=True)
        sys.argv = [f"benchmarks.{name}", *argv[1:]]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
