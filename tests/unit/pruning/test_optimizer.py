from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.schedules import PhaseSchedule
from tests.networks import randomise, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


@pytest.mark.parametrize("rule", ["radial", "paper"])
def test_each_weight_follows_its_own_rule_inside_tf_function(rule):
    base = small_network()
    randomise(base)
    graph = trace(base)
    model = insert_compactors(base, graph)
    compactors = compactors_of(model, graph)
    compactors[1].mask.assign([0.0] * 3 + [1.0] * 9)
    schedule = PhaseSchedule(0.1, num_steps=10)
    optimizer = ResRepOptimizer(schedule, compactors, decay=0.01, lasso_strength=0.02, rule=rule)
    weights = model.trainable_variables
    random = np.random.default_rng(0)
    gradients = [tf.constant(random.normal(size=w.shape), tf.float32) for w in weights]
    expected = [w.numpy().astype(np.float64) for w in weights]
    velocity = [np.zeros_like(w) for w in expected]

    @tf.function
    def step():
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    for index in range(3):
        rate = float(schedule(index))
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            g, w, momentum = gradient.numpy().astype(np.float64), expected[i], 0.9
            if "compactor" in weight.name:
                compactor = next(c for c in compactors if c.kernel is weight)
                mask, norms = compactor.mask.numpy(), np.linalg.norm(w[0, 0], axis=0)
                if rule == "radial":
                    direction = w / norms
                    inwards = np.maximum((direction * velocity[i]).sum(axis=2, keepdims=True), 0)
                    velocity[i] = np.where(mask == 0, inwards * direction, velocity[i])
                g, momentum = mask * g + 0.02 * w / norms, 0.99
            elif w.ndim > 1:
                g = g + 0.01 * w
            velocity[i] = momentum * velocity[i] + g
            expected[i] = w - rate * velocity[i]
        step()
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy(), value, atol=2e-5, err_msg=weight.name)


def test_the_step_of_all_compactors_is_a_few_operations():
    def num_operations(num_compactors):
        from resrep_dist.layers.compactor import Compactor

        compactors = [Compactor(name=f"c{i}") for i in range(num_compactors)]
        for compactor in compactors:
            compactor.build(tf.TensorShape([None, 4, 4, 8]))
        optimizer = ResRepOptimizer(0.1, compactors)
        kernels = [compactor.kernel for compactor in compactors]
        optimizer.build(kernels)
        gradients = [tf.ones_like(kernel) for kernel in kernels]
        norms = [tf.ones([8]) for _ in kernels]
        function = tf.function(lambda: optimizer.apply_gradients(zip(gradients, kernels, strict=True), norms=norms))
        passive = {"ReadVariableOp", "AssignVariableOp", "Placeholder", "Const", "NoOp", "Identity"}
        graph = function.get_concrete_function().graph
        return sum(operation.type not in passive for operation in graph.get_operations())

    # Reading and writing a variable is one operation each; the arithmetic does not grow with their number.
    assert num_operations(20) <= num_operations(2) + 2


def test_the_gradient_of_an_embedding_is_dense_before_the_ranks_sum_it():
    embedding = keras.layers.Embedding(50, 4)
    embedding.build(None)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(embedding(tf.constant([3, 3, 7])))
    slices = tape.gradient(loss, embedding.embeddings)
    assert isinstance(slices, tf.IndexedSlices)
    ((gradient, _),) = ResRepOptimizer(0.1)._with_gradient([(slices, embedding.embeddings)])
    assert isinstance(gradient, tf.Tensor) and gradient.shape == (50, 4)
    assert gradient.numpy().sum(1).tolist() == [8.0 if row == 3 else 4.0 if row == 7 else 0.0 for row in range(50)]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="received 'straight'"):
        ResRepOptimizer(rule="straight")
