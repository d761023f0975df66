# SPDX-License-Identifier: Apache-2.0
"""An http session that reads no more of an answer than it was asked to."""

import requests


class Session(requests.Session):
    """Follows no redirection by itself, and so reads nothing of what comes with one."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Nowhere. What requests would follow it first reads whole, and decompressed."""
