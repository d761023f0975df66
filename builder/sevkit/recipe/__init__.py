# SPDX-License-Identifier: Apache-2.0
"""Recipes: what to build, from TOML files to one frozen `Recipe`.

library.py     where recipes, fragments, patch series and agents are found
file.py        files → `Recipe`: read, extend, render, validate; all problems told together
tree.py        a recipe file whose every value knows the line that wrote it
toml_lines.py  on which line of a TOML file each key stands
template.py    the templates in a recipe's strings
values.py      the values in it, each with its form
model.py       `Recipe` and its parts
problems.py    what is wrong with a recipe, in words
schema.py      the JSON Schema of a recipe file, for editors
"""
