# SPDX-License-Identifier: Apache-2.0
"""One person's work on one folder: everything that ties recipe, plan, engine and images together.

project.py           builds the recipes of a folder
lock.py              what each source resolved to, and the kernel configuration, for review
vendor.py            one folder to build from without network
cache_key.py         what a CI cache is keyed on
reproduce.py         an image built once more and compared
command_line.py      commands in messages, to be pasted
kernel_questions.py  questions about a recipe's kernel configuration
"""
