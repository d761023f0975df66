# SPDX-License-Identifier: Apache-2.0
"""What the secure processor will say of a launch, computed beforehand, and what it said.

digests.py     launch measurements and digests
id_block.py    the digest that a key's owner allows, signed
snp_report.py  an attestation report held against what was expected
"""
