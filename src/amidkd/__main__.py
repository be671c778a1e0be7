"""``python -m amidkd``: the command line, for ``accelerate launch -m amidkd`` and ``torchrun -m amidkd``."""

from amidkd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
