"""Answers of nodes that were honest once: one or two things of each are changed, at random and by a seed.

Six kinds of changes, from the inside to the outside of a message:

    values     the numbers in tensors: NaN, what overflows, weights of next to nothing, other shapes, dtypes and names
    head       the structure of the JSON head: any value of it replaced, left out or given twice
    text       the letters of the JSON head: cut, nested too deeply, numbers of thousands of digits, names given twice
    tensors    the bytes of the safetensors: its header's length, names, dtypes, shapes and offsets, and what follows
    wrapper    Flower's records: NumPy's header around the bytes, kinds of records, what is missing or too many
    objects    the bytes of Flower's objects, as they come from the SuperLink, and the tree that names them
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors.torch import load, save

INSIDE = ("values", "head", "text", "tensors", "wrapper")
KINDS = (*INSIDE, "objects")
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202eevil\u2066\u200b\r\n\ud800"
ODD: list[Any] = [
    *(None, True, False, [], {}, "", "5", "x" * 2000, ESCAPES, [1], {"a": 1}, [[]], "nan", "__class__"),
    *(0, 1, -1, 2, 3, 5, 7, 2.5, -0.0, 1e-300, 1e308, -1e308, 3e38, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63), 10**12, 10**18, 10**30, 10**308, 10**400, -(10**400), 1e16),
]
STRANGE = (float("nan"), float("inf"), -float("inf"), 1e-300, 0.0, -1.0, 3e38, -3e38, 1e20, 1e100, 1e200, 1.7e308)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "C64", "U64", "X", "", "I32")


def mutated(content: RecordDict, kind: str, source: random.Random) -> RecordDict:
    """Return a content with a change of a kind; `objects` is for `mutated_objects`."""
    return {"values": _values, "head": _head, "text": _text, "tensors": _tensors, "wrapper": _wrapper}[kind](
        content, source
    )


# ---- values ------------------------------------------------------------------------------------------------------


def _values(content: RecordDict, source: random.Random) -> RecordDict:
    tensors = dict(load(_blob(content)))
    name = source.choice(sorted(tensors))
    tensor = tensors[name].clone()
    change = source.randrange(9)
    if change == 0:
        del tensors[name]
    elif change == 1:
        tensors[source.choice((f"{name}x", "x", "node0.delta/#x", f"node7.{name}", "single3.delta/", ""))] = tensor
    elif change == 2:
        tensors[name] = source.choice((tensor.reshape(-1, 1), tensor.flatten()[:0], tensor.sum(), tensor[None]))
    elif change == 3:
        kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64)
        tensors[name] = tensor.to(source.choice(kinds))
    elif change == 4:
        tensors[name] = tensor.to(torch.float64) * source.choice((-1.0, 0.0, 1e-12, 2.0, 1e12, 1e30, 1e300))
        tensors[name] = tensors[name] if source.random() < 0.5 else tensors[name].to(tensor.dtype)
    elif change == 5 and tensor.ndim:
        tensors[name] = torch.cat([tensor, tensor])
    else:
        flat = tensor.flatten()
        for index in range(len(flat)) if source.random() < 0.5 else (source.randrange(max(len(flat), 1)),):
            strange = torch.tensor(source.choice(STRANGE), dtype=torch.float64)
            flat[index] = strange.to(flat.dtype) if flat.is_floating_point() else source.choice((0, 1, -1, 5, 7, 100))
        tensors[name] = flat.reshape(tensor.shape)
    return _with_blob(content, save({key: value.contiguous() for key, value in tensors.items()}))


# ---- the JSON head -----------------------------------------------------------------------------------------------


def _head(content: RecordDict, source: random.Random) -> RecordDict:
    head = json.loads(str(content.config_records["umbel"]["json"]))
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        places = list(_places(head))
        holder, key = source.choice(places)
        act = source.randrange(8)
        if act == 0:
            del holder[key]
        elif act == 1 and isinstance(holder, list):
            holder.insert(source.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif act == 2:
            holder[key] = copy.deepcopy(source.choice(places)[0])
        elif act == 3 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * source.choice((-1, 0, 2, 10, 10**6, 10**15, 10**300, 0.5))
        elif act == 4 and isinstance(holder, dict):
            holder[source.choice((ESCAPES, "x" * 500, "num_examples", "client"))] = source.choice(ODD)
        else:
            holder[key] = copy.deepcopy(source.choice(ODD))
        if not any(True for _ in _places(head)):
            break
    return _with_text(content, json.dumps(head))


def _places(value: Any) -> Any:
    """Yield every place of a JSON value, as who holds it and the key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(entries):
        yield value, key
        yield from _places(item)


