"""`python -m eval CONFIG.yaml`: see eval/cli.py. The code is loaded once, as `ssl_kd.eval`."""

from ssl_kd.eval.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
