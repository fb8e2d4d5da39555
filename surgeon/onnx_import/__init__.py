"""From an ONNX file to a module of torch operators that computes the same."""
