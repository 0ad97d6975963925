"""ONNX in eight bits, by onnxruntime's quantizer: every operation between QuantizeLinear and DequantizeLinear."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.errors import ModelError, UserError
from resrep_dist.export.convert import to_onnx
from resrep_dist.export.encoding import ENCODINGS_KEY, Encoding, encodings_to_json
from resrep_dist.export.metadata import add_properties

import numpy as np
from tensorflow import keras

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operations that move numbers and compute none, so that they take integers as well.
_MOVING = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_BATCH_SIZE = 32


def to_onnx_eight_bits(model: keras.Model, path: Path, images: np.ndarray, has_integer_ends: bool) -> None:
    """Write a model as ONNX in eight bits: activations of uint8, weights of int8 per channel.

    Args:
        model: A model with one input and one output.
        path: The file.
        images: Images for the calibration, float32 [N, height, width, channels].
        has_integer_ends: True for an input and an output of uint8, False for float32.

    Raises:
        UserError: If tf2onnx, onnx or onnxruntime is not installed.
        ModelError: If integers are asked for and the first or the last operation has none.
    """
    with _prepared(model) as prepared:
        _quantize(prepared, path, images)
    import onnx

    quantized = onnx.load(str(path))
    if has_integer_ends:
        encodings = {
            quantized.graph.input[0].name: _take_integers(quantized.graph),
            quantized.graph.output[0].name: _give_integers(quantized.graph),
        }
        add_properties(quantized, {ENCODINGS_KEY: encodings_to_json(encodings)})
    # onnxruntime names all domains that it knows, and other runtimes refuse what they do not know.
    used = {node.domain or "" for node in quantized.graph.node}
    domains = [entry for entry in quantized.opset_import if entry.domain in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(domains)
    onnx.save(quantized, str(path))


def onnx_layers_alone(model: keras.Model, images: np.ndarray, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the model once for each of its layers with weights, with only this layer in eight bits.

    Args:
        model: A model with one input and one output.
        images: Images for the calibration, float32 [N, height, width, channels].
        folder: Folder for the file, which each layer replaces.

    Yields:
        Names of the operation and its weights, which contain that of the layer, and the file.
    """
    path = folder / "alone.onnx"
    with _prepared(model) as prepared:
        import onnx

        for node in onnx.load(str(prepared)).graph.node:
            if node.op_type in _WEIGHTED:
                path.unlink(missing_ok=True)
                _quantize(prepared, path, images, [node.name])
                yield ";".join([node.name, *node.input[1:], *node.output]), path


@contextlib.contextmanager
def _prepared(model: keras.Model) -> Iterator[Path]:
    """Write the model in 32 bits, with batch norm folded into the convolutions."""
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(f"format onnx_int8: {error}; install it with `pip install 'resrep-dist[onnx]'`") from None
    with tempfile.TemporaryDirectory() as folder:
        converted, prepared = Path(folder) / "converted.onnx", Path(folder) / "prepared.onnx"
        to_onnx(model, converted)
        # Symbolic shapes are for transformers, and need another library.
        quant_pre_process(str(converted), str(prepared), skip_symbolic_shape=True)
        yield prepared


def _quantize(prepared: Path, path: Path, images: np.ndarray, nodes: Sequence[str] = ()) -> None:
    from onnxruntime import quantization

    batches = iter([{"images": images[start : start + _BATCH_SIZE]} for start in range(0, len(images), _BATCH_SIZE)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(batches, None)

    quantization.quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        # On x86 onnxruntime took twice as long with activations of int8.
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_quantize=list(nodes),
    )


def _take_integers(graph: Any) -> Encoding:
    """Remove the QuantizeLinear behind the input, and return its encoding."""
    changed = [graph.input[0]]
    name = first = graph.input[0].name
    while True:
        consumers = [node for node in graph.node if name in node.input]
        if len(consumers) == 1 and consumers[0].op_type in _MOVING:
            name = consumers[0].output[0]
            changed += [value for value in graph.value_info if value.name == name]
            continue
        if len(consumers) == 1 and consumers[0].op_type == "QuantizeLinear":
            break
        raise _has_no_integers(first, [node.op_type for node in consumers])
    _rename(graph, consumers[0].output[0], name)
    return _without(graph, consumers[0], changed)


def _give_integers(graph: Any) -> Encoding:
    """Remove the DequantizeLinear before the output, and return its encoding."""
    changed = [graph.output[0]]
    name = last = graph.output[0].name
    producers = {output: node for node in graph.node for output in node.output}
    while producers[name].op_type in _MOVING:
        name = producers[name].input[0]
        changed += [value for value in graph.value_info if value.name == name]
    node = producers[name]
    if node.op_type != "DequantizeLinear":
        raise _has_no_integers(last, [node.op_type])
    _rename(graph, node.input[0], name)
    return _without(graph, node, changed)


def _has_no_integers(name: str, operations: Sequence[str]) -> ModelError:
    return ModelError(
        f"--io integer: next to {name} is {', '.join(operations) or 'nothing'}, which has no integer version in "
        "onnxruntime; export with --io float"
    )


def _rename(graph: Any, name: str, new_name: str) -> None:
    """Give the tensor `name` the name `new_name`, wherever it is computed and used."""
    for node in graph.node:
        for names in (node.input, node.output):
            for number, other in enumerate(names):
                if other == name:
                    names[number] = new_name


def _without(graph: Any, node: Any, changed: Sequence[Any]) -> Encoding:
    """Remove a QuantizeLinear or DequantizeLinear; the tensors `changed` become integers."""
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in graph.initializer}
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    for value in changed:
        value.type.tensor_type.elem_type = constants[node.input[2]].data_type
    graph.node.remove(node)
    return Encoding(zero_point.dtype.name, float(scale), int(zero_point))
