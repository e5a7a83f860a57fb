"""The entry point: Ctrl-C is one line from the first import on, before the command line can say it."""

import os
import sys


def main() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it: the next file that is opened would take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted\nhint: run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