def _text(content: RecordDict, source: random.Random) -> RecordDict:
    text = str(content.config_records["umbel"]["json"])
    at = source.randrange(len(text))
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    number = source.choice(digits)
    changes: list[Callable[[], str]] = [
        lambda: text[:at],
        lambda: text[:at] + source.choice('{}[],:"0-9eE.\\\x00\u202e\ud800') + text[at + 1 :],
        lambda: text[:at] + text[at + source.randrange(1, 20) :],
        lambda: "[" * 200_000,
        lambda: '{"nodes":' * 50_000,
        lambda: text[:-1] + ', "x": ' + "[" * (depth := source.choice((50, 500, 900, 5000))) + "]" * depth + "}",
        lambda: text[:number] + "9" * source.choice((20, 400, 4000, 5000, 200_000)) + text[number + 1 :],
        lambda: (
            text[:number]
            + source.choice(("1e999", "-1e999", "NaN", "-Infinity", "1e308", "0x10", "1_0", "01"))
            + text[number + 1 :]
        ),
        lambda: text[:-1] + ", " + text[1:],
        lambda: text[:-1] + ', "nodes": []}',
        lambda: text.replace('"num_examples"', '"num_examples": 7, "num_examples"'),
        lambda: text + source.choice((" ", "x", text, "\n{}")),
        lambda: json.dumps(source.choice(ODD)),
        lambda: "[" + "0," * 100_000 + "0]",
        lambda: text[:-1] + ', "failures": [' + ",".join(['[3,"x"]'] * 5000) + "]}",
        lambda: text[:-1] + ', "x": "' + "y" * source.choice((10_000, 1_000_000)) + '"}',
    ]
    return _with_text(content, source.choice(changes)())


# ---- the bytes of the tensors ------------------------------------------------------------------------------------


