"""The entry for several ranks: `deepspeed launch/train.py CONFIG.toml [the options of fastmpl train]`, or torchrun."""

import sys

from fastmpl.cli import main

if __name__ == "__main__":
    # the launcher puts --local_rank=N first; LOCAL_RANK says the same
    sys.exit(main(["train", *(argument for argument in sys.argv[1:] if not argument.startswith("--local_rank="))]))
