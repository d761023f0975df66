# SPDX-License-Identifier: Apache-2.0
"""Addresses as messages, logs, locks and manifests may have them: without passwords and tokens."""

import re

_SSH_PASSWORD = re.compile(r"(?i)\b(ssh://[^/?#\s:]*):[^/?#\s]*@")
_USER_OF_OTHERS = re.compile(r"(?i)\b((?!ssh:)[a-z][a-z0-9+.-]{0,20}://)[^/?#\s]*@")


def shown_address(text: str) -> str:
    """`text` with every address in it as others may read it.

    The user of an ssh address is part of the place (RFC 3986, 3.2.1) and stays.
    """
    return _USER_OF_OTHERS.sub(r"\1", _SSH_PASSWORD.sub(r"\1@", text))
