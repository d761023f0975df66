# SPDX-License-Identifier: Apache-2.0
"""Mutated input for everything that reads what others wrote.

    mutation.py   damaged bytes from good ones, the same for the same number
    targets.py    a reader each, with the good inputs that mutations start from
    images.py     … what an image directory says of itself, taken to all that is made of it
    recipes.py    … the shipped recipes, changed in their values
    patching.py   … a patch put on a tree
    talk.py       … what a guest says, in frames and as JSON
    files.py      where inputs are put for readers of files
    trial.py      one input for one reader, and what counts as a crash
    runs.py       many of them, in processes of their own
    __main__.py   the runner: python -m tests.fuzz TARGET --runs 100000
    guided.py     the same readers, led by what code an input reaches

A reader may answer or refuse with its own error, soon and in bounded memory; all else is a crash.
"""
