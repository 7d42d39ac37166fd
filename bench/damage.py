"""Ways to damage files: bytes, JSON and TOML, safetensors, ONNX; all follow from a seed."""

import copy
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import hypothesis
import numpy as np
import onnx
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
DEEP, LONG_NUMBER = "@deep@", "@long number@"
"""Stand for what Python's writers do not write."""
SPECIAL: tuple[Any, ...] = (
    *(-1, 0, 1, 2**31, 2**63 - 1, 2**64, 10**30, 1e308, 1e-320, float("nan"), float("inf")),
    *("", " ", "\x00", "../../../etc/passwd", "/dev/zero", "a.b:c", "x" * 100_000, "ß漢🙂\u202e"),
    *("simple_cnn", "scaled_resnet", "resnet50", "vit_h_14", "regnet_y_400mf", "timm:resnet10t"),
    *([], {}, [[]], {"": {}}, [0] * 1000, DEEP, LONG_NUMBER),
)
OPERATORS = (
    *("Conv", "Relu", "MaxPool", "GlobalAveragePool", "Gemm", "Flatten", "QuantizeLinear", "Loop"),
    *("DequantizeLinear", "Expand", "Reshape", "Softmax", "Resize", "Pad", "NoSuch", "If", ""),
)
PLACES = ("../secret", "/etc/passwd", "/dev/zero", "", "model.onnx", "*/_ORT_MEM_ADDR_/*", "a\x00b")
SIZES = (-1, 0, 1, 3, 2**31, 2**62)
FLOATS = st.floats(allow_subnormal=False)  # training lets the processor flush them
VALUES = st.one_of(
    st.sampled_from(SPECIAL),
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=20),
    st.lists(st.integers(-2, 2**40) | st.text(max_size=3), max_size=5),
    st.dictionaries(st.text(max_size=5), st.integers() | FLOATS, max_size=3),
)


