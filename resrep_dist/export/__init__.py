"""Export of Keras models to other formats, and inference with all of them."""
