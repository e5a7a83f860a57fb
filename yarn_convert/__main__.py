"""The entry point: Ctrl-C is one line from the first import on, before the command line can say it."""

import sys


def main() -> None:
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted\nhint: run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
