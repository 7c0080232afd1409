"""What can go wrong with a store. Each message is one line that names the place and the mend."""


class StoreError(ValueError):
    """The store cannot be used as given."""


class StoreFull(StoreError):
    """No room left; what is committed is kept."""


class StoreUnavailable(StoreError):
    """The store does not answer, or not well, after all attempts; what is committed is kept."""


class CorruptPart(StoreError):
    """Stored bytes are missing or do not match their checksum."""
