# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system: what its programs need, its archive, and the account of it.

elf.py        what a dynamic loader reads of one file
loader.py     what the guest's loader would load
cpio.py       the archive that the kernel unpacks
compress.py   the archive made smaller
contents.py   every path with its digest, package, licence and reason
copyright.py  licences from Debian's copyright files
"""
