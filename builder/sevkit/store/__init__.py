# SPDX-License-Identifier: Apache-2.0
"""Where fetched files and results are kept, shared by concurrent builds.

store.py     the store: put in whole, named by content, read after a check
listing.py   what a folder holds, and the digest that names it
leases.py    what running processes use of it
gc.py        what goes when it grows old or large
removal.py   empties it, and leaves what is not its own
uptodate.py  command lines that had nothing to do
"""
