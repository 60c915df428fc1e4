"""The judge of GGUF files: ggml's Python package.

gguf_read.py   standard input [{"path", "f32": a file of the same weights as F32}, ...]: prints for
               each {"kvs": {key: value}, "tensors": [{"name", "type", "shape", "same"}]}, where same
               says whether the package makes the same bytes of the F32 file's values
"""

import json
import sys

import numpy
from gguf import GGUFReader, quants


def read(job):
    file, exact = GGUFReader(job["path"]), GGUFReader(job["f32"])
    values = {t.name: t.data for t in exact.tensors}
    out = {"kvs": {}, "tensors": []}
    for name, field in file.fields.items():
        if not name.startswith("GGUF."):
            out["kvs"][name] = field.contents()
    for t in file.tensors:
        want = quants.quantize(values[t.name], t.tensor_type)
        same = numpy.array_equal(numpy.ascontiguousarray(want).view(numpy.uint8).ravel(), numpy.ascontiguousarray(t.data).view(numpy.uint8).ravel())
        out["tensors"].append({"name": t.name, "type": t.tensor_type.name, "shape": [int(n) for n in t.shape], "same": bool(same)})
    return out


json.dump([read(job) for job in json.load(sys.stdin)], sys.stdout)
