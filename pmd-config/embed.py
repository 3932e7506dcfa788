#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""embed.py OBJECT HEADER: the bytes of OBJECT as a C array, so that the engine needs no file at run time."""
import pathlib
import sys

data = pathlib.Path(sys.argv[1]).read_bytes()
rows = [", ".join(str(b) for b in data[i:i + 24]) for i in range(0, len(data), 24)]
pathlib.Path(sys.argv[2]).write_text(
    "static const unsigned char ramlift_xdp_object[] __attribute__((aligned(8))) = {\n\t"
    + ",\n\t".join(rows) + "};\n")
