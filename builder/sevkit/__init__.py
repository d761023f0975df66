# SPDX-License-Identifier: Apache-2.0
"""sevkit builds the guest side of AMD SEV confidential containers.

The data moves one way: recipe → plan → stages → image directory → manifest → exports.
"""

__version__ = "0.1.0"
