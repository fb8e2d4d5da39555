"""Proves on every run that the smaller model is the original less the removed units."""

from surgeon.verify.certificate import Certificate
from surgeon.verify.check import TOLERANCE, certify

__all__ = ["TOLERANCE", "Certificate", "certify"]
