# SPDX-License-Identifier: Apache-2.0
"""Image directories and what they say of themselves.

output.py        `output/<name>/<version>-<build id>/`, published at once, never changed
removal.py       takes away what builds have put into an output folder
shape.py         what a manifest may say, with its JSON Schema
manifest.py      a manifest written, read, and held against the bytes beside it
requirements.py  what a guest asks of its host
cmdline.py       the kernel command line of a launch, and the parameters in one
claims.py        what a manifest says of its firmware, held against the firmware
measured.py      the launch digests of an image
published.py     whether it is as it was published: files and digests
sbom.py          its bill of materials
signature.py     whose it is
diff.py          why two images measure differently
"""
