"""caption: where captions come from, and what is kept of them."""
