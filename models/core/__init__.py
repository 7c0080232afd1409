"""RSA, the reference network, and the module that is trained."""