def _tensors(content: RecordDict, source: random.Random) -> RecordDict:
    blob = bytearray(_blob(content))
    length = int.from_bytes(blob[:8], "little")
    change = source.randrange(10)
    if change == 0:
        blob = blob[: source.randrange(len(blob))]
    elif change == 1:
        blob += bytes(source.randrange(1, 64))
    elif change == 2:
        blob[:8] = source.choice((0, 1, length - 1, length + 1, 10**8, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    elif change == 3:
        for _ in range(source.choice((1, 3, 20))):
            blob[source.randrange(8, 8 + length)] = source.randrange(256)
    elif change == 4:
        for _ in range(source.choice((1, 3, 20))):
            blob[source.randrange(8 + length, len(blob))] = source.choice((0, 255, 127, 128, source.randrange(256)))
    elif change == 5:
        blob = bytearray(source.choice((b"", b"\0" * 8, b"{}", bytes(range(256)))))
    else:
        header = json.loads(blob[8 : 8 + length])
        name = source.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        sizes = ([2**62, 4], [0, 2**63], [2**64], [1] * 70, [-1], [10**30], ["2"], None, [[2]], [2.0], [0], [3], [1, 2])
        offsets = ([0, 2**63], [8, 0], [-8, 0], [0, 10**30], None, [0], [0, 8], [0, 16], [8, 24], [16, 16])
        act = source.randrange(6)
        if act == 0:
            entry["dtype"] = source.choice((*DTYPES, None, 3))
        elif act == 1:
            entry["shape"] = source.choice(sizes)
        elif act == 2:
            entry["data_offsets"] = source.choice(offsets)
        elif act == 3:
            header[source.choice((ESCAPES, "node0.delta/../x", "x/y", "node0", "single3.delta/#w"))] = header.pop(name)
        elif act == 4:
            header["__metadata__"] = source.choice(({"a": "b" * 10**5}, {"a": 1}, [], {"format": "pt"}))
        else:
            header |= {f"many/{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(2000)}
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        blob = bytearray(len(text).to_bytes(8, "little") + text + blob[8 + length :])
    return _with_blob(content, bytes(blob))


# ---- Flower's records --------------------------------------------------------------------------------------------


def _npy(header: bytes, values: bytes, version: bytes = b"\x01\x00") -> bytes:
    size = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + header + values


def _wrapper(content: RecordDict, source: random.Random) -> RecordDict:
    array = content.array_records["tensors"]["safetensors"]
    values = _blob(content)
    size = len(values)
    said = (
        *(f"({size},)", f"({size + 1},)", f"({size - 1},)", "(10000000000000,)", "(-1,)", "()", f"(1, {size})"),
        *("(((((((((1,),),),),),),),),)", "(" * 5000, f"({'9' * 5000},)", "(2.5,)", "__import__('os')"),
    )
    kinds = ("'|u1'", "'|O'", "'<f8'", "'|V1'", "'|S5'", "[('a', '|O')]", "'<U7'", "(" * 3000)
    order = source.choice(("False", "False", "True", "3"))
    text = f"{{'descr': {source.choice(kinds)}, 'fortran_order': {order}, 'shape': {source.choice(said)}, }}\n"
    pickled = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93\x94\x8c\x04true\x85R."
    version = source.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    changes: list[Callable[[], RecordDict]] = [
        *[lambda: _with_array(content, Array("uint8", (size,), "numpy.ndarray", _npy(text.encode(), values, version)))]
        * 4,
        lambda: _with_array(
            content,
            Array(
                "object",
                (1,),
                "numpy.ndarray",
                _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n", pickled),
            ),
        ),
        lambda: _with_array(content, Array(array.dtype, array.shape, "torch.pickle", array.data)),
        lambda: _with_array(content, Array(source.choice(("", "float64", "O")), array.shape, array.stype, array.data)),
        lambda: _with_array(
            content, Array(array.dtype, source.choice(((), (0,), (10**30,), (-5,))), array.stype, array.data)
        ),
        lambda: _with_array(content, Array(array.dtype, array.shape, array.stype, array.data[: source.randrange(80)])),
        lambda: _with_array(content, Array(np.frombuffer(values, np.uint8).reshape(1, -1))),
        lambda: _with_array(content, Array(np.frombuffer(values, np.uint8).astype(np.float64))),
        lambda: _records(content, tensors=ArrayRecord({})),
        lambda: _records(content, tensors=ArrayRecord({"other": array})),
        lambda: _records(content, tensors=ArrayRecord({"safetensors": array, "more": array})),
        lambda: _records(content, tensors=ConfigRecord({"safetensors": values})),
        lambda: _records(content, tensors=None),
        lambda: _records(content, more=ArrayRecord({"safetensors": array})),
        lambda: _records(content, more=MetricRecord({"loss": 0.5, "all": [1.0] * 1000})),
        lambda: _records(content, more=ConfigRecord({"json": "{}", ESCAPES.encode("ascii", "ignore").decode(): b"x"})),
        lambda: _records(content, umbel=None),
        lambda: _records(content, umbel=ArrayRecord({"json": array})),
        lambda: _records(content, umbel=MetricRecord({"json": 1})),
        lambda: _records(
            content, umbel=ConfigRecord({"json": source.choice((b"{}", 1, 2.5, True, ["{}"], [1] * 1000))})
        ),
        lambda: _records(content, umbel=ConfigRecord({"json": "{}", "more": "x" * 10**5})),
        lambda: RecordDict(),
    ]
    return source.choice(changes)()


# ---- what a content is made of -----------------------------------------------------------------------------------


def _blob(content: RecordDict) -> bytes:
    return content.array_records["tensors"]["safetensors"].numpy().tobytes()


def _with_blob(content: RecordDict, blob: bytes) -> RecordDict:
    return _with_array(content, Array(np.frombuffer(blob, dtype=np.uint8)))


def _with_array(content: RecordDict, array: Array) -> RecordDict:
    return _records(content, tensors=ArrayRecord({"safetensors": array}))


def _with_text(content: RecordDict, text: str) -> RecordDict:
    return _records(content, umbel=ConfigRecord({"json": text}))


def _records(content: RecordDict, **changes: Any) -> RecordDict:
    records = {**dict(content.items()), **changes}
    return RecordDict({name: record for name, record in records.items() if record is not None})
