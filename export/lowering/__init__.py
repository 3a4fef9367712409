"""MXNet's operators as ONNX nodes, and a whole symbol as an ONNX model."""
