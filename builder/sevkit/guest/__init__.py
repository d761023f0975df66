# SPDX-License-Identifier: Apache-2.0
"""Boots an image under QEMU and talks to the agent in it. Never changes the image."""
