# SPDX-License-Identifier: Apache-2.0
"""The command line: the only package that prints, asks the environment, or decides an exit status.

common.py       the top command, flags of every build, the project a verb works on
verbs.py        what --help shows of each verb: its section, a summary, examples
words.py        what a shell completes, and the formats of export
guest_words.py  where the guest's own command begins
listeners.py    a build, told to people and to programs

build.py        build, list, check, fetch, update, show
export.py       export, doctor
firmware.py     firmware inspect, prove
guest.py        boot, run, probe
image.py        why, verify, schema
install.py      install
kernel.py       kconfig why, menuconfig
lock.py         lock, vendor, cache-key
log.py          log
manual.py       man
measure.py      measure, diff
report.py       verify-report
reproduce.py    reproduce
sign.py         sign
store.py        gc, clean
"""

import os
import signal
import sys
from collections.abc import Sequence

import click

from sevkit.cli import (  # noqa: F401
    build,
    export,
    firmware,
    guest,
    image,
    install,
    kernel,
    lock,
    log,
    manual,
    measure,
    report,
    reproduce,
    sign,
    store,
)
from sevkit.cli.common import failure, main
from sevkit.errors import SevkitError


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit status.

    0 done, 1 it failed, 2 the recipe or the call is wrong, 3 something is missing on this host,
    4 the answer is no, 130 interrupted; `boot` and `run` give the status of what ran in the guest.
    """
    signal.signal(signal.SIGTERM, _as_interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup(1) has it
        signal.signal(signal.SIGHUP, _as_interrupt)
    try:
        words = tuple(arguments)
        status = main.main(list(words), prog_name="sevkit", standalone_mode=False, obj=words)
    except SevkitError as error:
        click.echo(f"sevkit: error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("sevkit: interrupted", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        explained = failure(error)
        click.echo(f"sevkit: error: {explained}", err=True)
        return explained.exit_code
    return status if isinstance(status, int) else 0


def _as_interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
