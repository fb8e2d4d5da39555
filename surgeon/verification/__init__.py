"""Proves on every run that the smaller model is the original less the removed units."""

from surgeon.verification.certificate import Certificate
from surgeon.verification.check import TOLERANCE, certify

__all__ = ["TOLERANCE", "Certificate", "certify"]