def damaged_documents(document: Any, count: int, seed: int) -> Iterator[Any]:
    """Yields copies of a JSON or TOML document with one to three changes each."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(1, count),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_damaged(document))
    def collect(changed: Any) -> None:
        found.append(changed)

    collect()
    yield from found[:count]


@st.composite
def _damaged(draw: st.DrawFn, document: Any) -> Any:
    changed = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        places = list(_places(changed))
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(("replace", "replace", "near", "remove", "add", "repeat"))):
            case "replace":
                container[key] = copy.deepcopy(draw(VALUES))
            case "near":
                container[key] = draw(_near(container[key]))
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.text(max_size=8))] = copy.deepcopy(draw(VALUES))
            case _:
                container[key] = [container[key]] * draw(st.sampled_from((0, 1, 2, 500)))
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields all values in a document, by what holds them and their key there."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Returns values of the same type as one, or that read like it."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from((True, False, None, 0, "true"))
    if isinstance(value, int | float):
        if not abs(value) < 1e15:
            return st.just(-value)
        factors = st.sampled_from((-1, 0, 0.5, 2, 1000, 1e9, 1e300))
        return factors.map(lambda factor: type(value)(value * factor)) | st.just(str(value))
    if isinstance(value, str):
        return st.sampled_from((value.upper(), value[:-1], value * 2, f"{value}\n", [value]))
    return st.just(list(value)) | st.just({str(place): item for place, item in enumerate(value)})


def to_json_text(document: Any) -> bytes:
    """Returns JSON, of what cannot be written too."""
    return _unwritable(json.dumps(document))


def to_toml_text(document: Mapping[str, Any]) -> bytes:
    """Returns TOML with tables in one line each."""
    lines = (f"{json.dumps(key)} = {_toml(value)}\n" for key, value in document.items())
    return _unwritable("".join(lines))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
        return "{" + inside + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _unwritable(text: str) -> bytes:
    deep = random.Random(text).choice((20, 400, 5000))
    text = text.replace(json.dumps(DEEP), "[" * deep + "]" * deep)
    return text.replace(json.dumps(LONG_NUMBER), "9" * 5000).encode(errors="surrogatepass")


def damaged_bytes(content: bytes, random_: random.Random) -> bytes:
    """Returns a copy of a file with some bytes changed, cut, doubled or put in."""
    changed = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        place = random_.randrange(len(changed) + 1)
        if random_.random() < 0.5:  # headers decide most
            place = min(place, random_.randrange(256))
        length = random_.choice((1, 2, 4, 8, 64, 4096))
        block = changed[place : place + length]
        match random_.randrange(9):
            case 0 if block:
                changed[place] ^= 1 << random_.randrange(8)
            case 1 if block:
                changed[place] = random_.choice(INTERESTING)
            case 2:
                del changed[place:]
            case 3:
                changed[place:place] = random_.randbytes(length)
            case 4:
                changed[place:place] = block
            case 5:
                changed[place : place + length] = bytes(len(block))
            case 6:
                del changed[place : place + length]
            case 7:
                size = random_.choice((2, 4, 8))
                number = random_.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62))
                order = random_.choice(("big", "little"))
                raw = (number % 2 ** (8 * size)).to_bytes(size, order)
                changed[place : place + size] = raw
            case _:
                changed[place : place + length] = random_.randbytes(len(block))
    return bytes(changed)


def damaged_onnx(content: bytes, random_: random.Random) -> bytes:
    """Returns a copy of an ONNX file with one to three of its fields changed."""
    proto = onnx.ModelProto.FromString(content)
    for _ in range(random_.choice((1, 1, 2, 3))):
        graph = proto.graph
        with suppress(ValueError, IndexError, TypeError):  # nothing there to change, or not so
            match random_.randrange(10):
                case 0 | 1:
                    _damage_node(random_.choice(graph.node), graph, random_)
                case 2 | 3:
                    _damage_tensor(random_.choice(graph.initializer), random_)
                case 4 | 5:
                    values = (*graph.input, *graph.output, *graph.value_info)
                    _damage_value(random_.choice(values), random_)
                case 6 | 7:
                    _damage_metadata(proto, random_)
                case 8:
                    del graph.node[random_.randrange(len(graph.node))]
                case _:
                    _grow(graph, random_.choice(graph.node), random_)
    return proto.SerializeToString()  # type: ignore[no-any-return]


def _damage_node(node: onnx.NodeProto, graph: onnx.GraphProto, random_: random.Random) -> None:
    match random_.randrange(4):
        case 0:
            node.op_type = random_.choice(OPERATORS)
        case 1:
            others = ("", "images", "logits", *node.output, random_.choice(graph.node).output[0])
            node.input[random_.randrange(len(node.input))] = random_.choice(others)
        case 2:
            del node.attribute[random_.randrange(len(node.attribute)) :]
        case _:
            attribute = random_.choice(node.attribute)
            attribute.i = random_.choice((-1, 0, 1, 2**40))
            attribute.ints[:] = [random_.choice(SIZES)] * len(attribute.ints)


def _damage_tensor(tensor: onnx.TensorProto, random_: random.Random) -> None:
    match random_.randrange(4):
        case 0:
            tensor.dims[random_.randrange(len(tensor.dims))] = random_.choice(SIZES)
        case 1:
            tensor.data_type = random_.randrange(25)
        case 2:
            tensor.raw_data = tensor.raw_data[: random_.randrange(len(tensor.raw_data) + 1)]
        case _:  # its values are said to be in another file
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            offset, length = random_.choice(("0", "-1", "9" * 20)), random_.choice(("16", "x"))
            tensor.external_data.add(key="location", value=random_.choice(PLACES))
            tensor.external_data.add(key="offset", value=offset)
            tensor.external_data.add(key="length", value=length)


def _damage_value(value: onnx.ValueInfoProto, random_: random.Random) -> None:
    match random_.randrange(3):
        case 0:
            dim = random_.choice(value.type.tensor_type.shape.dim)
            dim.dim_value = random_.choice(SIZES)
        case 1:
            value.type.tensor_type.elem_type = random_.randrange(25)
        case _:
            value.name = random_.choice(("images", "logits", "other", ""))


def _damage_metadata(proto: onnx.ModelProto, random_: random.Random) -> None:
    entry = random_.choice(proto.metadata_props)
    facts = {"facts": json.loads(entry.value)}
    (changed,) = damaged_documents(facts, 1, random_.randrange(2**32))
    entry.value = to_json_text(changed.get("facts")).decode(errors="replace")


def _grow(graph: onnx.GraphProto, node: onnx.NodeProto, random_: random.Random) -> None:
    """Puts a constant of a gigantic shape before a node, in few bytes."""
    shape = np.array([random_.choice((2**14, 2**20, 2**40))] * 2, np.int64)
    graph.initializer.append(onnx.numpy_helper.from_array(shape, "grown_shape"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"))
    kind, puts, attributes = random_.choice(
        (
            ("ConstantOfShape", ["grown_shape"], {}),
            ("Expand", ["one", "grown_shape"], {}),
            ("RandomNormal", [], {"shape": shape.tolist()}),
        )
    )
    graph.node.insert(0, onnx.helper.make_node(kind, puts, ["grown"], **attributes))
    node.input[0] = "grown"


def damaged_safetensors(content: bytes, random_: random.Random) -> bytes:
    """Returns a copy of a safetensors file whose header was changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    (changed,) = damaged_documents(header, 1, random_.randrange(2**32))
    text = to_json_text(changed)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
