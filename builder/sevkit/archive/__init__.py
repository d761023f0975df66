# SPDX-License-Identifier: Apache-2.0
"""Archives: unpacked below one folder, or one file taken out.

    reader.py   the entries of an archive, through libarchive
    deb.py      what a Debian package is made of
    tree.py     a folder that nothing gets out of while it is filled
    unpack.py   entries judged and written

An entry that would land outside the folder (an absolute path, `..`, a path or hard link through a
symbolic link), and anything but files, folders and links, is refused by name. A symbolic link's own
text is data and may say anything. Of modes only rwx is kept, and the owner's access to files and
folders is added; owners, times, setuid, setgid and sticky bits are dropped.
"""

from sevkit.archive.deb import DebControl
from sevkit.archive.unpack import LIMIT_BYTES, extract_member, unpack, unpack_deb

__all__ = ["LIMIT_BYTES", "DebControl", "extract_member", "unpack", "unpack_deb"]
