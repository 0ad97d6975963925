"""TF32 on a CPU: the inputs of convolutions and matrix products are rounded to 10 bits, as by an Ampere GPU."""

import tensorflow as tf
from tensorflow.python.ops import gen_math_ops, gen_nn_ops

_OPERATIONS = {
    gen_nn_ops: ("conv2d", "depthwise_conv2d_native"),
    gen_math_ops: ("mat_mul", "batch_mat_mul_v2", "batch_mat_mul_v3"),
}


def rounded(tensor):
    bits = tf.bitcast(tensor, tf.int32)
    # To the nearest of the numbers that end in 13 zeros.
    return tf.bitcast(tf.bitwise.bitwise_and(bits + (1 << 12), ~((1 << 13) - 1)), tf.float32)


def emulate(monkeypatch):
    """Round as a GPU does, for all that is traced while TensorFlow's setting allows it."""
    for module, names in _OPERATIONS.items():
        for name in names:
            monkeypatch.setattr(module, name, _rounding(getattr(module, name)))
    tf.config.experimental.enable_tensor_float_32_execution(True)


def _rounding(operation):
    def call(*arguments, **options):
        if tf.config.experimental.tensor_float_32_execution_enabled():
            arguments = [_rounded_if_float32(value) for value in arguments]
            options = {name: _rounded_if_float32(value) for name, value in options.items()}
        return operation(*arguments, **options)

    return call


def _rounded_if_float32(value):
    return rounded(value) if tf.is_tensor(value) and value.dtype == tf.float32 else value
