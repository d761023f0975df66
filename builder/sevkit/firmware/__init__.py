# SPDX-License-Identifier: Apache-2.0
"""What an OVMF image says of itself, and whether it does what it says. Never runs it.

volumes.py     firmware volumes, their files and sections
ovmf.py        the GUIDed table, SEV metadata, how it starts
modules.py     the modules inside, by name and digest
verifier.py    whether code that checks kernel hashes is among them
hash_table.py  the table of kernel hashes that a host hands to it
"""
