# SPDX-License-Identifier: Apache-2.0
"""Patch series in quilt's form with DEP-3 headers: read, judged, and applied all or nothing.

series.py  a series and its patches, with what their headers say
diff.py    what one patch changes, and whether it is well formed
apply.py   a series put on a tree, through patch(1)
"""

from sevkit.patches.apply import apply
from sevkit.patches.series import Patch, Series, read_patch, read_series

__all__ = ["Patch", "Series", "apply", "read_patch", "read_series"]
