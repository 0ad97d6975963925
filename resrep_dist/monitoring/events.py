"""Cuts TensorBoard's event files at the step at which a run resumes."""

import os
from pathlib import Path

import tensorflow as tf


def drop_events_after(folder: Path, step: int) -> None:
    """Rewrite event files without the points after a step.

    A killed run has usually written points after its last checkpoint. The resumed run makes these steps again, and
    TensorBoard would draw both as one curve that goes back and forth.

    Args:
        folder: Folder of the event files.
        step: Last step that is kept.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    # TensorBoard reads every file with `tfevents` in its name, what a killed start has left behind as well.
    partial = folder / "shortened.partial"
    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept, num_dropped = [], 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if Event.FromString(record).step > step:
                    num_dropped += 1
                else:
                    kept.append(record)
        except tf.errors.DataLossError:
            # The last record of a killed run may be incomplete. Nothing after it can be read.
            num_dropped += 1
        if num_dropped:
            with tf.io.TFRecordWriter(str(partial)) as writer:
                for record in kept:
                    writer.write(record)
            os.replace(partial, path)
