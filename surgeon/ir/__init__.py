"""Values shared by all stages: axes, spaces of units, polynomials, families of operators."""
