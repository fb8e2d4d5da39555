"""From a module to a measured speed-up: ONNX export, onnxruntime sessions, layout and latency."""
