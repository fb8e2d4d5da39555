"""The values that every stage speaks of: axes, spaces of units, polynomials, traits of operators."""
