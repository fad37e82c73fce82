"""`python -m eval CONFIG.yaml`: see eval/cli.py."""

from eval.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
