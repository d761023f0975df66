# SPDX-License-Identifier: Apache-2.0
"""Container images: read from disk, and made into one file that a guest checks block by block.

image.py     docker archives and OCI layouts, every blob checked
config.py    the runtime configuration of a container in the guest
seccomp.py   the system calls that a container may make
filetree.py  layers put on each other in memory
erofs.py     a tree written as a file system
verity.py    the hash tree behind it
workload.py  the whole file
"""
