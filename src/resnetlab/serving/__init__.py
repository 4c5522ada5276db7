"""An HTTP service and a page over exported files: one process, ONNX Runtime, no torch."""
