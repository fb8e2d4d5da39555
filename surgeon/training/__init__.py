"""Pruning while a model trains: masks first, surgery later."""
