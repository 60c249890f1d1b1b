"""``python -m expunge``, and the command ``expunge``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C during its imports is no traceback either."""
    try:
        from expunge import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped by Ctrl-C\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
