"""Times models in a runtime, without TensorFlow: the standard library, numpy and the runtime are all that it needs.

`resrep measure --bundle` copies this folder as it is, to machines on which nothing else of this package is installed.
So its modules import one another relatively, and nothing else of the package.
"""
