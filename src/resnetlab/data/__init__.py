"""From a source of images to augmented batches."""
