"""`python -m ssl_kd` is `ssl-kd`; torchrun needs it so."""

from ssl_kd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
