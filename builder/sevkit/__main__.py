# SPDX-License-Identifier: Apache-2.0
"""The command `sevkit`: a build with nothing to do is answered before anything heavy is loaded."""

import os
import sys


def main() -> None:
    """Run the command line of this process and exit with its status."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        # the user's locale decides how names are read, and keys would differ by it
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    arguments = sys.argv[1:]
    if "build" in arguments:
        from sevkit.store import uptodate

        answer = uptodate.known_answer(arguments)
        if answer is not None:
            print(answer)
            sys.exit(0)
    from sevkit.cli import run

    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
