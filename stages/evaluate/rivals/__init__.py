"""Other methods that draw the same captions as BootPIG."""
