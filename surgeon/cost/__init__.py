"""What a model of given widths costs: MACs, parameters, channels."""
