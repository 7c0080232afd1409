"""train: the reference network and the RSA layers."""
