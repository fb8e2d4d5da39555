"""From a module to an ONNX file that computes what the module computes."""
