# SPDX-License-Identifier: Apache-2.0
"""Whether a host can launch what a manifest describes, what it lacks, and how to get it.

facts.py          what a host is: looks, and only records
host_firmware.py  the OVMF images of the host, and whether they check what they are handed
rules.py          judges a record, so that each rule is tested with the record of any host
"""
