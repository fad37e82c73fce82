"""`python -m eval CONFIG.yaml`."""

import sys

if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        from eval.config import read_config

        read_config(sys.argv[1:], "python -m eval")  # prints and leaves, without waking numpy
    from eval.run import main

    sys.exit(main())
