"""From a module and example inputs to a functional graph of ATen operators."""
